"""Settings of stage 2 by what they reach in equal time: crops, batch, width, rate, averaging, precision.

    .venv/bin/python benchmarks/refiner.py --run runs/quick --seconds 60

Each setting trains a regression, and a flow on the run's own regression, for as many steps as fit into the seconds,
with the schedule of that many steps. Scored on the `validation_patients`, whom stage 2 has not learned from.
The peer of each row is the profile's own setting in the same run.

FLOWS are settings of the flow alone, and cures of samples that differ too little: the flow learns the residuals of a
regression that has seen its training patients, and they are smaller than those of new ones.
    Heun: the profile's flow, sampled by Heun's method
    8 steps: the profile's flow, in twice the steps
    white noise: the residual is not whitened
    noise on m: white, of half the residual's standard deviation, while the flow trains
    out of fold: of two regressions, each for the other's patients, while the flow trains
    validation's s: the profile's flow, its residual as large as on the validation patients
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from report import row, show_and_save
from torch import Tensor

from petct_lib.data.prepare import Prepared
from petct_lib.data.splits import read_splits, refiner_patients
from petct_lib.evaluation.cases import Case
from petct_lib.evaluation.scoring import two_sample_accuracies
from petct_lib.experiments.profiles import notebook_parameters
from petct_lib.imaging.directions import SOURCE, TARGET
from petct_lib.imaging.slices import evenly_spaced
from petct_lib.imaging.spectrum import filter_bands, spectrum
from petct_lib.inference.translator import Refiner, Translator, decode_images, encode_slices, map_batches
from petct_lib.metrics import distribution, structure, voxelwise
from petct_lib.models.regression import Regression
from petct_lib.models.residual_flow import ResidualFlow
from petct_lib.models.samplers import DEFAULT_SAMPLER
from petct_lib.training.loop import fit
from petct_lib.training.train_refiner import (
    Pairs,
    Stage2Plan,
    _batches,
    load_pairs,
    load_real_pairs,
    make_plans,
    measure_residual_spectrum,
    validation_patients,
)
from petct_lib.training.update import choose_precision

TIMED = 12  # steps that the time of one is measured on
SLICES, SAMPLES, STEPS = 12, 4, 4
SETTINGS = {  # by name: what differs from the profile
    "profile": {}, "whole slices": {"crop": None, "batch_size": 4}, "crop 48": {"crop": 48, "batch_size": 14},
    "crop 96": {"crop": 96, "batch_size": 4}, "batch 16": {"batch_size": 16}, "batch 4": {"batch_size": 4},
    "width 24": {"width": 24}, "half the lr": {"lr": 0.5}, "twice the lr": {"lr": 2.0},
    "ema 0.999": {"ema_decay": 0.999}, "float32": {"mixed_precision": "no"},
}  # fmt: skip
FLOWS = ("Heun", "8 steps", "white noise", "noise on m", "out of fold", "validation's s")
DRAWN = {"Heun": {"sampler": "heun"}, "8 steps": {"steps": 2 * STEPS}}  # the profile's own flow
TAKEN = (  # parameters of notebook 03
    "seed", "batch_size", "regression_steps", "pix2pix_steps", "flow_steps", "crop", "width", "lr", "ema_decay",
    "shift", "mixed_precision",
)  # fmt: skip


def plans_of(profile: str, size: int, changes: dict) -> dict[str, Stage2Plan]:
    """The plans of notebook 03 with some settings changed; a learning rate is a factor on the profile's."""
    p = notebook_parameters("03_diffusion_refinement", profile)
    values = {name: p[name] for name in TAKEN} | {"multipliers": tuple(p["multipliers"]), "checkpoint_every": 10**6}
    values |= {**changes, "lr": p["lr"] * changes.get("lr", 1.0), "channels_last": True}
    return make_plans(size, **{**values, "mixed_precision": choose_precision(values["mixed_precision"])})


def trained(make: Callable, plan: Stage2Plan, pairs: list, seconds: float, folder: Path) -> tuple[object, int]:
    """A stage trained for about so many seconds, and its steps."""
    batches = _batches(pairs, plan.batch_size, plan.shift, plan.crop)
    values = {"fingerprint": "", "seed": 0, "resume": False}
    start = time.perf_counter()
    fit(make(), batches, replace(plan.fit, steps=TIMED), checkpoint=folder / "timed.pt", **values)
    steps, stage = round(seconds / ((time.perf_counter() - start) / TIMED)), make()
    fit(stage, batches, replace(plan.fit, steps=max(steps, 1)), checkpoint=folder / "stage.pt", **values)
    return stage, steps


