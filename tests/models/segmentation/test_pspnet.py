"""PSPNet's figures, its decoder written out, and the auxiliary head that DeepLabV3+ shares."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.segmentation.fcn import FCNHead

from networks import count, draw, lively
from pixelwise.core.errors import ModelError, SettingError
from pixelwise.geometry.reach import parameters
from pixelwise.layers import enlarge
from pixelwise.models.segmentation.pspnet import AuxiliaryHead, PSPNet


def small(seed: int = 0, **keywords: Any) -> PSPNet:
    torch.manual_seed(seed)
    return PSPNet(**{"in_channels": 1, "num_classes": 3, "width": 8, "backbone": "vgg16"} | keywords)


def test_the_published_network_has_the_parameters_that_its_layers_make() -> None:
    with torch.device("meta"):
        network, encoder = PSPNet(auxiliary=True), resnet50()
    grids = 4 * parameters(2048, 512, bias=False) + 3 * 2 * 512 + 512  # one bin has a bias in place of a norm
    mix = parameters(4096, 512, kernel=3, bias=False) + 2 * 512
    assert count(network.backbone) == count(encoder) - count(encoder.fc)
    assert count(network) - count(network.backbone) - count(network.auxiliary) == grids + mix + parameters(512, 21)
    assert (network.stride, network.backbone.strides) == (8, [2, 4, 8, 8, 8])


def test_the_auxiliary_head_is_torchvisions() -> None:
    with torch.device("meta"):
        network, published = PSPNet(auxiliary=True), FCNHead(1024, 21)
    assert [value.shape for value in network.auxiliary.parameters()] == [v.shape for v in published.parameters()]
    head, other = lively(AuxiliaryHead(16, 5, width=4)), FCNHead(16, 5).double().eval()
    other.load_state_dict(dict(zip(other.state_dict(), head.state_dict().values(), strict=True)))
    features = draw(2, 16, 7, 6)
    torch.testing.assert_close(head(features), other(features), rtol=0, atol=1e-12)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_the_decoder_is_the_papers(output_stride: int) -> None:
    network = lively(small(output_stride=output_stride))
    images = draw(2, 1, 96, 64)
    features = network.backbone(images)[-1]
    assert features.shape[-2:] == (96 // output_stride, 64 // output_stride)
    parts = [features]
    for grid, bins in zip(network.pyramid.grids, (1, 2, 3, 6), strict=True):
        convolution, norm, _ = grid[1]
        means = F.relu(norm(F.conv2d(area_means(features, bins), convolution.weight, convolution.bias)))
        parts.append(F.interpolate(means, size=features.shape[-2:], mode="bilinear"))
    convolution, norm, _ = network.mix
    mixed = F.relu(norm(F.conv2d(torch.cat(parts, 1), convolution.weight, padding=1)))
    classifier = network.head[1]
    scores = torch.einsum("nchw,kc->nkhw", mixed, classifier.weight[..., 0, 0]) + classifier.bias[:, None, None]
    torch.testing.assert_close(network(images), enlarge(scores, output_stride), rtol=0, atol=1e-9)


def area_means(features: Tensor, bins: int) -> Tensor:
    """Means over bins x bins regions that cover the features, with as little overlap as there must be."""

    def spans(size: int) -> list[slice]:
        return [slice(size * bin // bins, math.ceil(size * (bin + 1) / bins)) for bin in range(bins)]

    height, width = features.shape[-2:]
    rows = [
        torch.stack([features[..., rows, columns].mean((-2, -1)) for columns in spans(width)], dim=-1)
        for rows in spans(height)
    ]
    return torch.stack(rows, dim=-2)


@pytest.mark.parametrize("size", [(1, 1), (31, 17), (50, 33)], ids=str)
def test_outputs_have_the_size_of_the_image(size: tuple[int, int]) -> None:
    network, images = small(backbone="resnet18", auxiliary=True), draw(2, 1, *size).float()
    outputs = network(images), network.outputs(images)["logits"], network.outputs(images)["auxiliary"]
    assert [tuple(values.shape) for values in outputs] == 3 * [(2, 3, *size)]
    assert all(values.isfinite().all() for values in outputs)


def test_the_auxiliary_output_is_its_head_on_the_stage_before_the_last() -> None:
    network, images = lively(small(auxiliary=True)), draw(1, 1, 24, 16)
    assert list(network.outputs(images)) == ["logits"]  # a prediction needs no auxiliary logits
    network.auxiliary.training = True  # its layers stay in eval mode
    outputs = network.outputs(images)
    expected = enlarge(network.auxiliary(network.backbone(images)[-2]), 8)
    assert list(outputs) == ["logits", "auxiliary"]
    torch.testing.assert_close(outputs["auxiliary"], expected, rtol=0, atol=0)
    torch.testing.assert_close(outputs["logits"], network(images), rtol=0, atol=0)
    assert list(small().outputs(images.float())) == ["logits"]


@pytest.mark.parametrize("auxiliary", [False, True])
def test_every_parameter_gets_a_gradient(auxiliary: bool) -> None:
    network = small(auxiliary=auxiliary, width=64)
    outputs = network.outputs(draw(2, 1, 40, 24).float())
    sum(values.square().mean() for values in outputs.values()).backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_it_pools_over_the_image_and_says_so() -> None:
    geometry = small().geometry
    assert not geometry.exact
    assert geometry.reason
    assert geometry.stride == 8


def test_dropout_stands_before_the_classifier() -> None:
    network = small(dropout=0.25)
    assert [part.p for part in network.modules() if isinstance(part, nn.Dropout)] == [0.25]
    assert isinstance(network.head[0], nn.Dropout)


def test_width_scales_a_backbone_that_comes_in_any_width() -> None:
    with torch.device("meta"):
        assert PSPNet(backbone="vgg16").backbone.channels[-1] == 512
        assert PSPNet(backbone="vgg16", width=128).backbone.channels[-1] == 128
        assert PSPNet(backbone="resnet18", width=1).backbone.channels[-1] == 512


def test_a_batch_of_one_is_trained_unless_it_is_a_single_cell() -> None:
    network = small(backbone="resnet18").train()
    assert network(draw(1, 1, 9, 8).float()).shape == (1, 3, 9, 8)
    with pytest.raises(ModelError, match="batch norm cannot train on a single image of at most 8 x 8 pixels"):
        network(draw(1, 1, 8, 8).float())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_stride": 4}, r"model.output_stride: must be 8, 16 or 32 pixels, not 4\."),
        ({"dropout": 1.0}, r"model.dropout: must be a probability from 0 to below 1, not 1\.0\."),
        ({"width": 0}, r"model.width: must be at least 1, not 0\."),
        ({"norm": "btach"}, r"model.norm: unknown normalisation 'btach'; did you mean batch\?"),
        ({"backbone": "vgg61"}, r"model.backbone: unknown backbone 'vgg61'; did you mean .*vgg16"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}"):
        small(**settings)
