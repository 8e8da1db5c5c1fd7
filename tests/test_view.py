"""Figures show what they are given, and say so when it is synthetic."""

import numpy as np
import pytest
from matplotlib.image import imread

from petct_lib import WARNING, view
from petct_lib.tissues import FIRST_LESION
from petct_lib.volume import Volume, axial_affine

RNG = np.random.default_rng(0)
PET, CT = RNG.uniform(0, 6, (4, 16, 16)), RNG.uniform(-1000, 400, (4, 16, 16))


def images_of(fig):
    return [image.get_array() for axis in fig.axes for image in axis.get_images()]


def test_triptych_shows_pet_ct_and_both():
    pet, ct, under, over = images_of(view.triptych(PET[0], CT[0]))
    assert np.array_equal(pet, PET[0])
    assert np.array_equal(ct, CT[0])
    assert np.array_equal(under, CT[0])
    assert np.array_equal(over, PET[0])


def test_planes_show_the_middle_of_each_axis_with_true_proportions_and_the_head_up():
    ct = Volume(RNG.uniform(-1000, 400, (4, 6, 8)).astype(np.float32), axial_affine((1.0, 2.0, 5.0), np.zeros(3)), "HU")
    pet = Volume(RNG.uniform(0, 6, (3, 5, 7)).astype(np.float32), axial_affine((4.0, 4.0, 4.0), np.zeros(3)), "SUV")
    fig = view.planes(ct, pet)
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
    fig = view.truth(CT[0], PET[0], labels)
    lung, soft, pet, colours = images_of(fig)
    assert np.array_equal(lung, CT[0])
    assert np.array_equal(soft, CT[0])
    assert np.array_equal(pet, PET[0])
    assert colours[3, 4].tolist() == [1, 0, 0]
    assert colours[0, 0].tolist() == [0, 0, 0]
    assert colours[5, 6].min() > 0.2
    assert [axis.images[0].get_clim() for axis in fig.axes[:3]] == [(-1150, 150), (-160, 240), (0, 6)]


def test_two_rows_show_both_stacks_in_their_windows():
    fig = view.two_rows(PET, CT, ("SUV", "HU"), ("PET", "CT"))
    shown = images_of(fig)
    assert np.array_equal(shown[3], PET[3])
    assert np.array_equal(shown[4], CT[0])
    windows = [image.get_clim() for axis in fig.axes for image in axis.get_images()]
    assert windows == [(0, 6)] * 4 + [(-1000, 400)] * 4


def test_translations_show_the_error():
    row = {"source": PET[0], "coarse": CT[0], "refined": CT[1], "real": CT[2]}
    shown = images_of(view.translations([row, row], "SUV", "HU"))
    assert len(shown) == 10
    assert np.allclose(shown[4], np.abs(CT[1] - CT[2]))


def test_uncertainty_bars_are_the_deciles_mean_error():
    std = np.linspace(0, 1, 100).reshape(1, 10, 10)
    fig = view.uncertainty(std, 3 * std, np.ones((1, 10, 10), bool), 0, "SUV")
    heights = [patch.get_height() for patch in fig.axes[2].patches]
    assert heights == pytest.approx([3 * std.ravel()[10 * k : 10 * k + 10].mean() for k in range(10)])


def test_patient_scores_plot_one_dot_a_patient():
    rows = [
        {"direction": "pet2ct", "method": m, "patient": p, "region": region, "metric": "mae", "value": v * scale}
        for region, scale in (("body", 1), ("lung", 10))
        for m, values in (("a", (1, 3)), ("b", (2, 2)))
        for p, v in zip("xy", values, strict=True)
    ]
    fig = view.patient_scores(rows, "mae", {"pet2ct": "HU"})
    assert [line.get_ydata().tolist() for line in fig.axes[0].lines] == [[1, 3], [2, 2]]
    assert [bar.get_height() for bar in fig.axes[0].patches] == [2, 2]
    assert "n = 2 patients" in fig.axes[0].get_title()


def drawn(axis):
    """Points by label, without the limits."""
    lines = [line for line in axis.lines if not line.get_label().startswith("_")]
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in lines}


def test_losses_draw_one_line_a_loss():
    fig = view.losses([{"step": 0, "a": 1.0, "b": 2.0}, {"step": 1, "a": 0.5, "b": 1.0}], "losses")
    [axis] = fig.axes
    assert drawn(axis) == {"a": ([0, 1], [1.0, 0.5]), "b": ([0, 1], [2.0, 1.0])}
    assert (axis.get_title(), axis.get_xlabel(), axis.get_ylabel()) == ("losses", "step", "loss")


def test_losses_take_each_key_where_it_is():
    fig = view.losses([{"step": 0, "a": 1.0}, {"step": 5, "a": 2.0, "b": 3.0}, {"step": 9, "b": 4.0}], "losses")
    assert drawn(fig.axes[0]) == {"a": ([0, 5], [1.0, 2.0]), "b": ([5, 9], [3.0, 4.0])}


def test_losses_have_panels_for_accuracy_and_validation():
    history = [
        {"step": 0, "cycle": 1.0, "D_ct": 0.3, "accuracy_ct": 0.8, "accuracy_pet": 0.6},
        {"step": 9, "cycle": 1.0, "D_ct": 0.2, "accuracy_ct": 0.9, "accuracy_pet": 0.5, "validation_mae_suv": 0.4,
         "validation_mae_hu": 90.0, "validation_score": 0.1},
    ]  # fmt: skip
    loss, right, hu, suv = view.losses(history, "CycleGAN").axes
    assert drawn(loss) == {"cycle": ([0, 9], [1.0, 1.0]), "D_ct": ([0, 9], [0.3, 0.2])}
    assert drawn(right) == {"D_ct": ([0, 9], [80.0, 90.0]), "D_pet": ([0, 9], [60.0, 50.0])}
    assert drawn(hu) == {"validation_mae_hu": ([9], [90.0])}
    assert drawn(suv) == {"validation_mae_suv": ([9], [0.4])}
    assert [axis.get_ylabel() for axis in (loss, right, hu, suv)] == ["loss", "D right, %", "MAE, HU", "MAE, SUV"]
    assert suv.yaxis.get_label_position() == "right"
    assert loss.lines[1].get_color() == right.lines[0].get_color()  # a discriminator has one colour
    assert loss.get_xlim() == hu.get_xlim()


