"""Tiles of an image: which part each owns and which window it reads. Whole numbers, no torch.

Tiles sit on the network's stride grid and read their margin, so that what the network gives on a tile's owned part
is what it gives there on the whole image. The windows of a plan have one size, so that an engine prepares itself
once; a window that would stick out of the image is moved inwards, so that the borders of the image stay the
network's own borders.

Of an image that is scaled for the network (`data.scale`), the windows are those of the scaled image, and the tiles own
pixels of the image itself: `of_scaled`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pixelwise.core.errors import DataError, SettingError
from pixelwise.data.pixels.scaling import Scaling
from pixelwise.geometry.reach import round_up

Slices = tuple[slice, slice]
Span = tuple[int, int, int, int]  # along one axis: owned start and end, window start and length


@dataclass(frozen=True)
class Tile:
    """One tile: what it owns in pixels of the image, its window in pixels of what the network sees.

    These are the same but for an image that is scaled. Every interval holds its start and not its end. The window may
    reach beyond the image: by less than a stride at the right and bottom where the network pads to its stride, by the
    margin on all sides where it has no padding.

    >>> tile = plan_tiles(100, 100, tile=32, stride=16, margin=10).tiles[5]
    >>> tile.owned, tile.window
    ((slice(32, 64, None), slice(32, 64, None)), (16, 80, 16, 80))
    """

    y0: int  # the owned part: rows y0 to y1, columns x0 to x1, within the image
    y1: int
    x0: int
    x1: int
    window_y: int  # the first row and column that the network sees
    window_x: int
    window_height: int
    window_width: int

    @property
    def owned(self) -> Slices:
        """Rows and columns of the image that this tile, and no other, writes."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    @property
    def window(self) -> tuple[int, int, int, int]:
        """First and last row, first and last column (exclusive) that the network sees."""
        y, x = self.window_y, self.window_x
        return y, y + self.window_height, x, x + self.window_width

    def inside(self, lost: int) -> Slices:
        """Rows and columns of the owned part within the logits, which are `lost` pixels smaller on each side.

        Of an image that is not scaled; `Plan.part` is for both.
        """
        y, x = self.window_y + lost, self.window_x + lost
        return slice(self.y0 - y, self.y1 - y), slice(self.x0 - x, self.x1 - x)


@dataclass(frozen=True)
class Plan:
    """The tiles of an image, row by row.

    Take `window` of the image, extended beyond its border as `border` says, through the network, and put
    `plan.part(tile, logits)` at `tile.owned`.
    """

    height: int  # of the image
    width: int
    tiles: tuple[Tile, ...]
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
        return self.tiles[0].window_height, self.tiles[0].window_width

    @property
    def window_pixels(self) -> int:
        """Pixels that the network computes in all; the image has `height * width`."""
        return len(self.tiles) * math.prod(self.window_shape)

    def part(self, tile: Tile, logits: np.ndarray) -> np.ndarray:
        """K x h x w logits of what the tile owns, from those of its window."""
        if self.scaling is None:
            return logits[:, *tile.inside(self.lost)]
        owned = tile.y0, tile.y1, tile.x0, tile.x1
        return self.scaling.back(logits, tile.window_y + self.lost, tile.window_x + self.lost, owned)

    def source(self, tile: Tile) -> tuple[int, int, int, int]:
        """The window of the image, y0, y1, x0, x1, that the tile depends on."""
        height, width = self.seen_shape
        y0, y1, x0, x1 = tile.window
        inside = max(y0, 0), min(y1, height), max(x0, 0), min(x1, width)
        return inside if self.scaling is None else self.scaling.source(*inside)


def of_scaled(plan: Plan, scaling: Scaling) -> Plan:
    """The plan of an image from that of its scaled one: the same windows, of which the tiles own pixels of the image.

    The logits of `plan` must be right for one pixel more than a tile owns, at its right and bottom. Where the image
    is the smaller one of the two, tiles that own nothing are left out.

    >>> plan = of_scaled(plan_tiles(3, 50, tile=16, stride=16, margin=11), Scaling.by(6, 100, 0.5))
    >>> [(tile.x0, tile.x1, tile.window_x, tile.window_width) for tile in plan.tiles]
    [(0, 33, 0, 48), (33, 65, 0, 48), (65, 97, 16, 48), (97, 100, 16, 48)]
    """
    owned = [scaling.owned(tile.y0, tile.y1, tile.x0, tile.x1) for tile in plan.tiles]
    tiles = tuple(
        replace(tile, y0=y0, y1=y1, x0=x0, x1=x1)
        for tile, (y0, y1, x0, x1) in zip(plan.tiles, owned, strict=True)
        if y0 < y1 and x0 < x1
    )
    return replace(plan, height=scaling.rows[0], width=scaling.columns[0], tiles=tiles, scaling=scaling)


