"""The worst of a run, chosen by rule and not by hand: slices, missed lesions, invented hot spots."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from petct_lib.evaluation.cases import Case, split_studies, take_slice
from petct_lib.metrics import lesion_scores

APART = 3  # slices: neighbours of a bad slice are as bad, and show nothing new


def worst_slices(cases: Sequence[Case], n: int, method: str = "mean") -> list[dict]:
    """The n slices of all patients with the largest mean absolute error over the body, for `panels.translations`.

    Of the images as they are, not clipped to the scores' range. At least APART slices from a worse one of the same
    patient; slices with less than a tenth of the patient's largest body area do not count.
    """
    slices = []
    for case in cases:
        error = np.where(case.body, np.abs(case.images[method] - case.real), 0).sum(axis=(1, 2))
        area = case.body.sum(axis=(1, 2))
        mean = np.where(area >= 0.1 * area.max(), error / np.maximum(area, 1), -1)
        while mean.max() > 0:
            k = int(mean.argmax())
            slices.append((float(mean[k]), case, k))
            mean[max(0, k - APART) : k + APART + 1] = -1
    return [take_slice(case, k) for _, case, k in sorted(slices, key=lambda one: -one[0])[:n]]


def worst_misses(cases: Sequence[Case], n: int, method: str = "mean") -> list[dict]:
    """The n lesions that lost most of their SUVmax, each in the slice of its maximum; fewer where there are fewer.

    "place": row and column of the maximum, for `panels.translations` to ring.
    """
    spots = [
        (spot.real - spot.synthetic, case, spot)
        for case in cases
        if "lesion" in case.masks
        for spot in _spots(case, method, lesion_scores.find_lesions, "lesion")
        if spot.synthetic < spot.real
    ]
    return _ring_worst(spots, n)


def worst_inventions(cases: Sequence[Case], n: int, method: str = "mean") -> list[dict]:
    """The n invented hot regions that are furthest above the real SUV there, each in the slice of its maximum.

    "place" as for `worst_misses`.
    """
    spots = [
        (spot.synthetic - spot.real, case, spot)
        for case in cases
        for spot in _spots(case, method, partial(lesion_scores.find_invented_lesions, voxel_mm=case.voxel_mm), "body")
    ]
    return _ring_worst(spots, n)


def _spots(case: Case, method: str, find: Callable, region: str) -> list[lesion_scores.Spot]:
    """find(real, synthetic, mask) in each study by itself, with the places in the patient's stack."""
    numbered, first = [], 0
    for study, image in split_studies(case, case.images[method]):
        spots = find(study.real, image, study.masks[region])
        numbered += [replace(spot, place=(spot.place[0] + first, *spot.place[1:])) for spot in spots]
        first += len(image)
    return numbered


def _ring_worst(spots: list[tuple[float, Case, lesion_scores.Spot]], n: int) -> list[dict]:
    worst = sorted(spots, key=lambda one: -one[0])[:n]
    return [{**take_slice(case, spot.place[0]), "place": spot.place[1:]} for _, case, spot in worst]
