"""Transposed convolution: the lectures' numbers, and the three ways against each other and against torch."""

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pixelwise.core.errors import ModelError, SettingError
from pixelwise.geometry.reach import transposed_output_size
from pixelwise.layers import (
    bed_of_nails,
    convolution_matrix,
    coverage,
    enlarge,
    insert_zeros,
    transposed_by_matrix,
    transposed_by_stamps,
    transposed_by_zeros,
)

WAYS = [transposed_by_stamps, transposed_by_matrix, transposed_by_zeros]
KERNEL = torch.tensor([[2.0, 1, 4], [-1, -2, -3], [-2, 1, 4]]).double()
SEEDS = st.integers(0, 2**32 - 1)


def plane(rows: list[list[float]]) -> Tensor:
    """1 x 1 x H x W."""
    return torch.tensor(rows, dtype=torch.float64)[None, None]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("values", "stride", "crop", "expected"),
    [
        ([[2, 3], [-2, 1]], 3, 1, [[-4, -6, -3, -6], [2, 8, -6, 3], [-2, -8, 2, 1], [4, 6, -1, -2]]),
        (
            [[2, 3], [-2, 1]],
            2,
            0,
            [[4, 2, 14, 3, 12], [-2, -4, -9, -6, -9], [-8, 0, -4, 4, 16], [2, 4, 5, -2, -3], [4, -2, -10, 1, 4]],
        ),
        (
            [[2, 3], [2, 1]],
            2,
            0,
            [[4, 2, 14, 3, 12], [-2, -4, -9, -6, -9], [0, 4, 12, 4, 16], [-2, -4, -7, -2, -3], [-4, 2, 6, 1, 4]],
        ),
    ],
)
def test_stamps_of_the_lectures(
    way: Callable[..., Tensor], values: list, stride: int, crop: int, expected: list
) -> None:
    assert way(plane(values), KERNEL[None, None], stride, crop)[0, 0].tolist() == expected


@pytest.mark.parametrize("way", WAYS)
def test_two_pixels_become_three_or_four_as_the_lectures_draw_it(way: Callable[..., Tensor]) -> None:
    values, ones = plane([[1, 2], [3, 4]]), torch.ones(1, 1, 3, 3).double()
    assert way(values, ones, 2, crop=1)[0, 0].tolist() == [[1, 3, 2], [4, 10, 6], [3, 7, 4]]
    larger = [[1, 3, 2, 2], [4, 10, 6, 6], [3, 7, 4, 4], [3, 7, 4, 4]]
    assert way(values, ones, 2, crop=1, output_padding=1)[0, 0].tolist() == larger


@pytest.mark.parametrize("way", WAYS)
@given(
    st.tuples(*[st.integers(1, 3)] * 3),
    st.tuples(*[st.integers(1, 4)] * 4),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 3),
    SEEDS,
)
@settings(deadline=None, max_examples=40)
def test_the_three_ways_are_torchs(
    way: Callable[..., Tensor],
    channels: tuple[int, int, int],
    sizes: tuple[int, int, int, int],
    stride: int,
    crop: int,
    output_padding: int,
    seed: int,
) -> None:
    images, in_channels, out_channels = channels
    height, width, tall, wide = sizes
    assume(output_padding < stride)
    assume(all((n - 1) * stride + k - 2 * crop + output_padding >= 1 for n, k in ((height, tall), (width, wide))))
    features = draw(images, in_channels, height, width, seed=seed)
    kernel = draw(in_channels, out_channels, tall, wide, seed=seed + 1)
    expected = F.conv_transpose2d(features, kernel, None, stride, crop, output_padding)
    result = way(features, kernel, stride, crop, output_padding)
    assert result.shape[-2] == transposed_output_size(height, tall, stride, crop, output_padding)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@given(st.tuples(*[st.integers(1, 5)] * 4), st.integers(1, 3), st.integers(0, 3), SEEDS)
@settings(deadline=None, max_examples=40)
def test_a_convolution_is_a_matrix(sizes: tuple[int, int, int, int], stride: int, padding: int, seed: int) -> None:
    height, width, tall, wide = sizes
    assume(tall <= height + 2 * padding and wide <= width + 2 * padding)
    images, kernel = draw(2, 2, height, width, seed=seed), draw(3, 2, tall, wide, seed=seed + 1)
    expected = F.conv2d(images, kernel, stride=stride, padding=padding)
    matrix = convolution_matrix(kernel, height, width, stride, padding)
    result = (matrix @ images.flatten(1).T).T.reshape(expected.shape)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_matrices_of_the_lectures() -> None:
    image = torch.tensor([[4.0, 5, 8, 7], [1, 8, 8, 8], [3, 6, 6, 4], [6, 5, 7, 8]])
    matrix = convolution_matrix(torch.tensor([[[[1.0, 4, 1], [1, 4, 3], [3, 3, 1]]]]), 4, 4)
    assert matrix.shape == (4, 16)
    assert (matrix @ image.flatten()).tolist() == [122, 148, 126, 134]

    x, y, z, a, b, c, d = 2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0
    matrix = convolution_matrix(torch.tensor([[[[x, y, z]]]]), 1, 6, stride=2)
    assert matrix.tolist() == [[x, y, z, 0, 0, 0], [0, 0, x, y, z, 0]]
    padded = torch.tensor([0, a, b, c, d, 0])
    assert (matrix @ padded).tolist() == [a * y + b * z, b * x + c * y + d * z]
    assert (matrix.T @ torch.tensor([a, b])).tolist() == [a * x, a * y, a * z + b * x, b * y, b * z, 0]


