"""PSPNet: features beside their means over coarse grids, so that each pixel knows the scene around it.

Shapes: N images, C channels, H x W pixels, K classes; the deepest features have H / output_stride x
W / output_stride cells.

Paper: Zhao, Shi, Qi, Wang, Jia 2017, arXiv:1612.01105.

Our deviations:

- an image of any size goes in: it is padded at the right and bottom to the stride, the logits are cropped back;
- the deepest features are those of the classifier named by `backbone`; in a ResNet its first layer is one 7 x 7
  convolution where the authors' code has three of 3 x 3;
- enlarging aligns areas, not corners (`align_corners=False`), and the mean over the whole image has a bias instead of
  a normalisation (see `layers.PyramidPooling`);
- `width` also scales a backbone of variable width, such as VGG16;
- the auxiliary head exists only with `auxiliary=True`, as nothing but its own loss trains it.

The network pools over the whole image, so that tiles only approximate the result for the whole image.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn
from typing_extensions import override

from pixelwise.backbones import Backbone, make_backbone
from pixelwise.backbones.chain import PUBLISHED_WIDTH as BACKBONE_WIDTH
from pixelwise.backbones.factory import CHAINS
from pixelwise.layers import ConvNormAct, PyramidPooling, enlarge, he_start
from pixelwise.models.base import Segmenter, check_at_least_one, check_dropout, check_output_stride

PUBLISHED_WIDTH = 512
OUTPUT_STRIDES = (8, 16, 32)
AUXILIARY_STAGE = -2  # of the backbone's features: the stage before the last, as in the paper's figure 4


class PSPNet(Segmenter):
    """Pyramid scene parsing network.

    Takes N x in_channels x H x W float images of any size, already normalised; gives N x num_classes x H x W logits.
    A batch of one image can be trained on if the image is larger than the output stride.

    Args:
        in_channels: C of the image.
        num_classes: K.
        width: channels of the convolution that mixes the features with their means; the auxiliary head has half as
            many. It also scales a backbone of variable width.
        backbone: a name that `make_backbone` knows.
        norm: "batch", "group", or "none" on vgg16 and other chains.
        dropout: probability of dropping a value before the classifier.
        output_stride: image pixels along each side of a cell of the deepest features: 8 as in the paper, 16, or 32,
            which is cheapest and coarsest. Convolutions are dilated where the backbone would be coarser.
        auxiliary: also classify the stage before the last, for a second loss (to which section 4 of the paper gives a
            weight of 0.4).

    Raises:
        SettingError: a setting makes no sense.
        ModelError: (forward) as in `Segmenter`.

    >>> import torch
    >>> PSPNet(num_classes=5, width=8, backbone="resnet18").eval()(torch.zeros(1, 3, 31, 17)).shape
    torch.Size([1, 5, 31, 17])
    """

    small: ClassVar = {"backbone": "resnet10t", "output_stride": 16, "width": 128, "auxiliary": True}
    large: ClassVar = {"backbone": "resnet50", "output_stride": 8, "width": 512, "auxiliary": True}
    backbone: Backbone

    def __init__(  # noqa: PLR0913
        self,
        in_channels: int = 3,
        num_classes: int = 21,
        width: int = PUBLISHED_WIDTH,
        backbone: str = "resnet50",
        norm: Literal["batch", "group", "none"] = "batch",
        dropout: float = 0.1,
        output_stride: int = 8,
        auxiliary: bool = False,
    ) -> None:
        check_at_least_one(in_channels=in_channels, num_classes=num_classes, width=width)
        check_dropout(dropout)
        check_output_stride(output_stride, OUTPUT_STRIDES)
        encoder = make_scaled_backbone(backbone, in_channels, width / PUBLISHED_WIDTH, norm, output_stride)
        super().__init__(in_channels, num_classes, encoder.stride)
        self.backbone = encoder
        self.pyramid = PyramidPooling(encoder.channels[-1], norm=norm)
        self.mix = ConvNormAct(self.pyramid.out_channels, width, norm=norm)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Conv2d(width, num_classes, kernel_size=1))
        self.auxiliary = (
            AuxiliaryHead(encoder.channels[AUXILIARY_STAGE], num_classes, max(width // 2, 1), norm, dropout)
            if auxiliary
            else None
        )
        start_heads(self)

    @override
    def outputs_on_grid(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features_on_grid(images)
        return {"logits": self._classify(features)} | auxiliary_output(self.auxiliary, features, self.backbone.strides)

    def _classify(self, features: list[Tensor]) -> Tensor:
        return enlarge(self.head(self.mix(self.pyramid(features[-1]))), self.stride)


class AuxiliaryHead(nn.Sequential):
    """Logits from an earlier stage, whose loss reaches the layers below without a detour through those above.

    Takes N x in_channels x H x W features, gives N x num_classes x H x W logits: a 3 x 3 convolution to `width`
    channels, dropout, a 1 x 1 convolution.

    Source: Zhao et al. 2017, arXiv:1612.01105, section 4; the layers are those of the authors' code.

    >>> import torch
    >>> AuxiliaryHead(8, 5, width=4)(torch.zeros(1, 8, 3, 2)).shape
    torch.Size([1, 5, 3, 2])
    """

    def __init__(
        self, in_channels: int, num_classes: int, width: int = 256, norm: str = "batch", dropout: float = 0.1
    ) -> None:
        super().__init__(
            ConvNormAct(in_channels, width, norm=norm),
            nn.Dropout(dropout),
            nn.Conv2d(width, num_classes, kernel_size=1),
        )


def auxiliary_output(head: nn.Module | None, features: list[Tensor], strides: Sequence[int]) -> dict[str, Tensor]:
    """The auxiliary logits at the size of the image, by name; empty without a head or in eval mode."""
    if head is None or not head.training:
        return {}
    return {"auxiliary": enlarge(head(features[AUXILIARY_STAGE]), strides[AUXILIARY_STAGE])}


def make_scaled_backbone(name: str, in_channels: int, scale: float, norm: str, output_stride: int) -> Backbone:
    """The backbone of a network that has `scale` times its published width, itself scaled if its width is variable.

    Raises:
        SettingError: as in `make_backbone`.

    >>> make_scaled_backbone("vgg16", in_channels=3, scale=1 / 16, norm="batch", output_stride=8).channels
    [4, 8, 16, 32, 32, 32]
    """
    width = max(round(scale * BACKBONE_WIDTH), 1) if name in CHAINS else None
    return make_backbone(name, in_channels, width=width, norm=norm, output_stride=output_stride)


def start_heads(network: Segmenter) -> None:
    """Draw the weights of all parts but the backbone, which draws its own."""
    for name, part in network.named_children():
        if name != "backbone":
            part.apply(he_start)
