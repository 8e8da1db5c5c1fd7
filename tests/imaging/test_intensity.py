"""HU and SUV to the network's range and back."""

import numpy as np
import pytest
import torch

from petct_lib.imaging.intensity import DECODE, ENCODE, Intensity


@pytest.mark.parametrize(
    ("kind", "physical", "encoded"),
    [
        ("ct", [-1024.0, 238.0, 1500.0], [-1.0, 0.0, 1.0]),
        ("ct", [-3000.0, 4000.0], [-1.0, 1.0]),  # clipped
        ("pet", [0.0, 3.75, 15.0], [-1.0, 0.0, 1.0]),  # square root: a quarter of the cap is the middle
        ("pet", [-0.5, 40.0], [-1.0, 1.0]),
    ],
)
def test_known_values(kind, physical, encoded):
    assert np.allclose(ENCODE[kind](np.array(physical), Intensity()), encoded)


def test_linear_pet():
    assert np.allclose(ENCODE["pet"](np.array([3.75]), Intensity(suv_sqrt=False)), [-0.5])


@pytest.mark.parametrize("kind", ["ct", "pet"])
@pytest.mark.parametrize("window", [Intensity(), Intensity(-500, 800, 7.0, False)])
def test_round_trip_inside_the_window(kind, window):
    low, high = (window.ct_low_hu, window.ct_high_hu) if kind == "ct" else (0.0, window.suv_cap)
    values = np.linspace(low, high, 1001)
    assert np.allclose(DECODE[kind](ENCODE[kind](values, window), window), values, atol=1e-9)


@pytest.mark.parametrize("kind", ["ct", "pet"])
def test_torch_gives_what_numpy_gives(kind):
    values = np.linspace(-2000, 3000, 101)
    there = ENCODE[kind](torch.from_numpy(values), Intensity())
    assert np.allclose(there.numpy(), ENCODE[kind](values, Intensity()))
    assert np.allclose(DECODE[kind](there, Intensity()).numpy(), DECODE[kind](there.numpy(), Intensity()))


def test_empty_windows_are_refused():
    with pytest.raises(ValueError, match="empty intensity window"):
        Intensity(ct_low_hu=100, ct_high_hu=100)
    with pytest.raises(ValueError, match="SUV cap 0"):
        Intensity(suv_cap=0)
