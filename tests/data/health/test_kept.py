"""What was found out about files is kept until they change."""

import dataclasses
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from platformdirs import user_cache_path
from tests.trainings import small, train

from pixelwise.data.files import readers
from pixelwise.data.files.facts import FileFacts, Picture
from pixelwise.data.health import survey as surveys
from pixelwise.data.health.examine import Pixels
from pixelwise.data.health.kept import Memory, Notebook
from pixelwise.data.health.survey import read_samples, survey
from pixelwise.data.masks.masks import MaskLabels
from pixelwise.data.sets.folder import open_dataset
from pixelwise.data.sets.pairs import Sample


@dataclasses.dataclass(frozen=True)
class Finding:
    number: float
    array: np.ndarray
    paths: tuple[Path, ...]
    inner: Any = None


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    image.write_bytes(b"1")
    mask.write_bytes(b"2")
    return Sample("a", image, mask)


def notebook(root: Path, question: str = "") -> Notebook:
    return Notebook(root, question, (Finding,))


def test_findings_come_back_as_they_were(tmp_path: Path, sample: Sample) -> None:
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    finding = Finding(float("nan"), array, (sample.image,), Finding(1.5, array.astype(">u2"), ()))
    book = notebook(tmp_path)
    assert book.read(sample) is None
    book.write(sample, finding)
    book.save()
    again = notebook(tmp_path).read(sample)
    assert isinstance(again, Finding)
    assert np.isnan(again.number)
    assert (again.array.dtype, again.array.tolist()) == (array.dtype, array.tolist())
    assert again.paths == (sample.image,)
    assert (again.inner.number, again.inner.array.tolist()) == (1.5, array.tolist())


def test_a_changed_file_is_unknown_and_so_is_another_question(tmp_path: Path, sample: Sample) -> None:
    book = notebook(tmp_path)
    book.write(sample, Finding(1, np.zeros(1), ()))
    book.save()
    assert notebook(tmp_path).read(sample) is not None
    assert notebook(tmp_path, "other axes").read(sample) is None
    assert notebook(tmp_path / "other").read(sample) is None
    os.utime(sample.target, ns=(1, 1))
    assert notebook(tmp_path).read(sample) is None
    sample.target.unlink()
    assert notebook(tmp_path).read(sample) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"a": 1}', "\x00"])
def test_a_torn_or_foreign_notebook_is_as_good_as_none(tmp_path: Path, sample: Sample, content: str) -> None:
    book = notebook(tmp_path)
    book.write(sample, Finding(1, np.zeros(1), ()))
    book.save()
    book._path.write_text(content)
    again = notebook(tmp_path)
    assert again.read(sample) is None
    again.write(sample, Finding(2, np.zeros(1), ()))
    again.save()
    assert notebook(tmp_path).read(sample).number == 2


@pytest.mark.parametrize(
    "value",
    [
        {"class": "Path", "fields": {}},
        {"class": "Finding", "fields": {"number": 1}},
        {"array": "AAAA", "dtype": "O", "shape": [1]},
        {"array": "AAAA", "dtype": "u1", "shape": [99]},
        {"other": 1},
    ],
)
def test_findings_that_are_not_ours_are_not_believed(tmp_path: Path, sample: Sample, value: Any) -> None:
    book = notebook(tmp_path)
    book.write(sample, Finding(1, np.zeros(1), ()))
    book.save()
    (state,) = json.loads(book._path.read_text())
    book._path.write_text(json.dumps({state: value}))
    assert notebook(tmp_path).read(sample) is None


