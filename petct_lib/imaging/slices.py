"""One slice among its neighbours."""

from torch import Tensor


def neighbours_of(k: int, slices: int, neighbours: int) -> list[int]:
    """Numbers of the slices around slice k of a study, the study's first and last repeated beyond its ends.

    >>> neighbours_of(0, slices=10, neighbours=5)
    [0, 0, 0, 1, 2]
    """
    half = neighbours // 2
    return [min(max(j, 0), slices - 1) for j in range(k - half, k + half + 1)]


def middle(images: Tensor, neighbours: int = 1) -> Tensor:
    """The slice itself, (n, 1, H, W), of slices among their neighbours, (n, more, H, W); or it among fewer of them."""
    first = (images.shape[1] - neighbours) // 2
    return images[:, first : first + neighbours]
