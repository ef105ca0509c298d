"""FCN-32s, FCN-16s, FCN-8s: a classifier whose dense layers are convolutions, so that it classifies every position.

Shapes: N images, C channels, H x W pixels, K classes; "features at stride s" have H / s x W / s cells.

Paper: Long, Shelhamer, Darrell 2015, arXiv:1411.4038.

Our deviations:

- an image of any size goes in: it is padded at the right and bottom to the stride, the logits are cropped back;
- fc6, 7 x 7, is padded by 3, where the paper adds 100 pixels around the image; the crops are therefore symmetrical and
  known beforehand: half a stride on each side of a transposed convolution;
- convolutions, fc6 and fc7 included, are normalised (by batch norm unless set otherwise) and then have no bias;
- all transposed convolutions are trained, from a bilinear start; in the paper the last one stays bilinear;
- the deepest score layer is initialised like other layers, so that the first step reaches the layers below; those of
  the skips start at zero, like all of the paper's;
- on a backbone other than VGG16 the skips are its features at strides 8 and 16, and fc6 and fc7 are replaced by a
  3 x 3 and a 1 x 1 convolution with a quarter of its deepest channels, at least 64: in VGG16's proportions they would
  dwarf a small backbone;
- the network is trained as a whole, not one form after another.

With 3 channels, 21 classes and norm "none", FCN-8s on VGG16 has 134,489,759 parameters:

=================================================== ===========
13 convolutions                                      14,714,688
fc6 (7 x 7 x 512 + 1) x 4096                        102,764,544
fc7 (4096 + 1) x 4096                                16,781,312
score layers on 4096, 512 and 256 channels              102,207
transposed convolutions, 21 x 21 x (4² + 4² + 16²)      127,008
=================================================== ===========
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn
from typing_extensions import override

from pixelwise.backbones import Backbone, make_backbone
from pixelwise.core.errors import SettingError
from pixelwise.layers import ConvNormAct, bilinear_start, he_start
from pixelwise.models.base import Segmenter, check_at_least_one, check_dropout

STRIDE = 32  # of the deepest features
DENSE_MULTIPLE = 64  # channels of fc6 and fc7 for each of VGG16's first: 4096 of 64
DENSE_KERNEL = 7  # cells along each side of what VGG16's first dense layer sees
SMALLEST_HEAD = 64  # channels


class FCN(Segmenter):
    """What the three forms share; they differ in the finest features that they score.

    Takes N x in_channels x H x W float images of any size, already normalised; gives N x num_classes x H x W logits.
    The deepest features, at stride 32, are scored. Their scores are repeatedly doubled in size and added to those of
    finer features, down to the form's finest stride, and from there enlarged to the image's size. Outside the image
    the transposed convolutions see zeros.

    Args:
        in_channels: C of the image.
        num_classes: K.
        width: channels of VGG16's first convolutions; fc6 and fc7 have 64 times as many. For another backbone, see
            `make_backbone`. None: as published.
        backbone: a name that `make_backbone` knows; it needs features at stride 32 and at the strides of the skips.
        norm: "batch", "group" or "none".
        dropout: probability of dropping a value after fc6 and after fc7.

    Raises:
        SettingError: a setting makes no sense, or the backbone lacks features that the form needs.
        ModelError: (forward) as in `Segmenter`.
    """

    small: ClassVar = {"backbone": "vgg16", "width": 16}
    large: ClassVar = {"backbone": "vgg16", "width": 32}
    backbone: Backbone
    finest: ClassVar[int]  # stride of the finest features that are scored

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 21,
        width: int | None = None,
        backbone: str = "vgg16",
        norm: Literal["batch", "group", "none"] = "batch",
        dropout: float = 0.5,
    ) -> None:
        check_at_least_one(in_channels=in_channels, num_classes=num_classes)
        check_dropout(dropout)
        super().__init__(in_channels, num_classes, STRIDE)
        self.backbone = make_backbone(backbone, in_channels, width=width, norm=norm)
        # VGG16's features are those before a pooling; the paper scores those after it.
        before = 2 if backbone == "vgg16" else 1
        self.pool = nn.MaxPool2d(before)
        self.taken = [stride // before for stride in (16, 8) if stride >= self.finest]
        channels = _channels_at([STRIDE, *self.taken], self.backbone, type(self).__name__)
        if backbone == "vgg16":
            dense, kernel = DENSE_MULTIPLE * self.backbone.channels[0], DENSE_KERNEL
        else:
            dense, kernel = max(channels[0] // 4, SMALLEST_HEAD), 3
        self.head = nn.Sequential(
            ConvNormAct(channels[0], dense, kernel, norm=norm),
            nn.Dropout(dropout),
            ConvNormAct(dense, dense, kernel=1, norm=norm),
            nn.Dropout(dropout),
        )
        self.score = nn.Conv2d(dense, num_classes, kernel_size=1)
        self.skip_scores = nn.ModuleList(nn.Conv2d(wide, num_classes, kernel_size=1) for wide in channels[1:])
        self.doublings = nn.ModuleList(_upsampling(num_classes, 2) for _ in self.taken)
        self.enlargement = _upsampling(num_classes, self.finest)
        self._start()

    def _start(self) -> None:
        """Initialise all weights but those of the backbone and of the upsamplings."""
        self.head.apply(he_start)
        self.score.apply(he_start)
        for score in self.skip_scores.parameters():
            nn.init.zeros_(score)

    @override
    def encoder(self) -> list[nn.Module]:
        """The backbone, and on VGG16 the convolutions that were the classifier's dense layers."""
        return [self.backbone, self.head] if self.backbone.name == "vgg16" else super().encoder()

    @override
    def features_on_grid(self, images: Tensor) -> list[Tensor]:
        features = super().features_on_grid(images)
        return [*features[:-1], self.head(features[-1])] if self.backbone.name == "vgg16" else features

    @override
    def outputs_on_grid(self, images: Tensor) -> dict[str, Tensor]:
        features = dict(zip(self.backbone.strides, self.backbone(images), strict=True))
        scores = self.score(self.head(features[STRIDE]))
        for stride, score, double in zip(self.taken, self.skip_scores, self.doublings, strict=True):
            scores = double(scores) + score(self.pool(features[stride]))
        return {"logits": self.enlargement(scores)}


