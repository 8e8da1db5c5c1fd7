"""Scores of synthetic images against real ones: by patient, then mean, interval and paired test over patients.

A mask is used for scoring only: no model ever sees one. The unit of the statistics is the patient, never the slice.
Arrays are a patient's stack (n, H, W) in physical units (HU or SUV); a mask is bool of that shape, or None for all.
"""

import csv
import functools
import hashlib
import importlib.util
import io
import json
import math
import os
import re
import socket
import warnings
from collections.abc import Iterable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats
from scipy.signal.windows import hann
from skimage.metrics import structural_similarity

if TYPE_CHECKING:
    import torch

SCORE_COLUMNS = ("direction", "method", "patient", "region", "metric", "value", "unit")
KEY_COLUMNS = SCORE_COLUMNS[:5]  # they name one score; a second row with the same five is an error
TABLE_COLUMNS = {"mae": "MAE", "rmse": "RMSE", "psnr": "PSNR", "ssim": "SSIM", "spectrum": "spectrum", "lpips": "LPIPS"}
INTERVAL_COLUMNS = ("mae", "ssim")  # the table shows the interval of these two, and has no room for more
WANG_2004 = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}  # SSIM as it was published
POWER_FLOOR = 1e-12  # of the real images' strongest ring; power below it is the rounding of float32
ALEXNET_FILE = "alexnet-owt-7be5be79.pth"  # torchvision's AlexNet_Weights.IMAGENET1K_V1, 233 MB
ALEXNET_SHA256 = "7be5be79"  # the first digits, those in the file's name
ALEXNET_URL = f"https://download.pytorch.org/models/{ALEXNET_FILE}"
DOWNLOAD_TIMEOUT_S = 10.0  # for each answer of the server: without a network it must fail fast
LPIPS_BATCH = 16  # slices at a time: bounds the memory, changes no score

Row = dict[str, Any]  # one score, by SCORE_COLUMNS


