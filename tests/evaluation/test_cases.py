"""A test patient with images and masks."""

from dataclasses import replace

import numpy as np
import pytest
from scored_cases import case_of, value

from petct_lib.evaluation.cases import Case, add_regions, take_center_slice
from petct_lib.evaluation.scoring import score_case
from petct_lib.imaging.intensity import Intensity


def test_a_region_around_the_diaphragm_and_one_with_air_and_couch():
    body, lung = np.zeros((40, 16, 16), bool), np.zeros((40, 16, 16), bool)
    body[:, 4:12, 4:12] = True
    lung[20:30, 6:9, 6:9] = lung[35:, 6:9, 6:9] = True  # two studies, the second from slice 32 on
    real = np.where(body, 40.0 + np.arange(40)[:, None, None], -1000.0)
    values = Case("p", None, real, {"body": body, "lung": lung}, {"body": "HU threshold", "lung": "SEG"}, {},
                 lengths=(32, 8), voxel_mm=(10.0, 5.0, 5.0))  # fmt: skip
    case = add_regions(values)
    near = np.flatnonzero(case.masks["diaphragm"].any(axis=(1, 2)))
    assert near.tolist() == [*range(17, 24), *range(32, 39)], "30 mm on both sides of 20 and 35, within a study"
    assert case.masks["image"].all()
    assert case.sources["image"] == "none"
    case = replace(case, images={"off": np.where(body, real + 50, real)})
    rows = score_case(case, "pet2ct", Intensity())
    assert value(rows, "off", "mae", "diaphragm") == value(rows, "off", "mae") == 50
    assert value(rows, "off", "mae", "image") == pytest.approx(50 * body.mean()), "air makes any error small"
    assert value(rows, "off", "psnr", "image") > value(rows, "off", "psnr") + 3
    recess = lung.copy()
    recess[15:20, 6, 6:9] = True  # it goes further down behind, and that is not the dome
    deep = add_regions(replace(values, masks={"body": body, "lung": recess}))
    assert np.array_equal(deep.masks["diaphragm"], case.masks["diaphragm"])
    no_lung = add_regions(replace(values, masks={**values.masks, "lung": np.zeros_like(body)}))
    assert "diaphragm" not in no_lung.masks


def test_middle_slice_is_the_middle_one(prepared):
    methods = {"atlas": 0, "cyclegan": 1, "regression": 2, "sample": 3, "mean": 4}
    case = case_of(prepared, "ct", **{m: lambda real, body, n=n: real + n for m, n in methods.items()})
    row, k = take_center_slice(replace(case, spread=case.body + 7.0)), len(case.real) // 2
    assert list(row) == ["source", "coarse", "regression", "sample", "mean", "spread", "real"]
    for name, n in {"coarse": 1, "regression": 2, "sample": 3, "mean": 4, "real": 0}.items():
        assert np.array_equal(row[name], case.real[k] + n), name
    assert np.array_equal(row["spread"], case.body[k] + 7.0)
    assert np.array_equal(row["source"], case.source[k])
    assert list(take_center_slice(replace(case, images={}))) == ["source", "real"]


def test_studies_of_a_patient_are_scored_apart():
    chest, solid = np.full((12, 40, 40), -1000.0), np.full((12, 40, 40), -1000.0)
    body, lung = np.zeros(chest.shape, bool), np.zeros(chest.shape, bool)
    body[:, 4:36, 4:36] = True
    lung[2:10, 10:30, 8:18] = lung[2:10, 10:30, 22:32] = True
    chest[body] = solid[body] = 40.0
    chest[lung] = -850.0
    twice = {"body": np.concatenate([body, body])}
    real = np.concatenate([chest, chest])
    result = {}
    for name, parts in (("first", (chest, solid)), ("second", (solid, chest))):
        case = Case("p", None, real, twice, {"body": "HU threshold"}, {"m": np.concatenate(parts)},
                    lengths=(12, 12), voxel_mm=(10.0, 10.0, 10.0))  # fmt: skip
        rows = score_case(case, "pet2ct", Intensity())
        result[name] = value(rows, "m", "dice", "lung")
        assert [r["mask"] for r in rows if r["metric"] == "dice"] == ["HU threshold"]
    assert result["first"] == result["second"] == pytest.approx(0.5)
