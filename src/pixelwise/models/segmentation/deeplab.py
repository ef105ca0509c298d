"""DeepLabV2 and DeepLabV3+: atrous convolutions at several rates see far without making the features smaller.

Shapes: N images, C channels, H x W pixels, K classes; the deepest features have H / output_stride x
W / output_stride cells.

Papers: Chen, Papandreou, Kokkinos, Murphy, Yuille 2016, arXiv:1606.00915 (DeepLabV2); Chen, Zhu, Papandreou,
Schroff, Adam 2018, arXiv:1802.02611 (DeepLabV3+).

Our deviations, in both:

- an image of any size goes in: it is padded at the right and bottom to the stride, the logits are cropped back;
- the enlargements align areas, not corners (`align_corners=False`);
- `width` also scales a backbone of variable width, such as VGG16.

In DeepLabV2:

- no conditional random field (its section 3.3) follows the network, and it does not fuse several scales of the image;
- the convolutions of the branches' hidden layers are normalised (by batch norm unless set otherwise);
- VGG16 keeps the classifier's poolings of 2 x 2, the last one dilated like the convolutions before it, where the
  authors' code has 3 x 3 without dilation;
- at an output stride of 16 the rates are half as large.

In DeepLabV3+:

- the backbone is a ResNet-101, one of the paper's two, or any other; the paper's better one is a modified Xception;
- the image branch has a bias instead of a normalisation (see `layers.AtrousSpatialPyramidPooling`);
- with `image_branch=False` nothing pools over the whole image, so that tiles reproduce the whole image exactly;
- dropout follows the pyramid, as in the authors' code; the paper does not mention any;
- `auxiliary=True` adds PSPNet's second head, which the paper does not have.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from pixelwise.backbones import Backbone
from pixelwise.core.errors import SettingError, near
from pixelwise.layers import AtrousSpatialPyramidPooling, ConvNormAct, DepthwiseSeparable, enlarge
from pixelwise.models.base import Segmenter, check_at_least_one, check_dropout, check_output_stride
from pixelwise.models.segmentation.pspnet import (
    AUXILIARY_STAGE,
    AuxiliaryHead,
    auxiliary_output,
    make_scaled_backbone,
    start_heads,
)

OUTPUT_STRIDES = (8, 16)
SUMMED_WIDTH = 1024  # channels of the hidden layers in DeepLabV2's branches
SUMMED_RATES = {"aspp": (6, 12, 18, 24), "largefov": (12,)}
"""Rates of DeepLabV2's branches at an output stride of 8, by the name of the head."""
MIXED_WIDTH = 256  # channels of DeepLabV3+'s pyramid and decoder
MIXED_RATES = (6, 12, 18)  # of DeepLabV3+'s branches at an output stride of 16
LOW_STRIDE = 4  # of the features that DeepLabV3+'s decoder takes beside the deepest
LOW_WIDTH = 48  # channels that it reduces them to, at a width of 256


