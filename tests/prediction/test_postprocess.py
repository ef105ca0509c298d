"""Against a flood fill in plain Python and scikit-image; tiled = whole, bit for bit."""

import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import morphology

from pixelwise.core.classes import IGNORE
from pixelwise.core.errors import DataError, SettingError
from pixelwise.core.windows import Window, reader
from pixelwise.prediction.postprocess import PostProcess, choose_classes, clean, clean_tiles

SIDES = [(-1, 0), (0, -1), (0, 1), (1, 0)]
CORNERS = [(-1, -1), (-1, 1), (1, -1), (1, 1)]


def neighbours(mask: np.ndarray, pixel: tuple[int, int], steps: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for down, right in steps:
        y, x = pixel[0] + down, pixel[1] + right
        if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]:
            yield y, x


def flood(mask: np.ndarray, start: tuple[int, int], steps: list[tuple[int, int]]) -> set[tuple[int, int]]:
    found, waiting = {start}, [start]
    while waiting:
        for pixel in neighbours(mask, waiting.pop(), steps):
            if pixel not in found and mask[pixel] == mask[start]:
                found.add(pixel)
                waiting.append(pixel)
    return found


def slowly(mask: np.ndarray, options: PostProcess) -> np.ndarray:
    """What the documentation of `clean` says, word by word."""
    filled = mask.copy()
    for hole in components(mask, lambda value: value == 0, SIDES + CORNERS):
        around = {mask[other] for pixel in hole for other in neighbours(mask, pixel, SIDES + CORNERS)} - {0}
        at_border = any(y in (0, mask.shape[0] - 1) or x in (0, mask.shape[1] - 1) for y, x in hole)
        if not at_border and len(around) == 1 and around != {IGNORE} and len(hole) <= options.fill_holes:
            for pixel in hole:
                filled[pixel] = next(iter(around))
    cleaned = filled.copy()
    for item in components(filled, lambda value: value not in (0, IGNORE), SIDES):
        if len(item) < options.smallest_object:
            for pixel in item:
                cleaned[pixel] = 0
    return cleaned


def components(
    mask: np.ndarray, chosen: Callable[[int], bool], steps: list[tuple[int, int]]
) -> Iterator[set[tuple[int, int]]]:
    done: set[tuple[int, int]] = set()
    for pixel in np.ndindex(mask.shape):
        if pixel not in done and chosen(int(mask[pixel])):
            found = flood(mask, pixel, steps)
            done |= found
            yield found


def by_tiles(mask: np.ndarray, tile: int, options: PostProcess) -> np.ndarray:
    """In place, as the hardest case."""
    store = mask.copy()

    def write(window: Window, block: np.ndarray) -> None:
        store[window.slices] = block

    clean_tiles(reader(store), write, mask.shape, tile, options)
    return store


def noise(generator: np.random.Generator, height: int, width: int, classes: int) -> np.ndarray:
    filled = generator.random((height, width)) < generator.choice([0.2, 0.5, 0.8])
    return filled * generator.integers(1, classes, (height, width))


def blobs(generator: np.random.Generator, height: int, width: int, classes: int) -> np.ndarray:
    smooth = ndimage.gaussian_filter(generator.random((height, width)), generator.uniform(0.5, 2))
    ranks = smooth.ravel().argsort().argsort().reshape(height, width)
    return (ranks * 2 * classes // (height * width)) % classes


def snakes(generator: np.random.Generator, height: int, width: int, classes: int) -> np.ndarray:
    """Random walks, one pixel wide."""
    mask = np.zeros((height, width), int)
    for _ in range(generator.integers(1, 6)):
        y, x = generator.integers(height), generator.integers(width)
        value = generator.integers(classes)
        for _ in range(generator.integers(1, 80)):
            mask[y, x] = value
            down, right = (SIDES + CORNERS)[generator.integers(8)]
            y, x = min(max(y + down, 0), height - 1), min(max(x + right, 0), width - 1)
    return mask


def spiral(generator: np.random.Generator, height: int, width: int, classes: int) -> np.ndarray:
    """One component, and one of background, that pass every tile; sometimes with a gap or a plug."""
    y, x = np.mgrid[:height, :width]
    down, right = y - height / 2, x - width / 2
    turns = np.hypot(down, right) / 2 + np.arctan2(down, right) / np.pi
    mask = (np.floor(turns) % 2).astype(int) * generator.integers(1, classes)
    for _ in range(generator.integers(0, 4)):
        mask[generator.integers(height), generator.integers(width)] = generator.integers(classes)
    return mask


def rings(generator: np.random.Generator, height: int, width: int, classes: int) -> np.ndarray:
    """Nested frames of changing class and width, some of background."""
    mask = np.zeros((height, width), int)
    start = 0
    while start < min(height, width) / 2:
        mask[start : height - start, start : width - start] = generator.integers(classes)
        start += generator.integers(1, 4)
    return mask


PICTURES = [noise, blobs, snakes, spiral, rings]
SIZES = st.integers(1, 24)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(PICTURES),
    st.tuples(SIZES, SIZES),
    st.integers(2, 5),
    st.integers(1, 26),
    st.tuples(st.integers(0, 30), st.integers(0, 30)),
    st.sampled_from([np.uint8, np.uint16]),
    st.booleans(),
)
@settings(deadline=None, max_examples=150)
@example(0, spiral, (24, 24), 2, 1, (300, 300), np.uint8, False)
@example(0, rings, (24, 23), 3, 5, (600, 600), np.uint16, True)
def test_tiled_is_whole_is_a_plain_flood_fill(
    seed: int,
    picture: Callable[..., np.ndarray],
    shape: tuple[int, int],
    classes: int,
    tile: int,
    sizes: tuple[int, int],
    dtype: type,
    ignored: bool,
) -> None:
    generator = np.random.default_rng(seed)
    dtype = np.uint16 if ignored else dtype
    mask = picture(generator, *shape, classes).astype(dtype)
    if ignored:
        mask[generator.random(shape) < 0.03] = IGNORE
    options = PostProcess(fill_holes=sizes[0], smallest_object=sizes[1])
    before = mask.copy()
    whole = clean(mask, options)
    assert whole.dtype == dtype
    np.testing.assert_array_equal(mask, before)
    np.testing.assert_array_equal(whole, slowly(mask, options))
    np.testing.assert_array_equal(by_tiles(mask, tile, options), whole)


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("tile", [17, 64, 150])
def test_larger_masks_in_tiles(picture: Callable[..., np.ndarray], tile: int) -> None:
    mask = picture(np.random.default_rng(1), 190, 201, 4).astype(np.uint8)
    options = PostProcess(fill_holes=60, smallest_object=90)
    np.testing.assert_array_equal(by_tiles(mask, tile, options), clean(mask, options))