class FCN32s(FCN):
    """FCN whose scores come from the deepest features only.

    >>> import torch
    >>> FCN32s(num_classes=5, width=1)(torch.zeros(1, 3, 50, 17)).shape
    torch.Size([1, 5, 50, 17])
    """

    finest = 32


class FCN16s(FCN):
    """FCN with scores from features at strides 32 and 16.

    >>> import torch
    >>> FCN16s(num_classes=5, width=1)(torch.zeros(1, 3, 50, 17)).shape
    torch.Size([1, 5, 50, 17])
    """

    finest = 16


class FCN8s(FCN):
    """FCN with scores from features at strides 32, 16 and 8.

    >>> import torch
    >>> FCN8s(num_classes=5, backbone="resnet18")(torch.zeros(1, 3, 50, 17)).shape
    torch.Size([1, 5, 50, 17])
    """

    finest = 8


def _channels_at(strides: Sequence[int], backbone: Backbone, form: str) -> list[int]:
    """Channels of the backbone's features at these strides, the first of which must be its largest."""
    channels = dict(zip(backbone.strides, backbone.channels, strict=True))
    if backbone.stride != strides[0] or not channels.keys() >= set(strides):
        needed, found = (", ".join(map(str, sorted(group))) for group in (strides, backbone.strides))
        raise SettingError(
            f"model.backbone: {form} needs features at strides {needed} and none coarser, but {backbone.name} has them "
            f"at {found}: use another backbone, such as vgg16 or resnet18."
        )
    return [channels[stride] for stride in strides]


def _upsampling(channels: int, factor: int) -> nn.ConvTranspose2d:
    """Transposed convolution that starts as bilinear upsampling, cropped to `factor` times the size."""
    module = nn.ConvTranspose2d(channels, channels, 2 * factor, stride=factor, padding=factor // 2, bias=False)
    bilinear_start(module)
    return module
