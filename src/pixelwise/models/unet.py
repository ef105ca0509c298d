"""U-Net: a contracting path for context, an expanding path for place, and skips between them.

Shapes: N images, C channels, H x W pixels, K classes; level i has `levels[i]` channels at 1 / (stem * 2**i)
of the resolution, level `depth` is the deepest.

Paper: Ronneberger, Fischer, Brox 2015, arXiv:1505.04597.

Our deviations, all of them in the form with `padding="same"`:

- convolutions are padded with zeros and normalised (batch norm unless told otherwise), and have no bias then;
- an image of any size goes in: it is padded at the right and bottom to the stride, the logits are cropped
  back;
- a `stem` of 2 or 4 folds the image into channels first (the inverse of the pixel shuffle of Shi et al. 2016,
  arXiv:1609.05158) and enlarges the logits bilinearly last, so that every level works at a lower resolution:
  4 or 16 times cheaper, logits at full resolution;
- with `residual`, the two convolutions of a level have a shortcut beside them (He et al. 2016,
  arXiv:1512.03385);
- channels stop doubling at `max_width` (the paper's 1024, so its own five levels are not touched);
- there is no dropout unless told otherwise.

The form with `padding="valid"` is the paper's. Both start their weights as the paper does, with the biases at
zero.
"""

import math
from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from pixelwise.errors import ModelError, SettingError, near
from pixelwise.geometry import Geometry, Reach
from pixelwise.layers import NORMS, ConvNormAct, ResidualBlock, UpConcatenate, he_start, pad_to_stride

PADDINGS = ("same", "valid")
STEMS = (1, 2, 4)
MAX_DEPTH = 10  # a stride of 1024 pixels: beyond it no image has a pixel left at the deepest level


