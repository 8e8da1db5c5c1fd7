"""What the phantom is made of: HU and FDG uptake of each tissue, between patients and within one.

The organs of `reference_values.PUBLISHED` lie in its ranges, which name their sources; the others are chosen between
these: HU as in Schneider 1996 (10.1088/0031-9155/41/1/009), SUV as the eye knows them beside liver and blood.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tissue:
    """HU and SUV (body weight, 60 min after injection) before imaging."""

    hu: float
    suv: float
    hu_texture: float = 0.0  # 1σ within a patient, smooth over millimetres
    suv_spread: float = 0.1  # 1σ between patients, as a fraction
    hu_spread: float = 0.0  # 1σ between patients


TISSUES: dict[str, Tissue] = {
    "air": Tissue(-1000, 0.0, 0, 0),
    "skin": Tissue(0, 0.5, 8),
    "fat": Tissue(-105, 0.25, 7, 0.15, 4),
    "muscle": Tissue(52, 0.65, 7, 0.12, 4),
    "breast gland": Tissue(30, 0.8, 14, 0.25),  # dense: SUV 0.36 to 0.84 (Vranjesevic 2003, J Nucl Med 44:1238)
    "mediastinal fat": Tissue(-88, 0.45, 14, 0.15),
    "abdominal fat": Tissue(-98, 0.4, 10, 0.15),
    "right upper lobe": Tissue(-850, 0.42, 0, 0),  # lobes share the lung's values, drawn once a patient
    "right middle lobe": Tissue(-850, 0.42, 0, 0),
    "right lower lobe": Tissue(-850, 0.42, 0, 0),
    "left upper lobe": Tissue(-850, 0.42, 0, 0),
    "left lower lobe": Tissue(-850, 0.42, 0, 0),
    "fissure": Tissue(-720, 0.42, 10, 0),
    "airway": Tissue(-1000, 0.1, 0, 0),
    "airway wall": Tissue(10, 0.9, 10),
    "blood": Tissue(42, 1.7, 3, 0.15, 3),
    "myocardium": Tissue(46, 3.0, 4, 0),  # its SUV is drawn apart: it depends on fasting
    "oesophagus": Tissue(35, 1.6, 6, 0.2),
    "diaphragm": Tissue(50, 0.9, 5, 0.1),
    "liver": Tissue(57, 2.2, 4, 0.15, 7),
    "spleen": Tissue(48, 1.8, 4, 0.15, 4),
    "stomach": Tissue(35, 1.7, 10, 0.3),
    "bowel": Tissue(20, 1.2, 40, 0.4),
    "gas": Tissue(-950, 0.1, 10, 0),
    "kidney": Tissue(33, 3.0, 5, 0.25),
    "cortex": Tissue(700, 0.8, 90, 0.1, 60),
    "endplate": Tissue(380, 1.1, 50, 0.1, 40),
    "marrow": Tissue(
        165, 1.4, 30, 0.2, 45
    ),  # L1: 226 ± 44 HU under 30 years, 89 ± 38 over 90 (10.1148/radiol.2019181648)
    "disc": Tissue(80, 0.8, 8, 0.1),
    "cord": Tissue(28, 1.3, 4, 0.15),
    "cartilage": Tissue(120, 0.6, 25, 0.1),
    "brown fat": Tissue(-85, 4.0, 10, 0),  # these five are drawn in few patients, with an SUV of their own
    "active muscle": Tissue(52, 2.0, 7, 0),
    "reactive node": Tissue(35, 3.0, 5, 0),
    "inflamed lung": Tissue(-350, 2.0, 60, 0),
    "inflamed joint": Tissue(35, 2.5, 8, 0),
    "couch shell": Tissue(-80, 0.0, 20, 0),
    "couch foam": Tissue(-930, 0.0, 4, 0),
}
LABEL = {name: i for i, name in enumerate(TISSUES)}
LOBES = tuple(name for name in TISSUES if name.endswith("lobe"))
LUNG = (*LOBES, "fissure")
FIRST_LESION = 100  # labels from here on: two a lesion, its outer part and its core


def label_table(*names: str) -> np.ndarray:
    """A table bool (256,): which labels bear one of the names."""
    table = np.zeros(256, bool)
    table[[LABEL[name] for name in names]] = True
    return table
