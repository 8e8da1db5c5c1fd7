"""Figures show what they are given, and say so when it is synthetic."""

import numpy as np
import pytest
from matplotlib.image import imread

from petct_lib import WARNING
from petct_lib.imaging.volume import Volume, axial_affine
from petct_lib.phantom.tissues import FIRST_LESION
from petct_lib.viz import panels

RNG = np.random.default_rng(0)
PET, CT = RNG.uniform(0, 6, (4, 16, 16)), RNG.uniform(-1000, 400, (4, 16, 16))


def images_of(fig):
    return [image.get_array() for axis in fig.axes for image in axis.get_images()]


def test_triptych_shows_pet_ct_and_both():
    pet, ct, under, over = images_of(panels.triptych(PET[0], CT[0]))
    assert np.array_equal(pet, PET[0])
    assert np.array_equal(ct, CT[0])
    assert np.array_equal(under, CT[0])
    assert np.array_equal(over, PET[0])


def test_planes_show_the_middle_of_each_axis_with_true_proportions_and_the_head_up():
    ct = Volume(RNG.uniform(-1000, 400, (4, 6, 8)).astype(np.float32), axial_affine((1.0, 2.0, 5.0), np.zeros(3)), "HU")
    pet = Volume(RNG.uniform(0, 6, (3, 5, 7)).astype(np.float32), axial_affine((4.0, 4.0, 4.0), np.zeros(3)), "SUV")
    fig = panels.planes(ct, pet)
    axial, coronal, sagittal, front, *of_pet = images_of(fig)
    assert np.array_equal(axial, ct.array[2])
    assert np.array_equal(coronal, ct.array[:, 3])
    assert np.array_equal(sagittal, ct.array[:, :, 4])
    assert np.array_equal(front, ct.array.max(axis=1))
    assert np.array_equal(of_pet[3], pet.array.max(axis=1))
    assert all(axis.get_aspect() == 1.0 for axis in fig.axes)  # drawn in mm
    assert fig.axes[1].get_ylim() == fig.axes[5].get_ylim() == (-2.5, 17.5)  # feet below
    assert fig.axes[0].get_ylim() == (11.0, -1.0)  # the back below


def test_truth_shows_both_windows_the_pet_and_lesions_in_red():
    labels = np.zeros((16, 16), np.uint8)
    labels[3, 4], labels[5, 6] = FIRST_LESION + 1, 12
    fig = panels.truth(CT[0], PET[0], labels, first_lesion=FIRST_LESION)
    lung, soft, pet, colours = images_of(fig)
    assert np.array_equal(lung, CT[0])
    assert np.array_equal(soft, CT[0])
    assert np.array_equal(pet, PET[0])
    assert colours[3, 4].tolist() == [1, 0, 0]
    assert colours[0, 0].tolist() == [0, 0, 0]
    assert colours[5, 6].min() > 0.2
    assert [axis.images[0].get_clim() for axis in fig.axes[:3]] == [(-1150, 150), (-160, 240), (0, 6)]


def test_two_rows_show_both_stacks_in_their_windows():
    fig = panels.two_rows(PET, CT, ("SUV", "HU"), ("PET", "CT"))
    shown = images_of(fig)
    assert np.array_equal(shown[3], PET[3])
    assert np.array_equal(shown[4], CT[0])
    windows = [image.get_clim() for axis in fig.axes for image in axis.get_images()]
    assert windows == [(0, 6)] * 4 + [(-1000, 400)] * 4


ROW = {"source": PET[0], "coarse": CT[0], "sample": CT[3], "mean": CT[1], "spread": CT[0] + 1000, "real": CT[2]}


