"""What the ablation trains: every variant and control of a run's refiner, by name, and how to translate with each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from petct_lib import InputError
from petct_lib.bridge import SAMPLERS
from petct_lib.prior import PriorSettings
from petct_lib.refiner import RefinerSettings

PAIRED = (1, 2, 4, 8)  # paired patients of the curve, before all of them, who are those of the run's own refiner
STEPS = (2, 4, 8)
SAMPLES = (2, 4)  # averaged; without noise all are the same one
SIGMAS = (0.0, 0.1)
OTHER_SEED = 100  # of a second `pix2pix`, beside the run's own
MEANS = {  # of two networks' images: is it the coarse image that helps on a line between two, or that they are two?
    "pix2pix_mean": ("pix2pix", "pix2pix_other"), "pix2pix_refiner_mean": ("pix2pix", "refiner_gan"),
}  # fmt: skip
T0 = (0.02, 0.05, 0.1, 0.2)  # how much of the coarse image the unpaired prior may drown, as shares of its schedule


@dataclass(frozen=True)
class Variant:
    """One network to train, and how to translate with it: name in `scores.csv`, (samples, t0 of a prior)."""

    name: str
    settings: RefinerSettings | PriorSettings
    patients: int | None = None  # paired ones; None: all
    in_fold: bool = False  # learns from patients whose source the CycleGAN was fitted on: `train_refiner.held_out`
    uses: tuple[tuple[str, int, float | None], ...] = ()  # (method, samples, t0); none: its name, one sample
    start: str | None = None  # the regression, one of the run's or another variant, that it goes on from
    seed: int = 0  # added to the run's: another training of the same


def variants(base: RefinerSettings, patients: int, in_fold: int) -> list[Variant]:
    """Each differs in what its name says from `refiner_gan`, the run's refiner at α = 1 with one sample.

    All are trained like it: a regression first, and from its weights on with the refiner's losses. `…_longer` goes on
    as a regression; `pix2pix_other` is `pix2pix` from another seed; `unpaired` is the prior, trained for as long.
    patients: paired ones that the run's refiner learned from; the curve's are fewer. in_fold: how many there are whose
    coarse images are in-fold; `refined_in_fold_k4` learns from four of them, and is to be compared with `refined_k4`.
    """
    regression, pix2pix = base.regression(), base.direct()
    unet_l1 = replace(pix2pix.regression(), error_width=0)
    prior = PriorSettings(base.width, base.multipliers, lr=base.lr, ema_decay=base.ema_decay)
    no_coarse = replace(base, sees_coarse=False, sigma=1.0, steps=4)
    no_source = []  # where the run's refiner does not see the coarse image, nothing would be left
    if base.sees_coarse:
        no_source = _begun("refined_no_source", replace(base, sees_source=False), "refiner_l1_no_source")
    return [
        Variant("unet_l1_other", unet_l1, seed=OTHER_SEED),
        Variant("pix2pix_other", pix2pix, start="unet_l1_other", seed=OTHER_SEED),
        Variant("unet_l1_longer", unet_l1, start="unet_l1"),
        Variant("refiner_l1_longer", regression, start="refiner_l1"),
        Variant("refined_no_spectrum", replace(base, lambda_spectrum=0.0), start="refiner_l1"),
        Variant("refined_no_discriminator", replace(base, lambda_adversarial=0.0), start="refiner_l1"),
        *no_source,
        *_begun("refined_no_skip", replace(base, residual=False), "refiner_l1_no_skip"),
        Variant("diffusion_l1_no_coarse", replace(no_coarse, lambda_adversarial=0.0, lambda_spectrum=0.0)),
        Variant("diffusion_no_coarse", no_coarse, start="diffusion_l1_no_coarse"),
        Variant("unpaired", prior, uses=tuple((f"unpaired_t{t0:g}", 1, t0) for t0 in T0)),
        *_walks(base),
        *_few_pairs(base, fewer(patients)),
        *_in_fold(base, [k for k in fewer(patients) if k <= in_fold]),
        *_begun("refined_neighbours3", replace(base, neighbours=3), "refiner_l1_neighbours3"),
        Variant("unet_l1_neighbours3", replace(unet_l1, neighbours=3)),
    ]


def _begun(name: str, settings: RefinerSettings, start: str, **given: object) -> list[Variant]:
    """A refiner that differs in its network or its patients, and so needs a regression of its own to go on from."""
    return [Variant(start, settings.regression(), **given), Variant(name, settings, start=start, **given)]


def _walks(base: RefinerSettings) -> list[Variant]:
    """Other noise, more steps with their averages of samples, other samplers."""
    of = partial(Variant, start="refiner_l1")
    noises = [of(f"refined_sigma{s:g}", replace(base, sigma=s)) for s in SIGMAS if s != base.sigma]
    steps = []
    for n in STEPS:
        name, samples = f"refined_steps{n}", [m for m in SAMPLES if n * m <= 8 and base.sigma]
        uses = ((name, 1, None), *((f"{name}_samples{m}", m, None) for m in samples))
        steps.append(of(name, replace(base, steps=n), uses=uses))
    others = [name for name in SAMPLERS if name != base.sampler and (base.sigma or name == "euler")]
    samplers = [of(f"refined_steps4_{name}", replace(base, steps=4, sampler=name)) for name in others]
    return [*noises, *steps, *samplers]


def _few_pairs(base: RefinerSettings, patients: Sequence[int]) -> list[Variant]:
    found = []
    for k in patients:
        found += _begun(f"refined_k{k}", base, f"refiner_l1_k{k}", patients=k)
        found += _begun(f"pix2pix_k{k}", base.direct(), f"unet_l1_k{k}", patients=k)
    return found


def _in_fold(base: RefinerSettings, patients: Sequence[int]) -> list[Variant]:
    """With the most of these numbers of patients."""
    if not patients:
        return []
    k = patients[-1]
    return _begun(f"refined_in_fold_k{k}", base, f"refiner_l1_in_fold_k{k}", patients=k, in_fold=True)


def chosen(of: Sequence[Variant], only: str) -> list[Variant]:
    """The variants whose whole name matches the regular expression, and those they go on from; all for "".

    InputError where it is none.
    """
    try:
        asked = [v for v in of if not only or re.fullmatch(only, v.name)]
    except re.error as error:
        raise InputError(f"--only {only}: is not a regular expression ({error})") from None
    starts = {v.start for v in asked}
    return [v for v in of if v in asked or v.name in starts]


def check_names(only: str) -> None:
    """InputError where the regular expression is none, or no variant of any run has a name that it matches."""
    runs = [(RefinerSettings(sigma=sigma), in_fold) for sigma in SIGMAS for in_fold in PAIRED]
    of = [v for base, in_fold in runs for v in variants(base, PAIRED[-1] + 1, in_fold)]
    if not chosen(of, only):
        names = ", ".join(dict.fromkeys(v.name for v in of))
        raise InputError(f"--only {only}: no variant has such a name; there are {names}")


def fewer(patients: int) -> list[int]:
    """Numbers of paired patients of the curve, below those that there are."""
    return [k for k in PAIRED if k < patients]
