"""What a synthetic CT is for: does it outline the lungs, and does it attenuate, as the real one does?

Arrays are a patient's stack (n, H, W) in HU, slices from feet to head; masks are for scoring only.
"""

import numpy as np

from petct_lib.imaging.masks import find_lungs
from petct_lib.imaging.volume import Volume, axial_affine
from petct_lib.metrics import structure, voxelwise

# Carney 2006 (Med. Phys. 33:976, 10.1118/1.2174132): linear attenuation at 511 keV from CT numbers, by tube voltage:
# slope (per cm and HU) and intercept (per cm) above the break, and the break in HU. Below it all share one line.
CARNEY = {
    80: (3.64e-5, 6.26e-2, 50.0), 100: (4.43e-5, 5.44e-2, 52.0), 110: (4.92e-5, 4.88e-2, 43.0),
    120: (5.10e-5, 4.71e-2, 47.0), 130: (5.51e-5, 4.24e-2, 37.0), 140: (5.64e-5, 4.08e-2, 30.0),
}  # fmt: skip
WATER_SLOPE = 9.6e-5  # per cm and HU: water has 0.096 per cm


def mu_map(ct_hu: np.ndarray, kvp: float) -> np.ndarray:
    """Linear attenuation coefficient at 511 keV, per cm, by Carney's bilinear scaling; of any shape, never below 0.

    kvp: the CT's tube voltage, one of CARNEY, for bone looks denser at lower ones. ValueError for another. Source:
    Carney et al. 2006, Med Phys 33:976.

    >>> mu_map(np.array([-1000.0, 0.0, 1000.0]), kvp=120).round(4).tolist()  # air, water, bone
    [0.0, 0.096, 0.1491]
    """
    if kvp not in CARNEY:
        raise ValueError(f"kvp {kvp}: Carney 2006 has {', '.join(map(str, CARNEY))}")
    slope, intercept, break_hu = CARNEY[kvp]
    shifted = np.asarray(ct_hu, np.float64) + 1000
    return np.where(shifted - 1000 <= break_hu, WATER_SLOPE * shifted, slope * shifted + intercept).clip(0)


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