def test_translations_show_all_images_of_a_slice_then_spread_and_error():
    fig = panels.translations([ROW, {name: image[::-1] for name, image in ROW.items()}], "SUV", "HU")
    titles = [axis.get_title() for axis in fig.axes]
    expected = ["source", "coarse", "sample", "mean", "real", "spread", "error of mean, 0 to 400 HU"]
    assert titles == expected + [""] * 7
    shown, error = images_of(fig), np.abs(CT[1] - CT[2])
    for k, image in enumerate([*(ROW[name] for name in expected[:6]), error]):
        assert np.allclose(shown[k], image), expected[k]
        assert np.allclose(shown[k + 7], image[::-1]), expected[k]
    windows = [image.get_clim() for axis in fig.axes[:7] for image in axis.get_images()]
    assert windows == [(0, 6)] + [(-1000, 400)] * 4 + [(0, 400)] * 2
    assert {axis.images[0].cmap.name for axis in fig.axes[5:7]} == {"magma"}


def test_translations_may_have_no_spread_and_the_error_of_another_image():
    row = {name: image for name, image in ROW.items() if name != "spread"}
    fig = panels.translations([row], "SUV", "HU", error_of="coarse")
    assert [axis.get_title() for axis in fig.axes][-2:] == ["real", "error of coarse, 0 to 400 HU"]
    assert np.allclose(images_of(fig)[-1], np.abs(CT[0] - CT[2]))


def test_every_sample_is_shown_below_mean_spread_and_real():
    drawn = np.stack([CT[0] + k for k in range(9)])
    fig = panels.samples(ROW, drawn, "SUV", "HU")
    titles = [title for axis in fig.axes if (title := axis.get_title())]
    of_slice = ["source", "mean", "spread, 0 to 400 HU", "real"]
    assert titles == [*of_slice, *(f"sample {k}" for k in range(1, 10))]
    shown = images_of(fig)
    assert np.array_equal(shown[2], ROW["spread"])
    assert all(np.array_equal(image, CT[0] + k) for k, image in enumerate(shown[4:])), "all nine, in their order"
    assert len(fig.axes) == 3 * 8, "eight in a row"


def test_a_place_is_ringed_in_every_image_of_its_slice():
    fig = panels.translations([ROW, {**ROW, "place": (3, 5)}], "SUV", "HU")
    rings = [[patch.center for patch in axis.patches] for axis in fig.axes]
    assert rings == [[]] * 7 + [[(5, 3)]] * 7


def test_without_slices_translations_say_so():
    [text] = panels.translations([], "SUV", "HU").texts
    assert text.get_text() == "none in this run"


def test_a_preview_shows_source_translation_and_spread():
    fig = panels.preview(PET[0], CT[0], np.zeros((16, 16)), "SUV", "HU")
    source, image, spread = images_of(fig)
    assert np.array_equal(source, PET[0])
    assert np.array_equal(image, CT[0])
    assert not spread.any()
    assert fig.axes[2].get_title() == "spread, 0 to 0 HU"
    assert panels.figure_png(fig).startswith(b"\x89PNG"), "of one sample, too"


def test_invented_marks_in_red_on_the_synthetic_ct():
    marked = np.zeros((4, 16, 16), bool)
    marked[2, 3, 4] = True
    shown = images_of(panels.invented(CT, CT[::-1], marked))
    assert len(shown) == 4 + 4 + 2 * 4
    assert np.array_equal(shown[0], CT[0])
    assert np.array_equal(shown[4], CT[3])
    under, over = shown[12:14]  # the third slice
    assert np.array_equal(under, CT[1])
    assert over[3, 4].tolist() == [1, 0, 0, 0.75]
    assert over.any(axis=-1).sum() == 1


@pytest.mark.parametrize(
    "fig",
    [
        panels.translations([ROW], "SUV", "HU"),
        panels.montage(CT, "HU", "abcd", synthetic=True),
        panels.preview(PET[0], CT[0], CT[1] - CT.min(), "SUV", "HU"),
        panels.invented(CT, CT, CT > 0),
        panels.samples(ROW, CT, "SUV", "HU"),
    ],
)
def test_synthetic_figures_carry_the_warning(fig):
    assert fig.get_supxlabel() == WARNING


def test_saved_pictures_are_png_files_with_a_text_alternative(tmp_path):
    shown = panels.save(panels.triptych(PET[0], CT[0]), tmp_path, "t", "a PET and a CT")
    assert imread(tmp_path / "figures" / "t.png").ndim == 3
    assert shown.alt == "a PET and a CT"
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["t.png"]
