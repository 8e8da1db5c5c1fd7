"""Old files or new ones, never half of one."""

import pytest

from petct_lib.common.files import atomic_write, read_json, write_json


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def fail_half_way(path):
    with atomic_write(path) as temporary:
        if path.is_dir():
            temporary.mkdir()
            (temporary / "half.npy").write_text("half")
        else:
            temporary.write_text("half")
        raise RuntimeError("half way")


def test_a_file_takes_its_place_when_the_block_ends(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["a.txt"]


def test_the_old_file_stays_when_the_block_raises(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "slices"
    path.mkdir()
    (path / "old.npy").write_text("old")
    with atomic_write(path) as temporary:
        temporary.mkdir()
        (temporary / "new.npy").write_text("new")
        assert names(path) == ["old.npy"]
    assert names(path) == ["new.npy"]
    assert names(tmp_path) == ["slices"]


def test_the_old_folder_stays_when_the_block_raises(tmp_path):
    path = tmp_path / "slices"
    path.mkdir()
    (path / "old.npy").write_text("old")
    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way(path)
    assert names(path) == ["old.npy"]
    assert names(tmp_path) == ["slices"]


def test_a_block_that_writes_nothing_removes_nothing(tmp_path):
    path = tmp_path / "slices"
    path.mkdir()
    (path / "old.npy").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_write(path):
        pass
    assert names(path) == ["old.npy"]


def test_json_round_trip(tmp_path):
    value = {"studies": [{"id": "p-1", "suv_factor": 0.1}], "text": "µ − °"}
    write_json(value, tmp_path / "a.json")
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_refuses_what_other_programs_cannot_read(tmp_path, number):
    write_json({"psnr": 1.0}, tmp_path / "a.json")
    with pytest.raises(ValueError, match="JSON"):
        write_json({"psnr": number}, tmp_path / "a.json")
    assert read_json(tmp_path / "a.json") == {"psnr": 1.0}
    assert names(tmp_path) == ["a.json"]
