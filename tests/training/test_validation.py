"""The scores of a training, of stage 1 and of stage 2, on translations that are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from small_run import small_run

from petct_lib import InputError
from petct_lib.data.datasets import spread_slices
from petct_lib.data.prepare import Prepared
from petct_lib.imaging.directions import SOURCE, TARGET
from petct_lib.imaging.intensity import DECODE, ENCODE, Intensity
from petct_lib.inference.translator import encode_slices, noise_like, stage2_inputs
from petct_lib.metrics import voxelwise
from petct_lib.models.checkpoints import load_cyclegan
from petct_lib.models.cyclegan import CycleGAN, CycleGANSettings
from petct_lib.models.regression import Regression
from petct_lib.models.residual_flow import ResidualFlow
from petct_lib.training import validation
from petct_lib.training.validation import RefinerValidation, Validation

WINDOW = Intensity()
STAGE = SimpleNamespace()  # `answer` answers for it


def answer(monkeypatch, values):
    """`translate_coarse` gives `given(source, direction)`."""
    monkeypatch.setattr(
        validation, "translate_coarse", lambda stage, source, direction, window: values(source, direction)
    )


def truth_of(one):
    """What a perfect network does: finds the slices, or the study, that it is shown, and gives the other modality."""

    def values(source, direction):
        source_kind, target_kind = direction.split("2")
        for p in one.patients:
            if np.array_equal(p.real[source_kind], source):
                return p.real[target_kind]
        raise AssertionError("the slices are none of the validation's")

    return values


@pytest.fixture
def two(prepared):
    return Validation(prepared, prepared.patients[:2], WINDOW, slices=4)


def test_perfect_translations_score_perfectly(monkeypatch, two):
    answer(monkeypatch, truth_of(two))
    scores = two(STAGE)
    assert {k: v for k, v in scores.items() if k != "validation_lungless_percent"} == {
        "validation_mae_hu": 0, "validation_mae_suv": 0, "validation_score": 0, "validation_diversity_ct": 1,
        "validation_diversity_pet": 1, "validation_invented_percent": 0,
    }  # fmt: skip
    assert scores.get("validation_lungless_percent", 0) == 0
    assert all(type(value) is float for value in scores.values())


def test_one_picture_for_everything_has_no_diversity_and_an_error_known_by_hand(monkeypatch, prepared, two):
    answer(monkeypatch, lambda source, direction: np.zeros_like(source))
    scores = two(STAGE)
    assert scores["validation_diversity_ct"] == scores["validation_diversity_pet"] == 0
    means = []
    for patient in prepared.patients[:2]:
        ct, body = spread_slices(prepared, patient, ("ct", "body"), 4)
        means.append(np.abs(ct[body]).mean())
    assert scores["validation_mae_hu"] == pytest.approx(np.mean(means))


def test_the_score_is_the_mean_of_both_errors_in_network_units(monkeypatch, two):
    perfect = truth_of(two)
    for p in two.patients:  # inside the window on both sides
        p.real["ct"][:] = np.clip(p.real["ct"], -900, 1400)
        p.real["pet"][:] = 0.0
    answer(monkeypatch, lambda source, direction: _shifted(perfect, source, direction))
    # Different PET slices are needed to tell slices and patients apart, and for a diversity; only air has them.
    for k, p in enumerate(two.patients):
        p.real["pet"][~p.body] = np.linspace(0.1 + k, 0.9 + k, (~p.body).sum())
    scores = two(STAGE)
    assert scores["validation_mae_hu"] == pytest.approx(50, rel=1e-4)
    assert scores["validation_mae_suv"] == pytest.approx(15 / 4)
    # 50 HU of a window of 2524, and a quarter of the cap, whose root is a half: both of a range of 2.
    assert scores["validation_score"] == pytest.approx((2 * 50 / 2524 + 2 * 0.5) / 2, rel=1e-4)


def _shifted(perfect, source, direction):
    real = perfect(source, direction)
    return real + 50 if direction == "pet2ct" else np.full_like(real, 15 / 4)


def test_lung_painted_everywhere_is_seen(monkeypatch, prepared):
    lungless = Validation(prepared, prepared.patients[:1], WINDOW, slices=4)
    [patient] = lungless.patients
    patient.lung[:2] = False
    patient.real["ct"][:2][patient.body[:2]] = 40.0
    answer(monkeypatch, lambda source, direction: np.full_like(source, -850.0))
    scores = lungless(STAGE)
    assert scores["validation_invented_percent"] == 100
    assert scores["validation_lungless_percent"] == 100


def test_patients_without_a_lung_mask_leave_its_scores_to_the_others(monkeypatch, prepared):
    has_none, real_regions = prepared.patients[0], type(prepared).regions

    def without(self, patient):
        return {k: v for k, v in real_regions(self, patient).items() if k != "lung" or patient != has_none}

    monkeypatch.setattr(type(prepared), "regions", without)
    both = Validation(prepared, prepared.patients[:2], WINDOW, slices=4)
    other = Validation(prepared, prepared.patients[1:2], WINDOW, slices=4)
    alone = Validation(prepared, [has_none], WINDOW, slices=4)
    answer(monkeypatch, lambda source, direction: np.full_like(source, -850.0))
    key = "validation_invented_percent"
    assert both(STAGE)[key] == other(STAGE)[key]
    assert key not in alone(STAGE)
    assert "validation_lungless_percent" not in alone(STAGE)
    assert "validation_mae_hu" in alone(STAGE)


def test_the_slices_are_those_that_spread_slices_gives_and_each_once(prepared):
    patient = prepared.patients[0]
    [some] = Validation(prepared, [patient], WINDOW, slices=4).patients
    for kind, array in (*some.real.items(), ("body", some.body), ("lung", some.lung)):
        [expected] = spread_slices(prepared, patient, (kind,), 4)
        assert np.array_equal(array, expected)
    n = prepared.row(prepared.studies([patient])[0])["slices"]
    [every] = Validation(prepared, [patient], WINDOW, slices=10 * n).patients
    assert every.chosen.tolist() == list(range(n))


def test_an_untrained_network_has_finite_scores_and_the_same_twice(two):
    stage = CycleGAN(CycleGANSettings(width=4, blocks=1, patch_layers=2))
    scores = two(stage)
    assert np.isfinite(list(scores.values())).all()
    assert scores["validation_score"] > 0
    assert two(stage) == scores


def test_the_error_is_the_mean_over_patients_and_not_over_voxels(monkeypatch, prepared, two):
    perfect = truth_of(two)
    first = two.patients[0]

    def values(source, direction):
        off = 100.0 if source is first.real[direction.split("2")[0]] else 0.0
        return perfect(source, direction) + off

    answer(monkeypatch, values)
    assert two(STAGE)["validation_mae_hu"] == pytest.approx(50, rel=1e-4)
    assert voxelwise.mae(first.real["ct"], first.real["ct"] + 100, first.body) == pytest.approx(100, rel=1e-4)


@pytest.mark.parametrize(("patients", "slices"), [(0, 16), (1, 1), (1, 0)])
def test_too_little_to_score_is_refused_at_once(prepared, patients, slices):
    with pytest.raises(InputError, match="two slices or more"):
        Validation(prepared, prepared.patients[:patients], WINDOW, slices=slices)


@pytest.fixture
def run(prepared, tmp_path):
    return small_run(prepared, tmp_path / "run")


UNIT = {"pet2ct": "hu", "ct2pet": "suv"}


class Knows:
    """A regression that predicts the real image plus something."""

    def __init__(self, scored, plus):
        self.known = [(x, encode_slices(real, scored.kind, WINDOW) + plus) for x, _, real, _ in scored.patients]

    def predict(self, x, c):
        [image] = [y for known, y in self.known if torch.equal(known, x)]
        return image


@pytest.mark.parametrize("direction", UNIT)
def test_a_perfect_regression_scores_perfectly(run, direction):
    patients = Prepared(run / "prepared").patients[:2]
    scores = scored(run, patients, direction)
    unit = UNIT[direction]
    assert list(scores) == [f"validation_mae_{unit}", "validation_score", "validation_spectrum"]
    # Only what lies beyond the window is lost.
    assert scores[f"validation_mae_{unit}"] == pytest.approx(clipped_error(run, patients, direction), abs=1e-3)
    assert scores["validation_score"] == 0
    assert scores["validation_spectrum"] < 0.1
    assert all(type(value) is float for value in scores.values())


def scored(run, patients, direction, plus=0.0):
    one = RefinerValidation(run, patients, direction, slices=4)
    return one(Knows(one, plus))


def clipped_error(run, patients, direction):
    kind, errors = TARGET[direction], []
    for patient in patients:
        real, body = spread_slices(Prepared(run / "prepared"), patient, (kind, "body"), 4)
        errors.append(np.abs(real - DECODE[kind](ENCODE[kind](real, WINDOW), WINDOW))[body].mean())
    return np.mean(errors)


def test_a_known_error_of_a_regression(run):
    scores = scored(run, Prepared(run / "prepared").patients[:2], "pet2ct", plus=0.1)
    assert scores["validation_score"] == pytest.approx(0.1, rel=1e-4)
    assert scores["validation_mae_hu"] == pytest.approx(0.1 * 2524 / 2, rel=0.02), "less beyond the window"


def test_stage_2_is_shown_what_it_is_shown_in_translation(run):
    prepared = Prepared(run / "prepared")
    for direction in UNIT:
        one = RefinerValidation(run, prepared.patients[:1], direction, slices=4, neighbours=3)
        [(x, c, real, body)] = one.patients
        [study] = prepared.studies(prepared.patients[:1])
        source = np.array(prepared.array(study, SOURCE[direction]))
        cyclegan = load_cyclegan(run / "checkpoints" / "cyclegan.pt")
        whole_x, whole_c = stage2_inputs(cyclegan, source, direction, WINDOW, 3)
        n = len(source)
        chosen = np.linspace(0, n - 1, 6).round().astype(int)[1:-1]
        assert torch.equal(x, whole_x[chosen])
        assert torch.allclose(c, whole_c[chosen], atol=1e-5)
        assert np.array_equal(real, prepared.array(study, TARGET[direction])[chosen])
        assert np.array_equal(body, prepared.array(study, "body")[chosen])


@pytest.fixture
def flow():
    stage = ResidualFlow(tiny.FLOW, tiny.answering(tiny.REGRESSION))
    torch.nn.init.normal_(stage.ema["velocity"].module.pixels[-1].weight, std=0.1)
    return stage


def test_a_flows_score_is_its_loss_and_its_error_that_of_a_sample_of_two_steps(run, flow):
    one = RefinerValidation(run, Prepared(run / "prepared").patients[:1], "pet2ct", slices=4)
    [(x, c, real, body)] = one.patients
    scores = one(flow)
    y = encode_slices(real, "ct", WINDOW)
    assert scores["validation_score"] == pytest.approx(flow.loss_on(x, c, y, torch.Generator().manual_seed(0)))
    image = flow.sample(x, c, flow.regression.predict(x, c), noise_like(c, 0, 0), steps=2)[-1]
    hu = DECODE["ct"](image, WINDOW)[:, 0].numpy()
    assert scores["validation_mae_hu"] == pytest.approx(np.abs(hu - real)[body].mean(), rel=1e-4)
    assert one(flow) == scores
    assert one(flow.regression)["validation_mae_hu"] < scores["validation_mae_hu"]


def test_a_better_flow_has_a_better_score(run, flow):
    one = RefinerValidation(run, Prepared(run / "prepared").patients[:2], "pet2ct", slices=4)
    score = one(flow)["validation_score"]
    torch.nn.init.constant_(flow.ema["velocity"].module.pixels[-1].bias, 20.0)
    assert one(flow)["validation_score"] > score + 200, "a velocity that is 20 too large: about 20² more"


def test_stage_2_is_scored_by_the_mean_over_patients_and_not_over_voxels(run):
    prepared = Prepared(run / "prepared")
    both, *each = (
        RefinerValidation(run, p, "ct2pet", slices=4)
        for p in (prepared.patients[:2], *([p] for p in prepared.patients[:2]))
    )
    stage = Regression(tiny.REGRESSION)
    scores, apart = both(stage), [one(stage) for one in each]
    for key, value in scores.items():
        assert value == pytest.approx(np.mean([item[key] for item in apart]))


def test_a_pix2pix_is_scored_without_the_coarse_image_that_it_never_saw(run):
    one = RefinerValidation(run, Prepared(run / "prepared").patients[:1], "pet2ct", slices=4)
    stage = tiny.answering(tiny.PIX2PIX)
    scores = one(stage)
    one.patients = [(x, torch.zeros_like(c), real, body) for x, c, real, body in one.patients]
    assert one(stage) == scores