@dataclass
class Instead:
    """What a flow takes for its regression while it trains."""

    predict: Callable[[Tensor, Tensor], Tensor]


def noisy(own: Regression, std: float) -> Instead:
    """The regression with white noise on its image."""
    generator = torch.Generator().manual_seed(0)

    def predict(x: Tensor, c: Tensor) -> Tensor:
        m = own.predict(x, c)
        return m + std * torch.randn(m.shape, generator=generator)

    return Instead(predict)


def out_of_fold(run: Path, direction: str, train: Callable, plan: Stage2Plan) -> tuple[Instead, list]:
    """Two regressions, each for the pairs of the other's patients, as halves of a batch; and those pairs."""
    patients = refiner_patients(read_splits(run), direction)
    folds = []
    for fold in (patients[::2], patients[1::2]):
        pairs = pairs_of_patients(run, direction, fold)
        folds.append((pairs, train(partial(Regression, plan.stage), plan, pairs=[pairs])[0]))
    (first, of_first), (second, of_second) = folds

    def predict(x: Tensor, c: Tensor) -> Tensor:
        half = len(x) // 2
        return torch.cat([of_second.predict(x[:half], c[:half]), of_first.predict(x[half:], c[half:])])

    return Instead(predict), [first, second]


def pairs_of_patients(run: Path, direction: str, patients: list[str]) -> Pairs:
    """Their real pairs, with the coarse images in memory: the other fold's go into the same file."""
    pairs = load_real_pairs(run, direction, patients)
    return replace(pairs, coarse=np.array(pairs.coarse))


class Validation:
    """A few slices of each validation patient of a direction, and the scores of images of them."""

    def __init__(self, run: Path, direction: str) -> None:
        prepared, splits = Prepared(run / "prepared"), read_splits(run)
        self.direction, self.kind = direction, TARGET[direction]
        self.translator, self.cases = Translator(run), []
        for patient in validation_patients(splits, direction):
            kinds = (SOURCE[direction], self.kind, "body")
            source, real, body = (prepared.patient_stack(patient, kind) for kind in kinds)
            chosen = evenly_spaced(len(source), SLICES, ends=True)
            self.cases.append((*self.translator.start(source[chosen], direction), real[chosen], body[chosen]))
        self.low = min(float(real.min()) for _, _, real, _ in self.cases)

    def decode(self, image: Tensor) -> np.ndarray:
        """In HU or SUV."""
        return decode_images(image.clamp(-1, 1), self.kind, self.translator.window)

    def scored(self, images: list[np.ndarray]) -> tuple[float, float]:
        """Body MAE and spectrum distance, means over the patients."""
        result = []
        for image, (_, _, real, body) in zip(images, self.cases, strict=True):
            both = (structure.mask_slices(item, body, self.low) for item in (real, image))
            result.append((voxelwise.mae(real, image, body), structure.spectrum_distance(*both)))
        return tuple(np.mean(result, axis=0))

    def regression(self, stage: Regression) -> tuple[float, float]:
        """Of a regression's images."""
        return self.scored([self.decode(map_batches(stage.predict, x, c)) for x, c, _, _ in self.cases])

    def spectrum(self, regression: Regression) -> tuple[float, ...]:
        """Of the residuals of these patients."""
        errors = []
        for x, c, real, _ in self.cases:
            errors.append(
                map_batches(regression.predict, x, c) - encode_slices(real, self.kind, self.translator.window)
            )
        return spectrum(torch.cat(errors))

    def two_sample(self, images: list[np.ndarray]) -> float:
        """Two-sample accuracy, as `evaluate` has it."""
        cases = [
            Case(str(k), None, real, {"body": body}, {}, {"sample": image})
            for k, (image, (_, _, real, body)) in enumerate(zip(images, self.cases, strict=True))
        ]
        return two_sample_accuracies(cases, ["sample"], self.direction, self.translator.window, seed=0)["sample"]

    def flow(self, stage: ResidualFlow, sampler: str = DEFAULT_SAMPLER, steps: int = STEPS) -> dict[str, float]:
        """Loss; MAE, spectrum and two-sample accuracy of a sample; MAE of the mean; spread/skill and CRPS."""
        values = {"samples": SAMPLES, "steps": steps, "seed": 0, "sampler": sampler}
        stacks, losses, skills, crps = [], [], [], []
        for x, c, real, body in self.cases:
            stacks.append(self.decode(torch.stack(list(Refiner(stage).samples(x, c, **values)))))
            y = encode_slices(real, self.kind, self.translator.window)
            losses.append(stage.loss_on(x, c, y, torch.Generator().manual_seed(0)))
            for half in distribution.independent_halves(stacks[-1]):
                skills.append(distribution.spread_skill(half[:, body], real[body]))
                crps.append(distribution.crps(half[:, body], real[body]).mean())
        one = [stack[0] for stack in stacks]
        (sample, distance), (mean, _) = (self.scored(item) for item in (one, [stack.mean(0) for stack in stacks]))
        return {
            "loss": np.mean(losses), "sample": sample, "spec.": distance, "two-sample": self.two_sample(one),
            "mean": mean, "sp/sk": np.mean(skills), "CRPS": np.mean(crps),
        }  # fmt: skip


