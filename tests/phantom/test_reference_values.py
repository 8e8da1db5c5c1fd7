"""Organ means: right on a volume of known values, away from borders, and shown beside the published ranges."""

import numpy as np
import pytest

from petct_lib.imaging.volume import Volume, axial_affine
from petct_lib.phantom.reference_values import PUBLISHED, format_organs, organ_means
from petct_lib.phantom.tissues import LABEL


def known() -> tuple[Volume, Volume, Volume]:
    """A liver of 60 HU and SUV 2 beside a lung of two lobes; the border of the liver is spoilt."""
    labels = np.zeros((20, 30, 40), np.uint8)
    labels[4:16, 5:25, 5:20] = LABEL["liver"]
    labels[4:16, 5:25, 22:30] = LABEL["left upper lobe"]
    labels[4:16, 5:25, 30:38] = LABEL["left lower lobe"]
    labels[0, 0, 0] = LABEL["spleen"]  # too small to have an inside
    hu = np.where(labels == LABEL["liver"], 60.0, -1000.0).astype(np.float32)
    hu[labels >= LABEL["right upper lobe"]] = np.where(labels == LABEL["liver"], 60.0, -800.0)[
        labels >= LABEL["right upper lobe"]
    ]
    hu[4, :, :] = 5000  # a border slice
    pet = np.full((20, 30, 40), 2.0, np.float32)
    affine = axial_affine((2.0, 2.0, 2.0), np.zeros(3))
    return Volume(labels, affine, "1"), Volume(hu, affine, "HU"), Volume(pet, affine, "SUV")


def test_means_of_known_values():
    means = organ_means(*known(), erode_mm=3.0)
    assert means["liver"][:2] == pytest.approx((60.0, 2.0))
    assert means["liver"][2] == pytest.approx(12 * 20 * 15 * 8 / 1000)
    assert means["lung"][:2] == pytest.approx((-800.0, 2.0))
    assert "spleen" not in means


def test_lung_is_all_lobes_together_also_across_their_border():
    labels, ct, pet = known()
    assert organ_means(labels, ct, pet, erode_mm=3.0)["lung"][2] == pytest.approx(12 * 20 * 16 * 8 / 1000)


def test_the_table_names_what_was_found_and_the_published_range():
    rows = [{"liver": (60.0, 2.0, 100.0)}, {"liver": (50.0, 3.0, 100.0), "fat": (-100.0, 0.3, 10.0)}]
    head, liver, fat = format_organs(rows).splitlines()
    assert head.split()[:3] == ["organ", "n", "HU"]
    assert "55 [50, 60]" in liver
    assert "2.50 [2.00, 3.00]" in liver
    assert f"{PUBLISHED['liver'][0][0]:g} to {PUBLISHED['liver'][0][1]:g}" in liver
    assert fat.split()[:2] == ["fat", "1"]


def test_every_published_range_has_a_source():
    for hu, suv, source in PUBLISHED.values():
        assert hu[0] < hu[1]
        assert 0 <= suv[0] < suv[1]
        assert source
