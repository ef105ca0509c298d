"""SegNet: on the way up each value returns to the position of its maximum; nothing learns to enlarge.

Shapes: N images, C channels, H x W pixels, K classes; `width` channels at the first stage.

Paper: Badrinarayanan, Kendall, Cipolla 2017, arXiv:1511.00561.

Our deviations:

- an image of any size goes in: it is padded at the right and bottom to the stride, the logits are cropped back;
- convolutions before a normalisation have no bias, since the normalisation would cancel it: with 3 channels and 11
  classes 29,441,419 parameters, where the paper's 29.45 M include 7,936 such biases;
- the image is normalised before it goes in, as for every network here, not by local contrast;
- `depth` may be less than the paper's 5 poolings;
- dropout is off by default; if on, it is placed as in Bayesian SegNet, in the deeper half of the encoder's and the
  decoder's stages (Kendall et al. 2015, arXiv:1511.02680), and acts only in training.
"""

from typing import ClassVar, Literal

from torch import Tensor, nn
from typing_extensions import override

from pixelwise.backbones.chain import ChainBackbone
from pixelwise.core.errors import SettingError
from pixelwise.layers import ConvNormAct, MaxPoolPositions, he_start
from pixelwise.models.base import Segmenter, check_at_least_one, check_dropout
from pixelwise.models.segmentation.mirrored import (
    POOLINGS,
    WHY_VGG16,
    UnpoolingDecoder,
    deeper_half,
    pool_with_positions,
    vgg16_to_depth,
)


class SegNet(Segmenter):
    """Encoder and decoder of 13 convolutions each, joined by the positions of the poolings' maxima.

    Takes N x in_channels x H x W float images of any size, already normalised; gives N x num_classes x H x W logits.
    Exact for tiles wherever maxima are clear: see `layers.MaxPoolPositions`.

    Args:
        in_channels: C of the image.
        num_classes: K.
        width: channels of the first stage; 64 is the paper's.
        depth: number of poolings, from 1 to the paper's 5.
        norm: "batch", "group" or "none".
        dropout: probability of dropping a value after each stage of the deeper half.

    Raises:
        SettingError: a setting makes no sense.
        ModelError: (forward) as in `Segmenter`.

    >>> import torch
    >>> SegNet(num_classes=5, width=4, depth=2)(torch.zeros(1, 3, 31, 17)).shape
    torch.Size([1, 5, 31, 17])
    """

    small: ClassVar = {"width": 16}
    large: ClassVar = {"width": 32}
    own_encoder: ClassVar = WHY_VGG16
    backbone: ChainBackbone

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 11,
        width: int = 64,
        depth: int = POOLINGS,
        norm: Literal["batch", "group", "none"] = "batch",
        dropout: float = 0.0,
    ) -> None:
        check_at_least_one(in_channels=in_channels, num_classes=num_classes, width=width)
        check_dropout(dropout)
        if not 1 <= depth <= POOLINGS:
            raise SettingError(f"model.depth: must be between 1 and {POOLINGS} poolings, not {depth}.")
        super().__init__(in_channels, num_classes, 2**depth)
        self.backbone = vgg16_to_depth(in_channels, width, depth, norm)
        self.pool = MaxPoolPositions(2)
        self.drop = deeper_half(depth, dropout)
        self.expanding = UnpoolingDecoder(
            self.backbone.channels[:depth],
            layer=lambda wide, narrow: ConvNormAct(wide, narrow, norm=norm),
            last=lambda wide, _: nn.Conv2d(wide, num_classes, kernel_size=3, padding=1),
            dropout=dropout,
        )
        self.apply(he_start)

    @override
    def outputs_on_grid(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.expanding(*pool_with_positions(self.backbone, images, self.pool, self.drop))}
