"""What the ablation trains: variants of a run, each a name, the settings that it changes, and what of it is shown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from petct_lib import InputError

OURS = ("sample", "mean")
TRAINING, SCORING = "03_diffusion_refinement", "04_evaluation"
STEPS = (1, 2, 4, 8)
SAMPLES = (1, 2, 4)  # and SHOWN_SAMPLES
SHOWN_SAMPLES, SHOWN_STEPS = 8, 4  # of every variant that does not change them
PAIRED = (1, 2, 4, 8)  # paired patients of the curve, before all of them


@dataclass(frozen=True)
class Variant:
    """A fork of the first run: overrides ("NOTEBOOK.NAME=VALUE"), and the methods whose scores it is made for.

    trained: whether stage 2 is trained anew; else the run's own is scored in another way. every_seed: whether it is a
    fork of the run of each seed, and not of the first alone.
    """

    name: str
    overrides: tuple[str, ...]
    methods: tuple[str, ...] = OURS
    trained: bool = True
    every_seed: bool = False


def all_variants(longer_steps: int) -> list[Variant]:
    """All variants. longer_steps: of a regression that takes the time of regression and flow together."""
    alone = f"{TRAINING}.pix2pix_steps=0"  # a flow of one step, where the regression alone is asked for, is not shown
    cycle = (alone, f"{TRAINING}.pairs=cycle")
    return [
        *(_scoring(f"steps{n}", steps=n, every_seed=n == STEPS[-1]) for n in STEPS if n != SHOWN_STEPS),
        *(_scoring(f"samples{n}", samples=n) for n in SAMPLES),
        _scoring("without_coarse", more=(f"{SCORING}.without_coarse=true",)),
        _scoring("noise_by_slice", more=(f"{SCORING}.shared_noise=false",)),
        _training(
            "longer", ("regression",), alone, f"{TRAINING}.regression_steps={longer_steps}", f"{TRAINING}.flow_steps=1",
            every_seed=True,
        ),
        _training(
            "laplace", ("regression",), alone, f"{TRAINING}.variant={{laplace: true}}", f"{TRAINING}.flow_steps=1",
            every_seed=True,
        ),
        *(_training(f"pairs{k}", ("regression", *OURS), alone, f"{TRAINING}.paired_patients={k}") for k in PAIRED),
        _training("cycle", ("regression", *OURS), *cycle, every_seed=True),
        _training("cycle_with_source", OURS, *cycle, f"{TRAINING}.variant={{sees_source: true}}"),
        _training("cycle_without_noise", OURS, *cycle, f"{TRAINING}.variant={{cycle_noise: 0.0}}"),
        _training("cycle_more_noise", OURS, *cycle, f"{TRAINING}.variant={{cycle_noise: 0.3}}"),
        _training("both2", OURS, alone, f"{TRAINING}.pairs=both", f"{TRAINING}.paired_patients=2"),
        _training("neighbours3", ("regression", *OURS), alone, f"{TRAINING}.variant={{neighbours: 3}}"),
    ]  # fmt: skip


def _training(name: str, methods: tuple[str, ...], *overrides: str, every_seed: bool = False) -> Variant:
    samples = SHOWN_SAMPLES if set(OURS) & set(methods) else 2  # two: the fewest that have a spread
    shown = (f"{SCORING}.samples={samples}", f"{SCORING}.steps={SHOWN_STEPS}")
    return Variant(name, (*overrides, *shown), methods, every_seed=every_seed)


def _scoring(
    name: str, *, samples: int = SHOWN_SAMPLES, steps: int = SHOWN_STEPS, more: tuple[str, ...] = (),
    every_seed: bool = False,
) -> Variant:  # fmt: skip
    overrides = (f"{SCORING}.samples={samples}", f"{SCORING}.steps={steps}", *more)
    return Variant(name, overrides, trained=False, every_seed=every_seed)


def choose_variants(among: Sequence[Variant], only: str) -> list[Variant]:
    """The variants whose whole name matches the regular expression; all for "".

    InputError where it is no expression, or no variant has such a name.
    """
    try:
        matching = [v for v in among if not only or re.fullmatch(only, v.name)]
    except re.error as error:
        raise InputError(f"--only {only}: is not a regular expression ({error})") from None
    if not matching:
        raise InputError(f"--only {only}: no variant has such a name; there are {', '.join(v.name for v in among)}")
    return matching
