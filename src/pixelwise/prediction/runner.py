"""A network on images of any size: its windows go through an engine, their outputs fit together again.

N windows, C channels, K channels of an output, h x w pixels of a window. Everything here works on one window at a time
and knows neither files nor threads, so that arrays, files and streams are predicted by the same few functions.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from pixelwise.core.errors import ModelError, SettingError, near
from pixelwise.core.windows import Window
from pixelwise.engines import Arrays, Engine, EngineChoice, make_engine
from pixelwise.geometry.sizes import Sizes
from pixelwise.prediction.blending import Blender
from pixelwise.prediction.costs import Costs, largest_map, small_images
from pixelwise.prediction.sizes import sizes_of
from pixelwise.prediction.tiler import Tiler
from pixelwise.prediction.tiling import Tile, Tiling
from pixelwise.prediction.views import VIEWS, mean_of_views

WindowOf = Callable[[Tile], np.ndarray]  # C x h x w, normalised
FASTEST = EngineChoice()


@dataclass(frozen=True)
class Runner:
    """An engine together with all that is needed to feed it.

    Fields:
        engine: runs the network.
        tiler: cuts images into tiles for it.
    """

    engine: Engine
    tiler: Tiler

    @property
    def sizes(self) -> Sizes:
        """The images that the network takes."""
        return self.tiler.sizes

    @property
    def costs(self) -> Costs:
        """What windows cost."""
        return self.tiler.costs

    def __call__(self, windows: np.ndarray) -> Arrays:
        """N x C x h x w -> the outputs by name, each N x K x h' x w' as `sizes` says.

        Raises:
            ModelError: the network returned something else.
        """
        return self._run(windows) if self.costs.runs == 1 else mean_of_views(self._run, windows, self.costs.runs)

    def _run(self, windows: np.ndarray) -> Arrays:
        outputs = self.engine(windows)
        height, width = map(self.sizes.output_size, windows.shape[2:])
        for name, values in outputs.items():
            if values.ndim != 4 or (len(values), *values.shape[2:]) != (len(windows), height, width):
                raise ModelError(
                    f"for windows of {_size_text(windows)} the network returned {name} of {_size_text(values)}; they "
                    f"must be N x K x H x W, here {len(windows)} x K x {height} x {width}."
                )
        return outputs

    def run(self, window_of: WindowOf, tiling: Tiling) -> Iterator[tuple[Tile, Arrays]]:
        """The tiles in their order, with the outputs that they own, K x h x w each."""
        blender = Blender(tiling)
        for tile in tiling.tiles:
            outputs = self(window_of(tile)[None])
            yield tile, blender.add(tile, {name: values[0] for name, values in outputs.items()})


def make_runner(
    network: nn.Module, channels: int, choice: EngineChoice = FASTEST, views: str = "none", scale: float = 1.0
) -> Runner:
    """A network with an engine to run it.

    Args:
        network: any module, as for `make_engine`.
        channels: of the images.
        choice: of the engine.
        views: "none", or test-time augmentation: the mean of the outputs over the 4 "flips" or the 8 "turns" (flips
            and right-angle turns) of a window. Windows begin and end on the stride grid, and so do their views, so
            that tiles still give what the whole image gives.
        scale: images are resized by this for the network, and its outputs back.

    Raises:
        SettingError: there is no such engine or test-time augmentation. ModelError: they do not fit the network.
    """
    if views not in VIEWS:
        raise SettingError(f"views {views}: is not a test-time augmentation; {near(views, VIEWS)}")
    sizes, dtype = sizes_of(network, channels), dtype_of(network)
    engine = make_engine(network, choice, sizes)
    largest = 0.0 if engine.device == "cuda" else largest_map(network, small_images(sizes, dtype))
    return Runner(engine, Tiler(sizes, Costs(engine, sizes, dtype, largest, VIEWS[views], scale)))


def approximation(network: nn.Module, sizes: Sizes) -> str:
    """Why the result by tiles only approximates that of the whole image."""
    how = "overlap and are blended" if sizes.keeps_size else "each see only a part of the image"
    return (
        f"{type(network).__name__}: {sizes.geometry.reason}. Its tiles {how}, so the result only approximates that of "
        "the whole image."
    )


def assembled(parts: Iterable[tuple[Window, np.ndarray]], height: int, width: int) -> np.ndarray:
    """Parts of an image, ... x h x w each, put together to ... x H x W."""
    out: np.ndarray | None = None
    for window, part in parts:
        if (window.height, window.width) == (height, width):
            return np.ascontiguousarray(part)
        if out is None:
            out = np.empty((*part.shape[:-2], height, width), part.dtype)
        out[..., *window.slices] = part
    assert out is not None
    return out


def logits_of(outputs: Arrays) -> np.ndarray:
    """The "logits" among a network's outputs.

    Raises:
        ModelError: there are none.
    """
    if "logits" not in outputs:
        raise ModelError(
            f'the network returned {", ".join(outputs)}, but classes come from "logits". Wrap it in a module that '
            "returns them alone or under this name."
        )
    return outputs["logits"]


def dtype_of(network: nn.Module) -> np.dtype:
    """The type of images for a network: float64 if its first parameter is float64, else float32."""
    first = next(network.parameters(), None)
    return np.dtype(np.float64 if first is not None and first.dtype == torch.float64 else np.float32)


def _size_text(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape))
