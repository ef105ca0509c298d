"""Windows against plain numpy, and pages of files and arrays."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from networks import make_settings
from pixelwise.core.errors import DataError
from pixelwise.core.windows import Window, reader
from pixelwise.data.files.sources import open_source
from pixelwise.data.pixels.normalize import Normalization
from pixelwise.prediction.page import Page, cut
from pixelwise.prediction.tiling import plan_tiles, plan_unpadded_tiles

SIDES = st.integers(1, 70)


def padded_by_numpy(image: np.ndarray, before: int, after: int, border: str) -> np.ndarray:
    frame = ((before, after), (before, after), (0, 0))
    return np.pad(image, frame, mode="edge") if border == "edge" else np.pad(image, frame, mode="reflect")


@given(SIDES, SIDES, st.integers(1, 4), st.integers(0, 90), st.sampled_from(["edge", "reflect"]))
@settings(deadline=None, max_examples=60)
def test_windows_are_those_of_the_image_padded_by_numpy(
    height: int, width: int, strides: int, margin: int, border: str
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (height, width, 2))
    if border == "edge":
        plan = plan_tiles((height, width), 8 * strides, 8, margin)
    else:
        plan = plan_unpadded_tiles((height, width), 8 * strides, 8, margin, lambda side: side + 2 * margin + 5)
    assert plan.border == border
    frame = margin + 64
    padded = padded_by_numpy(image, margin, frame, border)
    for tile in plan.tiles:
        window = cut(reader(image), plan, tile)
        np.testing.assert_array_equal(window, padded[tile.window.moved(margin, margin).slices])


def test_windows_read_no_pixel_outside_of_the_image() -> None:
    plan = plan_unpadded_tiles((20, 30), 8, 8, 12, lambda side: side + 24)

    def read(window: Window) -> np.ndarray:
        assert 0 <= window.y0 < window.y1 <= 20
        assert 0 <= window.x0 < window.x1 <= 30
        assert max(window.height, window.width) <= 32
        return np.zeros((window.height, window.width, 1))

    assert all(cut(read, plan, tile).shape == (32, 32, 1) for tile in plan.tiles)


def draw(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 1), dtype=np.uint8)


@pytest.mark.parametrize("normalization", ["fixed", "percentile"])
def test_a_page_of_a_file_is_that_of_its_array(normalization: str, tmp_path: Path) -> None:
    settings, image = make_settings(normalization=normalization).data, draw(50, 60)
    Image.fromarray(image[..., 0]).save(tmp_path / "x.png")
    tiling = plan_tiles((50, 60), 16, 8, 8)
    with open_source(tmp_path / "x.png") as source:
        page = Page.of_source(source, 0, settings)
        windows = [page.window(tiling, tile) for tile in tiling.tiles]
    expected = Normalization.from_settings(settings)(image)
    for tile, window in zip(tiling.tiles, windows, strict=True):
        np.testing.assert_array_equal(window, Page.of_array(image, settings).window(tiling, tile))
        inside = tile.window.within(50, 60)
        np.testing.assert_array_equal(window[0, : inside.height, : inside.width], expected[..., 0][inside.slices])


def test_a_crop_is_normalised_by_the_figures_of_the_page() -> None:
    settings, image = make_settings(normalization="percentile").data, draw(50, 60)
    image[:10] //= 2
    page, part = Page.of_array(image, settings), Window(5, 25, 30, 60)
    whole, tiling = plan_tiles((50, 60), None, 1, 0), plan_tiles((20, 30), None, 1, 0)
    crop = page.crop(part)
    assert crop.shape == (20, 30)
    expected = page.window(whole, whole.tiles[0])[:, *part.slices]
    np.testing.assert_array_equal(crop.window(tiling, tiling.tiles[0]), expected)
    np.testing.assert_array_equal(
        page.crop(Window(1, 40, 2, 60)).crop(part.moved(-1, -2)).read(Window(0, 20, 0, 30)), image[part.slices]
    )


def test_a_pixel_that_is_not_a_number_is_named_by_its_place() -> None:
    image = np.zeros((50, 60, 1), np.float32)
    image[30, 40] = np.nan
    page = Page.of_array(image, make_settings().data)
    page.read(Window(0, 30, 0, 60))
    for read in (page.read, page.crop(Window(10, 50, 20, 60)).read):
        moved = Window(20, 40, 30, 50) if read == page.read else Window(10, 30, 10, 30)
        with pytest.raises(DataError, match=r"^rows 20 to 39, columns 30 to 49: holds 1 values that are NaN"):
            read(moved)
    with pytest.raises(DataError, match=r"^holds 1 values that are NaN"):
        page.read(Window.whole(50, 60))
