"""The chains against torchvision, their arithmetic against the papers, dilation against the undilated network."""

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from pixelwise.backbones.alexnet import ALEXNET, ALEXNET_PAPER
from pixelwise.backbones.chain import Chain, ChainBackbone, DenseClassifier
from pixelwise.backbones.lenet import LENET
from pixelwise.backbones.vgg import VGG16
from pixelwise.core.errors import ModelError, SettingError

CHAINS = [LENET, ALEXNET, ALEXNET_PAPER, VGG16]


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def on_meta(chain: Chain, *arguments: int) -> DenseClassifier:
    with torch.device("meta"):
        return DenseClassifier(chain, *arguments)


def test_the_sides_of_alexnet_in_the_lectures() -> None:
    """(227 - 11) / 4 + 1 = 55; the pooling (55 - 3) / 2 + 1 = 27; then 13 and 6, as the paper's figure 2 has them."""
    assert list(ALEXNET_PAPER.sides()) == [55, 27, 27, 13, 13, 13, 13, 6]


@pytest.mark.parametrize(
    ("chain", "last"), [(LENET, 1), (ALEXNET, 6), (ALEXNET_PAPER, 6), (VGG16, 7)], ids=lambda part: str(part)[:20]
)
def test_the_sides_are_those_of_the_classifier(chain: Chain, last: int) -> None:
    classifier = on_meta(chain)
    images = torch.zeros(1, 3, chain.side, chain.side, device="meta")
    sides, values = [], images
    for module in classifier.features:
        values = module(values)
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            sides.append(values.shape[-1])
    assert sides == list(chain.sides())
    assert sides[-1] == last
    assert classifier(images).shape == (1, 1000)


def test_the_parameters_of_lenet() -> None:
    """156 + 2,416 + 48,120 + 10,164 + 850: LeNet-5 with full connections and without trainable sub-sampling."""
    classifier = on_meta(LENET, 1, 10)
    layers = [count(layer) for layer in (*classifier.features, *classifier.classifier) if count(layer)]
    assert layers == [156, 2416, 48120, 10164, 850]
    assert count(classifier) == 61706


def test_the_parameters_of_the_papers_alexnet() -> None:
    """11*11*3*96 + 96 and 6*6*256*4096 + 4096 by the lectures; the sum by the two halves of the paper's figure 2."""
    classifier = on_meta(ALEXNET_PAPER)
    assert count(classifier.features[0]) == 11 * 11 * 3 * 96 + 96 == 34944
    assert count(classifier.classifier[0]) == 6 * 6 * 256 * 4096 + 4096 == 37752832
    assert count(classifier) == 60965224


@pytest.mark.parametrize(
    ("chain", "name", "published"),
    [(ALEXNET, "alexnet", 61100840), (VGG16, "vgg16", 138357544)],
    ids=lambda part: str(part)[:20],
)
def test_names_shapes_and_counts_are_torchvisions(chain: Chain, name: str, published: int) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)()
    ours = on_meta(chain)
    shapes = {key: tuple(value.shape) for key, value in ours.state_dict().items()}
    assert shapes == {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert [str(layer) for layer in ours.classifier] == [str(layer) for layer in theirs.classifier]
    assert count(ours) == count(theirs) == published


def test_the_convolutions_of_alexnet_are_torchvisions() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.alexnet().features
        ours = DenseClassifier(ALEXNET).features
    torch.manual_seed(0)
    theirs, ours = theirs.to_empty(device="cpu"), ours.to_empty(device="cpu")
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.03)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_vgg16_is_torchvisions(norm: str) -> None:
    """At a width of 8; with batch norm torchvision's convolutions have a bias, which is set to zero here."""
    torch.manual_seed(0)
    widths: list[Any] = [8, 8, "M", 16, 16, "M", *3 * [32], "M", *3 * [64], "M", *3 * [64], "M"]
    theirs = torchvision.models.vgg.make_layers(widths, batch_norm=norm == "batch").eval()
    ours = ChainBackbone(VGG16, width=8, norm=norm).eval()
    weights = theirs.state_dict()
    ours.features.load_state_dict({key: weights[key] for key in ours.features.state_dict()})
    for module in theirs:
        if isinstance(module, nn.Conv2d) and norm == "batch":
            nn.init.zeros_(module.bias)
    images, found = torch.randn(2, 3, 64, 96), []
    expected = images
    for module in theirs:
        if isinstance(module, nn.MaxPool2d):
            found.append(expected)
        expected = module(expected)
    for ours_feature, theirs_feature in zip(ours(images), [*found, expected], strict=True):
        torch.testing.assert_close(ours_feature, theirs_feature, rtol=0, atol=1e-6)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("chain", [ALEXNET, ALEXNET_PAPER, VGG16], ids=lambda chain: chain.name)
