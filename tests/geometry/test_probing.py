"""Probed geometries against answers worked out by hand, a pixel-by-pixel proof, derived reaches and the U-Net's own."""

import copy
import math
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pixelwise.core.errors import ModelError, SettingError
from pixelwise.geometry.probing import Probed, probe_geometry
from pixelwise.geometry.reach import Geometry, Reach
from pixelwise.models import UNet


class Of(nn.Module):
    """A module made of a function of images."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(images)


def conv(kernel: int = 3, **keywords: Any) -> nn.Conv2d:
    """One channel in, one out, weights of its own."""
    torch.manual_seed(0)
    return nn.Conv2d(1, 1, kernel, **keywords)


def nearest(factor: Any) -> nn.Module:
    return nn.Upsample(scale_factor=factor)


class HandMadeUNet(nn.Module):
    """Depth 2, no care for sizes: where a skip does not fit its features, torch refuses to join them."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(channels, 2, 3, padding=1) for channels in (1, 2, 2))
        self.up = nn.ModuleList(nn.Conv2d(4, 2, 3, padding=1) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        first = F.relu(self.down[0](images))
        second = F.relu(self.down[1](F.max_pool2d(first, 2)))
        third = F.relu(self.down[2](F.max_pool2d(second, 2)))
        joined = torch.cat([second, F.interpolate(third, scale_factor=2)], dim=1)
        joined = torch.cat([first, F.interpolate(F.relu(self.up[0](joined)), scale_factor=2)], dim=1)
        return self.up[1](joined)


def multiples_of_8(images: Tensor) -> Tensor:
    if images.shape[-2] % 8 or images.shape[-1] % 8:
        raise ValueError("sides must be multiples of 8")
    return F.max_pool2d(images, 3, stride=1, padding=1)


def finite_only(images: Tensor) -> Tensor:
    if not images.isfinite().all():
        raise ValueError("images must be finite")
    return F.avg_pool2d(images, 5, stride=1, padding=2)


def one_at_a_time(images: Tensor) -> Tensor:
    if len(images) != 1:
        raise ValueError("one image, please")
    return F.avg_pool2d(images, 3, stride=1, padding=1)


def at_most(side: int) -> Callable[[Tensor], Tensor]:
    def function(images: Tensor) -> Tensor:
        if max(images.shape[-2:]) > side:
            raise ValueError(f"no more than {side} pixels")
        return F.avg_pool2d(images, 3, stride=1, padding=1)

    return function


def mirrored(images: Tensor) -> Tensor:
    """Needs sides of more than 9 pixels."""
    return F.avg_pool2d(F.pad(images, (9, 9, 9, 9), mode="reflect"), 19, stride=1)


def padded(height: int, width: int, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Cells of height x width pixels, worked on and repeated; the last ones are filled up, so any size will do."""

    def whole(images: Tensor) -> Tensor:
        bottom, right = -images.shape[-2] % height, -images.shape[-1] % width
        cells = function(F.max_pool2d(F.pad(images, (0, right, 0, bottom), mode="replicate"), (height, width)))
        return F.interpolate(cells, scale_factor=(height, width))[..., : images.shape[-2], : images.shape[-1]]

    return whole


def all_off(cells: Tensor) -> Tensor:
    """The same value everywhere: finite changes die, and any shift of finite values seems to hold."""
    return F.relu(F.avg_pool2d(cells, 9, stride=1, padding=4) - 1e9)


def three_times_in_float32(images: Tensor) -> Tensor:
    """The weights of its interpolation are rounded differently at each place."""
    return F.avg_pool2d(F.interpolate(images.float(), scale_factor=3, mode="bilinear"), 3)


def pool_and_resize(images: Tensor) -> Tensor:
    """Takes any size, but means something else off its grid, where 25 pixels become 12 cells and 25 again."""
    return F.interpolate(F.avg_pool2d(images, 2), size=images.shape[-2:])


def phase_of_its_own(images: Tensor) -> Tensor:
    """Only the odd rows and columns see far."""
    far = F.avg_pool2d(images[..., 1::2, 1::2], 7, stride=1, padding=3)
    return images + F.interpolate(far, scale_factor=2)


EXACT: dict[str, tuple[nn.Module, Probed]] = {
    name: (network, Probed(Geometry(*figures), any_size))
    for name, network, figures, any_size in [
        ("identity", nn.Identity(), (1, 0, 0), True),
        ("constant", Of(torch.zeros_like), (1, 0, 0), True),
        ("3 x 3", conv(padding=1), (1, 1, 1), True),
        ("dilated", conv(padding=4, dilation=4), (1, 4, 4), True),
        ("1 x 7", conv((1, 7), padding=(0, 3)), (1, 3, 3), True),
        ("even kernel", nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), conv((2, 4))), (1, 2, 2), True),
        ("strided, then repeated", nn.Sequential(conv(stride=2, padding=1), nearest(2)), (2, 2, 1), False),
        (
            "pooled, then transposed",
            nn.Sequential(nn.MaxPool2d(2), nn.ConvTranspose2d(1, 1, 4, stride=2, padding=1)),
            (2, 2, 2),
            False,
        ),
        (
            "bilinear",
            nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)),
            (2, 2, 2),
            False,
        ),
        (
            "folded",
            nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(16, 16, 3, padding=1), nn.PixelShuffle(4)),
            (4, 7, 4),
            False,
        ),
        ("2 by 3", nn.Sequential(nn.MaxPool2d((2, 3)), nearest((2, 3))), (6, 2, 0), False),
        ("5 by 5", nn.Sequential(nn.MaxPool2d(5), nearest(5)), (5, 4, 0), False),
        ("mirrored", Of(mirrored), (1, 9, 9), True),
        ("hand-made U-Net", HandMadeUNet(), (4, 13, 11), False),
        ("finite changes die", nn.Sequential(conv(padding=1), nn.ReLU(), conv(5, padding=2)), (1, 3, 3), True),
        ("all ReLUs off", Of(padded(4, 4, all_off)), (4, 19, 16), True),
        ("2 by 3 of any size", Of(padded(2, 3, lambda x: x)), (6, 2, 0), True),
        ("NaN replaced", nn.Sequential(Of(torch.nan_to_num), conv(padding=1)), (1, 1, 1), True),
        ("NaN compared", nn.Sequential(Of(lambda x: torch.where(x > 0, x, 0)), conv(padding=1)), (1, 1, 1), True),
        ("NaN refused", Of(finite_only), (1, 2, 2), True),
        ("multiples of 8", Of(multiples_of_8), (8, 1, 1), False),
        ("means less off its grid", Of(pool_and_resize), (2, 1, 0), False),
        ("a phase of its own", Of(phase_of_its_own), (2, 7, 6), False),
        ("one image at a time", Of(one_at_a_time), (1, 1, 1), True),
        ("mixes its batch", Of(lambda x: F.max_pool2d(x, 3, 1, 1) + x.mean(0, keepdim=True)), (1, 1, 1), True),
        ("up to 200 pixels", Of(at_most(200)), (1, 1, 1), True),
        ("writes into its image", Of(lambda x: F.max_pool2d(x.add_(1), 3, 1, 1)), (1, 1, 1), True),
        ("classes", Of(lambda x: F.max_pool2d(x, 3, 1, 1) > 0), (1, 1, 1), True),
        ("computes in float32", Of(three_times_in_float32), (1, 1, 1), True),
    ]
}


@pytest.mark.parametrize("name", EXACT)
def test_known_answers(name: str) -> None:
    network, expected = EXACT[name]
    assert probe_geometry(network, channels=1) == expected


def pixel_by_pixel(network: nn.Module, stride: int, size: int) -> tuple[int, int]:
    """Halo and margin by the definition: each pixel of a period alone is NaN, in a whole square image."""
    start, halo, margin = size // 2 // stride * stride, 0, 0
    image = torch.randn(1, 1, size, size, dtype=torch.float64)
    before = network(image.clone())
    for row in range(start, start + stride):
        for column in range(start, start + stride):
            changed = image.clone()
            changed[..., row, column] = math.nan
            for output in (network(changed) != before).any(dim=1)[0].nonzero().tolist():
                for pixel, seen in zip((row, column), output, strict=True):
                    tile = seen // stride * stride
                    halo = max(halo, abs(seen - pixel))
                    margin = max(margin, tile - pixel, pixel - (tile + stride - 1))
    return halo, margin


HIDDEN_FROM_NAN = {"NaN replaced", "NaN compared", "NaN refused", "classes"}


@pytest.mark.parametrize("name", sorted(EXACT.keys() - HIDDEN_FROM_NAN))
def test_the_known_answers_are_what_changing_each_pixel_shows(name: str) -> None:
    network, expected = EXACT[name]
    geometry = expected.geometry
    with torch.no_grad():
        figures = pixel_by_pixel(
            copy.deepcopy(network).double().eval(), geometry.stride, size=56 if geometry.stride == 8 else 60
        )
    assert figures == (geometry.halo, geometry.margin)


OPERATORS: dict[str, tuple[Callable[[], nn.Module], Callable[[Reach], Reach], int]] = {
    "convolution 3": (lambda: conv(padding=1), lambda reach: reach.convolution(3), 1),
    "convolution 5": (lambda: conv(5, padding=2), lambda reach: reach.convolution(5), 1),
    "pooling 2": (lambda: nn.MaxPool2d(2), lambda reach: reach.pooling(2), 2),
    "pooling 3": (lambda: nn.AvgPool2d(3), lambda reach: reach.pooling(3), 3),
}


@given(st.lists(st.sampled_from(sorted(OPERATORS)), max_size=4))
@settings(deadline=None, max_examples=10, derandomize=True)
def test_operators_in_any_order_are_what_their_reach_says(names: list[str]) -> None:
    """Down by the operators, up again by repetition, then a convolution."""
    stride = math.prod(OPERATORS[name][2] for name in names)
    reach = Reach.of_input(stride)
    for name in names:
        reach = OPERATORS[name][1](reach)
    network = nn.Sequential(*(OPERATORS[name][0]() for name in names), nearest(stride), conv(padding=1))
    expected = reach.upsampling(stride).convolution(3).geometry()
    assert probe_geometry(network, channels=1) == Probed(expected, any_size=stride == 1)


@pytest.mark.parametrize(
    ("depth", "stem", "residual", "norm"),
    [
        (1, 1, False, "batch"),
        (1, 1, True, "batch"),
        (1, 2, False, "none"),
        (1, 4, True, "batch"),
        (2, 1, False, "none"),
        (2, 1, True, "batch"),
        (2, 2, False, "batch"),
        (3, 1, False, "batch"),
        (3, 1, True, "none"),
    ],
)
def test_the_unet_is_what_it_derives(depth: int, stem: int, residual: bool, norm: Any) -> None:
    torch.manual_seed(0)
    network = UNet(width=2, depth=depth, stem=stem, residual=residual, norm=norm)
    probed, derived = probe_geometry(network, channels=1), network.geometry
    assert probed.any_size
    assert probed.geometry.exact
    assert probed.geometry.stride == derived.stride
    assert probed.geometry.halo <= derived.halo <= probed.geometry.halo + derived.stride
    assert probed.geometry.margin <= derived.margin <= probed.geometry.margin + derived.stride


def test_a_unet_that_refuses_sizes_is_padded_by_its_caller() -> None:
    network = UNet(width=2, depth=2)

    def strict(images: Tensor) -> Tensor:
        if images.shape[-2] % 4 or images.shape[-1] % 4:
            raise RuntimeError("wrong input shape")
        return network.double().eval()(images)

    assert probe_geometry(Of(strict), channels=1) == Probed(network.geometry, any_size=False)


EVERYWHERE = "an output pixel depends on every input pixel, across an image of 256 pixels"
WHERE = "the output depends on the place in the image: no shift of the image by 1 to 64 pixels shifts the output"


def attention(images: Tensor) -> Tensor:
    """Each pixel is a mean of all, weighted by how alike they are."""
    pixels = images.flatten(2).mT
    mixed = torch.softmax(pixels @ pixels.mT, dim=-1) @ pixels
    return mixed.mT.unflatten(2, images.shape[-2:])


def ramp(images: Tensor) -> Tensor:
    return images + torch.linspace(0, 1, images.shape[-1], dtype=images.dtype)


def resized(factor: float) -> Callable[[Tensor], Tensor]:
    def function(images: Tensor) -> Tensor:
        larger = F.interpolate(images, scale_factor=factor, mode="bilinear")
        return F.interpolate(F.max_pool2d(larger, 3, 1, 1), size=images.shape[-2:], mode="bilinear")

    return function


NOT_EXACT: dict[str, tuple[nn.Module, str]] = {
    "global average": (Of(lambda x: x + x.mean(dim=(2, 3), keepdim=True)), EVERYWHERE),
    "global average of finite values": (Of(lambda x: torch.nan_to_num(x).mean((2, 3), keepdim=True) + x), EVERYWHERE),
    "average of the columns": (Of(lambda x: x + x.mean(dim=3, keepdim=True)), EVERYWHERE),
    "group norm": (nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4)), EVERYWHERE),
    "instance norm": (nn.InstanceNorm2d(1), EVERYWHERE),
    "attention": (Of(attention), EVERYWHERE),
    "ramp": (Of(ramp), WHERE),
    "corners aligned": (
        nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
        WHERE.replace("by 1 to", "by 2 to"),
    ),
    "a ratio that is no integer": (Of(resized(1.3)), WHERE),
    "dropout left on": (
        Of(lambda x: F.dropout(x, 0.5, training=True)),
        "two runs in eval mode on the same image give different outputs: it draws random numbers",
    ),
    "round the border": (
        conv(padding=1, padding_mode="circular"),
        "tiles of 4 pixels with a margin of 1 on a grid of 1 differ from the whole image of 16 x 4 by ",
    ),
    "the image's height": (
        Of(lambda x: x * x.shape[2]),
        "tiles of 4 pixels with a margin of 0 on a grid of 1 differ from the whole image of 12 x 4 by ",
    ),
    "only small images": (
        Of(at_most(60)),
        "it could not be probed: Of: raised ValueError for images of 1 x 1 x 64 x 4: no more than 60 pixels",
    ),
}


@pytest.mark.parametrize("name", NOT_EXACT)
def test_what_is_not_exact_says_why(name: str) -> None:
    network, reason = NOT_EXACT[name]
    geometry = probe_geometry(network, channels=1, largest=256).geometry
    assert not geometry.exact
    assert geometry.reason.startswith(reason)


def test_three_halves_and_back_is_exact_on_an_even_grid() -> None:
    """Every two pixels become three; so tiles of an even grid fall on whole pixels of the larger image."""
    probed = probe_geometry(Of(resized(1.5)), channels=1)
    assert (probed.geometry.stride, probed.geometry.exact, probed.any_size) == (2, True, False)


class Busy(nn.Module):
    """In train mode, with a frozen part, a dropout, and a counter that every call replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.frozen = nn.BatchNorm2d(1).eval()
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        self.calls = self.calls + 1
        torch.rand(1)  # not used, but the state of the generator moves on
        return F.max_pool2d(self.dropout(self.frozen(self.norm(images))), 3, 1, 1)


@pytest.mark.parametrize("lock", [None, threading.Lock()], ids=["copied", "not to be copied"])
def test_the_module_stays_as_it_is(lock: object) -> None:
    network = Busy()
    network.lock = lock
    network(torch.randn(2, 1, 8, 8))
    state = {name: (value, value.clone()) for name, value in network.state_dict(keep_vars=True).items()}
    modes = [module.training for module in network.modules()]
    random = torch.get_rng_state()
    assert probe_geometry(network, channels=1) == Probed(Geometry(1, 1, 1), any_size=True)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in network.modules()] == modes == [True, True, False, True]
    after = network.state_dict(keep_vars=True)
    assert list(after) == list(state)
    for name, (value, saved) in state.items():
        assert after[name] is value
        assert torch.equal(value, saved)
    assert network.norm.num_batches_tracked == network.calls == 1
    network(torch.randn(2, 1, 8, 8)).sum().backward()  # nothing that it kept stops its training


def test_a_module_without_float64_is_probed_in_float32() -> None:
    weight = torch.randn(1, 1, 3, 3)  # no parameter, so the module's conversion does not reach it
    network = Of(lambda x: F.conv2d(x, weight, padding=1))
    assert probe_geometry(network, channels=1) == Probed(Geometry(1, 1, 1), any_size=True)


def test_a_module_without_figures_that_cannot_be_copied() -> None:
    network = Of(lambda x: F.max_pool2d(x, 3, 1, 1))
    network.lock = threading.Lock()
    assert probe_geometry(network, channels=2) == Probed(Geometry(1, 1, 1), any_size=True)


def test_a_shorter_window_sees_less_far() -> None:
    network = conv(padding=48, dilation=48)
    assert probe_geometry(network, channels=1) == Probed(Geometry(1, 48, 48), any_size=True)
    geometry = probe_geometry(network, channels=1, largest=64).geometry
    assert geometry.reason == EVERYWHERE.replace("256", "64")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: F.avg_pool2d(x, 2),
            "Of: was given images of 1 x 1 x 256 x 768 and returned 1 x 1 x 128 x 384: a network must return "
            "N x K x H x W logits of the image's height and width; pad inside it, or resize its output.",
        ),
        (
            nn.Conv2d(1, 2, 3),
            "Conv2d: was given images of 1 x 1 x 256 x 768 and returned 1 x 2 x 254 x 766: a network must return",
        ),
        (lambda x: x.mean(dim=(2, 3)), "Of: was given images of 1 x 1 x 256 x 768 and returned 1 x 1: a network must"),
        (lambda x: {"out": x}, "Of: was given images of 1 x 1 x 256 x 768 and returned a dict: a network must return"),
        (lambda x: x[:0], "Of: was given images of 1 x 1 x 256 x 768 and returned 0 x 1 x 256 x 768: a network must"),
        (
            nn.Conv2d(3, 2, 3, padding=1),
            "Conv2d: raised RuntimeError for images of 1 x 1 x 256 x 768: Given groups=1, weight of size [2, 3, 3, 3]",
        ),
    ],
)
def test_what_a_module_must_return(function: Any, message: str) -> None:
    network = function if isinstance(function, nn.Module) else Of(function)
    with pytest.raises(ModelError, match="^" + re.escape(message)):
        probe_geometry(network, channels=1)


def test_a_window_that_is_too_small() -> None:
    with pytest.raises(SettingError, match=r"^largest: must be at least 64 pixels, not 63\.$"):
        probe_geometry(nn.Identity(), channels=1, largest=63)
