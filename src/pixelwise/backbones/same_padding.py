"""TensorFlow's "same" padding, written as the constant that it is on a network's grid.

timm's `tf_*` encoders pad each convolution by an amount that follows from the size of its input, so that
ceil(input / stride) cells come out. Where the input's sides are multiples of the convolution's stride, as everywhere
in an image on the grid of the encoder's stride, that amount is d (k - 1) + 1 - s for a kernel k, dilation d and stride
s, its smaller half at the left and top. As a constant it can be exported, and its geometry can be seen.
"""

from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.layers.cond_conv2d import CondConv2d
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from timm.layers.std_conv import ScaledStdConv2dSame, StdConv2dSame
from torch import Tensor, nn
from typing_extensions import override

Around = tuple[int, int, int, int]
"""Pixels at the left, right, top and bottom, as `F.pad` takes them."""


class GridConv2d(nn.Conv2d):
    """The convolution of a `Conv2dSame`, with its very weights, for inputs whose sides are multiples of its stride."""

    def __init__(self, layer: Any) -> None:
        sizes = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, 0, layer.dilation, layer.groups
        super().__init__(*sizes, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.around = _around(layer)
        left, right, top, bottom = self.around
        # One more pixel at the right and bottom than at the left and top, and no dilation.
        self._is_odd = right - left == 1 and bottom - top == 1 and set(layer.dilation) == {1}

    @override
    def forward(self, input: Tensor) -> Tensor:
        if self.training and self._is_odd:
            return self._with_longer_kernel(input)
        padded = F.pad(input, self.around)
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _with_longer_kernel(self, input: Tensor) -> Tensor:
        """The same: a kernel that begins with a zero at the left and top, so that the image need not be copied.

        Not for prediction: there a network's geometry counts each tap, and an engine pads without a copy.
        """
        weight = F.pad(self.weight, (1, 0, 1, 0))
        around = self.around[1], self.around[3]
        return F.conv2d(input, weight, self.bias, self.stride, around[::-1], self.dilation, self.groups)


class GridPool2d(nn.Module):
    """The pooling of a `MaxPool2dSame` or an `AvgPool2dSame` for inputs whose sides are multiples of its stride."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.kernel_size, self.stride = layer.kernel_size, layer.stride
        self.dilation = layer.dilation if isinstance(layer, nn.MaxPool2d) else None
        self.around = _around(layer)

    @override
    def forward(self, input: Tensor) -> Tensor:
        if self.dilation is None:
            return F.avg_pool2d(F.pad(input, self.around), self.kernel_size, self.stride)
        padded = F.pad(input, self.around, value=float("-inf"))
        return F.max_pool2d(padded, self.kernel_size, self.stride, 0, self.dilation)

    @override
    def extra_repr(self) -> str:
        kind = "average" if self.dilation is None else f"maximum, dilation={self.dilation}"
        return f"{kind}, kernel_size={self.kernel_size}, stride={self.stride}, around={self.around}"


def pad_on_grid(network: nn.Module) -> None:
    """Mend the layers of a network that pad by their input's size; its parameters and their names stay."""
    for name, layer in list(network.named_children()):
        if isinstance(layer, Conv2dSame):
            setattr(network, name, GridConv2d(layer))
        elif isinstance(layer, (MaxPool2dSame, AvgPool2dSame)):
            setattr(network, name, GridPool2d(layer))
        elif isinstance(layer, (StdConv2dSame, ScaledStdConv2dSame, CondConv2d)):
            _pad_before(layer)
        else:
            pad_on_grid(layer)


def _pad_before(layer: Any) -> None:
    """Pad the input of a layer that makes its weights anew in each call, and which therefore has to stay."""
    flag = "dynamic_padding" if isinstance(layer, CondConv2d) else "same_pad"
    if getattr(layer, flag):
        setattr(layer, flag, False)
        layer.register_forward_pre_hook(partial(_padded, _around(layer)))


def _padded(around: Around, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return F.pad(inputs[0], around), *inputs[1:]


def _around(layer: Any) -> Around:
    """What a layer's input needs around it."""
    kernel, stride, dilation = (_pair(getattr(layer, name, 1)) for name in ("kernel_size", "stride", "dilation"))
    height, width = (max(dilation[axis] * (kernel[axis] - 1) + 1 - stride[axis], 0) for axis in (0, 1))
    return width // 2, width - width // 2, height // 2, height - height // 2


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
