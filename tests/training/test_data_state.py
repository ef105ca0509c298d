"""A training that is resumed notices that its data have changed, and says in what."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.trainings import Listener, StopAt, small, train

from pixelwise.core.errors import DataError, RunError
from pixelwise.core.run_folder import RunFolder
from pixelwise.data.health.survey import survey
from pixelwise.data.masks.masks import MaskLabels
from pixelwise.data.sets.folder import open_dataset
from pixelwise.training.data_state import check_unchanged, state_of

Change = Callable[[Path], object]


@pytest.fixture
def data(tmp_path: Path, make_dataset: Any) -> Path:
    return make_dataset(tmp_path / "data", count=4, kind="index", split=("train", "val", "test"))


def edit(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    Image.fromarray(change(np.array(Image.open(path)))).save(path)


def set_pixel(array: np.ndarray) -> np.ndarray:
    array[0, 0] = 1 - array[0, 0] // 255
    return array


def add(root: Path) -> None:
    for part in ("images", "masks"):
        shutil.copy(root / f"train/{part}/img000.png", root / f"train/{part}/new.png")
    edit(root / "train/images/new.png", lambda image: 255 - image)


def remove(root: Path) -> None:
    for part in ("images", "masks"):
        for number in range(4):
            (root / f"train/{part}/img00{number}.png").unlink() if number != 2 else None


def crop(root: Path) -> None:
    for part in ("images", "masks"):
        edit(root / f"val/{part}/img101.png", lambda array: array[:-4])


CHANGES: list[tuple[Change, str]] = [
    (add, r"1 image of train new \(new\)"),
    (remove, r"3 images of train no longer there \(img000, img001, img003\)"),
    (crop, r"1 image of val of another size \(img101\)"),
    (lambda root: edit(root / "train/images/img002.png", set_pixel), r"1 image of train with other pixels \(img002\)"),
    (lambda root: edit(root / "train/masks/img002.png", set_pixel), r"1 image of train with other labels \(img002\)"),
    (lambda root: (root / "dataset.toml").write_text("labels = 'index'"), "dataset.toml differs"),
]


@pytest.mark.parametrize(("change", "what"), CHANGES, ids=[what[:24] for _, what in CHANGES])
def test_each_change_is_named(data: Path, tmp_path: Path, change: Change, what: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(state_of(survey(open_dataset(data), MaskLabels()))))
    assert check_unchanged(path, survey(open_dataset(data), MaskLabels()), ()) == []
    change(data)
    found = survey(open_dataset(data), MaskLabels(), allow=["duplicate-image"])
    with pytest.raises(DataError, match=rf"data: has changed since this run began: {what}\. Bring the data back"):
        check_unchanged(path, found, ())
    (told,) = check_unchanged(path, found, ["data-changed"])
    assert told in what.replace("\\", "")


def test_test_images_take_no_part(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(state_of(survey(open_dataset(data), MaskLabels()))))
    shutil.rmtree(data / "test")
    assert check_unchanged(path, survey(open_dataset(data), MaskLabels()), ()) == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"dataset.toml": "", "train": 3}'])
def test_a_torn_state_is_named(data: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(
        RunError, match=r"data\.json: cannot be read\. Delete it to resume without comparing the data\.$"
    ):
        check_unchanged(path, survey(open_dataset(data), MaskLabels()), ())


def test_a_run_from_before_is_believed(data: Path, tmp_path: Path) -> None:
    assert check_unchanged(tmp_path / "none.json", survey(open_dataset(data), MaskLabels()), ()) == []


def test_a_training_is_not_resumed_on_other_data_unless_that_is_allowed(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(data, run, small(checkpoint_seconds=0), epochs=2, callbacks=StopAt(6))
    assert RunFolder(run).data.is_file()
    edit(data / "train/masks/img002.png", set_pixel)
    with pytest.raises(DataError, match=r"changed since this run began: 1 image of train with other labels \(img002\)"):
        train(data, run, resume=True)
    listener = Listener()
    assert train(data, run, resume=True, allow=["data-changed"], callbacks=listener).epochs == 2
    assert "changed since the run began: 1 image of train with other labels (img002)" in listener.notes
