"""Early signs that a GAN collapses or invents: lung painted where there is none, outputs alike, a discriminator won.

Masks are for scoring only. Arrays are stacks (n, H, W); masks are bool of that shape; CT is in HU.
"""

import numpy as np
from scipy import ndimage

from petct_lib.metrics import voxelwise

LUNG_LIKE_HU = (-1000.0, -500.0)  # chosen: inflated lung with its vessels, about −850; fat and partial lung are denser
MARGIN_MM = 10.0  # chosen: breath moves the border of the lungs so far between PET and CT
LUNGLESS_MM2 = 1000.0  # chosen: a patch 3.6 cm across, more than a bubble of gas, less than the base of a lung

RECENT_ROWS = 20  # chosen: what a sign averages over, for single batches scatter
WON_ACCURACY = 0.97  # chosen: the fakes fool it in hardly any patch, and a least-squares loss at its end teaches little
GIVEN_UP_ACCURACY = 0.5  # a coin's
ALIKE_DIVERSITY = 0.5  # chosen: half of the real images' spread; what a blur loses is far less
CYCLE_ROWS = 60  # chosen: before so many rows the cycle loss may well not have fallen
CYCLE_FALL = 0.9  # chosen: a training that works more than halves it
INVENTED_PERCENT = 2.0  # chosen: noise and gas leave it near 0


def find_exposed_tissue(real_hu: np.ndarray, body: np.ndarray, lung: np.ndarray, pixel_mm: float) -> np.ndarray:
    """Where lung could be invented: tissue at least MARGIN_MM, in plane, from lung, gas, and the outside of the body.

    The margin from gas (stomach, bronchi) and skin is needed as that from the lungs is: every edge of air that is
    blurred or moved a little passes through the lung's HU. Returns bool (n, H, W).
    """
    if not body.shape == lung.shape == real_hu.shape or body.dtype != bool or lung.dtype != bool:
        raise ValueError(f"CT {real_hu.shape}, body {body.shape} and lung {lung.shape} must be alike, the masks bool")
    tissue = body & ~lung & (real_hu >= LUNG_LIKE_HU[1])
    return np.stack([_depth_mm(one, pixel_mm) >= MARGIN_MM for one in tissue])


def _depth_mm(mask: np.ndarray, pixel_mm: float) -> np.ndarray:
    """Distance to the nearest pixel outside the mask, 0 outside; infinite where the mask (H, W) has no outside."""
    return np.full(mask.shape, np.inf) if mask.all() else ndimage.distance_transform_edt(mask, sampling=pixel_mm)


def find_invented_lung(
    fake_hu: np.ndarray, real_hu: np.ndarray, body: np.ndarray, lung: np.ndarray, pixel_mm: float
) -> np.ndarray:
    """Where the synthetic CT shows lung-like HU and the truth has none near, bool (n, H, W); see `find_exposed_tissue`.

    The margin is within the slice: where a breath moves the base of the lungs from slice to slice, the slices there
    may be marked without fault of the network. ValueError for unequal shapes, an empty body, and non-finite values.
    """
    voxelwise.check_stacks(real_hu, fake_hu, body)
    low, high = LUNG_LIKE_HU
    return (fake_hu >= low) & (fake_hu < high) & find_exposed_tissue(real_hu, body, lung, pixel_mm)


def invented_percent(
    fake_hu: np.ndarray, real_hu: np.ndarray, body: np.ndarray, lung: np.ndarray, pixel_mm: float
) -> float | None:
    """Share of the exposed tissue that was painted as lung, 0 to 100 %; None where there is no such tissue.

    None and no error: slices of lung and thin wall alone are no reason to end a training. ValueError for unequal
    shapes, an empty body, and values that are not finite.
    """
    marked = find_invented_lung(fake_hu, real_hu, body, lung, pixel_mm)
    exposed = find_exposed_tissue(real_hu, body, lung, pixel_mm).sum()
    return float(100 * marked.sum() / exposed) if exposed else None


