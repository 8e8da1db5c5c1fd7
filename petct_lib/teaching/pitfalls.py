"""The field's mistakes, made on purpose, so that a notebook can show the number lie. Nothing else may call these."""

import numpy as np

from petct_lib.metrics import voxelwise


def copy_nearest(train_source: np.ndarray, train_target: np.ndarray, source: np.ndarray) -> np.ndarray:
    """A "translator" that learns nothing: to each source slice the target of the most similar training slice.

    Arrays (n, H, W) and (m, H, W); similar is what has the least sum of squared differences. It can only remember, and
    so it shows what a split by slice rewards.
    """
    train, new = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (train_source, source))
    distance = (train**2).sum(axis=1) - 2 * new @ train.T  # (m, n), but for what is the same in a row
    return np.asarray(train_target)[distance.argmin(axis=1)]


def memory_mae(source: np.ndarray, target: np.ndarray, mask: np.ndarray, is_test: np.ndarray) -> float:
    """MAE over the mask of `copy_nearest` on the slices that `is_test` (n,) marks, the others being its memory."""
    copied = copy_nearest(source[~is_test], target[~is_test], source[is_test])
    return voxelwise.mae(target[is_test], copied, mask[is_test])


def own_range_psnr(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray) -> float:
    """PSNR in dB with the real image's own range over the mask for a fixed one: not comparable between scans."""
    inside = real[mask]
    return voxelwise.psnr(real, synthetic, data_range=float(inside.max() - inside.min()), mask=mask)
