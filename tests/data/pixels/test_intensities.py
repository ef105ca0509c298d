"""Level, contrast, mean and variance of an image, against NumPy's on the pixels that count."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelwise.data.files.facts import FileFacts
from pixelwise.data.pixels.intensities import intensities


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.uint8, np.uint16, np.float32]),
    st.integers(1, 4),
    st.sampled_from([None, 0, 3]),
    st.booleans(),
)
def test_figures_are_those_of_the_pixels_with_data(
    seed: int, dtype: type, channels: int, nodata: float | None, few: bool
) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 3)), *map(int, rng.integers(1, 25, 2)), channels)
    pixels = rng.integers(0, 5 if few else 250, shape).astype(dtype)
    found = intensities(pixels, FileFacts("TIFF", full_scale=100, nodata=nodata))
    missing = np.zeros(shape[:3], bool)
    if nodata is not None:
        equal = pixels == nodata
        missing = equal.any(-1) if dtype is np.float32 else equal.all(-1)
    kept = pixels[~missing].astype(np.float64) / 100
    assert found.missing == pytest.approx(missing.mean())
    if not len(kept):
        return
    np.testing.assert_allclose(found.mean, kept.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.variance, kept.var(0), rtol=1e-6, atol=1e-12)
    assert found.is_constant == bool((kept == kept[0]).all())
    low, high = np.percentile(kept, (1, 99))
    if high > low:
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)
    assert found.high > found.low


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_an_image_without_any_data_has_figures_all_the_same(dtype: type) -> None:
    found = intensities(np.zeros((1, 4, 5, 2), dtype), FileFacts("TIFF", nodata=0))
    assert found.missing == 1
    assert found.high > found.low
    assert np.isfinite(found.mean).all()


def test_the_full_scale_of_the_file_counts() -> None:
    pixels = np.full((1, 2, 2, 1), 4095, np.uint16)
    assert intensities(pixels, FileFacts("TIFF", full_scale=4095)).mean.tolist() == [1.0]
    assert intensities(pixels, FileFacts("TIFF")).mean.tolist() == [4095 / 65535]