class DeepLabV2(Segmenter):
    """Atrous convolutions at several rates, side by side, whose logits are added up; exact for tiles.

    Takes N x in_channels x H x W float images of any size, already normalised; gives N x num_classes x H x W logits.

    A branch has one of two forms. With hidden layers it is a 3 x 3 atrous convolution, a 1 x 1 convolution and a
    1 x 1 classifier (fc6, fc7, fc8: section 4.1.2 and figure 7 of the paper, on VGG16). Without hidden layers the
    atrous convolution itself is the classifier, as in the authors' published ResNet-101; the paper does not say.

    Args:
        in_channels: C of the image.
        num_classes: K.
        width: channels of a branch's two hidden layers. None: as published, 1024 on vgg16, and no hidden layers on any
            other backbone. It also scales a backbone of variable width.
        backbone: a name that `make_backbone` knows; the paper uses "vgg16" and "resnet101".
        head: "aspp", four branches with rates 6, 12, 18 and 24; or "largefov", one with rate 12.
        norm: "batch"; "group", which makes it inexact; or "none", on vgg16 and other chains.
        dropout: probability of dropping a value after each hidden layer, or, without hidden layers, of the deepest
            features. None: as published, 0.5 with hidden layers, 0 without.
        output_stride: image pixels along each side of a cell of the deepest features: 8 as in the paper, or 16 with
            half the rates.

    Raises:
        SettingError: a setting makes no sense.
        ModelError: (forward) as in `Segmenter`.

    >>> DeepLabV2(num_classes=5, width=8, backbone="resnet18").eval()(torch.zeros(1, 3, 31, 17)).shape
    torch.Size([1, 5, 31, 17])
    """

    small: ClassVar = {"backbone": "vgg16", "output_stride": 8, "width": 128}
    large: ClassVar = {"backbone": "resnet50", "output_stride": 8}
    backbone: Backbone

    def __init__(  # noqa: PLR0913
        self,
        in_channels: int = 3,
        num_classes: int = 21,
        width: int | None = None,
        backbone: str = "resnet101",
        head: Literal["aspp", "largefov"] = "aspp",
        norm: Literal["batch", "group", "none"] = "batch",
        dropout: float | None = None,
        output_stride: int = 8,
    ) -> None:
        if width is None and backbone == "vgg16":
            width = SUMMED_WIDTH
        if dropout is None:
            dropout = 0.5 if width else 0.0
        check_at_least_one(in_channels=in_channels, num_classes=num_classes, width=1 if width is None else width)
        check_dropout(dropout)
        check_output_stride(output_stride, OUTPUT_STRIDES)
        if head not in SUMMED_RATES:
            raise SettingError(f"model.head: unknown head {head!r}; {near(head, SUMMED_RATES)}")
        scale = 1.0 if width is None else width / SUMMED_WIDTH
        encoder = make_scaled_backbone(backbone, in_channels, scale, norm, output_stride)
        super().__init__(in_channels, num_classes, encoder.stride)
        self.backbone = encoder
        self.branches = nn.ModuleList(
            _branch(encoder.channels[-1], num_classes, rate * 8 // output_stride, width, norm, dropout)
            for rate in SUMMED_RATES[head]
        )
        start_heads(self)

    @override
    def outputs_on_grid(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features_on_grid(images)[-1]
        logits = self.branches[0](features)
        for branch in self.branches[1:]:
            logits = logits + branch(features)
        return {"logits": enlarge(logits, self.stride)}


def _branch(
    in_channels: int, num_classes: int, rate: int, width: int | None, norm: str, dropout: float
) -> nn.Sequential:
    """One rate of DeepLabV2: N x C x H x W features -> N x K x H x W logits."""
    if width is None:
        classifier = nn.Conv2d(in_channels, num_classes, kernel_size=3, padding=rate, dilation=rate)
        return nn.Sequential(nn.Dropout(dropout), classifier)
    return nn.Sequential(
        ConvNormAct(in_channels, width, dilation=rate, norm=norm),
        nn.Dropout(dropout),
        ConvNormAct(width, width, kernel=1, norm=norm),
        nn.Dropout(dropout),
        nn.Conv2d(width, num_classes, kernel_size=1),
    )


class DeepLabV3Plus(Segmenter):
    """Atrous spatial pyramid pooling, then a small decoder that adds features at a quarter of the image's resolution.

    Takes N x in_channels x H x W float images of any size, already normalised; gives N x num_classes x H x W logits.

    Args:
        in_channels: C of the image.
        num_classes: K.
        width: channels of the pyramid and the decoder; the finer features are reduced to 48 / 256 of it. It also
            scales a backbone of variable width.
        backbone: a name that `make_backbone` knows, with features of stride 4.
        norm: "batch", "group", or "none" on vgg16 and other chains.
        dropout: probability of dropping a value after the pyramid.
        output_stride: image pixels along each side of a cell of the deepest features: 16, with rates of 6, 12 and 18,
            or 8, with twice these rates.
        auxiliary: also classify the stage before the last, for a second loss.
        image_branch: join the mean over the whole image to the pyramid; without it the network is exact for tiles
            (unless `norm` is "group").

    Raises:
        SettingError: a setting makes no sense, or the backbone has no features of stride 4.
        ModelError: (forward) as in `Segmenter`.

    >>> DeepLabV3Plus(num_classes=5, width=8, backbone="resnet18").eval()(torch.zeros(1, 3, 31, 17)).shape
    torch.Size([1, 5, 31, 17])
    """

    small: ClassVar = {"backbone": "resnet10t", "output_stride": 16, "width": 128}
    large: ClassVar = {"backbone": "resnet50", "output_stride": 16, "width": 256}
    backbone: Backbone

    def __init__(  # noqa: PLR0913
        self,
        in_channels: int = 3,
        num_classes: int = 21,
        width: int = MIXED_WIDTH,
        backbone: str = "resnet101",
        norm: Literal["batch", "group", "none"] = "batch",
        dropout: float = 0.1,
        output_stride: int = 16,
        auxiliary: bool = False,
        image_branch: bool = True,
    ) -> None:
        check_at_least_one(in_channels=in_channels, num_classes=num_classes, width=width)
        check_dropout(dropout)
        check_output_stride(output_stride, OUTPUT_STRIDES)
        encoder = make_scaled_backbone(backbone, in_channels, width / MIXED_WIDTH, norm, output_stride)
        super().__init__(in_channels, num_classes, encoder.stride)
        self.backbone = encoder
        self.low = _low_level(encoder, backbone)
        rates = [rate * 16 // output_stride for rate in MIXED_RATES]
        self.pyramid = nn.Sequential(
            AtrousSpatialPyramidPooling(encoder.channels[-1], width, rates, image_branch, separable=True, norm=norm),
            nn.Dropout(dropout),
        )
        reduced = max(LOW_WIDTH * width // MIXED_WIDTH, 1)
        self.reduce = ConvNormAct(encoder.channels[self.low], reduced, kernel=1, norm=norm)
        self.decoder = nn.Sequential(
            DepthwiseSeparable(width + reduced, width, norm=norm),
            DepthwiseSeparable(width, width, norm=norm),
            nn.Conv2d(width, num_classes, kernel_size=1),
        )
        self.auxiliary = (
            AuxiliaryHead(encoder.channels[AUXILIARY_STAGE], num_classes, width, norm, dropout) if auxiliary else None
        )
        start_heads(self)

    @override
    def outputs_on_grid(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features_on_grid(images)
        return {"logits": self._classify(features)} | auxiliary_output(self.auxiliary, features, self.backbone.strides)

    def _classify(self, features: list[Tensor]) -> Tensor:
        coarse = enlarge(self.pyramid(features[-1]), self.stride // LOW_STRIDE)
        fine = self.reduce(features[self.low])
        return enlarge(self.decoder(torch.cat([coarse, fine], dim=1)), LOW_STRIDE)


def _low_level(backbone: Backbone, name: str) -> int:
    """The index of the features that the decoder takes."""
    if LOW_STRIDE not in backbone.strides:
        raise SettingError(
            f"model.backbone: {name} has features at strides {', '.join(map(str, backbone.strides))}, but the decoder "
            f"needs features at stride {LOW_STRIDE}: use another backbone, such as resnet18 or vgg16."
        )
    return backbone.strides.index(LOW_STRIDE)
