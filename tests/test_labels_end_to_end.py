"""From masks that mean something of their own to a run, its figures and its masks: what is taken for what."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image
from tests.label_cases import BLACK, BLUE, RED, WHITE, areas, scattered
from tests.trainings import small
from typer.testing import CliRunner

import pixelwise as pw
from pixelwise.cli import app
from pixelwise.core.errors import DataError
from pixelwise.data.files.readers import read_mask

Save = Callable[[Path, np.ndarray], None]


def save(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask).save(path.with_suffix(".png"))


def save_tiff(path: Path, mask: np.ndarray) -> None:
    tifffile.imwrite(path.with_suffix(".tif"), mask)


def make(root: Path, masks: list[np.ndarray], toml: str = "", save: Save = save) -> Path:
    """A data set of these masks in train and val."""
    for place, split in enumerate(("train", "val")):
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for number, mask in enumerate(masks):
            noise = np.random.default_rng(100 * place + number).integers(0, 256, mask.shape[:2]).astype(np.uint8)
            Image.fromarray(noise).save(root / split / "images" / f"{place}{number}.png")
            save(root / split / "masks" / f"{place}{number}", mask)
    (root / "dataset.toml").write_text(toml)
    return root


def trained(data: Path, out: Path) -> pw.Run:
    pw.train(data, out, epochs=1, allow=["split-leak", "duplicate-image"], **small(steps_per_epoch=1))
    return pw.load(out)


def kept(run: Path) -> dict[str, Any]:
    """What a run's config says of its data."""
    return dict(tomllib.loads((run / "config.toml").read_text())["data"])


LEVELS = {"0 128 255": [0, 128, 255], "16 bit": [0, 1000, 2000], "gaps": [0, 1, 2, 100, 201], "from 1": [1, 2, 3]}


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_the_values_that_occur_are_the_classes(tmp_path: Path, levels: list[int]) -> None:
    dtype = np.uint8 if max(levels) < 256 else np.uint16
    data = make(tmp_path / "data", [areas(levels, seed, dtype=dtype) for seed in range(3)])
    run = trained(data, tmp_path / "run")
    assert kept(run.path)["values"] == levels
    assert len(run.classes) == len(levels)
    figures = run.evaluate(data)
    assert len(figures["classes"]) == len(figures["confusion"]) == len(levels)
    assert sum(row["pixels"] for row in figures["classes"]) == 3 * 72 * 72
    image = data / "val" / "images" / "10.png"
    assert set(np.unique(run.predict(image))) <= set(range(len(levels)))
    assert set(np.unique(run.predict(image, label_values=True))) <= set(levels)
    assert np.array_equal(np.array(levels)[run.predict(image)], run.predict(image, label_values=True))


@pytest.mark.parametrize("form", ["png", "tiff", "zarr"])
def test_masks_may_hold_the_values_of_the_training(tmp_path: Path, form: str) -> None:
    data = make(tmp_path / "data", [areas([0, 1000, 2000], seed, dtype=np.uint16) for seed in range(3)], save=save_tiff)
    run = trained(data, tmp_path / "run")
    image = data / "val" / "images" / "10.png"
    options = ["predict", str(run.path), str(image), "--out", str(tmp_path / "out"), "--format", form, "--quiet"]
    assert CliRunner().invoke(app, [*options, "--label-values"]).exit_code == 0
    mask = tmp_path / "out" / f"10.{ {'png': 'png', 'tiff': 'tif', 'zarr': 'zarr'}[form] }"
    found = np.asarray(zarr.open_group(mask)["0"]) if form == "zarr" else read_mask(mask)[0]
    assert np.array_equal(found, run.predict(image, label_values=True))
    assert CliRunner().invoke(app, options).exit_code == 0
    found = np.asarray(zarr.open_group(mask)["0"]) if form == "zarr" else read_mask(mask)[0]
    assert np.array_equal(found, run.predict(image))


