"""Figures: pooled over the set's pixels, with the run's own meaning of the masks, in the contract's words."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from pixelwise.api import Run, choose_split
from pixelwise.core.classes import IGNORE
from pixelwise.core.config import Config, make_config
from pixelwise.core.errors import DataError, ModelError, SettingError
from pixelwise.data.sets.folder import Sample, open_dataset
from pixelwise.engines import EngineChoice
from pixelwise.evaluation.measure import Case, Gallery, evaluate
from pixelwise.geometry.reach import Geometry
from pixelwise.prediction.requests import OutputOptions
from pixelwise.prediction.stream import predict_files
from pixelwise.task import Record
from pixelwise.tasks import TASKS
from pixelwise.tasks.segment import Labels

TASK = TASKS["segment"]


class Brightness(nn.Module):
    """Class k where the normalised intensity is nearest to `levels[k]`."""

    geometry = Geometry(stride=1, halo=0, margin=0)
    levels: Tensor

    def __init__(self, levels: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels))

    def forward(self, images: Tensor) -> Tensor:
        return -((images.mean(1, keepdim=True) - self.levels[:, None, None]) ** 2)


def make_settings(labels: str, count: int = 2, values: Sequence[int] = (), ignore: Sequence[int] = ()) -> Config:
    return make_config(
        {
            "data": {
                "labels": labels, "classes": ["background", "cell", "wall"][:count],
                "colors": [[0, 0, 0], [250, 120, 10], [10, 20, 250]][:count], "values": list(values),
                "ignore": list(ignore), "channels": 1, "scale": 1.0, "normalization": "fixed",
                "mean": [0.0], "std": [1.0],
            },
            "model": {},
            "train": {"patch": [32, 32], "batch": 2, "epochs": 1, "steps_per_epoch": 2, "rate": 0.001},
            "augment": {},
            "loss": {},
        }
    )  # fmt: skip


def make_run(path: Path, config: Config) -> Run:
    """A run whose network calls class k what has a grey value near 101 k."""
    levels = [101 * k / 255 for k in range(len(config.data.classes))]
    return Run(path, Brightness(levels), config, {"epoch": 1, "metric": "mean_iou", "value": 0.5})


def predicted(image: np.ndarray, count: int) -> np.ndarray:
    """The same by hand."""
    return np.abs(image[..., None].astype(float) - 101 * np.arange(count)).argmin(-1)


def write(root: Path, split: str, number: int, size: tuple[int, int], mask: np.ndarray | None = None) -> Path:
    """An image of noise, and a mask of two values or the given one."""
    rng = np.random.default_rng(number)
    folder = root / split
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    image = rng.integers(0, 256, size, dtype=np.uint8)
    if mask is None:
        mask = (rng.random(size) < 0.3).astype(np.uint8) * 255
    Image.fromarray(image).save(folder / "images" / f"{number}.png")
    Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder / "images" / f"{number}.png"


def literal_iou(pairs: Sequence[tuple[np.ndarray, np.ndarray]], value: int) -> float | None:
    """Pooled over the pixels of (truth, prediction) pairs; pixels whose truth is `IGNORE` count nowhere."""
    shared = either = 0
    for truth, prediction in pairs:
        counted = truth != IGNORE
        shared += int(((truth == value) & (prediction == value) & counted).sum())
        either += int((((truth == value) | (prediction == value)) & counted).sum())
    return shared / either if either else None


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    """Three images of very different size and difficulty in `val`, one in `train`."""
    root = tmp_path / "data"
    write(root, "train", 9, (8, 8))
    write(root, "val", 1, (6, 5))
    write(root, "val", 2, (40, 30))
    write(root, "val", 3, (20, 25))
    return root


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run", make_settings("binary", values=(0, 255)))


def test_iou_is_pooled_and_equals_that_of_the_predicted_masks(binary: Path, run: Run, tmp_path: Path) -> None:
    metrics = run.evaluate(binary, "val")
    images = sorted((binary / "val" / "images").iterdir())
    predict_files(run.predictor(), [str(path) for path in images], OutputOptions(tmp_path / "masks"))
    pairs = [
        (
            np.asarray(Image.open(binary / "val" / "masks" / path.name)) // 255,
            np.asarray(Image.open(tmp_path / "masks" / path.name)),
        )
        for path in images
    ]
    expected = [literal_iou(pairs, value) for value in (0, 1)]
    assert [row["iou"] for row in metrics["classes"]] == pytest.approx(expected)
    assert metrics["mean_iou"] == pytest.approx(np.mean(expected))
    averaged = np.mean([[literal_iou([pair], value) for value in (0, 1)] for pair in pairs])
    assert metrics["mean_iou"] != pytest.approx(averaged, abs=1e-3)
    truth, prediction = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    assert metrics["pixel_accuracy"] == pytest.approx((truth == prediction).mean())
    table = [[int(((truth == t) & (prediction == p)).sum()) for p in (0, 1)] for t in (0, 1)]
    assert metrics["confusion"] == table
    for value, row in enumerate(metrics["classes"]):
        assert row["pixels"] == sum(table[value])
        assert row["recall"] == pytest.approx(table[value][value] / sum(table[value]))
        assert row["precision"] == pytest.approx(table[value][value] / (table[0][value] + table[1][value]))
        assert row["dice"] == pytest.approx(2 * row["iou"] / (1 + row["iou"]))


def test_metrics_json_has_what_the_contract_names(binary: Path, run: Run) -> None:
    told = run.evaluate(binary)
    folder = run.path / "evaluation-val"
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8")) == told
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "report.html"}
    assert told.keys() == {
        "task", "metric", "value", "mean_iou", "pixel_accuracy", "mean_dice", "images", "confusion", "classes",
        "boundary_f", "split",
    }  # fmt: skip
    assert (told["task"], told["metric"], told["value"]) == ("segment", "mean_iou", told["mean_iou"])
    assert told["images"] == 3
    assert [list(row) for row in told["classes"]] == [["name", "iou", "dice", "precision", "recall", "pixels"]] * 2
    assert [row["name"] for row in told["classes"]] == ["background", "cell"]
    assert told["boundary_f"].keys() == {"1", "2", "3"}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "run: data, split val" in page


def test_the_default_split_is_test_else_val(binary: Path, run: Run) -> None:
    assert choose_split(open_dataset(binary), None) == "val"
    write(binary, "test", 5, (9, 9))
    assert choose_split(open_dataset(binary), None) == "test"
    assert choose_split(open_dataset(binary), "train") == "train"
    metrics = run.evaluate(binary)
    assert (metrics["split"], metrics["images"]) == ("test", 1)
    assert (run.path / "evaluation-test" / "metrics.json").is_file()
    with pytest.raises(
        DataError, match=r"data: the split 'tset' is empty or missing; splits with images: train, val, t"
    ):
        run.evaluate(binary, "tset")


def test_the_folder_may_be_named(binary: Path, run: Run, tmp_path: Path) -> None:
    run.evaluate(binary, "train", tmp_path / "elsewhere")
    assert json.loads((tmp_path / "elsewhere" / "metrics.json").read_text())["images"] == 1
    assert not run.path.exists()


def test_masks_mean_what_they_meant_in_the_run(tmp_path: Path) -> None:
    root, mask = tmp_path / "data", np.array([[0, 255], [255, 255]], np.uint8)
    for split in ("train", "val"):
        write(root, split, 1, (2, 2), mask)
    turned = make_run(tmp_path / "a", make_settings("binary", values=(255, 0)))
    assert [row["pixels"] for row in turned.evaluate(root)["classes"]] == [3, 1]
    # One value alone, from which nobody could tell the kind of labels:
    write(root, "val", 1, (2, 2), np.full((2, 2), 255, np.uint8))
    usual = make_run(tmp_path / "b", make_settings("binary", values=(0, 255)))
    assert [row["pixels"] for row in usual.evaluate(root)["classes"]] == [0, 4]
    other = make_run(tmp_path / "c", make_settings("binary", values=(0, 1)))
    with pytest.raises(
        DataError, match=r"val/masks/1\.png: holds the value 255, but the 2 classes have the values 0, 1"
    ):
        other.evaluate(root)
    assert not (tmp_path / "c").exists()


def test_ignored_pixels_count_nowhere(tmp_path: Path) -> None:
    root, rng = tmp_path / "data", np.random.default_rng(0)
    pairs = []
    for number in range(3):
        mask = rng.choice([0, 1, 2, 7], (12, 9)).astype(np.uint8)
        path = write(root, "val", number, mask.shape, mask)
        pairs.append((np.where(mask == 7, IGNORE, mask.astype(np.uint16)), predicted(np.asarray(Image.open(path)), 3)))
    write(root, "train", 1, (4, 4), np.zeros((4, 4), np.uint8))
    run = make_run(tmp_path / "run", make_settings("index", 3, ignore=[7]))
    metrics = run.evaluate(root)
    assert [row["iou"] for row in metrics["classes"]] == pytest.approx([literal_iou(pairs, k) for k in range(3)])
    assert np.sum(metrics["confusion"]) == sum(int((truth != IGNORE).sum()) for truth, _ in pairs)


def test_a_class_that_does_not_occur_is_null_and_outside_the_mean(tmp_path: Path) -> None:
    root = tmp_path / "data"
    mask = np.array([[0, 0, 1, 1]], np.uint8)
    for split in ("train", "val"):
        write(root, split, 1, (1, 4), mask)
        Image.fromarray(np.array([[0, 100, 100, 0]], np.uint8)).save(root / split / "images" / "1.png")
    run = make_run(tmp_path / "run", make_settings("index", 3))
    metrics = run.evaluate(root)
    assert [row["iou"] for row in metrics["classes"]] == [pytest.approx(1 / 3), pytest.approx(1 / 3), None]
    assert metrics["classes"][2] == {
        "name": "wall", "iou": None, "dice": None, "precision": None, "recall": None, "pixels": 0,
    }  # fmt: skip
    assert metrics["mean_iou"] == pytest.approx(1 / 3)
    assert '"iou": null' in (run.path / "evaluation-val" / "metrics.json").read_text()


def test_a_set_that_is_ignored_throughout_has_no_figures(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for split in ("train", "val"):
        write(root, split, 1, (4, 4), np.full((4, 4), 7, np.uint8))
    metrics = make_run(tmp_path / "run", make_settings("index", 3, ignore=[7])).evaluate(root)
    assert metrics["mean_iou"] is None
    assert metrics["pixel_accuracy"] is None
    assert "boundary_f" not in metrics
    assert metrics["images"] == 1


def iou_of_objects(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def test_instances_are_matched_to_connected_components(tmp_path: Path) -> None:
    rng, root = np.random.default_rng(3), tmp_path / "data"
    hits = {0.5: 0, 0.75: 0}
    true = found = 0
    for number in range(3):
        image = ndimage.uniform_filter(rng.random((50, 60)), 7)
        image = (100 * (image > 0.52)).astype(np.uint8)
        cells = ndimage.binary_erosion(image > 0, iterations=number) if number else image > 0
        ids = ndimage.label(cells)[0].astype(np.uint16)
        path = write(root, "val", number, ids.shape, ids)
        Image.fromarray(image).save(path)
        parts, count = ndimage.label(image)  # pixels that share a side
        found, true = found + count, true + len(np.unique(ids)) - 1
        for value in np.unique(ids)[1:]:
            best = max((iou_of_objects(ids == value, parts == k) for k in range(1, count + 1)), default=0)
            for threshold in hits:  # an object above 0.5 has one partner only
                hits[threshold] += best >= threshold
    write(root, "train", 1, (4, 4), np.zeros((4, 4), np.uint16))
    metrics = make_run(tmp_path / "run", make_settings("instances")).evaluate(root)
    assert 0 < hits[0.75] < hits[0.5] < true
    for threshold, key in ((0.5, "0.50"), (0.75, "0.75")):
        scores = metrics["instances"][key]
        assert scores["ap"] == pytest.approx(hits[threshold] / (true + found - hits[threshold]))
        assert scores["precision"] == pytest.approx(hits[threshold] / found)
        assert scores["recall"] == pytest.approx(hits[threshold] / true)
        assert scores["f1"] == pytest.approx(2 * hits[threshold] / (true + found))
    assert len(metrics["instances"]) == 10


def test_problems_of_the_data_stop_it_unless_they_are_allowed(binary: Path, run: Run) -> None:
    (binary / "val" / "masks" / "3.png").unlink()
    with pytest.raises(DataError, match=r"val/images/3\.png: has no mask with the same stem"):
        run.evaluate(binary)
    assert run.evaluate(binary, allow=["image-without-mask"])["images"] == 2
    with pytest.raises(SettingError, match=r"--allow nothing: no problem has this code"):
        run.evaluate(binary, allow=["nothing"])


def test_progress_is_told(binary: Path, run: Run) -> None:
    calls: list[tuple[int, int]] = []
    run.evaluate(binary, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


THREE = make_settings("index", 3, ignore=[7])


def records(sample: Sample, config: Config) -> list[Record]:
    return list(TASK.records(sample, config, None))


def test_each_file_is_predicted_once_and_cases_stand_worst_first(binary: Path, run: Run) -> None:
    samples = open_dataset(binary).split("val")
    predictor, seen = run.predictor(), []
    labels = predictor.labels

    def counting(image: np.ndarray, facts: Any = None) -> np.ndarray:
        seen.append(image.shape)
        return labels(image, facts)

    predictor.labels = counting
    metrics, cases = evaluate(TASK, predictor, run.config, samples)
    assert metrics["images"] == len(cases) == len(seen) == 3
    assert [case.score for case in cases] == sorted(case.score for case in cases)
    by_name = {sample.name: sample for sample in samples}
    for case in cases:
        sample = by_name[case.name]
        truth = np.asarray(Image.open(sample.target)) // 255
        pairs = [(truth, predicted(np.asarray(Image.open(sample.image)), 2))]
        assert case.score == pytest.approx(np.mean([literal_iou(pairs, value) for value in (0, 1)]))
        assert list(case.pictures)[:3] == ["Image", "Truth", "Prediction"]


def hung(scores: Sequence[float]) -> list[str]:
    """The names of the cases that a gallery shows in the end; a case is called by its score."""
    gallery = Gallery()
    for score in scores:
        if gallery.wants(score):
            gallery.add(Case(f"{score:g}", score, {}))
    return [case.name for case in gallery.cases()]


@given(st.permutations(range(20)))
@settings(deadline=None, max_examples=50)
def test_the_images_of_the_report_are_the_worst_a_middle_one_and_the_best(order: Sequence[int]) -> None:
    names = [int(name) for name in hung(order)]
    assert set(names) >= {0, 1, 2, 3, 18, 19}
    assert len(names) in (6, 7)
    assert names == sorted(names)


def test_of_many_images_the_middle_one_is_about_the_median() -> None:
    scores = np.random.default_rng(0).permutation(1000)
    middle = int(hung(scores.tolist())[4])
    assert abs(middle - 500) < 60


def test_few_images_are_all_shown_and_those_without_labels_last() -> None:
    assert hung([3, 1, 2]) == ["1", "2", "3"]
    assert hung([0.5, float("nan"), 0.25]) == ["0.25", "0.5", "nan"]
    assert hung([]) == []


def sample_of(folder: Path, image: np.ndarray, mask: np.ndarray) -> Sample:
    for name, array in (("image.tif", image), ("mask.tif", mask)):
        axes = "ZYX" if array.ndim == 3 else "YX"
        tifffile.imwrite(folder / name, array, photometric="minisblack", metadata={"axes": axes})
    return Sample("s", folder / "image.tif", folder / "mask.tif")


def test_each_page_of_a_stack_is_an_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 8, 9), dtype=np.uint8)
    mask = rng.choice([0, 1, 2, 7], (3, 8, 9)).astype(np.uint8)
    sample = sample_of(tmp_path, image, mask)
    pages = records(sample, THREE)
    assert [page.name for page in pages] == ["s page 0", "s page 1", "s page 2"]
    for page, pixels, labels in zip(pages, image, mask, strict=True):
        np.testing.assert_array_equal(page.image[..., 0], pixels)
        np.testing.assert_array_equal(page.truth.classes, np.where(labels == 7, IGNORE, labels.astype(np.uint16)))
        assert page.truth.instances is None
    run = make_run(tmp_path, THREE)
    metrics, cases = evaluate(TASK, run.predictor(), THREE, [sample])
    assert metrics["images"] == 3
    assert sorted(case.name for case in cases) == ["s page 0", "s page 1", "s page 2"]
    pairs = [(page.truth.classes, predicted(pixels, 3)) for page, pixels in zip(pages, image, strict=True)]
    assert [row["iou"] for row in metrics["classes"]] == pytest.approx([literal_iou(pairs, k) for k in range(3)])


def test_ids_are_kept_for_instances(tmp_path: Path) -> None:
    ids = np.array([[0, 300], [7, 7]], np.uint16)
    sample = sample_of(tmp_path, np.zeros((2, 2), np.uint8), ids)
    (page,) = records(sample, make_settings("instances"))
    assert page.name == "s"
    assert page.truth.classes.tolist() == [[0, 1], [1, 1]]
    np.testing.assert_array_equal(page.truth.instances, ids)


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    sample = sample_of(tmp_path, np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8))
    with pytest.raises(DataError, match=r"image\.tif: is \(4, 5\), but its mask .*mask\.tif is \(5, 4\)\."):
        records(sample, THREE)
    sample = sample_of(tmp_path, np.zeros((1, 2), np.uint8), np.array([[0, 9]], np.uint8))
    with pytest.raises(DataError, match=r"mask\.tif: holds the value 9, but the 3 classes have the values 0 to 2\."):
        records(sample, THREE)


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (np.full((3, 4), np.nan, np.float32), DataError, "holds 12 values that are NaN or infinite"),
        (
            np.zeros((3, 4, 3), np.uint8) + np.arange(3, dtype=np.uint8),
            ModelError,
            "is a colour image, but the network",
        ),
    ],
)
def test_images_that_cannot_be_predicted_are_named(tmp_path: Path, image: Any, kind: type, message: str) -> None:
    sample = Sample("s", tmp_path / "i.tif", tmp_path / "m.tif")
    tifffile.imwrite(sample.image, image, photometric="rgb" if image.ndim == 3 else "minisblack")
    tifffile.imwrite(sample.target, np.zeros((3, 4), np.uint8))
    run = make_run(tmp_path, make_settings("index", 3))
    with pytest.raises(kind, match=rf"i\.tif: {message}"):
        evaluate(TASK, run.predictor(), run.config, [sample])


def test_a_tally_without_the_slow_figures() -> None:
    config = make_settings("instances")
    labels = np.array([[0, 1], [1, 0]], np.uint16)
    for full in (True, False):
        tally = TASK.tally(config, full)
        assert tally.add(Record("a", labels[..., None], Labels(labels, labels.astype(np.uint16))), labels) == 1.0
        ignored = Labels(np.full_like(labels, IGNORE), labels * 0)
        assert math.isnan(tally.add(Record("b", labels[..., None], ignored), labels))
        figures = tally.figures()
        assert ("boundary_f" in figures, "instances" in figures) == (full, full)
        assert figures["images"] == 2
        assert figures["mean_iou"] == 1.0


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_what_two_processes_counted_is_what_one_would_have(seed: int) -> None:
    rng, config = np.random.default_rng(seed), make_settings("instances")
    alone, *shares = (TASK.tally(config, full=True) for _ in range(3))
    for number in range(4):
        truth, prediction = rng.integers(0, 2, (2, 8, 9)).astype(np.uint8)
        record = Record(str(number), truth[..., None], Labels(truth, truth.astype(np.uint16)))
        for tally in (alone, shares[number % 2]):
            tally.add(record, prediction)
    shares[0].merge(shares[1])
    assert shares[0].figures() == alone.figures()


def test_nothing_measured_has_no_figures() -> None:
    figures = TASK.tally(THREE, full=True).figures()
    assert figures["mean_iou"] is None
    assert figures["images"] == 0


def test_a_predictor_may_be_any(binary: Path) -> None:
    """The same figures, whatever the size of the tiles."""
    config = make_settings("binary", values=(0, 255))
    samples = open_dataset(binary).split("val")
    network = Brightness([0.0, 0.4])
    first, second = (
        evaluate(TASK, TASK.predictor(network, config, EngineChoice(), tile), config, samples)[0]
        for tile in ("auto", 7)
    )
    assert first == second
