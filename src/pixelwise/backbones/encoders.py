"""Encoders of timm as backbones: ResNet, Inception-ResNet-v2, MobileNet, DarkNet-53 and hundreds more.

Shapes: N images, C channels, H x W pixels.

Papers: He et al. 2016, arXiv:1512.03385 (resnet18 to resnet152); Szegedy et al. 2017, arXiv:1602.07261
(inception_resnet_v2); Sandler et al. 2018, arXiv:1801.04381 (mobilenetv2_100); Howard et al. 2019, arXiv:1905.02244
(mobilenetv3_small_100); Redmon and Farhadi 2018, arXiv:1804.02767 (darknet53); for others see timm.

Our deviations from timm: where convolutions and poolings without padding make a feature smaller than
ceil(H / stride) x ceil(W / stride), as in inception_resnet_v2, they are padded by dilation (kernel - 1) / 2. The
weights are initialised as in timm, except that no batch norm starts at zero, which would at first keep the gradient
from the layers before it.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import timm
import torch
from torch import Tensor, nn
from typing_extensions import override

from pixelwise.backbones.base import ENCODERS, Backbone, check_depth
from pixelwise.backbones.norms import replace_batch_norms
from pixelwise.backbones.same_padding import pad_on_grid
from pixelwise.core.errors import SettingError, reason
from pixelwise.geometry.modes import evaluation_mode

ENOUGH_CELLS = 4  # along a side, so that no encoder refuses an image: 128 pixels at a stride of 32


class Encoder(Backbone):
    """The features of an encoder of timm.

    Args:
        name: in `timm.list_models()`, with or without the name of its weights ("resnet18" or "resnet18.a1_in1k").
        in_channels: C.
        norm: "batch" leaves the encoder as it is; "group" replaces its batch norms by group norms.
        output_stride: the largest stride, if it should be smaller than the encoder's own.
        depth: halvings from the first feature to the last; later layers are left out. None: all.

    Raises:
        SettingError: timm does not know the encoder, the strides of its features do not double, or it does not have the
            output stride or the depth.
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 3,
        norm: str = "batch",
        output_stride: int | None = None,
        depth: int | None = None,
    ) -> None:
        network: Any = create_features(name, in_channels, output_stride)
        strides, channels = network.feature_info.reduction(), network.feature_info.channels()
        _check_strides(name, strides, output_stride)
        end = check_depth(name, strides, depth) + 1
        super().__init__(name, in_channels, strides[:end], channels[:end], norm)
        self.output_stride = output_stride
        is_part = end < len(strides)
        self.network = create_features(name, in_channels, output_stride, features=end) if is_part else network
        pad_on_grid(self.network)
        if is_part:  # what is left out may take no image as small as those that follow
            side = ENOUGH_CELLS * strides[-1]
            _leave_out_unused(self.network, torch.zeros(1, in_channels, side, side))
        if self._fault():
            _pad_the_unpadded(self.network)
        if fault := self._fault():
            raise _no_pyramid(name, fault)
        _wake(self.network)
        replace_batch_norms(self.network, name, norm)

    @override
    def features_on_grid(self, images: Tensor) -> list[Tensor]:
        return list(self.network(images))

    def _fault(self) -> str:
        """What is wrong with the features of a small image; "" if they are as promised."""
        height, width = 2 * self.stride, 3 * self.stride
        device = next(self.network.parameters()).device
        try:
            with evaluation_mode(self.network), torch.no_grad():
                features = self.network(torch.zeros(1, self.in_channels, height, width, device=device))
        except Exception as error:  # an encoder that refuses a size does so in its own way
            return reason(error)
        promised = [
            (1, channels, height // stride, width // stride)
            for channels, stride in zip(self.channels, self.strides, strict=True)
        ]
        found = [tuple(feature.shape) for feature in features]
        return "" if found == promised else f"{height} x {width} pixels give {found} instead of {promised}"


def _leave_out_unused(network: nn.Module, images: Tensor) -> None:
    """Remove layers on which no feature depends: some encoders of timm do not end with their last feature."""
    parameters = list(network.parameters())
    with evaluation_mode(network), torch.enable_grad():
        total = torch.stack([feature.sum() for feature in network(images)]).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    used = {id(value) for value, slope in zip(parameters, gradients, strict=True) if slope is not None}
    _leave_out(network, used)


def _leave_out(network: nn.Module, used: set[int]) -> None:
    """Replace parts by an identity if none of their parameters is among the used ones, given by their ids."""
    for name, part in list(network.named_children()):
        own = {id(parameter) for parameter in part.parameters()}
        if own and used.isdisjoint(own):
            setattr(network, name, nn.Identity())
        else:
            _leave_out(part, used)


def _wake(network: nn.Module) -> None:
    """Let each batch norm start with a factor of 1."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.ones_(module.weight)


def create_features(
    name: str,
    in_channels: int,
    output_stride: int | None,
    features: int | None = None,
) -> nn.Module:
    """timm's extractor of all features, or of the first few, initialised by timm.

    Raises:
        SettingError: timm cannot build it, or not with that output stride.
    """
    options: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
    if features is not None:
        options["out_indices"] = tuple(range(features))
    try:
        return timm.create_model(name, features_only=True, in_chans=in_channels, **options)
    except Exception as error:  # timm asserts, and raises whatever a constructor raises
        if output_stride is None:
            raise _no_pyramid(name, reason(error)) from error
        raise _no_output_stride(name, output_stride, reason(error)) from error


def _check_strides(name: str, strides: Sequence[int], output_stride: int | None) -> None:
    """Refuse features that do not form a pyramid."""
    if output_stride is not None and strides[-1] != output_stride:
        raise _no_output_stride(name, output_stride, f"it stays at a stride of {strides[-1]}")
    for finer, coarser in pairwise(strides):
        if coarser != 2 * finer and not finer == coarser == output_stride:
            raise _no_pyramid(name, f"its features have the strides {', '.join(map(str, strides))}")


def _no_pyramid(name: str, why: str) -> SettingError:
    return SettingError(
        f"model.backbone: the features of {name!r} do not halve from one to the next for images of every size "
        f"({why}): use a convolutional encoder, such as {', '.join(ENCODERS)}."
    )


def _no_output_stride(name: str, output_stride: int, why: str) -> SettingError:
    return SettingError(
        f"model.output_stride: {name!r} cannot keep a stride of {output_stride} ({why}): leave it out, or use a "
        f"backbone such as vgg16 or resnet50."
    )


def _pad_the_unpadded(network: nn.Module) -> None:
    """Pad the convolutions and poolings whose windows overlap and that have no padding."""
    for module in network.modules():
        # Derived classes are left alone, as they may pad by themselves.
        if type(module) in (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d) and not isinstance(module.padding, str):
            _pad(module)


def _pad(layer: Any) -> None:
    """Pad a layer along each axis where its windows overlap and nothing is padded yet."""
    kernel, stride, padding, dilation = (
        _pair(getattr(layer, name, 1)) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    layer.padding = tuple(
        padding[axis] or (dilation[axis] * (kernel[axis] - 1) // 2 if kernel[axis] > stride[axis] else 0)
        for axis in (0, 1)
    )


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
