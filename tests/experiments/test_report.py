"""A finished run as a page and two cards: what they say is the run's, and nothing on them needs a network."""

import re
from html import unescape

import pytest

from petct_lib import WARNING, InputError
from petct_lib.cli import main
from petct_lib.common.files import read_json
from petct_lib.evaluation.compare import EVERYONE
from petct_lib.evaluation.methods import METHODS
from petct_lib.evaluation.tables import aggregate, read_scores
from petct_lib.experiments.report import findings, write_report
from petct_lib.metrics.rows import SCORE_COLUMNS


@pytest.fixture(scope="module")
def written(tiny_run):
    """By name, the texts that every run writes at its end."""
    return {name: (tiny_run / name).read_text() for name in ("report.html", "model_card.md", "data_card.md")}


def test_a_run_ends_with_its_report_and_the_command_writes_it_again(tiny_run, written, capsys):
    assert main(["report", str(tiny_run)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert {name: (tiny_run / name).read_text() for name in written} == written


def test_the_page_stands_alone(tiny_run, written):
    page = written["report.html"]
    sources = re.findall(r"(?:src|href)='([^']*)'", page) + re.findall(r'(?:src|href)="([^"]*)"', page)
    pictures = [source for source in sources if not source.startswith("#")]  # links within the page
    assert len(pictures) == len(list((tiny_run / "figures").glob("*.png"))) >= 10
    assert all(source.startswith("data:image/png;base64,") for source in pictures)
    assert not re.search(r"<(script|link|iframe)|@import|url\(", page)
    assert page.count("<figure>") == page.count("alt='") - page.count("alt=''"), "every picture has its text"
    assert WARNING in page[:3000]


def test_every_text_says_that_it_is_synthetic_and_not_for_diagnosis(written):
    for name, text in written.items():
        assert WARNING in text or name == "data_card.md"
    assert "not be used for" in written["model_card.md"]
    assert "Not for diagnosis" in written["model_card.md"]


def test_the_cards_have_the_runs_own_numbers(tiny_run, written):
    manifest, rows = read_json(tiny_run / "manifest.json"), read_scores(tiny_run / "scores.csv")
    means = aggregate(rows)
    for direction in ("pet2ct", "ct2pet"):
        line = next(
            li for li in written["model_card.md"].split(f"{direction}, body")[1].splitlines() if li.startswith("mean ")
        )
        assert f"{means[direction]['mean']['body']['mae']['mean']:.4g} [" in line
    stage2, sampling = manifest["stage2"], manifest["sampling"]
    for what in (
        manifest["commit"] or "unknown",
        f"flow {stage2['steps']['flow']} steps; pairs: real",
        f"ct2pet {stage2['residual_spectrum']['ct2pet'][0]:.3g} to",
        f"{sampling['samples']} samples of {sampling['steps']} midpoint steps",
        manifest["lpips"].split(":")[0],
    ):
        assert what in written["model_card.md"]
    for what in (manifest["data_fingerprint"], *manifest["suv_rules"], "lung: SEG"):
        assert what in written["data_card.md"]
    for card in ("model_card.md", "data_card.md"):
        heads = re.findall(r"^#+ (.*)$", written[card], re.M)
        assert all(re.search(rf"<h\d[^>]*>{re.escape(head)}", unescape(written["report.html"])) for head in heads)


def test_findings_say_who_is_worse_and_how_few_patients_there_are(tiny_run):
    manifest, rows = read_json(tiny_run / "manifest.json"), read_scores(tiny_run / "scores.csv")
    said = findings(manifest, rows)
    means = {m: one["body"]["mae"]["mean"] for m, one in aggregate(rows)["pet2ct"].items()}
    for other in ("cyclegan", "regression", "pix2pix"):
        [line] = [s for s in said if s.startswith("pet2ct: body MAE of `mean`") and f" `{other}`'s" in s]
        assert ("below" if means["mean"] < means[other] else "above") in line
        assert f"{abs(means[other] - means['mean']):.3g} HU" in line
    assert "With 2 test patients no paired test can reach p = 0.05." in said


BODY = {"mae": 50.0, "crps": 40.0, "crps_4": 30.0, "crps_8": 20.0, "spread_skill": 0.9, "coverage_80": 0.75}
UNITS = {"mae": "HU", "crps": "HU", "crps_4": "HU", "crps_8": "HU"}


def rows_of(scores, patient="p"):
    """Rows of the body, {method: {metric: value}}."""
    return [
        dict(zip(SCORE_COLUMNS, ("pet2ct", method, patient, "body", metric, value, UNITS.get(metric, "1"), "SEG"),
                 strict=True))
        for method, metrics in scores.items() for metric, value in metrics.items()
    ]  # fmt: skip


def test_findings_say_how_good_the_samples_are():
    rows = rows_of({"regression": {"mae": 60.0}, "sample": {"mae": 70.0}, "mean": BODY})
    rows += rows_of({"sample": {"two_sample_accuracy": 0.55}, "cyclegan": {"two_sample_accuracy": 0.9}}, EVERYONE)
    assert findings({"patients": {"test": 9}}, rows) == [
        "pet2ct: body MAE of `mean` is 10 HU below `regression`'s (one patient: no interval).",
        "pet2ct: the spread of the samples is 0.90 of the error of their mean (1: calibrated).",
        "pet2ct: 75% of the voxels lie in the central 80 % interval.",
        "pet2ct: CRPS of the samples is 40, 30, 20 HU (voxels, means of 4×4 and of 8×8 pixels); the MAE of "
        "`regression`, which is its CRPS of voxels, is 60 HU.",
        "pet2ct: two-sample accuracy of `sample` is 0.55 (0.5: looks real).",
    ]


def test_a_run_of_some_methods_only_has_findings_too():
    rows = rows_of({"cyclegan": {"mae": 90.0}, "regression": {"mae": 60.0}})
    [line] = findings({"patients": {"test": 9}}, rows)
    assert line.startswith("pet2ct: body MAE of `regression` is 30 HU below `cyclegan`'s")


def test_the_card_says_what_each_scored_method_is(tiny_run, written):
    scored = {row["method"] for row in read_scores(tiny_run / "scores.csv")}
    assert not {"unpaired_sample", "unpaired_mean"} & scored, "the profile trains none"
    for name, (what, question) in METHODS.items():
        assert (f"| `{name}` | {what} | {question} |" in written["model_card.md"]) == (name in scored), name


def test_nobody_and_no_machine_is_named(tiny_run, written):
    patients = [p for members in read_json(tiny_run / "splits.json").values() for p in members]
    for text in written.values():
        prose = re.sub(r"base64,[^']*", "", text)
        assert not [p for p in patients if p in prose]
        assert not re.search(r"PHANTOM-\d|/(home|root|work|tmp|Users)/", prose)


def test_a_folder_that_is_no_finished_run(tmp_path):
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        write_report(tmp_path)