def test_inserted_zeros_of_the_lectures() -> None:
    """The tent keeps every value at its even position and puts the neighbours' means between: corners aligned."""
    image = torch.arange(1.0, 17).view(1, 1, 4, 4)
    tent = torch.tensor([[0.25, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 0.25]])[None, None]
    result = F.conv2d(insert_zeros(image, 2), tent, padding=1)
    assert result.shape == (1, 1, 7, 7)
    assert torch.equal(result[..., ::2, ::2], image)
    assert torch.equal(result[..., ::2, 1::2], (image[..., :-1] + image[..., 1:]) / 2)
    assert torch.equal(result[..., 1::2, ::2], (image[..., :-1, :] + image[..., 1:, :]) / 2)
    assert result[0, 0, 1, 1] == (1 + 2 + 5 + 6) / 4
    expected = F.interpolate(image, size=(7, 7), mode="bilinear", align_corners=True)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    for way in WAYS:
        assert torch.equal(way(image, tent, 2, crop=1), result)


def test_nearest_and_nails_are_transposed_convolutions() -> None:
    features = draw(2, 1, 3, 4)
    for factor in (1, 2, 3):
        ones, nail = torch.ones(1, 1, factor, factor).double(), torch.zeros(1, 1, factor, factor).double()
        nail[..., 0, 0] = 1
        assert torch.equal(transposed_by_stamps(features, ones, factor), enlarge(features, factor, "nearest"))
        assert torch.equal(transposed_by_stamps(features, nail, factor), bed_of_nails(features, factor))


def test_the_checkerboard_of_the_lectures() -> None:
    """Stride 2 covers evenly with a kernel of 4, a multiple of it, and unevenly with one of 3."""
    even, uneven = coverage(5, kernel=4, stride=2), coverage(5, kernel=3, stride=2)
    assert even[2:-2, 2:-2].unique().tolist() == [4]
    assert uneven[1:-1, 1:-1].unique().tolist() == [1, 2, 4]
    assert uneven[0].tolist() == [1, 1, 2, 1, 2, 1, 2, 1, 2, 1, 1]


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_coverage_is_even_where_the_stride_divides_the_kernel(more: int, kernel: int, stride: int) -> None:
    """Away from the border, where fewer stamps reach; and it counts what the loops below count."""
    size = 2 * kernel + more
    counts = coverage(size, kernel, stride)
    expected = torch.zeros_like(counts)
    for row in range(0, size * stride, stride):
        for column in range(0, size * stride, stride):
            expected[row : row + kernel, column : column + kernel] += 1
    assert torch.equal(counts, expected)
    inside = counts[kernel : len(counts) - kernel, kernel : len(counts) - kernel]
    assert (len(inside.unique()) == 1) == (kernel % stride == 0)


def test_coverage_may_be_cropped() -> None:
    assert torch.equal(coverage(4, 4, 2, crop=1), coverage(4, 4, 2)[1:-1, 1:-1])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"stride": 0}, SettingError, "stride: must be at least 1 pixel, not 0."),
        ({"crop": -1}, SettingError, "crop: must be at least 0 pixels, not -1."),
        (
            {"stride": 2, "output_padding": 2},
            SettingError,
            "output_padding: must be from 0 to below the stride of 2, not 2, since a larger one belongs to "
            "another size of the features.",
        ),
        (
            {"kernel": torch.zeros(3, 1, 2, 2)},
            ModelError,
            "features of 2 channels do not fit a transposed kernel of 3 input channels: a kernel is input x output "
            "channels x height x width.",
        ),
        ({"crop": 3}, ModelError, "a crop of 3 pixels on each side leaves nothing of the 5 pixels that 4 values"),
    ],
)
def test_arguments_that_do_not_fit(way: Callable[..., Tensor], arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match="^" + re.escape(message)):
        way(**{"features": torch.zeros(1, 2, 4, 4), "kernel": torch.zeros(2, 1, 2, 2), **arguments})


@pytest.mark.parametrize(
    "call", [lambda: insert_zeros(torch.zeros(2, 2), 0), lambda: convolution_matrix(torch.zeros(1, 1, 1, 1), 2, 2, 0)]
)
def test_a_stride_of_nothing_is_refused(call: Callable[[], Tensor]) -> None:
    with pytest.raises(SettingError, match=r"^stride: must be at least 1 pixel, not 0\.$"):
        call()


def test_a_matrix_needs_an_image_that_holds_the_kernel() -> None:
    with pytest.raises(ModelError, match=r"kernel of 3 pixels does not fit into 2 pixels with a padding of 0"):
        convolution_matrix(torch.zeros(1, 1, 3, 3), 2, 2)
