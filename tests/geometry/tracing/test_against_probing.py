"""Traced geometries of networks composed at random, against what probing finds by experiment."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pixelwise.geometry.probing import probe_geometry
from pixelwise.geometry.tracing import trace_geometry
from pixelwise.layers import (
    ConvNormAct,
    DepthwiseSeparable,
    GatedConvolution,
    InceptionModule,
    MaxPoolPositions,
    MaxUnpool,
    ResidualBlock,
    UpConcatenate,
    bilinear_start,
    enlarge,
)


class Enlarge(nn.Module):
    def __init__(self, factor: int, mode: str) -> None:
        super().__init__()
        self.factor, self.mode = factor, mode

    def forward(self, images: Tensor) -> Tensor:
        return enlarge(images, self.factor, self.mode)


class Down(nn.Module):
    """A step down, what is inside, a step up, and perhaps the way past it; two channels all through."""

    def __init__(self, down: nn.Module, inside: nn.Module, up: nn.Module, skip: str) -> None:
        super().__init__()
        self.down, self.inside, self.up, self.skip = down, inside, up, skip
        self.join = nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.up(self.inside(self.down(images)))
        if self.skip == "none":
            return features
        return features + images if self.skip == "sum" else self.join(torch.cat([features, images], dim=1))


class Unpooled(nn.Module):
    """Down, what is inside, and the values back to where the maxima stood."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.down, self.inside, self.up = MaxPoolPositions(2), inside, MaxUnpool(2)

    def forward(self, images: Tensor) -> Tensor:
        pooled, positions = self.down(images)
        return self.up(self.inside(pooled), positions, *images.shape[-2:])


class Both(nn.Module):
    """A gate by a wider view."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.gate = ConvNormAct(2, 2, dilation=2), GatedConvolution(2, 2, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.gate(images, self.wide(images))


class Skipped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.join = UpConcatenate(2, 2), nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.join(self.up(F.max_pool2d(images, 2), images))


def started_bilinear(factor: int) -> nn.Module:
    up = nn.ConvTranspose2d(2, 2, 2 * factor - factor % 2, factor, factor // 2)
    bilinear_start(up)
    return up


PLAIN: list[Callable[[], nn.Module]] = [
    lambda: ConvNormAct(2, 2),
    lambda: ConvNormAct(2, 2, kernel=5, dilation=2),
    lambda: DepthwiseSeparable(2, 2, dilation=3),
    lambda: ResidualBlock(2, 2),
    lambda: nn.Sequential(InceptionModule(2, 1, (1, 1), (1, 1), 1), nn.Conv2d(4, 2, 1)),
    lambda: nn.MaxPool2d(3, stride=1, padding=1),
    lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(2, 2, 2)),
    Both,
    Skipped,
]  # fmt: skip
DOWNS: list[Callable[[int], nn.Module]] = [
    nn.MaxPool2d,
    nn.AvgPool2d,
    lambda factor: ConvNormAct(2, 2, stride=factor),
    lambda factor: nn.Conv2d(2, 2, 2 * factor, factor, padding=factor // 2),
    lambda factor: nn.Sequential(nn.PixelUnshuffle(factor), nn.Conv2d(2 * factor**2, 2, 1)),
]
UPS: list[Callable[[int], nn.Module]] = [
    lambda factor: Enlarge(factor, "nearest"),
    lambda factor: Enlarge(factor, "bilinear"),
    lambda factor: Enlarge(factor, "bicubic"),
    lambda factor: nn.Upsample(scale_factor=factor, mode="bilinear"),
    lambda factor: nn.ConvTranspose2d(2, 2, factor, factor),
    lambda factor: nn.Sequential(nn.Conv2d(2, 2 * factor**2, 1), nn.PixelShuffle(factor)),
    started_bilinear,
]


@st.composite
def networks(draw: st.DrawFn, depth: int = 2) -> tuple[nn.Module, int]:
    """A network of the toolkit's operators, and its stride."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    parts: list[nn.Module] = [draw(st.sampled_from(PLAIN))() for _ in range(draw(st.integers(0, 2)))]
    stride = 1
    if depth and draw(st.booleans()):
        inside, inner = draw(networks(depth - 1))
        if draw(st.integers(0, 3)) == 0:
            stride = 2 * inner
            parts.append(Unpooled(inside))
        else:
            factor = draw(st.sampled_from([2, 2, 3]))
            stride = factor * inner
            down, up = draw(st.sampled_from(DOWNS))(factor), draw(st.sampled_from(UPS))(factor)
            parts.append(Down(down, inside, up, draw(st.sampled_from(["none", "sum", "cat"]))))
    steps = max([2 if isinstance(part, Skipped) else 1 for part in parts], default=1)
    return nn.Sequential(*parts), math.lcm(stride, steps)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(networks())
def test_traced_figures_cover_the_probed_ones_and_are_at_most_a_stride_larger(drawn: tuple[nn.Module, int]) -> None:
    network, stride = drawn
    found = trace_geometry(network, 2, stride)
    probed = probe_geometry(network, 2, largest=192).geometry
    assert found.exact
    assert probed.exact, probed.reason
    assert stride % probed.stride == 0
    assert probed.halo <= found.halo <= probed.halo + stride
    assert probed.margin <= found.margin <= probed.margin + stride