def test_a_dilated_network_gives_between_its_pixels_what_it_gave_before(chain: Chain, output_stride: int) -> None:
    """The hole algorithm: each part of the dilated features at the old stride is the old feature."""
    torch.manual_seed(0)
    plain = ChainBackbone(chain, width=4, norm="none").double()
    dilated = ChainBackbone(chain, width=4, norm="none", output_stride=output_stride).double()
    dilated.load_state_dict(plain.state_dict())
    assert dilated.strides == [min(stride, output_stride) for stride in plain.strides]
    images = torch.randn(1, 3, 128, 96, dtype=torch.double)
    for coarse, fine, stride in zip(plain(images), dilated(images), plain.strides, strict=True):
        step = max(1, stride // output_stride)
        assert fine.shape[-2:] == (step * coarse.shape[-2], step * coarse.shape[-1])
        torch.testing.assert_close(fine[..., ::step, ::step], coarse, rtol=0, atol=1e-12)


def test_the_dilated_network_shifts_with_the_image() -> None:
    """Away from the border: 8 pixels of shift are one cell, which the undilated network cannot tell."""
    torch.manual_seed(0)
    dilated = ChainBackbone(VGG16, width=2, norm="none", output_stride=8).double()
    images = torch.randn(1, 3, 320, 328, dtype=torch.double)
    here, shifted = dilated(images[..., :-8])[-1], dilated(images[..., 8:])[-1]
    middle = slice(18, 21)
    torch.testing.assert_close(shifted[..., middle, 17:20], here[..., middle, 18:21], rtol=0, atol=1e-12)
    assert here[..., middle, middle].std() > 0


@pytest.mark.parametrize(
    ("chain", "width", "channels"),
    [
        (LENET, 64, [6, 16, 120]),
        (LENET, 32, [3, 8, 60]),
        (LENET, 1, [1, 1, 2]),
        (ALEXNET, 64, [64, 192, 256, 256]),
        (ALEXNET_PAPER, 64, [96, 256, 256, 256]),
        (ALEXNET_PAPER, 1, [2, 4, 4, 4]),
        (VGG16, 64, [64, 128, 256, 512, 512, 512]),
        (VGG16, 5, [5, 10, 20, 40, 40, 40]),
    ],
    ids=lambda part: str(getattr(part, "name", part)),
)
def test_the_width_scales_the_channels(chain: Chain, width: int, channels: list[int]) -> None:
    with torch.device("meta"):
        backbone = ChainBackbone(chain, width=width)
    assert backbone.channels == channels
    assert [feature.shape[1] for feature in backbone(torch.zeros(2, 3, 32, 32, device="meta"))] == channels


def test_the_weights_start_as_he_says() -> None:
    torch.manual_seed(0)
    convolution = ChainBackbone(VGG16, width=32, norm="none").features[2]
    assert convolution.weight.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.02)
    assert not convolution.bias.any()


@pytest.mark.parametrize("side", [31, 33, 64])
def test_dense_layers_take_one_size(side: int) -> None:
    """The lectures: does the architecture change when the image's size changes? With dense layers it would have to."""
    with pytest.raises(
        ModelError,
        match=rf"^the dense layers of lenet take N x 1 x 32 x 32 images, but got 2 x 1 x {side} x {side}: they have a "
        r"weight for each pixel of the last features\. Resize the images, or use a fully convolutional network, which "
        r"takes any size\.$",
    ):
        DenseClassifier(LENET, 1, 10)(torch.zeros(2, 1, side, side))


def test_a_width_below_one() -> None:
    with pytest.raises(SettingError, match=r"^model\.width: must be at least 1, not 0\.$"):
        ChainBackbone(VGG16, width=0)
    with pytest.raises(SettingError, match=r"^model\.width: must be at least 1, not -1\.$"):
        DenseClassifier(VGG16, width=-1)


def test_an_output_stride_that_lenet_does_not_reach() -> None:
    message = r"^model\.output_stride: 8 is more than the largest stride of lenet, 4: leave it out\.$"
    with pytest.raises(SettingError, match=message):
        ChainBackbone(LENET, output_stride=8)
