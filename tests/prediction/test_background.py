"""No object is ever skipped, and most of the empty slide is; on made slides and on real pictures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import data

from pixelwise.core.errors import DataError
from pixelwise.core.windows import Window, blocks, reader
from pixelwise.prediction.background import (
    GRAIN,
    RegionMask,
    Thumbnail,
    background_cells,
    empty_tiles,
    thumbnail,
)


def thumbnail_of(image: np.ndarray, side: int = 512) -> Thumbnail:
    return thumbnail(reader(image), *image.shape[:2], side)


def windows_of(height: int, width: int, tile: int = 64, margin: int = 16) -> list[Window]:
    """The first and last ones stick out of the image."""
    return [
        Window(y - margin, y + tile + margin, x - margin, x + tile + margin)
        for y in range(0, height, tile)
        for x in range(0, width, tile)
    ]


def inside(image: np.ndarray, window: Window) -> np.ndarray:
    return image[window.within(*image.shape[:2]).slices]


def ellipses(generator: np.random.Generator, height: int, width: int, count: int, radius: float) -> np.ndarray:
    """H x W ids of objects, in one half of the slide."""
    ids = np.zeros((height, width), int)
    y, x = np.mgrid[:height, :width]
    for number in range(1, count + 1):
        down, right = y - generator.uniform(0, height), x - generator.uniform(0, width / 2)
        radii = radius * generator.uniform(0.6, 1.4, 2)
        ids[(down / radii[0]) ** 2 + (right / radii[1]) ** 2 < 1] = number
    return ids


def lighting(generator: np.random.Generator, height: int, width: int, fall: float) -> np.ndarray:
    """1 at the brightest place, falling off with the distance like that of a lens (its cosine to the fourth)."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    squared = (y - generator.uniform(0.3, 0.7)) ** 2 + (x - generator.uniform(0.3, 0.7)) ** 2
    return 1 / (1 + fall * squared) ** 2


def glass_slide(generator: np.random.Generator, noise: float, textured: bool) -> tuple[np.ndarray, np.ndarray]:
    """Bright glass, uneven light, coloured absorbing objects: H x W x 3 uint8, and their ids."""
    shape = generator.integers(400, 700, 2)
    ids = ellipses(generator, *shape, count=int(generator.integers(1, 12)), radius=float(generator.choice([3, 20, 60])))
    absorbed = generator.uniform(0.25, 0.7, (ids.max() + 1, 3)) * [1.0, 1.0, 0.3]
    light = 1 - np.where(ids[..., None] > 0, absorbed[ids], 0)
    if textured:
        grain = ndimage.gaussian_filter(generator.normal(size=shape), 2)
        light = light * (1 + np.where(ids > 0, grain, 0))[..., None]
    image = 240 * light * lighting(generator, *shape, fall=0.25)[..., None]
    return np.clip(image + generator.normal(0, noise, image.shape), 0, 255).astype(np.uint8), ids


