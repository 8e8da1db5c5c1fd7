"""What a synthetic CT is for: does it outline the lungs, and does it attenuate, as the real one does?

Arrays are a patient's stack (n, H, W) in HU, slices from feet to head; masks are for scoring only.
"""

import numpy as np

from petct_lib.imaging.masks import find_lungs
from petct_lib.imaging.mu_map import mu_map
from petct_lib.imaging.volume import Volume, axial_affine
from petct_lib.metrics import structure, voxelwise


def attenuation_errors(real_hu: np.ndarray, synthetic_hu: np.ndarray, body: np.ndarray, kvp: float) -> dict[str, float]:
    """{"mu_error", "mu_bias"}: mean |Δμ| and mean Δμ over the body, in % of the real mean μ there.

    PET that is corrected with the synthetic CT is wrong by about as much as μ is along its lines, so that the bias
    counts more than the error. Stacks (n, H, W). ValueError for unequal shapes, values that are not finite, and an
    empty or non-bool mask, and where the body does not attenuate.
    """
    real, synthetic, body = voxelwise.check_stacks(real_hu, synthetic_hu, body)
    mu_real, mu_synthetic = mu_map(real[body], kvp), mu_map(synthetic[body], kvp)
    mean = float(mu_real.mean())
    if mean == 0:
        raise ValueError("the body's real attenuation is 0: nothing to be relative to")
    difference = mu_synthetic - mu_real
    return {"mu_error": float(100 * np.abs(difference).mean() / mean), "mu_bias": float(100 * difference.mean() / mean)}


def lung_dice(
    real_hu: np.ndarray, synthetic_hu: np.ndarray, body: np.ndarray, voxel_mm: tuple[float, float, float]
) -> float | None:
    """Dice overlap of the lungs that the same thresholds find in both images, 0 to 1; None where neither has any.

    Lungs as in `masks.find_regions`, within the real body. voxel_mm: (z, y, x). ValueError for unequal shapes, values
    that are not finite, and an empty or non-bool mask.
    """
    real, synthetic, body = voxelwise.check_stacks(real_hu, synthetic_hu, body)
    affine = axial_affine(voxel_mm[::-1], np.zeros(3))
    near = structure.bounding_box(body, 1)  # one voxel around it: there, an erosion knows where the body ends
    outline = Volume(body[near], affine, "1")
    a, b = (find_lungs(Volume(hu[near], affine, "HU"), outline).array for hu in (real, synthetic))
    total = int(a.sum()) + int(b.sum())
    return 2 * float((a & b).sum()) / total if total else None
