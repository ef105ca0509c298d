"""The choice of tiles, for a memory that is made up."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pixelwise.core.errors import SettingError
from pixelwise.engines import Arrays
from pixelwise.geometry.reach import Geometry, round_up
from pixelwise.geometry.sizes import Sizes
from pixelwise.models import UNet
from pixelwise.prediction import costs, tiler
from pixelwise.prediction.costs import Costs, Memory
from pixelwise.prediction.sizes import sizes_of
from pixelwise.prediction.tiler import Tiler

PIXEL = 1000.0  # bytes of a window's pixel
PLENTY = Memory(10**15, 0)
VALID = UNet(1, 3, width=2, depth=2, padding="valid")


class Idle:
    name, device, note = "idle", "cpu", ""

    def __call__(self, images: np.ndarray) -> Arrays:
        raise AssertionError("nothing is to be run")


class Measured(Costs):
    bytes_per_pixel = PIXEL


@pytest.fixture
def small_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiler, "WHOLE_PIXELS", 400 * 400)
    monkeypatch.setattr(tiler, "LARGEST_TILE", 200)
    monkeypatch.setattr(costs, "SAFE_MAPS", 10**9)  # so that it is always measured


def room_for(side: int) -> Memory:
    """The memory in which a window of that side just fits."""
    return Memory(costs.FIXED_BYTES + math.ceil(PIXEL) * side**2, held=0)


EXACT = Geometry(stride=8, halo=20, margin=13)  # 16 on the grid
GLOBAL = Geometry(stride=8, halo=99, margin=99, exact=False, reason="it sees all")


def make_tiler(geometry: Geometry = EXACT, network: nn.Module | None = None) -> Tiler:
    sizes = Sizes(1, geometry) if network is None else sizes_of(network, 1)
    return Tiler(sizes, Measured(Idle(), sizes, np.dtype(np.float32), largest_map=4.0))


@pytest.mark.usefixtures("small_constants")
def test_a_small_image_is_not_cut_where_it_fits() -> None:
    assert make_tiler().choose((100, 96), "auto", room_for(104)).tile is None
    assert make_tiler().choose((100, 96), None, room_for(104)).tile is None
    assert len(make_tiler().choose((90, 90), 40, PLENTY).tiles) == 9
    assert make_tiler().choose((100, 96), "auto", room_for(60)).tile == 24
    with pytest.raises(SettingError, match="the largest tile that does is 24"):
        make_tiler().choose((100, 96), None, room_for(60))


@pytest.mark.usefixtures("small_constants")
def test_auto_takes_the_whole_then_large_tiles_then_what_fits() -> None:
    made = make_tiler()
    assert made.choose((400, 400), "auto", PLENTY).tile is None
    assert made.choose((400, 408), "auto", PLENTY).tile == 200
    assert made.choose((400, 400), "auto", room_for(399)).tile == 200
    assert made.choose((400, 400), "auto", room_for(100)).tile == 100 // 8 * 8 - 2 * 16
    assert made.choose((400, 400), "auto", room_for(40)).tile == 8


def test_where_the_memory_is_ample_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Measured, "bytes_per_pixel", property(lambda measured: pytest.fail("it was measured")))
    assert make_tiler().choose((400, 400), "auto", Memory(2**50, 0)).tile is None


@pytest.mark.usefixtures("small_constants")
def test_auto_tiles_a_network_that_is_not_exact_only_where_it_must() -> None:
    made = make_tiler(GLOBAL)
    assert made.choose((1000, 1000), "auto", PLENTY).tile is None
    tiling = made.choose((1000, 1000), "auto", room_for(999))
    assert tiling.tile == 200
    assert tiling.overlap == 56  # a quarter, on the grid


@given(st.integers(30, 500), st.sampled_from([1, 3, 8, 16]), st.integers(0, 20), st.booleans())
@settings(deadline=None, max_examples=100)
def test_auto_tiles_lie_on_the_grid_and_fit(side: int, stride: int, margin: int, exact: bool) -> None:
    made = make_tiler(Geometry(stride, margin, margin, exact))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiler, "WHOLE_PIXELS", 0)
        patch.setattr(tiler, "LARGEST_TILE", 50)
        if side < stride + (2 * round_up(margin, stride) if exact else stride):
            with pytest.raises(SettingError, match="of memory is not enough"):
                made.choose((600, 700), "auto", room_for(side))
            return
        tiling = made.choose((600, 700), "auto", room_for(side))
    assert tiling.tile is not None
    assert tiling.tile % stride == 0
    assert math.prod(tiling.window_shape) <= side**2


@pytest.mark.usefixtures("small_constants")
@pytest.mark.parametrize("network", [None, VALID, "global"])
def test_a_tile_that_does_not_fit_names_the_largest_that_does(network: Any) -> None:
    made = make_tiler(GLOBAL) if network == "global" else make_tiler(VALID.geometry if network else EXACT, network)
    for side in (120, 131, 150, 222):
        with pytest.raises(
            SettingError, match=r"the tile with its margin\) does not fit into \d+ MiB .* is \d+\."
        ) as info:
            made.choose((4000, 4000), 800, room_for(side))
        largest = int(str(info.value).rstrip(".").split()[-1])
        made.choose((4000, 4000), largest, room_for(side))
        above = largest + made.sizes.geometry.stride
        with pytest.raises(SettingError, match=f"that does is {largest}"):
            made.choose((above * 40, above * 40), above, room_for(side))


@pytest.mark.usefixtures("small_constants")
@pytest.mark.parametrize("tile", ["auto", 80, None])
def test_too_little_memory_for_any_tile(tile: Any) -> None:
    message = r"65 MiB of memory is not enough: the process holds 0 MiB .* it would hold about 66 MiB\. Allow more"
    with pytest.raises(SettingError, match=message):  # a tile of 8 with 16 around it: 40 x 40 x 1000 bytes
        make_tiler().choose((1000, 1000), tile, room_for(30))
    message = r"64 MiB of memory is not enough: .* it would hold about 64 MiB\. Allow more"
    with pytest.raises(SettingError, match=message):  # 16 x 16 x 1000 bytes
        make_tiler(GLOBAL).choose((1000, 1000), tile, room_for(15))
    assert make_tiler(GLOBAL).choose((1000, 1000), "auto", room_for(16)).window_shape == (16, 16)


@pytest.mark.parametrize("tile", [0, -8, True, 8.0, "large"])
def test_tiles_that_make_no_sense(tile: Any) -> None:
    with pytest.raises(SettingError, match=r'must be a positive number of pixels, "auto" or None'):
        make_tiler().choose((9, 9), tile, PLENTY)
