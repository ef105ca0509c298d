"""FCN's own figures, crops and start; what it shares with other networks is in the conformance suite."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import count, draw
from pixelwise.core.errors import SettingError
from pixelwise.geometry.probing import probe_geometry
from pixelwise.geometry.reach import parameters
from pixelwise.layers import enlarge
from pixelwise.models.segmentation.fcn import FCN, FCN8s, FCN16s, FCN32s

FORMS = [FCN32s, FCN16s, FCN8s]


def small(form: type[FCN] = FCN8s, **keywords: Any) -> FCN:
    torch.manual_seed(0)
    return form(**{"in_channels": 1, "num_classes": 2, "width": 1} | keywords)


@pytest.mark.parametrize(
    ("form", "upsampling", "scored", "total"),
    [
        (FCN32s, [64], [4096], 136_152_917),
        (FCN16s, [4, 32], [4096, 512], 134_815_994),
        (FCN8s, [4, 4, 16], [4096, 512, 256], 134_489_759),
    ],
)
def test_the_papers_parameters(form: type[FCN], upsampling: list[int], scored: list[int], total: int) -> None:
    """VGG16's convolutions, fc6 and fc7; 1 x 1 score layers; a full kernel between 21 and 21 classes."""
    with torch.device("meta"):
        network = form(norm="none")
    assert count(network.backbone) == 14_714_688
    assert count(network.head) == parameters(512, 4096, kernel=7) + parameters(4096, 4096)
    scores = sum(parameters(channels, 21) for channels in scored)
    kernels = sum(parameters(21, 21, side, bias=False) for side in upsampling)
    assert count(network) == 14_714_688 + count(network.head) + scores + kernels == total


def test_a_norm_costs_a_scale_for_each_filter() -> None:
    """A scale and a shift for each of the 4,224 + 8,192 filters, in place of a bias."""
    with torch.device("meta"):
        assert count(FCN8s()) == 134_489_759 + 4_224 + 2 * 4096 == 134_502_175


def vgg16_of_the_paper(images: Tensor, weights: list[Tensor]) -> dict[int, Tensor]:
    """The features after each pooling, by their stride, of images with 100 pixels of padding."""
    features, pooled = images, {}
    for stage, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
        for _ in range(convolutions):
            padding = 100 if features is images else 1
            features = F.relu(F.conv2d(features, weights.pop(0), weights.pop(0), padding=padding))
        features = pooled[2**stage] = F.max_pool2d(features, 2, ceil_mode=True)
    return pooled


def fcn_of_the_paper(network: FCN, images: Tensor) -> Tensor:
    """The authors' definition: fc6 without padding, and crops at offsets of 5, 9 and 31; 27; or 19."""
    offsets = {32: [19], 16: [5, 27], 8: [5, 9, 31]}[network.finest]
    pooled = vgg16_of_the_paper(images, list(network.backbone.parameters()))
    fc6, fc6_bias, fc7, fc7_bias = network.head.parameters()
    scores = F.relu(F.conv2d(F.relu(F.conv2d(pooled[32], fc6, fc6_bias)), fc7, fc7_bias))
    scores = F.conv2d(scores, network.score.weight, network.score.bias)
    for stride, layer, up in zip((16, 8), network.skip_scores, network.doublings, strict=False):
        scores = F.conv_transpose2d(scores, up.weight, stride=2)
        skip, offset = F.conv2d(pooled[stride], layer.weight, layer.bias), offsets.pop(0)
        scores = scores + skip[..., offset : offset + scores.shape[-2], offset : offset + scores.shape[-1]]
    logits, offset = F.conv_transpose2d(scores, network.enlargement.weight, stride=network.finest), offsets.pop(0)
    return logits[..., offset : offset + images.shape[-2], offset : offset + images.shape[-1]]


