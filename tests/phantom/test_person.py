"""One person: plausible bodies, the same for the same seed, arms mostly up, breath and lung density as stated."""

import numpy as np
import pytest
from scipy import ndimage

from petct_lib.phantom import person
from petct_lib.phantom.person import draw_person
from petct_lib.phantom.shapes import X_MM, Y_MM, Z_MM
from petct_lib.phantom.tissues import LABEL, TISSUES


def draw(index: int, difficulty: str = "realistic", breathing_mm: float = 11.0) -> person.Person:
    return draw_person(np.random.default_rng([3, index]), difficulty, breathing_mm)


@pytest.fixture(scope="module")
def one() -> person.Person:
    return draw(0)


@pytest.fixture
def crowd(one, monkeypatch) -> list[person.Person]:
    """Many persons who share one anatomy, which takes long to grow."""
    monkeypatch.setattr(person.anatomy, "grow_anatomy", lambda rng, build: one.anatomy)
    return [draw(i) for i in range(200)]


def test_the_same_seed_gives_the_same_person(one):
    again = draw(0)
    assert (again.build, again.weight_kg, again.amplitude_mm) == (one.build, one.weight_kg, one.amplitude_mm)
    assert again.lesions == one.lesions
    assert np.array_equal(again.lung_hu, one.lung_hu)
    assert all(np.array_equal(f, one.anatomy.fields[name]) for name, f in again.anatomy.fields.items())
    assert draw(1).weight_kg != one.weight_kg


def test_bodies_are_like_peoples(crowd):
    men, women = ([p for p in crowd if p.build.sex == sex] for sex in "MF")
    assert 0.32 < len(women) / len(crowd) < 0.52
    assert 1.71 < np.mean([p.size_m for p in men]) < 1.79
    assert 1.58 < np.mean([p.size_m for p in women]) < 1.66
    bmi = [p.weight_kg / p.size_m**2 for p in crowd]
    assert 16 < min(bmi) < 20
    assert 28 < max(bmi) < 38
    assert np.corrcoef(bmi, [p.build.fat_mm for p in crowd])[0, 1] > 0.8
    assert 0.78 < np.mean([p.build.arms_up for p in crowd]) < 0.92
    assert all(np.all((p.scale > 0.85) & (p.scale < 1.25)) for p in crowd)


def test_breathing_varies_about_its_mean_and_can_be_off(crowd, one):
    amplitudes = [p.amplitude_mm for p in crowd]
    assert np.median(amplitudes) == pytest.approx(11, abs=1.2)
    assert min(amplitudes) > 5
    assert max(amplitudes) < 21
    assert draw(0, breathing_mm=0.0).amplitude_mm == 0


def test_tissues_vary_as_stated(crowd):
    for name in ("liver", "marrow", "fat"):
        hu = np.array([p.hu[LABEL[name]] for p in crowd])
        assert hu.mean() == pytest.approx(TISSUES[name].hu, abs=0.3 * TISSUES[name].hu_spread)
        assert hu.std() == pytest.approx(TISSUES[name].hu_spread, rel=0.25)
    assert {float(p.hu[LABEL["airway"]]) for p in crowd} == {-1000.0}


def test_the_lung_is_denser_at_the_back_and_has_holes_in_some(one, monkeypatch):
    monkeypatch.setattr(person.anatomy, "grow_anatomy", lambda rng, build: one.anatomy)
    lung = one.anatomy.fields["lung"] < -8
    front, back = lung & (Y_MM < -30)[:, None], lung & (Y_MM > 40)[:, None]
    realistic = [draw(i).lung_hu for i in range(40)]
    rise = [f[back].mean() - f[front].mean() for f in realistic]
    assert 40 < np.mean(rise) < 140
    easy = [draw(i, "easy").lung_hu for i in range(40)]
    rough = [[(f - ndimage.gaussian_filter(f, 3))[lung].std() for f in fields] for fields in (easy, realistic)]
    assert 0.2 < np.mean(np.array(rough[1]) > max(rough[0])) < 0.5
    assert realistic[0].shape == (len(Z_MM), len(Y_MM), len(X_MM))
