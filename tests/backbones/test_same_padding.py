"""TensorFlow's padding as a constant: on the grid it is what timm computes from the size of each image."""

import copy
import itertools

import pytest
import timm
import torch
from timm.layers import padding
from timm.layers.cond_conv2d import CondConv2d
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from timm.layers.std_conv import ScaledStdConv2dSame, StdConv2dSame
from torch import Tensor, nn
from torch.export import Dim

from pixelwise.backbones.encoders import Encoder
from pixelwise.backbones.same_padding import GridConv2d, pad_on_grid
from pixelwise.models import UNet


@pytest.fixture
def no_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing asks any more how an image of some size is to be padded."""

    def ask(*arguments: object) -> int:
        raise AssertionError(f"padding follows from the size: {arguments}")

    monkeypatch.setattr(padding, "get_same_padding", ask)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


KERNELS = [1, 2, 3, 4, 5, (3, 2)]
STRIDES = [1, 2, 3, (2, 1)]


@pytest.mark.parametrize("kind", [Conv2dSame, StdConv2dSame, ScaledStdConv2dSame])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_convolution(kind: type[nn.Conv2d], kernel: int, dilation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for stride, bias in itertools.product(STRIDES, (False, True)):
        theirs = nn.Sequential(kind(4, 6, kernel, stride=stride, dilation=dilation, groups=2, bias=bias)).double()
        ours = copy.deepcopy(theirs)
        pad_on_grid(ours)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for height, width in ((6, 12), (18, 6)):
            images = draw(2, 4, height, width)
            expected = theirs(images)
            with monkeypatch.context() as patch:
                patch.setattr(padding, "get_same_padding", None)  # so that a call fails
                torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [MaxPool2dSame, AvgPool2dSame])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_pooling(kind: type[nn.Module], kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dilations = [{}, {"dilation": 2}] if kind is MaxPool2dSame else [{}, {"count_include_pad": False}]
    for stride, more in itertools.product(STRIDES, dilations):
        theirs = nn.Sequential(kind(kernel, stride, **more))
        ours = copy.deepcopy(theirs)
        pad_on_grid(ours)
        images = draw(2, 3, 12, 18) - 5  # below 0, so that a maximum with zeros around it would show
        expected = theirs(images)
        with monkeypatch.context() as patch:
            patch.setattr(padding, "get_same_padding", None)
            torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_whose_weights_depend_on_the_image(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = CondConv2d(4, 6, 3, stride=stride, padding="same").double()
    holder = nn.ModuleDict({"layer": copy.deepcopy(theirs)})
    pad_on_grid(holder)
    images, weights = draw(2, 4, 8, 12), draw(2, 4).sigmoid()
    expected = theirs(images, weights)
    monkeypatch.setattr(padding, "get_same_padding", None)
    torch.testing.assert_close(holder["layer"](images, weights), expected, rtol=0, atol=1e-12)


ENCODERS = [
    ("tf_efficientnet_lite0", None),
    ("tf_efficientnet_b0", None),
    ("tf_efficientnetv2_b0", None),
    ("tf_mobilenetv3_small_100", None),
    ("tf_mobilenetv3_small_100", 8),
    ("tf_efficientnet_lite0", 16),
    ("tf_mixnet_s", None),
    ("resnet26d", 8),
]


@pytest.mark.parametrize(("name", "output_stride"), ENCODERS)
def test_an_encoder_gives_timms_features(name: str, output_stride: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    options = {} if output_stride is None else {"output_stride": output_stride}
    theirs = timm.create_model(name, features_only=True, pretrained=False, **options).double().eval()
    ours = Encoder(name, output_stride=output_stride).double().eval()
    ours.network.load_state_dict(theirs.state_dict())
    for shape in ((64, 96), (32, 32)):
        images = draw(1, 3, *shape)
        expected = theirs(images)
        with monkeypatch.context() as patch:
            patch.setattr(padding, "get_same_padding", None)
            features = ours(images)
        for feature, other in zip(features, expected, strict=True):
            torch.testing.assert_close(feature, other, rtol=0, atol=1e-9 * other.detach().abs().max().item())


@pytest.mark.usefixtures("no_sizes")
@pytest.mark.parametrize("name", ["dm_nfnet_f0", "tf_efficientnet_cc_b0_4e", "tf_efficientnet_el"])
def test_no_padding_of_a_large_encoder_follows_from_the_size(name: str) -> None:
    with torch.device("meta"):
        backbone = Encoder(name).eval()
    sizes = [feature.shape[-2:] for feature in backbone(torch.zeros(1, 3, 64, 96, device="meta"))]
    assert sizes == [(64 // stride, 96 // stride) for stride in backbone.strides]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_mobilenetv3_small_100"])
def test_it_can_be_exported_for_all_sizes(name: str) -> None:
    backbone = Encoder(name, depth=3).eval()
    stride = backbone.stride
    axes = {2: stride * Dim("rows", min=2, max=64), 3: stride * Dim("columns", min=2, max=64)}
    program = torch.export.export(backbone, (torch.randn(1, 3, 3 * stride, 2 * stride),), dynamic_shapes=(axes,))
    images = torch.randn(1, 3, 4 * stride, 5 * stride)
    for exported, eager in zip(program.module()(images), backbone(images), strict=True):
        torch.testing.assert_close(exported, eager, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("depth", "stride", "margin"), [(2, 8, 49), (3, 16, 201), (4, 32, 489)])
def test_the_geometry_of_a_unet_on_efficientnet_lite(depth: int, stride: int, margin: int) -> None:
    with torch.device("meta"):
        geometry = UNet(3, 2, width=4, backbone="tf_efficientnet_lite0", depth=depth).geometry
    assert (geometry.exact, geometry.stride, geometry.margin) == (True, stride, margin)


@pytest.mark.parametrize("name", ["tf_efficientnet_b0", "tf_mobilenetv3_small_100"])
def test_squeeze_and_excite_is_said_to_look_at_the_whole_image(name: str) -> None:
    with torch.device("meta"):
        geometry = UNet(3, 2, width=4, backbone=name).geometry
    assert not geometry.exact
    assert geometry.reason == "pooling over the whole image: an output pixel depends on every input pixel"


@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), (5, 6)])
def test_a_training_pads_by_a_longer_kernel_without_a_copy(kernel: int, groups: int) -> None:
    torch.manual_seed(0)
    layer = Conv2dSame(6, 6, kernel, stride=2, groups=groups)
    images, mended = torch.randn(2, 6, 8, 12), GridConv2d(layer)
    slopes = []
    for network in (layer, mended.train(), mended.eval()):
        layer.zero_grad()
        outputs = network(images)
        torch.testing.assert_close(outputs, layer(images))
        outputs.square().sum().backward()
        slopes.append([parameter.grad.clone() for parameter in layer.parameters()])
    for found in slopes[1:]:
        torch.testing.assert_close(found, slopes[0])
