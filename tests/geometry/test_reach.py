"""Output sizes against torch; reaches against probing a plain list of operators; the U-Net's worked figures."""

import dataclasses
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pixelwise.core.errors import ModelError
from pixelwise.geometry.reach import (
    Geometry,
    Reach,
    multiply_adds,
    output_size,
    parameters,
    round_up,
    transposed_output_size,
)
from pixelwise.models import UNet


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 4), st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_output_size_is_what_torch_gives(size: int, kernel: int, stride: int, padding: int) -> None:
    assume(kernel <= size + 2 * padding)
    result = F.conv1d(torch.zeros(1, 1, size), torch.zeros(1, 1, kernel), stride=stride, padding=padding)
    assert output_size(size, kernel, stride, padding) == result.shape[-1]


@given(st.integers(1, 20), st.integers(1, 7), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_transposed_output_size_is_what_torch_gives(size: int, kernel: int, stride: int, crop: int, more: int) -> None:
    assume(more < stride and (size - 1) * stride + kernel - 2 * crop + more >= 1)
    result = F.conv_transpose1d(
        torch.zeros(1, 1, size), torch.zeros(1, 1, kernel), stride=stride, padding=crop, output_padding=more
    )
    assert transposed_output_size(size, kernel, stride, crop, more) == result.shape[-1]


def test_output_sizes_of_the_lectures() -> None:
    assert output_size(227, kernel=11, stride=4) == 55  # AlexNet's first convolution
    assert output_size(55, kernel=3, stride=2) == 27  # and the pooling after it
    assert transposed_output_size(2, kernel=3, stride=2, crop=1) == 3
    assert transposed_output_size(2, kernel=3, stride=2, crop=1, output_padding=1) == 4
    assert transposed_output_size(2, kernel=3, stride=3, crop=1) == 4
    assert transposed_output_size(2, kernel=3, stride=2) == 5


def test_parameters_of_the_lectures() -> None:
    assert parameters(3, 96, kernel=11) == 34_944  # AlexNet's first convolution
    assert parameters(256, 4096, kernel=6) == 37_752_832  # and its first dense layer
    assert sum(part.numel() for part in torch.nn.Linear(6 * 6 * 256, 4096).parameters()) == 37_752_832


def test_multiply_adds_of_the_lectures() -> None:
    assert multiply_adds(192, 32, kernel=5, height=28, width=28) == 120_422_400
    narrow = multiply_adds(192, 16, kernel=1, height=28, width=28)
    wide = multiply_adds(16, 32, kernel=5, height=28, width=28)
    assert (narrow, wide, narrow + wide) == (2_408_448, 10_035_200, 12_443_648)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.booleans())
@settings(deadline=None, max_examples=30)
def test_parameters_are_what_torch_makes(into: int, out: int, kernel: int, groups: int, bias: bool) -> None:
    layer = torch.nn.Conv2d(into * groups, out * groups, kernel, groups=groups, bias=bias)
    expected = sum(part.numel() for part in layer.parameters())
    assert parameters(into * groups, out * groups, kernel, groups, bias) == expected
    assert multiply_adds(into * groups, out * groups, kernel, 3, 5, groups) == layer.weight.numel() * 15


def test_a_kernel_must_fit() -> None:
    with pytest.raises(ModelError, match=r"kernel of 5 pixels does not fit into 2 pixels with a padding of 1: use"):
        output_size(2, kernel=5, padding=1)


def test_a_crop_must_leave_something() -> None:
    with pytest.raises(ModelError, match=r"crop of 2 pixels on each side leaves nothing of the 4 pixels that 2 v"):
        transposed_output_size(2, kernel=2, stride=2, crop=2)


@given(st.integers(0, 1000), st.integers(1, 64))
def test_round_up_is_the_next_multiple(size: int, step: int) -> None:
    assert round_up(size, step) == next(n for n in range(size, size + step) if n % step == 0)


OPERATORS = {
    "convolution 3": (lambda x: F.conv1d(x, torch.ones(1, 1, 3), padding=1), 1),
    "convolution 5": (lambda x: F.conv1d(x, torch.ones(1, 1, 5), padding=2), 1),
    "pooling 2": (lambda x: F.max_pool1d(x, 2), 2),
    "pooling 3": (lambda x: F.max_pool1d(x, 3), 3),
}


