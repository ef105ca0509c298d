"""Windows, views and blends against plain numpy; plans against a memory that is made up."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from pixelwise.core.errors import ModelError, SettingError
from pixelwise.core.windows import Read, Window, reader
from pixelwise.engines import Arrays, EngineChoice, TorchEngine
from pixelwise.geometry.reach import Geometry, round_up
from pixelwise.geometry.sizes import Sizes
from pixelwise.models import UNet
from pixelwise.prediction import runner as running
from pixelwise.prediction.predictor import ApproximateWarning, make_runner, predict
from pixelwise.prediction.runner import Blender, Runner, cut, largest_map, planes_of, sizes_of
from pixelwise.prediction.tiling import Tiling, plan_overlapping_tiles, plan_tiles, plan_unpadded_tiles

SIDES = st.integers(1, 70)
PIXEL = 1000.0  # bytes of a window's pixel, where the memory is made up
PLENTY = 10**15


def lively(**keywords: Any) -> UNet:
    """A small network in float64 and eval mode whose batch norm has seen something."""
    torch.manual_seed(0)
    network = UNet(1, 3, width=2, **keywords).double()
    network(torch.randn(4, 1, 60, 60).double())
    return network.eval()


def forward(network: nn.Module, image: np.ndarray) -> np.ndarray:
    """H x W -> K x h x w by one plain forward."""
    with torch.no_grad():
        return network(torch.from_numpy(np.ascontiguousarray(image))[None, None])[0].numpy()


def draw(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(height, width))


SAME = lively(depth=2)
VALID = lively(depth=2, padding="valid")


# Plans. The engine is never asked, but for what a pixel costs.


class Idle:
    name, device, note = "idle", "cpu", ""

    def __call__(self, images: np.ndarray) -> Arrays:
        raise AssertionError("nothing is to be run")


class Measured(Runner):
    bytes_per_pixel = PIXEL


@pytest.fixture
def empty_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that holds nothing yet, and small constants."""
    monkeypatch.setattr(running, "held_bytes", lambda: 0)
    monkeypatch.setattr(running, "WHOLE_PIXELS", 400 * 400)
    monkeypatch.setattr(running, "LARGEST_TILE", 200)
    monkeypatch.setattr(running, "SAFE_MAPS", 10**9)  # so that it is always measured


def room_for(side: int) -> int:
    """The limit under which a window of that side just fits."""
    return running.FIXED_BYTES + math.ceil(PIXEL) * side**2


EXACT = Geometry(stride=8, halo=20, margin=13)  # 16 on the grid
GLOBAL = Geometry(stride=8, halo=99, margin=99, exact=False, reason="it sees all")


def planner(geometry: Geometry = EXACT, network: nn.Module | None = None) -> Runner:
    sizes = Sizes(1, geometry) if network is None else sizes_of(network, 1)
    return Measured(Idle(), network or nn.Identity(), sizes)


@pytest.mark.usefixtures("empty_memory")
def test_a_small_image_is_not_cut_where_it_fits() -> None:
    assert planner().plan(100, 96, "auto", room_for(104)).tile is None
    assert planner().plan(100, 96, None, room_for(104)).tile is None
    assert len(planner().plan(90, 90, 40, PLENTY).tiles) == 9
    assert planner().plan(100, 96, "auto", room_for(60)).tile == 24
    with pytest.raises(SettingError, match="the largest tile that does is 24"):
        planner().plan(100, 96, None, room_for(60))


@pytest.mark.usefixtures("empty_memory")
def test_auto_takes_the_whole_then_large_tiles_then_what_fits() -> None:
    runner = planner()
    assert runner.plan(400, 400, "auto", PLENTY).tile is None
    assert runner.plan(400, 408, "auto", PLENTY).tile == 200
    assert runner.plan(400, 400, "auto", room_for(399)).tile == 200
    assert runner.plan(400, 400, "auto", room_for(100)).tile == 100 // 8 * 8 - 2 * 16
    assert runner.plan(400, 400, "auto", room_for(40)).tile == 8


def test_where_the_memory_is_ample_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runner, "bytes_per_pixel", property(lambda runner: pytest.fail("it was measured")))
    runner = Runner(Idle(), nn.Identity(), Sizes(1, EXACT))
    assert runner.plan(400, 400, "auto", 2**50).tile is None


