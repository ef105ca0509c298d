"""Transposed convolution written out in three ways, to read and to compare with torch's own.

Shapes: N images, C input channels, K output channels, H x W input pixels, H' x W' output pixels, a kernel of
F x G pixels. Up to rounding the three functions give the same result as `torch.nn.functional.conv_transpose2d`, which
networks use because it is far faster. The arguments are torch's, except that its `padding` is called `crop` here: it
pads the convolution that is transposed, and so it trims the result.

Source: Dumoulin and Visin 2016, arXiv:1603.07285, chapter 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pixelwise.core.errors import ModelError, SettingError
from pixelwise.geometry.reach import output_size, transposed_output_size


def transposed_by_stamps(
    features: Tensor, kernel: Tensor, stride: int = 1, crop: int = 0, output_padding: int = 0
) -> Tensor:
    """Transposed convolution: each input value stamps the kernel, `stride` pixels apart; overlaps add.

    Args:
        features: N x C x H x W.
        kernel: C x K x F x G.
        stride: pixels from one stamp to the next.
        crop: pixels trimmed on each side of the stamped image.
        output_padding: pixels of the crop to keep at the bottom and right, fewer than the stride; zeros beyond the
            last stamp.

    Returns:
        N x K x H' x W', where H' = (H - 1) stride + F - 2 crop + output_padding.

    Raises:
        SettingError: the stride is below 1, the crop is negative, or the output padding is not below the stride.
        ModelError: the features have other channels than the kernel, or the crop leaves nothing.

    >>> features, kernel = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[1.0, 1.0, 3.0]]]])
    >>> transposed_by_stamps(features, kernel, stride=2)
    tensor([[[[1., 1., 5., 2., 6.]]]])
    """
    _check_transposed(features, kernel, stride, crop, output_padding)
    images, _, height, width = features.shape
    _, out_channels, tall, wide = kernel.shape
    rows, columns = (height - 1) * stride + tall + output_padding, (width - 1) * stride + wide + output_padding
    canvas = features.new_zeros(images, out_channels, rows, columns)
    for row in range(height):
        for column in range(width):
            stamp = torch.einsum("nc,ckij->nkij", features[:, :, row, column], kernel)
            top, left = row * stride, column * stride
            canvas[:, :, top : top + tall, left : left + wide] += stamp
    return canvas[:, :, crop : rows - crop, crop : columns - crop]


def transposed_by_matrix(
    features: Tensor, kernel: Tensor, stride: int = 1, crop: int = 0, output_padding: int = 0
) -> Tensor:
    """Transposed convolution: multiplication by the transposed matrix of the convolution in the other direction.

    That convolution turns the K x H' x W' result into the C x H x W input, with `crop` as its padding. Arguments,
    result and errors are those of `transposed_by_stamps`.

    >>> features, kernel = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[1.0, 1.0, 3.0]]]])
    >>> transposed_by_matrix(features, kernel, stride=2)
    tensor([[[[1., 1., 5., 2., 6.]]]])
    """
    _check_transposed(features, kernel, stride, crop, output_padding)
    height, width = _sizes(features, kernel, stride, crop, output_padding)
    matrix = convolution_matrix(kernel, height, width, stride, padding=crop)
    flat = features.flatten(start_dim=1) @ matrix  # rows of images, so the transpose stands on the right
    return flat.reshape(len(features), kernel.shape[1], height, width)


def transposed_by_zeros(
    features: Tensor, kernel: Tensor, stride: int = 1, crop: int = 0, output_padding: int = 0
) -> Tensor:
    """Transposed convolution: `stride` - 1 zeros between the values, then a convolution with the flipped kernel.

    Arguments, result and errors are those of `transposed_by_stamps`.

    >>> features, kernel = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[1.0, 1.0, 3.0]]]])
    >>> transposed_by_zeros(features, kernel, stride=2)
    tensor([[[[1., 1., 5., 2., 6.]]]])
    """
    _check_transposed(features, kernel, stride, crop, output_padding)
    height, width = _sizes(features, kernel, stride, crop, output_padding)
    tall, wide = kernel.shape[-2:]
    border = (wide - 1, wide - 1 + output_padding, tall - 1, tall - 1 + output_padding)
    flipped = kernel.flip(-2, -1).transpose(0, 1)
    full = F.conv2d(F.pad(insert_zeros(features, stride), border), flipped)
    return full[:, :, crop : crop + height, crop : crop + width]


def convolution_matrix(kernel: Tensor, height: int, width: int, stride: int = 1, padding: int = 0) -> Tensor:
    """The matrix by which a convolution multiplies a flattened image.

    Args:
        kernel: K x C x F x G.
        height: H of the image.
        width: W of the image.
        stride: pixels from one position to the next.
        padding: zeros around the image; they have no columns.

    Returns:
        (K H' W') x (C H W): a row for each output value, with the kernel in its place.

    Raises:
        SettingError: the stride is below 1.
        ModelError: the kernel is larger than the padded image.

    >>> convolution_matrix(torch.tensor([[[[1, 2, 3]]]]), height=1, width=6, stride=2)
    tensor([[1, 2, 3, 0, 0, 0],
            [0, 0, 1, 2, 3, 0]])
    """
    _check_stride(stride)
    out_channels, in_channels, tall, wide = kernel.shape
    rows, columns = output_size(height, tall, stride, padding), output_size(width, wide, stride, padding)
    padded = kernel.new_zeros(out_channels, rows, columns, in_channels, height + 2 * padding, width + 2 * padding)
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride, column * stride
            padded[:, row, column, :, top : top + tall, left : left + wide] = kernel
    inside = padded[..., padding : padding + height, padding : padding + width]
    return inside.reshape(out_channels * rows * columns, in_channels * height * width)


def insert_zeros(features: Tensor, stride: int) -> Tensor:
    """Put `stride` - 1 zeros between neighbours: ... x H x W gives ... x (H - 1) stride + 1 x (W - 1) stride + 1.

    Raises:
        SettingError: the stride is below 1.

    >>> insert_zeros(torch.tensor([[1, 2, 3]]), 2)
    tensor([[1, 0, 2, 0, 3]])
    """
    _check_stride(stride)
    height, width = features.shape[-2:]
    spread = features.new_zeros(*features.shape[:-2], (height - 1) * stride + 1, (width - 1) * stride + 1)
    spread[..., ::stride, ::stride] = features
    return spread


def coverage(size: int, kernel: int, stride: int, crop: int = 0) -> Tensor:
    """How many stamps of a transposed convolution lie on each output pixel.

    Away from the border the count is uniform if the stride divides the kernel; otherwise it has the checkerboard
    pattern of Odena et al. 2016, https://doi.org/10.23915/distill.00003.

    Args:
        size: input pixels on each side.
        kernel: pixels on each side.
        stride: pixels from one stamp to the next.
        crop: pixels trimmed on each side.

    Returns:
        H' x H' int64, where H' = (size - 1) stride + kernel - 2 crop.

    Raises:
        SettingError: the stride is below 1, or the crop is negative.
        ModelError: the crop leaves nothing.

    >>> coverage(2, kernel=3, stride=2)[0]
    tensor([1, 1, 2, 1, 1])
    """
    values, ones = (torch.ones(1, 1, side, side, dtype=torch.int64) for side in (size, kernel))
    return transposed_by_stamps(values, ones, stride, crop)[0, 0]


def _sizes(features: Tensor, kernel: Tensor, stride: int, crop: int, output_padding: int) -> tuple[int, int]:
    """H' and W'."""
    height, width = (
        transposed_output_size(features.shape[axis], kernel.shape[axis], stride, crop, output_padding)
        for axis in (-2, -1)
    )
    return height, width


def _check_transposed(features: Tensor, kernel: Tensor, stride: int, crop: int, output_padding: int) -> None:
    """Refuse arguments that do not fit."""
    _check_stride(stride)
    if crop < 0:
        raise SettingError(f"crop: must be at least 0 pixels, not {crop}.")
    if not 0 <= output_padding < stride:
        raise SettingError(
            f"output_padding: must be from 0 to below the stride of {stride}, not {output_padding}, since a "
            f"larger one belongs to another size of the features."
        )
    if features.shape[1] != kernel.shape[0]:
        raise ModelError(
            f"features of {features.shape[1]} channels do not fit a transposed kernel of {kernel.shape[0]} input "
            f"channels: a kernel is input x output channels x height x width."
        )
    _sizes(features, kernel, stride, crop, output_padding)


def _check_stride(stride: int) -> None:
    if stride < 1:
        raise SettingError(f"stride: must be at least 1 pixel, not {stride}.")