def test_a_place_that_cannot_be_written_does_no_harm(
    tmp_path: Path, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("pixelwise.data.health.kept.user_cache_path", lambda name: tmp_path / "file" / name)
    book = notebook(tmp_path)
    book.write(sample, Finding(1, np.zeros(1), ()))
    book.save()
    assert notebook(tmp_path).read(sample) is None


def test_only_the_latest_notebooks_are_kept(tmp_path: Path, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelwise.data.health.kept.user_cache_path", lambda name: tmp_path / "cache")
    monkeypatch.setattr("pixelwise.data.health.kept.BOOKS", 3)
    for number in range(6):
        book = notebook(tmp_path, str(number))
        book.write(sample, Finding(number, np.zeros(1), ()))
        book.save()
        os.utime(book._path, (number, number))
    assert [notebook(tmp_path, str(number)).read(sample) is not None for number in range(6)] == [False] * 3 + [True] * 3


def test_nothing_is_read_twice_until_it_changes(
    tmp_path: Path, make_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_dataset(tmp_path / "data", count=4, kind="index", split=("train", "val"))
    looked: list[Path] = []
    examine = surveys.examine

    def counted(sample: Sample, *rest: Any) -> Any:
        looked.append(sample.image)
        return examine(sample, *rest)

    monkeypatch.setattr("pixelwise.data.health.survey.examine", counted)
    first = survey(open_dataset(root), MaskLabels())
    assert len(looked) == 8
    second = survey(open_dataset(root), MaskLabels())
    assert len(looked) == 8
    assert (second.meaning, second.problems) == (first.meaning, first.problems)
    for image, fact in first.facts.items():
        again = second.facts[image]
        np.testing.assert_array_equal(fact.labels, again.labels)
        np.testing.assert_array_equal(fact.mean, again.mean)
        assert (fact.digest, fact.low, fact.high, fact.fit) == (again.digest, again.low, again.high, again.fit)
    os.utime(root / "train/masks/img001.png", ns=(1, 1))
    survey(open_dataset(root), MaskLabels())
    assert looked[8:] == [root / "train/images/img001.png"]


def test_to_look_at_one_split_forgets_nothing_of_the_others(tmp_path: Path, make_dataset: Any) -> None:
    root = make_dataset(tmp_path / "data", count=3, kind="index", split=("train", "val"))
    dataset, labels = open_dataset(root), MaskLabels()
    read_samples(dataset, labels, ("train",))
    read_samples(dataset, labels, ("val",))
    (book,) = (path for path in user_cache_path("pixelwise").glob("checks/*.json") if str(root) in path.read_text())
    assert len(json.loads(book.read_text())) == 6
    os.utime(root / "train/masks/img001.png", ns=(1, 1))
    os.utime(root / "val/masks/img101.png", ns=(1, 1))
    read_samples(dataset, labels, ("val",))
    assert len(json.loads(book.read_text())) == 5  # what has changed is gone, and so is what it was


# Pixels in memory


def pixels(count: int) -> Pixels:
    return Pixels(Picture(np.zeros((1, 1, count, 1), np.uint8), FileFacts("PNG")), None)


def test_pixels_are_kept_while_they_fit_and_handed_out_once(sample: Sample) -> None:
    memory, other = Memory(10), Sample("b", Path("b.png"), None)
    memory.keep(sample, pixels(8))
    memory.keep(other, pixels(3))
    assert memory.take(other) is None
    taken = memory.take(sample)
    assert taken is not None
    assert taken.image.pixels.size == 8
    assert memory.take(sample) is None


def test_the_pixels_of_train_are_kept_for_the_training(tmp_path: Path, make_dataset: Any) -> None:
    root = make_dataset(tmp_path / "data", count=3, kind="index", split=("train", "val"))
    dataset, memory = open_dataset(root), Memory(10**9)
    read_samples(dataset, MaskLabels(), memory=memory)
    taken = [memory.take(sample) for sample in dataset.split("train")]
    assert all(one is not None and one.labels.pixels.shape == (1, 48, 40) for one in taken)
    assert [memory.take(sample) for sample in dataset.split("val")] == [None] * 3


def test_a_training_decodes_each_file_once(tmp_path: Path, make_dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_dataset(tmp_path / "data", count=4, kind="index", split=("train", "val", "test"))
    opened: Counter[str] = Counter()
    original = readers._opened

    def counted(path: Path, *rest: Any) -> Any:
        opened[str(path.relative_to(root))] += 1
        return original(path, *rest)

    monkeypatch.setattr(readers, "_opened", counted)
    train(root, tmp_path / "run", small(), epochs=2)
    assert {name: count for name, count in opened.items() if not name.startswith("val")} == {
        str(path.relative_to(root)): 1 for path in root.rglob("*.png") if "val" not in path.parts
    }
    opened.clear()
    train(root, tmp_path / "again", small(), epochs=1)  # nothing is looked at again, and test is not read at all
    assert all(count == 1 for name, count in opened.items() if name.startswith("train"))
    assert not any(name.startswith("test") for name in opened)
