"""Whether synthetic images look like real ones: to a small classifier within slices, and along z.

Neither looks at where things are: an image of another patient may be perfectly realistic. Read both beside the errors.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from petct_lib.imaging.slices import evenly_spaced
from petct_lib.metrics import voxelwise

EPOCHS = 15  # chosen: enough for a blur of 0.7 voxels to be always told, with as few as 24 slices to learn from
DRAWS = 3  # of folds and initial weights; measured: on 5 patients one draw's accuracy was anything from 0.53 to 0.80
SLICES = 24  # a patient; chosen: neighbours are alike, so that more cost time and teach little
WIDTH = 16  # channels; chosen: texture needs few, and a small network has less to memorise patients with
CROP = 64  # pixels along x and y of the squares that it sees; chosen: cost does not grow with the slices' size
PAIRS = 4  # of one real and one synthetic slice, in a batch; chosen: with few patients, small batches give more steps
LEARNING_RATE = 5e-3  # AdamW's, at its highest; chosen: five times its default, for few steps
WEIGHT_DECAY = 1e-3  # chosen: small


def two_sample_accuracy(
    real: Sequence[np.ndarray],
    synthetic: Sequence[np.ndarray],
    *,
    seed: int,
    epochs: int = EPOCHS,
    slices: int = SLICES,
    draws: int = DRAWS,
) -> float:
    """How well a classifier tells real from synthetic slices of patients it has not seen: 0.5 not at all, 1 always.

    Classifier two-sample test (Lopez-Paz and Oquab 2017, ICLR), cross-validated in two folds of patients, `draws`
    times with other folds; the mean accuracy over draws and patients after the last epoch. `real[i]` and `synthetic[i]`
    are stacks (n, H, W) of patient i in the network's range [−1, 1], of which up to `slices`, evenly spread, count. It
    sees squares of CROP pixels, within the box around all that is not −1.
    With 5 patients of noise it scatters by 0.02 around 0.5, but by 0.15 where each stack has a brightness of its own by
    chance: far below 0.5 is chance, too. It runs on the CPU and leaves torch's random state as it was. ValueError for
    fewer than 2 patients, unequal shapes, and non-finite values.
    """
    pairs = _pairs(real, synthetic, slices)
    rng, accuracies = np.random.default_rng(seed), []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too, which nobody restores
        for _ in range(draws):
            order = rng.permutation(len(pairs))
            folds = (order[::2], order[1::2])
            for seen, unseen in (folds, folds[::-1]):
                model = _train([pairs[i] for i in seen], epochs)
                accuracies += [_accuracy(model, pairs[i]) for i in unseen]
    return float(np.mean(accuracies))


def _pairs(real: Sequence[np.ndarray], synthetic: Sequence[np.ndarray], slices: int) -> list[Tensor]:
    """By patient, the chosen slices (n, 2, h, w), real and synthetic, within the box of what is not background (−1).

    The box holds CROP pixels along each side at least, where the slices do. ValueError if they cannot be compared.
    """
    if len(real) != len(synthetic) or len(real) < 2:
        raise ValueError(
            f"{len(real)} real and {len(synthetic)} synthetic stacks must be of the same 2 patients or more"
        )
    if slices < 1:
        raise ValueError(f"slices must be 1 or more, not {slices}")
    if len(sizes := {np.shape(stack)[1:] for stack in real}) > 1:
        raise ValueError(f"the patients' slices must have one size, not {sorted(sizes)}")
    result = []
    for stacks in zip(real, synthetic, strict=True):
        a, b, _ = voxelwise.check_stacks(*stacks)
        chosen = evenly_spaced(len(a), slices, ends=True)
        pairs = np.stack([a[chosen], b[chosen]], axis=1)
        seen = (pairs > -1).any(axis=(0, 1))
        rows, columns = (_box(seen.any(axis=axis)) for axis in (1, 0))
        result.append(torch.from_numpy(pairs[:, :, rows, columns].copy()).float())
    return result


def _box(seen: np.ndarray) -> slice:
    """From the first to the last True of (n,), and CROP at least."""
    places = np.flatnonzero(seen)
    first, last = (places[0], places[-1] + 1) if len(places) else (0, 0)
    short = max(0, CROP - (last - first))
    first = max(0, min(first - short // 2, len(seen) - CROP))
    return slice(int(first), int(max(last, first + CROP)))


class _Classifier(nn.Sequential):
    """Slices (B, 1, H, W) → logits (B,), above 0 for synthetic.

    Full resolution first and the mean over all positions last: it sees texture well and the place of things hardly.
    Batch norm: without it the patients' own brightness drowns texture (a blur of 0.7 voxels was told in 80 %, with it
    always), and instance or group norm would hide a wrong contrast.
    """

    def __init__(self) -> None:
        w = WIDTH
        super().__init__(
            *_conv(1, w, 1), *_conv(w, w, 2), *_conv(w, 2 * w, 2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * w, 1), nn.Flatten(0),
        )  # fmt: skip


def _conv(a: int, b: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(a, b, 3, stride, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]


def _train(patients: Sequence[Tensor], epochs: int) -> nn.Module:
    """A classifier of the patients' pairs, (n, 2, h, w) each, trained with torch's global random state.

    One cycle of the rate (Smith 2018), and batch norm's statistics taken anew with the final weights: at a constant
    rate they lag behind, and classifiers that had learned called every slice real.
    """
    pairs = [pair for patient in patients for pair in patient]
    model = _Classifier().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches = -(-len(pairs) // PAIRS)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * batches)
    for _ in range(epochs):
        for chosen in torch.randperm(len(pairs)).split(PAIRS):
            loss = _loss(model, _augment([pairs[i] for i in chosen.tolist()]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    parts = (pairs[k : k + PAIRS] for k in range(0, len(pairs), PAIRS))
    update_bn((_flat(_augment(part)) for part in parts), model)
    return model.eval()


def _loss(model: nn.Module, pairs: Tensor) -> Tensor:
    """Cross-entropy; both slices of a pair are in the batch, so that classes balance and the anatomy tells nothing."""
    logits = model(_flat(pairs))  # (2 n,): real, synthetic, real, …
    return F.binary_cross_entropy_with_logits(logits, torch.tensor([0.0, 1.0]).repeat(len(pairs)))


def _flat(pairs: Tensor) -> Tensor:
    """(n, 2, h, w) → (2 n, 1, h, w)."""
    return pairs.flatten(0, 1)[:, None].contiguous(memory_format=torch.channels_last)


def _augment(pairs: Sequence[Tensor]) -> Tensor:
    """Random squares of CROP pixels (or the slices' size) of pairs (2, h, w), flipped at random: (n, 2, c, c).

    Real and synthetic alike.
    """
    squares = []
    for pair in pairs:
        height, width = (min(CROP, n) for n in pair.shape[1:])
        top, left = (int(at * (n - c + 1)) for at, n, c in zip(torch.rand(2).tolist(), pair.shape[1:], (height, width),
                                                                strict=True))  # fmt: skip
        squares.append(pair[:, top : top + height, left : left + width])
    flips = [axis for axis in (2, 3) if torch.rand(()) < 0.5]
    return torch.stack(squares).flip(flips)


@torch.no_grad()
def _accuracy(model: nn.Module, pairs: Tensor) -> float:
    """Share of one patient's slices (n, 2, h, w) that are classified right, half of them real.

    By the sum of the logits of squares that cover the slice.
    """
    rows, columns = (_starts(n) for n in pairs.shape[2:])
    squares = (pairs[:, :, y : y + CROP, x : x + CROP] for y in rows for x in columns)
    logits = sum(model(_flat(square)) for square in squares)
    return float(((logits.view(-1, 2) > 0) == torch.tensor([False, True])).float().mean())


def _starts(n: int) -> list[int]:
    """Where squares of CROP begin that cover n pixels, evenly spread."""
    crop = min(CROP, n)
    return np.linspace(0, n - crop, -(-n // crop)).round().astype(int).tolist()


def coherence(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray, lengths: Sequence[int] | None = None) -> float:
    """Change from slice to slice beside the real one's: 1 as smooth along z, above 1 it flickers, below it is smoother.

    The mean of |s[k + 1] − s[k]| over the voxels that are in the mask in both slices, synthetic by real, of stacks
    (n, H, W) of any unit. `lengths`: slices of each study of the stack, where they lie one after the other; None: one
    study. ValueError for unequal shapes, values that are not finite, and an empty or non-bool mask, for lengths that
    are not the stack's, where no voxel has a neighbour, and for real images that do not change along z.
    """
    real, synthetic, mask = voxelwise.check_stacks(real, synthetic, mask)
    inside = mask[1:] & mask[:-1] & _same_study(len(real), lengths)[:, None, None]  # (n − 1, H, W)
    if not inside.any():
        raise ValueError(f"no voxel of {real.shape} is in the mask in two neighbouring slices of a study")
    change_real, change = (float(np.abs(np.diff(stack, axis=0))[inside].mean()) for stack in (real, synthetic))
    if change_real == 0:
        raise ValueError(f"real {real.shape} is constant along z: no change to compare with")
    return change / change_real


def _same_study(n: int, lengths: Sequence[int] | None) -> np.ndarray:
    """Whether slices k and k + 1 of n are of one study, bool (n − 1,)."""
    lengths = [n] if lengths is None else list(lengths)
    if sum(lengths) != n or min(lengths) < 1:
        raise ValueError(f"lengths {lengths} must be 1 or more each, and {n} slices together")
    study = np.repeat(np.arange(len(lengths)), lengths)
    return study[1:] == study[:-1]
