"""U-Net: a contracting path for context, an expanding path for position, and skips between them.

Shapes: N images, C channels, H x W pixels, K classes; level i has `levels[i]` channels at 1 / (stem * 2**i)
of the resolution, and level `depth` is the deepest. On a backbone the stride of its finest features replaces the stem.

Paper: Ronneberger, Fischer, Brox 2015, arXiv:1505.04597.

Our deviations, all of them in the form with `padding="same"`:

- convolutions are padded with zeros and normalised (by batch norm unless set otherwise), and then have no bias;
- an image of any size goes in: it is padded at the right and bottom to the stride, the logits are cropped
  back;
- a `stem` of 2 or 4 first folds the image into channels (the inverse of the pixel shuffle of Shi et al. 2016,
  arXiv:1609.05158) and finally enlarges the logits bilinearly, so that every level works at a lower resolution: 4 or
  16 times cheaper, with logits at full resolution;
- with `residual`, a shortcut bypasses the two convolutions of each level (He et al. 2016, arXiv:1512.03385);
- with a `backbone`, its features replace the contracting path; the expanding path keeps its own `levels`, so that it is
  as small beside 2048 channels as beside 512, and finally the logits are enlarged bilinearly;
- channels stop doubling at `max_width` (the paper's 1024, so that its own five levels are unchanged);
- dropout is off by default.

The form with `padding="valid"` is the paper's. Both initialise their weights as the paper does, with biases at zero; a
backbone has its own initialisation.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pixelwise.backbones import Backbone, make_backbone
from pixelwise.backbones.factory import CHAINS
from pixelwise.core.errors import ModelError, SettingError, near
from pixelwise.geometry.reach import Geometry, Reach
from pixelwise.geometry.tracing import GROUP_NORM
from pixelwise.layers import ConvNormAct, ResidualBlock, UpConcatenate, enlarge, he_start
from pixelwise.layers.conv import check_norm
from pixelwise.models.base import Segmenter, check_at_least_one, check_dropout

PADDINGS = ("same", "valid")
STEMS = (1, 2, 4)
PAPER_DEPTH = 4
MAX_DEPTH = 10  # a stride of 1024 pixels: beyond it no image has a pixel left at the deepest level

BlockMaker = Callable[[int, int], list[nn.Module]]
"""Makes the layers of a level from its numbers of input and output channels."""


class UNet(Segmenter):
    """U-Net in two forms: the paper's (`padding="valid"`), and today's (`padding="same"`), which may have a backbone.

    Takes N x in_channels x H x W float images, already normalised; gives N x num_classes x H' x W' logits.
    "same": any size from 1 x 1, H' = H. "valid": `output_size` says H'; 572 gives 388 at depth 4.

    Args:
        in_channels: C of the image.
        num_classes: K.
        width: channels of the first level; also the width of a backbone of variable width, such as vgg16.
        depth: number of poolings; with a backbone, of halvings from its finest features to the coarsest ones that are
            used. None: the paper's 4, or all of the backbone's.
        padding: "same" or "valid".
        norm: "batch", "group" or "none"; None takes "batch" for "same" and "none" for "valid".
        dropout: probability of dropping a value at the end of the contracting path (its two deepest levels); the paper
            trained with 0.5.
        stem: 1, 2 or 4: side of the squares of pixels that are folded into channels before the first level (only
            "same" without a backbone).
        residual: let a shortcut bypass each level's two convolutions (only "same").
        max_width: largest number of channels of a level.
        backbone: a name that `make_backbone` knows; its features replace the contracting path (only "same").

    Attributes:
        geometry: stride, halo and margin in eval mode, including the stem.
        backbone: None if there is none.
        levels: channels of each level, `depth + 1` of them; with a backbone the last is not used.

    Raises:
        SettingError: a setting makes no sense.
        ModelError: (forward) as in `Segmenter`; or "valid" cannot take the images' size.

    >>> import torch
    >>> UNet(in_channels=3, num_classes=5, width=8, depth=2)(torch.zeros(1, 3, 31, 17)).shape
    torch.Size([1, 5, 31, 17])
    >>> UNet(in_channels=3, num_classes=5, width=8, backbone="resnet18").eval()(torch.zeros(1, 3, 31, 17)).shape
    torch.Size([1, 5, 31, 17])
    """

    small: ClassVar = {"width": 32}
    large: ClassVar = {"width": 32}

    def __init__(  # noqa: PLR0913
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        width: int = 64,
        depth: int | None = None,
        padding: Literal["same", "valid"] = "same",
        norm: Literal["batch", "group", "none"] | None = None,
        dropout: float = 0.0,
        stem: int = 1,
        residual: bool = False,
        max_width: int = 1024,
        backbone: str | None = None,
    ) -> None:
        check_at_least_one(in_channels=in_channels, num_classes=num_classes, width=width, max_width=max_width)
        check_dropout(dropout)
        _check_settings(depth, padding, norm, stem)
        _check_together(padding, stem, residual, backbone)
        norm = norm or ("batch" if padding == "same" else "none")
        block = partial(_two_convolutions, padded=padding == "same", norm=norm, residual=residual)
        path: ContractingPath | Backbone
        if backbone is None:
            depth = PAPER_DEPTH if depth is None else depth
            path = ContractingPath(in_channels, _levels(width, depth, max_width), block, stem, dropout)
        else:
            path = make_backbone(
                backbone, in_channels, width=width if backbone in CHAINS else None, norm=norm, depth=depth
            )
            depth = len(path.strides) - 1
        super().__init__(in_channels, num_classes, path.stride)
        self.depth, self.padding, self.norm = depth, padding, norm
        self.levels = _levels(width, depth, max_width)
        self.finest = path.strides[0]

        if isinstance(path, Backbone):
            self.backbone = path
        else:
            self.contracting = path
        self.drop = nn.Identity() if backbone is None else nn.Dropout(dropout)  # the contracting path has its own
        self.up, self.expanding = nn.ModuleList(), nn.ModuleList()
        channels = path.channels[depth]
        for level in reversed(range(depth)):
            self.up.append(UpConcatenate(channels, self.levels[level]))
            channels = self.levels[level]
            self.expanding.append(nn.Sequential(*block(path.channels[level] + channels, channels)))
        self.head = nn.Conv2d(channels, num_classes, kernel_size=1)
        for part in self.children():
            if not isinstance(part, Backbone):
                part.apply(he_start)

    @cached_property
    @override
    def geometry(self) -> Geometry:
        return self._unpadded_geometry() if self.padding == "valid" else super().geometry

    @override
    def encoder(self) -> list[nn.Module]:
        """The levels of the contracting path, finest first, or the backbone."""
        return list(self.contracting) if self.backbone is None else super().encoder()

    @override
    def features_on_grid(self, images: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.contracting(images) if self.backbone is None else self.backbone(images)
        return features

    @override
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The logits, at the size of the images or, without padding, at that of `output_size`."""
        if self.padding == "same":
            return super().outputs(images)
        self.check_images(images)
        for side in images.shape[-2:]:
            self.output_size(side)
        return self.outputs_on_grid(images)

    @override
    def outputs_on_grid(self, images: Tensor) -> dict[str, Tensor]:
        *skips, deeper, deepest = self.features_on_grid(images)
        skips, features = [*skips, self.drop(deeper)], self.drop(deepest)
        for up, block in zip(self.up, self.expanding, strict=True):
            features = block(up(features, skips.pop()))
        return {"logits": enlarge(self.head(features), self.finest)}

    @override
    def output_size(self, input_size: int) -> int:
        """Side of the logits, in pixels, for an image of that side.

        Raises:
            ModelError: "valid" cannot take that size; the message names the nearest ones that it can take.

        >>> UNet(padding="valid", width=1).output_size(572)
        388
        """
        if self.padding == "same":
            return input_size
        offset = self._input_size(0)
        output = input_size - 2 * self.geometry.margin
        if output < 1 or (input_size - offset) % self.stride:
            below = input_size - (input_size - offset) % self.stride
            smallest = self.input_size(1)
            choices = f"{below} or {below + self.stride}" if below >= smallest else f"{smallest}, the smallest"
            raise ModelError(
                f"a U-Net of depth {self.depth} without padding cannot take a side of {input_size} pixels: use "
                f"{choices}."
            )
        return output

    @override
    def input_size(self, output_size: int) -> int:
        """Side of the smallest image whose logits have at least that side ("same": the size itself).

        >>> UNet(padding="valid", width=1).input_size(388)
        572
        """
        if self.padding == "same":
            return output_size
        deepest = math.ceil((output_size + 2 * self.geometry.margin - self._input_size(0)) / self.stride)
        return self._input_size(deepest)

    def _input_size(self, deepest: int) -> int:
        """Side of the image for which the deepest level has `deepest` cells, without padding."""
        size = deepest + 4
        for _ in range(self.depth):
            size = 2 * size + 4
        return size

    def _output_size(self, deepest: int) -> int:
        """Side of the logits for which the deepest level has `deepest` cells, without padding."""
        size = deepest
        for _ in range(self.depth):
            size = 2 * size - 4
        return size

    def _unpadded_geometry(self) -> Geometry:
        """Apply the operators of `outputs_on_grid` to the reach of one axis; the margin is what the network cuts off.

        The cells begin with the window that goes in, so that it loses less than a tile on a grid needs.
        """
        reach = Reach.of_input(self.stride)
        skips = []
        for _ in range(self.depth):
            reach = reach.convolution(3).convolution(3)
            skips.append(reach)
            reach = reach.pooling(2)
        reach = reach.convolution(3).convolution(3)
        for skip in reversed(skips):
            reach = reach.upsampling(2).concatenation(skip).convolution(3).convolution(3)
        geometry = replace(reach.geometry(), margin=(self._input_size(0) - self._output_size(0)) // 2)
        return replace(geometry, exact=False, reason=GROUP_NORM) if self.norm == "group" else geometry


class ContractingPath(nn.ModuleList):
    """The levels of the way down: two convolutions each, and max pooling between them.

    Like a backbone it takes N x in_channels x H x W and gives the features of every level, finest first.

    Args:
        in_channels: channels of the image.
        channels: of each level.
        block: makes the convolutions of a level from its numbers of input and output channels.
        stem: side of the squares of pixels that are first folded into channels.
        dropout: probability of dropping a value at the two deepest levels.

    Attributes:
        strides: input pixels of a cell of each level.
        stride: the largest.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], block: BlockMaker, stem: int, dropout: float) -> None:
        super().__init__()
        self.stem, self.channels = stem, list(channels)
        self.strides = [stem * 2**level for level in range(len(channels))]
        self.stride = self.strides[-1]
        before = in_channels * stem**2
        for level, after in enumerate(channels):
            drop = nn.Dropout(dropout) if level >= len(channels) - 2 else nn.Identity()
            self.append(nn.Sequential(*block(before, after), drop))
            before = after

    @override
    def forward(self, images: Tensor) -> list[Tensor]:
        features = [F.pixel_unshuffle(images, self.stem) if self.stem > 1 else images]
        for level, block in enumerate(self):
            features.append(block(features[-1] if level == 0 else F.max_pool2d(features[-1], 2)))
        return features[1:]


def _two_convolutions(in_channels: int, out_channels: int, padded: bool, norm: str, residual: bool) -> list[nn.Module]:
    """The layers of a level, down or up."""
    if residual:
        return [ResidualBlock(in_channels, out_channels, norm)]
    return [
        ConvNormAct(in_channels, out_channels, padded=padded, norm=norm),
        ConvNormAct(out_channels, out_channels, padded=padded, norm=norm),
    ]


def _levels(width: int, depth: int, max_width: int) -> list[int]:
    return [min(width * 2**level, max_width) for level in range(depth + 1)]


def _check_settings(depth: int | None, padding: str, norm: str | None, stem: int) -> None:
    """Refuse settings that make no sense on their own."""
    if depth is not None and not 1 <= depth <= MAX_DEPTH:
        raise SettingError(f"model.depth: must be between 1 and {MAX_DEPTH} poolings, not {depth}.")
    if padding not in PADDINGS:
        raise SettingError(f"model.padding: unknown padding {padding!r}; {near(padding, PADDINGS)}")
    if norm is not None:
        check_norm(norm)
    if stem not in STEMS:
        raise SettingError(f"model.stem: must be 1, 2 or 4, not {stem}.")


def _check_together(padding: str, stem: int, residual: bool, backbone: str | None) -> None:
    """Refuse settings that make no sense together."""
    if stem > 1 and padding == "valid":
        raise SettingError(f'model.stem: {stem} needs model.padding "same"; with "valid" it must be 1.')
    if residual and padding == "valid":
        raise SettingError(
            'model.residual: needs model.padding "same", so that a shortcut has the size of what it skips.'
        )
    if backbone is not None and padding == "valid":
        raise SettingError(f'model.backbone: {backbone} pads its convolutions, so it needs model.padding "same".')
    if backbone is not None and stem > 1:
        raise SettingError(
            f"model.stem: must be 1 with the backbone {backbone}, whose first layers take the image as it is, not "
            f"{stem}."
        )
