"""Methods and runs compared: pairs by patient, seeds averaged and not counted, and runs that may not be mixed."""

import math

import numpy as np
import pytest
from scipy import stats

from petct_lib import InputError
from petct_lib.cli import main
from petct_lib.common.files import write_json
from petct_lib.evaluation import compare
from petct_lib.evaluation.tables import read_scores, write_scores
from petct_lib.metrics.rows import SCORE_COLUMNS


def rows_of(method="mean", values=(1.0, 2.0, 6.0), *, names="abcdefghij", metric="mae", region="body"):
    return [
        dict(zip(SCORE_COLUMNS, ("pet2ct", method, p, region, metric, value, "HU", "SEG"), strict=True))
        for p, value in zip(names, values, strict=False)
    ]


def test_a_test_pairs_by_patient():
    a, b = [5.0, 4.0, 7.0, 9.0, 3.0, 8.0], [4.5, 4.2, 5.0, 6.0, 2.0, 4.0]
    rows = rows_of("copy", a) + rows_of(values=[*b, 99.0])[::-1]  # in another order, with one more patient
    rows += rows_of(values=b, region="lung") + rows_of(values=b, metric="rmse")
    [test] = compare.paired_tests(rows, "pet2ct", "mean")
    assert (test.method, test.n) == ("copy", 6)
    assert test.difference == pytest.approx((sum(a) - sum(b)) / 6)
    assert test.low < test.difference < test.high
    assert test.p == test.p_holm == stats.wilcoxon(a, b, method="exact").pvalue
    assert test.effect == pytest.approx(20 / 21 - 1 / 21)  # only the difference of least size is below 0


def test_the_number_of_tests_counts():
    rows = rows_of(values=[0.0] * 6)
    rows += [row for k in range(3) for row in rows_of(f"m{k}", np.arange(1.0, 7) + k)]
    tests = compare.paired_tests(rows, "pet2ct", "mean")
    assert [test.p for test in tests] == pytest.approx([1 / 32] * 3)
    assert [test.p_holm for test in tests] == pytest.approx([3 / 32] * 3)
    [alone] = compare.paired_tests(rows, "pet2ct", "mean", methods=["m1"])
    assert alone.p_holm == pytest.approx(1 / 32)


def test_what_cannot_be_tested_says_so():
    [test] = compare.paired_tests(rows_of(values=(1.0,)) + rows_of("copy", (2.0,)), "pet2ct", "mean")
    assert (test.difference, test.p, test.p_holm, test.n) == (1.0, None, None, 1)
    assert math.isnan(test.low)
    with pytest.raises(InputError, match="mean: has no mae of lung in pet2ct"):
        compare.paired_tests(rows_of(), "pet2ct", "mean", region="lung")


@pytest.fixture
def run(tmp_path):
    """Makes a run folder of three test patients, with a salt, that is with pseudonyms, of its own."""

    def make(name, values, *, seed=0, width=8, test=(0, 1, 3), scored=None, **manifest):
        folder, patients = tmp_path / name, [f"{name}-{k}" for k in range(4)]
        (folder / "prepared").mkdir(parents=True)
        write_json({"studies": [{"patient": p} for p in [*patients, patients[0]]]}, folder / "prepared" / "index.json")
        roles = {"train_pet": [p for k, p in enumerate(patients) if k not in test], "train_ct": [], "refine": []}
        write_json({**roles, "test": [patients[k] for k in test][::-1]}, folder / "splits.json")
        parameters = {"02_cyclegan_training": {"seed": seed, "width": width}, "01_data_exploration": {"seed": 0}}
        held = {"finished": True, "parameters": parameters, "data_fingerprint": "f" * 64, "commit": "one", **manifest}
        write_json(held, folder / "manifest.json")
        names = [patients[k] for k in scored or test]
        write_scores(
            rows_of(values=values, names=names) + rows_of("copy", (9, 9, 9), names=names), folder / "scores.csv"
        )
        return folder

    return make


