"""Enlarging feature maps, and making their sizes agree.

Shapes: N images, C channels, H x W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pixelwise.core.errors import ModelError, SettingError, near
from pixelwise.geometry.reach import Reach
from pixelwise.geometry.tracing import described_by

MODES = ("nearest", "bilinear", "bicubic")
"""Ways of `enlarge`."""


class UpConcatenate(nn.Module):
    """Double the size by a transposed convolution, then join the skip features, centre-cropped to the same size.

    The 2 x 2 kernel has stride 2, so that its stamps do not overlap: each input value makes four of its own.

    Takes N x in_channels x H x W and a skip of N x C x H' x W' with H' >= 2H, W' >= 2W; gives
    N x (C + out_channels) x 2H x 2W, the skip's channels first.

    Source: Ronneberger et al. 2015, arXiv:1505.04597, section 2.

    >>> UpConcatenate(8, 4)(torch.zeros(1, 8, 5, 6), torch.zeros(1, 4, 14, 12)).shape
    torch.Size([1, 8, 10, 12])
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)

    @override
    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        larger = self.up(features)
        return torch.cat([center_crop(skip, larger.shape[-2], larger.shape[-1]), larger], dim=1)


def center_crop(features: Tensor, height: int, width: int) -> Tensor:
    """The middle height x width of ... x H x W features; an odd difference cuts one pixel more off at the end.

    Raises:
        ModelError: the features are smaller than that.

    >>> center_crop(torch.arange(5.0).view(1, 1, 1, 5), 1, 3)
    tensor([[[[1., 2., 3.]]]])
    """
    top, left = (features.shape[-2] - height) // 2, (features.shape[-1] - width) // 2
    if top < 0 or left < 0:
        size = f"{features.shape[-2]} x {features.shape[-1]}"
        raise ModelError(f"features of {size} cannot be cropped to {height} x {width}: they are smaller.")
    return features[..., top : top + height, left : left + width]


def pad_to_stride(images: Tensor, stride: int) -> Tensor:
    """Repeat the last row and column of N x C x H x W until both sides are multiples of `stride`.

    >>> pad_to_stride(torch.tensor([[[[1.0, 2.0, 3.0]]]]), 2)
    tensor([[[[1., 2., 3., 3.],
              [1., 2., 3., 3.]]]])
    """
    bottom, right = -images.shape[-2] % stride, -images.shape[-1] % stride
    return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images


def _reach_enlarged(reach: Reach, factor: int, mode: str = "bilinear") -> Reach:
    """The reach of `enlarge`."""
    rules = {"nearest": reach.upsampling, "bilinear": reach.bilinear, "bicubic": reach.bicubic}
    return rules[mode](factor) if factor > 1 else reach


@described_by(_reach_enlarged)
def enlarge(features: Tensor, factor: int, mode: str = "bilinear") -> Tensor:
    """Upsample by a whole factor, with the same weights at every position, so that tiles agree with the image.

    Pixels are areas (`align_corners=False`), and border pixels are repeated. The result is that of
    `torch.nn.functional.interpolate` at exact positions: torch rounds 1 / factor, so that in float32 its weights drift
    with the position unless the factor is a power of two.

    Args:
        features: N x C x H x W, floating point.
        factor: output pixels for each input pixel along each axis.
        mode: "nearest", "bilinear", or "bicubic" (Keys 1981, https://doi.org/10.1109/TASSP.1981.1163711, with a
            free parameter of -0.75).

    Returns:
        N x C x factor H x factor W.

    Raises:
        SettingError: the mode is unknown, or the factor is below 1.

    >>> enlarge(torch.tensor([[[[1.0, 3.0]]]]), 2)
    tensor([[[[1.0000, 1.5000, 2.5000, 3.0000],
              [1.0000, 1.5000, 2.5000, 3.0000]]]])
    """
    if mode not in MODES:
        raise SettingError(f"mode: unknown mode {mode!r}; {near(mode, MODES)}")
    _check_factor(factor)
    if factor == 1:
        return features
    if mode == "nearest":
        return features.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    if factor & (factor - 1) == 0:  # a power of two: nothing is rounded, and torch is fast
        return F.interpolate(features, scale_factor=factor, mode=mode, align_corners=False)
    return _enlarge_axis(_enlarge_axis(features, -2, factor, mode), -1, factor, mode)


