"""The rows of scores: their file, their means over patients, and their tables."""

import json
import math
import os

import pytest

from petct_lib.evaluation import compare, tables
from petct_lib.metrics import statistics
from petct_lib.metrics.rows import SCORE_COLUMNS


def rows_of(direction="pet2ct", method="refined", region="body", metric="mae", unit="HU", values=(1.0, 2.0, 6.0)):
    return [
        dict(zip(SCORE_COLUMNS, (direction, method, f"p{i}", region, metric, value, unit, "SEG"), strict=True))
        for i, value in enumerate(values)
    ]


# Files


def test_csv_round_trip(tmp_path):
    rows = rows_of(values=(0.1 + 0.2, 1e-17, -3)) + rows_of(metric="psnr", unit="dB", values=(math.inf,))
    tables.write_scores(rows, tmp_path / "scores.csv")
    assert tables.read_scores(tmp_path / "scores.csv") == rows
    assert os.listdir(tmp_path) == ["scores.csv"]
    first, second = (tmp_path / "scores.csv").read_bytes().decode().split("\n")[:2]
    assert first == "direction,method,patient,region,metric,value,unit,mask"
    assert second == "pet2ct,refined,p0,body,mae,0.30000000000000004,HU,SEG"


@pytest.mark.parametrize("write", [tables.write_scores, tables.write_metrics])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, write):
    def fail(source, target):
        raise OSError("disk full")

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(rows_of(), path)
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_text() == "old"


def test_bad_rows_are_refused(tmp_path):
    good = rows_of()
    twice = [*good, {**good[0], "value": 9.0}]
    short = [{key: value for key, value in good[0].items() if key != "unit"}]
    units = good + rows_of(method="copy", unit="SUV")
    path = tmp_path / "scores.csv"
    for rows, message in ((twice, "repeated score.*p0"), (short, "a row has"), (units, "in HU and in SUV")):
        for use in (lambda rows: tables.write_scores(rows, path), tables.aggregate, tables.format_table):
            if use is not tables.format_table or rows is not short:
                with pytest.raises(ValueError, match=message):
                    use(rows)
    assert not path.exists()
    with pytest.raises(ValueError, match="repeated score"):
        compare.paired_tests(twice, "pet2ct", "copy")
    path.write_text("direction,method\npet2ct,copy\n")
    with pytest.raises(ValueError, match="a row has"):
        tables.read_scores(path)
    path.write_text(",".join(SCORE_COLUMNS) + "\npet2ct,copy,p0,body\n")
    with pytest.raises(ValueError, match="a row has"):
        tables.read_scores(path)


def test_metrics_json_is_valid(tmp_path):
    rows = rows_of() + rows_of(metric="psnr", unit="dB", values=(math.inf, 20.0))
    tables.write_metrics(rows, tmp_path / "metrics.json")
    text = (tmp_path / "metrics.json").read_text()
    assert "Infinity" not in text
    assert "NaN" not in text
    assert json.loads(text) == tables.aggregate(rows)
    assert os.listdir(tmp_path) == ["metrics.json"]


# Over patients


def test_aggregate_by_hand():
    rows = (
        rows_of() + rows_of(method="copy", values=(5.0,)) + rows_of(metric="psnr", unit="dB", values=(20.0, math.inf))
    )
    rows += rows_of(direction="ct2pet", region="lesion", unit="SUV", values=(0.5, 0.5))
    result = tables.aggregate(rows)
    cell = result["pet2ct"]["refined"]["body"]["mae"]
    assert (cell["mean"], cell["n"]) == (3.0, 3)
    assert 1 <= cell["ci_low"] < 3 < cell["ci_high"] <= 6
    empty = {"ci_low": None, "ci_high": None}
    assert result["pet2ct"]["copy"]["body"]["mae"] == {"mean": 5.0, **empty, "n": 1}
    assert result["pet2ct"]["refined"]["body"]["psnr"] == {"mean": None, **empty, "n": 2}
    assert result["ct2pet"] == {"refined": {"lesion": {"mae": {"mean": 0.5, "ci_low": 0.5, "ci_high": 0.5, "n": 2}}}}


def test_aggregate_hands_the_seed_on(rng):
    values = rng.gamma(2, 10, 12).tolist()
    cell = tables.aggregate(rows_of(values=values), seed=7)["pet2ct"]["refined"]["body"]["mae"]
    assert (cell["ci_low"], cell["ci_high"]) == statistics.bootstrap_interval(values, seed=7)