def test_what_an_engine_keeps_is_no_new_need(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([1000, 10**12])
    monkeypatch.setattr(running, "held_bytes", lambda: next(held))
    runner = planner()
    assert runner.base == 1000
    assert runner._room(1000 + room_for(50)) == 50 * 50


@pytest.mark.usefixtures("empty_memory")
def test_auto_tiles_a_network_that_is_not_exact_only_where_it_must() -> None:
    runner = planner(GLOBAL)
    assert runner.plan(1000, 1000, "auto", PLENTY).tile is None
    plan = runner.plan(1000, 1000, "auto", room_for(999))
    assert plan.tile == 200
    assert plan.overlap == 56  # a quarter, on the grid


@given(st.integers(30, 500), st.sampled_from([1, 3, 8, 16]), st.integers(0, 20), st.booleans())
@settings(deadline=None, max_examples=100)
def test_auto_tiles_lie_on_the_grid_and_fit(side: int, stride: int, margin: int, exact: bool) -> None:
    runner = planner(Geometry(stride, margin, margin, exact))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "held_bytes", lambda: 0)
        patch.setattr(running, "WHOLE_PIXELS", 0)
        patch.setattr(running, "LARGEST_TILE", 50)
        if side < stride + (2 * round_up(margin, stride) if exact else stride):
            with pytest.raises(SettingError, match="of memory is not enough"):
                runner.plan(600, 700, "auto", room_for(side))
            return
        plan = runner.plan(600, 700, "auto", room_for(side))
    assert plan.tile is not None
    assert plan.tile % stride == 0
    assert math.prod(plan.window_shape) <= side**2


@pytest.mark.usefixtures("empty_memory")
@pytest.mark.parametrize("network", [None, VALID, "global"])
def test_a_tile_that_does_not_fit_names_the_largest_that_does(network: Any) -> None:
    runner = planner(GLOBAL) if network == "global" else planner(VALID.geometry if network else EXACT, network)
    for side in (120, 131, 150, 222):
        with pytest.raises(
            SettingError, match=r"the tile with its margin\) does not fit into \d+ MiB .* is \d+\."
        ) as info:
            runner.plan(4000, 4000, 800, room_for(side))
        largest = int(str(info.value).rstrip(".").split()[-1])
        runner.plan(4000, 4000, largest, room_for(side))
        above = largest + runner.geometry.stride
        with pytest.raises(SettingError, match=f"that does is {largest}"):
            runner.plan(above * 40, above * 40, above, room_for(side))


@pytest.mark.usefixtures("empty_memory")
@pytest.mark.parametrize("tile", ["auto", 80, None])
def test_too_little_memory_for_any_tile(tile: Any) -> None:
    message = r"65 MiB of memory is not enough: the process holds 0 MiB .* it would hold about 66 MiB\. Allow more"
    with pytest.raises(SettingError, match=message):  # a tile of 8 with 16 around it: 40 x 40 x 1000 bytes
        planner().plan(1000, 1000, tile, limit=room_for(30))
    message = r"64 MiB of memory is not enough: .* it would hold about 64 MiB\. Allow more"
    with pytest.raises(SettingError, match=message):  # 16 x 16 x 1000 bytes
        planner(GLOBAL).plan(1000, 1000, tile, limit=room_for(15))
    assert planner(GLOBAL).plan(1000, 1000, "auto", limit=room_for(16)).window_shape == (16, 16)


@pytest.mark.parametrize("tile", [0, -8, True, 8.0, "large"])
def test_tiles_that_are_none(tile: Any) -> None:
    with pytest.raises(SettingError, match=r'must be a positive number of pixels, "auto" or None'):
        planner().plan(9, 9, tile, PLENTY)


@pytest.mark.parametrize("network", [SAME, VALID, UNet(1, 3, width=2, depth=1)])
def test_what_a_pixel_costs_is_measured_in_the_type_of_the_network(
    network: UNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "PROBE_SIDE", 64)
    runner = make_runner(network, 1, EngineChoice("torch"))
    size = next(network.parameters()).element_size()
    waiting = size * running.WAITING * (1 + 3)
    assert runner.bytes_per_pixel >= waiting + 2.2 * size * 2  # two maps of 2 channels at least
    assert runner.seconds_per_pixel > 0


