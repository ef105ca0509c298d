"""What every network shares: images of any size in, logits of that size out, and what else training needs.

Shapes: N images, C channels, H x W pixels, K classes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn
from typing_extensions import override

from pixelwise.backbones import Backbone
from pixelwise.core.errors import ModelError, SettingError
from pixelwise.geometry.reach import Geometry
from pixelwise.geometry.tracing import trace_geometry
from pixelwise.layers import pad_to_stride

SIZED_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)  # cannot train on one value a channel


class Segmenter(nn.Module, ABC):
    """Base of the networks: subclasses say what they do with images whose sides are multiples of the stride.

    Takes N x in_channels x H x W float images of any size from 1 x 1, already normalised, and gives
    N x num_classes x H x W logits: the image is padded at the right and bottom to the stride by repeating its last
    pixels, the logits are cropped back. A network that pads nothing overrides `outputs`, `input_size` and
    `output_size`: its logits are smaller than the image, and it takes some sizes only.

    Args:
        in_channels: C of the image.
        num_classes: K.
        stride: input pixels of a cell at the deepest level.

    Attributes:
        backbone: the encoder, if it is one of `pixelwise.backbones`.
        small: keywords of a form that 2 cores train within minutes.
        large: keywords of the published layout, on a backbone for which a single GPU has room.
        own_encoder: of a network that takes no other encoder: which it has, and why.

    Raises:
        SettingError: a number is below 1.
        ModelError: (forward) the images have other channels or no pixels, or batch norm would have to train on a
            single cell.
    """

    small: ClassVar[Mapping[str, Any]]
    large: ClassVar[Mapping[str, Any]]
    own_encoder: ClassVar[str] = ""

    def __init__(self, in_channels: int, num_classes: int, stride: int) -> None:
        super().__init__()
        self.backbone: Backbone | None = None
        check_at_least_one(in_channels=in_channels, num_classes=num_classes, stride=stride)
        self.in_channels, self.num_classes, self.stride = in_channels, num_classes, stride

    @cached_property
    def geometry(self) -> Geometry:
        """Stride, halo and margin, of a network in eval mode; whether tiles give the whole image exactly."""
        return trace_geometry(self, self.in_channels, self.stride)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """N x C x H x W images -> N x K x H x W logits."""
        return self.outputs(images)["logits"]

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """What training compares with the labels, each at the size of the images.

        "logits": N x K x H x W, always. "auxiliary": N x K x H x W logits of an earlier layer, in training mode where
        the network has such a head. "edges": N x 1 x H x W logits of class boundaries, where it draws them.
        """
        self.check_images(images)
        height, width = images.shape[-2:]
        outputs = self.outputs_on_grid(pad_to_stride(images, self.stride))
        return {name: values[..., :height, :width] for name, values in outputs.items()}

    def input_size(self, output_size: int) -> int:
        """Side in pixels of the smallest image whose outputs have at least that side: the same, as it is padded."""
        return output_size

    def output_size(self, input_size: int) -> int:
        """Side in pixels of the outputs for an image of that side: the same, as it is padded.

        Raises:
            ModelError: the network cannot take that size.
        """
        return input_size

    @abstractmethod
    def outputs_on_grid(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs for images whose sides are multiples of the stride, at their size."""

    def encoder(self) -> list[nn.Module]:
        """The parts that could come from a classifier of images, here the backbone; the others are the decoder."""
        return [] if self.backbone is None else [self.backbone]

    def features_on_grid(self, images: Tensor) -> list[Tensor]:
        """The encoder's features, finest first, of images whose sides are multiples of the stride; [] without any."""
        features: list[Tensor] = [] if self.backbone is None else self.backbone(images)
        return features

    def parts(self) -> dict[str, list[nn.Module]]:
        """What a phase of a training can train alone, by name; all that is not listed is the decoder."""
        return {"encoder": self.encoder()}

    def check_images(self, images: Tensor) -> None:
        """Refuse images that do not fit, before an operator does so less clearly.

        Raises:
            ModelError: as the class says.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels or 0 in images.shape:
            shape = " x ".join(map(str, images.shape))
            raise ModelError(
                f"this network takes N x {self.in_channels} x H x W images, but got {shape}: convert "
                f"them to {self.in_channels} channel(s), or build the network with another in_channels."
            )
        cells = images.shape[0] * math.prod(-(-side // self.stride) for side in images.shape[-2:])
        if self.training and cells == 1 and any(isinstance(module, SIZED_NORMS) for module in self.modules()):
            raise ModelError(
                f"batch norm cannot train on a single image of at most {self.stride} x {self.stride} pixels, which has "
                f'only one cell at the deepest level: use larger images, a larger batch, or model.norm "none".'
            )


def check_at_least_one(**counts: int) -> None:
    """Refuse numbers below 1.

    Raises:
        SettingError: one is below 1.

    >>> check_at_least_one(width=8)
    """
    for name, count in counts.items():
        if count < 1:
            raise SettingError(f"model.{name}: must be at least 1, not {count}.")


def check_dropout(dropout: float) -> None:
    """Refuse anything but a probability, and 1, which would drop everything.

    Raises:
        SettingError: it is not from 0 to below 1.

    >>> check_dropout(0.5)
    """
    if not 0 <= dropout < 1:
        raise SettingError(f"model.dropout: must be a probability from 0 to below 1, not {dropout}.")


def check_output_stride(output_stride: int, choices: Sequence[int]) -> None:
    """Refuse an output stride that the network has no form for.

    Raises:
        SettingError: it is not one of the choices.

    >>> check_output_stride(8, choices=(8, 16))
    """
    if output_stride not in choices:
        known = f"{', '.join(map(str, choices[:-1]))} or {choices[-1]}"
        raise SettingError(f"model.output_stride: must be {known} pixels, not {output_stride}.")