def _checked(
    real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both stacks as float64 and the mask as bool; ValueError if they cannot be scored."""
    real, synthetic = np.asarray(real, np.float64), np.asarray(synthetic, np.float64)
    if real.shape != synthetic.shape or real.ndim != 3:
        raise ValueError(f"real {real.shape} and synthetic {synthetic.shape} must have one shape (n, H, W)")
    mask = np.ones(real.shape, bool) if mask is None else np.asarray(mask)
    if mask.shape != real.shape or mask.dtype != bool:
        raise ValueError(f"mask {mask.shape} of {mask.dtype} must be bool, of the images' shape {real.shape}")
    if not mask.any():
        raise ValueError(f"empty mask: 0 of {mask.size} voxels to score")
    for name, image in (("real", real), ("synthetic", synthetic)):
        if bad := int(np.count_nonzero(~np.isfinite(image))):
            raise ValueError(f"{name} has {bad} non-finite values of {image.size}")
    return real, synthetic, mask


def _check_range(name: str, low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{name} must be finite and increasing, not {low} to {high}")


def mae(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean absolute error over the mask, in the images' unit.

    Stacks (n, H, W). ValueError for unequal shapes, an empty or non-bool mask, and non-finite values.
    """
    real, synthetic, mask = _checked(real, synthetic, mask)
    return float(np.abs(real - synthetic)[mask].mean())


def mse(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean squared error over the mask, in the images' unit squared. Shapes and errors as for `mae`."""
    real, synthetic, mask = _checked(real, synthetic, mask)
    return float(np.square(real - synthetic)[mask].mean())


def rmse(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Root of the mean squared error over the mask, in the images' unit. Shapes and errors as for `mae`."""
    return math.sqrt(mse(real, synthetic, mask))


def psnr(real: np.ndarray, synthetic: np.ndarray, *, data_range: float, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio over the mask in dB, 10 log10(data_range² / MSE); inf for identical images.

    `data_range` is the width of the fixed clip, one for all patients, never an image's own maximum; it must be
    above 0. Shapes and errors as for `mae`.
    """
    _check_range("0 to data_range", 0.0, data_range)
    error = mse(real, synthetic, mask)
    return math.inf if error == 0 else 10 * math.log10(data_range**2 / error)


def ssim(real: np.ndarray, synthetic: np.ndarray, *, data_range: float, mask: np.ndarray | None = None) -> float:
    """Structural similarity of slices (Wang et al. 2004: Gaussian window, sigma 1.5, 11x11); 1 for identical images.

    Each slice's map is averaged over the mask, the voxels of all slices pooled. Without a mask the 5 voxels at the
    border count too, which skimage's own mean leaves out. `data_range` as for `psnr`, shapes and errors as for
    `mae`; slices smaller than 11x11 are a ValueError.
    """
    _check_range("0 to data_range", 0.0, data_range)
    real, synthetic, mask = _checked(real, synthetic, mask)
    total = 0.0
    for i in np.flatnonzero(mask.any(axis=(1, 2))):
        _, local = structural_similarity(real[i], synthetic[i], data_range=data_range, full=True, **WANG_2004)  # (H, W)
        total += local[mask[i]].sum()
    return float(total / np.count_nonzero(mask))


def radial_power_spectrum(stack: np.ndarray) -> np.ndarray:
    """Power by spatial frequency, (n, H, W) -> (rings,), unit squared; ring r is r / min(H, W) cycles per voxel.

    The mean over slices of |FFT2|² under a Hann window, averaged in rings one step of frequency wide. They go on from
    Nyquist (r = min(H, W) // 2) to the corner of the plane, for that is where a checkerboard is. Each slice's mean is
    taken off first: the window would leak it into ring 1. Errors as for `mae`.
    """
    stack, _, _ = _checked(stack, stack)
    n, height, width = stack.shape
    window = np.outer(hann(height, sym=False), hann(width, sym=False))  # (H, W)
    power = sum(np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2 for image in stack) / n  # (H, W)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))  # (H, W), cycles per voxel
    ring = np.rint(frequency * min(height, width)).astype(int)
    return np.bincount(ring.ravel(), power.ravel()) / np.bincount(ring.ravel())


def spectrum_distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Root mean square, over the rings but ring 0, of the difference of natural log power; no unit, 0 is perfect.

    It sees what errors between voxels reward: blur (high frequencies lack power) and checkerboards (a few have too
    much). It cannot tell structure from noise: noise of the right strength buys it, so read it beside MAE. Shapes
    and errors as for `mae`, and ValueError for constant real images. Power under the floor counts as the floor.
    """
    real, synthetic, _ = _checked(real, synthetic)
    if not np.ptp(real, axis=(1, 2)).any():
        raise ValueError(f"real {real.shape} has constant slices only: no spectrum to compare with")
    power_real, power_synthetic = radial_power_spectrum(real)[1:], radial_power_spectrum(synthetic)[1:]
    floor = POWER_FLOOR * power_real.max()
    difference = np.log(np.maximum(power_real, floor)) - np.log(np.maximum(power_synthetic, floor))
    return float(np.sqrt(np.mean(difference**2)))


class LpipsUnavailable(RuntimeError):
    """The pretrained AlexNet cannot be had; the message says why, which file it is and where to put it."""


def find_alexnet(path: str | Path | None = None) -> Path:
    """The checked file of AlexNet's weights: `path`, else $PETCT_ALEXNET, else torch.hub's folder, else downloaded.

    A file that is named but missing, a failed download and a file with another SHA-256 raise LpipsUnavailable.
    """
    import torch

    named = path or os.environ.get("PETCT_ALEXNET")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    place = Path(named).expanduser() if named else folder / ALEXNET_FILE
    help_text = f"put {ALEXNET_FILE} ({ALEXNET_URL}) into {folder}, or its path into PETCT_ALEXNET"
    if named and not place.is_file():
        raise LpipsUnavailable(f"there is no file {place}; {help_text}")
    if not place.is_file():
        try:
            _download_alexnet(place)
        except (OSError, RuntimeError, HTTPException) as error:
            raise LpipsUnavailable(f"{ALEXNET_FILE} could not be downloaded ({error}); {help_text}") from error
    with place.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(ALEXNET_SHA256):
        raise LpipsUnavailable(f"{place} has SHA-256 {digest[:8]}…, not {ALEXNET_SHA256}…; {help_text}")
    return place


def _download_alexnet(place: Path) -> None:
    """torch.hub's download, which checks the SHA-256 and renames at the end; OSError without a network."""
    import torch

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(ALEXNET_URL, str(place), hash_prefix=ALEXNET_SHA256, progress=False)
    finally:
        socket.setdefaulttimeout(before)


@functools.cache  # it runs once, and the cache keeps the library object, and with it the definitions, alive
def _ensure_torchvision_imports() -> "torch.library.Library | None":
    """Let a CUDA-built torchvision be imported beside a CPU torch; None where its own extension loads.

    Such an import fails with "operator torchvision::nms does not exist", though LPIPS never calls these operators:
    declaring the names that torchvision wants to describe is enough.
    """
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None  # the import that follows says so better
    folder = Path(spec.origin).parent
    try:
        torch.ops.load_library(str(next(folder.glob("_C.*"), folder / "_C.so")))
        return None
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")  # unlike DEF, not the only one allowed
    described = (folder / "_meta_registrations.py").read_text(encoding="utf-8")
    for name in re.findall(r'register_fake\("torchvision::(\w+)"\)', described):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor x) -> Tensor")
    return library


def lpips_model(path: str | Path | None = None) -> "torch.nn.Module":
    """LPIPS v0.1 (Zhang et al. 2018) on the real pretrained AlexNet; LpipsUnavailable as for `find_alexnet`."""
    import torch

    return _lpips_on(torch.load(find_alexnet(path), map_location="cpu", weights_only=True))


def _lpips_on(trunk: "dict[str, torch.Tensor]") -> "torch.nn.Module":
    """LPIPS' trained heads, from the package, on AlexNet's layers `trunk` (named as in torchvision); quiet, frozen."""
    _ensure_torchvision_imports()
    import lpips as package
    import torch

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # the random start must not cost a seed
        warnings.simplefilter("ignore")
        model = package.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)  # heads go to the CPU
    # lpips cuts the trunk into slices: its "slice2.3.weight" is torchvision's "features.3.weight"
    model.net.load_state_dict({name: trunk[f"features.{name.split('.', 1)[1]}"] for name in model.net.state_dict()})
    return model.requires_grad_(False).eval()


def lpips(real: np.ndarray, synthetic: np.ndarray, model: "torch.nn.Module", *, window: tuple[float, float]) -> float:
    """Perceptual distance by `model`, the mean over slices; no unit, 0 for identical images (Zhang et al. 2018).

    Stacks (n, H, W), clipped to the display window (low, high) in their unit, scaled to [-1, 1] and repeated to
    three channels. Errors as for `mae`, and ValueError for an empty window.
    """
    import torch

    real, synthetic, _ = _checked(real, synthetic)
    low, high = window
    _check_range("window", low, high)
    device = next(model.parameters()).device
    total = 0.0
    for start in range(0, len(real), LPIPS_BATCH):
        pair = np.stack([stack[start : start + LPIPS_BATCH, None] for stack in (real, synthetic)])  # (2, B, 1, H, W)
        scaled = 2 * (np.clip(pair, low, high) - low) / (high - low) - 1
        colour = torch.from_numpy(scaled.astype(np.float32)).to(device).expand(-1, -1, 3, -1, -1)  # (2, B, 3, H, W)
        with torch.no_grad():
            total += float(model(colour[0], colour[1]).sum())
    return total / len(real)


def score_patient(
    real: np.ndarray,
    synthetic: np.ndarray,
    mask: np.ndarray,
    *,
    data_range: float,
    unit: str,
    clip: tuple[float, float],
    lpips_model: "torch.nn.Module | None" = None,
    lpips_window: tuple[float, float] | None = None,
) -> list[Row]:
    """Scores of one patient's stack (n, H, W) in the body: rows of region, metric, value and unit.

    Both stacks are clipped to `clip` (low, high). `spectrum` and `lpips` need whole slices: they take those with
    some body, everything outside it set to low in both stacks, so that air and couch do not count. `lpips` needs
    the model and its display window. The mask is used for scoring only. Errors as for `mae`; no mask is one too.
    """
    if mask is None:
        raise ValueError("no mask: scores of the body would be swollen by air and couch")
    if lpips_model is not None and lpips_window is None:
        raise ValueError("lpips_model is given without lpips_window, its display window (low, high)")
    real, synthetic, mask = _checked(real, synthetic, mask)
    _check_range("clip", *clip)
    real, synthetic = np.clip(real, *clip), np.clip(synthetic, *clip)
    slices = mask.any(axis=(1, 2))
    real_body, synthetic_body = (np.where(mask, stack, clip[0])[slices] for stack in (real, synthetic))
    scores = [
        ("mae", mae(real, synthetic, mask), unit),
        ("mse", mse(real, synthetic, mask), f"{unit}^2"),
        ("rmse", rmse(real, synthetic, mask), unit),
        ("psnr", psnr(real, synthetic, data_range=data_range, mask=mask), "dB"),
        ("ssim", ssim(real, synthetic, data_range=data_range, mask=mask), "1"),
        ("spectrum", spectrum_distance(real_body, synthetic_body), "1"),
    ]
    if lpips_model is not None:
        scores.append(("lpips", lpips(real_body, synthetic_body, lpips_model, window=lpips_window), "1"))
    return [{"region": "body", "metric": metric, "value": value, "unit": unit} for metric, value, unit in scores]


def _check_rows(rows: Iterable[Row]) -> None:
    """ValueError for a row with other columns, a repeated score, or one metric in two units."""
    seen: set[tuple[str, ...]] = set()
    units: dict[tuple[str, ...], str] = {}
    for row in rows:
        if set(row) != set(SCORE_COLUMNS) or None in row.values():
            raise ValueError(f"a row has {row}, not one value for each of {SCORE_COLUMNS}")
        key = tuple(row[column] for column in KEY_COLUMNS)
        if key in seen:
            raise ValueError(f"repeated score: {dict(zip(KEY_COLUMNS, key, strict=True))}")
        seen.add(key)
        quantity = (row["direction"], row["region"], row["metric"])
        if units.setdefault(quantity, row["unit"]) != row["unit"]:
            raise ValueError(f"{quantity} is in {units[quantity]} and in {row['unit']}")


def _write_atomically(path: str | Path, text: str) -> None:
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_scores(rows: Sequence[Row], path: str | Path) -> None:
    """Write scores as csv, a row a score, under a temporary name first; ValueError for a repeated score."""
    _check_rows(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, SCORE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "value": float(row["value"])} for row in rows)
    _write_atomically(path, text.getvalue())


def read_scores(path: str | Path) -> list[Row]:
    """Scores as `write_scores` wrote them, the value as float; ValueError for other columns or a repeated score."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows: list[Row] = list(csv.DictReader(file))
    _check_rows(rows)
    return [{**row, "value": float(row["value"])} for row in rows]


def write_metrics(rows: Sequence[Row], path: str | Path) -> None:
    """Write `aggregate(rows)` as JSON, under a temporary name first."""
    _write_atomically(path, json.dumps(aggregate(rows), indent=2, allow_nan=False) + "\n")


def bootstrap_interval(values: Sequence[float], seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean over patients by 9999 resamples: BCa (Efron 1987), or percentile where BCa is undefined.

    (nan, nan) for fewer than 2 patients or non-finite values.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan, math.nan
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns where BCa is undefined, which is handled here
            rng = np.random.default_rng(seed)
            result = stats.bootstrap((values,), np.mean, confidence_level=level, method=method, rng=rng)
        low, high = map(float, result.confidence_interval)
        if math.isfinite(low) and math.isfinite(high):
            break
    return low, high


def aggregate(rows: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """{direction: {method: {region: {metric: {"mean", "ci_low", "ci_high", "n"}}}}}, with n patients.

    What is not finite is None, for JSON has no name for it. ValueError for a repeated score.
    """
    _check_rows(rows)
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in ("direction", "method", "region", "metric")), []).append(row["value"])
    result: dict[str, Any] = {}
    for (direction, method, region, metric), values in groups.items():
        low, high = bootstrap_interval(values, seed)
        numbers = {"mean": float(np.mean(values)), "ci_low": low, "ci_high": high}
        cell = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        by_region = result.setdefault(direction, {}).setdefault(method, {})
        by_region.setdefault(region, {})[metric] = {**cell, "n": len(values)}
    return result


def paired_test(
    rows: Sequence[Row], direction: str, method_a: str, method_b: str, metric: str, region: str = "body"
) -> dict[str, float | int | None]:
    """Wilcoxon's signed-rank test (1945), two-sided, of a minus b over the n patients that both methods have.

    Returns {"mean_difference", "p_value", "n"}. With n patients p cannot be below 2^(1-n): 5 patients never reach
    0.05 (0.0625), 6 do (0.031). It is exact up to 50 patients, up to 13 if differences are 0 or tied. The p-value is
    None with fewer than 2 patients, all-zero or non-finite differences. ValueError for a repeated score.
    """
    _check_rows(rows)
    values: dict[str, dict[str, float]] = {method_a: {}, method_b: {}}
    for row in rows:
        if row["method"] in values and (row["direction"], row["metric"], row["region"]) == (direction, metric, region):
            values[row["method"]][row["patient"]] = row["value"]
    a, b = values[method_a], values[method_b]
    both = sorted(a.keys() & b.keys())
    difference = np.array([a[patient] - b[patient] for patient in both])
    finite = len(both) > 0 and bool(np.isfinite(difference).all())
    testable = finite and len(both) >= 2 and bool(difference.any())
    return {
        "mean_difference": float(difference.mean()) if finite else None,
        "p_value": float(stats.wilcoxon(difference).pvalue) if testable else None,
        "n": len(both),
    }


def _tables(rows: Sequence[Row]) -> Iterator[tuple[str, list[list[str]]]]:
    """By direction, the title and the lines of cells, the header first; scores of the body only."""
    body = [row for row in rows if row["region"] == "body" and row["metric"] in TABLE_COLUMNS]
    units = {(row["direction"], row["metric"]): f" ({row['unit']})" for row in body if row["unit"] != "1"}
    for direction, methods in aggregate(body).items():
        counts = {cell["n"] for regions in methods.values() for cell in regions["body"].values()}
        n = str(max(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
        header = ["method", *(label + units.get((direction, name), "") for name, label in TABLE_COLUMNS.items())]
        lines = [
            [method, *(_cell(regions["body"].get(name), name in INTERVAL_COLUMNS) for name in TABLE_COLUMNS)]
            for method, regions in methods.items()
        ]
        yield f"{direction}, body, n = {n} patients, mean [95 % interval]", [header, *lines]


def _cell(score: Row | None, with_interval: bool) -> str:
    if score is None:
        return "n/a"
    if score["mean"] is None:
        return "not finite"
    show_interval = with_interval and score["ci_low"] is not None
    interval = f" [{score['ci_low']:.4g}, {score['ci_high']:.4g}]" if show_interval else ""
    return f"{score['mean']:.4g}{interval}"


def format_table(rows: Sequence[Row]) -> str:
    """Scores of the body as plain text for a terminal: a table a direction, a line a method in first-seen order."""
    tables = []
    for title, lines in _tables(rows):
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        tables.append("\n".join([title, *text]))
    return "\n\n".join(tables)


def markdown_table(rows: Sequence[Row]) -> str:
    """The same as `format_table`, as GitHub Markdown."""
    tables = []
    for title, (header, *lines) in _tables(rows):
        rule = ["---"] * len(header)
        text = [f"| {' | '.join(line)} |" for line in (header, rule, *lines)]
        tables.append("\n".join([f"**{title}**", "", *text]))
    return "\n\n".join(tables)
