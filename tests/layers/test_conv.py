import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate2d
from torch import nn
from torch.nn import functional as F

from pixelwise.core.errors import SettingError
from pixelwise.geometry.reach import multiply_adds, output_size, parameters
from pixelwise.layers import NORMS, ConvNormAct, DepthwiseSeparable, InceptionModule, ResidualBlock, he_start


def plain(kernel: np.ndarray, padded: bool) -> ConvNormAct:
    """One channel to one, with these weights and no bias."""
    layer = ConvNormAct(1, 1, kernel=len(kernel), padded=padded, norm="none").double()
    with torch.no_grad():
        layer[0].weight[0, 0] = torch.from_numpy(kernel)
        layer[0].bias.zero_()
    return layer


def test_convolution_of_the_lectures() -> None:
    image = torch.tensor([[4.0, 5, 8, 7], [1, 8, 8, 8], [3, 6, 6, 4], [6, 5, 7, 8]]).double()
    kernel = np.array([[1.0, 4, 1], [1, 4, 3], [3, 3, 1]])
    assert plain(kernel, padded=False)(image[None, None])[0, 0].tolist() == [[122, 148], [126, 134]]


def test_max_pooling_of_the_lectures() -> None:
    image = torch.tensor([[7.0, 4, 6, 2], [3, 2, 3, 5], [1, 2, 1, 0], [5, 4, 2, 9]])
    assert nn.MaxPool2d(2)(image[None, None])[0, 0].tolist() == [[7, 6], [5, 9]]


