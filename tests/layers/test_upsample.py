import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelwise.errors import ModelError
from pixelwise.geometry import transposed_output_size
from pixelwise.layers import UpConcatenate, center_crop, pad_to_stride


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
