"""Intensities: the same picture in 8 and in 16 bits is the same to the network."""

import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelwise.core.config import DataSettings
from pixelwise.core.errors import DataError, ModelError
from pixelwise.core.windows import Window, reader
from pixelwise.data.pixels.normalize import Normalization, match_channels, percentile_range, require_finite, unit_scale

SEEDS = st.integers(0, 2**32 - 1)


def picture(seed: int, channels: int | None = None) -> np.ndarray:
    """H x W x C uint8, from a flat one to one of all levels."""
    rng = np.random.default_rng(seed)
    shape = (*rng.integers(1, 40, 2), channels or int(rng.integers(1, 4)))
    low, high = sorted(rng.integers(0, 256, 2))
    return rng.integers(low, high + 1, shape).astype(np.uint8)


def figures(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(0.1 * channel - 0.2 for channel in range(channels)), tuple(
        0.5 + channel for channel in range(channels)
    )


# Percentiles


@settings(deadline=None, max_examples=40)
@given(SEEDS)
def test_16_bits_that_are_8_times_257_are_the_same_image(seed: int) -> None:
    image = picture(seed)
    for percentile in (True, False):
        normalize = Normalization(percentile, *figures(image.shape[2]))
        shift = np.abs(normalize.gain_and_offset(image)[1]).max()  # what float32 has to carry
        deep = normalize(image.astype(np.uint16) * 257)
        np.testing.assert_allclose(deep, normalize(image), rtol=0, atol=3e-7 * (10 + shift))


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(1, 200), st.integers(0, 10_000))
def test_brightness_and_contrast_do_not_matter_to_percentiles(seed: int, gain: int, offset: int) -> None:
    image = picture(seed)
    normalize = Normalization(True, *figures(image.shape[2]))
    changed = image.astype(np.uint16) * gain + offset
    shift = np.abs(normalize.gain_and_offset(changed)[1]).max()  # what float32 has to carry
    np.testing.assert_allclose(normalize(changed), normalize(image), rtol=0, atol=1e-6 * (10 + shift))
    real = (image * np.float32(0.01) - 1).astype(np.float32)
    np.testing.assert_allclose(normalize(real), normalize(image), rtol=0, atol=1e-3)


def test_a_stretched_image_lies_between_minus_1_and_1_but_for_its_ends() -> None:
    image = np.random.default_rng(0).normal(30_000, 50, (100, 100, 1)).astype(np.uint16)
    stretched = Normalization(True, (0.0,), (1.0,))(image)
    assert np.percentile(stretched, (1, 99)) == pytest.approx([-1, 1], abs=1e-4)
    assert 1.0 < stretched.max() < 3
    assert stretched.dtype == np.float32


def range_of(image: np.ndarray) -> tuple[float, float]:
    height, width, channels = image.shape
    return percentile_range(reader(image), height, width, channels)


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_the_range_is_that_of_the_percentiles(seed: int) -> None:
    image = picture(seed)
    low, high = np.percentile(image.astype(np.float64), (1, 99))
    found = range_of(image)
    if high > low:
        assert found == pytest.approx((low, high))
    elif np.ptp(image) > 0:
        assert found == (image.min(), image.max())
    else:
        assert found[0] == image.min() < found[1]


def test_the_range_of_a_large_image_is_taken_of_a_grid_always_the_same() -> None:
    rng = np.random.default_rng(0)
    image = rng.gamma(2, 500, (1500, 2000, 1)).astype(np.uint16)
    exact = np.percentile(image, (1, 99))
    assert range_of(image) == pytest.approx(exact, rel=0.02)
    assert range_of(image) == range_of(image.copy())
    step = 2  # 3 million values, of which a million are enough
    assert range_of(image) == tuple(np.percentile(image[::step, ::step], (1, 99)))


