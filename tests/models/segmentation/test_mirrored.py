"""The way down and up that SegNet and DeconvNet share; their own tests compare the whole with the papers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pixelwise.core.errors import SettingError
from pixelwise.layers import ConvNormAct, MaxPoolPositions
from pixelwise.models.segmentation.mirrored import UnpoolingDecoder, deeper_half, pool_with_positions, vgg16_to_depth


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_pooling_with_positions_is_the_backbones_pooling(depth: int) -> None:
    """And the positions are those of the maxima in what each pooling takes."""
    torch.manual_seed(0)
    backbone = vgg16_to_depth(1, width=2, depth=depth, norm="batch").double().eval()
    images = torch.randn(2, 1, 64, 32, dtype=torch.float64)
    features, kept = pool_with_positions(backbone, images, MaxPoolPositions(2))
    *finer, deepest = backbone(images)
    assert torch.equal(features, deepest)
    pooled = [F.max_pool2d(before, 2) for before in finer]
    assert len(kept) == depth
    for before, positions, maxima in zip(finer, kept, pooled, strict=True):
        assert torch.equal(before.flatten(2).gather(2, positions.flatten(2)), maxima.flatten(2))


def test_what_follows_each_pooling() -> None:
    """Positions are those of all maxima; of the values behind them those that dropout leaves."""
    backbone, images = vgg16_to_depth(1, width=2, depth=2, norm="batch").eval(), torch.rand(1, 1, 8, 8)
    seen = []
    drop = deeper_half(2, 0.5)
    for module in drop:
        module.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    pool_with_positions(backbone, images, MaxPoolPositions(2), drop)
    assert seen == [(1, 2, 4, 4), (1, 4, 2, 2)]


def test_a_decoders_stages_are_the_encoders_in_reverse() -> None:
    decoder = UnpoolingDecoder([4, 8, 16, 32, 32], ConvNormAct, last=lambda wide, narrow: nn.Conv2d(wide, 3, 1))
    widths = [[next(layer.parameters()).shape[:2] for layer in stage] for stage in decoder.stages]
    assert widths == [
        [(32, 32), (32, 32), (32, 32)],
        [(32, 32), (32, 32), (16, 32)],
        [(16, 16), (16, 16), (8, 16)],
        [(8, 8), (4, 8)],
        [(4, 4), (3, 4)],
    ]


def test_an_unknown_norm_is_named() -> None:
    with pytest.raises(
        SettingError, match=r"model.norm: unknown normalisation 'layer'; choose from: batch, group, none"
    ):
        vgg16_to_depth(1, width=2, depth=1, norm="layer")