@given(st.integers(0, 1000), st.integers(1, 40))
@settings(deadline=None, max_examples=40)
def test_objects_and_holes_of_one_class_as_scikit_image_has_them(seed: int, size: int) -> None:
    mask = blobs(np.random.default_rng(seed), 40, 45, 2)
    objects = clean(mask.astype(np.uint8), PostProcess(smallest_object=size))
    expected = morphology.remove_small_objects(mask > 0, max_size=size - 1, connectivity=1)
    np.testing.assert_array_equal(objects > 0, expected)
    # There a hole may touch the border: a wide frame of background makes what does so too large to be filled.
    holes = clean(mask.astype(np.uint8), PostProcess(fill_holes=size))
    framed = morphology.remove_small_holes(np.pad(mask > 0, 5), max_size=size, connectivity=2)
    np.testing.assert_array_equal(holes > 0, framed[5:-5, 5:-5])


def picture(*rows: str) -> np.ndarray:
    return np.array([[int(value) for value in row] for row in rows], np.uint8)


def test_a_ring_counts_with_its_hole() -> None:
    ring = picture("00000", "01110", "01010", "01110", "00000")
    kept = clean(ring, PostProcess(fill_holes=1, smallest_object=9))
    assert kept.sum() == 9
    assert not clean(ring, PostProcess(smallest_object=9)).any()


def test_holes_leak_through_corners_and_objects_do_not_hold_there() -> None:
    open_ring = picture("00000", "00110", "01010", "01110", "00000")
    np.testing.assert_array_equal(clean(open_ring, PostProcess(fill_holes=9)), open_ring)
    diagonal = picture("10", "01")
    assert not clean(diagonal, PostProcess(smallest_object=2)).any()


def test_a_hole_between_two_classes_or_beside_unlabelled_pixels_stays_open() -> None:
    for other in (2, IGNORE):
        mask = picture("1111", "1001", "1111").astype(np.uint16)
        mask[0, 0] = other  # touches the hole at a corner
        np.testing.assert_array_equal(clean(mask, PostProcess(fill_holes=9)), mask)


def test_a_small_object_within_another_class_becomes_background() -> None:
    mask = picture("1111", "1121", "1111")
    np.testing.assert_array_equal(
        clean(mask, PostProcess(fill_holes=9, smallest_object=2)), picture("1111", "1101", "1111")
    )


def test_classes_of_16_bits() -> None:
    mask = np.full((5, 5), 300, np.uint16)
    mask[2, 2] = 0
    mask[0, 4] = 7
    expected = np.full((5, 5), 300, np.uint16)
    expected[0, 4] = 0
    options = PostProcess(fill_holes=3, smallest_object=2)
    for tile in (1, 2, 3, 5):
        np.testing.assert_array_equal(by_tiles(mask, tile, options), expected)


def test_nothing_to_do_copies() -> None:
    mask = picture("101", "010")
    copy = clean(mask, PostProcess(smallest_object=1))
    np.testing.assert_array_equal(copy, mask)
    assert not np.shares_memory(copy, mask)


