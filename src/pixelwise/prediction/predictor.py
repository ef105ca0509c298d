"""Image of any size in, classes of its pixels out: `predict` for arrays and networks, `Predictor` for a trained run."""

import warnings
from dataclasses import replace

import numpy as np
from torch import nn

from pixelwise.core.classes import ClassMap
from pixelwise.core.config import Config
from pixelwise.core.errors import DataError, SettingError, near
from pixelwise.core.memory import default_limit, size_text
from pixelwise.core.windows import reader
from pixelwise.data.pixels.normalize import Normalization, match_channels, require_finite
from pixelwise.engines import EngineChoice, TorchEngine, make_engine
from pixelwise.geometry.reach import Geometry
from pixelwise.prediction.postprocess import argmax
from pixelwise.prediction.runner import (
    FIXED_BYTES,
    VIEWS,
    Runner,
    TileSize,
    WindowOf,
    assembled,
    cut,
    dtype_of,
    logits_of,
    planes_of,
    sizes_of,
)
from pixelwise.prediction.tiling import Tile, Tiling

FASTEST = EngineChoice()
# A smaller array is predicted sooner than another engine could be prepared for it.
_EXPORT_PIXELS = 2048 * 2048
_SMALL_PIXELS = 1024 * 1024  # a module of unknown geometry is first tried on the whole of such an image


class ApproximateWarning(UserWarning):
    """Tiles of a network that is not exact were blended: the result only comes near that of the whole image."""


def predict(
    network: nn.Module,
    array: np.ndarray,
    tile: TileSize = "auto",
    engine: str | EngineChoice = "auto",
    logits: bool = False,
    views: str = "none",
) -> np.ndarray:
    """Run a network over an image of any size.

    Args:
        network: takes N x C x H x W, returns logits N x K x H x W; one of `MODELS`, or any module. The geometry of
            a module that states none is probed once; one that is not exact is run on the whole image, or, with a
            `tile`, on overlapping windows that are blended, with an `ApproximateWarning`.
        array: H x W or H x W x C, floats, already normalised; computed in float32, float64 for a float64 network.
        tile: side of the part that a tile owns, a multiple of the network's stride; "auto" takes tiles only where
            the image is large; None runs the whole image at once.
        engine: the name of an engine, or "auto": the fastest, where the image is large enough to prepare it; or an
            `EngineChoice`, which also says on which device, and how.
        logits: return K x H x W logits instead of classes.
        views: test-time augmentation, see `Runner`.

    Returns:
        H x W classes (uint8, with more than 256 classes uint16), or K x H x W logits.

    Raises:
        DataError, ModelError, SettingError: the array, the network and the tile do not fit.

    >>> from pixelwise.models import UNet
    >>> predict(UNet(width=2, depth=1), np.zeros((5, 7), np.float32)).shape
    (5, 7)
    """
    image = array[..., None] if array.ndim == 2 else array
    if image.ndim != 3 or image.size == 0:
        raise DataError(
            f"the image has the shape {array.shape}; H x W or H x W x C with H, W of at least 1 is expected."
        )
    if not np.issubdtype(image.dtype, np.floating):
        raise DataError(f"the image is {image.dtype}; normalised floating-point values are expected.")
    image = image.astype(dtype_of(network), copy=False)
    require_finite(image)
    choice = EngineChoice.of(engine)
    if choice.name == "auto" and image.shape[0] * image.shape[1] < _EXPORT_PIXELS:
        choice = replace(choice, name="torch")
    is_plain = tile in ("auto", None) and choice.name == "torch" and views == "none"
    out = _whole(network, image, choice) if is_plain else None
    if out is None:
        runner = make_runner(network, image.shape[2], choice, views)
        plan = runner.plan(image.shape[0], image.shape[1], tile, default_limit())
        if len(plan.tiles) > 1 and not runner.geometry.exact:
            warnings.warn(approximation(network, runner), ApproximateWarning, stacklevel=2)
        out = runner.logits(image, plan)
    return out if logits else argmax(out)


