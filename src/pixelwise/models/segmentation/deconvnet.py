"""DeconvNet: a whole classifier down to its dense layers, and its mirror image of unpooling and deconvolution.

Shapes: N images, C channels, H x W pixels, K classes; `width` channels at the first stage.

Paper: Noh, Hong, Han 2015, arXiv:1505.04366; the layers are those of the table in its supplement.

Our deviations:

- an image of any size goes in: it is padded at the right and bottom to the stride, the logits are cropped back. The
  paper classifies 224 x 224 windows, one around each object proposal, and puts their scores together;
- fc6, 7 x 7, is padded by 3 and its mirror image cropped by 3, so that the deepest features keep their size. In the
  paper these have 7 x 7 cells, which fc6 reduces to one and its mirror image enlarges to 7 x 7 again;
- convolutions before a normalisation have no bias, since the normalisation would cancel it: with 3 channels and 21
  classes 251,788,949 parameters, 16,704 fewer than the paper's; both round to 251.8 M;
- dropout is off by default; if on, it follows fc6 and fc7, as in VGG16;
- it is trained like any network here, not in the paper's two stages.
"""

from typing import ClassVar, Literal

from torch import Tensor, nn
from typing_extensions import override

from pixelwise.backbones.chain import ChainBackbone
from pixelwise.layers import NORMS, ConvNormAct, MaxPoolPositions, he_start
from pixelwise.models.base import Segmenter, check_at_least_one, check_dropout
from pixelwise.models.segmentation.mirrored import (
    POOLINGS,
    WHY_VGG16,
    UnpoolingDecoder,
    pool_with_positions,
    vgg16_to_depth,
)

DENSE_MULTIPLE = 64  # channels of fc6 and fc7 for each of the first stage's: 4096 of VGG16's
DENSE_KERNEL = 7  # cells along each side of what VGG16's first dense layer sees


class DeconvNet(Segmenter):
    """VGG16 with its dense layers as convolutions, then unpooling and transposed convolutions in reverse order.

    Takes N x in_channels x H x W float images of any size, already normalised; gives N x num_classes x H x W logits.
    Exact for tiles wherever maxima are clear: see `layers.MaxPoolPositions`.

    Args:
        in_channels: C of the image.
        num_classes: K.
        width: channels of the first stage; 64 is the paper's. fc6 and fc7 have 64 times as many.
        norm: "batch", "group" or "none".
        dropout: probability of dropping a value after fc6 and after fc7.

    Raises:
        SettingError: a setting makes no sense.
        ModelError: (forward) as in `Segmenter`.

    >>> import torch
    >>> DeconvNet(num_classes=5, width=2)(torch.zeros(1, 3, 50, 17)).shape
    torch.Size([1, 5, 50, 17])
    """

    small: ClassVar = {"width": 8}
    large: ClassVar = {"width": 32}
    own_encoder: ClassVar = WHY_VGG16
    backbone: ChainBackbone

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 21,
        width: int = 64,
        norm: Literal["batch", "group", "none"] = "batch",
        dropout: float = 0.0,
    ) -> None:
        check_at_least_one(in_channels=in_channels, num_classes=num_classes, width=width)
        check_dropout(dropout)
        super().__init__(in_channels, num_classes, 2**POOLINGS)
        self.backbone = vgg16_to_depth(in_channels, width, POOLINGS, norm)
        self.pool = MaxPoolPositions(2)
        deepest, dense = self.backbone.channels[-1], DENSE_MULTIPLE * width
        self.fc6 = nn.Sequential(ConvNormAct(deepest, dense, DENSE_KERNEL, norm=norm), nn.Dropout(dropout))
        self.fc7 = nn.Sequential(ConvNormAct(dense, dense, kernel=1, norm=norm), nn.Dropout(dropout))
        self.fc6_mirrored = _deconvolution(dense, deepest, norm, DENSE_KERNEL)
        self.expanding = UnpoolingDecoder(
            self.backbone.channels[:POOLINGS], layer=lambda wide, narrow: _deconvolution(wide, narrow, norm)
        )
        self.head = nn.Conv2d(width, num_classes, kernel_size=1)
        self.apply(he_start)

    @override
    def encoder(self) -> list[nn.Module]:
        """VGG16: its convolutions, fc6 and fc7."""
        return [self.backbone, self.fc6, self.fc7]

    @override
    def features_on_grid(self, images: Tensor) -> list[Tensor]:
        *finer, deepest = self.backbone(images)
        return [*finer, self.fc7(self.fc6(deepest))]

    @override
    def outputs_on_grid(self, images: Tensor) -> dict[str, Tensor]:
        features, kept = pool_with_positions(self.backbone, images, self.pool)
        features = self.fc6_mirrored(self.fc7(self.fc6(features)))
        return {"logits": self.head(self.expanding(features, kept))}


def _deconvolution(in_channels: int, out_channels: int, norm: str, kernel: int = 3) -> nn.Sequential:
    """Transposed convolution that keeps height and width, normalisation, ReLU."""
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=norm == "none"),
        NORMS[norm](out_channels),
        nn.ReLU(inplace=True),
    )
