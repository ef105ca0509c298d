"""Context written out with plain torch operators; what is local and what is not, by probing."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import draw, lively
from pixelwise.core.errors import SettingError
from pixelwise.geometry.reach import Reach
from pixelwise.layers import (
    WHOLE_IMAGE,
    AtrousSpatialPyramidPooling,
    GlobalAveragePool,
    GlobalMaxPool,
    PyramidPooling,
)
from pixelwise.layers.context import GridAveragePool


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_global_pooling() -> None:
    features = draw(2, 3, 4, 5)
    np.testing.assert_allclose(GlobalAveragePool()(features)[:, :, 0, 0], features.numpy().mean((2, 3)), atol=1e-12)
    np.testing.assert_array_equal(GlobalMaxPool()(features)[:, :, 0, 0], features.numpy().max((2, 3)))
    assert GlobalAveragePool()(features).shape == GlobalMaxPool()(features).shape == (2, 3, 1, 1)
    assert GlobalAveragePool.reason == GlobalMaxPool.reason == WHOLE_IMAGE


def spread(kernel: Tensor, rate: int) -> Tensor:
    """The kernel with holes, so that an ordinary convolution is atrous."""
    side = (kernel.shape[-1] - 1) * rate + 1
    holes = kernel.new_zeros(*kernel.shape[:2], side, side)
    holes[..., ::rate, ::rate] = kernel
    return holes


def test_the_atrous_pyramid_is_its_branches_mixed() -> None:
    module = lively(AtrousSpatialPyramidPooling(4, 6, rates=(2, 5)))
    features = draw(2, 4, 9, 7)
    branches = []
    for branch, rate in zip(module.branches, (1, 2, 5), strict=True):
        convolution, norm, _ = branch
        reach = convolution.kernel_size[0] // 2 * rate
        plain = F.conv2d(F.pad(features, [reach] * 4), spread(convolution.weight, rate))
        branches.append(F.relu(norm(plain)))
    mean = features.mean((2, 3), keepdim=True)
    convolution = module.image[1][0]
    branches.append(F.relu(F.conv2d(mean, convolution.weight, convolution.bias)).expand(2, 6, 9, 7))
    convolution, norm, _ = module.mix
    expected = F.relu(norm(F.conv2d(torch.cat(branches, 1), convolution.weight)))
    torch.testing.assert_close(module(features), expected, rtol=0, atol=1e-10)
    assert [branch[0].kernel_size[0] for branch in module.branches] == [1, 3, 3]
    assert module.reason == WHOLE_IMAGE


def changed(module: nn.Module, side: int) -> Tensor:
    """Side x side: which pixels change with the middle one of 16 channels."""
    features = draw(1, 16, side, side)
    other = features.clone()
    other[..., side // 2, side // 2] += 1
    return (module(features) != module(other)).any(1)[0]


@pytest.mark.parametrize("separable", [False, True])
def test_without_the_image_branch_the_atrous_pyramid_is_exact(separable: bool) -> None:
    module = lively(AtrousSpatialPyramidPooling(16, 16, rates=(1, 4), image_branch=False, separable=separable))
    assert module.reason == ""
    places = changed(module, 15).nonzero() - 7
    first, last = Reach.of_input(1).convolution(3, dilation=4).cells[0]
    assert (int(places.min()), int(places.max())) == (first, last) == (-4, 4)


@pytest.mark.parametrize("make", [lambda: AtrousSpatialPyramidPooling(16, 16, rates=(1,)), lambda: PyramidPooling(16)])
def test_pooling_over_the_image_reaches_every_pixel(make: Callable[[], nn.Module]) -> None:
    module = lively(make())
    assert module.reason == WHOLE_IMAGE
    assert changed(module, 31).all()


def test_pyramid_pooling_is_the_features_and_their_means() -> None:
    module = lively(PyramidPooling(9, bins=(1, 3)))
    features = draw(2, 9, 6, 12)
    parts = [features]
    for grid, count in zip(module.grids, (1, 3), strict=True):
        means = features.numpy().reshape(2, 9, count, 6 // count, count, 12 // count).mean((3, 5))
        convolution, norm, _ = grid[1]
        narrow = F.relu(norm(F.conv2d(torch.from_numpy(means), convolution.weight, convolution.bias)))
        parts.append(F.interpolate(narrow, size=(6, 12), mode="bilinear"))
    torch.testing.assert_close(module(features), torch.cat(parts, 1), rtol=0, atol=1e-10)
    assert module.out_channels == 9 + 2 * 4


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (13, 20)])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_any_size_and_a_batch_of_one_in_training(size: tuple[int, int], norm: str) -> None:
    features = torch.randn(1, 8, *size)
    assert PyramidPooling(8, norm=norm)(features).shape == (1, 16, *size)
    if size != (1, 1):  # where its norms would have one value
        assert AtrousSpatialPyramidPooling(8, 4, norm=norm)(features).shape == (1, 4, *size)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AtrousSpatialPyramidPooling(4, rates=(6, 0)), "rates: must be at least 1 pixel each, not 6, 0."),
        (lambda: PyramidPooling(4, bins=()), "bins: must be one or more numbers of at least 1, not ()."),
        (lambda: PyramidPooling(4, bins=(0, 1)), "bins: must be one or more numbers of at least 1, not (0, 1)."),
        (lambda: PyramidPooling(3), "bins: 4 grids need at least 4 channels, but there are 3."),
    ],
)
def test_settings_that_make_no_sense(call: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(SettingError, match="^" + re.escape(message) + "$"):
        call()


@pytest.mark.parametrize("image_branch", [False, True])
def test_a_branch_of_its_own_for_another_map(image_branch: bool) -> None:
    """Without weights for that map the pyramid is the plain one; with them it is not."""
    ours = AtrousSpatialPyramidPooling(6, 4, (2, 3), image_branch, norm="group", extra_channels=1).double()
    plain = AtrousSpatialPyramidPooling(6, 4, (2, 3), image_branch, norm="group").double()
    plain.branches.load_state_dict(ours.branches.state_dict())
    if image_branch:
        plain.image.load_state_dict(ours.image.state_dict())
    features, edges = draw(2, 6, 9, 7), draw(2, 1, 9, 7, seed=1).sigmoid()
    with torch.no_grad():
        weights = ours.mix[0].weight
        weights[:, 12:16] = 0
        plain.mix[0].weight.copy_(torch.cat([weights[:, :12], weights[:, 16:]], dim=1))
        torch.testing.assert_close(ours(features, edges), plain(features), rtol=0, atol=1e-10)
        weights[:, 12:16] = 1
        assert (ours(features, edges) - plain(features)).abs().max() > 1e-3


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (13, 6), (24, 3)], ids=str)
def test_means_over_a_grid(bins: int, size: tuple[int, int]) -> None:
    features = draw(2, 3, *size)
    torch.testing.assert_close(
        GridAveragePool(bins)(features), F.adaptive_avg_pool2d(features, bins), rtol=0, atol=1e-12
    )
