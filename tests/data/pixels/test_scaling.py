"""Scaling against OpenCV, PyTorch and sums that are written out; windows against the whole."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional

from pixelwise.core.windows import Window, reader
from pixelwise.data.pixels import scaling
from pixelwise.data.pixels.scaling import Axis, Scaling, resize

LENGTHS = st.integers(1, 60)
SCALES = st.one_of(st.sampled_from([0.5, 0.37, 1.5, 0.25, 2.0, 1.0]), st.floats(0.03, 4))


def draw(height: int, width: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, channels), dtype=np.float32)


# Whole images


def test_halving_takes_the_mean_of_four_pixels() -> None:
    image = draw(20, 30, 6)
    expected = image.reshape(10, 2, 15, 2, 6).mean((1, 3))
    np.testing.assert_allclose(resize(image, 0.5), expected, atol=1e-6)
    wide = (image * 60_000).astype(np.int32)
    np.testing.assert_allclose(resize(wide, 0.5), wide.reshape(10, 2, 15, 2, 6).mean((1, 3)), atol=0.01)


@pytest.mark.parametrize("scale", [1.5, 2, 3])
def test_enlarging_is_linear(scale: float) -> None:
    image = draw(20, 30)
    expected = ndimage.zoom(image, (scale, scale, 1), order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(resize(image, scale), expected, atol=1e-6)


def covered(before: int, after: int) -> np.ndarray:
    """after x before: the share of each result that a sample covers, by the lengths of their common parts."""
    shares = np.zeros((after, before))
    for result in range(after):
        start, end = result * before / after, (result + 1) * before / after
        for sample in range(before):
            shares[result, sample] = max(0.0, min(end, sample + 1) - max(start, sample)) / (end - start)
    return shares


@given(LENGTHS, LENGTHS, st.floats(0.03, 0.99))
@settings(deadline=None, max_examples=40)
def test_shrinking_averages_what_a_pixel_covers(height: int, width: int, scale: float) -> None:
    image = draw(height, width)
    small = resize(image, scale)
    rows, columns = covered(height, small.shape[0]), covered(width, small.shape[1])
    np.testing.assert_allclose(small, np.einsum("hy,yxc,wx->hwc", rows, image, columns), atol=1e-6)


@given(LENGTHS, LENGTHS, SCALES)
@settings(deadline=None, max_examples=40)
def test_it_agrees_with_opencv(height: int, width: int, scale: float) -> None:
    image = draw(height, width)
    scaled = resize(image, scale)
    size, method = scaled.shape[1::-1], cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    # OpenCV leaves out what a result covers of a sample where that is less than a thousandth.
    np.testing.assert_allclose(scaled, cv2.resize(image, size, interpolation=method), atol=2e-3)


@pytest.mark.parametrize("scale", [0.5, 0.37, 1.5])
def test_of_real_sizes_it_agrees_closely(scale: float) -> None:
    image = draw(200, 300, 3)
    scaled = resize(image, scale)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    np.testing.assert_allclose(scaled, cv2.resize(image, scaled.shape[1::-1], interpolation=method), atol=2e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("scale", [0.5, 0.37, 1.5])
def test_whole_numbers_are_rounded_and_keep_their_type(dtype: type, scale: float) -> None:
    image = (draw(40, 50) * np.iinfo(dtype).max).astype(dtype)
    scaled = resize(image, scale)
    assert scaled.dtype == dtype
    exact = resize(image.astype(np.float32), scale)
    np.testing.assert_array_equal(scaled, np.floor(exact + 0.5))


def test_halves_are_rounded_upwards() -> None:
    image = np.array([[[0], [1]], [[1], [0]]], np.uint8)
    assert resize(image, 0.5).item() == 1
    assert resize(np.full((7, 9, 1), 255, np.uint8), 0.3).min() == 255


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 3))
def test_labels_are_scaled_to_the_nearest_pixel(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 256, rng.integers(1, 30, 2)).astype(np.uint8)
    result = resize(labels, scale, nearest=True)
    assert result.dtype == np.uint8
    assert result.shape == resize(labels[..., None], scale).shape[:2]  # as large as the image
    assert result.shape == tuple(max(1, round(length * scale)) for length in labels.shape)
    rows, columns = ((np.arange(new) + 0.5) * old / new for new, old in zip(result.shape, labels.shape, strict=True))
    sure = [np.abs(centres - np.rint(centres)) > 1e-3 for centres in (rows, columns)]  # not midway between two pixels
    exact = labels[np.ix_(rows.astype(int), columns.astype(int))]
    assert np.array_equal(result[np.ix_(*sure)], exact[np.ix_(*sure)])


def test_a_scale_of_1_is_the_image_itself() -> None:
    image = np.zeros((3, 4, 1), np.uint32)
    assert resize(image, 1) is image


# Windows


def part_of(data: st.DataObject, length: int) -> tuple[int, int]:
    start = data.draw(st.integers(0, length - 1))
    return start, data.draw(st.integers(start + 1, length))


@given(st.data(), LENGTHS, LENGTHS, SCALES, st.sampled_from([np.uint8, np.float32]))
@settings(deadline=None, max_examples=50)
def test_a_window_of_the_scaled_image_is_that_of_the_whole(
    data: st.DataObject, height: int, width: int, scale: float, dtype: type
) -> None:
    image = (draw(height, width) * 255).astype(dtype)
    made = Scaling.by(height, width, scale)
    window = Window(*part_of(data, made.height), *part_of(data, made.width))
    seen: list[Window] = []

    def read(source: Window) -> np.ndarray:
        assert 0 <= source.y0 < source.y1 <= height
        assert 0 <= source.x0 < source.x1 <= width
        seen.append(source)
        return image[source.slices]

    part = made.read(read, window)
    whole = made.read(reader(image), Window.whole(made.height, made.width))
    np.testing.assert_array_equal(part, whole[window.slices])
    assert seen == [made.source(window)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "BAND_PIXELS", 3 * seen[0].width)
        np.testing.assert_array_equal(made.read(read, window), part)
    assert seen[1].y0 == seen[0].y0
    assert seen[-1].y1 == seen[0].y1


@pytest.mark.parametrize("scale", [0.1, 0.37, 1.0, 1.5])
def test_an_image_is_read_in_bands(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "BAND_PIXELS", 10_000)
    made = Scaling.by(1000, 300, scale)
    reads: list[int] = []

    def read(window: Window) -> np.ndarray:
        reads.append(window.height)
        return np.zeros((window.height, window.width, 1), np.uint8)

    assert made.read(read, Window.whole(made.height, made.width)).shape == (made.height, made.width, 1)
    assert max(reads) <= 10_000 / 300 + 2  # and the rows that two bands share
    assert len(reads) >= 30


def whole_back(made: Scaling, logits: np.ndarray) -> np.ndarray:
    return made.back(logits, Window.whole(made.height, made.width), Window.whole(made.rows[0], made.columns[0]))


@given(LENGTHS, LENGTHS, SCALES)
@settings(deadline=None, max_examples=40)
def test_logits_are_scaled_back_as_pytorch_does_it(height: int, width: int, scale: float) -> None:
    made = Scaling.by(height, width, scale)
    logits = np.random.default_rng(0).normal(size=(3, made.height, made.width))
    expected = functional.interpolate(torch.from_numpy(logits)[None], (height, width), mode="bilinear")[0].numpy()
    np.testing.assert_allclose(whole_back(made, logits), expected, atol=1e-12)
    single = whole_back(made, logits.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, atol=2e-6)


@given(st.data(), st.integers(1, 25), st.integers(1, 25), SCALES)
@settings(deadline=None, max_examples=30)
def test_parts_side_by_side_need_one_more_row_and_column(
    data: st.DataObject, height: int, width: int, scale: float
) -> None:
    made = Scaling.by(height, width, scale)
    logits = np.random.default_rng(0).normal(size=(2, made.height, made.width)).astype(np.float32)
    down, right = data.draw(st.integers(1, made.height)), data.draw(st.integers(1, made.width))
    out = np.full((2, height, width), np.nan, np.float32)
    for y0 in range(0, made.height, down):
        for x0 in range(0, made.width, right):
            owned = made.owned(Window(y0, y0 + down, x0, x0 + right).within(made.height, made.width))
            if owned.height == 0 or owned.width == 0:
                continue
            assert np.isnan(out[:, *owned.slices]).all()
            place = Window(y0, y0 + down + 1, x0, x0 + right + 1).within(made.height, made.width)
            out[:, *owned.slices] = made.back(logits[:, *place.slices], place, owned)
    np.testing.assert_array_equal(out, whole_back(made, logits))


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.data())
@settings(deadline=None, max_examples=60)
def test_samples_and_results_meet_on_long_axes(before: int, after: int, data: st.DataObject) -> None:
    axis = Axis(before, after, by_area=False)
    sample = data.draw(st.integers(1, before))
    first = axis.first_beyond(sample)
    place = [(2 * result + 1) * before / (2 * after) - 0.5 for result in (first - 1, first)]
    assert first == after or place[1] >= sample - 1e-6
    assert first == 0 or sample == before or place[0] < sample + 1e-6


def test_an_axis_that_is_long_loses_no_precision() -> None:
    """As it does where places are kept in float32, whose steps are a 64th of a pixel there."""
    axis = Axis(150_001, 300_000, by_area=False)
    weights = axis.weights(299_000, 299_003, 149_000).toarray()
    centres = (np.arange(299_000, 299_003) + 0.5) * 150_001 / 300_000 - 0.5
    np.testing.assert_allclose(weights @ np.arange(149_000, 149_000 + weights.shape[1]), centres, atol=1e-9)
