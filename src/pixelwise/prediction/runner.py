"""A network on images of any size: its windows go through an engine, their logits fit together again.

N windows, C channels, K classes, h x w pixels of a window. Everything here works on one window at a time and knows
neither files nor threads, so that arrays, files and streams are predicted by the same few functions.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from pixelwise.core.errors import ModelError, SettingError
from pixelwise.core.memory import growth, held_bytes, release_free_memory, size_text
from pixelwise.core.windows import Read, Window, reader
from pixelwise.data.pixels.scaling import Scaling
from pixelwise.engines import Arrays, Engine, TorchEngine
from pixelwise.geometry.probing import Probed, probe_geometry
from pixelwise.geometry.reach import Geometry, round_up
from pixelwise.geometry.sizes import Sizes
from pixelwise.models import Segmenter
from pixelwise.prediction.tiling import (
    Tile,
    Tiling,
    of_scaled,
    overlap_of,
    plan_overlapping_tiles,
    plan_tiles,
    plan_unpadded_tiles,
)

TileSize = int | Literal["auto"] | None
WindowOf = Callable[[Tile], np.ndarray]  # C x h x w, normalised

WHOLE_PIXELS = 2048 * 2048  # "auto" runs a larger image by tiles
LARGEST_TILE = 2048  # of "auto": the margin costs little beyond
PROBE_SIDE = 768
SAFE_MAPS = 12  # times its largest map: more than a network holds at once, with all that waits
WAITING = 7  # windows and logits that wait between reading, network and writing, each
SCALED_BACK = 4  # times the logits of a tile at the size of the image: with probabilities and what makes them
FIXED_BYTES = 64 * 2**20  # for all that does not grow with a window
VIEWS = {"none": 1, "flips": 4, "turns": 8}  # test-time augmentation -> network runs a window

_PROBED: WeakKeyDictionary[nn.Module, Probed] = WeakKeyDictionary()


def sizes_of(network: nn.Module, channels: int) -> Sizes:
    """The images that a network takes: one of the toolkit says so itself, any other module is probed, once.

    A module of another kind that states a `geometry` is believed, and keeps the size of the image.

    Raises:
        ModelError: the module does not keep the image's size, or does not run at all.
    """
    stated = getattr(network, "geometry", None)
    if isinstance(network, Segmenter):
        smallest = network.input_size(1)
        lost = (smallest - network.output_size(smallest)) // 2
        return Sizes(channels, network.geometry, lost=lost, smallest=smallest if lost else None)
    if isinstance(stated, Geometry):
        return Sizes(channels, stated)
    if network not in _PROBED:
        _PROBED[network] = probe_geometry(network, channels)
    probed = _PROBED[network]
    return Sizes(channels, probed.geometry, probed.any_size)


def logits_of(outputs: Arrays) -> np.ndarray:
    """The "logits" among a network's outputs.

    Raises:
        ModelError: there are none.
    """
    if "logits" not in outputs:
        raise ModelError(
            f'the network returned {", ".join(outputs)}, and classes are made of "logits": wrap it in a module that '
            "returns them, alone or under this name."
        )
    return outputs["logits"]


@dataclass(frozen=True)
class Runner:
    """An engine with what it takes to feed it.

    Fields:
        engine: runs the network.
        network: what it runs.
        sizes: the images that the network takes.
        views: "none", or test-time augmentation: the mean of the logits over the 4 "flips" or the 8 "turns" (flips
            and right-angle turns) of the window. As windows begin and end on the stride grid, so do their views:
            tiles still give what the whole image gives.
        scale: images are resized by this for the network, and their logits back.
    """

    engine: Engine
    network: nn.Module
    sizes: Sizes
    views: str = "none"
    scale: float = 1.0

    @property
    def geometry(self) -> Geometry:
        """Of the network."""
        return self.sizes.geometry

    def plan(self, height: int, width: int, tile: TileSize, limit: int) -> Tiling:
        """Cut an image into tiles.

        Args:
            height, width: of the image, in pixels.
            tile: side of the part that a tile owns, in pixels of the network (after `scale`); None: the whole image at
                once; "auto": the whole image where it is small or the network not exact, else the largest tiles that
                make sense, in both cases as far as the memory goes.
            limit: bytes that this process may hold.

        Raises:
            SettingError: the tile does not suit the network, or does not fit the memory.
        """
        if tile is not None and tile != "auto" and (not isinstance(tile, int) or isinstance(tile, bool) or tile < 1):
            raise SettingError(f'tile = {tile!r}: must be a positive number of pixels, "auto" or None.')
        if tile == "auto":
            return self.tiles(height, width, self._auto_tile(height, width, limit))
        plan = self.tiles(height, width, tile)
        if not self._surely_fits(math.prod(plan.window_shape), limit):
            self._check_fits(plan, limit)
        return plan

    def tiles(self, height: int, width: int, tile: int | None) -> Tiling:
        """The plan with such tiles, or of the whole image for None, whatever the memory."""
        if self.scale == 1:
            return self._tiles(height, width, tile)
        scaling = Scaling.by(height, width, self.scale)
        if tile is not None:  # where an image is enlarged, a tile must not fall between its pixels
            tile = max(tile, round_up(math.ceil(self.scale), self.geometry.stride))
        return of_scaled(self._tiles(scaling.height, scaling.width, tile), scaling)

    def _tiles(self, height: int, width: int, tile: int | None) -> Tiling:
        """The plan of what the network sees."""
        stride, margin = self.geometry.stride, self.geometry.margin
        if not self.sizes.keeps_size:
            return plan_unpadded_tiles((height, width), tile, stride, margin, self.sizes.input_size, self._beyond)
        if self.geometry.exact or tile is None or tile >= max(height, width):
            # A view of a window that ends off the stride grid would begin there.
            any_size = self.sizes.any_size and self.views == "none"
            return plan_tiles((height, width), tile, stride, margin + self._beyond, any_size)
        return plan_overlapping_tiles((height, width), tile, stride)

    @property
    def _beyond(self) -> int:
        """Logits that are needed beside those that a tile owns, to scale them back."""
        return 0 if self.scale == 1 else 1

    def _auto_tile(self, height: int, width: int, limit: int) -> int | None:
        pixels = math.prod(self.tiles(height, width, None).window_shape)
        if pixels <= WHOLE_PIXELS and self._surely_fits(pixels, limit):
            return None
        room = self._room(limit)
        if pixels <= room and (pixels <= WHOLE_PIXELS or not self.geometry.exact):
            return None
        stride = self.geometry.stride
        tile = min(self._largest_tile(room), max(LARGEST_TILE // stride, 1) * stride)
        if tile < stride:
            raise SettingError(self._too_little(limit))
        return tile

    def _check_fits(self, plan: Tiling, limit: int) -> None:
        room = self._room(limit)
        if math.prod(plan.window_shape) <= room:
            return
        largest = self._largest_tile(room)
        if largest < self.geometry.stride:
            raise SettingError(self._too_little(limit))
        height, width = plan.window_shape
        raise SettingError(
            f"tile: a window of {height} x {width} pixels (the tile with its margin) does not fit into "
            f"{size_text(limit)} of memory; the largest tile that does is {largest}."
        )

    def _too_little(self, limit: int) -> str:
        needed = self.base + FIXED_BYTES + self.bytes_per_pixel * (self.geometry.stride + self._around) ** 2
        return (
            f"{size_text(limit)} of memory is not enough: the process holds {size_text(self.base)} before the first "
            f"tile, and with the smallest tile it would hold about {size_text(needed)}. Allow more."
        )

    def _surely_fits(self, pixels: int, limit: int) -> bool:
        """Whether the memory is so ample that it needs no measurement, which takes as long as a small image."""
        return self.engine.device == "cpu" and self._safe_bytes(pixels) <= limit - self.base

    def _safe_bytes(self, pixels: int) -> float:
        """More than a window takes."""
        return FIXED_BYTES + (SAFE_MAPS * self.largest_map + self.bytes_scaled_back) * pixels

    @cached_property
    def bytes_scaled_back(self) -> float:
        """Bytes a pixel of a window that its logits take at the image's size, with what is made of them there."""
        if self.scale == 1:
            return 0.0
        logits = logits_of(TorchEngine(self.network)(self._smallest_images()))
        return SCALED_BACK * logits.shape[1] * logits.itemsize / self.scale**2

    @cached_property
    def largest_map(self) -> float:
        """Bytes a pixel of the network's largest feature map."""
        return largest_map(self.network, self._smallest_images())

    def _room(self, limit: int) -> int:
        """Pixels of a window that the memory has room for."""
        if self.engine.device == "cuda":
            return int(0.8 * torch.cuda.mem_get_info()[0] / self.bytes_per_pixel)
        return max(0, int((limit - self.base - FIXED_BYTES) / self.bytes_per_pixel))

    @cached_property
    def base(self) -> int:
        """Bytes that the process held before the first window; what an engine keeps for the next is no new need."""
        return held_bytes()

    @property
    def _around(self) -> int:
        """Pixels that a window is larger than its tile, along an axis; the smallest tile, where windows are blended."""
        stride = self.geometry.stride
        margin = self.geometry.margin + self._beyond
        return 2 * round_up(margin, stride) if self._has_margins else overlap_of(stride, stride)

    @property
    def _has_margins(self) -> bool:
        """Whether windows hold their tile's margin; else they overlap by a share of it, to be blended."""
        return self.geometry.exact or not self.sizes.keeps_size

    def _largest_tile(self, room: int) -> int:
        side, stride = math.isqrt(room), self.geometry.stride
        if self._has_margins:
            return (side - self._around) // stride * stride
        tile = 4 * side // 5 // stride * stride
        return tile if tile + overlap_of(tile, stride) <= side else tile - stride

    @cached_property
    def bytes_per_pixel(self) -> float:
        """What a window costs, measured on one of `PROBE_SIDE` pixels; at least what two of its largest maps take."""
        channels, side = self.sizes.channels, self._probe_side()
        probe = np.zeros((1, channels, side, side), dtype_of(self.network))
        small = self._smallest_images()
        # This also readies the engine, whose own needs are held from now on.
        classes = logits_of(self.engine(small)).shape[1]
        release_free_memory()
        if self.engine.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.engine(probe)
            return (torch.cuda.max_memory_allocated() - before) / side**2
        measured = growth(lambda: self.engine(probe)) / side**2
        # Beside the engine's own maps, windows and logits wait for their turn before and behind it.
        waiting = probe.itemsize * (WAITING + (self.views != "none")) * (channels + classes)
        return 1.1 * max(measured, 2 * self.largest_map) + waiting + self.bytes_scaled_back

    @cached_property
    def seconds_per_pixel(self) -> float:
        """How long the network takes for a pixel of a window, all its views, by one run on `PROBE_SIDE` pixels."""
        probe = np.zeros((1, self.sizes.channels, *[self._probe_side()] * 2), dtype_of(self.network))
        begin = time.perf_counter()
        self(probe)
        return (time.perf_counter() - begin) / self._probe_side() ** 2

    def cost(self, plan: Tiling) -> float:
        """Bytes that running the plan takes beside `base`: what was measured, or more than it can be."""
        pixels = math.prod(plan.window_shape)
        if "bytes_per_pixel" in self.__dict__:
            return FIXED_BYTES + pixels * self.bytes_per_pixel
        return self._safe_bytes(pixels)

    def _probe_side(self) -> int:
        return self.sizes.input_size(PROBE_SIDE)

    def _smallest_images(self) -> np.ndarray:
        side = self.sizes.input_size(self.geometry.stride if self.sizes.keeps_size else 1)
        return np.zeros((1, self.sizes.channels, side, side), dtype_of(self.network))

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        """N x C x h x w -> N x K x h' x w' logits, as many as the plan lets expect.

        Raises:
            ModelError: the network returned something else.
        """
        if self.views == "none":
            return self._checked(windows, logits_of(self.engine(windows)))
        total: Any = 0
        for view in range(VIEWS[self.views]):
            seen = np.ascontiguousarray(_turned(windows, view))
            total = total + _turned_back(self._checked(seen, logits_of(self.engine(seen))), view)
        return total / VIEWS[self.views]

    def _checked(self, windows: np.ndarray, logits: np.ndarray) -> np.ndarray:
        count, _, *sides = windows.shape
        wanted = [self.sizes.output_size(side) for side in sides]
        if logits.ndim != 4 or len(logits) != count or list(logits.shape[2:]) != wanted:
            got = " x ".join(map(str, logits.shape))
            raise ModelError(
                f"the network returned {got} for {' x '.join(map(str, windows.shape))}; it must return logits "
                f"N x classes x H x W, here {count} x classes x {wanted[0]} x {wanted[1]}."
            )
        return logits

    def run(self, window_of: WindowOf, plan: Tiling) -> Iterator[tuple[Tile, np.ndarray]]:
        """The tiles with the K x h x w logits that they own, in the plan's order."""
        blend = Blender(plan) if plan.overlap else None
        for tile in plan.tiles:
            logits = self(window_of(tile)[None])[0]
            yield tile, blend.add(tile, logits) if blend else plan.part(tile, logits)

    def logits(self, image: np.ndarray, plan: Tiling) -> np.ndarray:
        """K x H x W logits of a normalised H x W x C image."""

        def window_of(tile: Tile) -> np.ndarray:
            return planes_of(cut(reader(image), plan, tile))

        return assembled(self.run(window_of, plan), plan)