def lungs_in_lungless_slices(
    fake_hu: np.ndarray, real_hu: np.ndarray, body: np.ndarray, lung: np.ndarray, pixel_mm: float
) -> float | None:
    """Of the slices with body and no true lung, the share, 0 to 100 %, with more invented lung than LUNGLESS_MM2.

    None where every slice has lung. ValueError for unequal shapes, an empty body, and values that are not finite.
    """
    lungless = body.any(axis=(1, 2)) & ~lung.any(axis=(1, 2))
    area_mm2 = find_invented_lung(fake_hu, real_hu, body, lung, pixel_mm).sum(axis=(1, 2)) * pixel_mm**2
    return float(100 * (area_mm2 > LUNGLESS_MM2)[lungless].mean()) if lungless.any() else None


def diversity(fakes: np.ndarray, reals: np.ndarray) -> float:
    """Spread of the synthetic images beside the real ones': the mean over pixels of the SD over images, divided.

    1: as diverse as the real ones; 0: all the same. It sees outputs that are alike, not what they show: noise counts
    as diverse. ValueError unless both hold two images or more, of one size, and the real ones differ.
    """
    if min(len(fakes), len(reals)) < 2 or fakes.shape[1:] != reals.shape[1:]:
        raise ValueError(f"fakes {fakes.shape} and reals {reals.shape} must hold two images or more, of one size")
    of_fakes, of_reals = (float(np.std(stack, axis=0, dtype=np.float64).mean()) for stack in (fakes, reals))
    if of_reals == 0:
        raise ValueError(f"reals {reals.shape} are all the same: no diversity to compare with")
    return of_fakes / of_reals


def find_warnings(history: list[dict]) -> list[str]:
    """What the rows logged by a training warn of, in plain words; [] for nothing seen, or too few rows to tell.

    Means are over the last RECENT_ROWS rows with the key; of the validation the last one counts.
    """
    return [*_discriminator_signs(history), *_cycle_signs(history), *_validation_signs(history)]


def _values(history: list[dict], key: str) -> list[float]:
    return [row[key] for row in history if key in row]


def _discriminator_signs(history: list[dict]) -> list[str]:
    texts = []
    for kind in ("ct", "pet"):
        values = _values(history, f"accuracy_{kind}")[-RECENT_ROWS:]
        if len(values) < RECENT_ROWS:
            continue
        mean = float(np.mean(values))
        accuracy = f"D_{kind} is right in {100 * mean:.0f} % of the patches (last {RECENT_ROWS} rows)"
        if mean > WON_ACCURACY:
            texts.append(f"{accuracy}: it has won, and the generators learn nothing more from it")
        elif mean <= GIVEN_UP_ACCURACY:
            texts.append(f"{accuracy}: it has given up, and what the generators learn from it is chance")
    return texts


def _cycle_signs(history: list[dict]) -> list[str]:
    values = _values(history, "cycle")
    if len(values) < CYCLE_ROWS:
        return []
    first, last = float(np.mean(values[:RECENT_ROWS])), float(np.mean(values[-RECENT_ROWS:]))
    if last < CYCLE_FALL * first:
        return []
    return [f"the cycle loss does not fall: {first:.3g} in the first {RECENT_ROWS} rows, {last:.3g} in the last"]


def _validation_signs(history: list[dict]) -> list[str]:
    texts = []
    for kind in ("ct", "pet"):
        values = _values(history, f"validation_diversity_{kind}")
        if values and values[-1] < ALIKE_DIVERSITY:
            texts.append(f"the synthetic {kind.upper()} are alike: {100 * values[-1]:.0f} % of the real ones' spread")
    invented = _values(history, "validation_invented_percent")
    if invented and invented[-1] > INVENTED_PERCENT:
        texts.append(f"lung is invented: painted on {invented[-1]:.1f} % of the tissue far from any")
    return texts
