"""Images of any size in, classes of their pixels out: `predict` for a network, `Predictor` for a trained run."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from torch import nn

from pixelwise.core.classes import ClassMap
from pixelwise.core.config import Config
from pixelwise.core.errors import DataError, SettingError
from pixelwise.core.memory import default_limit, held_bytes, size_text
from pixelwise.core.windows import Window, reader
from pixelwise.data.files.facts import FileFacts
from pixelwise.data.pixels.normalize import Numbers, require_finite
from pixelwise.engines import Arrays, EngineChoice, TorchEngine
from pixelwise.geometry.reach import Geometry
from pixelwise.prediction.costs import FIXED_BYTES, Memory
from pixelwise.prediction.kept import kept_runner
from pixelwise.prediction.page import Page, cut, planes_of
from pixelwise.prediction.postprocess import argmax
from pixelwise.prediction.runner import Runner, approximation, assembled, dtype_of, logits_of, make_runner
from pixelwise.prediction.tiler import TileSize
from pixelwise.prediction.tiling import Tiling

_EXPORT_PIXELS = 2048 * 2048  # torch is done with a smaller array before another engine would be prepared
_SMALL_PIXELS = 1024 * 1024  # a module of unknown geometry is first tried on the whole of an image up to this size


class ApproximateWarning(UserWarning):
    """Tiles of a network that is not exact were blended: the result only approximates that of the whole image."""


def predict(
    network: nn.Module,
    array: np.ndarray,
    tile: TileSize = "auto",
    engine: str | EngineChoice = "auto",
    logits: bool = False,
    views: str = "none",
) -> np.ndarray:
    """Run a network over an image of any size.

    What is prepared for a large image is kept with the network, so that the next call begins at once; when anything
    of the network has changed, it is prepared again.

    Args:
        network: takes N x C x H x W, returns logits N x K x H x W, or several outputs by name, "logits" among them;
            one of `MODELS`, or any module. If a module states no geometry, it is probed once. If it is not exact, it
            runs on the whole image, or, with a `tile`, on overlapping windows that are blended, with an
            `ApproximateWarning`.
        array: H x W or H x W x C, floats, already normalised; computed in float32, or float64 for a float64 network.
        tile: side of the part that a tile owns, a multiple of the network's stride; "auto" only cuts large images
            into tiles; None runs the whole image at once.
        engine: the name of an engine; "auto" for the fastest, if the image is large enough to prepare it; or an
            `EngineChoice`, which also says on which device, and how.
        logits: return K x H x W logits instead of classes.
        views: test-time augmentation, see `make_runner`.

    Returns:
        H x W classes (uint8, or uint16 for more than 256 classes), or K x H x W logits.

    Raises:
        DataError, ModelError, SettingError: the array, the network and the tile do not fit together.

    >>> from pixelwise.models import UNet
    >>> predict(UNet(width=2, depth=1), np.zeros((5, 7), np.float32)).shape
    (5, 7)
    """
    image = _checked(array).astype(dtype_of(network), copy=False)
    require_finite(image)
    choice = EngineChoice.of(engine)
    if choice.name == "auto" and image.shape[0] * image.shape[1] < _EXPORT_PIXELS:
        choice = replace(choice, name="torch")
    is_plain = tile in ("auto", None) and choice.name == "torch" and views == "none"
    out = _whole(network, image, choice) if is_plain else None
    if out is None:
        limit = default_limit()
        runner = kept_runner(network, image.shape[2], choice, views)
        tiling = runner.tiler.choose(image.shape[:2], tile, Memory(limit, held_bytes()))
        _warn_if_approximate(network, runner, tiling)
        out = array_logits(runner, image, tiling)
    return out if logits else argmax(out)


def _checked(array: np.ndarray) -> np.ndarray:
    """The array as H x W x C."""
    image = array[..., None] if array.ndim == 2 else array
    if image.ndim != 3 or image.size == 0:
        raise DataError(
            f"the image has the shape {array.shape}; H x W or H x W x C with H, W of at least 1 is expected."
        )
    if not np.issubdtype(image.dtype, np.floating):
        raise DataError(f"the image is {image.dtype}; normalised floating-point values are expected.")
    return image


def _whole(network: nn.Module, image: np.ndarray, choice: EngineChoice) -> np.ndarray | None:
    """K x H x W of a small image from a module of unknown geometry, if it takes this size: to probe it costs more."""
    small = image.shape[0] * image.shape[1] <= _SMALL_PIXELS
    if isinstance(getattr(network, "geometry", None), Geometry) or not small:
        return None
    try:
        logits = logits_of(TorchEngine(network, choice)(planes_of(image)[None]))
    except Exception:  # whatever the module raises; the probe finds out what it takes, or what is wrong
        return None
    return logits[0] if logits.ndim == 4 and logits.shape[2:] == image.shape[:2] else None


def array_logits(runner: Runner, image: np.ndarray, tiling: Tiling) -> np.ndarray:
    """K x H x W logits of an H x W x C image that is already normalised."""
    parts = runner.run(lambda tile: planes_of(cut(reader(image), tiling, tile)), tiling)
    return assembled(((tile.owned, logits_of(outputs)) for tile, outputs in parts), *image.shape[:2])


def _warn_if_approximate(network: nn.Module, runner: Runner, tiling: Tiling) -> None:
    if len(tiling.tiles) > 1 and not runner.sizes.geometry.exact:
        warnings.warn(approximation(network, runner.sizes), ApproximateWarning, stacklevel=3)


class Predictor:
    """A trained network with its preprocessing, for images as they come.

    Args:
        network: the network.
        config: of its training; gives classes, channels, scale and normalisation.
        engine: the name of an engine, or an `EngineChoice`.
        tile: as in `predict`.
        views: test-time augmentation.
        limit: bytes that the process may hold; by default a share of what is free.
    """

    def __init__(
        self,
        network: nn.Module,
        config: Config,
        engine: str | EngineChoice = "auto",
        tile: TileSize = "auto",
        views: str = "none",
        limit: int | None = None,
    ) -> None:
        self.network, self.config, self.tile = network, config, tile
        self.engine, self.views = EngineChoice.of(engine), views
        self.classes = ClassMap.of(config.data)
        limit = limit if limit is not None else default_limit()
        self.runner = make_runner(network, config.data.channels, self.engine, views, config.data.scale)
        self.memory = Memory(limit, held_bytes())
        if self.memory.free < FIXED_BYTES:
            raise SettingError(
                f"{size_text(limit)} of memory is not enough: the process holds {size_text(self.memory.held)} "
                "before the first image. Allow more."
            )
        if tile != "auto":
            self.runner.tiler.choose((1, 1), tile, self.memory)  # refuses a tile off the grid before any image is read

    @property
    def note(self) -> str:
        """Why a slower engine runs the network than the fastest one here; empty if none does."""
        return self.runner.engine.note

    def parts(self, image: np.ndarray, facts: FileFacts | None = None) -> Iterator[tuple[Window, Arrays]]:
        """What each tile owns of an H x W x C image of any type, with the outputs there, K x h x w each.

        Images are scaled for the network by `data.scale`, and its outputs back, linearly. `facts` are those of the
        image's file.

        Raises:
            DataError: NaN pixels. ModelError: the channels do not fit.
        """
        page = Page.of_array(image, self.config.data, facts)
        tiling = self.runner.tiler.choose(page.shape, self.tile, self.memory)
        _warn_if_approximate(self.network, self.runner, tiling)
        parts = self.runner.run(lambda tile: page.window(tiling, tile), tiling)
        return ((tile.owned, outputs) for tile, outputs in parts)

    def assembled(
        self, image: np.ndarray, make: Callable[[Arrays], np.ndarray], facts: FileFacts | None = None
    ) -> np.ndarray:
        """What `make` makes of the outputs of each part, ... x h x w, put together to ... x H x W."""
        parts = ((window, make(outputs)) for window, outputs in self.parts(image, facts))
        return assembled(parts, *image.shape[:2])

    def logits(self, image: np.ndarray) -> np.ndarray:
        """H x W x C image -> K x H x W float32 logits; errors as in `parts`."""
        return self.assembled(image, logits_of)

    def labels(self, image: np.ndarray, facts: FileFacts | None = None) -> np.ndarray:
        """H x W x C image -> H x W class indices, uint8, 0 where there is no data; errors as in `parts`."""
        classes = self.assembled(image, lambda outputs: argmax(logits_of(outputs)), facts)
        valid = Numbers.of(image.dtype, facts, self.config.data.nodata).valid(image)
        return classes if valid is None else np.where(valid, classes, 0).astype(classes.dtype)