# Tables


@pytest.fixture
def table_rows():
    rows = rows_of(method="zebra") + rows_of(method="atlas", values=(4.0, 4.0, 4.0))  # not in alphabetical order
    rows += rows_of(method="zebra", metric="psnr", unit="dB", values=(20.0, 21.0, 23.5))
    rows += rows_of(method="atlas", metric="psnr", unit="dB", values=(20.0, math.inf, 20.0))
    rows += rows_of(method="zebra", metric="ssim", unit="1", values=(0.8, 0.8, 0.8))
    rows += rows_of(method="zebra", region="lung", values=(777.0, 777.0, 777.0))
    rows += rows_of(method="lung_only", region="lung", values=(777.0, 777.0, 777.0))
    return rows + rows_of(direction="ct2pet", method="copy", metric="rmse", unit="SUV", values=(1.25,))


def test_plain_table(table_rows):
    low, high = statistics.bootstrap_interval([1.0, 2.0, 6.0])
    first, second = tables.format_table(table_rows).split("\n\n")
    title, header, zebra, atlas = first.splitlines()
    assert title.startswith("pet2ct, body, n = 3 patients")
    names = ["SSIM", "MS-SSIM", "spectrum", "two-sample", "LPIPS"]
    assert header.split() == ["method", "MAE", "(HU)", "RMSE", "PSNR", "(dB)", *names]
    assert zebra.split() == f"zebra 3 [{low:.4g}, {high:.4g}] n/a 21.5 0.8 [0.8, 0.8] n/a n/a n/a n/a".split()
    assert atlas.split() == ["atlas", "4", "[4,", "4]", "n/a", "not", "finite", "n/a", "n/a", "n/a", "n/a", "n/a"]
    assert zebra.index("21.5") == atlas.index("not finite") == header.index("PSNR")
    title, header, copy = second.splitlines()
    assert title.startswith("ct2pet, body, n = 1 patient")
    assert "RMSE (SUV)" in header
    assert copy.split() == ["copy", "n/a", "1.25", *["n/a"] * 6]
    assert "777" not in first


def test_the_table_says_when_methods_have_unequal_numbers_of_patients():
    rows = rows_of() + rows_of(method="copy", values=(1.0, 2.0))
    assert "n = 2 to 3 patients" in tables.format_table(rows)
    assert tables.format_table([]) == ""


def test_table_of_the_samples_has_the_mae_beside_it_and_methods_of_one_image_a_dash():
    rows = rows_of() + rows_of(method="mean") + rows_of(method="mean", metric="crps", values=(0.5, 1.0, 1.5))
    title, header, first, mean = tables.format_distribution(rows).splitlines()
    assert title.startswith("pet2ct, body, mean over patients")
    assert header.split()[:3] == ["MAE", "(HU)", "CRPS"]
    assert first.split()[2:] == ["-"] * 7
    assert mean.split()[2:] == ["1", *["-"] * 6]
    assert tables.format_distribution(rows_of()) == ""


def test_table_of_regions_names_the_source_of_the_masks():
    rows = rows_of() + rows_of(region="lung", values=(3.0, 5.0)) + rows_of(method="copy")
    text = tables.format_regions(rows)
    assert text.splitlines() == [
        "pet2ct, mae (HU) by region, mean",
        "          body  lung",
        "mask by   SEG   SEG",
        "patients  3     2",
        "refined   3     4",
        "copy      3     n/a",
    ]


def test_further_scores_as_text():
    def row(method, metric, value, region="body", patient="a"):
        return {"direction": "ct2pet", "method": method, "patient": patient, "region": region, "metric": metric,
                "value": value, "unit": "1", "mask": "SEG"}  # fmt: skip

    rows = [
        row("copy", "coherence", 1.5), row("copy", "coherence", 2.5, patient="b"), row("copy", "missed", 3.0, "lesion"),
        row("refined", "coherence", 1.0), row("refined", "mae", 9.0),
    ]  # fmt: skip
    assert tables.format_further(rows).splitlines() == [
        "ct2pet, mean", "          coherence  missed", "patients  2          1", "copy      2          3",
        "refined   1          n/a",
    ]  # fmt: skip