def fluorescence(generator: np.random.Generator, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Counted photons over the dark: objects from bright to dim."""
    shape = generator.integers(400, 700, 2)
    ids = ellipses(generator, *shape, count=int(generator.integers(1, 12)), radius=float(generator.choice([4, 15, 50])))
    dark, bright = (3, 120) if dtype is np.uint8 else (100, 9000)
    strength = np.exp(generator.uniform(np.log(bright / 6), np.log(bright), ids.max() + 1))
    photons = dark + np.where(ids > 0, strength[ids], 0)
    return np.clip(generator.poisson(photons), 0, np.iinfo(dtype).max).astype(dtype), ids


def check(image: np.ndarray, ids: np.ndarray, fair_share: float = 0.7) -> None:
    windows = windows_of(*ids.shape)
    truly_empty = np.array([not inside(ids, window).any() for window in windows])
    skipped = empty_tiles(thumbnail_of(image), windows)
    assert skipped.shape == (len(windows),)
    assert not (skipped & ~truly_empty).any()
    assert skipped.sum() >= fair_share * truly_empty.sum()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [0, 3, 8])
@pytest.mark.parametrize("textured", [False, True])
def test_glass_slides(seed: int, noise: float, textured: bool) -> None:
    check(*glass_slide(np.random.default_rng([seed, int(noise), textured]), noise, textured))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_fluorescence(seed: int, dtype: type) -> None:
    check(*fluorescence(np.random.default_rng(seed), dtype))


def test_floating_point_pixels() -> None:
    image, ids = fluorescence(np.random.default_rng(3), np.uint16)
    check(image.astype(np.float32) / 65535, ids)


def test_a_single_small_object_in_a_large_slide_with_large_cells() -> None:
    """A cell of the thumbnail has 9 grains, and the object fills less than one of them."""
    generator = np.random.default_rng(0)
    image = generator.normal(230, 4, (1500, 1500))
    image[1003:1009, 700:706] -= 60
    image = image.clip(0, 255).astype(np.uint8)
    small = thumbnail_of(image, side=64)
    assert small.cell == 24
    windows = windows_of(1500, 1500)
    skipped = empty_tiles(small, windows)
    with_object = np.array([y0 < 1009 and y1 > 1003 and x0 < 706 and x1 > 700 for y0, y1, x0, x1 in windows])
    assert not skipped[with_object].any()
    assert skipped[~with_object].mean() > 0.95


@pytest.mark.parametrize(
    "image",
    [
        np.full((300, 400), 240, np.uint8),
        np.zeros((300, 400, 3), np.uint16),
        np.full((300, 400), 0.7, np.float32),
        np.random.default_rng(0).normal(235, 5, (300, 400, 3)).clip(0, 255).astype(np.uint8),
        np.random.default_rng(0).poisson(2, (300, 400)).astype(np.uint8),
        np.random.default_rng(0).poisson(120, (300, 400)).astype(np.uint16),
        (240 * lighting(np.random.default_rng(0), 300, 400, 0.4)).astype(np.uint8),
    ],
    ids=["white", "black", "grey", "noisy glass", "few photons", "camera's offset", "uneven light"],
)
def test_an_empty_slide_is_empty_everywhere(image: np.ndarray) -> None:
    assert empty_tiles(thumbnail_of(image), windows_of(300, 400)).mean() > 0.95


@pytest.mark.parametrize("name", ["astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "rocket"])
def test_pictures_without_background_have_no_empty_tile(name: str) -> None:
    image = getattr(data, name)()
    assert not empty_tiles(thumbnail_of(image), windows_of(*image.shape[:2])).any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [1.5, 4, 15])
def test_tissue_everywhere_has_no_empty_tile(seed: int, scale: float) -> None:
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(500, 600)), scale)
    image = (140 + 35 * texture / texture.std()).clip(0, 255).astype(np.uint8)
    assert not empty_tiles(thumbnail_of(image), windows_of(500, 600)).any()


def test_a_grey_that_things_are_darker_and_brighter_than_is_no_background() -> None:
    """As in phase contrast or a photograph; with one of the two it would be a slide."""
    generator = np.random.default_rng(0)
    image = generator.normal(128, 3, (512, 512))
    image[50:150, 50:150] -= 80
    windows = windows_of(512, 512)
    assert empty_tiles(thumbnail_of(image.astype(np.uint8)), windows).mean() > 0.6
    image[300:400, 300:400] += 80
    assert not empty_tiles(thumbnail_of(image.astype(np.uint8)), windows).any()


def test_an_image_too_small_to_tell_has_no_background() -> None:
    assert not background_cells(thumbnail_of(np.full((40, 40), 200, np.uint8))).any()


def test_unknown_pixels_are_no_background() -> None:
    image = np.random.default_rng(0).normal(1, 0.01, (256, 256)).astype(np.float32)
    image[100:104, 50] = np.nan
    cells = background_cells(thumbnail_of(image))
    assert not cells[6, 3]
    assert cells.sum() >= 0.95 * cells.size
    assert not background_cells(thumbnail_of(np.full((256, 256), np.nan, np.float32))).any()


@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 3), st.sampled_from([2, 3, 64]))
@settings(deadline=None, max_examples=30)
def test_a_thumbnail_holds_the_extremes_and_the_noise_of_its_grains(
    height: int, width: int, channels: int, side: int
) -> None:
    image = np.random.default_rng(height).integers(0, 4000, (height, width, channels)).astype(np.uint16)
    small = thumbnail_of(image, side)
    cell = small.cell
    assert cell % GRAIN == 0
    assert cell >= 2 * GRAIN
    assert small.low.shape == (-(-height // cell), -(-width // cell), channels)
    assert max(small.low.shape[:2]) <= side or cell == 2 * GRAIN
    padded = np.pad(image, ((0, -height % GRAIN), (0, -width % GRAIN), (0, 0)), mode="symmetric").astype(float)
    for y, x in np.ndindex(small.low.shape[:2]):
        part = padded[y * cell : (y + 1) * cell, x * cell : (x + 1) * cell]
        grains = [
            part[down : down + GRAIN, right : right + GRAIN]
            for down in range(0, part.shape[0], GRAIN)
            for right in range(0, part.shape[1], GRAIN)
        ]
        means = np.array([grain.mean((0, 1)) for grain in grains])
        np.testing.assert_allclose(small.low[y, x], means.min(0), rtol=1e-5)
        np.testing.assert_allclose(small.high[y, x], means.max(0), rtol=1e-5)
        noise = np.sqrt(np.mean([grain.var((0, 1)) for grain in grains], axis=0))
        np.testing.assert_allclose(small.noise[y, x], noise, rtol=1e-4)


def test_a_thumbnail_is_read_by_windows() -> None:
    largest = 0

    def read(window: Window) -> np.ndarray:
        nonlocal largest
        largest = max(largest, window.height * window.width)
        y, x = np.ogrid[window.slices]
        return (y + x).astype(np.float32)

    small = thumbnail(read, 2100, 3000, side=100)
    assert largest <= 1024 * 1024
    assert small.cell == 32
    expected = 32 * np.add.outer(np.arange(65), np.arange(93)) + 2 * 3.5  # the mean of each cell's first grain
    np.testing.assert_array_equal(small.low[:65, :93, 0], expected)


def test_what_cannot_be_a_window_is_refused() -> None:
    with pytest.raises(DataError, match="an image of 0 x 5 pixels cannot contain any background"):
        thumbnail(reader(np.zeros((0, 5))), 0, 5)
    with pytest.raises(DataError, match=r"a window of the image has the shape \(4, 5\); 6 x 5 pixels are expected"):
        thumbnail(reader(np.zeros((4, 5))), 6, 5)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 9), st.booleans(), st.integers(0, 100))
@settings(deadline=None, max_examples=60)
def test_a_region_of_any_scale(height: int, width: int, factor: int, down: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rounded = [size // factor if down and size >= factor else -(-size // factor) for size in (height, width)]
    mask = (generator.random(rounded) < 0.1) * generator.integers(1, 255)
    region = RegionMask(reader(mask), mask.shape, height, width)
    whole = region.window(Window.whole(height, width))
    assert whole.shape == (height, width)
    assert whole.dtype == bool
    for window in blocks(height, width, 16):
        part = whole[window.slices]
        np.testing.assert_array_equal(region.window(window), part)
        assert region.touches(window) == part.any()
    if height % factor == width % factor == 0 and mask.size > 1:
        np.testing.assert_array_equal(whole, np.kron(mask, np.ones((factor, factor))) > 0)


def test_a_region_of_another_shape_is_refused() -> None:
    message = "the region mask has 5 x 9 pixels, but the image has 10 x 10. Give a mask of the image's size, or of"
    with pytest.raises(DataError, match=message):
        RegionMask(reader(np.zeros((5, 9))), (5, 9), 10, 10)
    region = RegionMask(reader(np.zeros((5, 5, 3))), (5, 5), 10, 10)
    with pytest.raises(DataError, match="the region mask has 3 channels, but must have one, whose nonzero"):
        region.window(Window.whole(4, 4))
    region = RegionMask(reader(np.zeros((4, 5))), (5, 5), 10, 10)
    with pytest.raises(DataError, match=r"a window of the region mask has the shape \(4, 5\); 5 x 5 pixels"):
        region.touches(Window.whole(10, 10))
