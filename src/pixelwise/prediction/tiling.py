"""Tiles of an image: which part each owns and which window it reads. Whole numbers, no torch.

Tiles sit on the network's stride grid and read their margin, so that what the network gives on a tile's owned part
is what it gives there on the whole image. The windows of a tiling have one size, so that an engine prepares itself
once; a window that would stick out of the image is moved inwards, so that the borders of the image stay the
network's own borders.

Of an image that is scaled for the network (`data.scale`), the windows are those of the scaled image, and the tiles own
pixels of the image itself: `of_scaled`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from pixelwise.core.errors import DataError, SettingError
from pixelwise.core.windows import Window
from pixelwise.data.pixels.scaling import Scaling
from pixelwise.geometry.reach import round_up

Shape = tuple[int, int]  # height and width


class Stretch(NamedTuple):
    """A tile along one axis: what it owns and its window, in pixels; each holds its start and not its end."""

    start: int
    end: int
    window_start: int
    window_end: int


@dataclass(frozen=True)
class Tile:
    """One tile: what it owns in pixels of the image, its window in pixels of what the network sees.

    These are the same but for an image that is scaled. The window may reach beyond the image: by less than a stride
    at the right and bottom where the network pads to its stride, by the margin on all sides where it has no padding.

    >>> tile = plan_tiles((100, 100), tile=32, stride=16, margin=10).tiles[5]
    >>> tile.owned, tile.window
    (Window(y0=32, y1=64, x0=32, x1=64), Window(y0=16, y1=80, x0=16, x1=80))
    """

    owned: Window  # what this tile, and no other, writes; within the image
    window: Window  # what the network sees

    def inside(self, lost: int) -> Window:
        """The owned part within the logits, which are `lost` pixels smaller on each side than the window.

        Of an image that is not scaled; `Tiling.part` is for both.
        """
        return self.owned.moved(-self.window.y0 - lost, -self.window.x0 - lost)


@dataclass(frozen=True)
class Tiling:
    """The tiles of an image, row by row.

    Take `window` of the image, extended beyond its border as `border` says, through the network, and put
    `tiling.part(tile, logits)` at `tile.owned`.
    """

    height: int  # of the image
    width: int
    tiles: tuple[Tile, ...] = field(repr=False)
    tile: int | None  # the longest side of an owned part that was asked for; None: the whole image
    lost: int = 0  # pixels that the logits are smaller than the window, on each side
    border: str = "edge"  # or "reflect"
    overlap: int = 0  # pixels that neighbouring windows share and blend; the tiles are approximate then
    scaling: Scaling | None = None  # of the image for the network

    @property
    def seen_shape(self) -> tuple[int, int]:
        """Height and width of what the network sees: the image, or the scaled one."""
        return (self.height, self.width) if self.scaling is None else (self.scaling.height, self.scaling.width)

    @property
    def window_shape(self) -> tuple[int, int]:
        """Height and width of every window, or of the largest."""
        return self.tiles[0].window.height, self.tiles[0].window.width

    @property
    def window_pixels(self) -> int:
        """Pixels that the network computes in all; the image has `height * width`."""
        return len(self.tiles) * math.prod(self.window_shape)

    def part(self, tile: Tile, logits: np.ndarray) -> np.ndarray:
        """K x h x w logits of what the tile owns, from those of its window."""
        if self.scaling is None:
            return logits[:, *tile.inside(self.lost).slices]
        return self.scaling.back(logits, tile.window.shrunk(self.lost), tile.owned)

    def source(self, tile: Tile) -> Window:
        """The window of the image that the tile depends on."""
        inside = tile.window.within(*self.seen_shape)
        return inside if self.scaling is None else self.scaling.source(inside)


def of_scaled(tiling: Tiling, scaling: Scaling) -> Tiling:
    """The tiling of an image from that of its scaled one: the same windows, whose tiles own pixels of the image.

    The logits of `tiling` must be right for one pixel more than a tile owns, at its right and bottom. Where the image
    is the smaller one of the two, tiles that own nothing are left out.

    >>> tiling = of_scaled(plan_tiles((3, 50), tile=16, stride=16, margin=11), Scaling.by(6, 100, 0.5))
    >>> [(*tile.owned[2:], *tile.window[2:]) for tile in tiling.tiles]
    [(0, 33, 0, 48), (33, 65, 0, 48), (65, 97, 16, 64), (97, 100, 16, 64)]
    """
    scaled = [Tile(scaling.owned(tile.owned), tile.window) for tile in tiling.tiles]
    tiles = tuple(tile for tile in scaled if tile.owned.height > 0 and tile.owned.width > 0)
    return replace(tiling, height=scaling.rows[0], width=scaling.columns[0], tiles=tiles, scaling=scaling)


def plan_tiles(shape: Shape, tile: int | None, stride: int, margin: int, any_size: bool = False) -> Tiling:
    """Cut an image for a network that keeps its size.

    Args:
        shape: height and width in pixels, at least 1.
        tile: the longest side of an owned part in pixels, a multiple of `stride`; the margin is not counted. The
            parts are made as equal as the grid allows. None: one tile owns the image.
        stride: the network's stride in pixels (`Geometry.stride`).
        margin: pixels that a tile needs on each side (`Geometry.margin`); rounded up to the stride grid here.
        any_size: the network takes any size, in a way of its own at the right and bottom: the last windows end with
            the image, and may be shorter than the others by less than a stride.

    Returns:
        Tiles that own every pixel exactly once. Windows start and end on multiples of `stride`, the last one (but
        for `any_size`) behind the image's end, where the image is to be padded by its edge pixels.

    Raises:
        DataError: the image has no pixel.
        SettingError: the tile is not a multiple of the stride.

    >>> tiling = plan_tiles((5, 70), tile=32, stride=16, margin=10)
    >>> [(*tile.owned[2:], *tile.window[2:]) for tile in tiling.tiles]
    [(0, 32, 0, 64), (32, 64, 16, 80), (64, 70, 16, 80)]
    """
    _check(shape, tile, stride)
    margin = round_up(margin, stride)
    rows, columns = (_stretches(length, tile, stride, margin, any_size) for length in shape)
    return Tiling(*shape, _cross(rows, columns), tile)


def plan_unpadded_tiles(
    shape: Shape, tile: int | None, stride: int, margin: int, input_size: Callable[[int], int], more: int = 0
) -> Tiling:
    """Cut an image for a network without padding, whose logits are `margin` pixels smaller on each side.

    `input_size` gives the side of the window that it needs for a number of logits (`UNet.input_size`); there are
    to be `more` of them than a tile owns, at its right and bottom. Owned parts start on multiples of `stride`. The
    image is to be mirrored at its border. Errors as in `plan_tiles`.
    """
    _check(shape, tile, stride)
    axes = []
    for length in shape:
        owned = length if tile is None else min(_even(length, tile, stride), length)
        window = input_size(owned if owned == length else owned + more)
        starts = range(0, length, owned)
        axes.append([Stretch(at, min(at + owned, length), at - margin, at - margin + window) for at in starts])
    return Tiling(*shape, _cross(*axes), tile, lost=margin, border="reflect")


def plan_overlapping_tiles(shape: Shape, tile: int, stride: int) -> Tiling:
    """Cut an image for a network whose tiles can only come near: windows overlap by about a quarter, to be blended.

    A tile owns the part of its window that later ones do not share; the last of a row or column owns all of it. Errors
    as in `plan_tiles`.
    """
    _check(shape, tile, stride)
    overlap = overlap_of(tile, stride)
    rows, columns = (_overlapping_stretches(length, tile, stride, overlap) for length in shape)
    return Tiling(*shape, _cross(rows, columns), tile, overlap=overlap)


def overlap_of(tile: int, stride: int) -> int:
    """Pixels that neighbouring windows share: a quarter of the tile, on the stride grid.

    >>> overlap_of(80, stride=16)
    32
    """
    return round_up(math.ceil(tile / 4), stride)


def _overlapping_stretches(length: int, tile: int, stride: int, overlap: int) -> list[Stretch]:
    count = max(1, math.ceil((length - overlap) / tile))
    step = max(round_up(math.ceil((length - overlap) / count), stride), stride)
    starts = range(0, max(length - overlap, 1), step)
    ends = [*starts[1:], length]
    return [Stretch(start, end, start, start + step + overlap) for start, end in zip(starts, ends, strict=True)]


def _check(shape: Shape, tile: int | None, stride: int) -> None:
    if min(shape) < 1:
        raise DataError(f"an image of {shape[0]} x {shape[1]} pixels has nothing to predict.")
    if tile is not None and (tile < 1 or tile % stride):
        below, above = tile // stride * stride, round_up(max(tile, 1), stride)
        choices = f"{below} or {above}" if below > 0 else f"{stride}, the smallest"
        raise SettingError(f"tile: {tile} is not a multiple of the network's stride {stride}; take {choices}.")


def _even(length: int, tile: int, stride: int) -> int:
    """The side that cuts a length into as many parts as `tile` does, but equal ones."""
    count = math.ceil(length / tile)
    return round_up(math.ceil(length / count), stride)


def _stretches(length: int, tile: int | None, stride: int, margin: int, any_size: bool) -> list[Stretch]:
    """The tiles along one axis."""
    padded = round_up(length, stride)
    owned = padded if tile is None else _even(length, tile, stride)
    starts = range(0, length, owned)
    window = min(padded, owned + margin * min(len(starts) - 1, 2))
    stretches = []
    for start in starts:
        window_start = min(max(start - margin, 0), padded - window)
        window_end = min(window_start + window, length) if any_size else window_start + window
        stretches.append(Stretch(start, min(start + owned, length), window_start, window_end))
    return stretches


def _cross(rows: list[Stretch], columns: list[Stretch]) -> tuple[Tile, ...]:
    return tuple(
        Tile(Window(*row[:2], *column[:2]), Window(*row[2:], *column[2:])) for row in rows for column in columns
    )