def test_seeds_are_averaged_patient_by_patient_and_do_not_swell_n(run):
    folders = [run("a", (1.0, 2.0, 6.0)), run("b", (3.0, 2.0, 0.0), seed=1)]
    rows = compare.merge_runs([compare.load_run(folder) for folder in folders])
    values = compare.values_by_patient(rows, "pet2ct", "mae")
    assert values["mean"] == {"0": 2.0, "1": 2.0, "3": 3.0}
    text = compare.compare_runs(folders, reference="mean", metric="mae", region="body")
    title, _, head, _, mean, copy = text.splitlines()
    assert "a (2)" in title
    assert head == "pet2ct, mae of body (HU)"
    assert mean.split()[:2] == ["mean", "2.333"]
    assert mean.split()[-1] == copy.split()[-1] == "3", "patients, not patients times seeds"


def test_other_settings_are_other_methods(run, capsys):
    folders = [run("a", (1.0, 2.0, 6.0)), run("wide", (1.0, 1.0, 1.0), width=64)]
    assert main(["compare", *map(str, folders)]) == 0
    shown = capsys.readouterr().out
    assert "a (1), wide (1)" in shown
    assert [line.split()[0] for line in shown.splitlines()[4:]] == ["a/mean", "a/copy", "wide/mean", "wide/copy"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"data_fingerprint": "0" * 64}, "other data"), ({"test": (0, 1, 2)}, "other test patients"),
     ({"finished": False}, "not finished"), ({"scored": (0, 1, 2)}, "has scores of 1 patients who are not test")],
)  # fmt: skip
def test_runs_that_must_not_be_mixed(run, capsys, change, message):
    folders = [run("a", (1.0, 2.0, 6.0)), run("b", (1.0, 2.0, 6.0), **change)]
    assert main(["compare", *map(str, folders)]) == 2
    assert message in capsys.readouterr().err


def test_one_training_twice_is_no_second_one(run, capsys):
    folder = run("a", (1.0, 2.0, 6.0))
    assert main(["compare", str(folder), str(folder)]) == 2
    assert "the same settings and seeds" in capsys.readouterr().err


def test_runs_of_one_name_and_of_other_code_stand_apart(run, tmp_path, capsys):
    folders = [run("a/quick", (1.0, 2.0, 6.0)), run("b/quick", (1.0, 2.0, 3.0), commit="other")]
    assert main(["compare", *map(str, folders)]) == 0
    lines = capsys.readouterr().out.splitlines()[4:]
    assert [line.split()[0] for line in lines] == [f"{f}/{m}" for f in folders for m in ("mean", "copy")]


def test_a_folder_that_is_no_run_and_a_score_that_is_not_there(run, tmp_path, capsys):
    assert main(["compare", str(tmp_path)]) == 2
    assert "has no manifest.json" in capsys.readouterr().err
    assert main(["compare", str(run("a", (1.0, 2.0, 6.0))), "--metric", "lpips"]) == 2
    assert "no score lpips of body" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "a"), "--reference", "nobody"]) == 2
    assert "nobody: has no mae" in capsys.readouterr().err


def of_everyone(method, accuracy):
    """A score of all test patients together, as `scoring.two_sample_rows` makes it."""
    [row] = rows_of(method, (accuracy,), names=[compare.EVERYONE], metric="two_sample_accuracy")
    return {**row, "unit": "1"}


def test_a_score_of_all_patients_together_is_averaged_over_seeds_and_has_no_test(run):
    folders = [run("a", (1.0, 2.0, 6.0)), run("b", (3.0, 2.0, 0.0), seed=1)]
    for folder, accuracy in zip(folders, (0.6, 0.8), strict=True):
        rows = read_scores(folder / "scores.csv")
        write_scores([*rows, of_everyone("mean", accuracy), of_everyone("copy", 1.0)], folder / "scores.csv")
    rows = compare.merge_runs([compare.load_run(folder) for folder in folders])
    values = compare.values_by_patient(rows, "pet2ct", "two_sample_accuracy")
    assert values == {"mean": {"all": pytest.approx(0.7)}, "copy": {"all": 1.0}}
    assert set(compare.values_by_patient(rows, "pet2ct", "mae")["mean"]) == {"0", "1", "3"}
    [test] = compare.paired_tests(rows, "pet2ct", "mean", "two_sample_accuracy")
    assert (test.difference, test.p, test.n) == (pytest.approx(0.3), None, 1)
    text = compare.compare_runs(folders, reference="mean", metric="two_sample_accuracy", region="body")
    assert [line.split() for line in text.splitlines()[-2:]] == [
        ["mean", "0.7", "-", "-", "-", "-", "all"], ["copy", "1", "+0.3", "-", "-", "-", "all"]
    ]  # fmt: skip
