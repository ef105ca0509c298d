"""What the windows of a network cost in memory and time, and how much memory there is for them."""

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from pixelwise.core.memory import growth, release_free_memory
from pixelwise.engines import Engine, TorchEngine
from pixelwise.geometry.sizes import Sizes
from pixelwise.prediction.tiling import Tiling

PROBE_SIDE = 768
SAFE_MAPS = 12  # times its largest map: surely more than a network holds at once, with all that waits
WAITING = 7  # windows and outputs that wait between reading, network and writing, each
SCALED_BACK = 4  # times the outputs of a tile at the size of the image: with probabilities and what makes them
FIXED_BYTES = 64 * 2**20  # for everything that does not grow with a window
GPU_SHARE = 0.8  # of the free memory of a GPU


@dataclass(frozen=True)
class Memory:
    """The memory that a prediction may use.

    Fields:
        limit: bytes that this process may hold.
        held: bytes that it held before the first window.
    """

    limit: int
    held: int

    @property
    def free(self) -> int:
        """Bytes that are left for windows and masks."""
        return self.limit - self.held

    def less(self, size: int) -> "Memory":
        """The memory when so many bytes of it are taken."""
        return replace(self, limit=self.limit - size)


@dataclass(frozen=True)
class Costs:
    """What the windows of an engine cost; measured when someone first asks.

    Fields:
        engine: runs the network.
        sizes: the images that the network takes.
        dtype: of these images.
        largest_map: bytes that the network's largest feature map takes for a pixel of the image; 0 on CUDA, which
            tells its memory itself.
        runs: of the network for a window.
        scale: of the image for the network.
    """

    engine: Engine
    sizes: Sizes
    dtype: np.dtype
    largest_map: float
    runs: int = 1
    scale: float = 1.0

    def room(self, memory: Memory) -> int:
        """Pixels of the largest window that fits the memory."""
        if self.engine.device == "cuda":
            return int(GPU_SHARE * torch.cuda.mem_get_info()[0] / self.bytes_per_pixel)
        return max(0, int((memory.free - FIXED_BYTES) / self.bytes_per_pixel))

    def surely_fits(self, pixels: int, memory: Memory) -> bool:
        """Whether the memory is so ample that nothing needs to be measured, which takes as long as a small image."""
        return self.engine.device == "cpu" and self._safe_bytes(pixels) <= memory.free

    def cost(self, tiling: Tiling) -> int:
        """Bytes that running a tiling takes beyond what was held: as measured, or surely enough."""
        pixels = math.prod(tiling.window_shape)
        if "bytes_per_pixel" in self.__dict__:
            return int(FIXED_BYTES + pixels * self.bytes_per_pixel)
        return int(self._safe_bytes(pixels))

    def _safe_bytes(self, pixels: int) -> float:
        """Surely enough for a window."""
        return FIXED_BYTES + (SAFE_MAPS * self.largest_map + self.bytes_scaled_back) * pixels

    @cached_property
    def bytes_per_pixel(self) -> float:
        """What a window costs, measured on one of `PROBE_SIDE` pixels; at least what two of its largest maps take."""
        probe = self._probe()
        pixels: int = probe[0, 0].size
        outputs = self._output_bytes  # this also readies the engine, so that its own needs do not count below
        release_free_memory()
        if self.engine.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.engine(probe)
            return (torch.cuda.max_memory_allocated() - before) / pixels
        measured = growth(lambda: self.engine(probe)) / pixels
        # Besides the engine's own maps, windows wait in front of it, and outputs behind it.
        waiting = (WAITING + (self.runs > 1)) * (self.sizes.channels * self.dtype.itemsize + outputs)
        return 1.1 * max(measured, 2 * self.largest_map) + waiting + self.bytes_scaled_back

    @cached_property
    def seconds_per_pixel(self) -> float:
        """Seconds that the network takes for a pixel of a window, measured on one of `PROBE_SIDE` pixels."""
        probe = self._probe()
        begin = time.perf_counter()
        self.engine(probe)
        return float(self.runs * (time.perf_counter() - begin) / probe[0, 0].size)

    @property
    def bytes_scaled_back(self) -> float:
        """Bytes that the outputs for a pixel of a window take at the image's size, with what is made of them there."""
        return 0.0 if self.scale == 1 else SCALED_BACK * self._output_bytes / self.scale**2

    @cached_property
    def _output_bytes(self) -> float:
        """Bytes of the outputs for a pixel."""
        outputs = self.engine(small_images(self.sizes, self.dtype))
        return sum(math.prod(values.shape[:2]) * values.itemsize for values in outputs.values())

    def _probe(self) -> np.ndarray:
        side = self.sizes.input_size(PROBE_SIDE)
        return np.zeros((1, self.sizes.channels, side, side), self.dtype)


def small_images(sizes: Sizes, dtype: np.dtype) -> np.ndarray:
    """One black image of two strides a side (norms refuse a single cell), or the smallest without padding."""
    side = sizes.input_size(2 * sizes.geometry.stride if sizes.keeps_size else 1)
    return np.zeros((1, sizes.channels, side, side), dtype)


def largest_map(network: nn.Module, images: np.ndarray) -> float:
    """Bytes of the largest array that a part of the network returns, for each pixel of the images."""
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
    return largest / math.prod(images.shape[2:])
