"""DeconvNet's own figures and structure; what it shares with other networks is in the conformance suite."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import count, draw
from pixelwise.core.errors import SettingError
from pixelwise.geometry.probing import probe_geometry
from pixelwise.geometry.reach import parameters
from pixelwise.models.segmentation.deconvnet import DeconvNet

VGG16 = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512), *[(512, 512)] * 5]
"""Input and output channels of the convolutions."""


def small(**keywords: Any) -> DeconvNet:
    torch.manual_seed(0)
    return DeconvNet(**{"in_channels": 1, "num_classes": 2, "width": 1} | keywords)


def test_the_papers_parameters() -> None:
    """251.8 M: two of the three large layers see 7 x 7 cells."""
    with torch.device("meta"):
        network = DeconvNet()
    up = [(after, before) for before, after in VGG16[:0:-1]] + [(64, 64)]
    small_layers = sum(parameters(*layer, kernel=3, bias=False) + 2 * layer[1] for layer in VGG16 + up)
    fc6, fc7, mirrored = (
        parameters(*layer, kernel=kernel, bias=False) + 2 * layer[1]
        for layer, kernel in [((512, 4096), 7), ((4096, 4096), 1), ((4096, 512), 7)]
    )
    assert count(network) == small_layers + fc6 + fc7 + mirrored + parameters(64, 21) == 251_788_949
    transposed = [module for module in network.modules() if isinstance(module, nn.ConvTranspose2d)]
    assert [(module.in_channels, module.out_channels) for module in transposed] == [(4096, 512), *up]


def test_against_the_paper_written_out() -> None:
    """With torch's own pooling, unpooling and transposed convolutions, on the network's weights."""
    network = small(norm="none", num_classes=3).double()
    weights = list(network.parameters())

    def convolve(features: Tensor, padding: int = 1) -> Tensor:
        return F.relu(F.conv2d(features, weights.pop(0), weights.pop(0), padding=padding))

    def deconvolve(features: Tensor, padding: int = 1) -> Tensor:
        return F.relu(F.conv_transpose2d(features, weights.pop(0), weights.pop(0), padding=padding))

    images = features = draw(1, 1, 64, 96)
    kept = []
    for convolutions in (2, 2, 3, 3, 3):
        for _ in range(convolutions):
            features = convolve(features)
        features, positions = F.max_pool2d(features, 2, return_indices=True)
        kept.append(positions)
    features = deconvolve(convolve(convolve(features, padding=3), padding=0), padding=3)
    for convolutions in (3, 3, 3, 2, 2):
        features = F.max_unpool2d(features, kept.pop(), 2)
        for _ in range(convolutions):
            features = deconvolve(features)
    expected = F.conv2d(features, weights.pop(0), weights.pop(0))
    assert not weights
    torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-12)


def test_fc6_and_its_mirror_image_are_the_papers_on_its_windows() -> None:
    """Of 7 x 7 cells the middle one of fc6 is the paper's only one; its stamp covers the 7 x 7 cells again."""
    network = small(norm="none").double()
    features = draw(1, network.backbone.channels[-1], 7, 7)
    fc6, mirrored = network.fc6[0][0], network.fc6_mirrored[0]
    one = F.conv2d(features, fc6.weight, fc6.bias)
    torch.testing.assert_close(fc6(features)[..., 3:4, 3:4], one, rtol=0, atol=1e-12)
    alone = F.pad(one, (3, 3, 3, 3))
    expected = F.conv_transpose2d(one, mirrored.weight, mirrored.bias)
    torch.testing.assert_close(mirrored(alone), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (31, 17), (70, 45)], ids=str)
def test_logits_have_the_size_of_the_image(size: tuple[int, int]) -> None:
    assert small(num_classes=5)(torch.rand(2, 1, *size)).shape == (2, 5, *size)


def test_the_gradient_reaches_every_parameter() -> None:
    network = small()
    network(torch.rand(2, 1, 70, 45)).square().sum().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_dropout_acts_after_the_dense_layers_while_training() -> None:
    network, images = small(dropout=0.5, norm="none"), torch.rand(1, 1, 64, 64)
    assert [part[-1].p for part in (network.fc6, network.fc7)] == [0.5, 0.5]
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_the_encoder_is_the_classifier() -> None:
    network = small()
    assert network.encoder() == [network.backbone, network.fc6, network.fc7]
    shapes = [tuple(features.shape[1:]) for features in network.eval().features_on_grid(torch.rand(1, 1, 32, 32))]
    assert shapes == [(1, 32, 32), (2, 16, 16), (4, 8, 8), (8, 4, 4), (8, 2, 2), (64, 1, 1)]


def test_geometry_is_what_probing_shows() -> None:
    network = small().eval()
    assert probe_geometry(network, channels=1).geometry == network.geometry
    assert network.geometry.exact


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"in_channels": 0}, r"model.in_channels: must be at least 1, not 0"),
        ({"width": 0}, r"model.width: must be at least 1, not 0"),
        ({"dropout": 1.0}, r"model.dropout: must be a probability from 0 to below 1, not 1.0"),
        ({"norm": "layer"}, r"model.norm: unknown normalisation 'layer'; choose from: batch, group, none"),
    ],
)
def test_settings_that_make_no_sense_are_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**keywords)
