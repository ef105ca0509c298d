"""What every backbone promises: sizes, strides, channels, weights that a seed determines, and export."""

from itertools import pairwise

import pytest
import torch
from torch.export import Dim

from pixelwise.backbones import BACKBONES, Backbone, make_backbone
from pixelwise.core.errors import ModelError, SettingError

SMALL = ("lenet", "alexnet", "alexnet_paper", "vgg16")  # at a reduced width
QUICK = (*SMALL, "lcnet_035", "test_resnet")
SIZES = [(1, 1), (31, 17), (65, 40), (64, 32)]


def build(name: str, in_channels: int = 3, seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return make_backbone(name, in_channels, width=4 if name in SMALL else None).eval()


def shapes(backbone: Backbone, height: int, width: int) -> list[tuple[int, ...]]:
    """As promised, where the strides double."""
    assert all(coarser == 2 * finer for finer, coarser in pairwise(backbone.strides))
    assert backbone.stride == backbone.strides[-1]
    return [
        (2, channels, -(-height // stride), -(-width // stride))
        for stride, channels in zip(backbone.strides, backbone.channels, strict=True)
    ]


@pytest.mark.parametrize("in_channels", [1, 3, 5])
@pytest.mark.parametrize("name", QUICK)
def test_features_of_any_size(name: str, in_channels: int) -> None:
    backbone = build(name, in_channels)
    for height, width in SIZES:
        with torch.no_grad():
            features = backbone(torch.randn(2, in_channels, height, width))
        assert [tuple(feature.shape) for feature in features] == shapes(backbone, height, width)
        assert all(feature.isfinite().all() for feature in features)


@pytest.mark.parametrize("name", sorted({*BACKBONES, "resnet101", "efficientnet_lite0", "seresnet18"} - {*QUICK}))
def test_features_of_large_backbones_on_no_device(name: str) -> None:
    with torch.device("meta"):
        backbone = build(name, in_channels=1)
    for height, width in ((1, 1), (65, 40)):
        features = backbone(torch.zeros(2, 1, height, width, device="meta"))
        assert [tuple(feature.shape) for feature in features] == shapes(backbone, height, width)


@pytest.mark.parametrize("name", [*QUICK, "googlenet", "mobilenetv2_100", "darknet53"])
def test_depth_leaves_out_what_follows(name: str) -> None:
    """The same features up to there, and no layer that none of them needs."""
    images = torch.randn(2, 3, 64, 64)
    whole = build(name)
    depth = min(2, len(whole.strides) - 1)
    part = make_backbone(name, width=4 if name in SMALL else None, depth=depth).eval()
    part.load_state_dict({key: value for key, value in whole.state_dict().items() if key in part.state_dict()})
    assert (part.strides, part.channels) == (whole.strides[: depth + 1], whole.channels[: depth + 1])
    features = part(images)
    for feature, other in zip(features, whole(images)[: depth + 1], strict=True):
        torch.testing.assert_close(feature, other, rtol=1e-4, atol=1e-4)
    features[-1].sum().backward()
    assert [key for key, value in part.named_parameters() if value.grad is None] == []
    count = len(whole.strides) - 1
    message = rf"^model\.depth: the features of {name}, .* halve {count} times, not {count + 1}: use 1 to {count},"
    with pytest.raises(SettingError, match=message):
        make_backbone(name, width=4 if name in SMALL else None, depth=count + 1)


@pytest.mark.parametrize("name", QUICK)
def test_the_seed_determines_the_weights(name: str) -> None:
    first, second, other = (build(name, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", [*QUICK, "googlenet"])
def test_every_weight_gets_a_gradient(name: str) -> None:
    backbone = build(name).train()
    sum(feature.square().mean() for feature in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert [key for key, parameter in backbone.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", QUICK)
def test_an_image_alone_gives_what_it_gives_in_a_batch(name: str) -> None:
    backbone, images = build(name).double(), torch.randn(2, 3, 40, 50, dtype=torch.double)
    with torch.no_grad():
        for together, alone in zip(backbone(images), backbone(images[1:]), strict=True):
            torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["vgg16", "test_resnet"])
def test_padding_is_the_image_continued_by_its_last_pixels(name: str) -> None:
    backbone, images = build(name), torch.randn(1, 3, 33, 50)
    stride = backbone.stride
    bottom, right = -33 % stride, -50 % stride
    padded = torch.nn.functional.pad(images, (0, right, 0, bottom), mode="replicate")
    for feature, larger in zip(backbone(images), backbone(padded), strict=True):
        height, width = feature.shape[-2:]
        torch.testing.assert_close(feature, larger[..., :height, :width], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["lenet", "test_resnet"])
def test_export_with_sizes_that_vary(name: str) -> None:
    backbone = build(name)
    rows, columns = Dim("rows", min=2, max=64), Dim("columns", min=2, max=64)
    axes = {2: backbone.stride * rows, 3: backbone.stride * columns}
    images = torch.randn(1, 3, 3 * backbone.stride, 2 * backbone.stride)
    program = torch.export.export(backbone, (images,), dynamic_shapes=(axes,))
    images = torch.randn(1, 3, 4 * backbone.stride, 5 * backbone.stride)
    for exported, eager in zip(program.module()(images), backbone(images), strict=True):
        torch.testing.assert_close(exported, eager, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "found"), [((1, 3, 8, 8), "1 x 3 x 8 x 8"), ((1, 1, 0, 8), "1 x 1 x 0 x 8"), ((8, 8), "8 x 8")]
)
def test_images_that_do_not_fit(shape: tuple[int, ...], found: str) -> None:
    message = (
        rf"^the backbone vgg16 takes N x 1 x H x W images, but got {found}: convert them to 1 channel\(s\), or "
        r"build it with another in_channels\.$"
    )
    with pytest.raises(ModelError, match=message):
        build("vgg16", in_channels=1)(torch.zeros(*shape))
