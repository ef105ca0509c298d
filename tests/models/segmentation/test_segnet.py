"""SegNet's own figures and structure; what it shares with other networks is in the conformance suite."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import vgg16

from networks import count, draw
from pixelwise.core.errors import SettingError
from pixelwise.geometry.probing import probe_geometry
from pixelwise.geometry.reach import parameters
from pixelwise.models.segmentation.segnet import SegNet

PAPER = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512), *[(512, 512)] * 5]
"""Input and output channels of VGG16's convolutions; the decoder has them in reverse order, mirrored."""


def small(**keywords: Any) -> SegNet:
    torch.manual_seed(0)
    return SegNet(**{"in_channels": 1, "num_classes": 2, "width": 2} | keywords)


def test_the_papers_parameters() -> None:
    """29.45 M in the paper's table, for the 11 classes of CamVid; 26 convolutions."""
    with torch.device("meta"):
        network = SegNet()
    layers = [*PAPER, *((after, before) for before, after in PAPER[:0:-1])]
    normalised = sum(parameters(*layer, kernel=3, bias=False) + 2 * layer[1] for layer in layers)
    assert count(network) == normalised + parameters(64, 11, kernel=3) == 29_441_419
    with_their_biases = count(network) + sum(after for _, after in layers)
    assert with_their_biases == 29_449_355  # the paper's 29.45 M
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert [(module.in_channels, module.out_channels) for module in convolutions] == [*layers, (64, 11)]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_against_the_paper_written_out(depth: int) -> None:
    """With torch's own pooling and unpooling, on the network's weights."""
    network = small(depth=depth, norm="none", num_classes=3).double()
    weights = list(network.parameters())
    stages = [2, 2, 3, 3, 3][:depth]

    def convolve(features: Tensor) -> Tensor:
        return F.conv2d(features, weights.pop(0), weights.pop(0), padding=1)

    images = features = draw(2, 1, 2**depth, 2 * 2**depth)
    kept = []
    for convolutions in stages:
        for _ in range(convolutions):
            features = F.relu(convolve(features))
        features, positions = F.max_pool2d(features, 2, return_indices=True)
        kept.append(positions)
    for convolutions in reversed(stages):
        features = F.max_unpool2d(features, kept.pop(), 2)
        for _ in range(convolutions):
            features = convolve(features)
            features = F.relu(features) if weights else features
    torch.testing.assert_close(network(images), features, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (31, 17), (70, 45)], ids=str)
@pytest.mark.parametrize("depth", [1, 3, 5])
def test_logits_have_the_size_of_the_image(depth: int, size: tuple[int, int]) -> None:
    network = small(depth=depth, num_classes=5)
    assert network.stride == 2**depth
    assert network(torch.rand(2, 1, *size)).shape == (2, 5, *size)


def test_the_gradient_reaches_every_parameter() -> None:
    network = small()
    network(torch.rand(2, 1, 70, 45)).square().sum().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_the_encoder_is_vgg16s_convolutions() -> None:
    """Under torchvision's names, so that published weights fit."""
    with torch.device("meta"):
        network, published = SegNet(norm="none"), vgg16().features
    assert network.encoder() == [network.backbone]
    shapes, expected = (
        {name: tensor.shape for name, tensor in module.state_dict().items()}
        for module in (network.backbone.features, published)
    )
    assert shapes == expected
    assert [features.shape[1] for features in small(depth=3).features_on_grid(torch.rand(1, 1, 8, 8))] == [2, 4, 8, 8]


def test_dropout_acts_in_the_deeper_half_while_training() -> None:
    network, images = small(dropout=0.5, norm="none"), torch.rand(1, 1, 64, 64)
    dropped = [[isinstance(module, nn.Dropout) for module in part] for part in (network.drop, network.expanding.drop)]
    assert dropped == [[False, False, True, True, True], [True, True, True, False, False]]
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_geometry_is_what_probing_shows(depth: int) -> None:
    network = small(depth=depth).eval()
    assert probe_geometry(network, channels=1).geometry == network.geometry
    assert network.geometry.exact


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_classes": 0}, r"model.num_classes: must be at least 1, not 0"),
        ({"width": 0}, r"model.width: must be at least 1, not 0"),
        ({"depth": 0}, r"model.depth: must be between 1 and 5 poolings, not 0"),
        ({"depth": 6}, r"model.depth: must be between 1 and 5 poolings, not 6"),
        ({"dropout": -0.1}, r"model.dropout: must be a probability from 0 to below 1, not -0.1"),
        ({"norm": "layer"}, r"model.norm: unknown normalisation 'layer'; choose from: batch, group, none"),
    ],
)
def test_settings_that_make_no_sense_are_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**keywords)