def test_progress_counts_all_passes() -> None:
    mask = np.zeros((5, 7), np.uint8)
    calls: list[tuple[int, int]] = []
    options = PostProcess(fill_holes=1, smallest_object=2)
    clean_tiles(
        reader(mask),
        lambda window, block: None,
        mask.shape,
        4,
        options,
        lambda *call: calls.append(call),
    )
    assert calls[0] == (16, 105)
    assert calls[-1] == (105, 105)
    assert len(calls) == 3 * 4


def test_only_the_last_pass_writes() -> None:
    mask = noise(np.random.default_rng(0), 9, 9, 3).astype(np.uint8)
    order: list[str] = []

    def read(window: Window) -> np.ndarray:
        order.append("read")
        return mask[window.slices]

    options = PostProcess(fill_holes=3, smallest_object=3)
    clean_tiles(read, lambda window, block: order.append("write"), (9, 9), 5, options)
    assert order == ["read"] * 8 + ["read", "write"] * 4


def test_memory_does_not_grow_with_the_image() -> None:
    """The mask is made on the fly: circles on a grid, 27 across, with a hole each."""

    def read(window: Window) -> np.ndarray:
        y, x = np.ogrid[window.slices]
        distance = (y % 32 - 16) ** 2 + (x % 32 - 16) ** 2
        return ((distance < 180) & (distance > 10)).astype(np.uint8)

    def peak(side: int) -> int:
        tracemalloc.start()
        clean_tiles(read, lambda window, block: None, (side, side), 240, PostProcess(None, 100, 100))
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    small, large = peak(480), peak(1920)
    assert large - small < (1920**2 - 480**2) / 10  # in bytes, of which the mask itself has one a pixel


def test_the_threshold_is_a_probability() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(2, 40, 50)).astype(np.float32) * 3
    probability = 1 / (1 + np.exp(logits[0].astype(float) - logits[1]))
    for threshold in (0.001, 0.3, 0.5, 0.97):
        clear = abs(probability - threshold) > 1e-6
        taken = choose_classes(logits, PostProcess(threshold=threshold))
        assert taken.dtype == np.uint8
        np.testing.assert_array_equal(taken[clear], (probability >= threshold)[clear])
    np.testing.assert_array_equal(choose_classes(logits, PostProcess()), logits.argmax(0))
    assert choose_classes(np.zeros((2, 1)), PostProcess(threshold=0.5)) == [1]


def test_the_likeliest_of_many_classes() -> None:
    logits = np.eye(300)[:, [7, 299]]
    chosen = choose_classes(logits, PostProcess())
    assert chosen.dtype == np.uint16
    assert chosen.tolist() == [7, 299]


def test_a_threshold_needs_two_classes() -> None:
    message = r"threshold: needs a network with 2 classes .* this has 3\. Leave the threshold out"
    with pytest.raises(SettingError, match=message):
        choose_classes(np.zeros((3, 2, 2)), PostProcess(threshold=0.4))
    PostProcess().require_classes(3)


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, float("nan"), True, "0.5"])
def test_a_threshold_is_between_0_and_1(value: float) -> None:
    with pytest.raises(
        SettingError, match=r"threshold: must be a probability between 0 and 1 .* but it is .*\. With 0\.5"
    ):
        PostProcess(threshold=value)


@pytest.mark.parametrize("name", ["fill_holes", "smallest_object"])
@pytest.mark.parametrize("value", [-1, 2.5, True, "3"])
def test_sizes_are_whole_pixels(name: str, value: int) -> None:
    message = f"{name}: must be a whole number of pixels, 0 or more, but it is {value!r}; 0 switches it off"
    with pytest.raises(SettingError, match=message):
        PostProcess(**{name: value})


def test_what_changes_a_mask() -> None:
    assert not PostProcess(smallest_object=1).changes_mask  # no object is smaller
    assert PostProcess(smallest_object=2).changes_mask
    assert PostProcess(fill_holes=1).changes_mask
    assert not PostProcess(threshold=0.4).changes_mask


def test_what_is_no_mask_is_refused() -> None:
    options = PostProcess(fill_holes=1)
    with pytest.raises(DataError, match=r"the mask has the shape \(2, 2, 1\); H x W is expected"):
        clean(np.zeros((2, 2, 1), np.uint8), options)
    with pytest.raises(DataError, match=r"rows 0 to 2, columns 0 to 2 is 2 x 2 of float64; 2 x 2 of uint8 or uint16"):
        clean(np.zeros((2, 2)), options)
    with pytest.raises(DataError, match="rows 0 to 2, columns 0 to 3 is 3 x 3 of uint8; 2 x 3 of uint8"):
        clean_tiles(lambda window: np.zeros((3, 3), np.uint8), lambda *call: None, (2, 3), 4, options)
    with pytest.raises(SettingError, match="tile: must be at least 1 pixel, but it is 0"):
        clean_tiles(lambda window: np.zeros((3, 3), np.uint8), lambda *call: None, (2, 3), 0, options)
