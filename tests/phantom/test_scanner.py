"""Imaging of a phantom: resolution, noise, bias and breathing of what comes out; the projector against skimage.

Bodies are small, so that a scan takes tenths of a second.
"""

import numpy as np
import pytest
from scipy.optimize import curve_fit
from skimage.transform import radon

from petct_lib.phantom import scanner
from petct_lib.phantom.scanner import CtScanner, PetScanner, image_ct, image_pet, system_matrix

PET_SLICES = 14
CLEAN = PetScanner(counts=None)
HALF_MM = (175.0, 120.0)


def axis(count, step_mm):
    return (np.arange(count) - (count - 1) / 2) * step_mm


CT_MM = (axis(200, 2.0), axis(140, 2.0), axis(30, 2.0))
PET_MM = (axis(96, 4.07), axis(72, 4.07), axis(PET_SLICES, 4.0))
STILL = np.zeros((1, PET_SLICES))
SHAPE = tuple(len(a) for a in CT_MM[::-1])
PET_X, PET_Y, PET_Z = PET_MM[0], PET_MM[1][:, None], PET_MM[2][:, None, None]


def ellipse(x, y, centre, half):
    return ((x - centre[0]) / half[0]) ** 2 + ((y - centre[1]) / half[1]) ** 2 < 1


def sphere(centre_mm, diameter_mm, fine=5):
    """Share of each CT voxel inside a sphere, (z, y, x)."""
    share = np.zeros(SHAPE, np.float32)
    offsets = (np.arange(fine) - (fine - 1) / 2) / fine * 2.0
    for d in np.stack(np.meshgrid(offsets, offsets, offsets), -1).reshape(-1, 3):
        x, y, z = (((a + o - c) ** 2) for a, o, c in zip(CT_MM, d, centre_mm, strict=True))
        share += x + y[:, None] + z[:, None, None] < diameter_mm**2 / 4
    return share / fine**3


def scan(suv, hu, settings=CLEAN, moving=None, shifts_mm=STILL, seed=0, **kwargs):
    moving = np.zeros(SHAPE, bool) if moving is None else moving
    return image_pet(suv, hu, moving, CT_MM, PET_MM, shifts_mm, np.random.default_rng(seed), settings, **kwargs)


LIVER = ellipse(PET_X, PET_Y, (60, 0), (55, 38))
REST = ellipse(PET_X, PET_Y, (-110, 0), (30, 40))


@pytest.fixture(scope="module")
def body() -> tuple[np.ndarray, np.ndarray]:
    """SUV 1 and a liver of 2.3, in water."""
    x, y = CT_MM[0], CT_MM[1][:, None]
    inside = ellipse(x, y, (0, 0), HALF_MM)
    suv = inside + 1.3 * ellipse(x, y, (60, 0), (85, 65))
    suv, hu = (np.repeat(a[None].astype(np.float32), SHAPE[0], 0) for a in (suv * inside, inside * 1000.0 - 1000))
    return suv, hu


@pytest.fixture(scope="module")
def clean(body) -> np.ndarray:
    return scan(*body)


@pytest.fixture(scope="module")
def noisy(body) -> np.ndarray:
    return scan(*body, PetScanner())


def cylinder(diameter_mm, size=128, slices=12):
    """Water cylinder, (z, y, x) HU, and its axes: 3 mm pixels."""
    a = axis(size, 3.0)
    hu = np.where(np.hypot(a, a[:, None]) < diameter_mm / 2, 0.0, -1000.0).astype(np.float32)
    return np.repeat(hu[None], slices, 0), (a, a, axis(slices, 3.0))


def ct_noise(hu, axes, **settings):
    """What noise adds; air is lifted so that nothing is clipped."""
    output = [
        image_ct(hu, axes, np.random.default_rng(0), CtScanner(**s)) for s in (settings, {**settings, "noise_hu": 0})
    ]
    return output[0] - output[1]


