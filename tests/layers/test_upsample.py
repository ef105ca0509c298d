import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pixelwise.core.errors import ModelError, SettingError
from pixelwise.geometry.reach import Reach, transposed_output_size
from pixelwise.layers import (
    MODES,
    UpConcatenate,
    bilinear_kernel,
    bilinear_start,
    center_crop,
    enlarge,
    pad_to_stride,
)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 4), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_up_convolution_stamps_its_kernel(height: int, width: int, larger: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer, features = UpConcatenate(3, 2).double(), torch.randn(1, 3, height, width, dtype=torch.float64)
    skip = torch.randn(1, 4, 2 * height + larger, 2 * width, dtype=torch.float64)
    weight, bias = layer.up.weight.detach().numpy(), layer.up.bias.detach().numpy()

    expected = np.zeros((2, transposed_output_size(height, 2, 2), transposed_output_size(width, 2, 2)))
    expected += bias[:, None, None]
    for y in range(height):
        for x in range(width):
            stamp = np.einsum("c,ckij->kij", features[0, :, y, x].numpy(), weight)
            expected[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] += stamp

    result = layer(features, skip)[0].detach().numpy()
    top = larger // 2
    np.testing.assert_array_equal(result[:4], skip[0, :, top : top + 2 * height])
    np.testing.assert_allclose(result[4:], expected, rtol=0, atol=1e-12)


def test_channels_last_stays() -> None:
    layer = UpConcatenate(8, 4).to(memory_format=torch.channels_last)
    features = torch.randn(2, 8, 3, 5).to(memory_format=torch.channels_last)
    skip = torch.randn(2, 4, 10, 10).to(memory_format=torch.channels_last)
    assert layer(features, skip).is_contiguous(memory_format=torch.channels_last)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 9), st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_center_crop_takes_the_same_from_both_sides(height: int, width: int, tall: int, wide: int) -> None:
    rows, columns = height + tall, width + wide
    features = torch.arange(rows * columns).view(1, 1, rows, columns)
    cropped = center_crop(features, height, width)[0, 0]
    kept_rows, kept_columns = cropped[:, 0] // columns, cropped[0] % columns
    assert cropped.shape == (height, width)
    assert (rows - 1 - kept_rows[-1]) - kept_rows[0] == tall % 2
    assert (columns - 1 - kept_columns[-1]) - kept_columns[0] == wide % 2


def test_center_crop_cannot_grow() -> None:
    with pytest.raises(ModelError, match=r"features of 4 x 5 cannot be cropped to 4 x 6: they are smaller"):
        center_crop(torch.zeros(1, 1, 4, 5), 4, 6)


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 2, 8, 16]))
@settings(deadline=None, max_examples=50)
def test_pad_to_stride_repeats_the_last_row_and_column(height: int, width: int, stride: int) -> None:
    images = torch.arange(2.0 * height * width).view(1, 2, height, width)
    rows, columns = -height % stride, -width % stride
    expected = np.pad(images.numpy(), ((0, 0), (0, 0), (0, rows), (0, columns)), mode="edge")
    np.testing.assert_array_equal(pad_to_stride(images, stride).numpy(), expected)


def test_nearest_upsampling_of_the_lectures() -> None:
    result = enlarge(torch.tensor([[[[1, 2], [3, 4]]]]), 2, "nearest")
    assert result[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def interpolation_matrix(size: int, factor: int, mode: str) -> np.ndarray:
    """(factor size) x size: what each pixel contributes, from the distance of the centres, borders repeated."""
    reach, sharpness = {"nearest": 1, "bilinear": 1, "bicubic": 2}[mode], -0.75
    matrix = np.zeros((size * factor, size))
    for pixel in range(size * factor):
        place = (pixel + 0.5) / factor - 0.5
        for source in range(math.floor(place) - reach, math.floor(place) + reach + 2):
            d = abs(place - source)
            weight = {
                "nearest": float(source == pixel // factor),
                "bilinear": max(0.0, 1 - d),
                "bicubic": (sharpness + 2) * d**3 - (sharpness + 3) * d**2 + 1
                if d <= 1
                else sharpness * (d**3 - 5 * d**2 + 8 * d - 4) * (d < 2),
            }[mode]
            matrix[pixel, min(max(source, 0), size - 1)] += weight
    return matrix


@pytest.mark.parametrize("mode", MODES)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 7), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_enlarging_is_a_matrix_for_each_axis(mode: str, height: int, width: int, factor: int, seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(2, 3, height, width))
    rows, columns = (interpolation_matrix(size, factor, mode) for size in (height, width))
    expected = np.einsum("yh,nchw,xw->ncyx", rows, features, columns)
    result = enlarge(torch.from_numpy(features), factor, mode)
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("factor", [2, 3, 6, 8])
def test_enlarging_is_the_same_everywhere(mode: str, factor: int) -> None:
    """In float32, far from the corner, where a rounded 1 / factor would be off by a thousandth of a pixel."""
    torch.manual_seed(0)
    tile, start = torch.randn(1, 1, 1, 9), 5001
    row = torch.cat([torch.zeros(1, 1, 1, start), tile], dim=-1)
    far = enlarge(row, factor, mode)[..., factor * (start + 3) : factor * (start + 6)]
    near = enlarge(tile, factor, mode)[..., 3 * factor : 6 * factor]
    torch.testing.assert_close(far, near, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 6])
