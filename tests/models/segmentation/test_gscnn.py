"""Gated-SCNN's own parts; what it shares with other networks is in the conformance suite."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import nn

from networks import draw
from pixelwise.core.errors import ModelError, SettingError
from pixelwise.layers import GatedConvolution, ResidualBlock, enlarge
from pixelwise.models.segmentation.gscnn import GSCNN, ImageGradients, ShapeStream


def small(**keywords: object) -> GSCNN:
    torch.manual_seed(0)
    return GSCNN(**{"in_channels": 2, "num_classes": 3, "backbone": "resnet18", "width": 32} | keywords)


@pytest.fixture(scope="module")
def network() -> GSCNN:
    """In float64 and eval mode, with figures of its own in its batch norm."""
    network = small().double()
    with torch.no_grad():
        network(draw(2, 2, 64, 48))
    return network.eval()


@pytest.mark.parametrize("size", [(1, 1), (31, 17), (70, 33)], ids=str)
def test_logits_and_edges_have_the_size_of_the_image(network: GSCNN, size: tuple[int, int]) -> None:
    outputs = network.outputs(draw(2, 2, *size))
    assert {name: values.shape for name, values in outputs.items()} == {"logits": (2, 3, *size), "edges": (2, 1, *size)}
    assert all(values.isfinite().all() for values in outputs.values())
    assert torch.equal(network(draw(2, 2, *size)), outputs["logits"])


def test_every_parameter_gets_a_gradient_from_the_logits() -> None:
    network = small()
    for norm in network.backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.ones_(norm.weight)  # some start at zero, and what is before them gets its gradient a step later
    network(draw(2, 2, 40, 48).float()).square().mean().backward()
    without = [name for name, own in network.named_parameters() if own.grad is None or not own.grad.any()]
    assert without == []


def test_edges_train_the_shape_stream_and_the_encoder() -> None:
    network = small()
    network.outputs(draw(2, 2, 40, 48).float())["edges"].square().mean().backward()
    assert all(own.grad is not None and own.grad.any() for own in network.shapes.parameters())
    assert any(own.grad is not None and own.grad.any() for own in network.encoder()[0].parameters())
    assert all(own.grad is None for own in network.decoder.parameters())


def test_the_edges_reach_the_logits(network: GSCNN) -> None:
    """Shifting the boundaries alone changes the classes."""
    images = draw(1, 2, 32, 32)
    before = network(images)
    bias = network.shapes.head.bias
    assert bias is not None
    with torch.no_grad():
        bias += 1
        after = network.outputs(images)
        bias -= 1
    assert (after["logits"] - before).abs().max() > 1e-6
    torch.testing.assert_close(after["edges"] - 1, network.outputs(images)["edges"])


def test_the_published_form() -> None:
    """ResNet-50 at an output stride of 8; rates of 12, 24, 36; channels of 64, 32, 16, 8 between the gates."""
    with torch.device("meta"):
        network = GSCNN()
        shapes = {name: values.shape for name, values in network.outputs(torch.zeros(1, 3, 65, 70)).items()}
    assert shapes == {"logits": (1, 19, 65, 70), "edges": (1, 1, 65, 70)}
    assert network.stride == 8
    dilations = [part[0].dilation[0] for part in network.pyramid.branches]
    assert dilations == [1, 12, 24, 36]
    assert [gate.convolution.in_channels for gate in network.shapes.gates] == [64, 32, 16]
    assert [layer.in_channels for layer in network.shapes.reduce] == [512, 1024, 2048]
    assert network.shapes.head.in_channels == 8
    assert network.narrow[0].out_channels == 48


def test_an_output_stride_of_16_halves_the_rates() -> None:
    with torch.device("meta"):
        network = GSCNN(backbone="resnet18", output_stride=16)
    assert network.stride == 16
    assert [part[0].dilation[0] for part in network.pyramid.branches] == [1, 6, 12, 18]


def test_without_the_mean_over_the_image_it_is_exact() -> None:
    assert not small().geometry.exact
    geometry = small(image_branch=False).geometry
    assert geometry.exact
    assert geometry.stride == 8


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"width": 0}, "model.width: must be at least 1, not 0"),
        ({"num_classes": 0}, "model.num_classes: must be at least 1, not 0"),
        ({"output_stride": 32}, "model.output_stride: must be 8 or 16 pixels, not 32"),
    ],
)
def test_settings_that_make_no_sense(keywords: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**keywords)


def test_a_backbone_with_too_few_features_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shallow(nn.Module):
        strides = (2, 4)

    monkeypatch.setattr("pixelwise.models.segmentation.gscnn.make_scaled_backbone", lambda *_, **__: Shallow())
    with pytest.raises(
        SettingError, match=r"model.backbone: shallow has 2 feature map\(s\), but the shape stream needs three"
    ):
        GSCNN(backbone="shallow")


def test_other_images_are_refused() -> None:
    with pytest.raises(ModelError, match="takes N x 2 x H x W images, but got 1 x 3 x 9 x 9"):
        small()(torch.zeros(1, 3, 9, 9))


# Its parts


@settings(max_examples=20, deadline=None)
@given(channels=st.integers(1, 4), height=st.integers(1, 9), width=st.integers(1, 9))
def test_gradients_are_those_of_scipy(channels: int, height: int, width: int) -> None:
    images = draw(2, channels, height, width)
    expected = torch.empty(2, 1, height, width, dtype=torch.float64)
    for image, result in zip(images.numpy(), expected, strict=True):
        across, down = (ndimage.sobel(image.mean(axis=0), axis=axis, mode="nearest") / 8 for axis in (1, 0))
        result[0] = torch.from_numpy(np.hypot(across, down))
    torch.testing.assert_close(ImageGradients().double()(images), expected, rtol=0, atol=2e-6)


def test_gradients_of_a_flat_image_can_be_trained_through() -> None:
    images = torch.ones(1, 1, 4, 4, requires_grad=True)
    ImageGradients()(images).sum().backward()
    assert images.grad is not None
    assert torch.equal(images.grad, torch.zeros_like(images))


def test_the_shape_stream_is_that_of_the_paper() -> None:
    """Equations 1 and 2 of the paper three times, written out on the stream's own weights."""
    torch.manual_seed(0)
    stream = ShapeStream([5, 6, 7, 8], [2, 4, 8, 8], width=128, norm="none").double()
    features = [draw(2, 5, 16, 24), draw(2, 6, 8, 12), draw(2, 7, 4, 6), draw(2, 8, 4, 6)]
    with torch.no_grad():
        shapes = stream.enter(features[0])
        for level, factor in enumerate((2, 4, 4)):
            gate, block = stream.gates[level], stream.blocks[level]
            assert isinstance(gate, GatedConvolution)
            assert isinstance(block, ResidualBlock)
            regular = torch.einsum("nchw,c->nhw", features[level + 1], stream.reduce[level].weight[0, :, 0, 0])
            shapes = block(shapes)
            joined = torch.cat([shapes, enlarge(regular[:, None], factor)], dim=1)
            attention = F.conv2d(joined, gate.gate[0].weight, gate.gate[0].bias).sigmoid()
            shapes = F.conv2d(shapes * attention + shapes, gate.convolution.weight, gate.convolution.bias)
        expected = F.conv2d(shapes, stream.head.weight, stream.head.bias)
        result = stream(features)
    assert result.shape == (2, 1, 16, 24)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)
    assert [tuple(gate.convolution.weight.shape[:2]) for gate in stream.gates] == [(16, 32), (8, 16), (4, 8)]