@pytest.mark.usefixtures("empty_memory")
def test_the_cost_of_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "SAFE_MAPS", 10)
    runner = Runner(Idle(), nn.Identity(), Sizes(1, EXACT))
    plan = runner.plan(100, 100, None, PLENTY)
    assert runner.cost(plan) == running.FIXED_BYTES + 10 * 4 * 104**2  # a map of 4 bytes
    runner.__dict__["bytes_per_pixel"] = PIXEL  # as if it were measured
    assert runner.cost(plan) == running.FIXED_BYTES + PIXEL * 104**2


# Windows


def padded_by_numpy(image: np.ndarray, before: int, after: int, border: str) -> np.ndarray:
    frame = ((before, after), (before, after), (0, 0))
    return np.pad(image, frame, mode="edge") if border == "edge" else np.pad(image, frame, mode="reflect")


@given(SIDES, SIDES, st.integers(1, 4), st.integers(0, 90), st.sampled_from(["edge", "reflect"]))
@settings(deadline=None, max_examples=60)
def test_windows_are_those_of_the_image_padded_by_numpy(
    height: int, width: int, strides: int, margin: int, border: str
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (height, width, 2))
    if border == "edge":
        plan = plan_tiles((height, width), 8 * strides, 8, margin)
    else:
        plan = plan_unpadded_tiles((height, width), 8 * strides, 8, margin, lambda side: side + 2 * margin + 5)
    assert plan.border == border
    frame = margin + 64
    padded = padded_by_numpy(image, margin, frame, border)
    for tile in plan.tiles:
        window = cut(reader(image), plan, tile)
        np.testing.assert_array_equal(window, padded[tile.window.moved(margin, margin).slices])


def test_windows_read_no_pixel_outside_of_the_image() -> None:
    plan = plan_unpadded_tiles((20, 30), 8, 8, 12, lambda side: side + 24)

    def read(window: Window) -> np.ndarray:
        assert 0 <= window.y0 < window.y1 <= 20
        assert 0 <= window.x0 < window.x1 <= 30
        assert max(window.height, window.width) <= 32
        return np.zeros((window.height, window.width, 1))

    assert all(cut(read, plan, tile).shape == (32, 32, 1) for tile in plan.tiles)


# Views


def literal_views(network: nn.Module, padded: np.ndarray, views: str) -> np.ndarray:
    """The mean over flips and quarter turns, each undone in the logits."""
    outputs = []
    for turns in range(4 if views == "turns" else 1):
        for axes in [(), (0,)] if views == "turns" else [(), (0,), (1,), (0, 1)]:
            seen = np.rot90(np.flip(padded, axes), turns)
            back = np.rot90(forward(network, seen), -turns, axes=(1, 2))
            outputs.append(np.flip(back, tuple(axis + 1 for axis in axes)))
    assert len(outputs) == running.VIEWS[views]
    return np.mean(outputs, axis=0)


@given(SIDES, SIDES, st.sampled_from(["flips", "turns"]), st.integers(1, 6))
@settings(deadline=None, max_examples=12)
def test_views_are_the_mean_over_the_turned_image(height: int, width: int, views: str, strides: int) -> None:
    image = draw(height, width)
    padded = np.pad(image, ((0, -height % 4), (0, -width % 4)), mode="edge")
    expected = literal_views(SAME, padded, views)[:, :height, :width]
    for tile in (None, 4 * strides):
        result = predict(SAME, image, tile, logits=True, views=views)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10)


@given(SIDES, SIDES, st.sampled_from(["flips", "turns"]), st.integers(1, 6))
@settings(deadline=None, max_examples=8)
def test_views_of_a_network_without_padding(height: int, width: int, views: str, strides: int) -> None:
    image, margin = draw(height, width), VALID.geometry.margin
    sides = [(margin, VALID.input_size(side) - side - margin) for side in (height, width)]
    expected = literal_views(VALID, np.pad(image, sides, mode="reflect"), views)[:, :height, :width]
    for tile in (None, 4 * strides):
        result = predict(VALID, image, tile, logits=True, views=views)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10)


