"""Counts of values, against NumPy's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pixelwise.data.pixels import counting
from pixelwise.data.pixels.counting import count_bytes


@given(arrays(np.uint8, array_shapes(max_dims=4, min_side=0, max_side=9)))
def test_counts_are_those_of_numpy(values: np.ndarray) -> None:
    np.testing.assert_array_equal(count_bytes(values), np.bincount(values.ravel(), minlength=256))


@given(st.integers(0, 255), st.integers(1, 4))
def test_strided_values_are_counted_alike(value: int, step: int) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)[::step, ::-1].T
    np.testing.assert_array_equal(count_bytes(values), np.bincount(values.ravel(), minlength=256))


def test_more_than_floats_can_count_is_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_EXACT", 5)
    assert count_bytes(np.array([1, 1, 1, 1, 1, 3], np.uint8))[:4].tolist() == [0, 5, 0, 1]