def plan_tiles(height: int, width: int, tile: int | None, stride: int, margin: int, any_size: bool = False) -> Plan:
    """Cut an image for a network that keeps its size.

    Args:
        height, width: pixels, at least 1.
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
        SettingError: the tile is no multiple of the stride.

    >>> plan = plan_tiles(5, 70, tile=32, stride=16, margin=10)
    >>> [(tile.x0, tile.x1, tile.window_x, tile.window_width) for tile in plan.tiles]
    [(0, 32, 0, 64), (32, 64, 16, 64), (64, 70, 16, 64)]
    """
    _check(height, width, tile, stride)
    margin = round_up(margin, stride)
    rows = _spans(height, tile, stride, margin, any_size)
    columns = _spans(width, tile, stride, margin, any_size)
    return Plan(height, width, _cross(rows, columns), tile)


def plan_unpadded_tiles(
    height: int,
    width: int,
    tile: int | None,
    stride: int,
    margin: int,
    input_size: Callable[[int], int],
    more: int = 0,
) -> Plan:
    """Cut an image for a network without padding, whose logits are `margin` pixels smaller on each side.

    `input_size` gives the side of the window that it needs for a number of logits (`UNet.input_size`); there are
    to be `more` of them than a tile owns, at its right and bottom. Owned parts start on multiples of `stride`. The
    image is to be mirrored at its border. Errors as in `plan_tiles`.
    """
    _check(height, width, tile, stride)
    spans = []
    for length in (height, width):
        owned = length if tile is None else min(_even(length, tile, stride), length)
        window = input_size(owned if owned == length else owned + more)
        spans.append([(y, min(y + owned, length), y - margin, window) for y in range(0, length, owned)])
    return Plan(height, width, _cross(*spans), tile, lost=margin, border="reflect")


def plan_overlapping_tiles(height: int, width: int, tile: int, stride: int) -> Plan:
    """Cut an image for a network whose tiles can only come near: windows overlap by about a quarter, to be blended.

    A tile owns the part of its window that later ones do not share; the last of a row or column owns all of it. Errors
    as in `plan_tiles`.
    """
    _check(height, width, tile, stride)
    overlap = overlap_of(tile, stride)
    rows, columns = (_overlapping_spans(length, tile, stride, overlap) for length in (height, width))
    return Plan(height, width, _cross(rows, columns), tile, overlap=overlap)


def overlap_of(tile: int, stride: int) -> int:
    """Pixels that neighbouring windows share: a quarter of the tile, on the stride grid.

    >>> overlap_of(80, stride=16)
    32
    """
    return round_up(math.ceil(tile / 4), stride)


def _overlapping_spans(length: int, tile: int, stride: int, overlap: int) -> list[Span]:
    count = max(1, math.ceil((length - overlap) / tile))
    step = max(round_up(math.ceil((length - overlap) / count), stride), stride)
    starts = range(0, max(length - overlap, 1), step)
    ends = [*starts[1:], length]
    return [(start, end, start, step + overlap) for start, end in zip(starts, ends, strict=True)]


def _check(height: int, width: int, tile: int | None, stride: int) -> None:
    if height < 1 or width < 1:
        raise DataError(f"an image of {height} x {width} pixels has nothing to predict.")
    if tile is not None and (tile < 1 or tile % stride):
        below, above = tile // stride * stride, round_up(max(tile, 1), stride)
        choices = f"{below} or {above}" if below > 0 else f"{stride}, the smallest"
        raise SettingError(f"tile: {tile} is no multiple of the network's stride {stride}; take {choices}.")


def _even(length: int, tile: int, stride: int) -> int:
    """The side that cuts a length into as many parts as `tile` does, but equal ones."""
    count = math.ceil(length / tile)
    return round_up(math.ceil(length / count), stride)


def _spans(length: int, tile: int | None, stride: int, margin: int, any_size: bool) -> list[Span]:
    """The tiles along one axis."""
    padded = round_up(length, stride)
    owned = padded if tile is None else _even(length, tile, stride)
    starts = range(0, length, owned)
    window = min(padded, owned + margin * min(len(starts) - 1, 2))
    spans = []
    for start in starts:
        window_start = min(max(start - margin, 0), padded - window)
        window_end = min(window_start + window, length) if any_size else window_start + window
        spans.append((start, min(start + owned, length), window_start, window_end - window_start))
    return spans


def _cross(rows: list[Span], columns: list[Span]) -> tuple[Tile, ...]:
    return tuple(
        Tile(y0, y1, x0, x1, window_y, window_x, height, width)
        for y0, y1, window_y, height in rows
        for x0, x1, window_x, width in columns
    )
