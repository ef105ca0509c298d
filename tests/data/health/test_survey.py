"""What is wrong with a data set, by code; and the figures that a plan is made from."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixelwise.core.classes import ClassMap
from pixelwise.core.errors import DataError, SettingError
from pixelwise.data.files import readers
from pixelwise.data.files.facts import FileFacts, Picture
from pixelwise.data.files.readers import _opened, read_mask
from pixelwise.data.health.examine import ImageFacts, examine, image_facts
from pixelwise.data.health.problems import Problem
from pixelwise.data.health.survey import Survey, survey
from pixelwise.data.masks.labels import LabelRule
from pixelwise.data.masks.masks import MaskLabels
from pixelwise.data.sets.folder import open_dataset
from pixelwise.data.sets.pairs import Sample

MakeDataset = Callable[..., Path]
Break = Callable[[Path], object]


@pytest.fixture
def data(tmp_path: Path, make_dataset: MakeDataset) -> Path:
    """Train and val of four pairs each, index labels of three named classes."""
    root = make_dataset(tmp_path / "data", count=4, kind="index", split=("train", "val"))
    (root / "dataset.toml").write_text("classes = ['rest', 'one', 'two']\nlabels = 'index'\n")
    return root


def names(problem: Problem) -> list[str]:
    return [path.name for path in problem.files]


def save(path: Path, array: np.ndarray, **options: Any) -> None:
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    else:
        tifffile.imwrite(path, array, **options)


def replace_image(root: Path, array: np.ndarray, **options: Any) -> None:
    (root / "train/images/img001.png").unlink()
    save(root / "train/images/img001.tif", array, **options)


def break_size(root: Path) -> None:
    save(root / "train/images/img001.png", np.zeros((40, 48), np.uint8))


def break_label(root: Path) -> None:
    mask = np.zeros((48, 40), np.uint8)
    mask[3, 4] = 7
    save(root / "train/masks/img001.png", mask)


def break_numbers(root: Path) -> None:
    image = np.ones((48, 40), np.float32)
    image[0, :3] = np.nan, np.inf, -np.inf
    replace_image(root, image)


def break_channels(root: Path) -> None:
    replace_image(root, np.ones((4, 48, 40), np.uint8), metadata={"axes": "CYX"}, photometric="minisblack")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


CASES: list[tuple[str, Break, list[str], str, int]] = [
    (
        "unpaired-image",
        lambda root: (root / "train/masks/img001.png").unlink(),
        ["img001.png"],
        r"images.img001\.png: has no mask with the same stem in masks/\. Add the mask or remove the file, "
        r"or leave it out with --allow unpaired-image\. \[unpaired-image\]$",
        3,
    ),
    (
        "unpaired-mask",
        lambda root: (root / "train/images/img001.png").unlink(),
        ["img001.png"],
        r"masks.img001\.png: has no image with the same stem in images/\. Add it or remove the file, ",
        3,
    ),
    (
        "ambiguous-pair",
        lambda root: shutil.copy(root / "train/images/img001.png", root / "train/images/img001.tif"),
        ["img001.tif"],
        r"images.img001\.tif: has the same stem as another file next to it\. Rename one or remove the file, ",
        4,
    ),
    (
        "truncated",
        lambda root: truncate(root / "train/masks/img001.png"),
        ["img001.png"],
        r"masks.img001\.png: .*truncated.* Replace the file, or leave it out with --allow truncated\.",
        3,
    ),
    (
        "unknown-format",
        lambda root: (root / "train/images/img001.png").write_text("this is a note"),
        ["img001.png"],
        r"images.img001\.png: is a text file, not an image\. .* or leave it out with --allow unknown-format\.",
        3,
    ),
    (
        "size-mismatch",
        break_size,
        ["img001.png"],
        r"images.img001\.png: is 48 x 40, but its mask .*masks.img001\.png is 40 x 48\. Make both the same size",
        3,
    ),
    (
        "unknown-value",
        break_label,
        ["img001.png"],
        r"masks.img001\.png: holds the value 7, but the 3 classes have the values 0 to 2\. .* Or leave the file",
        3,
    ),
    (
        "non-finite",
        break_numbers,
        ["img001.tif"],
        r"images.img001\.tif: holds 3 values that are NaN or infinite; .* Or leave the file out with --allow non-f",
        3,
    ),
    (
        "mixed-channels",
        break_channels,
        ["img001.tif"],
        r"images.img001\.tif: has another number of channels than most images, which have 1\. Convert it, or leave",
        3,
    ),
]


def test_a_sound_data_set_has_no_problems(data: Path) -> None:
    found = survey(open_dataset(data), MaskLabels())
    assert found.problems == ()
    assert found.channels == 1
    assert found.meaning.kind == "index"
    assert [len(found.of(split)) for split in ("train", "val")] == [4, 4]
    assert [fact.sample for fact in found.of("val")] == list(found.dataset.split("val"))


@pytest.mark.parametrize(("code", "damage", "files", "message", "left"), CASES)
def test_a_problem_stops_and_is_named_and_may_be_allowed(
    data: Path, code: str, damage: Break, files: list[str], message: str, left: int
) -> None:
    damage(data)
    with pytest.raises(DataError, match=message):
        survey(open_dataset(data), MaskLabels())
    found = survey(open_dataset(data), MaskLabels(), allow=[code])
    assert [(problem.code, problem.severity, names(problem)) for problem in found.problems] == [(code, "error", files)]
    assert len(found.dataset.split("train")) == left
    assert len(found.dataset.split("val")) == 4
    assert set(found.facts) == {sample.image for sample in found.dataset.samples}  # nothing of what is left out
    other = "split-leak"
    with pytest.raises(DataError, match=message):
        survey(open_dataset(data), MaskLabels(), allow=[other])


@pytest.mark.parametrize("code", ["truncated", "unknown-value", "size-mismatch"])
def test_a_problem_stops_an_evaluation_too(data: Path, code: str) -> None:
    rule = survey(open_dataset(data), MaskLabels()).meaning
    damage, message = next((damage, message) for name, damage, _, message, _ in CASES if name == code)
    damage(data)
    with pytest.raises(DataError, match=message):
        survey(open_dataset(data), MaskLabels(), meaning=rule)
    assert (
        len(
            survey(open_dataset(data), MaskLabels(), meaning=rule, allow=[code], splits=["train"]).dataset.split(
                "train"
            )
        )
        == 3
    )


def test_only_the_splits_that_are_asked_for_are_read(data: Path) -> None:
    truncate(data / "val/masks/img101.png")
    assert len(survey(open_dataset(data), MaskLabels(), splits=("train",)).of("train")) == 4
    with pytest.raises(DataError, match=r"val.masks.img101\.png: "):
        survey(open_dataset(data), MaskLabels())


def test_an_unknown_code_is_refused(data: Path) -> None:
    message = r"^--allow unknown-valeu: no problem has this code; did you mean unknown-value or unknown-format\?$"
    with pytest.raises(SettingError, match=message):
        survey(open_dataset(data), MaskLabels(), allow=["unknown-valeu"])
    with pytest.raises(SettingError, match=r"^--allow x: no problem has this code; choose from: unpaired-image, "):
        survey(open_dataset(data), MaskLabels(), allow=["unreadable", "x"])


def test_masks_that_make_no_sense_name_the_data_set(tmp_path: Path, make_dataset: MakeDataset) -> None:
    root = make_dataset(tmp_path / "cells", count=3)
    for path in (root / "masks").iterdir():
        save(path, np.zeros((48, 40), np.uint8))
    with pytest.raises(DataError, match=r"hold the value 0 in every pixel; at least two classes .*\[empty-mask\]$"):
        survey(open_dataset(root), MaskLabels())


def test_all_problems_are_told_at_once_but_not_too_many(tmp_path: Path, make_dataset: MakeDataset) -> None:
    root = make_dataset(tmp_path, count=30, size=(8, 8))
    damaged = sorted((root / "images").iterdir())[:24]
    for number, path in enumerate(damaged):
        save(path, np.zeros((9 + number, 9), np.uint8))
    with pytest.raises(DataError) as caught:
        survey(open_dataset(root), MaskLabels())
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "... and 4 more problems"
    assert all(line.endswith("[size-mismatch]") for line in lines[:-1])


def test_files_with_the_same_problem_are_told_once(data: Path) -> None:
    for number in range(2):
        (data / f"train/images/img00{number}.png").write_text("a note")
    with pytest.raises(DataError, match=r"^[^\n]*img000\.png, [^\n]*img001\.png: is a text file, [^\n]*$"):
        survey(open_dataset(data), MaskLabels())


def test_two_problems_are_told_together(data: Path) -> None:
    break_size(data)
    (data / "val/masks/img101.png").unlink()
    (data / "val/images/img102.png").write_text("a note")
    with pytest.raises(DataError, match=r"(?s)unpaired-image"):
        survey(open_dataset(data), MaskLabels(), allow=["size-mismatch"])
    with pytest.raises(DataError) as caught:
        survey(open_dataset(data), MaskLabels(), allow=["unpaired-image"])
    assert [line.rpartition("[")[2] for line in str(caught.value).splitlines()] == ["size-mismatch]", "unknown-format]"]


def test_a_problem_shows_three_files() -> None:
    files = tuple(Path(f"{number}.png") for number in range(5))
    assert str(Problem("code", files[:3], "Bad.", "Mend.")) == "0.png, 1.png, 2.png: Bad. Mend. [code]"
    assert str(Problem("code", files, "Bad.", "Mend.")).startswith("0.png, 1.png, 2.png and 2 more: Bad.")


def test_every_file_is_read_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "dataset.toml").unlink()  # so that the meaning of the labels is inferred
    opened: list[Path] = []

    def counted(path: Path, *rest: Any) -> Any:
        opened.append(path)
        return _opened(path, *rest)

    monkeypatch.setattr(readers, "_opened", counted)
    found = survey(open_dataset(data), MaskLabels())
    files = sorted(path for sample in found.dataset.samples for path in sample.files)
    assert sorted(opened) == files
    assert len(files) == 16
    other = LabelRule("instances", ClassMap(("rest", "any")), ignore=(2,))
    again = found.with_meaning(other)
    assert sorted(opened) == files
    assert again.meaning == other
    for sample in found.dataset.samples:
        mask = read_mask(sample.target)[0]
        one, two = found.facts[sample.image].labels, again.facts[sample.image].labels
        assert one.sum(0).tolist() == np.bincount(mask.ravel(), minlength=3).tolist()
        assert two.sum(0).tolist() == [(mask == 0).sum(), (mask == 1).sum()]


def test_another_meaning_is_checked_against_what_was_read(data: Path) -> None:
    found = survey(open_dataset(data), MaskLabels())
    two = LabelRule("index", ClassMap(("rest", "one")))
    with pytest.raises(
        DataError, match=r"img002\.png and 5 more: holds the value 2, but the 2 classes have the values 0 to 1"
    ):
        found.with_meaning(two)
    assert found.with_meaning(two, ["unknown-value"]).facts == {}
    assert len(found.with_meaning(two, ["unknown-value"]).with_meaning(found.meaning).facts) == 8


def test_progress_counts_the_samples(data: Path) -> None:
    calls: list[tuple[int, int]] = []
    survey(
        open_dataset(data), MaskLabels(), splits=("train",), progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


# Channels


def test_grey_and_rgb_may_be_mixed(data: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("img001", "img002", "img003"):
        save(data / f"train/images/{name}.png", rng.integers(0, 256, (48, 40, 3), np.uint8))
    found = survey(open_dataset(data), MaskLabels())
    assert found.channels == 3
    (problem,) = found.problems
    assert (problem.code, problem.severity, len(problem.files)) == ("mixed-channels", "warning", 5)
    assert "is grey while 3 other images are RGB. It is used as RGB with three equal channels." in str(problem)
    assert len(found.of("train")) == 4  # none is left out


def test_the_commonest_number_of_channels_counts(data: Path) -> None:
    for number in range(3):
        (data / f"train/images/img00{number}.png").unlink()
        image = np.ones((4, 48, 40), np.uint8)
        save(data / f"train/images/img00{number}.tif", image, metadata={"axes": "CYX"}, photometric="minisblack")
    with pytest.raises(DataError, match=r"than most images, which have 4"):
        survey(open_dataset(data), MaskLabels(), splits=("train",))
    found = survey(open_dataset(data), MaskLabels(), allow=["mixed-channels"], splits=("train",))
    assert found.channels == 4
    assert {fact.channels for fact in found.facts.values()} == {4}


# Pages


def test_a_stack_is_counted_page_by_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (3, 9, 11), np.uint8), rng.integers(0, 2, (3, 9, 11), np.uint8)
    sample = Sample("stack", tmp_path / "image.tif", tmp_path / "mask.tif")
    save(sample.image, image, photometric="minisblack", metadata={"axes": "ZYX"})
    save(sample.target, mask, photometric="minisblack", metadata={"axes": "ZYX"})
    examined, _ = examine(sample, MaskLabels())
    facts = examined.found
    assert isinstance(facts, ImageFacts)
    assert (facts.pages, facts.height, facts.width, facts.channels) == (3, 9, 11, 1)
    counts = MaskLabels().count(examined.labels, LabelRule("index", ClassMap(("a", "b"))))
    assert counts.sum(0).tolist() == np.bincount(mask.ravel()).tolist()
    save(sample.target, mask[:2], photometric="minisblack", metadata={"axes": "ZYX"})
    problem = examine(sample, MaskLabels())[0].found
    assert isinstance(problem, Problem)
    assert "is 3 pages of 11 x 9, but its mask" in str(problem)
    assert "is 2 pages of 11 x 9." in str(problem)


def test_axes_of_the_description_reach_the_reader(tmp_path: Path, make_dataset: MakeDataset) -> None:
    root = make_dataset(tmp_path, count=3, size=(9, 11))
    for path in (root / "images").iterdir():
        path.unlink()
        save(path.with_suffix(".tif"), np.ones((2, 9, 11), np.uint8), photometric="minisblack", metadata=None)
    for path in (root / "masks").iterdir():
        path.unlink()
        mask = np.random.default_rng(0).integers(0, 2, (2, 9, 11), np.uint8)
        save(path.with_suffix(".tif"), mask, photometric="minisblack", metadata=None)
    (root / "dataset.toml").write_text("axes = 'ZYX'")
    assert {fact.pages for fact in survey(open_dataset(root), MaskLabels()).facts.values()} == {2}


# Figures


def facts_of(image: np.ndarray) -> ImageFacts:
    return image_facts(Sample("x", Path("x"), Path("x")), Picture(image[None], FileFacts("PNG")))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([np.uint8, np.uint16, np.float32]), st.integers(1, 4))
def test_figures_are_those_of_the_pixels(seed: int, dtype: type, channels: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (*rng.integers(1, 30, 2), channels)
    unit = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    image = (rng.random(shape) * unit).astype(dtype)
    facts = facts_of(image)
    real = image.astype(np.float64) / unit
    assert facts.integer == (dtype is not np.float32)
    np.testing.assert_allclose(facts.mean, real.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(facts.variance, real.var((0, 1)), rtol=1e-5, atol=1e-12)
    if np.ptp(image) > 0 and np.ptp(np.percentile(real, (1, 99))) > 0:
        np.testing.assert_allclose([facts.low, facts.high], np.percentile(real, (1, 99)), rtol=1e-5, atol=1e-9)
    assert facts.high > facts.low


def test_facts_of_a_split_are_in_its_order(data: Path) -> None:
    found = survey(open_dataset(data), MaskLabels(), splits=("val", "train"))
    assert isinstance(found, Survey)
    assert [fact.sample.name for fact in found.of("train")] == [f"img00{number}" for number in range(4)]
    with pytest.raises(DataError, match=r"the split 'test' is empty or missing"):
        found.of("test")
