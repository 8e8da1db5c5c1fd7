"""Linear attenuation at 511 keV from CT numbers: what PET is corrected with, and what the phantom's photons pass."""

import numpy as np

# Carney 2006 (Med. Phys. 33:976, 10.1118/1.2174132), by tube voltage: slope (per cm and HU) and intercept (per cm) of
# the line of bone. Below it all share the line from air to water.
CARNEY = {
    80: (3.64e-5, 6.26e-2), 100: (4.43e-5, 5.44e-2), 110: (4.92e-5, 4.88e-2),
    120: (5.10e-5, 4.71e-2), 130: (5.51e-5, 4.24e-2), 140: (5.64e-5, 4.08e-2),
}  # fmt: skip
WATER_SLOPE = 9.6e-5  # per cm and HU: water has 0.096 per cm
PER = {"cm": 1.0, "mm": 0.1}


def mu_map(ct_hu: np.ndarray, kvp: float, *, per: str = "cm") -> np.ndarray:
    """Linear attenuation coefficient at 511 keV by Carney's bilinear scaling; of any shape, never below 0.

    kvp: the CT's tube voltage, one of CARNEY, for bone looks denser at lower ones. per: "cm" or "mm". float32 for
    float32, else float64. ValueError for another voltage or unit. Source: Carney et al. 2006, Med Phys 33:976.

    >>> mu_map(np.array([-1000.0, 0.0, 1000.0]), kvp=120).round(4).tolist()  # air, water, bone
    [0.0, 0.096, 0.1491]
    """
    if kvp not in CARNEY:
        raise ValueError(f"kvp {kvp}: Carney 2006 has {', '.join(map(str, CARNEY))}")
    if per not in PER:
        raise ValueError(f"per {per!r}: must be one of {', '.join(PER)}")
    kind = np.float32 if np.asarray(ct_hu).dtype == np.float32 else np.float64
    slope, intercept, water = (kind(value * PER[per]) for value in (*CARNEY[kvp], WATER_SLOPE))
    above_air = np.asarray(ct_hu, kind) + kind(1000)
    return np.maximum(np.minimum(slope * above_air + intercept, water * above_air), kind(0))
