"""What is given to predict: files, folders, patterns."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelwise.core.errors import DataError
from pixelwise.prediction.inputs import Input, find_inputs, name_inputs


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def test_files_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.tif", "deep/c.JPG", "deep/er/d.bmp", ".hidden.png", ".git/e.png", "odd[1].png"):
        save(tmp_path / name, np.zeros((4, 5), np.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)

    def found(*inputs: str) -> list[str]:
        return [path.as_posix() for path in find_inputs(inputs).images]

    everything = ["a.png", "b.tif", "odd[1].png", "deep/c.JPG", "deep/er/d.bmp"]
    assert found(".") == everything
    assert found("deep") == ["deep/c.JPG", "deep/er/d.bmp"]
    assert found("*.png") == ["a.png", "odd[1].png"]
    assert found("**/*.bmp") == ["deep/er/d.bmp"]
    assert found("odd[1].png") == ["odd[1].png"]  # a file that is there is no pattern
    assert found("b.tif", "*.tif", ".") == ["b.tif", *(name for name in everything if name != "b.tif")]
    assert found("missing.png") == ["missing.png"]
    assert found(str(tmp_path / "*.tif")) == [(tmp_path / "b.tif").as_posix()]


def test_nothing_to_predict(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: contains no images\."):
        find_inputs([str(tmp_path / "empty")])
    with pytest.raises(DataError, match=r"\*\.tif: no image matches this pattern\."):
        find_inputs([str(tmp_path / "*.tif")])


def test_outputs_are_named_by_stems_where_these_differ() -> None:
    paths = [Path("in/x.png"), Path("in/deep/y.tif")]
    assert name_inputs(paths) == [Input(paths[0], Path("x")), Input(paths[1], Path("y"))]


def test_inputs_of_one_stem_keep_folders_then_extensions() -> None:
    names = [
        one.name.as_posix() for one in name_inputs([Path("a/x.png"), Path("b/X.png"), Path("b/X.tif"), Path("z.z")])
    ]
    assert names == ["a/x", "b/X.png", "b/X.tif", "z"]


def test_inputs_on_several_drives_keep_all_their_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(paths: object) -> str:
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr("os.path.commonpath", refuse)
    assert [one.name.as_posix() for one in name_inputs([Path("/a/x.png"), Path("/b/x.png")])] == ["a/x", "b/x"]


def test_what_an_earlier_prediction_made_is_no_input(tmp_path: Path) -> None:
    for name in ("a.png", "masks/a.png", "masks/overlays/a.png", "other/b.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    found = find_inputs([str(tmp_path)], tmp_path / "masks").images
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.png", "other/b.png"]
    assert (
        len(find_inputs([str(tmp_path)], tmp_path).images) == 4
    )  # it is the folder itself: the images must be somewhere
    assert len(find_inputs([str(tmp_path / "masks")], tmp_path).images) == 2


def test_a_file_that_is_named_twice_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert find_inputs(["a.png", str(tmp_path / "a.png"), "./a.png"]).images == [Path("a.png")]
