"""Slices per second and peak memory of translating a volume, against 50 steps of DDIM with MONAI's network.

`make bench` runs it. Networks of the quick profile's widths, untrained (their weights do not change the time), on a
volume of 200 slices of 256×256: generator, regression, and one sample of the flow in 4 midpoint steps. The peer
is a conditional diffusion model that sees (z_t, source, coarse image): MONAI's DiffusionModelUNet with the flow's
widths, with attention only in its middle, on a few slices of the same volume; its generator is left out.
"""

import argparse
import importlib
import json
import time

import numpy as np
import torch
from report import in_process, peak_mb, row, show_and_save

from petct_lib.experiments.profiles import notebook_parameters
from petct_lib.imaging.intensity import Intensity
from petct_lib.inference.translator import Refiner, Translator
from petct_lib.models.cyclegan import CycleGAN, CycleGANSettings
from petct_lib.models.networks import count_parameters
from petct_lib.models.regression import Regression, RegressionSettings
from petct_lib.models.residual_flow import FlowSettings, ResidualFlow
from petct_lib.training.train_refiner import GRID

DDIM_STEPS = 50


def settings_of(kind: type, notebook: str, **values: object) -> object:
    """The quick profile's settings of one dataclass."""
    p = notebook_parameters(notebook, "quick")
    return kind(**{k: p[k] for k in kind.__dataclass_fields__ if k in p and k not in values}, **values)


def ours(volume: np.ndarray) -> None:
    """`Translator` on the volume, PET→CT, mode `sample`, with networks that nobody trained."""
    p = notebook_parameters("03_diffusion_refinement", "quick")
    values = {"multipliers": tuple(p["multipliers"]), "patch": max(1, volume.shape[-1] // GRID)}
    regression = Regression(
        settings_of(RegressionSettings, "03_diffusion_refinement", lambda_adversarial=0.0, **values)
    )
    refiner = Refiner(ResidualFlow(settings_of(FlowSettings, "03_diffusion_refinement", **values), regression))
    translator = Translator.__new__(Translator)  # without a run's folder
    translator.cyclegan = CycleGAN(settings_of(CycleGANSettings, "02_cyclegan_training"))
    translator.refiners, translator.window = {"pet2ct": refiner}, Intensity()
    for stage in (translator.cyclegan, regression, refiner.flow):
        for net in stage.ema.values():
            net.to(memory_format=torch.channels_last)  # as `translate` loads them
    print(f"flow: {count_parameters(refiner.flow.nets['velocity']):,} parameters")
    translator(volume, "pet2ct", mode="sample", seed=0)


@torch.no_grad()
def ddim(volume: np.ndarray) -> None:
    """A conditional diffusion model, 50 steps."""
    from monai.networks.nets import DiffusionModelUNet
    from monai.networks.schedulers import DDIMScheduler

    p = notebook_parameters("03_diffusion_refinement", "quick")
    net = DiffusionModelUNet(
        spatial_dims=2, in_channels=3, out_channels=1, num_res_blocks=1,
        channels=tuple(p["width"] * m for m in p["multipliers"]),
        attention_levels=(False,) * 4, norm_num_groups=8, num_head_channels=8,
    ).eval()  # fmt: skip
    print(f"DiffusionModelUNet: {count_parameters(net):,} parameters")
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(DDIM_STEPS)
    x = torch.from_numpy(volume)[:, None]
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        predicted = net(torch.cat([z, x, x], 1), torch.full((len(x),), int(t)))
        z, _ = scheduler.step(predicted, t, z)


def main() -> None:
    """Measures each in a process of its own, prints the table, and adds it to results.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=200, help="of the volume (%(default)s)")
    parser.add_argument("--peer-slices", type=int, default=4, help="of it, for the peer (%(default)s)")
    parser.add_argument("--size", type=int, default=256, help="pixels along x and y (%(default)s)")
    parser.add_argument("--measure", choices=("ours", "ddim"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        n = args.slices if args.measure == "ours" else args.peer_slices
        volume = np.random.default_rng(0).uniform(0, 5, (n, args.size, args.size)).astype(np.float32)
        for name in ("monai.networks.nets", "monai.networks.schedulers"):  # imports are not timed
            importlib.import_module(name)
        start = time.perf_counter()
        {"ours": ours, "ddim": ddim}[args.measure](volume)
        print(json.dumps({"rate": n / (time.perf_counter() - start), "peak_mb": peak_mb()}))
        return
    sizes = ["--slices", str(args.slices), "--peer-slices", str(args.peer_slices), "--size", str(args.size)]
    mine, peer = (in_process(__file__, "--measure", what, *sizes) for what in ("ours", "ddim"))
    name = f"MONAI DiffusionModelUNet, DDIM {DDIM_STEPS}"
    show_and_save([
        row("translate_slices_per_s", mine["rate"], peer["rate"], name, "1/s", more_is_better=True),
        row("translate_peak_mb", mine["peak_mb"], peer["peak_mb"], f"{name}, {args.peer_slices} slices", "MB"),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
