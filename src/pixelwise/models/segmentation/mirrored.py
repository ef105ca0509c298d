"""VGG16 on the way down, its mirror image on the way up: what SegNet and DeconvNet share.

Shapes: N images, C channels, H x W pixels; both sides are multiples of 2**depth.

Papers: Noh et al. 2015, arXiv:1505.04366; Badrinarayanan et al. 2017, arXiv:1511.00561.

Every max pooling keeps the positions of its maxima. On the way up, values return to these positions, and convolutions
turn the sparse maps into dense ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor, nn
from typing_extensions import override

from pixelwise.backbones.base import check_backbone
from pixelwise.backbones.chain import ChainBackbone, Pool
from pixelwise.backbones.vgg import VGG16
from pixelwise.layers import MaxPoolPositions, MaxUnpool

POOLINGS = sum(isinstance(layer, Pool) for layer in VGG16.layers)  # 5

WHY_VGG16 = (
    "its encoder is VGG16, because its decoder is the mirror image of that and returns values to the positions of the "
    "maxima of its poolings. Leave model.backbone out; with model.width = 64, model.pretrained = true starts it from "
    "the published weights of VGG16"
)
"""Why the networks of this kind take no other encoder."""

LayerMaker = Callable[[int, int], nn.Module]
"""Makes a layer from its numbers of input and output channels; the layer keeps height and width."""


def vgg16_to_depth(in_channels: int, width: int, depth: int, norm: str) -> ChainBackbone:
    """VGG16 up to and including its pooling number `depth`.

    Raises:
        SettingError: a number is below 1, or the normalisation is unknown.

    >>> vgg16_to_depth(3, width=4, depth=2, norm="batch").channels
    [4, 8, 8]
    """
    check_backbone(in_channels, norm, output_stride=None)
    ends = [place for place, layer in enumerate(VGG16.layers, start=1) if isinstance(layer, Pool)]
    return ChainBackbone(replace(VGG16, layers=VGG16.layers[: ends[depth - 1]]), in_channels, width, norm)


def pool_with_positions(
    backbone: ChainBackbone, images: Tensor, pool: MaxPoolPositions, drop: nn.ModuleList | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Run a backbone whose poolings are 2 x 2, and note the position of each maximum.

    Args:
        backbone: as `vgg16_to_depth` makes it.
        images: N x C x H x W, sides multiples of 2**depth.
        pool: takes the place of the backbone's poolings.
        drop: follows each pooling; None: nothing does.

    Returns:
        N x C' x H / 2**depth x W / 2**depth features, and the positions of each pooling's maxima, finest first.

    >>> import torch
    >>> backbone = vgg16_to_depth(3, width=4, depth=2, norm="batch")
    >>> features, kept = pool_with_positions(backbone, torch.zeros(1, 3, 8, 12), MaxPoolPositions(2))
    >>> features.shape, [positions.shape for positions in kept]
    (torch.Size([1, 8, 2, 3]), [torch.Size([1, 4, 4, 6]), torch.Size([1, 8, 2, 3])])
    """
    features = images
    kept: list[Tensor] = []
    for module in backbone.features:
        if isinstance(module, nn.MaxPool2d):
            features, positions = pool(features)
            features = features if drop is None else drop[len(kept)](features)
            kept.append(positions)
        else:
            features = module(features)
    return features, kept


class UnpoolingDecoder(nn.Module):
    """The stages of VGG16 mirrored: unpooling, then as many layers as the stage has convolutions.

    Takes the deepest features and the positions that `pool_with_positions` returns; gives N x C x H x W, where C is
    the number of channels of the last layer. The last layer of a stage changes the channels to those of the next finer
    stage.

    Args:
        channels: of each stage, finest first; as many stages as poolings.
        layer: makes a layer.
        last: makes the very last layer; None: `layer` makes it, too.
        dropout: probability of dropping a value after each stage of the deeper half.

    >>> import torch
    >>> from pixelwise.layers import ConvNormAct
    >>> backbone = vgg16_to_depth(3, width=4, depth=2, norm="batch")
    >>> features, kept = pool_with_positions(backbone, torch.zeros(1, 3, 8, 12), MaxPoolPositions(2))
    >>> UnpoolingDecoder([4, 8], ConvNormAct)(features, kept).shape
    torch.Size([1, 4, 8, 12])
    """

    def __init__(
        self, channels: Sequence[int], layer: LayerMaker, last: LayerMaker | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.unpool = MaxUnpool(2)
        self.stages = nn.ModuleList()
        for stage in reversed(range(len(channels))):
            wide, narrow = channels[stage], channels[max(stage - 1, 0)]
            final = last if last is not None and stage == 0 else layer
            layers = [layer(wide, wide) for _ in range(convolutions_of(stage) - 1)]
            self.stages.append(nn.Sequential(*layers, final(wide, narrow)))
        self.drop = nn.ModuleList(reversed(deeper_half(len(channels), dropout)))

    @override
    def forward(self, features: Tensor, kept: Sequence[Tensor]) -> Tensor:
        for stage, drop, positions in zip(self.stages, self.drop, reversed(kept), strict=True):
            height, width = features.shape[-2:]
            features = drop(stage(self.unpool(features, positions, 2 * height, 2 * width)))
        return features


def convolutions_of(stage: int) -> int:
    """How many convolutions VGG16 has in stage `stage`, counted from 0: between one pooling and the next.

    >>> [convolutions_of(stage) for stage in range(POOLINGS)]
    [2, 2, 3, 3, 3]
    """
    ends = [-1, *(place for place, layer in enumerate(VGG16.layers) if isinstance(layer, Pool))]
    return ends[stage + 1] - ends[stage] - 1


def deeper_half(depth: int, dropout: float) -> nn.ModuleList:
    """Dropout for the deeper half of `depth` levels, including a middle one; the others pass their values on.

    >>> [type(module).__name__ for module in deeper_half(3, 0.5)]
    ['Identity', 'Dropout', 'Dropout']
    """
    return nn.ModuleList(nn.Dropout(dropout) if level >= depth // 2 else nn.Identity() for level in range(depth))
