"""Plans by their properties; tiled = whole in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from pixelwise.core.errors import DataError, SettingError
from pixelwise.core.windows import Window
from pixelwise.data.pixels.scaling import Scaling
from pixelwise.geometry.reach import round_up
from pixelwise.models import UNet
from pixelwise.prediction.tiling import Tile, Tiling, of_scaled, plan_overlapping_tiles, plan_tiles, plan_unpadded_tiles

SIZES = st.integers(1, 120)


@given(SIZES, SIZES, st.integers(1, 5), st.sampled_from([1, 2, 4, 16]), st.integers(0, 50), st.booleans())
@settings(deadline=None, max_examples=100)
def test_a_plan(height: int, width: int, strides: int, stride: int, margin: int, any_size: bool) -> None:
    owners = np.zeros((height, width), int)
    plan = plan_tiles((height, width), strides * stride, stride, margin, any_size)
    for tile in plan.tiles:
        owners[tile.owned.slices] += 1
        rows, columns = (*tile.owned[:2], *tile.window[:2], height), (*tile.owned[2:], *tile.window[2:], width)
        for start, end, first, last, size in (rows, columns):
            padded = size if any_size else round_up(size, stride)
            assert start % stride == first % stride == 0
            assert 0 < end - start <= strides * stride
            # The margin is there on both sides, or the image ends.
            assert first == 0 or margin <= start - first
            assert last == padded or (last % stride == 0 and margin <= last - end)
            assert 0 <= first <= start < end <= last <= padded
            assert last - first <= min(padded, end - start + 2 * (margin + 2 * stride) + strides * stride)
        shape = tile.window.height, tile.window.width
        assert any_size or shape == plan.window_shape
    assert (owners == 1).all()
    assert plan.window_pixels >= height * width


@given(SIZES, SIZES, st.integers(1, 5), st.integers(0, 40))
@settings(deadline=None, max_examples=30)
def test_cutting_and_stitching_gives_the_image_back(height: int, width: int, strides: int, margin: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width))
    padded = np.pad(image, ((0, 8), (0, 8)), mode="edge")
    copy = np.full_like(image, -1)
    for tile in plan_tiles((height, width), strides * 8, 8, margin).tiles:
        copy[tile.owned.slices] = padded[tile.window.slices][tile.inside(0).slices]
    np.testing.assert_array_equal(copy, image)


def test_one_tile_holds_a_small_image() -> None:
    assert plan_tiles((1, 1), tile=64, stride=16, margin=94).tiles == (Tile(Window.whole(1, 1), Window.whole(16, 16)),)
    assert plan_tiles((1, 1), None, stride=16, margin=94).window_shape == (16, 16)


def test_border_tiles_have_a_margin_on_one_side_alone() -> None:
    plan = plan_tiles((2048, 2048), tile=1024, stride=16, margin=94)
    assert (len(plan.tiles), plan.window_shape) == (4, (1120, 1120))


@given(SIZES, SIZES, st.integers(1, 5), st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_a_plan_without_padding(height: int, width: int, strides: int, spare: int) -> None:
    """Logits of windows that lose `margin` on each side cover what the tiles own."""
    margin, stride = 6, 4
    owners = np.zeros((height, width), int)
    plan = plan_unpadded_tiles((height, width), strides * stride, stride, margin, lambda n: n + 2 * margin + spare)
    assert (plan.lost, plan.border) == (margin, "reflect")
    for tile in plan.tiles:
        owners[tile.owned.slices] += 1
        assert (tile.window.height, tile.window.width) == plan.window_shape
        logits = np.zeros((tile.window.height - 2 * margin, tile.window.width - 2 * margin))
        assert logits[tile.inside(margin).slices].shape == (tile.owned.height, tile.owned.width)
        assert tile.owned.y0 % stride == tile.owned.x0 % stride == 0
        assert tile.window.y0 == tile.owned.y0 - margin
    assert (owners == 1).all()


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 6), st.sampled_from([1, 4, 16]))
@settings(deadline=None, max_examples=100)
def test_a_plan_with_overlaps(height: int, width: int, strides: int, stride: int) -> None:
    owners = np.zeros((height, width), int)
    plan = plan_overlapping_tiles((height, width), strides * stride, stride)
    assert plan.overlap % stride == 0
    assert plan.overlap >= strides * stride / 4
    starts = {tile.window.y0 for tile in plan.tiles}
    for tile in plan.tiles:
        owners[tile.owned.slices] += 1
        assert tile.window.y0 <= tile.owned.y0 < tile.owned.y1 <= tile.window.y1
        assert tile.window.x0 <= tile.owned.x0 < tile.owned.x1 <= tile.window.x1
        assert (tile.window.height, tile.window.width) == plan.window_shape
        assert tile.window.y1 >= height or tile.window.y1 - plan.overlap in starts  # neighbours share the overlap
    assert (owners == 1).all()


def scaled_plans(height: int, width: int, tile: int, stride: int) -> list[Tiling]:
    """A plan of each kind, right for one pixel more than a tile owns."""
    return [
        plan_tiles((height, width), tile, stride, 5 + 1),
        plan_unpadded_tiles((height, width), tile, stride, 6, lambda length: length + 12, more=1),
        plan_overlapping_tiles((height, width), tile, stride),
    ]


@given(SIZES, SIZES, st.sampled_from([0.5, 0.37, 0.1, 1.5]), st.integers(2, 4), st.sampled_from([4, 16]))
@settings(deadline=None, max_examples=20)
def test_tiles_of_an_image_that_is_scaled(height: int, width: int, scale: float, strides: int, stride: int) -> None:
    scaling = Scaling.by(height, width, scale)
    for small in scaled_plans(scaling.height, scaling.width, strides * stride, stride):
        plan = of_scaled(small, scaling)
        assert plan.seen_shape == (scaling.height, scaling.width)
        assert (plan.window_shape, plan.tile) == (small.window_shape, small.tile)
        owners = np.zeros((height, width), int)
        logits = np.random.default_rng(0).normal(size=(1, scaling.height + 200, scaling.width + 200))
        whole = scaling.back(logits, Window.whole(scaling.height, scaling.width), Window.whole(height, width))
        for tile in plan.tiles:
            owners[tile.owned.slices] += 1
            seen = logits[:, *tile.window.shrunk(plan.lost).slices]
            np.testing.assert_array_equal(plan.part(tile, seen), whole[:, *tile.owned.slices])
            source = plan.source(tile)
            assert 0 <= source.y0 <= tile.owned.y0 < tile.owned.y1 <= source.y1 <= height
            assert 0 <= source.x0 <= tile.owned.x0 < tile.owned.x1 <= source.x1 <= width
        assert (owners == 1).all()


def test_the_windows_of_scaled_tiles_hold_the_margin_of_one_pixel_more() -> None:
    plan = of_scaled(plan_tiles((100, 100), tile=16, stride=8, margin=8 + 1), Scaling.by(200, 200, 0.5))
    tile = plan.tiles[8]
    assert tile.owned == (33, 65, 33, 65)  # the centre of pixel 33 lies behind that of 16
    assert tile.window == (0, 48, 0, 48)  # 16 to 32 with a margin of 16
    assert plan.source(tile) == (0, 96, 0, 96)


@pytest.mark.parametrize(
    ("tile", "choices"),
    [(100, "96 or 112"), (7, "16, the smallest"), (0, "16, the smallest"), (-32, "16, the s")],
)
def test_a_tile_off_the_grid_is_refused(tile: int, choices: str) -> None:
    message = f"tile: {tile} is not a multiple of the network's stride 16; take {choices}"
    with pytest.raises(SettingError, match=message):
        plan_tiles((100, 100), tile, stride=16, margin=94)


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused(height: int, width: int) -> None:
    with pytest.raises(DataError, match=f"an image of {height} x {width} pixels has nothing to predict"):
        plan_tiles((height, width), tile=16, stride=16, margin=94)


def tiled(network: nn.Module, images: Tensor, tile: int, margin: int) -> Tensor:
    """What the network gives tile by tile."""
    height, width = images.shape[-2:]
    logits = torch.full((images.shape[0], network.num_classes, height, width), torch.nan, dtype=images.dtype)
    padded = functional.pad(images, (0, 64, 0, 64), mode="replicate")
    for part in plan_tiles((height, width), tile, network.geometry.stride, margin).tiles:
        logits[..., *part.owned.slices] = network(padded[..., *part.window.slices])[..., *part.inside(0).slices]
    return logits


def lively(**keywords: int) -> nn.Module:
    """A network whose batch norm has figures of its own, in eval mode and float64."""
    torch.manual_seed(0)
    network = UNet(in_channels=1, num_classes=3, **keywords).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.bias, 0.0, 0.5)
    return network.eval()


@pytest.mark.parametrize(("depth", "stem"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("strides", [1, 2, 3])
def test_tiled_is_whole(depth: int, stem: int, strides: int) -> None:
    network = lively(width=2, depth=depth, stem=stem)
    stride, margin = network.geometry.stride, network.geometry.margin
    generator = torch.Generator().manual_seed(strides)
    side = 4 * stride + 1  # a border tile with a single real row or column, and others inside
    for height, width in [(1, 1), (side, 3 * stride - 1), (2, side + stride // 2)]:
        images = torch.randn(1, 1, height, width, dtype=torch.float64, generator=generator)
        with torch.inference_mode():
            difference = (tiled(network, images, strides * stride, margin) - network(images)).abs().max()
        assert difference < 1e-10


def test_a_margin_of_one_stride_less_leaves_seams() -> None:
    """The test above can fail: the margin of the form without padding, 20, is too little on the grid."""
    network = lively(width=4, depth=2)
    images = torch.randn(1, 1, 60, 61, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = network(images)
        assert (tiled(network, images, 8, margin=22) - whole).abs().max() < 1e-10
        assert (tiled(network, images, 8, margin=20) - whole).abs().max() > 1e-8
