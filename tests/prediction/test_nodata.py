"""Pixels without data: they change nothing else, and become background or a label of their own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from networks import make_settings
from pixelwise.core.windows import Window
from pixelwise.data.files.facts import FileFacts
from pixelwise.data.files.readers import read_mask
from pixelwise.prediction.page import Page
from pixelwise.prediction.postprocess import PostProcess
from pixelwise.prediction.requests import OutputOptions
from pixelwise.prediction.stream import Listener, Outcome, predict_files
from streams import bright, mask_of, noise, only, smooth, tiled

HOLE = np.s_[20:90, 30:100]


def image_with_hole(value: float, dtype: type = np.float32) -> np.ndarray:
    image = (smooth(150, 170) / 255).astype(np.float32) if dtype is np.float32 else smooth(150, 170).clip(1)
    image[HOLE] = value
    return image


def save(path: Path, image: np.ndarray, nodata: str | None = None, **options: Any) -> Path:
    tags = [] if nodata is None else [(42113, "s", 0, nodata, True)]
    tifffile.imwrite(path, image, photometric="minisblack", extratags=tags, tile=(32, 32), **options)
    return path


def run(path: Path, options: OutputOptions, tile: Any = "auto", **data: Any) -> tuple[Outcome, list[str]]:
    notes: list[str] = []
    outcome = predict_files(tiled(tile, **data), [str(path)], options, listener=Listener(note=notes.append))
    return outcome, notes


@pytest.mark.parametrize("normalization", ["fixed", "percentile"])
@pytest.mark.parametrize("value", ["-9999", "nan", "-3.4028234663852886e+38"])
def test_the_value_changes_nothing(tmp_path: Path, out: Path, normalization: str, value: str) -> None:
    """Whichever value stands in the hole, all other pixels get the same classes, with every tile."""
    masks = []
    for name, stored in (("a", value), ("b", "-1")):
        path = save(tmp_path / f"{name}.tif", image_with_hole(float(stored)), stored)
        for tile in ("auto", 32):
            outcome, notes = run(path, OutputOptions(out / f"{name}{tile}"), tile, normalization=normalization)
            masks.append(mask_of(only(outcome)))
            share = f"{70 * 70 / (150 * 170):.1%} of the pixels are nodata"
            assert [note for note in notes if share in note and str(path) in note]
    for mask in masks:
        np.testing.assert_array_equal(mask, masks[0])
        assert not mask[HOLE].any()
    assert masks[0].any()


def test_a_declared_value_serves_where_the_file_is_silent(tmp_path: Path, out: Path) -> None:
    tagged = save(tmp_path / "a.tif", image_with_hole(-9999), "-9999")
    silent = save(tmp_path / "b.tif", image_with_hole(-9999))
    expected = mask_of(only(run(tagged, OutputOptions(out / "a"))[0]))
    np.testing.assert_array_equal(mask_of(only(run(silent, OutputOptions(out / "b"), nodata=-9999.0)[0])), expected)
    np.testing.assert_array_equal(mask_of(only(run(tagged, OutputOptions(out / "c"), nodata=0.5)[0])), expected)


@pytest.mark.parametrize("file_format", ["png", "tiff", "zarr"])
@pytest.mark.parametrize("clean", [PostProcess(), PostProcess(fill_holes=10**6, smallest_object=9)])
def test_a_label_of_their_own(
    tmp_path: Path, out: Path, little_memory: Any, file_format: Any, clean: PostProcess
) -> None:
    path = save(tmp_path / "a.tif", image_with_hole(0, np.uint8), "0")
    if file_format != "png":
        little_memory()
    options = OutputOptions(out / "label", file_format, nodata_label=200, clean=clean)
    mask = mask_of(only(run(path, options, 32)[0]))
    plain = mask_of(only(run(path, OutputOptions(out / "plain", file_format, clean=clean), 32)[0]))
    hole = np.zeros(mask.shape, bool)
    hole[HOLE] = True
    np.testing.assert_array_equal(mask == 200, hole)
    np.testing.assert_array_equal(mask[~hole], plain[~hole])


def test_the_tiff_of_a_mask_declares_them(tmp_path: Path, out: Path) -> None:
    path = save(tmp_path / "a.tif", image_with_hole(-9999), "-9999")
    for label, expected in ((None, "-9999"), (255, "255")):
        options = OutputOptions(out / str(label), "tiff", nodata_label=label)
        entry = only(run(path, options)[0])
        with tifffile.TiffFile(entry["mask"]) as file:
            assert file.pages.first.tags[42113].value == expected


def test_a_page_of_nothing_else(tmp_path: Path, out: Path) -> None:
    path = save(tmp_path / "a.tif", np.full((40, 50), np.nan, np.float32), "nan")
    outcome, notes = run(path, OutputOptions(out), normalization="percentile")
    assert not mask_of(only(outcome)).any()
    assert any("100.0% of the pixels are nodata (nan); they become background" in note for note in notes)


def test_a_value_that_does_not_occur_says_nothing(tmp_path: Path, out: Path) -> None:
    path = save(tmp_path / "a.tif", noise(40, 50)[..., 0].clip(1), "0")
    assert run(path, OutputOptions(out))[1] == []


def test_missing_pixels_have_the_median_of_each_channel() -> None:
    image = np.random.default_rng(0).integers(1, 9, (20, 30, 3), dtype=np.uint8)
    image[3, 4] = 0
    page = Page.of_array(image, make_settings(3).data, FileFacts("TIFF", nodata=0))
    others = np.delete(image.reshape(-1, 3), 3 * 30 + 4, axis=0)
    np.testing.assert_array_equal(page.read(Window(3, 4, 4, 5))[0, 0], np.rint(np.median(others, axis=0)))
    np.testing.assert_array_equal(page.crop(Window(2, 9, 2, 9)).read(Window(1, 2, 2, 3)), page.read(Window(3, 4, 4, 5)))
    assert page.missing_share == pytest.approx(1 / 600)
    assert page.valid(Window(3, 4, 3, 6)).tolist() == [[True, False, True]]  # type: ignore[union-attr]
    assert Page.of_array(image, make_settings(3).data).valid(Window(0, 1, 0, 1)) is None


def test_an_array_with_a_declared_value_is_as_its_file(tmp_path: Path, out: Path) -> None:
    image = image_with_hole(-9999)
    path = save(tmp_path / "a.tif", image)
    predictor = bright(nodata=-9999.0, normalization="percentile")
    expected = read_mask(Path(only(predict_files(predictor, [str(path)], OutputOptions(out)))["mask"]))[0]
    np.testing.assert_array_equal(predictor.labels(image[..., None]), expected)
