"""Whether an uncertainty map knows the error: does it order the voxels by their error, and is it of the right size?

`predicted` is the absolute error that a model expects of each voxel, `error` the absolute error it made, both of one
shape and in the image's unit, nowhere below 0; `mask`, bool of that shape, says which voxels count. All functions
raise ValueError for unequal shapes, a mask that is not bool or is empty, and values that are not finite or below 0.
"""

import numpy as np
from scipy import stats


def rank_correlation(predicted: np.ndarray, error: np.ndarray, mask: np.ndarray) -> float | None:
    """Spearman's rank correlation over the masked voxels, −1 to 1; None where predicted or error is constant.

    1: voxels in the order of their errors, whatever the size. Errors scatter around even a perfect expectation, so
    that 1 is out of reach.

    >>> error = np.array([1.0, 2.0, 4.0])
    >>> round(rank_correlation(error**2, error, np.ones(3, bool)), 6)  # the wrong size, the right order
    1.0
    """
    predicted, error = _masked(predicted, error, mask)
    if np.ptp(predicted) == 0 or np.ptp(error) == 0:
        return None
    return float(stats.spearmanr(predicted, error).statistic)


def deciles(predicted: np.ndarray, error: np.ndarray, mask: np.ndarray, groups: int = 10) -> list[tuple[float, float]]:
    """(mean predicted, mean error) of groups of equal number, in the image's unit, from low to high prediction.

    The points of a reliability diagram. Ties stay in the order of the array; where the number does not divide, the
    first groups have one voxel more. ValueError too for fewer voxels than groups.
    """
    predicted, error = _masked(predicted, error, mask)
    if not 1 <= groups <= len(predicted):
        raise ValueError(f"{len(predicted)} voxels cannot make {groups} groups: one to a group is the least")
    order = np.array_split(np.argsort(predicted, kind="stable"), groups)
    return [(float(predicted[voxels].mean()), float(error[voxels].mean())) for voxels in order]


def calibration_error(predicted: np.ndarray, error: np.ndarray, mask: np.ndarray) -> float:
    """Relative expected calibration error: mean over deciles of |mean predicted − mean error|, by the mean error.

    0 is perfect, no unit. After Levi et al. 2022 (Sensors 22:5540), who compare the roots of mean variance and of
    mean squared error in bins, each bin by its own predicted value. Adapted to absolute errors, and all bins are
    divided by the one mean error, or those with hardly any would rule. A map that is constant at the mean error has
    deciles by position, and may come out near 0: read it with `rank_correlation`. ValueError too for fewer than 10
    voxels, and where there is no error.
    """
    pairs = np.array(deciles(predicted, error, mask))  # (10, 2)
    mean_error = float(_masked(predicted, error, mask)[1].mean())
    if mean_error == 0:
        raise ValueError("error is 0 in the whole mask: nothing to be relative to")
    return float(np.abs(pairs[:, 0] - pairs[:, 1]).mean()) / mean_error


def scale_to_fit(predicted: np.ndarray, error: np.ndarray, mask: np.ndarray) -> float:
    """The factor s that makes the mean of s · predicted over the mask the mean error: Σ error / Σ predicted.

    Not the maximum likelihood: for Laplace errors of scale b = s · predicted, the log-likelihood
    −Σ (log(2 s predicted) + error / (s predicted)) has its maximum at s = mean(error / predicted), which a few
    predictions near 0 (air, and what a clip makes exact) throw anywhere. The ratio of means estimates the same s if
    the model holds, and is bounded by what it averages. Fit it on other patients than those it is judged by.
    ValueError too where predicted is 0 in the whole mask.

    >>> scale_to_fit(np.array([1.0, 3.0]), np.array([2.0, 6.0]), np.ones(2, bool))
    2.0
    """
    predicted, error = _masked(predicted, error, mask)
    if not predicted.any():
        raise ValueError(f"predicted is 0 in all {predicted.size} voxels of the mask: no factor can fit it")
    return float(error.sum() / predicted.sum())


def _masked(predicted: np.ndarray, error: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The masked voxels of both, (voxels,) float64; ValueError if they cannot be compared."""
    predicted, error, mask = np.asarray(predicted, np.float64), np.asarray(error, np.float64), np.asarray(mask)
    if not predicted.shape == error.shape == mask.shape or mask.dtype != bool:
        shapes = f"predicted {predicted.shape}, error {error.shape} and mask {mask.shape} of {mask.dtype}"
        raise ValueError(f"{shapes} must have one shape, the mask bool")
    if not mask.any():
        raise ValueError(f"empty mask: 0 of {mask.size} voxels to judge by")
    for name, values in (("predicted", predicted), ("error", error)):
        if bad := int(np.count_nonzero(~(np.isfinite(values) & (values >= 0)))):
            raise ValueError(f"{name} has {bad} values of {values.size} that are not finite or below 0")
    return predicted[mask], error[mask]