@given(st.lists(st.sampled_from(sorted(OPERATORS)), max_size=4))
@settings(deadline=None, max_examples=30)
def test_a_reach_is_what_probing_with_nan_shows(names: list[str]) -> None:
    """Down by the operators, up again by repetition, then joined with the image itself."""
    factors = [OPERATORS[name][1] for name in names]
    stride = int(torch.tensor(factors, dtype=torch.int64).prod()) if factors else 1
    reach = start = Reach.of_input(stride)
    for name in names:
        operator, number = name.split()
        reach = getattr(reach, operator)(int(number))
    reach = reach.upsampling(stride).convolution(3).concatenation(start)

    periods = 2 * (reach.geometry().halo // stride + 1) + 1
    middle = periods // 2 * stride
    seen: list[set[int]] = [set() for _ in range(stride)]
    for pixel in range(periods * stride):
        signal = torch.zeros(1, 1, periods * stride)
        signal[..., pixel] = torch.nan
        features = signal
        for name in names:
            features = OPERATORS[name][0](features)
        features = F.conv1d(features.repeat_interleave(stride, dim=-1), torch.ones(1, 1, 3), padding=1) + signal
        for cell in range(stride):
            if features[0, 0, middle + cell].isnan():
                seen[cell].add(pixel - middle)
    assert reach.cells == tuple((min(cell), max(cell)) for cell in seen)


def convolve(signals: torch.Tensor, kernel: int, stride: int, dilation: int, padding: int) -> torch.Tensor:
    """A convolution of ones that gives one value for each `stride`, whatever it sees beyond the end."""
    extended = F.pad(signals, (padding, dilation * kernel))
    result = F.conv1d(extended, torch.ones(1, 1, kernel).double(), stride=stride, dilation=dilation)
    return result[..., : signals.shape[-1] // stride]


def stamp(signals: torch.Tensor, kernel: int, stride: int, crop: int) -> torch.Tensor:
    """A transposed convolution of ones that gives `stride` values for each."""
    result = F.conv_transpose1d(signals, torch.ones(1, 1, kernel).double(), stride=stride, padding=crop)
    return F.pad(result, (0, signals.shape[-1] * stride - result.shape[-1]))


LEVELS = st.tuples(
    st.integers(1, 5),  # kernel
    st.integers(1, 3),  # stride
    st.integers(1, 3),  # dilation
    st.none() | st.integers(0, 3),  # padding
    st.integers(0, 4),  # what the kernel of the way up has more than its stride
    st.integers(0, 2),  # its crop
)


@given(st.lists(LEVELS, min_size=1, max_size=2))
@settings(deadline=None, max_examples=60)
def test_a_reach_of_convolutions_is_what_probing_with_nan_shows(
    levels: list[tuple[int, int, int, int | None, int, int]],
) -> None:
    """Strided and atrous convolutions with even and odd kernels down, transposed ones up again."""
    stride = math.prod(level[1] for level in levels)
    reach, around = Reach.of_input(stride), 96 // stride * stride + stride
    signals = torch.zeros(2 * around + stride, 1, 2 * around + stride, dtype=torch.float64)
    signals[:, 0].fill_diagonal_(torch.nan)  # one pixel of each signal
    for kernel, step, dilation, padding, _, _ in levels:
        reach = reach.convolution(kernel, step, dilation, padding)
        front = dilation * (kernel - 1) // 2 if padding is None else padding
        signals = convolve(signals, kernel, step, dilation, front)
    for _, step, _, _, more, crop in reversed(levels):
        reach = reach.transposed_convolution(step + more, step, crop)
        signals = stamp(signals, step + more, step, crop)
    for cell in range(stride):
        seen = signals[:, 0, around + cell].isnan().nonzero()[:, 0] - around
        assert reach.cells[cell] == (int(seen.min()), int(seen.max()))


@pytest.mark.parametrize("kernel", range(1, 8))
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_a_convolution_is_centred_as_torch_does(kernel: int, dilation: int) -> None:
    signals = torch.zeros(41, 1, 41, dtype=torch.float64)
    signals[:, 0].fill_diagonal_(torch.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that an even kernel costs a copy
        result = F.conv1d(signals, torch.ones(1, 1, kernel).double(), padding="same", dilation=dilation)
    seen = result[:, 0, 20].isnan().nonzero()[:, 0] - 20
    assert Reach.of_input(1).convolution(kernel, dilation=dilation).cells == ((int(seen.min()), int(seen.max())),)


def test_convolutions_and_poolings_with_whole_windows_agree() -> None:
    start = Reach.of_input(12).convolution(3)
    for factor in (1, 2, 3, 4):
        assert start.convolution(factor, stride=factor, padding=0) == start.pooling(factor)
        pooled = start.pooling(factor)
        assert pooled.transposed_convolution(factor, stride=factor) == pooled.upsampling(factor)
        learned = pooled.transposed_convolution(2 * factor - factor % 2, factor, crop=factor // 2)
        assert learned == pooled.bilinear(factor)  # the start of FCN's


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_the_reach_of_bicubic_upsampling(factor: int) -> None:
    """Finite amounts, so that the weight of nothing at the centre of another cell is none."""
    reach = Reach.of_input(factor).pooling(factor).bicubic(factor)
    cells = torch.eye(9, dtype=torch.float64)[:, None, None]
    enlarged = F.interpolate(cells.expand(9, 1, 9, 9), scale_factor=(1, factor), mode="bicubic")[:, 0, 4]
    for place in range(factor):
        seen = (enlarged[:, 4 * factor + place].abs() > 1e-9).nonzero()[:, 0] - 4
        assert reach.cells[place] == (factor * int(seen.min()), factor * int(seen.max() + 1) - 1)


def test_a_step_must_divide_the_period() -> None:
    message = r"^a step of 2 does not divide the 3 cells of a period of 3 pixels: begin with the stride of the whole"
    with pytest.raises(ModelError, match=message):
        Reach.of_input(3).pooling(2)
    with pytest.raises(ModelError, match=message):
        Reach.of_input(3).convolution(3, stride=2)


def test_a_transposed_kernel_must_cover_its_stride() -> None:
    message = r"kernel of 2 and a stride of 3 leaves pixels that depend on nothing: use a kernel of at least 3 pixels"
    with pytest.raises(ModelError, match=message):
        Reach.of_input(3).pooling(3).transposed_convolution(2, stride=3)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_the_reach_of_bilinear_upsampling(factor: int) -> None:
    """Where a cell lies on the centre of another it sees that one alone: an odd factor's middle."""
    reach = Reach.of_input(factor).pooling(factor).bilinear(factor)
    seen: list[set[int]] = [set() for _ in range(factor)]
    for cell in range(5):
        signal = torch.zeros(1, 1, 5, dtype=torch.float64)
        signal[..., cell] = 1.0
        enlarged = F.interpolate(signal, scale_factor=factor, mode="linear")
        for place in range(factor):
            if enlarged[0, 0, 2 * factor + place]:
                seen[place] |= {factor * (cell - 2), factor * (cell - 1) - 1}
    assert reach.cells == tuple((min(pixels), max(pixels)) for pixels in seen)


def test_figures_of_the_unet() -> None:
    """Two 3x3 convolutions a level, 2x2 pooling, 2x2 up-convolutions of stride 2: 107 and 92.

    What the form without padding loses is 92 (572 -> 388). A tile on the stride grid needs 94, as its cells begin on
    the grid and not with its window: 96 on the grid from both. At depth 2 the grid makes a difference: 20 and 24.
    """
    valid, same = (UNet(width=1, padding=padding).geometry for padding in ("valid", "same"))
    assert valid == Geometry(stride=16, halo=107, margin=92)
    assert same == Geometry(stride=16, halo=107, margin=94)
    assert round_up(valid.margin, 16) == round_up(same.margin, 16) == 96

    valid, same = (UNet(width=1, depth=2, padding=padding).geometry for padding in ("valid", "same"))
    assert (round_up(valid.margin, 4), round_up(same.margin, 4)) == (20, 24)


def test_figures_of_the_unet_are_what_probing_with_nan_shows() -> None:
    """At every phase of the stride: the reach is not one pixel too large."""
    network = UNet(width=1, norm="none").double().eval()
    stride, start = 16, 128
    halo = margin = 0
    for pixel in range(start, start + stride):
        image = torch.zeros(1, 1, 2 * start + stride, 2 * start + stride, dtype=torch.float64)
        image[..., pixel, pixel] = torch.nan
        with torch.inference_mode():
            outputs = network(image).isnan().any(dim=1)[0].any(dim=0).nonzero()[:, 0]
        tiles = outputs // stride * stride
        halo = max(halo, int((outputs - pixel).abs().max()))
        margin = max(margin, int(torch.maximum(tiles - pixel, pixel - (tiles + stride - 1)).max()))
    assert (halo, margin) == (107, 94)


@given(st.integers(1, 6))
@settings(deadline=None)
def test_halo_and_loss_of_the_unet_by_hand(depth: int) -> None:
    """The sums of what each level's two convolutions, poolings and up-convolutions add."""
    geometry = UNet(width=1, depth=depth, padding="valid", max_width=1).geometry
    levels = [2 * 2**level for level in range(depth + 1)]
    assert geometry.margin == sum(levels) + sum(levels[:-1])
    assert geometry.halo == geometry.margin + 2**depth - 1


def test_a_geometry_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Geometry(stride=16, halo=107, margin=94).stride = 8  # type: ignore[misc]