def _enlarge_axis(features: Tensor, axis: int, factor: int, mode: str) -> Tensor:
    """Bilinear or bicubic upsampling along one axis, at positions that are exact fractions."""
    size = features.shape[axis]
    numerator = 2 * torch.arange(size * factor) + 1 - factor  # of places in 1 / (2 factor)
    before = numerator.div(2 * factor, rounding_mode="floor")
    ahead = (numerator % (2 * factor)).double() / (2 * factor)
    total = torch.zeros((), dtype=features.dtype, device=features.device)
    for tap in (0, 1) if mode == "bilinear" else (-1, 0, 1, 2):
        weight = _tap_weight((ahead - tap).abs(), mode)
        # At a pixel's own centre the other taps weigh nothing: they read that pixel too, so that no NaN spreads.
        place = torch.where(weight == 0, before, before + tap).clamp(0, size - 1)
        shape = (-1, 1) if axis == -2 else (-1,)
        total = total + weight.view(shape).to(features) * features.index_select(axis, place.to(features.device))
    return total


def _tap_weight(distance: Tensor, mode: str) -> Tensor:
    """The weight of a pixel at that distance, in pixels."""
    if mode == "bilinear":
        return 1 - distance
    sharpness = -0.75
    close = ((sharpness + 2) * distance - (sharpness + 3)) * distance**2 + 1
    far = sharpness * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, close, far)


def bilinear_kernel(factor: int) -> Tensor:
    """The kernel of a transposed convolution with stride `factor` that upsamples bilinearly.

    Args:
        factor: output pixels for each input pixel along each axis.

    Returns:
        F x F, float32, where F = 2 factor - factor % 2.

    Raises:
        SettingError: the factor is below 1.

    Source: Long et al. 2015, arXiv:1411.4038, section 3.3 (and its code).

    >>> bilinear_kernel(2)[1]
    tensor([0.1875, 0.5625, 0.5625, 0.1875])
    """
    _check_factor(factor)
    side = 2 * factor - factor % 2
    centre = (side - 1) / 2
    line = 1 - (torch.arange(side, dtype=torch.float64) - centre).abs() / factor
    return torch.outer(line, line).float()


def bilinear_start(module: nn.ConvTranspose2d) -> None:
    """Initialise a transposed convolution as bilinear upsampling of each channel, and clear its bias.

    With `padding=factor // 2` it gives N x C x factor H x factor W, away from the border the same as
    `enlarge(features, factor)`. Outside the image it sees zeros, so that the border is darker.

    Source: Long et al. 2015, arXiv:1411.4038, section 3.3.

    Raises:
        SettingError: the kernel does not suit the stride, or the output has other channels than the input.

    >>> up = nn.ConvTranspose2d(1, 1, kernel_size=4, stride=2, padding=1)
    >>> bilinear_start(up)
    >>> up(torch.ones(1, 1, 3, 3))[0, 0, 2].tolist()
    [0.75, 1.0, 1.0, 1.0, 1.0, 0.75]
    """
    factor, side = module.stride[0], 2 * module.stride[0] - module.stride[0] % 2
    if module.stride != (factor, factor) or module.kernel_size != (side, side) or module.dilation != (1, 1):
        raise SettingError(
            f"bilinear start: needs one stride for both axes, a kernel of {side} x {side} pixels and no dilation, but "
            f"got a stride of {module.stride}, a kernel of {module.kernel_size} and a dilation of {module.dilation}."
        )
    if module.in_channels != module.out_channels:
        raise SettingError(
            f"bilinear start: enlarges each channel by itself, so {module.in_channels} input channels cannot become "
            f"{module.out_channels}: use equal numbers."
        )
    kernel, of_group = bilinear_kernel(factor).to(module.weight), module.in_channels // module.groups
    with torch.no_grad():
        module.weight.zero_()
        for channel in range(module.in_channels):
            module.weight[channel, channel % of_group] = kernel
        if module.bias is not None:
            module.bias.zero_()


def _check_factor(factor: int) -> None:
    if factor < 1:
        raise SettingError(f"factor: must be at least 1, not {factor}.")