def _whole(network: nn.Module, image: np.ndarray, choice: EngineChoice) -> np.ndarray | None:
    """K x H x W of a small image through a module of unknown geometry, if it takes this size: probing it costs more."""
    small = image.shape[0] * image.shape[1] <= _SMALL_PIXELS
    if isinstance(getattr(network, "geometry", None), Geometry) or not small:
        return None
    try:
        logits = logits_of(TorchEngine(network, choice)(np.ascontiguousarray(image.transpose(2, 0, 1))[None]))
    except Exception:  # whatever the module raises; the probe tells what it wants, or what is wrong
        return None
    return logits[0] if logits.ndim == 4 and logits.shape[2:] == image.shape[:2] else None


def make_runner(
    network: nn.Module,
    channels: int,
    choice: EngineChoice = FASTEST,
    views: str = "none",
    scale: float = 1.0,
) -> Runner:
    """A network with an engine to run it; `views` and `scale` as in `Runner`.

    Raises:
        SettingError: there is no such engine or test-time augmentation. ModelError: they do not fit the network.
    """
    if views not in VIEWS:
        raise SettingError(f"views {views}: is not a test-time augmentation; {near(views, VIEWS)}")
    sizes = sizes_of(network, channels)
    runner = Runner(make_engine(network, choice, sizes), network, sizes, views, scale)
    runner.base  # noqa: B018 (looked at now, before the first window)
    return runner


def approximation(network: nn.Module, runner: Runner) -> str:
    """Why a result by tiles is only near that of the whole image."""
    how = "overlap and are blended" if runner.sizes.keeps_size else "see a part of the image each"
    return (
        f"{type(network).__name__}: {runner.geometry.reason}; its tiles {how}, which only comes near its result on "
        "the whole image."
    )


class Predictor:
    """A trained network with its preprocessing: images as they come in, class indices of their size out.

    Args:
        network: the network.
        config: of its training: classes, channels, scale, normalisation.
        engine: the name of an engine, or an `EngineChoice`.
        tile: as in `predict`.
        views: test-time augmentation.
        limit: bytes that the process may hold; None takes a share of what is free.
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
        self.network = network
        self.config = config
        self.tile = tile
        self.engine = EngineChoice.of(engine)
        self.limit = limit if limit is not None else default_limit()
        self.classes = ClassMap(tuple(config.data.classes), tuple(config.data.colors))
        self.normalization = Normalization.from_settings(config.data)
        self.runner = make_runner(network, config.data.channels, self.engine, views, config.data.scale)
        if self.limit < self.runner.base + FIXED_BYTES:
            raise SettingError(
                f"{size_text(self.limit)} of memory is not enough: the process holds {size_text(self.runner.base)} "
                "before the first image. Allow more."
            )
        if tile != "auto":
            self.runner.plan(1, 1, tile, self.limit)  # refuses a tile off the grid before any image is read

    def logits(self, image: np.ndarray) -> np.ndarray:
        """H x W x C image of any type -> K x H x W float32 logits.

        Images are scaled to the network by `data.scale`, their logits back, linearly.

        Raises:
            DataError: NaN pixels. ModelError: the channels do not fit.
        """
        window_of, plan = self._prepared(image)
        return assembled(self.runner.run(window_of, plan), plan)

    def labels(self, image: np.ndarray) -> np.ndarray:
        """H x W x C image -> H x W class indices, uint8; errors as in `logits`."""
        window_of, plan = self._prepared(image)
        return assembled(((tile, argmax(logits)) for tile, logits in self.runner.run(window_of, plan)), plan)

    def _prepared(self, image: np.ndarray) -> tuple[WindowOf, Tiling]:
        """The windows of an image, scaled and then normalised, and its tiles."""
        fitted = match_channels(image, self.config.data.channels)
        require_finite(fitted)
        gain, offset = self.normalization.gain_and_offset(fitted)
        plan = self.runner.plan(fitted.shape[0], fitted.shape[1], self.tile, self.limit)
        if len(plan.tiles) > 1 and not self.runner.geometry.exact:
            warnings.warn(approximation(self.network, self.runner), ApproximateWarning, stacklevel=4)

        def window_of(tile: Tile) -> np.ndarray:
            window = cut(reader(fitted), plan, tile)
            return planes_of(window.astype(np.float32) * gain + offset)

        return window_of, plan
