"""Images a digital phantom: noise-free HU and SUV on a CT grid become a CT and a PET as measured.

Modelled, CT: the kernel's in-plane blur; noise with the spectrum of filtered back-projection, whose strength follows
the patient's attenuation and the tube current's modulation. PET: the intrinsic point spread; breathing, averaged over
its phases; attenuation, corrected with the CT's own phase; a smooth scatter and randoms background; Poisson counts;
OSEM; a post filter.

Not modelled, CT: beam hardening, bow-tie filter, streaks (noise is locally isotropic), the slice profile, correlation
between slices, motion. PET: oblique planes (so no noise shared between slices but by the filter), time of flight, a
point spread that varies over the field or is part of the reconstruction, dead time, decay during the scan, the CT's
noise in the attenuation correction. Scatter and randoms are corrected by their true mean, better than any scanner can.
Moving content slides past what is static; where the border between them is oblique, a gap or an overlap of as much as
the shift is left.

Arrays are (z, y, x), z from feet to head; axes are given as (x, y, z), each the voxel centres in mm, rising in regular
steps. Work is split over threads in pieces that do not depend on their number, each with its own generator: the same
generator state gives the same bits on 1 thread and on many.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor, log, pi, sqrt

import numpy as np
from scipy import fft, ndimage, sparse
from scipy.special import ndtr

from petct_lib.imaging.mu_map import mu_map
from petct_lib.imaging.volume import AIR_HU

Axes = Sequence[np.ndarray]  # voxel centres along x, y, z, mm
FWHM_PER_SIGMA = 2.3548

WATER_70KEV = 0.0193  # 1/mm, NIST XCOM at 70 keV, the effective energy of a 120 kVp beam in a body
REFERENCE_CYLINDER_MM = 320.0  # the CTDI body phantom's diameter
LUNG_SHARPENING = 0.5  # FWHM of the lung kernel over the soft one's: MTF50 of 7 against 3.4 lp/cm
SIGMA_GRID_MM = 8.0  # attenuation, and with it noise strength, is smooth
SIGMA_ANGLES = 24

WATER_511KEV = 0.0096  # 1/mm
KVP = 120  # of the phantom's CT
STANDARD_BODY_MM = (350.0, 240.0)  # axes of the water ellipse of SUV 1 that `PetScanner.counts` refers to
STANDARD_SLICE_MM = 4.0
SCATTER_FWHM_MM = 160.0  # a scatter sinogram has no detail
BODY_HU, BODY_SUV = -800.0, 0.02  # the least that counts as something to image
BOX_PAD, BOX_STEP = 2, 8  # pixels: the margin around it; box sizes are multiples, so that matrices are used again
CHUNK_SLICES = 40  # the most slices reconstructed at once; an even number of chunks


@dataclass(frozen=True)
class CtScanner:
    """The attenuation CT of a PET/CT. ValueError for an unknown kernel, a dose of 0 or less, and noise below 0."""

    blur_fwhm_mm: float = 1.3  # soft kernel: MTF50 = 0.44/FWHM = 3.4 lp/cm, MTF10 = 6.2 lp/cm, as of a body kernel
    noise_hu: float = 12.0  # 1σ, soft kernel, centre of a 32 cm water cylinder, dose 1; 0: none
    dose: float = 1.0  # tube current × time, relative; σ ∝ dose^-½
    kernel: str = "soft"  # or "lung": sharper, and noisier at the same dose
    modulation: float = 0.5  # share of the log attenuation's variation along z that the tube current makes up for

    def __post_init__(self) -> None:
        if self.kernel not in ("soft", "lung"):
            raise ValueError(f'kernel {self.kernel!r}: choose "soft" or "lung"')
        if self.dose <= 0 or self.noise_hu < 0:
            raise ValueError(f"dose {self.dose}, noise_hu {self.noise_hu}: dose must be > 0, noise ≥ 0 (0 for none)")


@dataclass(frozen=True)
class PetScanner:
    """A clinical PET without time of flight.

    counts: expected trues in one 4 mm slice of a standard body, a 350 × 240 mm ellipse of water with SUV 1. It stands
    for dose × time × sensitivity; the counts of any slice follow from its SUV, attenuation and thickness. None: no
    Poisson noise, still reconstructed. A 3-D scanner collects so many from all its planes. ValueError for angles that
    do not divide into subsets, a scatter fraction outside [0, 1), and counts of 0 or less.
    """

    intrinsic_fwhm_mm: float = 4.5  # detector and positron range: Biograph mCT, 4.4 mm at 1 cm (Jakoby 2011)
    filter_fwhm_mm: float = 4.0  # with the rest a small source measures 6 mm
    counts: float | None = 2_000_000.0  # 11 % noise in the liver of such a body, 4 mm voxels: limits are 10-15 %
    scatter_fraction: float = 0.35  # scatter/(scatter + trues), NEMA NU 2 in 3-D
    randoms: float = 0.3  # over trues; flat over the sinogram
    angles: int = 96
    subsets: int = 24  # 3 × 24, a usual clinical choice; at 3 × 8 the width across a wide body is still 8 mm
    iterations: int = 3

    def __post_init__(self) -> None:
        if self.angles % self.subsets:
            raise ValueError(f"{self.angles} angles in {self.subsets} subsets: angles must be a multiple of subsets")
        if not 0 <= self.scatter_fraction < 1 or (self.counts is not None and self.counts <= 0):
            raise ValueError(f"{self}: scatter_fraction must be in [0, 1), counts > 0 (None for no noise)")


def image_ct(
    hu: np.ndarray,
    ct_mm: Axes,
    rng: np.random.Generator,
    settings: CtScanner = CtScanner(),
    *,
    threads: int | None = None,
) -> np.ndarray:
    """The CT as measured, (z, y, x) float32, HU ≥ -1024.

    hu: (z, y, x), noise-free. ct_mm: axes of both. threads: None for one a core.
    Noise is that of filtered back-projection: power ∝ frequency × MTF² (Riederer 1978, Phys Med Biol 23:446; Kijewski
    & Judy 1987, Phys Med Biol 32:565), independent between slices.
    Raises ValueError where axes and array do not agree.
    """
    _check(ct_mm, hu=hu)
    s, out = settings, np.empty(hu.shape, np.float32)
    steps = _step(ct_mm[1]), _step(ct_mm[0])
    fwhm = s.blur_fwhm_mm * (LUNG_SHARPENING if s.kernel == "lung" else 1.0)
    blur = [fwhm / FWHM_PER_SIGMA / step for step in steps]
    generators = rng.spawn(len(hu))
    if s.noise_hu > 0:
        amplitude = _noise_amplitude(hu.shape[1:], steps, s.blur_fwhm_mm, fwhm)
        sigma = s.noise_hu / sqrt(s.dose) * np.sqrt(_ct_variance(hu, ct_mm, s.modulation, threads))
        to_y, to_x = (_weights(ct_mm[a], _coarse(ct_mm[a]), SIGMA_GRID_MM, goes_on=True) for a in (1, 0))

    def one(i: int) -> None:
        image = ndimage.gaussian_filter(np.asarray(hu[i], np.float32), blur, truncate=3.0, mode="nearest")
        if s.noise_hu > 0:
            image += _ct_noise(generators[i], amplitude, hu.shape[1:]) * _plane(sigma[i], to_y, to_x)
        np.maximum(image, np.float32(AIR_HU), out=out[i])

    _map(one, range(len(hu)), threads)
    return out


def image_pet(
    suv: np.ndarray,
    hu: np.ndarray,
    moving: np.ndarray,
    ct_mm: Axes,
    pet_mm: Axes,
    shifts_mm: np.ndarray,
    rng: np.random.Generator,
    settings: PetScanner = PetScanner(),
    *,
    threads: int | None = None,
) -> np.ndarray:
    """The PET as measured on the grid of pet_mm, SUV ≥ 0, (Z, Y, X) float32; 0 away from body and couch.

    suv, hu: (z, y, x) on the CT grid, noise-free. moving: bool, (z, y, x), what moves with breathing.
    shifts_mm: (phases, Z), how far towards the head of its place in the CT the moving content of a PET slice lies; what
    is seen at z comes from z - shift. Phases last equally long; zeros (1, Z) hold the breath where the CT did.
    Source and attenuation are averaged over the phases; attenuation is corrected with the CT as it is, smoothed like
    the PET. Beyond the first and last CT slice the body goes on. Background is corrected by its true mean.
    Raises ValueError where axes and arrays do not agree.
    """
    _check(ct_mm, suv=suv, hu=hu, moving=moving)
    shifts_mm = _checked_shifts(shifts_mm, pet_mm)
    out = np.zeros([len(a) for a in pet_mm[::-1]], np.float32)
    body = (hu.max(axis=0) > BODY_HU) | (suv.max(axis=0) > BODY_SUV)
    if not body.any():
        return out
    to_y, from_y, y_mm = _box(body.any(axis=1), ct_mm[1], pet_mm[1])
    to_x, from_x, x_mm = _box(body.any(axis=0), ct_mm[0], pet_mm[0])
    box_mm = (x_mm, y_mm, pet_mm[2])
    maps = _average((suv, hu, moving), ct_mm, box_mm, shifts_mm, settings.intrinsic_fwhm_mm, threads)
    image = _scan(maps, _step(pet_mm[0]), _step(pet_mm[2]), rng, settings, threads)
    sigma = [settings.filter_fwhm_mm / FWHM_PER_SIGMA / _step(pet_mm[a]) for a in (2, 1, 0)]
    out[:, to_y, to_x] = ndimage.gaussian_filter(image, sigma, mode="nearest")[:, from_y, from_x]
    return out


@lru_cache(maxsize=4)
def system_matrix(shape: tuple[int, int], pixel_mm: float, angles: int) -> sparse.csr_array:
    """Parallel-beam projection of (y, x) images, (angles × bins, pixels) float32: line integrals, in mm × the image.

    Angles are (k + ½)π/angles, which leaves out the pixel grid's diagonal, where lines of pixels beat with the bins;
    bins are as wide as pixels, centred on the image, and cover its diagonal. A pixel falls on two bins, linearly.
    """
    theta = ((np.arange(angles) + 0.5) * (pi / angles))[:, None, None]
    y, x = (np.arange(n) - (n - 1) / 2 for n in shape)
    bins = ceil(sqrt(shape[0] ** 2 + shape[1] ** 2)) + 2
    at = x * np.cos(theta) + y[:, None] * np.sin(theta) + (bins - 1) / 2  # (angles, y, x)
    low = np.floor(at)
    row = (low + bins * np.arange(angles)[:, None, None]).astype(np.int32).ravel()
    upper = ((at - low) * pixel_mm).astype(np.float32).ravel()
    column = np.tile(np.arange(shape[0] * shape[1], dtype=np.int32), angles)
    values = np.concatenate([np.float32(pixel_mm) - upper, upper]), (np.r_[row, row + 1], np.r_[column, column])
    return sparse.csr_array(values, (angles * bins, shape[0] * shape[1]))


def _ct_noise(rng: np.random.Generator, amplitude: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """One slice of noise, (y, x) float32, from white noise drawn in its spectrum."""
    white = rng.standard_normal((*amplitude.shape, 2), np.float32).view(np.complex64)[..., 0]
    return fft.irfft2(white * amplitude, shape, norm="ortho", overwrite_x=True)


def _noise_amplitude(shape: tuple, steps_mm: tuple, soft_fwhm_mm: float, fwhm_mm: float) -> np.ndarray:
    """Root of the noise power, (y, x // 2 + 1), such that σ = 1 with the soft kernel; a sharper one has more."""
    fy, fx = fft.fftfreq(shape[0], steps_mm[0])[:, None], fft.rfftfreq(shape[1], steps_mm[1])
    f = np.hypot(fy, fx)  # 1/mm
    soft, power = (f * np.exp(-((pi * w * f) ** 2) / (2 * log(2))) for w in (soft_fwhm_mm, fwhm_mm))  # ramp × MTF²
    alone = np.isin(np.arange(len(fx)), [0, shape[1] / 2])  # columns without a conjugate twin in the half spectrum
    total = np.sum(soft * np.where(alone, 1, 2)) / (shape[0] * shape[1])
    # White noise is (a + ib)/√2; the inverse transform keeps only half the power of the columns without a twin.
    return np.sqrt(power / total * np.where(alone, 1.0, 0.5)).astype(np.float32)


def _ct_variance(hu: np.ndarray, ct_mm: Axes, modulation: float, threads: int | None) -> np.ndarray:
    """Noise variance over the reference cylinder's centre, CT slices on the coarse grid in plane, (z, yc, xc) float32.

    The variance that a ray adds is 1/its photons, exp(∫μ); a voxel gets the mean over its rays.
    """
    coarse_mm = [_coarse(a) for a in ct_mm]
    to_x, to_y, to_z = (_weights(coarse_mm[a], ct_mm[a], SIGMA_GRID_MM, goes_on=a == 2) for a in range(3))
    air = np.float32(1000)
    planes = _map(lambda i: _plane(np.maximum(hu[i] + air, 0), to_y, to_x), range(len(hu)), threads)
    mu = (to_z @ np.stack(planes).reshape(len(hu), -1)).T * np.float32(WATER_70KEV / 1000)  # (pixels, slices)
    shape = planes[0].shape
    matrix = system_matrix(shape, SIGMA_GRID_MM, SIGMA_ANGLES)
    reference = WATER_70KEV * REFERENCE_CYLINDER_MM
    variance = matrix.T @ np.exp(matrix @ mu - np.float32(reference)) / np.float32(SIGMA_ANGLES * SIGMA_GRID_MM)
    variance /= variance.max(axis=0) ** np.float32(modulation)  # more current where the body is thicker
    from_z = _weights(ct_mm[2], coarse_mm[2], SIGMA_GRID_MM, goes_on=True)
    return (from_z @ variance.T).reshape(len(hu), *shape)


def _average(
    volumes: tuple, ct_mm: Axes, box_mm: Axes, shifts_mm: np.ndarray, fwhm_mm: float, threads: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source and μ as the PET sees them and μ as the CT saw it, each (Z, Y, X) in the box, blurred by the PSF."""
    suv, hu, moving = volumes
    to_x, to_y = (_weights(box_mm[a], ct_mm[a], fwhm_mm) for a in (0, 1))

    def one(i: int) -> list[np.ndarray]:
        mu = mu_map(np.asarray(hu[i], np.float32), KVP, per="mm")
        return [_plane(image, to_y, to_x) for image in (suv[i], suv[i] * moving[i], mu, mu * moving[i])]

    planes = np.array(_map(one, range(len(hu)), threads), np.float32)  # (z, 4, Y, X)
    flat = planes.reshape(len(hu), -1)
    still = _weights(box_mm[2], ct_mm[2], fwhm_mm, goes_on=True)
    moved = sum(_weights(box_mm[2] - row, ct_mm[2], fwhm_mm, goes_on=True) for row in shifts_mm) / len(shifts_mm)
    full, change = ((m @ flat).reshape(-1, *planes.shape[1:]) for m in (still, (moved - still).astype(np.float32)))
    seen = [np.maximum(full[:, a] + change[:, a + 1], 0) for a in (0, 2)]
    return *seen, full[:, 2]


def _scan(
    maps: tuple, pixel_mm: float, slice_mm: float, rng: np.random.Generator, s: PetScanner, threads: int | None
) -> np.ndarray:
    """Counts and their reconstruction without the filter: maps of source, μ and the CT's μ to SUV, all (Z, Y, X)."""
    source = maps[0]
    matrices = _subset_matrices(source.shape[1:], pixel_mm, s.angles, s.subsets)
    chunks = np.array_split(np.arange(len(source)), 2 * ceil(len(source) / (2 * CHUNK_SLICES)))
    # Trues of a ray = gain × its attenuation × its line integral of SUV.
    noisy = s.counts is not None and np.isfinite(s.counts)
    gain = (s.counts if noisy else 1e6) / _standard_trues() * slice_mm / STANDARD_SLICE_MM * pixel_mm / s.angles

    def one(job: tuple[np.ndarray, np.random.Generator]) -> np.ndarray:
        columns = (np.ascontiguousarray(a[job[0]].reshape(len(job[0]), -1).T) for a in maps)
        lines, mu_lines, mu_ct_lines = (np.stack([m @ c for m in matrices]) for c in columns)
        trues = np.float32(gain) * np.exp(-mu_lines) * lines  # (subsets, angles × bins, slices)
        by_angle = trues.reshape(s.angles, -1, len(job[0]))
        background = _background(by_angle, pixel_mm, s.scatter_fraction, s.randoms).reshape(trues.shape)
        prompts = trues + background
        if noisy:
            prompts = job[1].poisson(prompts).astype(np.float32)
        image = osem(prompts, np.float32(gain) * np.exp(-mu_ct_lines), background, matrices, s.iterations)
        return image.T.reshape(-1, *source.shape[1:])

    return np.concatenate(_map(one, list(zip(chunks, rng.spawn(len(chunks)), strict=True)), threads))


def osem(
    prompts: np.ndarray, factors: np.ndarray, background: np.ndarray, matrices: Sequence, iterations: int
) -> np.ndarray:
    """Ordered-subsets expectation maximisation of factors × A x + background (Hudson & Larkin 1994), (pixels, slices).

    prompts, factors (attenuation × gain), background: (subsets, rows, slices) float32. matrices: A of each subset.
    Subsets are visited in bit-reversed order, each far from the last.
    """
    order = sorted(range(len(matrices)), key=lambda i: f"{i:010b}"[::-1])
    tiny = np.float32(1e-9)
    sensitivity = [np.maximum(m.T @ f, tiny) for m, f in zip(matrices, factors, strict=True)]
    image = np.ones_like(sensitivity[0])
    for k in order * iterations:
        ratio = factors[k] * prompts[k] / (factors[k] * (matrices[k] @ image) + background[k] + tiny)
        image *= (matrices[k].T @ ratio) / sensitivity[k]
    return image


@lru_cache(maxsize=4)
def _subset_matrices(shape: tuple[int, int], pixel_mm: float, angles: int, subsets: int) -> list[sparse.csr_array]:
    """The rows of `system_matrix` for every subset k: its angles k, k + subsets and so on."""
    matrix = system_matrix(shape, pixel_mm, angles)
    rows = np.arange(matrix.shape[0]).reshape(angles, -1)
    return [matrix[rows[k::subsets].ravel()] for k in range(subsets)]


def _background(trues: np.ndarray, pixel_mm: float, scatter_fraction: float, randoms: float) -> np.ndarray:
    """Mean scatter and randoms from the trues, (angles, bins, slices): smooth, scatter with each angle's own sum."""
    profile = trues.mean(axis=0)  # (bins, slices)
    sigma = SCATTER_FWHM_MM / FWHM_PER_SIGMA / pixel_mm
    shape = ndimage.gaussian_filter1d(profile, sigma, axis=0, mode="reflect")  # reflection keeps the sum
    share = trues.mean(axis=1) / np.maximum(profile.mean(axis=0), np.float32(1e-9))  # (angles, slices)
    scatter = share[:, None] * (shape * np.float32(scatter_fraction / (1 - scatter_fraction)))
    return scatter + profile.mean(axis=0) * np.float32(randoms)


@lru_cache(maxsize=1)
def _standard_trues() -> float:
    """∫ exp(-∫μ) ∫SUV across the bins, mm², averaged over angles, of the standard body: a chord t adds t exp(-μt)."""
    a, b = (axis / 2 for axis in STANDARD_BODY_MM)
    theta = (np.arange(180)[:, None] + 0.5) * pi / 180
    width = np.hypot(a * np.cos(theta), b * np.sin(theta))
    u = (np.arange(400) + 0.5) / 200 - 1  # across the ellipse's shadow
    chord = 2 * a * b / width * np.sqrt(1 - u**2)
    return float(np.mean(2 * width * chord * np.exp(-WATER_511KEV * chord)))


def _box(body: np.ndarray, ct_mm: np.ndarray, pet_mm: np.ndarray) -> tuple[slice, slice, np.ndarray]:
    """Of one axis: the PET's pixels that the reconstructed box covers, the box's in the PET, and its centres, mm."""
    step, (low, high) = _step(pet_mm), ct_mm[np.flatnonzero(body)[[0, -1]]]
    first, last = floor((low - pet_mm[0]) / step) - BOX_PAD, ceil((high - pet_mm[0]) / step) + BOX_PAD
    count = ceil((last - first + 1) / BOX_STEP) * BOX_STEP
    first -= (count - (last - first + 1)) // 2
    start, stop = np.clip([first, first + count], 0, len(pet_mm)).tolist()
    return slice(start, stop), slice(start - first, stop - first), pet_mm[0] + step * np.arange(first, first + count)


def _weights(to_mm: np.ndarray, from_mm: np.ndarray, fwhm_mm: float, goes_on: bool = False) -> sparse.csr_array:
    """What each old voxel, a box, adds to a Gaussian mean about each new position, (to, from) float32.

    Outside the old voxels is 0, or, where it `goes_on`, what the first and last hold.
    """
    half = _step(from_mm) / 2
    edges = np.append(from_mm - half, from_mm[-1] + half)
    if goes_on:
        edges[[0, -1]] = -np.inf, np.inf
    shares = np.diff(ndtr((edges - to_mm[:, None]) * (FWHM_PER_SIGMA / max(fwhm_mm, 1e-6))), axis=1)
    shares[shares < 1e-6] = 0
    return sparse.csr_array(shares.astype(np.float32))


def _plane(image: np.ndarray, to_y: sparse.csr_array, to_x: sparse.csr_array) -> np.ndarray:
    """One matrix (to, from) applied to each axis of (y, x)."""
    return (to_x @ (to_y @ image).T).T


def _coarse(axis_mm: np.ndarray) -> np.ndarray:
    """Centres SIGMA_GRID_MM apart that cover an axis."""
    count = ceil((axis_mm[-1] - axis_mm[0]) / SIGMA_GRID_MM) + 1
    return (axis_mm[0] + axis_mm[-1]) / 2 + SIGMA_GRID_MM * (np.arange(count) - (count - 1) / 2)


def _map(function: Callable, jobs: Sequence, threads: int | None) -> list:
    """The function of every job, in order, on as many threads as there are cores or as given."""
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        return list(pool.map(function, jobs))


def _step(axis_mm: np.ndarray) -> float:
    steps = np.diff(axis_mm)
    if len(steps) == 0 or steps[0] <= 0 or not np.allclose(steps, steps[0], rtol=1e-3):
        raise ValueError(f"an axis needs two or more centres that rise in regular steps, mm; this has {len(axis_mm)}")
    return float(axis_mm[-1] - axis_mm[0]) / len(steps)


def _check(axes_mm: Axes, **arrays: np.ndarray) -> None:
    shape = tuple(len(a) for a in axes_mm[::-1])
    for name, array in arrays.items():
        if array.shape != shape:
            raise ValueError(f"{name} is {array.shape}, but its axes (x, y, z) make it {shape} (z, y, x)")


def _checked_shifts(shifts_mm: np.ndarray, pet_mm: Axes) -> np.ndarray:
    shifts_mm = np.asarray(shifts_mm)
    if shifts_mm.ndim != 2 or len(shifts_mm) == 0 or shifts_mm.shape[1] != len(pet_mm[2]):
        raise ValueError(f"shifts_mm {shifts_mm.shape} must be (phases, {len(pet_mm[2])}), a column a PET slice")
    if not np.isclose(_step(pet_mm[0]), _step(pet_mm[1]), rtol=1e-3):
        raise ValueError(f"PET pixels must be square, not {_step(pet_mm[0])} × {_step(pet_mm[1])} mm")
    return shifts_mm