def test_the_reach_of_enlarging_is_what_nan_shows(mode: str, factor: int) -> None:
    reach = getattr(Reach.of_input(factor).pooling(factor), mode)(factor)
    seen: list[list[int]] = [[] for _ in range(factor)]
    for cell in range(9):
        row = torch.zeros(1, 1, 1, 9)
        row[..., cell] = torch.nan
        for place in range(factor):
            if enlarge(row, factor, mode)[0, 0, 0, 4 * factor + place].isnan():
                seen[place] += [factor * (cell - 4), factor * (cell - 3) - 1]
    assert reach.cells == tuple((min(pixels), max(pixels)) for pixels in seen)


def test_enlarging_passes_the_gradient_on() -> None:
    features = torch.randn(1, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    for mode in MODES:
        assert torch.autograd.gradcheck(lambda values, mode=mode: enlarge(values, 3, mode), features)


def test_the_bilinear_kernel_of_the_paper() -> None:
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    assert torch.equal(bilinear_kernel(2), torch.outer(line, line))
    assert bilinear_kernel(3)[2].tolist() == pytest.approx([1 / 3, 2 / 3, 1, 2 / 3, 1 / 3], abs=1e-7)
    assert bilinear_kernel(1).tolist() == [[1]]


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 8, 16, 32])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_bilinear_start_upsamples_bilinearly(factor: int, groups: int) -> None:
    """In the interior as torch interpolates; the outermost pixels mix with the zeros outside."""
    torch.manual_seed(0)
    side = 2 * factor - factor % 2
    layer = nn.ConvTranspose2d(4, 4, side, stride=factor, padding=factor // 2, groups=groups).double()
    bilinear_start(layer)
    features = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    result = layer(features)
    expected = F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)
    assert result.shape == expected.shape
    inside = (..., slice(factor, -factor), slice(factor, -factor))
    torch.testing.assert_close(result[inside], expected[inside], rtol=0, atol=1e-6)
    assert bool(torch.isclose(result, expected).all()) == (factor == 1)


def test_a_bilinear_start_without_a_bias() -> None:
    layer = nn.ConvTranspose2d(1, 1, 4, stride=2, bias=False)
    bilinear_start(layer)
    assert torch.equal(layer.weight[0, 0], bilinear_kernel(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: enlarge(torch.zeros(1, 1, 1, 1), 2, "biliner"), "mode: unknown mode 'biliner'; did you"),
        (lambda: enlarge(torch.zeros(1, 1, 1, 1), 0), "factor: must be at least 1, not 0."),
        (lambda: bilinear_kernel(0), "factor: must be at least 1, not 0."),
        (
            lambda: bilinear_start(nn.ConvTranspose2d(1, 1, 3, stride=2)),
            "bilinear start: needs one stride for both axes, a kernel of 4 x 4 pixels and no dilation, but got a "
            "stride of (2, 2), a kernel of (3, 3) and a dilation of (1, 1).",
        ),
        (
            lambda: bilinear_start(nn.ConvTranspose2d(1, 2, 4, stride=2)),
            "bilinear start: enlarges each channel by itself, so 1 input channels cannot become 2: use equal numbers.",
        ),
    ],
)
def test_what_cannot_be_upsampled(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SettingError, match="^" + re.escape(message)):
        call()
