"""Traced geometries against answers worked out by hand, the U-Net's own derivation, and probing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelwise.core.errors import ModelError
from pixelwise.geometry.reach import Geometry, Reach
from pixelwise.geometry.tracing import GROUP_NORM, NotLocalError, described_by, trace_geometry
from pixelwise.layers import (
    WHOLE_IMAGE,
    AtrousSpatialPyramidPooling,
    MaxPoolPositions,
    MaxUnpool,
    PyramidPooling,
    bed_of_nails,
    enlarge,
)
from pixelwise.models import UNet


class Of(nn.Module):
    """A module made of a function of images."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(images)


def conv(kernel: Any = 3, **keywords: Any) -> nn.Conv2d:
    return nn.Conv2d(2, 2, kernel, **keywords)


def traced(network: nn.Module | Callable[[Tensor], Any], stride: int = 1) -> Geometry:
    return trace_geometry(network if isinstance(network, nn.Module) else Of(network), 2, stride)


def derived_by_hand(stem: int, depth: int) -> Geometry:
    """The operators of a padded U-Net, one after the other."""
    reach, skips = Reach.of_input(stem * 2**depth).pooling(stem), []
    for _ in range(depth):
        reach = reach.convolution(3).convolution(3)
        skips.append(reach)
        reach = reach.pooling(2)
    reach = reach.convolution(3).convolution(3)
    for skip in reversed(skips):
        reach = reach.upsampling(2).concatenation(skip).convolution(3).convolution(3)
    return reach.bilinear(stem).geometry()


@pytest.mark.parametrize("depth", [1, 2, 4, 6])
@pytest.mark.parametrize("stem", [1, 2, 4])
@pytest.mark.parametrize("form", [{}, {"norm": "group"}, {"residual": True}, {"norm": "none"}], ids=str)
def test_it_finds_what_is_derived_by_hand_for_the_unet(depth: int, stem: int, form: dict[str, Any]) -> None:
    found = trace_geometry(UNet(3, 2, width=1, depth=depth, stem=stem, **form), 3, stem * 2**depth)
    reason = GROUP_NORM if form == {"norm": "group"} else ""
    assert found == replace(derived_by_hand(stem, depth), exact=not reason, reason=reason)


# What each operator sees

ONES = torch.ones(2, 2)


def swapped(images: Tensor) -> Tensor:
    """Dense layers over the channels, which stand last, as in ConvNeXt."""
    last = F.layer_norm(images.permute(0, 2, 3, 1), (2,))
    return F.linear(last, torch.ones(5, 2)).transpose(-1, -2).transpose(1, 2)