def assembled(parts: Iterable[tuple[Tile, np.ndarray]], plan: Tiling) -> np.ndarray:
    """What tiles own, ... x h x w each, put together to ... x H x W."""
    out: np.ndarray | None = None
    for tile, part in parts:
        if len(plan.tiles) == 1:
            return np.ascontiguousarray(part)
        if out is None:
            out = np.empty((*part.shape[:-2], plan.height, plan.width), part.dtype)
        out[..., *tile.owned.slices] = part
    assert out is not None
    return out


def planes_of(image: np.ndarray) -> np.ndarray:
    """H x W x C -> C x H x W, as a network takes it."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def dtype_of(network: nn.Module) -> type[np.floating[Any]]:
    """What a network takes: float64 where its first parameter is, else float32."""
    first = next(network.parameters(), None)
    return np.float64 if first is not None and first.dtype == torch.float64 else np.float32


def cut(read: Read, plan: Tiling, tile: Tile) -> np.ndarray:
    """The tile's window of an image, h x w x C, scaled and extended beyond the image's border as the plan says."""
    y0, y1, x0, x1 = tile.window
    height, width = plan.seen_shape
    rows, columns = _inside(y0, y1, height, plan.border), _inside(x0, x1, width, plan.border)
    top, left = rows.min(), columns.min()
    needed = Window(int(top), int(rows.max()) + 1, int(left), int(columns.max()) + 1)
    block = read(needed) if plan.scaling is None else plan.scaling.read(read, needed)
    if block.shape[:2] == (len(rows), len(columns)) and rows[0] == top and columns[0] == left:
        return block
    return block[(rows - top)[:, None], columns - left]


def _inside(start: int, end: int, length: int, border: str) -> np.ndarray:
    """Indices `start` to `end`, those beyond 0 to `length` - 1 brought back.

    >>> _inside(-2, 6, 4, "reflect").tolist(), _inside(-2, 6, 4, "edge").tolist()
    ([2, 1, 0, 1, 2, 3, 2, 1], [0, 0, 0, 1, 2, 3, 3, 3])
    """
    indices = np.arange(start, end)
    if border == "edge":
        return indices.clip(0, length - 1)
    period = max(2 * (length - 1), 1)
    folded = indices % period
    return np.minimum(folded, period - folded) if length > 1 else np.zeros_like(indices)


def _turned(windows: np.ndarray, view: int) -> np.ndarray:
    """One of the 8 views of N x C x h x w: bit 0 flips rows, bit 1 columns, bit 2 swaps them afterwards."""
    flipped = windows[:, :, :: -1 if view & 1 else 1, :: -1 if view & 2 else 1]
    return flipped.swapaxes(2, 3) if view & 4 else flipped


def _turned_back(logits: np.ndarray, view: int) -> np.ndarray:
    straight = logits.swapaxes(2, 3) if view & 4 else logits
    return straight[:, :, :: -1 if view & 1 else 1, :: -1 if view & 2 else 1]


def largest_map(network: nn.Module, images: np.ndarray) -> float:
    """Bytes a pixel of the image of the largest array that a part of the network gives."""
    largest = 0

    def look(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, torch.Tensor):
            largest = max(largest, output.numel() * output.element_size())

    hooks = [module.register_forward_hook(look) for module in network.modules()]
    try:
        TorchEngine(network)(images)
    finally:
        for hook in hooks:
            hook.remove()
    return largest / (images.shape[2] * images.shape[3])


def softmax(logits: np.ndarray) -> np.ndarray:
    """K x ... logits -> probabilities that sum to 1 over K.

    >>> softmax(np.zeros((2, 1, 1))).ravel().tolist()
    [0.5, 0.5]
    """
    shares = logits - logits.max(0, keepdims=True)
    np.exp(shares, out=shares)
    shares /= shares.sum(0, keepdims=True)
    return shares


class Blender:
    """Fits the overlapping windows of a network that is not exact together, with weights that fade across an overlap.

    Tiles come row by row, from left to right. What a window shares with those after it is kept as strips: one of the
    image's width at the bottom, one of a window's height at the right; so the memory grows with the width alone.
    Of what a tile owns and one row and column more, all is known when its window has come: there the weights of later
    windows are 0.
    """

    def __init__(self, plan: Tiling) -> None:
        self._plan = plan
        self._below: dict[int, np.ndarray] = {}  # a window's x0 -> K x overlap x window width, for the row below
        self._beside = np.empty(0)  # K x window height x overlap, for the tile to the right

    def add(self, tile: Tile, logits: np.ndarray) -> np.ndarray:
        """Take in a window's K x h x w logits; give the blended logits of the part that the tile owns."""
        overlap = self._plan.overlap
        height, width = self._plan.window_shape
        is_top, is_left = tile.window.y0 == 0, tile.window.x0 == 0
        is_bottom, is_right = tile.owned.y1 == self._plan.height, tile.owned.x1 == self._plan.width
        weights = _fade(height, overlap, is_top, is_bottom)[:, None] * _fade(width, overlap, is_left, is_right)
        mixed = logits * weights.astype(logits.dtype)
        if not is_top:
            mixed[:, :overlap] += self._below.pop(tile.window.x0)
        if not is_left:
            mixed[:, :, :overlap] += self._beside
        if not is_right:
            self._beside = mixed[:, :, width - overlap :].copy()
        if not is_bottom:
            strip = mixed[:, height - overlap :].copy()
            if not is_right:  # its last columns but the first of them go on to the right, and come down from there
                strip[:, :, width - overlap + 1 :] = 0
            if not is_left:
                strip[:, :, 0] = 0
            self._below[tile.window.x0] = strip
        return self._plan.part(tile, mixed)


def _fade(length: int, overlap: int, is_first: bool, is_last: bool) -> np.ndarray:
    """Weights along a window that sum to 1 with those of its neighbours.

    They begin with 0, so that one pixel beyond what a tile owns is not changed by the tiles after it either.

    >>> _fade(6, 3, is_first=True, is_last=False).tolist(), _fade(6, 3, is_first=False, is_last=True).tolist()
    ([1.0, 1.0, 1.0, 1.0, 0.5, 0.0], [0.0, 0.5, 1.0, 1.0, 1.0, 1.0])
    """
    weights = np.ones(length)
    ramp = np.linspace(0, 1, overlap)
    if not is_first:
        weights[:overlap] = ramp
    if not is_last:
        weights[length - overlap :] = 1 - ramp
    return weights
