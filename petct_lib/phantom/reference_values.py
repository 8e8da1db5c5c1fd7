"""The phantom's organs as measured in its images, beside what others measured in people."""

import numpy as np
from scipy import ndimage

from petct_lib.imaging.volume import Volume, resample
from petct_lib.phantom.tissues import LABEL, LUNG

# HU (120 kV, no contrast medium) and mean SUV by body weight, FDG after 60 min: the range that the mean over several
# patients is expected in, and where it is from. Where a source gives SUVmax only, the mean is lower by the noise.
BUZUG = "Buzug, Computed Tomography, Springer 2008, p. 475"
METTLER = "Mettler and Guiberteau, Essentials of Nuclear Medicine Imaging, 5th ed. 2006, p. 375"
MILLAR = "10.1136/thx.44.6.485: 0.07 g/ml at full inspiration, 0.27 at full expiration"
LIU = "10.5812/iranjradiol.84881: SUV 1.9 ± 0.4; higher in heavier patients"
PUBLISHED: dict[str, tuple[tuple[float, float], tuple[float, float], str]] = {
    "lung": ((-870, -700), (0.3, 0.7), f"quiet breathing, between {MILLAR}; {METTLER}: SUVmax 0.7"),
    "liver": ((45, 65), (1.7, 2.5), f"{BUZUG}; {LIU}; {METTLER}: SUVmax 2.5"),
    "spleen": ((35, 55), (1.4, 2.1), f"{BUZUG}; {METTLER}: SUVmax 1.9"),
    "blood": ((35, 65), (1.3, 2.2), f"{BUZUG}: 45 to 65, less in anaemia; SUV by {METTLER}: SUVmax 2.3"),
    "muscle": ((40, 65), (0.5, 0.9), "HU as liver and spleen; about half of the blood's SUV: textbook, not looked up"),
    "fat": ((-130, -85), (0.15, 0.5), "HU from -140 to -30 in PET/CT (PMC4043057); SUV: textbook, not looked up"),
}


def organ_means(
    labels: Volume, ct: Volume, pet: Volume, *, erode_mm: float = 6.0
) -> dict[str, tuple[float, float, float]]:
    """Mean HU, mean SUV and ml measured by organ, inside of its border, where partial volume does not reach.

    labels: uint8 on the CT's grid, values as in `tissues.LABEL`. Organs that have nothing left are not in the result;
    lung is all lobes together.
    """
    groups = {**{name: [value] for name, value in LABEL.items()}, "lung": [LABEL[name] for name in LUNG]}
    pet_there = resample(pet, labels.grid, 0.0).array
    radius = [max(1, round(erode_mm / step)) for step in labels.spacing_mm]
    means = {}
    for name, values in groups.items():
        mask = np.isin(labels.array, values)
        if not mask.any():
            continue
        box = tuple(slice(s.min(), s.max() + 1) for s in np.nonzero(mask))
        core = ndimage.minimum_filter(mask[box], [2 * r + 1 for r in radius[::-1]], mode="constant")
        if core.any():
            ml = float(mask.sum() * np.prod(labels.spacing_mm) / 1000)
            means[name] = float(ct.array[box][core].mean()), float(pet_there[box][core].mean()), ml
    return means


def format_organs(patients: list[dict[str, tuple[float, float, float]]]) -> str:
    """A table of `organ_means` of several patients: mean and range of HU and SUV, and the published ranges."""
    lines = [f"{'organ':<10}{'n':>3}  {'HU':<22}{'published':<14}{'SUV':<22}published"]
    for name, (hu, suv, _) in PUBLISHED.items():
        values = np.array([row[name] for row in patients if name in row])
        if len(values):
            cells = [
                f"{v.mean():.{d}f} [{v.min():.{d}f}, {v.max():.{d}f}]"
                for v, d in ((values[:, 0], 0), (values[:, 1], 2))
            ]
            lines.append(
                f"{name:<10}{len(values):>3}  {cells[0]:<22}{f'{hu[0]:g} to {hu[1]:g}':<14}"
                f"{cells[1]:<22}{suv[0]:g} to {suv[1]:g}"
            )
    return "\n".join(lines)