def folded_by_hand(images: Tensor) -> Tensor:
    """Cells of 2 x 2 and back."""
    height, width = images.shape[-2:]
    cells = images.view(1, 2, height // 2, 2, width // 2, 2).amax(dim=(3, 5), keepdim=True)
    return cells.expand(1, 2, height // 2, 2, width // 2, 2).reshape(1, 2, height, width)


def shortcut_of_zeros(images: Tensor) -> Tensor:
    more = torch.cat([images[:, :1], images.new_zeros(1, 3, *images.shape[-2:])], dim=1)
    return more + F.avg_pool2d(more, 3, stride=1, padding=1)


def gated_by_the_mean_channel(images: Tensor) -> Tensor:
    return images * images.mean(dim=1, keepdim=True).sigmoid() + images.amax(dim=1)[:, None]


def in_place(images: Tensor) -> Tensor:
    features = F.avg_pool2d(images, 3, stride=1, padding=1)
    features.relu_().add_(F.avg_pool2d(images, 5, stride=1, padding=2))
    return features.clone()


def split_and_stacked(images: Tensor) -> Tensor:
    first, second = images.chunk(2, dim=1)
    return torch.stack([F.max_pool2d(first, 3, 1, 1), second], dim=2).flatten(1, 2).repeat(1, 2, 1, 1)


def nearest(features: Tensor, factor: int) -> Tensor:
    return enlarge(features, factor, "nearest")


EXACT: dict[str, tuple[nn.Module | Callable[[Tensor], Any], tuple[int, int, int]]] = {
    "identity": (nn.Identity(), (1, 0, 0)),
    "constant": (torch.zeros_like, (1, 0, 0)),
    "3 x 3": (conv(padding=1), (1, 1, 1)),
    "dilated": (conv(padding="same", dilation=4), (1, 4, 4)),
    "1 x 7": (conv((1, 7), padding=(0, 3)), (1, 3, 3)),
    "even kernel": (nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), conv((2, 4))), (1, 2, 2)),
    "padded too much, then cropped": (lambda x: F.avg_pool2d(F.pad(x, (9,) * 4), 5, 1)[..., 7:-7, 7:-7], (1, 2, 2)),
    "mirrored border": (lambda x: F.avg_pool2d(F.pad(x, (3, 3, 3, 3), mode="reflect"), 7, 1), (1, 3, 3)),
    "strided, then repeated": (nn.Sequential(conv(stride=2, padding=1), nn.Upsample(scale_factor=2)), (2, 2, 1)),
    "every second pixel": (lambda x: F.interpolate(x[..., 1::2, 1::2], scale_factor=2), (2, 1, 0)),
    "shrunk by choice": (lambda x: F.interpolate(F.interpolate(x, scale_factor=0.25), scale_factor=4), (4, 3, 0)),
    "shrunk linearly": (lambda x: nearest(F.interpolate(x, scale_factor=0.25, mode="bilinear"), 4), (4, 2, 0)),
    "transposed": (nn.Sequential(nn.MaxPool2d(2), nn.ConvTranspose2d(2, 2, 4, 2, 1)), (2, 2, 2)),
    "transposed with gaps": (nn.Sequential(nn.AvgPool2d(2), nn.ConvTranspose2d(2, 2, 1, 2, 0, 1)), (2, 1, 0)),
    "bilinear": (nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")), (2, 2, 2)),
    "bicubic": (nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bicubic")), (2, 4, 4)),
    "unchanged size": (nn.Upsample(scale_factor=1, mode="bilinear", align_corners=True), (1, 0, 0)),
    "pixel shuffle": (lambda x: F.pixel_shuffle(F.avg_pool2d(F.pixel_unshuffle(x, 2), 3, 1, 1), 2), (2, 3, 2)),
    "folded by hand": (folded_by_hand, (2, 1, 0)),
    "repeat_interleave": (lambda x: F.max_pool2d(x, 2).repeat_interleave(2, -1).repeat_interleave(2, -2), (2, 1, 0)),
    "channels last": (swapped, (1, 0, 0)),
    "zeros joined": (shortcut_of_zeros, (1, 1, 1)),
    "channels reduced": (gated_by_the_mean_channel, (1, 0, 0)),
    "in place": (in_place, (1, 2, 2)),
    "split and stacked": (split_and_stacked, (1, 1, 1)),
    "activations": (lambda x: F.hardswish(F.gelu(F.prelu(x, torch.ones(2)))).clamp(0, 1).where(x > 0, 0.0), (1, 0, 0)),
    "softmax of channels": (lambda x: F.softmax(x, dim=1).cumsum(1).flip(1).roll(1, 1), (1, 0, 0)),
    "norm across channels": (nn.LocalResponseNorm(2), (1, 0, 0)),
    "norms": (nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(), conv(1)), (1, 0, 0)),
    "bed of nails": (lambda x: F.avg_pool2d(bed_of_nails(F.avg_pool2d(x, 2), 2), 3, 1, 1), (2, 2, 2)),
}  # fmt: skip


@pytest.mark.parametrize(("network", "figures"), EXACT.values(), ids=EXACT)
def test_local_operators(network: Any, figures: tuple[int, int, int]) -> None:
    assert traced(network, figures[0]) == Geometry(*figures)


def circular(images: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="circular"), 3, 1)


def attention(images: Tensor) -> Tensor:
    pixels = images.flatten(2).transpose(1, 2)
    return images + F.scaled_dot_product_attention(pixels, pixels, pixels).transpose(1, 2).view_as(images)


def with_coordinates(images: Tensor) -> Tensor:
    return images + torch.linspace(0, 1, images.shape[-1], device=images.device)


