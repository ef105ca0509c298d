"""What every backbone shares: images of any size in, a pyramid of features out.

Shapes: N images, C channels, H x W pixels; feature i has channels[i] channels of
ceil(H / strides[i]) x ceil(W / strides[i]) cells.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn
from typing_extensions import override

from pixelwise.core.errors import ModelError, SettingError
from pixelwise.layers import pad_to_stride
from pixelwise.layers.conv import check_norm

OUTPUT_STRIDES = (8, 16, 32)
ENCODERS = ("resnet18", "resnet50", "mobilenetv2_100", "mobilenetv3_small_100", "inception_resnet_v2", "darknet53")
"""The encoders of timm that lists and messages name."""


class Backbone(nn.Module, ABC):
    """Base of the backbones: subclasses say what they do with images whose sides are multiples of the stride.

    Takes N x in_channels x H x W float images of any size from 1 x 1, already normalised, and gives a list of features,
    finest first: feature i is N x channels[i] x ceil(H / strides[i]) x ceil(W / strides[i]). The image is padded at the
    right and bottom to the largest stride by repeating its last pixels, the features are cropped.

    Args:
        name: as `make_backbone` knows it.
        in_channels: C of the image.
        strides: input pixels along a cell of each feature; they double until they stay at an output stride.
        channels: of each feature.
        norm: the name of its normalisation.

    Raises:
        ModelError: (forward) the images have other channels or no pixels.
    """

    def __init__(
        self, name: str, in_channels: int, strides: Sequence[int], channels: Sequence[int], norm: str = "batch"
    ) -> None:
        super().__init__()
        self.name, self.in_channels, self.norm = name, in_channels, norm
        self.strides, self.channels = list(strides), list(channels)

    @property
    def stride(self) -> int:
        """The largest stride, in input pixels."""
        return self.strides[-1]

    @override
    def forward(self, images: Tensor) -> list[Tensor]:
        """The features of the images, finest first."""
        if images.ndim != 4 or images.shape[1] != self.in_channels or 0 in images.shape:
            shape = " x ".join(map(str, images.shape))
            raise ModelError(
                f"the backbone {self.name} takes N x {self.in_channels} x H x W images, but got {shape}: convert "
                f"them to {self.in_channels} channel(s), or build it with another in_channels."
            )
        padded = pad_to_stride(images, self.stride)
        features = self.features_on_grid(padded)
        if padded is images:
            return features
        height, width = images.shape[-2:]
        return [
            feature[..., : -(-height // stride), : -(-width // stride)]
            for feature, stride in zip(features, self.strides, strict=True)
        ]

    @abstractmethod
    def features_on_grid(self, images: Tensor) -> list[Tensor]:
        """The features of images whose sides are multiples of the stride: the side over strides[i] for feature i."""


def check_depth(name: str, strides: Sequence[int], depth: int | None) -> int:
    """The number of halvings from the first feature to the last one that is used: `depth`, or all that there are.

    Raises:
        SettingError: there are fewer.

    >>> check_depth("vgg16", [1, 2, 4, 8, 16, 32], None)
    5
    """
    available = len(strides) - 1
    if depth is None:
        return available
    if not 1 <= depth <= available:
        raise SettingError(
            f"model.depth: the features of {name}, at strides {', '.join(map(str, strides))}, halve {available} times, "
            f"not {depth}: use 1 to {available}, or leave it out."
        )
    return depth


def check_backbone(in_channels: int, norm: str, output_stride: int | None) -> None:
    """Refuse arguments that no backbone takes.

    Raises:
        SettingError: there are no channels, or the normalisation or the output stride does not exist.

    >>> check_backbone(3, "batch", 16)
    """
    if in_channels < 1:
        raise SettingError(f"model.in_channels: must be at least 1, not {in_channels}.")
    check_norm(norm)
    if output_stride is not None and output_stride not in OUTPUT_STRIDES:
        raise SettingError(f"model.output_stride: must be 8, 16 or 32 pixels, not {output_stride}.")