def test_views_that_there_are_not() -> None:
    with pytest.raises(SettingError, match=r"views flip: is not a test-time augmentation; did you mean flips\?"):
        predict(SAME, draw(5, 5), views="flip")


# Blending


def blended(plan: Tiling, windows: Read) -> np.ndarray:
    blender = Blender(plan)
    out = np.full((2, plan.height, plan.width), np.nan)
    for tile in plan.tiles:
        out[:, *tile.owned.slices] = blender.add(tile, windows(tile.window))
    return out


@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 8), st.sampled_from([2, 3, 8]))
@settings(deadline=None, max_examples=40)
def test_the_weights_sum_to_one(height: int, width: int, strides: int, stride: int) -> None:
    plan = plan_overlapping_tiles((height, width), strides * stride, stride)
    logits = np.random.default_rng(0).normal(size=(2, height + 100, width + 100))
    result = blended(plan, lambda window: logits[:, *window.slices].copy())
    np.testing.assert_allclose(result, logits[:, :height, :width], rtol=0, atol=1e-12)


def test_the_weights_fade_from_window_to_window() -> None:
    plan = plan_overlapping_tiles((8, 68), 32, 4)
    numbers = iter(range(9))
    flat = blended(plan, lambda window: np.full((2, window.height, window.width), float(next(numbers))))
    steps = np.diff(flat[0, 0])
    assert (steps >= 0).all()
    assert steps.max() <= 1 / (plan.overlap - 1) + 1e-12
    assert steps.sum() == len(plan.tiles) - 1 == 1


class Pooled(nn.Module):
    """A convolution, and the mean of the whole image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 2, 3, padding=1).double()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.convolution(images)
        return maps + functional.adaptive_avg_pool2d(maps, 1)


def test_blended_tiles_of_global_pooling_come_near_with_a_warning() -> None:
    network, image = Pooled(), draw(100, 130)
    with pytest.warns(ApproximateWarning, match=r"Pooled: an output pixel depends on every .* overlap and are blended"):
        result = predict(network, image, tile=40, logits=True)
    away = np.abs(result - forward(network, image))
    assert np.isfinite(result).all()
    assert 1e-6 < away.max() < 0.3  # the means of 40 x 40 normal values are away from 0 by about 1 / 40
    np.testing.assert_allclose(predict(network, image, logits=True), forward(network, image), rtol=0, atol=1e-10)


# Modules without a geometry of their own


class Local(nn.Module):
    """Convolutions with zero padding: any size, and a border that only the image itself has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 5, padding=2)).double()

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Strided(nn.Module):
    """Pools by 2 and upsamples; with `crop` it takes odd sizes in a way of its own."""

    def __init__(self, crop: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.MaxPool2d(2, ceil_mode=crop), nn.Conv2d(3, 2, 3, padding=1),
            nn.Upsample(scale_factor=2),
        ).double()  # fmt: skip
        self.crop = crop

    def forward(self, images: Tensor) -> Tensor:
        logits = self.layers(images)
        return logits[..., : images.shape[2], : images.shape[3]] if self.crop else logits


LOCAL, CROPPING, EVEN = Local(), Strided(crop=True), Strided(crop=False)


def test_what_their_geometry_is() -> None:
    assert sizes_of(LOCAL, 1).any_size
    assert sizes_of(CROPPING, 1).any_size
    assert not sizes_of(EVEN, 1).any_size
    assert [sizes_of(network, 1).geometry.stride for network in (LOCAL, CROPPING, EVEN)] == [1, 2, 2]
    assert all(sizes_of(network, 1).geometry.exact for network in (LOCAL, CROPPING, EVEN))


@given(SIDES, SIDES, st.integers(1, 12), st.sampled_from([LOCAL, CROPPING]))
@settings(deadline=None, max_examples=30)
def test_tiles_of_a_module_that_takes_any_size(height: int, width: int, strides: int, network: nn.Module) -> None:
    image = draw(height, width)
    result = predict(network, image, tile=2 * strides, logits=True)
    np.testing.assert_allclose(result, forward(network, image), rtol=0, atol=1e-10)