def set_by_hand(images: Tensor) -> Tensor:
    result = torch.zeros_like(images)
    result[..., ::2, ::2] = images[..., ::2, ::2]
    return result


def side_by_side(images: Tensor) -> Tensor:
    return torch.cat([images[..., 1:], images[..., :1]], dim=-1)


def unlike_resolutions(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    return images + F.pad(F.avg_pool2d(images, 2), (0, width // 2, 0, height // 2))


def corners_aligned(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=True)[..., ::2, ::2]


def one_and_a_half(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=1.5)[..., : images.shape[-2], : images.shape[-1]]


def along_a_line(images: Tensor) -> Tensor:
    return images + F.conv1d(images.flatten(2), torch.ones(2, 2, 3), padding=1).view_as(images)


class Positions(nn.Module):
    """A learnt value for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.zeros(1, 2, 17, 19))

    def forward(self, images: Tensor) -> Tensor:
        return F.max_pool2d(images + self.places, 3, 1, 1)


def beside(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function beside a 3 x 3 pooling."""
    return lambda images: F.avg_pool2d(images, 3, 1, 1) + function(images)


GLOBAL: dict[str, tuple[Any, int, str]] = {  # the network, its local halo, and a part of the reason
    "mean": (beside(lambda x: x.mean((-2, -1), keepdim=True)), 1, WHOLE_IMAGE),
    "maximum": (beside(lambda x: x.amax(3).amax(2)[..., None, None]), 1, WHOLE_IMAGE),
    "deviation": (beside(lambda x: x / x.std()), 1, WHOLE_IMAGE),
    "adaptive": (beside(lambda x: F.interpolate(F.adaptive_max_pool2d(x, 2), x.shape[-2:])), 1, WHOLE_IMAGE),
    "resized grid": (beside(lambda x: enlarge(F.adaptive_avg_pool2d(x, 1), 2)[..., :1, :1]), 1, WHOLE_IMAGE),
    "dense of the mean": (beside(lambda x: F.linear(x.mean((2, 3)), ONES)[..., None, None]), 1, WHOLE_IMAGE),
    "group norm": (nn.Sequential(nn.GroupNorm(2, 2), conv(padding=1)), 1, GROUP_NORM),
    "instance norm": (nn.Sequential(nn.InstanceNorm2d(2), conv(padding=1)), 1, "statistics from the image"),
    "layer norm": (lambda x: F.layer_norm(x, x.shape[1:]), 0, "native_layer_norm averages over the image"),
    "softmax of a row": (lambda x: x * x.softmax(-1), 0, "_softmax mixes all rows or columns"),
    "attention": (attention, 0, "as attention does"),
    "product of matrices": (lambda x: x + x @ x.mT @ x, 0, "bmm multiplies matrices made of the image"),
    "dense of a row": (lambda x: x + F.linear(x, torch.ones(x.shape[-1], x.shape[-1])), 0, "linear mixes all"),
    "first row": (beside(lambda x: x[..., :1, :].select(2, 0)[:, :, None]), 1, "select takes single rows"),
    "flipped": (lambda x: x.flip(-1), 0, "flip takes rows or columns from other positions"),
    "rolled as a line": (lambda x: x.roll(1), 0, "roll treats the tensor as one row of values"),
    "turned": (lambda x: F.pad(x[..., :17].mT + x[..., :17], (0, 2)), 0, "add combines rows or columns with"),
    "turned and pooled": (lambda x: F.max_pool2d(x.mT, 3, 1, 1).mT, 0, "takes other axes of a tensor for rows"),
    "circular": (circular, 0, "copy writes into a part of a map"),
    "set by hand": (set_by_hand, 0, "copy writes into a part of a map"),
    "coordinates": (with_coordinates, 0, "add takes values that depend on the position"),
    "learnt places": (Positions(), 1, "add takes values that depend on the position"),
    "side by side": (side_by_side, 0, "cat puts maps side by side"),
    "repeated": (lambda x: x.repeat(1, 1, 2, 1)[..., : x.shape[-2], :], 0, "repeat repeats the whole image"),
    "unknown": (beside(lambda x: F.max_unpool2d(*F.max_pool2d(x, 1, return_indices=True), 1)), 1, "max_unpool2d is"),
    "corners aligned": (corners_aligned, 0, "upsample_bilinear2d with align_corners=True from 17 to 34 cells"),
    "odd ratio": (beside(one_and_a_half), 1, "upsample_nearest2d from 17 to 25 cells: the ratio is not a whole number"),
    "a line of pixels": (along_a_line, 0, "view puts rows or columns into one axis"),
}  # fmt: skip


@pytest.mark.parametrize(("network", "halo", "reason"), GLOBAL.values(), ids=GLOBAL)
def test_operators_that_are_not_local_are_named(network: Any, halo: int, reason: str) -> None:
    found = traced(network)
    assert (found.exact, found.halo, found.margin) == (False, halo, halo)
    assert reason in found.reason


def test_what_is_not_used_does_not_count() -> None:
    assert traced(lambda x: (x.mean(), x * 2)[1]) == Geometry(1, 0, 0)


def test_maps_of_different_resolutions_are_not_joined() -> None:
    found = traced(unlike_resolutions, stride=2)
    assert "add joins maps of different resolutions, 2 and 1 cells for 2 pixels" in found.reason


def test_a_step_that_does_not_divide_the_stride_is_a_reason() -> None:
    found = trace_geometry(nn.Sequential(nn.MaxPool2d(3, padding=1), nn.Upsample(scale_factor=3)), 1, 6)
    assert found.exact
    found = traced(lambda x: F.interpolate(F.max_pool2d(x, 3, ceil_mode=True), x.shape[-2:]) + x, stride=2)
    assert not found.exact
    assert "a step of 3 does not divide" in found.reason


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (AtrousSpatialPyramidPooling(2, 4, rates=(2, 5)), WHOLE_IMAGE),
        (AtrousSpatialPyramidPooling(2, 4, rates=(2, 5), image_branch=False), ""),
        (PyramidPooling(4), WHOLE_IMAGE),
    ],
)
def test_modules_of_context_say_the_same_of_themselves(module: Any, reason: str) -> None:
    channels = module.grids[0][1][0].in_channels if isinstance(module, PyramidPooling) else 2
    found = trace_geometry(module, channels, 1)
    assert found.reason == module.reason == reason
    assert found.halo == (0 if isinstance(module, PyramidPooling) else 5)


# The run itself


def test_the_network_is_left_as_it_is() -> None:
    network = nn.Sequential(conv(padding=1), nn.BatchNorm2d(2), nn.Dropout()).train()
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    parameters = list(network.parameters())
    trace_geometry(network, 2, 1)
    assert [module.training for module in network.modules()] == [True, True, False, True]
    assert all(one is other for one, other in zip(network.parameters(), parameters, strict=True))
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_networks_without_values_and_of_other_types_are_traced() -> None:
    with torch.device("meta"):
        assert trace_geometry(conv(padding=1), 2, 1) == Geometry(1, 1, 1)
    assert trace_geometry(conv(padding=1).double(), 2, 1) == Geometry(1, 1, 1)
    assert trace_geometry(conv(padding=1).bfloat16(), 2, 1) == Geometry(1, 1, 1)


def test_shared_weights_are_traced() -> None:
    layer = conv(padding=1)
    assert trace_geometry(nn.Sequential(layer, layer), 2, 1) == Geometry(1, 2, 2)


def broken(images: Tensor) -> Tensor:
    raise ValueError("no such luck")


def test_bad_networks() -> None:
    with pytest.raises(ModelError, match=r"^Of: raised ValueError for an image of 2 x 17 x 19 without values: no such"):
        traced(broken)
    with pytest.raises(ModelError, match=r"^Of: raised .* for an image of 2 x 17 x 19 without values"):
        traced(lambda x: x if x.sum() > 0 else -x)
    with pytest.raises(
        ModelError, match=r"^MaxPool2d: was given images of 1 x 2 x 34 x 38 and returned 1 x 2 x 17 x 19"
    ):
        traced(nn.MaxPool2d(2), 2)
    with pytest.raises(ModelError, match=r"^Of: was given images of 1 x 2 x 17 x 19 and returned a tuple: a network"):
        traced(lambda x: (x, x))
    with pytest.raises(ModelError, match=r"this network takes N x 3 x H x W images"):
        trace_geometry(UNet(3, 2, width=2, depth=1), 1, 2)
    with pytest.raises(ModelError, match=r"^Of: its logits have 1 and 1 cells for 2 pixels of the image: enlarge them"):
        traced(lambda x: F.pad(F.max_pool2d(x, 2), (0, x.shape[-1] // 2, 0, x.shape[-2] // 2)), 2)


def test_modes_are_put_back_after_an_error() -> None:
    network = Of(broken).train()
    with pytest.raises(ModelError):
        traced(network)
    assert network.training
    assert traced(lambda x: enlarge(x, 1)) == Geometry(1, 0, 0)  # no trace is left behind


# Reaches that are told


@described_by(lambda reach, other, factor=1: reach.convolution(2 * factor + 1).concatenation(other))
def told(features: Tensor, other: Tensor, factor: int = 1) -> Tensor:
    return features.mean() + other


def test_a_told_reach_takes_the_place_of_the_inside() -> None:
    assert traced(lambda x: told(x, x)) == Geometry(1, 1, 1)
    assert traced(lambda x: told(x, other=F.max_pool2d(x, 5, 1, 2), factor=4)) == Geometry(1, 4, 4)
    assert traced(lambda x: told(torch.zeros_like(x), x, 3)) == Geometry(1, 3, 3)
    assert traced(lambda x: told(torch.zeros_like(x), torch.zeros_like(x))) == Geometry(1, 0, 0)
    assert traced(lambda x: told(x.mean((2, 3), keepdim=True), x)).reason == WHOLE_IMAGE
    assert "told takes other axes" in traced(lambda x: told(x.mT, x.mT).mT).reason


def all_of_it(*arguments: object) -> Reach:
    raise NotLocalError("it sees all")


def test_a_rule_may_say_that_nothing_is_local() -> None:
    """The image's own pixels are kept, where the result still has them."""
    same = described_by(all_of_it)(lambda features: features * 2)
    found = traced(lambda x: same(F.max_pool2d(x, 3, 1, 1)))
    assert found == Geometry(1, 1, 1, exact=False, reason="it sees all")


def test_without_a_trace_a_told_function_is_itself() -> None:
    values = torch.arange(4.0).view(1, 1, 2, 2)
    torch.testing.assert_close(told(values, values), values + 1.5)
    assert told.__name__ == "told"


@pytest.mark.parametrize(("mode", "figures"), [("nearest", (2, 0)), ("bilinear", (3, 3)), ("bicubic", (6, 6))])
def test_enlarge_by_three(mode: str, figures: tuple[int, int]) -> None:
    assert traced(lambda x: enlarge(F.avg_pool2d(x, 3), 3, mode), 3) == Geometry(3, *figures)


class PoolUnpool(nn.Module):
    """SegNet's way down and up, with a convolution between."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.down, self.up = MaxPoolPositions(2), MaxUnpool(2)
        self.middle = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        pooled, positions = self.down(images)
        return self.up(self.middle(pooled), positions, *images.shape[-2:])


def test_unpooling_sees_what_was_pooled_and_its_values() -> None:
    assert traced(PoolUnpool(), 2) == Geometry(2, 3, 2)


@pytest.mark.parametrize("strict", [True, False])
def test_told_functions_are_exported_as_they_are(strict: bool) -> None:
    network, images = PoolUnpool().eval(), torch.randn(1, 2, 8, 6)
    exported = torch.export.export(network, (images,), strict=strict).module()
    torch.testing.assert_close(exported(images), network(images))


def test_rows_and_columns_are_told_apart() -> None:
    seen: list[Reach] = []

    @described_by(lambda reach: seen.append(reach) or reach)
    def look(features: Tensor) -> Tensor:
        return features

    assert traced(lambda x: look(F.avg_pool2d(x, (1, 5), 1, (0, 2)))) == Geometry(1, 2, 2)
    assert seen == [Reach(1, ((0, 0),)), Reach(1, ((-2, 2),))]