@pytest.mark.parametrize("form", FORMS)
def test_crops_are_the_papers(form: type[FCN]) -> None:
    """Equal to the paper's 100 pixels of padding and its offsets, but near the border, where it sees less."""
    network = small(form, norm="none").double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(draw(*parameter.shape) / parameter[0].numel() ** 0.5)
    images = draw(1, 1, 90, 122)
    expected = fcn_of_the_paper(network, images)
    result = network(F.pad(images, (99, 99, 99, 99)))[..., 99:-99, 99:-99]
    assert expected.std() > 1e-3
    torch.testing.assert_close(result[..., 25:-25, 25:-25], expected[..., 25:-25, 25:-25], rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_it_starts_as_bilinear_upsampling_of_the_deepest_scores(form: type[FCN]) -> None:
    """Every step enlarges as `enlarge` does away from the border; the skips add nothing yet."""
    network, scores = small(form, num_classes=3).double(), draw(1, 3, 5, 6)
    for up, factor in [*((up, 2) for up in network.doublings), (network.enlargement, form.finest)]:
        inner = slice(factor // 2, -(factor // 2))
        expected = enlarge(scores, factor)
        result = up(scores)
        assert result.shape == expected.shape
        torch.testing.assert_close(result[..., inner, inner], expected[..., inner, inner], rtol=0, atol=1e-6)
        assert (result - expected).abs().max() > 0.1  # zeros outside
    assert not any(parameter.any() for parameter in network.skip_scores.parameters())
    assert network.score.weight.any()


@pytest.mark.parametrize("keywords", [{}, {"width": None, "backbone": "resnet18"}], ids=["vgg16", "resnet18"])
@pytest.mark.parametrize("size", [(1, 1), (31, 17), (70, 45)], ids=str)
def test_logits_have_the_size_of_the_image(keywords: dict[str, Any], size: tuple[int, int]) -> None:
    network = small(in_channels=3, num_classes=5, **keywords).eval()
    assert network(torch.rand(2, 3, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_reaches_every_parameter(form: type[FCN]) -> None:
    network = small(form).train()
    network(torch.rand(2, 1, 70, 45)).square().sum().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_the_head_on_another_backbone_stays_small() -> None:
    """3 x 3 and 1 x 1 convolutions of a quarter of the deepest channels, at least 64."""
    with torch.device("meta"):
        resnet, narrow = FCN8s(backbone="resnet50"), FCN8s(backbone="alexnet_paper", width=4)
    assert [tuple(module.weight.shape) for module in resnet.head.modules() if isinstance(module, nn.Conv2d)] == [
        (512, 2048, 3, 3),
        (512, 512, 1, 1),
    ]
    assert narrow.score.in_channels == 64
    assert resnet.encoder() == [resnet.backbone]
    assert count(resnet) < 35_000_000


def test_vgg16s_dense_layers_are_part_of_the_encoder() -> None:
    network = small(FCN32s)
    assert network.encoder() == [network.backbone, network.head]
    shapes = [tuple(features.shape[1:]) for features in network.eval().features_on_grid(torch.rand(1, 1, 32, 32))]
    assert shapes == [(1, 32, 32), (2, 16, 16), (4, 8, 8), (8, 4, 4), (8, 2, 2), (64, 1, 1)]


def test_dropout_acts_while_training() -> None:
    network, images = small(norm="none"), torch.rand(1, 1, 40, 40)
    assert [module.p for module in network.head if isinstance(module, nn.Dropout)] == [0.5, 0.5]
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


@pytest.mark.parametrize("form", FORMS)
def test_geometry_is_what_probing_shows(form: type[FCN]) -> None:
    network = small(form).eval()
    assert probe_geometry(network, channels=1).geometry == network.geometry
    assert network.geometry.exact


@pytest.mark.parametrize(
    ("form", "keywords", "message"),
    [
        (FCN8s, {"in_channels": 0}, r"model.in_channels: must be at least 1, not 0"),
        (FCN8s, {"width": 0}, r"model.width: must be at least 1, not 0"),
        (FCN8s, {"dropout": 1.0}, r"model.dropout: must be a probability from 0 to below 1, not 1.0"),
        (FCN8s, {"norm": "layer"}, r"model.norm: unknown normalisation 'layer'; choose from: batch, group, none"),
        (FCN8s, {"backbone": "vgg61"}, r"model.backbone: unknown backbone 'vgg61'; did you mean .*vgg16"),
        (FCN8s, {"backbone": "resnet18"}, r"model.width: resnet18 has only its published width"),
        (
            FCN16s,
            {"backbone": "lenet"},
            r"model.backbone: FCN16s needs features at strides 16, 32 and none coarser, but lenet has them at 1, 2, 4: "
            r"use another backbone, such as vgg16 or resnet18",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(form: type[FCN], keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(form, **keywords)