@pytest.mark.parametrize("form", ["png", "tiff", "zarr"])
def test_masks_may_hold_the_colours_of_the_training(tmp_path: Path, form: str) -> None:
    colors = np.array([BLACK, RED, BLUE], np.uint8)
    data = make(tmp_path / "data", [colors[areas([0, 1, 2], seed)] for seed in range(3)])
    run = trained(data, tmp_path / "run")
    image = data / "val" / "images" / "10.png"
    options = ["predict", str(run.path), str(image), "--out", str(tmp_path / "out"), "--format", form, "--label-values"]
    assert CliRunner().invoke(app, options).exit_code == 0
    wanted = run.predict(image, label_values=True)
    assert wanted.shape == (72, 72, 3)
    if form == "zarr":
        found = np.asarray(zarr.open_group(tmp_path / "out" / "10.zarr")["0"]).transpose(1, 2, 0)
    else:
        stored = read_mask(tmp_path / "out" / f"10.{'png' if form == 'png' else 'tif'}")[0]
        found = stored if stored.ndim == 3 else np.repeat(stored[..., None], 3, axis=2)
    assert np.array_equal(found, wanted)


def test_more_than_255_classes_go_all_the_way(tmp_path: Path) -> None:
    masks = [scattered(list(range(300)), np.uint16, size=72) for _ in range(3)]
    data = make(tmp_path / "data", masks, 'labels = "index"')
    run = trained(data, tmp_path / "run")
    assert len(run.classes) == 300
    figures = run.evaluate(data)
    assert len(figures["classes"]) == 300
    mask = run.predict(data / "val" / "images" / "10.png")
    assert (mask.shape, mask.dtype) == ((72, 72), np.uint16)
    inputs = [str(data / "val" / "images" / "10.png"), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(app, ["predict", str(run.path), *inputs, "--overlay"]).exit_code == 0
    assert np.array_equal(read_mask(tmp_path / "out" / "10.png")[0], mask)


# Measuring on other data


@pytest.fixture
def run(tmp_path: Path) -> pw.Run:
    masks = [areas([0, 1, 2], seed) for seed in range(3)]
    return trained(make(tmp_path / "training", masks, 'classes = ["sky", "road", "car"]'), tmp_path / "run")


def test_classes_are_compared_by_name(run: pw.Run, tmp_path: Path) -> None:
    masks = [areas([0, 1, 2], seed) for seed in range(3)]
    same = run.evaluate(tmp_path / "training")
    turned = make(tmp_path / "turned", [2 - mask for mask in masks], 'classes = ["car", "road", "sky"]')
    found = run.evaluate(turned)
    assert found["confusion"] == same["confusion"]
    assert found["notes"] == [
        "classes are compared by name: the run's classes are sky, road, car; those of the data are car, road, sky"
    ]
    colors = np.array([RED, BLUE, BLACK], np.uint8)
    toml = f"[colors]\ncar = {list(BLACK)}\nsky = {list(RED)}\nroad = {list(BLUE)}"
    assert run.evaluate(make(tmp_path / "c", [colors[m] for m in masks], toml))["confusion"] == same["confusion"]


def test_a_class_that_the_run_lacks_stops_an_evaluation(run: pw.Run, tmp_path: Path) -> None:
    data = make(tmp_path / "d", [areas([0, 1, 2])] * 3, 'classes = ["sky", "road", "tree"]')
    result = CliRunner().invoke(app, ["evaluate", str(run.path), str(data)])
    assert result.exit_code == 2
    assert (
        "the run does not have the class tree, which occurs; the run's classes are sky, road, car; those"
        in result.output
    )


def test_what_the_data_ignore_counts_nowhere(run: pw.Run, tmp_path: Path) -> None:
    masks = [
        np.where(scattered([0, 1], size=72) == 1, 255, areas([0, 1, 2], seed)).astype(np.uint8) for seed in range(3)
    ]
    with pytest.raises(DataError, match=r"holds the value 255, but the 3 classes have the values 0 to 2\."):
        run.evaluate(make(tmp_path / "without", masks))
    found = run.evaluate(make(tmp_path / "with", masks, "ignore = 255"))
    assert sum(row["pixels"] for row in found["classes"]) == sum(int((mask != 255).sum()) for mask in masks)


def test_a_class_that_training_did_not_know_is_marked_and_outside_the_mean(tmp_path: Path) -> None:
    masks = [areas([0, 1], seed) for seed in range(3)]
    run = trained(make(tmp_path / "data", masks, 'classes = ["sky", "road", "car"]'), tmp_path / "run")
    assert kept(run.path)["absent"] == [2]
    head: Any = run.network.head
    head.bias.data[2] = 100.0  # so that nothing else is predicted
    found = run.evaluate(tmp_path / "data")
    rows = found["classes"]
    assert [row.get("trained", True) for row in rows] == [True, True, False]
    assert [row["iou"] for row in rows] == [0.0, 0.0, 0.0]
    assert found["mean_iou"] == 0.0
    assert json.loads((run.path / "evaluation-val" / "metrics.json").read_text())["classes"][2]["trained"] is False
    assert found["mean_iou"] == pytest.approx(np.mean([row["iou"] for row in rows[:2]]))
    page = (run.path / "evaluation-val" / "report.html").read_text()
    assert "(not in the training set)" in page
    lines = CliRunner().invoke(app, ["evaluate", str(run.path), str(tmp_path / "data")]).output
    assert "(not in the training set)" in lines
    other = run.evaluate(make(tmp_path / "other", [areas([0, 1, 2], seed) for seed in range(3)]))
    assert other["mean_iou"] == pytest.approx(np.mean([row["iou"] for row in other["classes"]]))


def test_an_ignored_value_is_no_class_of_the_network(tmp_path: Path) -> None:
    masks = [areas([0, 1, 2, 3], seed) for seed in range(3)]
    run = trained(make(tmp_path / "data", masks, "ignore = 0"), tmp_path / "run")
    assert (kept(run.path)["values"], len(run.classes)) == ([1, 2, 3], 3)
    named = 'ignore = 0\nclasses = ["none", "a", "b", "c"]'
    run = trained(make(tmp_path / "named", masks, named), tmp_path / "second")
    assert run.classes.names == ("a", "b", "c")
    assert "notes" in run.evaluate(tmp_path / "named")


def test_void_colours_are_kept_as_colours(tmp_path: Path) -> None:
    colors = np.array([BLACK, RED, WHITE], np.uint8)
    data = make(tmp_path / "data", [colors[areas([0, 1, 2], seed)] for seed in range(3)], "ignore = [[255, 255, 255]]")
    run = trained(data, tmp_path / "run")
    assert kept(run.path)["ignore"] == [[255, 255, 255]]
    white = sum(int((areas([0, 1, 2], seed) == 2).sum()) for seed in range(3))
    assert sum(row["pixels"] for row in run.evaluate(data)["classes"]) == 3 * 72 * 72 - white


def test_encoders_are_pretrained_on_the_same_classes(tmp_path: Path) -> None:
    data = make(tmp_path / "data", [areas([0, 128, 255], seed) for seed in range(3)])
    options = ["--epochs", "1", "--set", "train.steps_per_epoch=1", "--set", "train.batch=2", "--set", "model.width=4"]
    result = CliRunner().invoke(app, ["pretrain", str(data), "--out", str(tmp_path / "run"), *options, "--json"])
    assert result.exit_code == 0, result.output
    assert kept(tmp_path / "run")["values"] == [0, 128, 255]
    assert "labels: index (value 0, value 128, value 255)" in result.output
    metrics = pw.load(tmp_path / "run").evaluate(data)
    assert json.dumps(metrics)
