"""A network on images of any size: its windows go through an engine, their logits fit together again.

N windows, C channels, K classes, h x w pixels of a window. Everything here works on one window at a time and knows
neither files nor threads, so that arrays, files and streams are predicted by the same few functions.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal
from weakref import WeakKeyDictionary

import cv2
import numpy as np
import torch
from torch import nn

from pixelwise.engines import Engine, TorchEngine
from pixelwise.errors import ModelError, SettingError
from pixelwise.geometry import Geometry, round_up
from pixelwise.memory import growth, held_bytes, release_free_memory, size_text
from pixelwise.probing import Probed, probe_geometry
from pixelwise.tiling import Plan, Tile, overlap_of, plan_overlapping_tiles, plan_tiles, plan_unpadded_tiles

TileSize = int | Literal["auto"] | None
Read = Callable[[int, int, int, int], np.ndarray]  # first and last row, first and last column -> H x W x C

WHOLE_PIXELS = 2048 * 2048  # "auto" runs a larger image by tiles
LARGEST_TILE = 2048  # of "auto": the margin costs little beyond
PROBE_SIDE = 768
SAFE_MAPS = 12  # times its largest map: more than a network holds at once, with all that waits
WAITING = 7  # windows and logits that wait between reading, network and writing, each
FIXED_BYTES = 64 * 2**20  # for all that does not grow with a window
VIEWS = {"none": 1, "flips": 4, "turns": 8}  # test-time augmentation -> network runs a window

_PROBED: WeakKeyDictionary[nn.Module, Probed] = WeakKeyDictionary()


def geometry_of(network: nn.Module, channels: int) -> Probed:
    """The geometry that a network of the toolkit states; that of any other module is probed, once.

    Raises:
        ModelError: the module does not keep the image's size, or does not run at all.
    """
    stated = getattr(network, "geometry", None)
    if isinstance(stated, Geometry):
        return Probed(stated, any_size=False)  # it pads by edge pixels itself, which is done here as well
    if network not in _PROBED:
        _PROBED[network] = probe_geometry(network, channels)
    return _PROBED[network]


@dataclass(frozen=True)
class Runner:
    """An engine with what it takes to feed it.

    Fields:
        engine: runs the network.
        network: says how it pads.
        geometry: of the network.
        channels: C that it takes.
        any_size: images need not be padded to the stride, see `plan_tiles`.
        views: "none", or test-time augmentation: the mean of the logits over the 4 "flips" or the 8 "turns" (flips
            and right-angle turns) of the window. As windows begin and end on the stride grid, so do their views:
            tiles still give what the whole image gives.
    """

    engine: Engine
    network: nn.Module
    geometry: Geometry
    channels: int
    views: str = "none"
    any_size: bool = False

    @property
    def is_padded(self) -> bool:
        """Whether the logits have the window's size."""
        return getattr(self.network, "padding", "same") != "valid" or not hasattr(self.network, "valid_input_size")

    def plan(self, height: int, width: int, tile: TileSize, limit: int) -> Plan:
        """Cut an image into tiles.

        Args:
            height, width: of the image, in pixels.
            tile: side of the part that a tile owns; None: the whole image at once; "auto": the whole image where it is
                small or the network not exact, else the largest tiles that make sense, in both cases as far as the
                memory goes.
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

    def tiles(self, height: int, width: int, tile: int | None) -> Plan:
        """The plan with such tiles, or of the whole image for None, whatever the memory."""
        stride, margin = self.geometry.stride, self.geometry.margin
        if not self.is_padded:
            return plan_unpadded_tiles(height, width, tile, stride, margin, self.network.valid_input_size)  # type: ignore[arg-type]
        if self.geometry.exact or tile is None or tile >= max(height, width):
            # A view of a window that ends off the stride grid would begin there.
            any_size = self.any_size and self.views == "none"
            return plan_tiles(height, width, tile, stride, margin, any_size)
        return plan_overlapping_tiles(height, width, tile, stride)

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

    def _check_fits(self, plan: Plan, limit: int) -> None:
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
        return FIXED_BYTES + SAFE_MAPS * self.largest_map * pixels

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
        return 2 * round_up(self.geometry.margin, stride) if self._has_margins else overlap_of(stride, stride)

    @property
    def _has_margins(self) -> bool:
        """Whether windows hold their tile's margin; else they overlap by a share of it, to be blended."""
        return self.geometry.exact or not self.is_padded

    def _largest_tile(self, room: int) -> int:
        side, stride = math.isqrt(room), self.geometry.stride
        if self._has_margins:
            return (side - self._around) // stride * stride
        tile = 4 * side // 5 // stride * stride
        return tile if tile + overlap_of(tile, stride) <= side else tile - stride

    @cached_property
    def bytes_per_pixel(self) -> float:
        """What a window costs, measured on one of `PROBE_SIDE` pixels; at least what two of its largest maps take."""
        channels, side = self.channels, self._probe_side()
        probe = np.zeros((1, channels, side, side), dtype_of(self.network))
        small = self._smallest_images()
        classes = self.engine(small).shape[1]  # also readies the engine, whose own needs are held from now on
        release_free_memory()
        if self.engine.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.engine(probe)
            return (torch.cuda.max_memory_allocated() - before) / side**2
        measured = growth(lambda: self.engine(probe)) / side**2
        # Beside the engine's own maps, windows and logits wait for their turn before and behind it.
        waiting = probe.itemsize * (WAITING + (self.views != "none")) * (channels + classes)
        return 1.1 * max(measured, 2 * self.largest_map) + waiting

    @cached_property
    def seconds_per_pixel(self) -> float:
        """How long the network takes for a pixel of a window, all its views, by one run on `PROBE_SIDE` pixels."""
        probe = np.zeros((1, self.channels, *[self._probe_side()] * 2), dtype_of(self.network))
        begin = time.perf_counter()
        self(probe)
        return (time.perf_counter() - begin) / self._probe_side() ** 2

    def cost(self, plan: Plan) -> float:
        """Bytes that running the plan takes beside `base`: what was measured, or more than it can be."""
        pixels = math.prod(plan.window_shape)
        if "bytes_per_pixel" in self.__dict__:
            return FIXED_BYTES + pixels * self.bytes_per_pixel
        return self._safe_bytes(pixels)

    def _probe_side(self) -> int:
        side = round_up(PROBE_SIDE, self.geometry.stride)
        return side if self.is_padded else int(self.network.valid_input_size(side))  # type: ignore[operator]

    def _smallest_images(self) -> np.ndarray:
        side = self.geometry.stride if self.is_padded else int(self.network.valid_input_size(1))  # type: ignore[operator]
        return np.zeros((1, self.channels, side, side), dtype_of(self.network))

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        """N x C x h x w -> N x K x h' x w' logits, as many as the plan lets expect.

        Raises:
            ModelError: the network returned something else.
        """
        if self.views == "none":
            return self._checked(windows, self.engine(windows))
        total: Any = 0
        for view in range(VIEWS[self.views]):
            seen = np.ascontiguousarray(_turned(windows, view))
            total = total + _turned_back(self._checked(seen, self.engine(seen)), view)
        return total / VIEWS[self.views]

    def _checked(self, windows: np.ndarray, logits: np.ndarray) -> np.ndarray:
        count, _, *sides = windows.shape
        wanted = sides if self.is_padded else [self.network.output_size(side) for side in sides]  # type: ignore[operator]
        if logits.ndim != 4 or len(logits) != count or list(logits.shape[2:]) != wanted:
            got = " x ".join(map(str, logits.shape))
            raise ModelError(
                f"the network returned {got} for {' x '.join(map(str, windows.shape))}; it must return logits "
                f"N x classes x H x W, here {count} x classes x {wanted[0]} x {wanted[1]}."
            )
        return logits

    def run(self, image: np.ndarray, plan: Plan) -> Iterator[tuple[Tile, np.ndarray]]:
        """The tiles of a normalised H x W x C image with their K x h x w logits, in the plan's order."""
        blend = Blender(plan) if plan.overlap else None
        for tile in plan.tiles:
            window = cut(lambda y0, y1, x0, x1: image[y0:y1, x0:x1], plan, tile)
            logits = self(np.ascontiguousarray(window.transpose(2, 0, 1))[None])[0]
            yield tile, blend.add(tile, logits) if blend else logits[:, *tile.inside(plan.lost)]

    def logits(self, image: np.ndarray, plan: Plan) -> np.ndarray:
        """K x H x W logits of a normalised H x W x C image."""
        out: np.ndarray | None = None
        for part, logits in self.run(image, plan):
            if len(plan.tiles) == 1:
                return np.ascontiguousarray(logits)
            if out is None:
                out = np.empty((len(logits), plan.height, plan.width), logits.dtype)
            out[:, *part.owned] = logits
        assert out is not None
        return out