@pytest.mark.parametrize(
    ("row", "labels"),
    [
        ({"accuracy_ct": 0.5}, ["loss", "D right, %"]), ({"validation_mae_suv": 0.5}, ["loss", "MAE, SUV"]),
        ({"validation_score": 0.5}, ["loss"]), ({}, ["loss"]),
    ],
)  # fmt: skip
def test_losses_have_no_empty_panel(row, labels, recwarn):
    fig = view.losses([{"step": 0, **row}] if row else [], "losses")
    assert [axis.get_ylabel() for axis in fig.axes] == labels
    assert view.png(fig).startswith(b"\x89PNG")
    assert not recwarn.list


def test_losses_of_many_terms_have_a_line_each():
    row = {f"loss {k}": 1.0 for k in range(9)}
    assert len(drawn(view.losses([{"step": 0, **row}], "losses").axes[0])) == 9


def test_invented_marks_in_red_on_the_synthetic_ct():
    marked = np.zeros((4, 16, 16), bool)
    marked[2, 3, 4] = True
    shown = images_of(view.invented(CT, CT[::-1], marked))
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
        view.translations([{"source": PET[0], "coarse": CT[0], "refined": CT[1], "real": CT[2]}], "SUV", "HU"),
        view.denoising_strip(CT[0], [CT[1]], CT[2], "HU"),
        view.uncertainty(PET, PET, PET > 0, 0, "SUV"),
        view.preview(PET[0], CT[0], CT[1] - CT.min(), "SUV", "HU"),
        view.invented(CT, CT, CT > 0),
    ],
)
def test_synthetic_figures_carry_the_warning(fig):
    assert fig.get_supxlabel() == WARNING


def test_saved_pictures_are_png_files_with_a_text_alternative(tmp_path):
    shown = view.save(view.triptych(PET[0], CT[0]), tmp_path, "t", "a PET and a CT")
    assert imread(tmp_path / "figures" / "t.png").ndim == 3
    assert shown.alt == "a PET and a CT"
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["t.png"]


def test_viewer_moves_through_the_slices(monkeypatch):
    seen = []
    real = view.triptych
    monkeypatch.setattr(view, "triptych", lambda pet, ct, alpha: seen.append((pet, alpha)) or real(pet, ct, alpha))
    box = view.slice_viewer(PET, CT)
    box.update()
    box.children[0].value = 3
    box.children[1].value = 0.2
    assert np.array_equal(seen[-1][0], PET[3])
    assert seen[-1][1] == 0.2


def test_walk_viewer_shows_the_image_of_its_sliders(monkeypatch):
    seen, real = [], view.montage
    monkeypatch.setattr(
        view, "montage", lambda images, *rest, **more: seen.append(images) or real(images, *rest, **more)
    )
    images = {(t0, n): CT[0] + 100 * t0 + n for t0 in (0.1, 0.3) for n in (1, 4)}
    box = view.walk_viewer(images, "HU")
    box.update()
    assert np.array_equal(seen[-1][0], images[0.1, 1])
    box.children[0].value, box.children[1].value = 0.3, 4
    assert np.array_equal(seen[-1][0], images[0.3, 4])


def rows_of(values):
    """Rows of two patients: {method: (MAE, spectrum distance)}."""
    rows = []
    for name, pair in values.items():
        for metric, value in zip(("mae", "spectrum"), pair, strict=True):
            row = {"direction": "pet2ct", "method": name, "region": "body", "metric": metric, "value": value}
            rows += [{**row, "patient": p, "unit": "HU" if metric == "mae" else "1", "mask": "SEG"} for p in "xy"]
    return rows


def test_paired_curve_draws_each_method_over_the_patients_beside_a_level():
    rows = rows_of({"cyclegan": (100, 0.2), "a_k1": (90, 0.5), "a_k4": (80, 0.4), "a": (70, 0.3)})
    mae, spectrum = view.paired_curve(rows, "pet2ct", {"a": {1: "a_k1", 4: "a_k4", 9: "a"}}, "cyclegan").axes
    level, line = mae.lines
    assert set(level.get_ydata()) == {100}
    assert list(line.get_xdata()) == [1, 4, 9]
    assert list(line.get_ydata()) == [90, 80, 70]
    assert list(spectrum.lines[1].get_ydata()) == [0.5, 0.4, 0.3]
    assert "HU" in mae.get_ylabel()


def test_plane_joins_the_methods_that_no_other_beats():
    rows = rows_of({"a": (100, 0.2), "b": (80, 0.6), "c": (110, 0.7)})  # c is beaten in both
    rows += [{**rows[0], "patient": "all", "metric": "two_sample_accuracy", "unit": "1"}]
    [axis] = view.plane(rows, "pet2ct").axes
    front = axis.lines[0]
    assert list(zip(front.get_xdata(), front.get_ydata(), strict=True)) == [(80, 0.6), (100, 0.2)]
    assert {text.get_text() for text in axis.texts} == {"a", "b", "c"}
    assert "2 test patients" in axis.get_title()
    assert "HU" in axis.get_xlabel()
