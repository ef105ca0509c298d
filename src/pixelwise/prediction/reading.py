"""The reading part of a prediction: opens images, chooses their tiles and canvases, and reads window after window."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Event, Lock

import numpy as np

from pixelwise.core.errors import DataError, ModelError, OutputError, RunError, SettingError
from pixelwise.core.memory import held_bytes, size_text
from pixelwise.core.windows import Window
from pixelwise.data.files.sources import Source, open_source
from pixelwise.data.pixels.normalize import Numbers, unlike_text, unlike_training
from pixelwise.prediction.background import RegionMask, empty_tiles, thumbnail
from pixelwise.prediction.canvas import INSIDE, MISSING, OUTSIDE, Blank, Canvas
from pixelwise.prediction.inputs import Input
from pixelwise.prediction.items import End, Failure, Image, Listener, Part, Passed, Step, StoppedError
from pixelwise.prediction.page import Page
from pixelwise.prediction.predictor import Predictor
from pixelwise.prediction.requests import OutputOptions, Request
from pixelwise.prediction.runner import approximation
from pixelwise.prediction.tiling import Tiling

LONG_PIXELS = 2**24  # with fewer nobody needs to know how long it takes
LONG_SECONDS = 20.0  # what takes longer is announced
MOST_CACHE = 256 * 2**20  # bytes of decoded chunks that are kept
SMALL_CACHE = 16 * 2**20


class Stop:
    """Tells threads to end."""

    def __init__(self) -> None:
        self._event = Event()

    def set(self) -> None:
        """From now on `check` raises."""
        self._event.set()

    def check(self) -> None:
        """Raise a StoppedError if the thread is to end."""
        if self._event.is_set():
            raise StoppedError


@dataclass(frozen=True)
class Reader:
    """Reads what is asked for.

    Fields:
        predictor: the network and its preprocessing.
        options: what is written.
        axes: of TIFF and Zarr files whose metadata do not tell.
        listener: hears how it goes.
        open_canvas: makes the place where an image's outputs go.
        stop: ends it.
        engine_lock: is held while the engine works; this thread measures it if the memory is short.
    """

    predictor: Predictor
    options: OutputOptions
    axes: str | None
    listener: Listener
    open_canvas: Callable[[Blank], Canvas]
    stop: Stop = field(default_factory=Stop)
    engine_lock: Lock = field(default_factory=Lock)

    def items(self, requests: Sequence[Request]) -> Iterator[Step]:
        """Windows for the engine, and items to be written, image after image."""
        for request in requests:
            image: Image | None = None
            try:
                with ExitStack() as stack:
                    cache = min(MOST_CACHE, self.predictor.memory.limit // 16)
                    left = self.predictor.memory.limit - held_bytes()
                    path, series = request.input.source, self.options.series
                    source = stack.enter_context(open_source(path, self.axes, cache, left, series))
                    region = self._region(request.input, source, stack)
                    image = self._begin(request, source)
                    self._tell(request.input, source)
                    missing = 0.0
                    for number in range(source.pages):
                        page = self._page(source, number)
                        yield from self._read_page(image, page, number, region)
                        missing += page.missing_share / source.pages
                    self._tell_missing(image, page, missing)
                yield End(image)
            except (DataError, ModelError) as error:
                yield Failure(request.input, image, error)
            except (RunError, SettingError) as error:  # if there are others, only this image fails
                if len(requests) == 1:
                    raise
                yield Failure(request.input, image, error)
            except (OutputError, StoppedError):
                raise
            except Exception as error:  # a mistake of ours must not cost the other images their masks
                yield Failure(request.input, image, error)

    def _region(self, image: Input, source: Source, stack: ExitStack) -> RegionMask | None:
        """The part of this image that the user wants predicted; None for all of it."""
        path = self.options.inside
        if path is None:
            return None
        if path.is_dir():
            found = sorted(other for other in path.iterdir() if other.stem == image.source.stem)
            if not found:
                raise DataError(f"{path}: holds no mask named {image.source.stem}; each image needs one.")
            path = found[0]
        mask = stack.enter_context(open_source(path, cache_bytes=SMALL_CACHE))
        return RegionMask(
            lambda window: np.max(mask.read(0, window), axis=2),
            (mask.height, mask.width),
            source.height,
            source.width,
        )

    def _begin(self, request: Request, source: Source) -> Image:
        """Cut the image into tiles, and make the place for its outputs."""
        predictor, runner = self.predictor, self.predictor.runner
        memory = predictor.memory.less(source.bytes_needed)
        # A prediction that is resumed goes on with the tile that it began with.
        tile = (self.options.begun(request.input, source) or {}).get("tile", predictor.tile)
        with self.engine_lock:
            tiling = runner.tiler.choose((source.height, source.width), tile, memory)
            room = self._room_for_masks(memory.free - runner.costs.cost(tiling))
        blank = Blank(request, source, self.options, tiling, room, predictor.config, self.listener.note)
        is_approximate = len(tiling.tiles) > 1 and not runner.sizes.geometry.exact
        image = Image(request.input, source.pages, tiling, self.open_canvas(blank), is_approximate)
        if is_approximate:
            self.listener.note(f"{request.input.source}: {approximation(predictor.network, runner.sizes)}")
        self._announce(image)
        return image

    def _room_for_masks(self, free: int) -> int:
        """Bytes that one image's mask and what belongs to it may take; a few images are under way at once."""
        return free // 2

    def _announce(self, image: Image) -> None:
        """Say what a long prediction will take, before it begins."""
        tiling = image.tiling
        if tiling.window_pixels * image.pages < LONG_PIXELS:
            return
        with self.engine_lock:
            seconds = self.predictor.runner.costs.seconds_per_pixel * tiling.window_pixels * image.pages
        if seconds > LONG_SECONDS:
            pixels = image.pages * tiling.height * tiling.width
            height, width = tiling.window_shape
            self.listener.note(
                f"{image.input.source}: {pixels / 1e6:,.0f} megapixels in {image.tiles} windows of {height} x {width}, "
                f"about {seconds / 60:.0f} minutes; the mask takes at most {size_text(1.4 * pixels)} on disk"
            )

    def _tell(self, image: Input, source: Source) -> None:
        """Say what may surprise about a file."""
        for note in source.facts.notes():
            self.listener.note(f"{image.source}: {note}")
        settings = self.predictor.config.data
        if settings.normalization == "fixed" and settings.levels is not None:
            low, high = self._page(source, source.pages // 2).level()
            if unlike_training(low, high, settings):
                self.listener.note(f"{image.source}: {unlike_text(low, high, settings)}")

    def _tell_missing(self, image: Image, page: Page, share: float) -> None:
        if share > 0:
            label = self.options.nodata_label
            became = "background" if label is None else f"label {label}"
            self.listener.note(
                f"{image.input.source}: {share:.1%} of the pixels are nodata ({page.numbers.nodata:g}); they become "
                f"{became}"
            )

    def _read_page(self, image: Image, page: Page, number: int, region: RegionMask | None) -> Iterator[Step]:
        tiling = image.tiling
        wanted = self._wanted(image, page, region)
        for index, tile in enumerate(tiling.tiles):
            place = number * len(tiling.tiles) + index
            if image.is_failed:
                return
            # A blended tile depends on the windows around it, so it is done again.
            is_done = image.canvas.is_done(place) and not tiling.overlap
            where = None if is_done else _where(page, tile.owned, region)
            if is_done or not wanted[index]:
                yield Passed(image, place, is_done, not wanted[index], where)
                continue
            yield Part(image, place, page.window(tiling, tile), where)

    def _page(self, source: Source, number: int) -> Page:
        def read(window: Window) -> np.ndarray:
            self.stop.check()
            return source.read(number, window)

        settings, shape = self.predictor.config.data, (source.height, source.width, source.channels)
        return Page(read, shape, Numbers.of(source.dtype, source.facts, settings.nodata), settings)

    def _wanted(self, image: Image, page: Page, region: RegionMask | None) -> np.ndarray:
        """Which tiles are to be predicted."""
        tiling: Tiling = image.tiling
        wanted = np.ones(len(tiling.tiles), bool)
        if len(tiling.tiles) == 1 or tiling.overlap:
            if self.options.skip_background:
                self.listener.note(f"{image.input.source}: is not cut into tiles, so --skip-background skips nothing.")
            return wanted
        if region is not None:
            wanted &= [region.touches(tile.owned) for tile in tiling.tiles]
        if self.options.skip_background:
            small = thumbnail(page.read, *page.shape)
            wanted &= ~empty_tiles(small, [tiling.source(tile) for tile in tiling.tiles])
        return wanted


def _where(page: Page, window: Window, region: RegionMask | None) -> np.ndarray | None:
    """What a canvas does with each pixel of a window, h x w; None: all are predicted."""
    valid = page.valid(window)
    if region is None and (valid is None or valid.all()):
        return None
    where = np.full((window.height, window.width), INSIDE, np.uint8)
    if region is not None:
        where[~region.window(window)] = OUTSIDE
    if valid is not None:
        where[~valid] = MISSING
    return where
