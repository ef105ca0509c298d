"""Windows that overlap, fitted together."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelwise.core.windows import Read
from pixelwise.prediction.blending import Blender
from pixelwise.prediction.tiling import Tiling, plan_overlapping_tiles, plan_tiles


def blended(tiling: Tiling, windows: Read) -> np.ndarray:
    """K x H x W, of two outputs whose second is minus the first."""
    blender = Blender(tiling)
    out = np.full((2, 2, tiling.height, tiling.width), np.nan)
    for tile in tiling.tiles:
        values = windows(tile.window)
        owned = blender.add(tile, {"logits": values, "minus": -values})
        out[:, :, *tile.owned.slices] = owned["logits"], owned["minus"]
    np.testing.assert_array_equal(out[1], -out[0])
    return out[0]


@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 8), st.sampled_from([2, 3, 8]))
@settings(deadline=None, max_examples=40)
def test_the_weights_sum_to_one(height: int, width: int, strides: int, stride: int) -> None:
    tiling = plan_overlapping_tiles((height, width), strides * stride, stride)
    logits = np.random.default_rng(0).normal(size=(2, height + 100, width + 100))
    result = blended(tiling, lambda window: logits[:, *window.slices].copy())
    np.testing.assert_allclose(result, logits[:, :height, :width], rtol=0, atol=1e-12)


def test_the_weights_fade_from_window_to_window() -> None:
    tiling = plan_overlapping_tiles((8, 68), 32, 4)
    numbers = iter(range(9))
    flat = blended(tiling, lambda window: np.full((2, window.height, window.width), float(next(numbers))))
    steps = np.diff(flat[0, 0])
    assert (steps >= 0).all()
    assert steps.max() <= 1 / (tiling.overlap - 1) + 1e-12
    assert steps.sum() == len(tiling.tiles) - 1 == 1


def test_windows_with_margins_are_cut() -> None:
    tiling = plan_tiles((50, 60), 16, 8, 8)
    values = np.random.default_rng(0).normal(size=(2, 64, 64))
    result = blended(tiling, lambda window: values[:, *window.slices])
    np.testing.assert_array_equal(result, values[:, :50, :60])