def test_the_range_needs_no_more_than_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of any size give the grid of the whole image, and none of them is kept."""
    image = np.random.default_rng(0).integers(0, 60_000, (1500, 2000, 1)).astype(np.uint16)
    expected = range_of(image)
    monkeypatch.setattr("pixelwise.data.pixels.normalize._BLOCK", 333)
    alive: list[weakref.ref[np.ndarray]] = []

    def read(window: Window) -> np.ndarray:
        assert sum(reference() is not None for reference in alive) <= 1
        block = image[window.slices].copy()
        alive.append(weakref.ref(block))
        return block

    assert percentile_range(read, 1500, 2000, 1) == expected
    assert len(alive) == 5 * 7


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-30, 1e20, -3e38])
def test_the_ends_of_a_range_are_never_equal(value: float) -> None:
    low, high = range_of(np.full((3, 4, 1), value, np.float32))
    assert low < high
    normalised = Normalization(True, (0.0,), (1.0,))(np.full((3, 4, 1), value, np.float32))
    assert np.isfinite(normalised).all()


def test_a_few_bright_pixels_do_not_make_the_rest_flat() -> None:
    image = np.full((50, 50, 1), 100, np.uint16)
    image[0, 0] = 60_000
    assert range_of(image) == (100.0, 60_000.0)  # both percentiles are 100
    image[:25] = 90
    assert range_of(image) == (90.0, 100.0)


# Fixed figures


@pytest.mark.parametrize(
    ("dtype", "unit"), [(np.uint8, 255), (np.uint16, 65535), (np.int16, 32767), (np.float32, 1), (np.float64, 1)]
)
def test_fixed_figures_are_the_formula(dtype: type, unit: float) -> None:
    image = (np.random.default_rng(0).random((7, 5, 3)) * min(unit, 30_000)).astype(dtype)
    assert unit_scale(np.dtype(dtype)) == 1 / unit
    mean, std = figures(3)
    result = Normalization(False, mean, std)(image)
    assert result.dtype == np.float32
    expected = (image.astype(np.float64) / unit - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(SEEDS, st.booleans())
def test_a_crop_is_normalised_by_the_figures_of_its_image(seed: int, percentile: bool) -> None:
    image = picture(seed)
    normalize = Normalization(percentile, *figures(image.shape[2]))
    gain, offset = normalize.gain_and_offset(image)
    assert gain.shape == offset.shape == (image.shape[2],)
    assert gain.dtype == offset.dtype == np.float32
    crop = image[image.shape[0] // 2 :, : image.shape[1] // 2]
    whole = normalize(image)[image.shape[0] // 2 :, : image.shape[1] // 2]
    assert np.array_equal(crop.astype(np.float32) * gain + offset, whole)


def test_a_run_normalises_as_its_config_says() -> None:
    settings = DataSettings(
        labels="binary",
        classes=["a", "b"],
        colors=[(0, 0, 0), (9, 9, 9)],
        values=[0, 1],
        ignore=[],
        channels=2,
        scale=1,
        normalization="percentile",
        mean=[0.25, -0.5],
        std=[1, 2],
    )
    assert Normalization.from_settings(settings) == Normalization(True, (0.25, -0.5), (1.0, 2.0))
    fixed = settings.model_copy(update={"normalization": "fixed"})
    assert not Normalization.from_settings(fixed).percentile


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_that_are_none_are_counted_and_refused(bad: float, dtype: Any) -> None:
    image = np.ones((3, 4, 1), dtype)
    require_finite(image)
    image[0, :2] = bad
    with pytest.raises(
        DataError, match=r"^holds 2 values that are NaN or infinite; replace them with numbers first\.$"
    ):
        require_finite(image)
    with pytest.raises(DataError, match=r"^holds 2 values"):
        Normalization(False, (0.0,), (1.0,))(image)


# Channels


def test_channels_that_fit_are_left_alone() -> None:
    image = picture(1, 5)
    assert match_channels(image, 5) is image


def test_grey_is_repeated_and_grey_rgb_becomes_grey() -> None:
    grey = picture(2, 1)
    rgb = match_channels(grey, 3)
    assert rgb.shape == (*grey.shape[:2], 3)
    assert all(np.array_equal(rgb[..., channel], grey[..., 0]) for channel in range(3))
    assert np.array_equal(match_channels(rgb, 1), grey)


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_colour_image_is_not_made_grey(channel: int) -> None:
    image = np.full((4, 4, 3), 7, np.uint8)
    image[2, 1, channel] = 8
    message = r"^is a colour image, but the network was trained on grey ones; convert it to grey first\.$"
    with pytest.raises(ModelError, match=message):
        match_channels(image, 1)


@pytest.mark.parametrize(("has", "takes"), [(4, 3), (2, 1), (1, 2), (3, 4)])
def test_channels_that_do_not_fit_are_refused(has: int, takes: int) -> None:
    with pytest.raises(ModelError, match=rf"^has {has} channels, but the network takes {takes}\.$"):
        match_channels(np.zeros((2, 2, has), np.uint8), takes)
