"""LPIPS (Zhang et al. 2018) on the real pretrained AlexNet, or not at all: a random trunk is never called LPIPS."""

import functools
import hashlib
import importlib.util
import os
import re
import socket
import warnings
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from petct_lib.metrics.voxelwise import check_range, check_stacks

if TYPE_CHECKING:
    import torch

ALEXNET_FILE = "alexnet-owt-7be5be79.pth"  # torchvision's AlexNet_Weights.IMAGENET1K_V1, 233 MB
ALEXNET_SHA256 = "7be5be79"  # the first digits, those in the file's name
ALEXNET_URL = f"https://download.pytorch.org/models/{ALEXNET_FILE}"
DOWNLOAD_TIMEOUT_S = 10.0  # for each answer of the server: without a network it must fail fast
LPIPS_BATCH = 16  # slices at a time: bounds the memory, changes no score


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
    shown = str(folder).replace(str(Path.home()), "~")  # the message ends up in notebooks, the home folder should not
    help_text = f"put {ALEXNET_FILE} ({ALEXNET_URL}) into {shown}, or its path into PETCT_ALEXNET"
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

    Stacks (n, H, W), clipped to the display window (low, high) in their unit, scaled to [-1, 1] and repeated to three
    channels. ValueError for unequal shapes, values that are not finite, and an empty window.
    """
    import torch

    real, synthetic, _ = check_stacks(real, synthetic)
    low, high = window
    check_range("window", low, high)
    device = next(model.parameters()).device
    total = 0.0
    for start in range(0, len(real), LPIPS_BATCH):
        pair = np.stack([stack[start : start + LPIPS_BATCH, None] for stack in (real, synthetic)])  # (2, B, 1, H, W)
        scaled = 2 * (np.clip(pair, low, high) - low) / (high - low) - 1
        colour = torch.from_numpy(scaled.astype(np.float32)).to(device).expand(-1, -1, 3, -1, -1)  # (2, B, 3, H, W)
        with torch.no_grad():
            total += float(model(colour[0], colour[1]).sum())
    return total / len(real)