def dtype_of(network: nn.Module) -> type[np.floating[Any]]:
    """What a network takes: float64 where its first parameter is, else float32."""
    first = next(network.parameters(), None)
    return np.float64 if first is not None and first.dtype == torch.float64 else np.float32


def cut(read: Read, plan: Plan, tile: Tile) -> np.ndarray:
    """The tile's window of an image, h x w x C, extended beyond the image's border as the plan says."""
    y0, y1, x0, x1 = tile.window
    rows, columns = _inside(y0, y1, plan.height, plan.border), _inside(x0, x1, plan.width, plan.border)
    top, left = rows.min(), columns.min()
    block = read(int(top), int(rows.max()) + 1, int(left), int(columns.max()) + 1)
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


def enlarge(logits: np.ndarray, height: int, width: int) -> Iterator[np.ndarray]:
    """Planes of K x h x w logits, each brought to the image's size, linearly."""
    for plane in logits:
        yield cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)


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
    shifted = np.exp(logits - logits.max(0, keepdims=True))
    return shifted / shifted.sum(0, keepdims=True)


class Blender:
    """Fits the overlapping windows of a network that is not exact together, with weights that fade across an overlap.

    Tiles come row by row, from left to right. What a window shares with those after it is kept as strips: one of the
    image's width at the bottom, one of a window's height at the right; so the memory grows with the width alone.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._below: dict[int, np.ndarray] = {}  # window_x -> K x overlap x window width, for the row below
        self._beside = np.empty(0)  # K x window height x overlap, for the tile to the right

    def add(self, tile: Tile, logits: np.ndarray) -> np.ndarray:
        """Take in a window's K x h x w logits; give the blended logits of the part that the tile owns."""
        overlap = self._plan.overlap
        height, width = self._plan.window_shape
        is_top, is_left = tile.window_y == 0, tile.window_x == 0
        is_bottom, is_right = tile.y1 == self._plan.height, tile.x1 == self._plan.width
        weights = _fade(height, overlap, is_top, is_bottom)[:, None] * _fade(width, overlap, is_left, is_right)
        mixed = logits * weights.astype(logits.dtype)
        if not is_top:
            mixed[:, :overlap] += self._below.pop(tile.window_x)
        if not is_left:
            mixed[:, :, :overlap] += self._beside
        if not is_right:
            self._beside = mixed[:, :, width - overlap :].copy()
        if not is_bottom:
            strip = mixed[:, height - overlap :].copy()
            if not is_right:  # its last columns go on to the right, and come down from there
                strip[:, :, width - overlap :] = 0
            self._below[tile.window_x] = strip
        return mixed[:, *tile.inside(0)]


def _fade(length: int, overlap: int, is_first: bool, is_last: bool) -> np.ndarray:
    """Weights along a window that sum to 1 with those of its neighbours."""
    weights = np.ones(length)
    ramp = (np.arange(overlap) + 0.5) / overlap
    if not is_first:
        weights[:overlap] = ramp
    if not is_last:
        weights[length - overlap :] = ramp[::-1]
    return weights
