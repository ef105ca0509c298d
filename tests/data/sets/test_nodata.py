"""Pixels without data in training and measuring: they count in no figure, label or loss."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from networks import make_settings
from pixelwise.core.classes import IGNORE, ClassMap
from pixelwise.core.config import make_config
from pixelwise.data.health.survey import survey
from pixelwise.data.masks.labels import LabelRule
from pixelwise.data.masks.masks import MaskLabels
from pixelwise.data.masks.stored import StoredMask, classes_of, ids_of
from pixelwise.data.pixels.normalize import Normalization, Numbers, filled, percentile_range
from pixelwise.data.sets.folder import open_dataset, read_description
from pixelwise.data.sets.pairs import Sample
from pixelwise.data.sets.sampling import Store
from pixelwise.tasks.segment import Segmentation
from pixelwise.training.plan import levels

HOLE = np.s_[5:15, 8:20]
CLASSES = ClassMap(("a", "b"))


def image(value: float) -> np.ndarray:
    pixels = np.random.default_rng(0).normal(3, 1, (30, 40)).astype(np.float32)
    pixels[HOLE] = value
    return pixels


def tiff(path: Path, array: np.ndarray, nodata: str | None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tags = [] if nodata is None else [(42113, "s", 0, nodata, True)]
    tifffile.imwrite(path, array, photometric="minisblack", extratags=tags)
    return path


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    labels = np.random.default_rng(1).integers(0, 2, (30, 40)).astype(np.int16)
    labels[25:] = -5
    return Sample(
        "a",
        tiff(tmp_path / "images" / "a.tif", image(-9999), "-9999"),
        tiff(tmp_path / "masks" / "a.tif", labels, "-5"),
    )


def test_entries_of_a_training(sample: Sample) -> None:
    config = make_settings(normalization="percentile", labels="index", classes=["a", "b"], values=[])
    entry = Store([(sample, 0)], config)[0]
    hole = np.zeros((30, 40), bool)
    hole[HOLE] = True
    missing = hole.copy()
    missing[25:] = True
    np.testing.assert_array_equal(entry.labels == IGNORE, missing)
    known = image(np.nan)[~hole]
    assert np.unique(entry.image[hole]).tolist() == [pytest.approx(np.median(known))]
    low, high = np.percentile(known, (1, 99))
    assert entry.gain[0] == pytest.approx(2 / (high - low) / config.data.std[0], rel=1e-5)


def test_records_of_an_evaluation(sample: Sample) -> None:
    config = make_settings(labels="index", classes=["a", "b"], values=[])
    (record,) = Segmentation().records(sample, config, None)
    assert record.facts is not None
    assert record.facts.nodata == -9999
    assert (record.truth.classes[HOLE] == IGNORE).all()
    assert (record.truth.classes[25:] == IGNORE).all()
    assert (record.truth.classes[:5] != IGNORE).all()


def test_a_turn_that_explains_unequal_sizes_is_named(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.png")
    config = make_settings(labels="index", classes=["a", "b"], values=[])
    message = (
        r"is \(30, 20\), but its mask .*a\.png is \(20, 30\)\. The image asks viewers to turn it \(EXIF orientation 6\)"
        r", and its mask lies as the image is stored: turn one of them\."
    )
    with pytest.raises(Exception, match=message):
        list(Segmentation().records(Sample("a", tmp_path / "a.jpg", tmp_path / "a.png"), config, None))


@pytest.mark.parametrize("way", ["tag", "declared", "nan"])
def test_figures_of_a_data_set(tmp_path: Path, make_dataset: Callable[..., Path], way: str) -> None:
    root = make_dataset(tmp_path / "d", count=6)
    for number, path in enumerate(sorted((root / "images").iterdir())):
        pixels = np.random.default_rng(number).random((48, 40), np.float32)
        pixels[:16] = np.nan if way == "nan" else -9999
        tiff(path.with_suffix(".tif"), pixels, {"tag": "-9999", "nan": "nan"}.get(way))
        path.unlink()
    if way == "declared":
        (root / "dataset.toml").write_text("nodata = -9999")
    for fact in survey(open_dataset(root), MaskLabels()).facts.values():
        assert 0 <= fact.low < 0.1
        assert 0.4 < fact.mean[0] < 0.6
        assert fact.variance[0] < 0.1


def test_nodata_in_dataset_toml_may_be_nan(tmp_path: Path) -> None:
    (tmp_path / "dataset.toml").write_text("nodata = nan")
    assert np.isnan(read_description(tmp_path / "dataset.toml").nodata)


def test_a_run_keeps_what_was_declared() -> None:
    config = make_settings(nodata=float("nan"), levels=[0.0, 1.0, 0.5, 1.5])
    again = make_config(config.model_dump(mode="json"))
    assert again.data.nodata is not None
    assert np.isnan(again.data.nodata)
    assert again.data.levels == [0.0, 1.0, 0.5, 1.5]
    assert "nodata = nan" in config.to_toml()


def test_unknown_values_without_data_need_no_class() -> None:
    rule = LabelRule("index", CLASSES)
    mask = np.array([[[0, 1, 77]]])
    own = StoredMask(mask, valid=mask != 77)
    assert classes_of(own, 0, rule).tolist() == [[0, 1, IGNORE]]
    assert classes_of(StoredMask(mask), 0, rule, np.array([[True, True, False]])).tolist() == [[0, 1, IGNORE]]
    assert classes_of(own, 0, rule, np.array([[False, True, True]])).tolist() == [[IGNORE, 1, IGNORE]]
    assert classes_of(StoredMask(mask), 0, rule, np.zeros((1, 3), bool)).tolist() == [[IGNORE] * 3]
    assert ids_of(own, 0).tolist() == [[0, 1, 0]]
    assert ids_of(StoredMask(mask), 0).tolist() == [[0, 1, 77]]


def test_labels_of_pixels_without_data_are_not_counted(sample: Sample) -> None:
    from pixelwise.data.health.examine import ImageFacts, examine

    examined, _ = examine(sample, MaskLabels())
    assert isinstance(examined.found, ImageFacts)
    counts = MaskLabels().count(examined.labels, LabelRule("index", CLASSES))
    labels = tifffile.imread(sample.target)
    counted = np.ones((30, 40), bool)
    counted[HOLE] = False
    counted[25:] = False
    assert counts.sum(0).tolist() == np.bincount(labels[counted]).tolist()


def test_percentiles_and_pixels_without_data() -> None:
    pixels = image(-9999)[..., None]
    known = np.delete(pixels, 0)[np.delete(pixels, 0) != -9999]

    def read(window: object) -> np.ndarray:
        return pixels

    low, high = percentile_range(read, 30, 40, 1, -9999)
    assert -1 < low < 2 < 4 < high < 7
    assert percentile_range(read, 30, 40, 1)[0] == -9999
    assert len(known) == 30 * 40 - 121
    assert percentile_range(lambda window: np.full((3, 3, 1), -1.0), 3, 3, 1, -1) == (0.0, 1.0)
    flat = np.full((4, 4, 1), 2.0)
    flat[0] = -1
    assert percentile_range(lambda window: flat, 4, 4, 1, -1) == (2.0, 4.0)
    assert filled(pixels, None) is pixels
    assert filled(pixels, 12345.0) is pixels
    assert Numbers(np.dtype(np.uint8)).unit == 1 / 255
    assert Numbers(np.dtype(np.uint16), full_scale=4095).unit == 1 / 4095
    normalization = Normalization(False, (0.0,), (1.0,))
    twelve = Numbers(np.dtype(np.uint16), full_scale=4095)
    gain, _ = normalization.gain_and_offset(np.zeros((2, 2, 1), np.uint16), twelve)
    assert gain[0] == np.float32(1 / 4095)


def test_levels_of_a_training(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    facts = survey(open_dataset(make_dataset(tmp_path / "d", count=8)), MaskLabels()).of("train")
    low, high, dimmest, brightest = levels(facts)
    assert low == pytest.approx(np.median([fact.low for fact in facts]), rel=1e-4)
    assert dimmest <= high <= brightest
