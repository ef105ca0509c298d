import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import correlate2d
from torch import nn

from pixelwise.errors import SettingError
from pixelwise.layers import NORMS, ConvNormAct, he_start


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
    with pytest.raises(SettingError, match=r"model.norm: 'bach' is no normalisation; did you mean batch\?"):
        ConvNormAct(1, 1, norm="bach")


@pytest.mark.parametrize(
    ("layer", "sources"),
    [
        (nn.Conv2d(64, 128, 3), 9 * 64),
        (nn.Conv2d(1024, 64, 1), 1024),
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
