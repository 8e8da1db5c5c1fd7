"""A run folder with untrained networks of random weights, made in a second: all that translating and scoring needs."""

from pathlib import Path

import torch

from petct_lib.common.files import write_json
from petct_lib.data.prepare import Prepared
from petct_lib.imaging.directions import DIRECTIONS
from petct_lib.models.checkpoints import load_checkpoint, save_checkpoint
from petct_lib.models.cyclegan import CycleGAN, CycleGANSettings
from petct_lib.models.regression import Regression, RegressionSettings
from petct_lib.models.residual_flow import FlowSettings, ResidualFlow

SIZES = {"width": 8, "multipliers": (1, 2), "patch": 1}
UNPAIRED = "pet2ct"  # the direction that has networks from cycle pairs, too
STEPS = 3  # that the checkpoints say were trained


def small_run(prepared: Prepared, run: Path) -> Path:
    """The run folder `run` over prepared slices of five patients, two of them test patients."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "prepared").symlink_to(prepared.folder, target_is_directory=True)
    a, b, c, *test = prepared.patients
    write_json({"train_pet": [a], "train_ct": [b], "refine": [c], "test": test}, run / "splits.json")
    write_json({}, run / "intensity.json")  # the window's defaults
    index = prepared.index
    patients = {"train_pet": 1, "train_ct": 1, "refine": 1, "test": len(test)}
    write_json(
        {"grid": index["grid"], "seed": 0, "data_source": "phantom", "data_fingerprint": prepared.fingerprint,
         "patients": patients}, run / "stages.json",
    )  # fmt: skip
    _save(CycleGAN(CycleGANSettings(width=4, blocks=1, patch_layers=2)), run, "cyclegan")
    for seed, direction in enumerate(DIRECTIONS):
        refiner(run, direction, seed)
        _save(Regression(RegressionSettings(**SIZES, coarse_dropout=1.0), seed + 2), run, f"pix2pix_{direction}")
    refiner(run, UNPAIRED, 4, "unpaired_", sees_source=False, coarse_dropout=0.0)
    return run


def refiner(run: Path, direction: str, seed: int, prefix: str = "", laplace: bool = False, **settings: object) -> None:
    """A regression and a flow of random weights into the run's checkpoints."""
    regression = Regression(RegressionSettings(**SIZES, laplace=laplace, **settings), seed)
    flow = ResidualFlow(FlowSettings(residual_spectrum=(0.3, 0.1), **SIZES, **settings), regression, seed)
    _save(regression, run, f"{prefix}regression_{direction}")
    _save(flow, run, f"{prefix}flow_{direction}")


def unfinished(path: Path, out: Path) -> Path:
    """A copy of a checkpoint whose training stopped a step before its end."""
    state = load_checkpoint(path)
    save_checkpoint({**state, "step": state["step"] - 1}, out)
    return out


def _save(stage: CycleGAN | Regression | ResidualFlow, run: Path, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for ema in stage.ema.values():
            for weights in ema.module.parameters():  # an untrained U-Net gives zeros
                weights += 0.05 * torch.randn(weights.shape, generator=generator)
    parts = {
        part: {key: one.state_dict() for key, one in getattr(stage, part).items()}
        for part in ("nets", "ema", "optimisers")
    }
    state = {"step": STEPS, "origin": {"steps": STEPS}, "history": [], **parts, **stage.extra_state()}
    save_checkpoint(state, run / "checkpoints" / f"{name}.pt")
