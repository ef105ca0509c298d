"""Pooling with positions and unpooling: the lectures' numbers, and torch's own where it can say."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pixelwise.core.errors import ModelError, SettingError
from pixelwise.layers import MaxPoolPositions, MaxUnpool, bed_of_nails


def plane(rows: list[list[float]]) -> Tensor:
    """1 x 1 x H x W."""
    return torch.tensor(rows, dtype=torch.float32)[None, None]


def test_pooling_and_unpooling_of_the_lectures() -> None:
    pooled, positions = MaxPoolPositions()(plane([[1, 2, 6, 3], [3, 5, 2, 1], [1, 2, 2, 1], [7, 3, 4, 8]]))
    assert pooled[0, 0].tolist() == [[5, 6], [7, 8]]
    unpooled = MaxUnpool()(plane([[1, 2], [3, 4]]), positions, 4, 4)
    assert unpooled[0, 0].tolist() == [[0, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0], [3, 0, 0, 4]]


def test_max_pooling_of_the_lectures() -> None:
    pooled, _ = MaxPoolPositions()(plane([[7, 4, 6, 2], [3, 2, 3, 5], [1, 2, 1, 0], [5, 4, 2, 9]]))
    assert pooled[0, 0].tolist() == [[7, 6], [5, 9]]


def test_bed_of_nails_of_the_lectures() -> None:
    assert bed_of_nails(plane([[1, 2], [3, 4]]), 2)[0, 0].tolist() == [
        [1, 0, 2, 0],
        [0, 0, 0, 0],
        [3, 0, 4, 0],
        [0, 0, 0, 0],
    ]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_any_size_is_pooled_and_restored(height: int, width: int, factor: int, seed: int) -> None:
    """Each window of numpy's, cut short at the border; its maximum goes back to where it stood."""
    features = np.random.default_rng(seed).normal(size=(2, 3, height, width))
    pooled, positions = MaxPoolPositions(factor)(torch.from_numpy(features))
    expected = np.zeros_like(features)
    for row in range(0, height, factor):
        for column in range(0, width, factor):
            window = features[..., row : row + factor, column : column + factor]
            largest = window.max(axis=(-2, -1))
            np.testing.assert_array_equal(pooled[..., row // factor, column // factor], largest)
            place = expected[..., row : row + factor, column : column + factor]
            place[window == largest[..., None, None]] = largest.ravel()
    restored = MaxUnpool(factor)(pooled, positions, height, width)
    np.testing.assert_array_equal(restored, expected)
    again, same_positions = MaxPoolPositions(factor)(restored.where(restored != 0, -np.inf))
    assert torch.equal(again, pooled)
    assert torch.equal(same_positions, positions)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_positions_in_steps_are_torchs_also_of_equal_values(height: int, width: int, factor: int, seed: int) -> None:
    features = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, size=(2, 3, height, width))).float()
    pool = MaxPoolPositions(factor)
    assert torch.equal(pool.positions_in_steps(features), pool(features)[1])
    nothing = torch.full_like(features, torch.nan)
    assert torch.equal(pool.positions_in_steps(nothing), pool(torch.zeros_like(features))[1])


def test_unpooling_is_torchs_where_the_factor_divides() -> None:
    torch.manual_seed(0)
    pooled, positions = MaxPoolPositions(3)(torch.randn(2, 3, 9, 6))
    values = torch.randn_like(pooled, requires_grad=True)
    result = MaxUnpool(3)(values, positions, 9, 6)
    assert torch.equal(result, F.max_unpool2d(values, positions, 3))
    result.sum().backward()
    assert torch.equal(values.grad, torch.ones_like(values))


def test_of_equal_values_the_first_counts() -> None:
    assert MaxPoolPositions()(torch.ones(1, 1, 2, 4))[1].tolist() == [[[[0, 2]]]]


@pytest.mark.parametrize(
    ("values", "height", "message"),
    [
        (
            torch.zeros(1, 2, 2, 2),
            4,
            "max unpooling needs a position for each value, but got shapes of 1 x 2 x 2 x 2 and 1 x 1 x 2 x 2: give "
            "the values the channels and the size of the map that was pooled.",
        ),
        (
            torch.zeros(1, 1, 2, 2),
            5,
            "max unpooling by 2 cannot make 5 x 4 of 2 x 2: pooling that size gives 3 x 2; ask for the size that was "
            "pooled.",
        ),
    ],
)
def test_what_was_not_pooled_cannot_be_unpooled(values: Tensor, height: int, message: str) -> None:
    with pytest.raises(ModelError, match="^" + re.escape(message)):
        MaxUnpool()(values, torch.zeros(1, 1, 2, 2, dtype=torch.int64), height, 4)


@pytest.mark.parametrize("call", [MaxPoolPositions, MaxUnpool, lambda factor: bed_of_nails(torch.ones(1, 1), factor)])
def test_a_factor_of_nothing_is_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SettingError, match=r"^factor: must be at least 1, not 0\.$"):
        call(0)


@pytest.mark.parametrize(("dtype", "noise"), [(torch.float64, 1e-13), (torch.float32, 1e-6)], ids=str)
def test_rounding_moves_no_position_where_the_image_is_flat(dtype: torch.dtype, noise: float) -> None:
    flat = torch.full((1, 1, 64, 64), 1.2345, dtype=dtype)
    rounded = flat * (1 + noise * torch.randn(flat.shape, dtype=dtype, generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(rounded, flat)
    assert torch.equal(MaxPoolPositions()(rounded)[1], MaxPoolPositions()(flat)[1])


def test_half_precision_is_pooled_as_it_is() -> None:
    features = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    pooled, positions = MaxPoolPositions()(features)
    expected = F.max_pool2d(features, 2, return_indices=True)
    assert torch.equal(pooled, expected[0])
    assert torch.equal(positions, expected[1])
