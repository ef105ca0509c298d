"""DeepLabV2 and DeepLabV3+ written out, their figures, and that tiles give the whole image."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import resnet101, vgg16
from torchvision.models.segmentation import deeplabv3_resnet50
from torchvision.models.segmentation.deeplabv3 import ASPP

from networks import count, draw, lively
from pixelwise.backbones import Backbone
from pixelwise.core.errors import ModelError, SettingError
from pixelwise.geometry.probing import probe_geometry
from pixelwise.geometry.reach import Reach, parameters
from pixelwise.layers import enlarge
from pixelwise.models.segmentation import deeplab
from pixelwise.models.segmentation.deeplab import DeepLabV2, DeepLabV3Plus
from pixelwise.prediction.predictor import predict

SMALL = {"in_channels": 1, "num_classes": 3, "width": 16, "backbone": "vgg16"}
either = pytest.mark.parametrize("kind", [DeepLabV2, DeepLabV3Plus])


def small(kind: type[nn.Module], seed: int = 0, **keywords: Any) -> nn.Module:
    torch.manual_seed(seed)
    return kind(**SMALL | keywords)


def atrous(features: Tensor, weight: Tensor, rate: int) -> Tensor:
    """A 3 x 3 atrous convolution as nine shifted images, each mixed by a matrix; zeros outside."""
    height, width = features.shape[-2:]
    padded = F.pad(features, [rate] * 4)
    return sum(
        torch.einsum(
            "nchw,kc->nkhw",
            padded[..., row * rate : row * rate + height, column * rate : column * rate + width],
            weight[..., row, column],
        )
        for row in range(3)
        for column in range(3)
    )


def summed(network: DeepLabV2, features: Tensor, rates: list[int]) -> Tensor:
    """Logits of DeepLabV2 from its deepest features, written out."""
    total = torch.zeros(())
    for branch, rate in zip(network.branches, rates, strict=True):
        *hidden, classifier = branch
        if len(hidden) == 1:
            total = total + atrous(features, classifier.weight, rate) + classifier.bias[:, None, None]
            continue
        (spread, norm, _), _, (full, second_norm, _), _ = hidden
        values = F.relu(norm(atrous(features, spread.weight, rate)))
        values = F.relu(second_norm(F.conv2d(values, full.weight)))
        total = total + F.conv2d(values, classifier.weight, classifier.bias)
    return total


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize(
    ("head", "output_stride", "rates"),
    [("aspp", 8, [6, 12, 18, 24]), ("aspp", 16, [3, 6, 9, 12]), ("largefov", 8, [12]), ("largefov", 16, [6])],
)
def test_deeplabv2_adds_up_its_branches(hidden: bool, head: str, output_stride: int, rates: list[int]) -> None:
    keywords = {} if hidden else {"width": None, "backbone": "resnet10t"}
    network = lively(small(DeepLabV2, head=head, output_stride=output_stride, **keywords))
    images = draw(1, 1, 208, 112)
    features = network.backbone(images)[-1]
    assert features.shape[-2:] == (208 // output_stride, 112 // output_stride)
    expected = enlarge(summed(network, features, rates), output_stride)
    torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-9)


def test_deeplabv2_has_the_parameters_that_its_layers_make() -> None:
    """The LargeFOV form on VGG16 is the one of 20.5 M that Chen et al. 2015, arXiv:1412.7062, table 2 name."""
    with torch.device("meta"):
        plain, encoder = DeepLabV2(), resnet101()
        largefov, features = DeepLabV2(backbone="vgg16", head="largefov", norm="none"), vgg16().features
        aspp = DeepLabV2(backbone="vgg16", norm="none")
    assert count(plain) == count(encoder) - count(encoder.fc) + 4 * parameters(2048, 21, kernel=3)
    branch = parameters(512, 1024, kernel=3) + parameters(1024, 1024) + parameters(1024, 21)
    assert count(largefov) == count(features) + branch == 20_505_429
    assert count(aspp) == count(features) + 4 * branch


def test_deeplabv3plus_has_the_parameters_that_its_layers_make() -> None:
    """Those of torchvision's DeepLabV3 up to the pyramid's depthwise convolutions and the decoder."""
    with torch.device("meta"):
        network = DeepLabV3Plus(backbone="resnet50", auxiliary=True)
        published, pyramid = deeplabv3_resnet50(weights_backbone=None, aux_loss=True), ASPP(2048, [6, 12, 18])
    full, norm = parameters(2048, 256, kernel=3, bias=False), 2 * 256
    depthwise = parameters(2048, 2048, kernel=3, groups=2048, bias=False) + 2 * 2048
    pointwise = parameters(2048, 256, bias=False)
    image = 256 - norm  # a bias in place of a norm
    assert count(network.backbone) == count(published.backbone)
    assert count(network.auxiliary) == count(published.aux_classifier)
    assert count(network.pyramid) == count(pyramid) + 3 * (depthwise + pointwise - full) + image
    assert count(network.reduce) == parameters(256, 48, bias=False) + 2 * 48
    assert count(network.decoder) == 9 * 304 + 2 * 304 + 304 * 256 + norm + 11 * 256 + 256**2 + norm + 256 * 21 + 21


@pytest.mark.parametrize(("output_stride", "rates"), [(16, [6, 12, 18]), (8, [12, 24, 36])])
def test_the_decoder_of_deeplabv3plus_is_the_papers(output_stride: int, rates: list[int]) -> None:
    network = lively(small(DeepLabV3Plus, output_stride=output_stride))
    images = draw(2, 1, 96, 64)
    features = network.backbone(images)
    assert [branch[0][0].dilation[0] for branch in network.pyramid[0].branches[1:]] == rates
    coarse = F.interpolate(network.pyramid(features[-1]), size=(24, 16), mode="bilinear")
    fine = features[network.backbone.strides.index(4)]
    convolution, norm, _ = network.reduce
    values = torch.cat([coarse, F.relu(norm(F.conv2d(fine, convolution.weight)))], dim=1)
    assert values.shape == (2, 16 + 3, 24, 16)
    for separable in network.decoder[:2]:
        (depthwise, norm, _), (pointwise, second_norm, _) = separable
        groups = len(depthwise.weight)
        values = F.relu(norm(F.conv2d(values, depthwise.weight, padding=1, groups=groups)))
        values = F.relu(second_norm(F.conv2d(values, pointwise.weight)))
    classifier = network.decoder[2]
    scores = F.conv2d(values, classifier.weight, classifier.bias)
    expected = F.interpolate(scores, size=(96, 64), mode="bilinear")
    torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-9)


@either
@pytest.mark.parametrize("size", [(1, 1), (31, 17), (50, 33)], ids=str)
def test_logits_have_the_size_of_the_image(kind: type[nn.Module], size: tuple[int, int]) -> None:
    logits = small(kind, backbone="resnet18")(draw(2, 1, *size).float())
    assert logits.shape == (2, 3, *size)
    assert logits.isfinite().all()


def test_the_auxiliary_output_is_its_head_on_the_stage_before_the_last() -> None:
    network, images = lively(small(DeepLabV3Plus, auxiliary=True, backbone="resnet18")), draw(1, 1, 40, 19)
    assert list(network.outputs(images)) == ["logits"]  # a prediction needs no auxiliary logits
    network.auxiliary.training = True  # its layers stay in eval mode
    outputs = network.outputs(images)
    padded = F.pad(images, (0, 13, 0, 8), mode="replicate")
    expected = enlarge(network.auxiliary(network.backbone(padded)[-2]), 16)[..., :40, :19]
    assert list(outputs) == ["logits", "auxiliary"]
    torch.testing.assert_close(outputs["auxiliary"], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(outputs["logits"], network(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "keywords"),
    [(DeepLabV2, {}), (DeepLabV2, {"head": "largefov"}), (DeepLabV3Plus, {}), (DeepLabV3Plus, {"auxiliary": True})],
    ids=str,
)
def test_every_parameter_gets_a_gradient(kind: type[nn.Module], keywords: dict[str, Any]) -> None:
    network = small(kind, width=64, dropout=0.0, **keywords)
    outputs = network.outputs(draw(2, 1, 224, 224).float())
    sum(values.square().mean() for values in outputs.values()).backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


EXACT = [
    pytest.param(DeepLabV2, {"head": "largefov"}, id="largefov"),
    pytest.param(DeepLabV2, {"head": "aspp", "output_stride": 16}, id="aspp"),
    pytest.param(DeepLabV3Plus, {"image_branch": False}, id="deeplabv3plus"),
]


@pytest.mark.parametrize(("kind", "keywords"), EXACT)
def test_the_geometry_is_proved_by_probing(kind: type[nn.Module], keywords: dict[str, Any]) -> None:
    network = lively(small(kind, width=4, **keywords))
    probed = probe_geometry(network, channels=1)
    stride = network.geometry.stride
    assert network.geometry.exact
    assert probed.geometry.exact
    assert probed.any_size
    assert stride % probed.geometry.stride == 0
    assert probed.geometry.halo <= network.geometry.halo <= probed.geometry.halo + stride
    assert probed.geometry.margin <= network.geometry.margin <= probed.geometry.margin + stride


@pytest.mark.parametrize(("kind", "keywords"), EXACT)
@settings(max_examples=5, deadline=None)
@given(height=st.integers(500, 700), tile=st.sampled_from([1, 2, 7]))
def test_tiles_give_the_whole_image(kind: type[nn.Module], keywords: dict[str, Any], height: int, tile: int) -> None:
    network = lively(small(kind, width=4, **keywords))
    image = draw(height, 21, 1).numpy()
    whole = predict(network, image, tile=None, engine="torch", logits=True)
    tiled = predict(network, image, tile=tile * network.stride * 8, engine="torch", logits=True)
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-10 * np.abs(whole).max())


def test_the_geometry_of_largefov_is_that_of_its_operators() -> None:
    reach = Reach.of_input(8)
    for convolutions in (2, 2, 3):
        for _ in range(convolutions):
            reach = reach.convolution(3)
        reach = reach.pooling(2)
    for _ in range(3):
        reach = reach.convolution(3)
    reach = reach.convolution(2, padding=0)  # the pooling that keeps the resolution: a cell and the next
    for _ in range(3):
        reach = reach.convolution(3, dilation=2)
    reach = reach.convolution(2, dilation=2, padding=0)
    expected = reach.convolution(3, dilation=12).bilinear(8).geometry()
    assert small(DeepLabV2, head="largefov").geometry == expected


@pytest.mark.parametrize(
    ("kind", "keywords"), [(DeepLabV3Plus, {}), (DeepLabV2, {"norm": "group"}), (DeepLabV3Plus, {"norm": "group"})]
)
def test_what_sees_the_whole_image_says_so(kind: type[nn.Module], keywords: dict[str, Any]) -> None:
    geometry = small(kind, **keywords).geometry
    assert not geometry.exact
    assert geometry.reason


def test_defaults_are_the_published_ones() -> None:
    def dropouts(network: nn.Module) -> list[float]:
        return [part.p for part in network.modules() if isinstance(part, nn.Dropout)]

    with torch.device("meta"):
        plain, hidden, mixed = DeepLabV2(), DeepLabV2(backbone="vgg16", head="largefov"), DeepLabV3Plus()
    assert [dropouts(network) for network in (plain, hidden, mixed)] == [[0.0] * 4, [0.5] * 2, [0.1]]
    assert [network.stride for network in (plain, hidden, mixed)] == [8, 8, 16]
    assert [network.backbone.channels[-1] for network in (plain, hidden, mixed)] == [2048, 512, 2048]
    assert hidden.branches[0][0][0].out_channels == 1024
    assert [mixed.reduce[0].out_channels, mixed.decoder[2].in_channels] == [48, 256]


def test_width_scales_a_backbone_that_comes_in_any_width() -> None:
    with torch.device("meta"):
        assert DeepLabV2(backbone="vgg16", width=128).backbone.channels[-1] == 64
        assert DeepLabV3Plus(backbone="vgg16", width=32).backbone.channels[-1] == 64
        assert DeepLabV2(backbone="resnet18", width=128).backbone.channels[-1] == 512


@either
def test_a_batch_of_one_is_trained_unless_it_is_a_single_cell(kind: type[nn.Module]) -> None:
    network = small(kind, backbone="resnet18", output_stride=8).train()
    assert network(draw(1, 1, 9, 8).float()).shape == (1, 3, 9, 8)
    with pytest.raises(ModelError, match="batch norm cannot train on a single image of at most 8 x 8 pixels"):
        network(draw(1, 1, 8, 8).float())


@either
@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"output_stride": 32}, r"model.output_stride: must be 8 or 16 pixels, not 32\."),
        ({"dropout": -0.1}, r"model.dropout: must be a probability from 0 to below 1, not -0\.1\."),
        ({"width": 0}, r"model.width: must be at least 1, not 0\."),
        ({"norm": "gruop"}, r"model.norm: unknown normalisation 'gruop'; did you mean group\?"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(kind: type[nn.Module], keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"^{message}$"):
        small(kind, **keywords)


def test_an_unknown_head_is_named() -> None:
    with pytest.raises(SettingError, match=r"^model.head: unknown head 'asp'; did you mean aspp\?$"):
        small(DeepLabV2, head="asp")


def test_a_backbone_without_features_of_stride_4_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Coarse(Backbone):
        def features_on_grid(self, images: Tensor) -> list[Tensor]:
            return [images[:, :1, ::8, ::8], images[:, :1, ::16, ::16]]

    coarse = Coarse("coarse", 1, strides=[8, 16], channels=[1, 1])
    monkeypatch.setattr(deeplab, "make_scaled_backbone", lambda *arguments: coarse)
    message = (
        r"^model.backbone: coarse has features at strides 8, 16, but the decoder needs features at stride 4: use "
        r"another backbone, such as resnet18 or vgg16\.$"
    )
    with pytest.raises(SettingError, match=message):
        small(DeepLabV3Plus, backbone="coarse")