def test_their_windows_end_with_the_image() -> None:
    plan = make_runner(CROPPING, 1).plan(31, 33, 8, PLENTY)
    assert max(tile.window.y1 for tile in plan.tiles) == 31
    assert max(tile.window.x1 for tile in plan.tiles) == 33


@given(SIDES, SIDES, st.integers(1, 12))
@settings(deadline=None, max_examples=30)
def test_odd_sizes_are_padded_for_a_module_that_takes_even_ones(height: int, width: int, strides: int) -> None:
    image = draw(height, width)
    padded = np.pad(image, ((0, height % 2), (0, width % 2)), mode="edge")
    expected = forward(EVEN, padded)[:, :height, :width]
    for tile in (None, 2 * strides):
        np.testing.assert_allclose(predict(EVEN, image, tile, logits=True), expected, rtol=0, atol=1e-10)


@given(SIDES, SIDES, st.sampled_from(["flips", "turns"]), st.integers(1, 12))
@settings(deadline=None, max_examples=12)
def test_views_of_such_a_module_are_exact_too(height: int, width: int, views: str, strides: int) -> None:
    image = draw(height, width)
    padded = np.pad(image, ((0, height % 2), (0, width % 2)), mode="edge")
    expected = literal_views(CROPPING, padded, views)[:, :height, :width]
    for tile in (None, 2 * strides):
        result = predict(CROPPING, image, tile, logits=True, views=views)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10)


def test_a_module_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[nn.Module] = []
    probe = running.probe_geometry

    def counting(network: nn.Module, channels: int) -> Any:
        calls.append(network)
        return probe(network, channels)

    monkeypatch.setattr(running, "probe_geometry", counting)
    network, other = nn.Conv2d(1, 2, 1).double(), nn.Conv2d(1, 2, 1).double()
    for _ in range(3):
        predict(network, draw(20, 20), tile=8)
    predict(other, draw(20, 20), tile=8)
    assert calls == [network, other]
    predict(SAME, draw(20, 20), tile=8)  # states its own
    predict(Local(), draw(20, 20))  # a small image that is not cut needs no geometry
    assert calls == [network, other]


# What a run gives


class Cropped(nn.Module):
    geometry = Geometry(stride=1, halo=1, margin=1)

    def forward(self, images: Tensor) -> Tensor:
        return images[..., 1:-1, :]


@pytest.mark.parametrize("views", ["none", "turns"])
def test_a_module_that_gives_another_size_than_promised(views: str) -> None:
    runner = make_runner(Cropped(), 1, EngineChoice("torch"), views)
    message = (
        r"the network returned 2 x 1 x 10 x 9 for 2 x 1 x 12 x 9; it must return logits N x classes x H x W, "
        r"here 2 x classes x 12 x 9\."
    )
    with pytest.raises(ModelError, match=message):
        runner(np.zeros((2, 1, 12, 9), np.float32))


def test_a_network_without_padding_that_breaks_its_word() -> None:
    runner = replace(make_runner(VALID, 1), engine=TorchEngine(nn.Identity()))
    side = VALID.input_size(8)
    with pytest.raises(ModelError, match=f"here 1 x classes x {VALID.output_size(side)} x {VALID.output_size(side)}"):
        runner(np.zeros((1, 1, side, side)))


def test_tiles_come_in_order_with_what_they_own() -> None:
    runner, image = make_runner(SAME, 1), draw(30, 40)[..., None]
    plan = runner.plan(30, 40, 12, PLENTY)
    parts = list(runner.run(lambda tile: planes_of(cut(reader(image), plan, tile)), plan))
    assert [tile for tile, _ in parts] == list(plan.tiles)
    assert all(logits.shape == (3, tile.owned.height, tile.owned.width) for tile, logits in parts)


def test_the_largest_map_of_a_network() -> None:
    network = nn.Sequential(nn.Conv2d(1, 7, 1), nn.MaxPool2d(2), nn.Conv2d(7, 40, 1)).train()
    images = np.zeros((1, 1, 8, 6), np.float32)
    assert largest_map(network, images) == 40  # 40 of 4 bytes at a quarter of the pixels: more than 7 of 4 bytes
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())