def middle(image, half=8):
    y, x = (n // 2 for n in image.shape[1:])
    return image[:, y - half : y + half, x - half : x + half]


def test_projector_gives_the_chords_of_a_disc_and_what_skimage_gives():
    size, pixel, angles, radius = 96, 2.0, 24, 70.0
    a = axis(size * 4, pixel / 4)
    disc = (np.hypot(a, a[:, None]) < radius).reshape(size, 4, size, 4).mean(axis=(1, 3)).astype(np.float32)
    lines = (system_matrix((size, size), pixel, angles) @ disc.ravel()).reshape(angles, -1)
    s = axis(lines.shape[1], pixel)
    chord = 2 * np.sqrt(np.maximum(radius**2 - s**2, 0))
    assert np.abs(lines - chord)[:, np.abs(s) < 60].max() < 0.03 * 2 * radius
    assert np.sqrt(np.mean((lines - chord) ** 2)) < 0.01 * 2 * radius
    np.testing.assert_allclose(lines.sum(axis=1), disc.sum() * pixel, rtol=1e-5)

    size = 97  # odd: skimage turns about pixel size // 2, and the other way, which a flip makes up for
    a = axis(size, pixel)
    image = (np.hypot(a, a[:, None]) < radius) + 1.0 * ellipse(a, a[:, None], (30, 10), (15, 25))
    lines = (system_matrix((size, size), pixel, angles) @ image.ravel().astype(np.float32)).reshape(angles, -1)
    other = radon(image[::-1], (np.arange(angles) + 0.5) * 180 / angles, circle=True).T * pixel
    ours = np.array([np.interp(a, axis(lines.shape[1], pixel), line) for line in lines])
    assert np.sqrt(np.mean((ours - other) ** 2)) < 0.02 * other.max()


def test_the_backprojector_is_the_adjoint():
    rng, matrix = np.random.default_rng(0), system_matrix((40, 56), 4.0, 12)
    x, y = (rng.random(n).astype(np.float32) for n in matrix.shape[::-1])
    assert (matrix @ x) @ y == pytest.approx(x @ (matrix.T @ y), rel=1e-4)


def test_a_small_source_measures_6_mm(body, clean):
    suv, hu = body
    source = scan(suv + 200 * sphere((-60, 10, 0), 4), hu) - clean
    peak = np.unravel_index(source.argmax(), source.shape)
    widths = []
    for a in range(3):
        line = np.moveaxis(source, a, 0)[(slice(None), *np.delete(peak, a))]
        start = (line.max(), PET_MM[2 - a][peak[a]], 2.5)
        fit, _ = curve_fit(lambda t, h, m, s: h * np.exp(-0.5 * ((t - m) / s) ** 2), PET_MM[2 - a], line, start)
        widths.append(abs(fit[2]) * 2.3548)
    assert all(5 < w < 7 for w in widths), widths
    assert 5.5 < np.mean(widths) < 6.5


def test_recovery_rises_with_size(body, clean):
    suv, hu = body
    mean, centre = [], []
    for diameter in (10, 13, 17, 22, 28, 37):
        image = scan(suv + 7 * sphere((-80, 0, 0), diameter), hu) - clean
        r = np.sqrt((PET_X + 80) ** 2 + PET_Y**2 + PET_Z**2)
        mean.append(image[r <= diameter / 2].mean() / 7)
        centre.append(image[r <= 5].mean() / 7)
    assert np.all(np.diff(mean) > 0.02), mean
    assert np.all(np.diff(centre) > 0), centre
    assert mean[0] < 0.5
    assert 0.9 < centre[-1] < 1.1


def test_organs_are_unbiased_and_noise_is_clinical_and_correlated(clean, noisy):
    for image in (clean, noisy):
        assert image[:, LIVER].mean() == pytest.approx(2.3, rel=0.02)
        assert image[:, REST].mean() == pytest.approx(1.0, rel=0.02)
    assert noisy.dtype == np.float32
    assert noisy.min() >= 0
    noise = noisy - clean
    spread = noise[:, LIVER].std()
    assert 0.09 < spread / 2.3 < 0.125
    assert (noise[:, :, 1:] * noise[:, :, :-1])[:, LIVER[:, 1:]].mean() / spread**2 > 0.15
    assert (noise[1:] * noise[:-1])[:, LIVER].mean() / spread**2 > 0.07  # 4 mm apart, the filter alone


def test_four_times_the_counts_halve_the_noise(body, clean, noisy):
    more = scan(*body, PetScanner(counts=4 * PetScanner().counts))
    ratio = (more - clean)[:, LIVER].std() / (noisy - clean)[:, LIVER].std()
    assert ratio == pytest.approx(0.5, rel=0.15)


def test_infinite_counts_are_no_noise(body, clean):
    np.testing.assert_allclose(scan(*body, PetScanner(counts=np.inf), seed=5), clean, atol=1e-5)


@pytest.fixture(scope="module")
def thorax() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """SUV, HU, moving: a lung over a liver, z = 0 between them, inside a static wall."""
    x, y, z = CT_MM[0], CT_MM[1][:, None], CT_MM[2][:, None, None]
    inside, moving = ellipse(x, y, (0, 0), HALF_MM), ellipse(x, y, (0, 0), (140, 85)) & (z > -1e9)
    lung = moving & (z > 0)
    suv = np.where(lung, 0.4, np.where(moving, 2.3, 1.0)) * inside
    return suv.astype(np.float32), np.where(inside, np.where(lung, -750.0, 40.0), -1000).astype(np.float32), moving


MOVING = ellipse(PET_X, PET_Y, (0, 0), (120, 65))
WALL = ellipse(PET_X, PET_Y, (0, 0), (166, 111)) & ~ellipse(PET_X, PET_Y, (0, 0), (156, 101))


def test_breathing_moves_what_moves_and_leaves_the_rest(thorax):
    suv, hu, moving = thorax
    hu = np.where(hu > -900, 0, hu)  # the same attenuation everywhere, to see the source alone
    still, up = (scan(suv, hu, moving=moving, shifts_mm=np.full((1, PET_SLICES), s)) for s in (0.0, 8.0))
    blurred = scan(suv, hu, moving=moving, shifts_mm=np.array([[0.0], [8.0]]) * np.ones(PET_SLICES))
    profile = {n: a[:, MOVING].mean(axis=1) for n, a in (("still", still), ("up", up), ("blurred", blurred))}
    np.testing.assert_allclose(profile["up"][2:], profile["still"][:-2], rtol=0.03)  # 8 mm is two slices
    np.testing.assert_allclose(profile["blurred"], (profile["up"] + profile["still"]) / 2, rtol=0.03)
    assert np.abs(up - still)[:, WALL].max() < 0.15
    assert abs((up - still)[:, WALL].mean()) < 0.02
    np.testing.assert_allclose(profile["still"][0], profile["up"][0], rtol=0.02)  # the body goes on
    none = scan(suv, hu, shifts_mm=np.full((1, PET_SLICES), 8.0))  # nothing moves
    np.testing.assert_allclose(none, still, atol=1e-4)


def test_a_ct_at_another_phase_biases_the_lung_over_the_diaphragm(thorax):
    suv, hu, moving = thorax
    up = np.clip(np.arange(SHAPE[0]) - 6, 0, None)  # 12 mm is six CT slices
    right = scan(suv[up], hu[up])
    wrong = scan(suv, hu, moving=np.ones_like(moving), shifts_mm=np.full((1, PET_SLICES), 12.0))
    dome = (PET_MM[2] > 1) & (PET_MM[2] < 11)  # liver in the PET, lung in the CT: corrected too little
    assert wrong[dome][:, MOVING].mean() < 0.85 * right[dome][:, MOVING].mean()
    for far in (PET_MM[2] < -9, PET_MM[2] > 21):
        assert wrong[far][:, MOVING].mean() == pytest.approx(right[far][:, MOVING].mean(), rel=0.05)


def test_the_same_generator_gives_the_same_bits_on_any_number_of_threads(body):
    one, two = (scan(*body, PetScanner(iterations=1), seed=3, threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, scan(*body, PetScanner(iterations=1), seed=4))
    hu, axes = cylinder(200, slices=5)
    ct = [image_ct(hu, axes, np.random.default_rng(s), threads=n) for s, n in ((3, 1), (3, 2), (4, 2))]
    np.testing.assert_array_equal(ct[0], ct[1])
    assert not np.array_equal(ct[0], ct[2])


def test_ct_noise_has_the_set_sigma_and_falls_with_dose():
    hu, axes = cylinder(320)
    sigma = middle(ct_noise(hu, axes)).std()
    assert sigma == pytest.approx(12, rel=0.1)
    assert middle(ct_noise(hu, axes, dose=4.0)).std() / sigma == pytest.approx(0.5, rel=0.03)
    assert middle(ct_noise(hu, axes, modulation=0.0)).std() == pytest.approx(12, rel=0.1)


def test_ct_noise_grows_with_thickness_less_so_with_modulation():
    sigma = {}
    for modulation in (0.0, 0.5):
        for diameter in (200, 320):
            sigma[modulation, diameter] = middle(ct_noise(*cylinder(diameter), modulation=modulation)).std()
    growth = sigma[0.0, 320] / sigma[0.0, 200]
    assert growth == pytest.approx(np.exp(0.0193 * 120 / 2), rel=0.15)
    assert sigma[0.5, 320] / sigma[0.5, 200] == pytest.approx(np.sqrt(growth), rel=0.1)


def test_ct_noise_has_the_spectrum_of_filtered_backprojection():
    size = 128
    a = axis(size, 1.0)
    axes, hu = (a, a, axis(24, 2.0)), np.zeros((24, size, size), np.float32)
    power = {}
    for kernel in ("soft", "lung"):
        noise = ct_noise(hu, axes, kernel=kernel, noise_hu=1.0, dose=100.0)
        spectrum = (np.abs(np.fft.fft2(middle(noise, 48))) ** 2).mean(axis=0)
        f = np.hypot(np.fft.fftfreq(96), np.fft.fftfreq(96)[:, None])
        power[kernel] = np.array([spectrum[(f >= lo) & (f < lo + 0.04)].mean() for lo in np.arange(0.02, 0.48, 0.04)])
        zero = spectrum[f == 0].mean()
        assert zero < 0.1 * power[kernel].max()
    soft, lung = power["soft"], power["lung"]
    assert 0.1 < 0.04 + 0.04 * soft.argmax() < 0.3  # 1/mm; theory: 0.2
    assert soft[0] < 0.5 * soft.max()
    assert soft[-1] < 0.3 * soft.max()
    assert lung.argmax() > soft.argmax()
    assert lung.sum() > 1.5 * soft.sum()


def test_a_ct_without_noise_is_a_blurred_clipped_copy():
    hu, axes = cylinder(200, slices=3)
    hu[:, :4] = -3000
    out = image_ct(hu, axes, np.random.default_rng(0), CtScanner(noise_hu=0.0))
    assert out.dtype == np.float32
    assert out.min() == -1024
    np.testing.assert_allclose(middle(out), 0, atol=1e-3)
    soft, lung = (
        np.abs(image_ct(hu, axes, np.random.default_rng(0), CtScanner(noise_hu=0, blur_fwhm_mm=4, kernel=k)) - hu)
        for k in ("soft", "lung")
    )
    assert lung[:, 8:].sum() < soft[:, 8:].sum()


def test_nothing_to_image_is_nothing(body):
    empty = scan(np.zeros(SHAPE, np.float32), np.full(SHAPE, -1000, np.float32), PetScanner())
    assert empty.shape == (PET_SLICES, 72, 96)
    assert not empty.any()


def test_a_body_larger_than_the_pet_is_cut(body, clean):
    small = (axis(40, 4.07), axis(72, 4.07), PET_MM[2])
    out = image_pet(*body, np.zeros(SHAPE, bool), CT_MM, small, STILL, np.random.default_rng(0), CLEAN)
    np.testing.assert_allclose(out[:, 20:50, 10:30], clean[:, 20:50, 38:58], rtol=0.02)


def test_wrong_settings_and_shapes_speak(body):
    suv, hu = body
    for make, match in (
        (lambda: CtScanner(kernel="sharp"), "sharp"),
        (lambda: CtScanner(dose=0.0), "dose"),
        (lambda: PetScanner(angles=50), "multiple"),
        (lambda: PetScanner(counts=0.0), "counts"),
        (lambda: scan(suv[1:], hu), "suv is"),
        (lambda: scan(suv, hu, shifts_mm=np.zeros((1, 3))), "shifts_mm"),
        (lambda: image_ct(hu, CT_MM[::-1], np.random.default_rng(0)), "hu is"),
        (lambda: scanner._step(np.array([0.0, 1.0, 3.0])), "regular"),
    ):
        with pytest.raises(ValueError, match=match):
            make()