class UNet(nn.Module):
    """U-Net in two forms: the paper's (`padding="valid"`) and today's (`padding="same"`).

    Takes N x in_channels x H x W float images, already normalised; gives N x num_classes x H' x W' logits.
    "same": any size from 1 x 1, H' = H. "valid": `output_size` says H'; 572 gives 388 at depth 4.

    Args:
        in_channels: C of the image.
        num_classes: K.
        width: channels of the first level.
        depth: number of poolings.
        padding: "same" or "valid".
        norm: "batch", "group" or "none"; None takes "batch" for "same" and "none" for "valid".
        dropout: probability that a value is dropped at the end of the contracting path (the two deepest
            levels); the paper's own training used 0.5.
        stem: 1, 2 or 4: pixels of a side that are folded into channels before the first level ("same" only).
        residual: put a shortcut beside each level's two convolutions ("same" only).
        max_width: most channels of a level.

    Attributes:
        geometry: stride, halo and margin, the stem included; for a network in eval mode.
        levels: channels of each level, `depth + 1` of them.

    Raises:
        SettingError: a setting makes no sense.
        ModelError: (forward) the images have other channels, or a size that "valid" cannot take.

    >>> import torch
    >>> UNet(in_channels=3, num_classes=5, width=8, depth=2)(torch.zeros(1, 3, 31, 17)).shape
    torch.Size([1, 5, 31, 17])
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 2,
        width: int = 64,
        depth: int = 4,
        padding: Literal["same", "valid"] = "same",
        norm: Literal["batch", "group", "none"] | None = None,
        dropout: float = 0.0,
        stem: int = 1,
        residual: bool = False,
        max_width: int = 1024,
    ) -> None:
        super().__init__()
        _check_at_least_one(in_channels=in_channels, num_classes=num_classes, width=width, max_width=max_width)
        _check_settings(depth, padding, norm, dropout, stem, residual)
        self.in_channels, self.num_classes, self.depth = in_channels, num_classes, depth
        self.padding, self.stem, self.residual = padding, stem, residual
        self.norm = norm or ("batch" if padding == "same" else "none")
        self.levels = [min(width * 2**level, max_width) for level in range(depth + 1)]
        self.geometry = self._derive_geometry()

        self.fold = nn.PixelUnshuffle(stem) if stem > 1 else nn.Identity()
        self.contracting = nn.ModuleList()
        channels = in_channels * stem**2
        for level, wider in enumerate(self.levels):
            drop = nn.Dropout(dropout) if level >= depth - 1 else nn.Identity()
            self.contracting.append(nn.Sequential(*self._two_convolutions(channels, wider), drop))
            channels = wider
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList()
        self.expanding = nn.ModuleList()
        for narrower in reversed(self.levels[:-1]):
            self.up.append(UpConcatenate(channels, narrower))
            self.expanding.append(nn.Sequential(*self._two_convolutions(2 * narrower, narrower)))
            channels = narrower
        self.head = nn.Conv2d(channels, num_classes, kernel_size=1)
        self.unfold = nn.Upsample(scale_factor=stem, mode="bilinear") if stem > 1 else nn.Identity()
        self.apply(he_start)

    def _two_convolutions(self, in_channels: int, out_channels: int) -> list[nn.Module]:
        if self.residual:
            return [ResidualBlock(in_channels, out_channels, self.norm)]
        padded = self.padding == "same"
        return [
            ConvNormAct(in_channels, out_channels, padded=padded, norm=self.norm),
            ConvNormAct(out_channels, out_channels, padded=padded, norm=self.norm),
        ]

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        self._check_images(images)
        if self.padding == "valid":
            return self._logits(images)
        height, width = images.shape[-2:]
        return self._logits(pad_to_stride(images, self.geometry.stride))[..., :height, :width]

    def _check_images(self, images: Tensor) -> None:
        """Say what does not fit before an operator does."""
        if images.ndim != 4 or images.shape[1] != self.in_channels or 0 in images.shape:
            shape = " x ".join(map(str, images.shape))
            raise ModelError(
                f"this network takes N x {self.in_channels} x H x W images, but got {shape}: bring the "
                f"images to {self.in_channels} channel(s), or build the network with another in_channels."
            )
        for side in images.shape[-2:]:
            self.output_size(side)
        cells = images.shape[0] * math.prod(-(-side // self.geometry.stride) for side in images.shape[-2:])
        if self.training and self.norm == "batch" and self.padding == "same" and cells == 1:
            raise ModelError(
                f"batch norm cannot train on a single image of at most {self.geometry.stride} pixels a side, "
                f"which has one cell at the deepest level: use larger images, a larger batch, or "
                f'model.norm "none".'
            )

    def _logits(self, images: Tensor) -> Tensor:
        """Down, then up again beside the features that were kept."""
        features = self.fold(images)
        skips: list[Tensor] = []
        for level, block in enumerate(self.contracting):
            features = block(features if level == 0 else self.pool(features))
            skips.append(features)
        skips.pop()  # the deepest level has no counterpart
        for up, block in zip(self.up, self.expanding, strict=True):
            features = block(up(features, skips.pop()))
        return self.unfold(self.head(features))

    def output_size(self, input_size: int) -> int:
        """Side of the logits, in pixels, for an image of that side.

        Raises:
            ModelError: "valid" cannot take that size; the message names the nearest that it can.

        >>> UNet(padding="valid", width=1).output_size(572)
        388
        """
        if self.padding == "same":
            return input_size
        stride, offset = self.geometry.stride, self._input_size(0)
        output = input_size - 2 * self.geometry.margin
        if output < 1 or (input_size - offset) % stride:
            below = input_size - (input_size - offset) % stride
            smallest = self.valid_input_size(1)
            choices = f"{below} or {below + stride}" if below >= smallest else f"{smallest}, the smallest"
            raise ModelError(
                f"a U-Net of depth {self.depth} without padding cannot take {input_size} pixels a side: take {choices}."
            )
        return output

    def valid_input_size(self, output_size: int) -> int:
        """Side of the smallest image whose logits have at least that side ("same": the size itself).

        >>> UNet(padding="valid", width=1).valid_input_size(388)
        572
        """
        if self.padding == "same":
            return output_size
        stride, offset = self.geometry.stride, self._input_size(0)
        deepest = math.ceil((output_size + 2 * self.geometry.margin - offset) / stride)
        return self._input_size(deepest)

    def _input_size(self, deepest: int) -> int:
        """Side of the image that gives the deepest level `deepest` cells, where nothing is padded."""
        size = deepest + 4
        for _ in range(self.depth):
            size = 2 * size + 4
        return size

    def _output_size(self, deepest: int) -> int:
        """Side of the logits that come from `deepest` cells there, where nothing is padded."""
        size = deepest
        for _ in range(self.depth):
            size = 2 * size - 4
        return size

    def _derive_geometry(self) -> Geometry:
        """Apply the operators of `_logits` to the reach of one axis."""
        reach = Reach.of_input(self.stem * 2**self.depth).pooling(self.stem)
        skips = []
        for _ in range(self.depth):
            reach = reach.convolution(3).convolution(3)
            skips.append(reach)
            reach = reach.pooling(2)
        reach = reach.convolution(3).convolution(3)
        for skip in reversed(skips):
            reach = reach.upsampling(2).concatenation(skip).convolution(3).convolution(3)
        geometry = reach.bilinear(self.stem).geometry()
        if self.padding == "valid":
            # Its cells begin with the window that goes in, so it loses less than a tile on a grid needs.
            geometry = replace(geometry, margin=(self._input_size(0) - self._output_size(0)) // 2)
        if self.norm == "group":
            reason = "group norm averages over the image: an output pixel depends on every input pixel"
            geometry = replace(geometry, exact=False, reason=reason)
        return geometry


def _check_at_least_one(**counts: int) -> None:
    """Name the first number that is too small."""
    for name, count in counts.items():
        if count < 1:
            raise SettingError(f"model.{name}: must be at least 1, not {count}.")


def _check_settings(depth: int, padding: str, norm: str | None, dropout: float, stem: int, residual: bool) -> None:
    """Name the first setting that makes no sense, alone or with another."""
    if not 1 <= depth <= MAX_DEPTH:
        raise SettingError(f"model.depth: must be between 1 and {MAX_DEPTH} poolings, not {depth}.")
    if padding not in PADDINGS:
        raise SettingError(f"model.padding: {padding!r} is no padding; {near(padding, PADDINGS)}.")
    if norm is not None and norm not in NORMS:
        raise SettingError(f"model.norm: {norm!r} is no normalisation; {near(norm, NORMS)}.")
    if not 0 <= dropout < 1:
        raise SettingError(f"model.dropout: must be a probability from 0 to below 1, not {dropout}.")
    if stem not in STEMS:
        raise SettingError(f"model.stem: must be 1, 2 or 4, not {stem}.")
    if stem > 1 and padding == "valid":
        raise SettingError(f'model.stem: {stem} needs model.padding "same"; with "valid" it must be 1.')
    if residual and padding == "valid":
        raise SettingError(
            'model.residual: needs model.padding "same", where a shortcut has the size of what it skips.'
        )
