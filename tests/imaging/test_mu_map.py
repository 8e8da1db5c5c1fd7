"""Attenuation at 511 keV against published coefficients."""

import numpy as np
import pytest

from petct_lib.imaging.mu_map import CARNEY, WATER_SLOPE, mu_map


def test_mu_of_air_water_and_bone():
    assert mu_map(np.array([-1000.0, -1024.0]), 120).tolist() == [0, 0], "nothing attenuates less than nothing"
    assert mu_map(np.array(0.0), 120) == pytest.approx(0.096)  # water at 511 keV
    assert mu_map(np.array(1000.0), 120) == pytest.approx(0.0471 + 2000 * 5.10e-5)  # by hand, at 120 kVp
    assert mu_map(np.array(1000.0), 80) == pytest.approx(0.0626 + 2000 * 3.64e-5)
    assert mu_map(np.array(1000.0), 80) < mu_map(np.array(1000.0), 140)
    assert 0.13 < mu_map(np.array(1000.0), 120) < 0.155  # Burger 2002: 0.131


@pytest.mark.parametrize(("kvp", "break_hu"), [(80, 50), (100, 52), (110, 43), (120, 47), (130, 37), (140, 30)])
def test_the_lines_meet_where_carney_has_the_break(kvp, break_hu):
    slope, intercept = CARNEY[kvp]
    assert intercept / (WATER_SLOPE - slope) - 1000 == pytest.approx(break_hu, abs=1)
    assert np.all(np.diff(mu_map(np.arange(-1000, 3000, 10.0), kvp)) > 0)


def test_units_and_kinds_of_numbers():
    hu = np.array([-1000, 0, 40, 900], np.float32)
    assert mu_map(hu, 120).dtype == np.float32
    assert mu_map(hu.astype(int), 120).dtype == np.float64
    assert mu_map(hu, 120, per="mm") == pytest.approx(mu_map(hu, 120) / 10)


def test_another_voltage_or_unit_is_refused():
    with pytest.raises(ValueError, match="per 'm': must be one of cm, mm"):
        mu_map(np.zeros(1), 120, per="m")
    with pytest.raises(ValueError, match="kvp 90: Carney 2006 has 80, 100"):
        mu_map(np.zeros(1), 90)
