"""The choice of tiles: what the user wants, what the network needs, and what fits into the memory."""

import math
from dataclasses import dataclass
from typing import Literal

from pixelwise.core.errors import SettingError
from pixelwise.core.memory import size_text
from pixelwise.data.pixels.scaling import Scaling
from pixelwise.geometry.reach import Geometry, round_up
from pixelwise.geometry.sizes import Sizes
from pixelwise.prediction.costs import FIXED_BYTES, Costs, Memory
from pixelwise.prediction.tiling import (
    Shape,
    Tiling,
    of_scaled,
    overlap_of,
    plan_overlapping_tiles,
    plan_tiles,
    plan_unpadded_tiles,
)

TileSize = int | Literal["auto"] | None

WHOLE_PIXELS = 2048 * 2048  # "auto" runs a larger image by tiles
LARGEST_TILE = 2048  # of "auto": the margin costs little beyond


@dataclass(frozen=True)
class Tiler:
    """Cuts images into tiles for a network.

    Fields:
        sizes: the images that the network takes.
        costs: of its windows.
    """

    sizes: Sizes
    costs: Costs

    def choose(self, shape: Shape, tile: TileSize, memory: Memory) -> Tiling:
        """Cut an image into tiles that fit the memory.

        Args:
            shape: height and width of the image in pixels.
            tile: side of the part that a tile owns, in pixels of the network (after `scale`); None: the whole image at
                once; "auto": the whole image if it is small or the network is not exact, else the largest tiles that
                make sense, in both cases if they fit into the memory.
            memory: that it may use.

        Raises:
            SettingError: the tile does not suit the network, or does not fit the memory.
        """
        if tile is not None and tile != "auto" and (not isinstance(tile, int) or isinstance(tile, bool) or tile < 1):
            raise SettingError(f'tile = {tile!r}: must be a positive number of pixels, "auto" or None.')
        if tile == "auto":
            return self.cut(shape, self._auto_tile(shape, memory))
        tiling = self.cut(shape, tile)
        if not self.costs.surely_fits(math.prod(tiling.window_shape), memory):
            self._check_fits(tiling, memory)
        return tiling

    def cut(self, shape: Shape, tile: int | None) -> Tiling:
        """Cut an image into such tiles, or for None into a single one, whatever the memory."""
        scale = self.costs.scale
        if scale == 1:
            return self._cut_seen(shape, tile)
        scaling = Scaling.by(*shape, scale)
        if tile is not None:  # when an image is enlarged, a tile must not fall between its pixels
            tile = max(tile, round_up(math.ceil(scale), self._geometry.stride))
        return of_scaled(self._cut_seen((scaling.height, scaling.width), tile), scaling)

    def _cut_seen(self, shape: Shape, tile: int | None) -> Tiling:
        """Cut what the network sees."""
        stride, margin = self._geometry.stride, self._geometry.margin
        if not self.sizes.keeps_size:
            return plan_unpadded_tiles(shape, tile, stride, margin, self.sizes.input_size, self._beyond)
        if self._geometry.exact or tile is None or tile >= max(shape):
            # A window that ends off the stride grid would begin off it once it is turned.
            any_size = self.sizes.any_size and self.costs.runs == 1
            return plan_tiles(shape, tile, stride, margin + self._beyond, any_size)
        return plan_overlapping_tiles(shape, tile, stride)

    @property
    def _geometry(self) -> Geometry:
        return self.sizes.geometry

    @property
    def _beyond(self) -> int:
        """Pixels of outputs that are needed beside those that a tile owns, to scale them back."""
        return 0 if self.costs.scale == 1 else 1

    def _auto_tile(self, shape: Shape, memory: Memory) -> int | None:
        pixels = math.prod(self.cut(shape, None).window_shape)
        if pixels <= WHOLE_PIXELS and self.costs.surely_fits(pixels, memory):
            return None
        room = self.costs.room(memory)
        if pixels <= room and (pixels <= WHOLE_PIXELS or not self._geometry.exact):
            return None
        stride = self._geometry.stride
        tile = min(self._largest_tile(room), max(LARGEST_TILE // stride, 1) * stride)
        if tile < stride:
            raise SettingError(self._too_little(memory))
        return tile

    def _check_fits(self, tiling: Tiling, memory: Memory) -> None:
        room = self.costs.room(memory)
        height, width = tiling.window_shape
        if height * width <= room:
            return
        largest = self._largest_tile(room)
        if largest < self._geometry.stride:
            raise SettingError(self._too_little(memory))
        raise SettingError(
            f"tile: a window of {height} x {width} pixels (the tile with its margin) does not fit into "
            f"{size_text(memory.limit)} of memory; the largest tile that does is {largest}."
        )

    def _too_little(self, memory: Memory) -> str:
        smallest = self._geometry.stride + self._around
        needed = memory.held + FIXED_BYTES + self.costs.bytes_per_pixel * smallest**2
        return (
            f"{size_text(memory.limit)} of memory is not enough: the process holds {size_text(memory.held)} before the "
            f"first tile, and with the smallest tile it would hold about {size_text(needed)}. Allow more."
        )

    def _largest_tile(self, room: int) -> int:
        """Side of the largest tile whose window has at most `room` pixels; 0 or less if there is none."""
        side, stride = math.isqrt(room), self._geometry.stride
        if self._has_margins:
            return (side - self._around) // stride * stride
        tile = 4 * side // 5 // stride * stride
        return tile if tile + overlap_of(tile, stride) <= side else tile - stride

    @property
    def _around(self) -> int:
        """Pixels by which a window is larger than its tile along an axis; of the smallest tile if windows overlap."""
        stride = self._geometry.stride
        margin = self._geometry.margin + self._beyond
        return 2 * round_up(margin, stride) if self._has_margins else overlap_of(stride, stride)

    @property
    def _has_margins(self) -> bool:
        """Whether windows hold their tile's margin; else they overlap by a share of it, to be blended."""
        return self._geometry.exact or not self.sizes.keeps_size
