"""HU and SUV ↔ the network's range [−1, 1], exact inverses inside the window, for NumPy arrays and torch tensors."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from petct_lib.common.files import read_json
from petct_lib.common.run_folder import RunFolder

Array = np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Intensity:
    """What the networks see. Values outside a window are clipped; scores use their own, wider range.

    ValueError for an empty window.
    """

    ct_low_hu: float = -1024.0  # air; nothing real lies below
    ct_high_hu: float = 1500.0  # dense cortical bone; metal is clipped
    suv_cap: float = 15.0  # hotter lesions are clipped: the cap buys contrast for the rest
    suv_sqrt: bool = True  # square root spreads the low uptakes that most of the body has

    def __post_init__(self) -> None:
        if self.ct_high_hu <= self.ct_low_hu or self.suv_cap <= 0:
            raise ValueError(
                f"empty intensity window: CT {self.ct_low_hu}..{self.ct_high_hu} HU, SUV cap {self.suv_cap}"
            )


def read_window(run_dir: Path) -> Intensity:
    """The window of a run, which notebook 01 wrote."""
    return Intensity(**read_json(RunFolder(run_dir).intensity))


def encode_ct(ct_hu: Array, window: Intensity) -> Array:
    """HU → [−1, 1], linear between the window's ends; of any shape.

    >>> encode_ct(np.array([-1024.0, 238.0, 1500.0, 3000.0]), Intensity()).tolist()  # metal is clipped to bone
    [-1.0, 0.0, 1.0, 1.0]
    """
    span = window.ct_high_hu - window.ct_low_hu
    return (ct_hu.clip(window.ct_low_hu, window.ct_high_hu) - window.ct_low_hu) * (2 / span) - 1


def decode_ct(x: Array, window: Intensity) -> Array:
    """[−1, 1] → HU, of any shape; the inverse of `encode_ct`.

    >>> decode_ct(np.array([-1.0, 0.0, 1.0]), Intensity()).tolist()
    [-1024.0, 238.0, 1500.0]
    """
    span = window.ct_high_hu - window.ct_low_hu
    return (x.clip(-1, 1) + 1) * (span / 2) + window.ct_low_hu


def encode_pet(pet_suv: Array, window: Intensity) -> Array:
    """SUV → [−1, 1]: share of the cap, square root if the window says so; of any shape.

    A quarter of the cap lies in the middle of the range, as its root is one half:

    >>> encode_pet(np.array([0.0, 3.75, 15.0, 40.0]), Intensity(suv_cap=15.0)).tolist()
    [-1.0, 0.0, 1.0, 1.0]
    """
    share = pet_suv.clip(0, window.suv_cap) / window.suv_cap
    return (share**0.5 if window.suv_sqrt else share) * 2 - 1


def decode_pet(x: Array, window: Intensity) -> Array:
    """[−1, 1] → SUV, of any shape; the inverse of `encode_pet`.

    >>> decode_pet(np.array([-1.0, 0.0, 1.0]), Intensity(suv_cap=15.0)).tolist()
    [0.0, 3.75, 15.0]
    """
    share = (x.clip(-1, 1) + 1) / 2
    return (share**2 if window.suv_sqrt else share) * window.suv_cap


ENCODE = {"pet": encode_pet, "ct": encode_ct}
DECODE = {"pet": decode_pet, "ct": decode_ct}