@given(st.integers(3, 9), st.integers(3, 9), st.sampled_from([1, 3]), st.booleans(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_convolution_and_activation_against_scipy(
    height: int, width: int, kernel: int, padded: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    image, weights = random.normal(size=(height, width)), random.normal(size=(kernel, kernel))
    expected = np.maximum(correlate2d(image, weights, mode="same" if padded else "valid"), 0)
    result = plain(weights, padded)(torch.from_numpy(image)[None, None])[0, 0].detach().numpy()
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)


def test_a_one_by_one_convolution_is_a_dense_layer_at_each_pixel() -> None:
    torch.manual_seed(0)
    layer, dense, images = ConvNormAct(3, 5, kernel=1, norm="none"), nn.Linear(3, 5), torch.randn(2, 3, 4, 6)
    with torch.no_grad():
        layer[0].weight.copy_(dense.weight[:, :, None, None])
        layer[0].bias.copy_(dense.bias)
    expected = dense(images.permute(0, 2, 3, 1)).relu().permute(0, 3, 1, 2)
    torch.testing.assert_close(layer(images), expected, rtol=0, atol=1e-6)


@given(st.integers(1, 12), st.sampled_from([1, 3, 5]), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_stride_and_dilation_are_their_equation(size: int, kernel: int, stride: int, dilation: int, seed: int) -> None:
    """y[i] = sum over k of x[stride i + dilation k] w[k], k counted from the middle of the kernel."""
    random = np.random.default_rng(seed)
    image, weights = random.normal(size=(size, size + 1)), random.normal(size=(kernel, kernel))
    layer = ConvNormAct(1, 1, kernel, norm="none", stride=stride, dilation=dilation).double()
    with torch.no_grad():
        layer[0].weight[0, 0] = torch.from_numpy(weights)
        layer[0].bias.zero_()
    side = kernel // 2
    padded = np.pad(image, side * dilation)
    expected = np.zeros((math.ceil(size / stride), math.ceil((size + 1) / stride)))
    for row, column in np.ndindex(*expected.shape):
        top, left = stride * row, stride * column
        reach = dilation * (kernel - 1) + 1
        taps = padded[top : top + reach : dilation, left : left + reach : dilation]
        expected[row, column] = max((taps * weights).sum(), 0)
    result = layer(torch.from_numpy(image)[None, None])[0, 0].detach().numpy()
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)


def test_a_strided_and_dilated_convolution_without_padding() -> None:
    layer = ConvNormAct(1, 2, kernel=2, padded=False, stride=2, dilation=3)
    assert layer(torch.zeros(1, 1, 9, 12)).shape == (1, 2, output_size(9, 4, 2), output_size(12, 4, 2))


def test_depthwise_separable_is_two_convolutions() -> None:
    torch.manual_seed(0)
    layer, images = DepthwiseSeparable(4, 6, norm="none", stride=2, dilation=2), torch.randn(2, 4, 9, 8)
    (each, _, _), (mix, _, _) = layer
    apart = [F.conv2d(images[:, [c]], each.weight[[c]], each.bias[[c]], 2, 2, 2) for c in range(4)]
    expected = F.conv2d(torch.cat(apart, dim=1).relu(), mix.weight, mix.bias).relu()
    torch.testing.assert_close(layer(images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_depthwise_separable_saves_weights(norm: str) -> None:
    bias = norm == "none"
    expected = parameters(16, 16, kernel=3, groups=16, bias=bias) + parameters(16, 32, bias=bias)
    assert count(DepthwiseSeparable(16, 32, norm=norm)) == expected + (0 if bias else 2 * (16 + 32))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


INCEPTION_3A = {"in_channels": 192, "one": 64, "three": (96, 128), "five": (16, 32), "pooled": 32}


def test_inception_3a_has_the_papers_figures() -> None:
    """Table 1: 256 channels at 28 x 28, 159 K parameters and 128 M operations (K = 1024, rounded down or near)."""
    module = InceptionModule(**INCEPTION_3A, norm="none")
    assert module.out_channels == 256
    assert int(count(module) / 1024) == 159
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    assert len(convolutions) == 6
    operations = [
        multiply_adds(part.in_channels, part.out_channels, part.kernel_size[0], 28, 28) for part in convolutions
    ]
    assert round(sum(operations) / 1e6) == 128
    five = [multiply_adds(192, 16, 1, 28, 28), multiply_adds(16, 32, 5, 28, 28)]
    assert five == [2_408_448, 10_035_200]  # the lectures'
    assert set(five) <= set(operations)


def test_the_inception_module_is_its_branches() -> None:
    torch.manual_seed(0)
    module, images = InceptionModule(3, 2, (3, 4), (2, 5), 6, norm="none").double(), torch.randn(2, 3, 7, 6).double()

    def convolve(features: torch.Tensor, layer: nn.Sequential) -> torch.Tensor:
        return F.conv2d(features, layer[0].weight, layer[0].bias, padding=layer[0].kernel_size[0] // 2).relu()

    pooled = F.max_pool2d(F.pad(images, [1] * 4, value=-math.inf), 3, stride=1)
    expected = [
        convolve(images, module.one),
        convolve(convolve(images, module.three[0]), module.three[1]),
        convolve(convolve(images, module.five[0]), module.five[1]),
        convolve(pooled, module.pooled[1]),
    ]
    assert [part.shape[1] for part in expected] == [2, 4, 5, 6]
    torch.testing.assert_close(module(images), torch.cat(expected, dim=1), rtol=0, atol=1e-12)


def test_the_residual_block_adds_its_shortcut() -> None:
    torch.manual_seed(0)
    block, images = ResidualBlock(3, 4, norm="none"), torch.randn(2, 3, 5, 6)
    nn.init.zeros_(block.second[0].weight)
    nn.init.zeros_(block.second[0].bias)
    torch.testing.assert_close(block(images), F.conv2d(images, block.shortcut.weight).relu(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            {"kernel": 4},
            "a padded convolution needs an odd kernel, whose middle is a pixel, not 4: use 3 or 5, or no padding.",
        ),
        (
            {"groups": 4},
            "4 groups do not divide 6 input and 8 output channels: use a number that divides both, such as 2.",
        ),
        (
            {"groups": 0},
            "0 groups do not divide 6 input and 8 output channels: use a number that divides both, such as 2.",
        ),
    ],
)
def test_convolutions_that_make_no_sense(keywords: dict[str, int], message: str) -> None:
    with pytest.raises(SettingError, match="^" + re.escape(message) + "$"):
        ConvNormAct(6, 8, **keywords)


def test_batch_norm_against_its_formula() -> None:
    torch.manual_seed(0)
    layer, images = ConvNormAct(2, 3).double(), torch.randn(4, 2, 5, 6, dtype=torch.float64)
    features = layer[0](images)
    mean = features.mean(dim=(0, 2, 3), keepdim=True)
    variance = features.var(dim=(0, 2, 3), keepdim=True, unbiased=False)
    expected = ((features - mean) / (variance + 1e-5).sqrt()).clamp(min=0)
    torch.testing.assert_close(layer(images), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (24, 8), (6, 2), (5, 1)])
def test_group_norm_takes_groups_that_divide_the_channels(channels: int, groups: int) -> None:
    torch.manual_seed(0)
    layer, images = ConvNormAct(1, channels, norm="group").double(), torch.randn(2, 1, 4, 4).double()
    features = layer[0](images).reshape(2, groups, -1)
    mean, variance = features.mean(-1, keepdim=True), features.var(-1, keepdim=True, unbiased=False)
    expected = ((features - mean) / (variance + 1e-5).sqrt()).clamp(min=0).reshape(2, channels, 4, 4)
    torch.testing.assert_close(layer(images), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_bias_only_without_normalisation(norm: str) -> None:
    assert (ConvNormAct(1, 4, norm=norm)[0].bias is not None) == (norm == "none")


def test_an_unknown_normalisation_is_named() -> None:
    with pytest.raises(SettingError, match=r"model.norm: unknown normalisation 'bach'; did you mean batch\?"):
        ConvNormAct(1, 1, norm="bach")


@pytest.mark.parametrize(
    ("layer", "sources"),
    [
        (nn.Conv2d(64, 128, 3), 9 * 64),
        (nn.Conv2d(1024, 64, 1), 1024),
        (nn.Conv2d(4096, 4096, 3, groups=4096), 9),
        (nn.ConvTranspose2d(128, 64, kernel_size=2, stride=2), 128),
        (nn.ConvTranspose2d(128, 64, kernel_size=4, stride=2), 4 * 128),
    ],
)
def test_he_start_keeps_the_spread_of_the_values(layer: nn.Module, sources: int) -> None:
    """`sources` input values make one output value; 30,000 draws and more are within 3% of the deviation."""
    torch.manual_seed(0)
    he_start(layer)
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / sources), rel=0.03)
    assert layer.weight.mean().item() == pytest.approx(0, abs=0.03 * math.sqrt(2 / sources))
    assert not layer.bias.any()


def test_he_start_leaves_other_layers_alone() -> None:
    norm = nn.BatchNorm2d(3)
    he_start(norm)
    assert norm.weight.tolist() == [1, 1, 1]


def test_he_start_without_a_bias() -> None:
    layer = nn.Conv2d(1, 1, 1, bias=False)
    he_start(layer)
    assert layer.bias is None
