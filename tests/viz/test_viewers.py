"""The viewers show the voxels that they say, where they say; every control changes the picture."""

import io

import numpy as np
import PIL.Image
import pytest

from petct_lib import WARNING
from petct_lib.viz import viewers

RNG = np.random.default_rng(0)
CT, PET = RNG.uniform(-1000, 400, (5, 16, 20)), RNG.uniform(0, 6, (5, 16, 20))
SPACING = (8.0, 4.0, 4.0)


def pixels(image):
    return np.asarray(PIL.Image.open(io.BytesIO(image.value)))


def test_colours_reach_from_the_first_to_the_last_of_the_map():
    row = np.array([[-2000.0, -1000.0, -300.0, 400.0, 3000.0]])
    assert viewers.apply_colours(row, -1000, 400)[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert viewers.apply_colours(row, -1000, 400, "gray_r")[0, :, 1].tolist() == [255, 255, 127, 0, 0]


def test_fused_goes_from_the_ct_alone_to_the_pet_alone():
    window = (-1000, 400)
    ct, pet = viewers.apply_colours(CT[0], *window), viewers.apply_colours(PET[0], 0, 6, "hot")
    for alpha, expected in ((0, ct), (1, pet), (0.5, (ct.astype(float) + pet) / 2)):
        assert np.abs(viewers.fuse(CT[0], PET[0], window, 6, alpha) - expected).max() <= 0.5, alpha


@pytest.mark.parametrize("name", viewers.PLANES)
def test_a_place_in_a_plane_is_the_voxel_that_is_shown_there(name):
    volume = np.arange(5 * 16 * 20).reshape(5, 16, 20)
    for at in ((0, 0, 0), (4, 15, 19), (1, 7, 12)):
        row, column = viewers.place_in_plane(name, at, 5)
        assert viewers.take_plane(volume, name, at)[row, column] == volume[at]
        assert viewers.voxel_at(name, row, column, at, 5) == at


def test_the_head_is_up():
    volume = np.zeros((5, 4, 4))
    volume[-1] = 1  # the slice next to the head
    assert viewers.take_plane(volume, "coronal", (0, 0, 0))[0].all()
    assert viewers.take_plane(volume, "sagittal", (0, 0, 0))[0].all()


def test_a_millimetre_is_as_long_in_every_plane():
    sizes = viewers.VolumeViewer(CT, PET, SPACING).sizes_px
    (axial_h, axial_w), (depth, coronal_w), (sagittal_h, sagittal_w) = (sizes[name] for name in viewers.PLANES)
    assert max(axial_w, axial_h, depth) == viewers.SIDE_PX == axial_w == coronal_w
    assert (axial_h, depth) == (round(288 * 64 / 80), round(288 * 40 / 80))
    assert (sagittal_h, sagittal_w) == (depth, axial_h)


def test_every_control_of_the_volume_changes_a_picture():
    viewer = viewers.VolumeViewer(CT, PET, SPACING)
    changes = [(viewer.at[axis], 1) for axis in "zyx"] + [(viewer.suv_max, 3), (viewer.alpha, 0.2)]
    for control, value in [*changes, (viewer.window, "bone"), (viewer.shown, "CT"), (viewer.shown, "PET")]:
        before = {name: image.value for name, image in viewer.images.items()}
        control.value = value
        assert any(image.value != before[name] for name, image in viewer.images.items()), control.description


def test_what_is_shown_is_ct_or_inverted_pet_through_the_window():
    viewer = viewers.VolumeViewer(CT, PET, SPACING)
    viewer.shown.value, viewer.window.value = "CT", "bone"
    corner = viewer.picture("axial")[2, 2]  # within the first voxel, off the crosshair
    assert corner.tolist() == viewers.apply_colours(CT[2], -500, 1300)[0, 0].tolist()
    viewer.shown.value = "PET"
    assert viewer.picture("axial")[2, 2].tolist() == viewers.apply_colours(PET[2], 0, 6, "gray_r")[0, 0].tolist()
    assert np.array_equal(pixels(viewer.images["axial"]), viewer.picture("axial"))


def test_the_crosshair_goes_through_the_voxel_and_its_values_are_told():
    viewer = viewers.VolumeViewer(CT, PET, SPACING)
    viewer.at["z"].value, viewer.at["y"].value, viewer.at["x"].value = 1, 3, 5
    for name, shape in (("axial", (16, 20)), ("coronal", (5, 20)), ("sagittal", (5, 16))):
        picture = viewer.picture(name)
        height, width = picture.shape[:2]
        [row] = np.flatnonzero((picture == viewers.CROSSHAIR).all(axis=(1, 2)))
        [column] = np.flatnonzero((picture == viewers.CROSSHAIR).all(axis=(0, 2)))
        place = viewers.place_in_plane(name, (1, 3, 5), 5)
        assert (row * shape[0] // height, column * shape[1] // width) == place, name
    assert f"{CT[1, 3, 5]:.0f} HU, SUV {PET[1, 3, 5]:.2f}" in viewer.words.value


@pytest.mark.parametrize("name", viewers.PLANES)
def test_the_mouse_reads_out_moves_the_crosshair_and_turns_the_slices(name):
    viewer = viewers.VolumeViewer(CT, PET, SPACING)
    target = {"axial": (2, 4, 7), "coronal": (1, 8, 7), "sagittal": (1, 4, 10)}[name]  # hidden: at the crosshair
    row, column = viewers.place_in_plane(name, target, 5)
    height, width = viewers.take_plane(CT, name, target).shape
    there = {
        "dataX": (column + 0.5) * viewer.sizes_px[name][1] / width,
        "dataY": (row + 0.5) * viewer.sizes_px[name][0] / height,
    }
    viewer.point(name, {"type": "mousemove", **there})
    assert viewer.voxel == (2, 8, 10), "reading out moves nothing"
    assert viewer.words.value.startswith("pointer")
    assert viewers.describe_values(CT, PET, target) in viewer.words.value
    viewer.point(name, {"type": "click", **there})
    assert viewer.voxel == target
    for _ in range(9):
        viewer.point(name, {"type": "wheel", "deltaY": -1.0})
    assert viewer.voxel[0] == 4, "and stops at the last one"


def test_volumes_of_two_grids_are_refused():
    with pytest.raises(ValueError, match="one grid"):
        viewers.VolumeViewer(CT, PET[:3], SPACING)


def test_a_synthetic_image_is_called_so():
    assert WARNING not in viewers.VolumeViewer(CT, PET, SPACING).words.value
    viewer = viewers.VolumeViewer(CT, PET, SPACING, synthetic=True)
    assert WARNING in viewer.words.value
    assert WARNING in viewer.figure().get_supxlabel()
    assert len(viewer.figure().axes) == 3


def test_compare_shows_one_image_left_and_the_other_right_of_the_edge():
    errors = {"error": np.full(CT.shape, 300.0), "spread": np.full(CT.shape, 200.0)}
    images = {"real": CT, "mean": CT + 300, **errors}
    viewer = viewers.CompareViewer(images, "HU")
    assert (viewer.left.value, viewer.right.value) == ("real", "spread")
    viewer.right.value, viewer.k.value = "mean", 1
    for edge, (left, right) in ((100, ("real", "real")), (0, ("mean", "mean")), (50, ("real", "mean"))):
        viewer.edge.value = edge
        picture = viewer.picture()
        assert picture[3, 5].tolist() == viewers.apply_colours(images[left][1], -1000, 400)[0, 0].tolist()
        assert picture[3, -5].tolist() == viewers.apply_colours(images[right][1], -1000, 400)[0, -1].tolist()
        assert np.array_equal(pixels(viewer.image), picture)
    for name, image in errors.items():
        viewer.left.value = name
        assert viewer.picture()[3, 5].tolist() == viewers.apply_colours(image[0], 0, 400, "magma")[0, 0].tolist()
    assert WARNING in viewer.words.value
    assert [axis.get_title() for axis in viewer.figure().axes] == list(images)


def test_one_image_cannot_be_compared():
    with pytest.raises(ValueError, match="two images"):
        viewers.CompareViewer({"real": CT}, "HU")


def test_frames_follow_their_sliders():
    images = {(steps, sample): CT[0] + 100 * steps + sample for steps in (1, 4) for sample in (0, 1)}
    box = viewers.frames_viewer(images, ("steps", "sample"), "HU")
    image, words, sliders = box.children
    for key in ((4, 1), (4, 0), (1, 0)):
        sliders.children[0].value, sliders.children[1].value = key
        shown = pixels(image)[5, 5].tolist()
        assert shown == viewers.draw_image(images[key], "", "HU")[0, 0].tolist()
        assert f"steps {key[0]}, sample {key[1]}" in words.value
        assert WARNING in words.value
    with pytest.raises(ValueError, match="3 images do not fill"):
        viewers.frames_viewer({key: images[key] for key in list(images)[:3]}, ("steps", "sample"), "HU")