def main() -> None:
    """Trains every setting, prints the table, and adds it to results.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--profile", default="quick", help="whose settings (%(default)s)")
    parser.add_argument("--direction", default="pet2ct", choices=list(SOURCE))
    parser.add_argument("--seconds", type=float, default=60, help="of each training (%(default)s)")
    everything = [*SETTINGS, *FLOWS]
    parser.add_argument("--only", nargs="*", default=everything, help="settings and flows, beside the profile's own")
    args = parser.parse_args()
    validation, pairs = Validation(args.run, args.direction), load_pairs(args.run, args.direction, "real", seed=0)
    own, size = validation.translator.refiners[args.direction].regression, validation.translator.grid["size"]
    result = {}
    bands, flows = measure_residual_spectrum(own, _batches(pairs, 8), 0), {}
    s = filter_bands(torch.randn(64, 1, 64, 64, generator=torch.Generator().manual_seed(0)), bands).std().item()
    for name in dict.fromkeys(("profile", *args.only)):
        plan = plans_of(args.profile, size, SETTINGS.get(name, {}))
        stage = replace(plan["flow"].stage, residual_spectrum=bands)
        with tempfile.TemporaryDirectory() as folder:
            train = partial(trained, seconds=args.seconds, folder=Path(folder))
            if name in SETTINGS:
                of_regression = plan["regression"]
                regression, steps = train(partial(Regression, of_regression.stage), of_regression, pairs=pairs)
                mae, spectrum = validation.regression(regression)
                result[name] = {"steps": steps, "MAE": mae, "spec": spectrum}
                flow, flow_steps = train(partial(ResidualFlow, stage, own), plan["flow"], pairs=pairs)
            elif name in DRAWN:
                flow, flow_steps = flows["profile"]
            elif name == "validation's s":
                flow, flow_steps = flows["profile"]
                flow.settings = replace(stage, residual_spectrum=validation.spectrum(own))
            elif name == "white noise":
                stage = replace(stage, residual_spectrum=(s,))
                flow, flow_steps = train(partial(ResidualFlow, stage, own), plan["flow"], pairs=pairs)
            else:
                stand_in, mine = noisy(own, s / 2), pairs
                if name == "out of fold":
                    stand_in, mine = out_of_fold(args.run, args.direction, train, plan["regression"])
                stage = replace(stage, residual_spectrum=measure_residual_spectrum(stand_in, _batches(mine, 8), 0))
                flow, flow_steps = train(partial(ResidualFlow, stage, stand_in), plan["flow"], pairs=mine)
        flow.regression, flows[name] = own, (flow, flow_steps)
        result[name] = result.get(name, {}) | {"steps of flow": flow_steps}
        result[name] |= validation.flow(flow, **DRAWN.get(name, {}))
        print(name, {key: round(float(value), 3) for key, value in result[name].items()}, flush=True)
    profile, unit = result.pop("profile"), {"ct": "HU", "pet": "SUV"}[TARGET[args.direction]]
    show_and_save([
        row(f"stage2_{name.replace(' ', '_')}_{key}", profile[key], item[key], f"{name}, {args.seconds:g} s",
            "1" if key == "two-sample" else unit)
        for name, item in result.items() for key in ("MAE", "mean", "two-sample") if key in item
    ])  # fmt: skip


if __name__ == "__main__":
    main()
