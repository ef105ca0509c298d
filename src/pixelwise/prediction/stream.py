"""Image files in, masks out: many small ones in batches, or one of any size by tiles, in bounded memory.

Reading, network and writing go on at the same time: while the engine works on a batch of windows, one thread reads
and normalises the next, and another takes the classes of the one before and writes them. Each waits when it is a
batch ahead, so that the memory holds a few windows, however many there are.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from queue import Empty, Queue
from threading import Event, Lock, Thread
from typing import Any, TypeVar

import numpy as np

from pixelwise.core.errors import DataError, ModelError, RunError, SettingError
from pixelwise.core.memory import held_bytes, size_text
from pixelwise.data.files.sinks import ZarrMask
from pixelwise.data.files.sources import Source, open_source
from pixelwise.models.checkpoint import fingerprint
from pixelwise.prediction.background import RegionMask, empty_tiles, thumbnail
from pixelwise.prediction.canvas import Canvas, Entry, Outputs, Task, ZarrCanvas, identity, open_canvas
from pixelwise.prediction.inputs import Input, find_inputs, name_inputs
from pixelwise.prediction.page import Page
from pixelwise.prediction.predictor import Predictor, approximation
from pixelwise.prediction.runner import Blender
from pixelwise.prediction.tiling import Tile, Tiling

BATCH_PIXELS = 8 * 256 * 256  # small windows are run together, up to so many pixels
MOST_OTHERS = 64  # tiles that are passed over and images that end, in a batch
LONG_PIXELS = 2**24  # of less it is not asked how long it takes
LONG_SECONDS = 20.0  # what takes longer is announced
MOST_CACHE = 256 * 2**20  # bytes of decoded chunks that are kept
SMALL_CACHE = 16 * 2**20
NOTHING = np.empty(0, np.float32)

Item = TypeVar("Item")


@dataclass
class Summary:
    """What became of the inputs."""

    outputs: list[Entry] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    pixels: int = 0
    seconds: float = 0.0
    finished_before: bool = False  # there was nothing left to resume
    engine: str = ""  # its name


@dataclass(frozen=True)
class Progress:
    """Is told how it goes, from one thread at a time."""

    show: Callable[[float, int], None] = lambda share, pixels: None  # 0 .. 1, pixels predicted so far
    note: Callable[[str], None] = lambda text: None


@dataclass
class _Image:
    """An image under way. The reading thread makes it, the writing thread counts."""

    job: Input
    pages: int
    height: int
    width: int
    plan: Tiling
    canvas: Canvas
    blender: Blender | None
    is_approximate: bool
    left: int = 0  # tiles to come
    skipped: int = 0  # tiles that a test called empty, or that lie outside of the region
    is_failed: bool = False

    @property
    def tiles(self) -> int:
        return self.pages * len(self.plan.tiles)

    def details(self) -> Entry:
        """What its entry says beside paths and sizes."""
        found = {
            "pages": self.pages if self.pages > 1 else None,
            "tiles": self.tiles if len(self.plan.tiles) > 1 else None,
            "skipped_tiles": self.skipped or None,
            "approximate": self.is_approximate or None,
        }
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class _Place:
    """A tile of an image."""

    image: _Image
    number: int  # of the tile, over all pages

    @property
    def page(self) -> int:
        return self.number // len(self.image.plan.tiles)

    @property
    def tile(self) -> Tile:
        return self.image.plan.tiles[self.number % len(self.image.plan.tiles)]


@dataclass(frozen=True)
class _Part(_Place):
    """A window that was read."""

    window: np.ndarray  # C x h x w float32
    region: np.ndarray | None  # of the owned part, bool


@dataclass(frozen=True)
class _Passed(_Place):
    """A tile that is not predicted: an earlier process did, or it is known to be background."""

    is_done: bool
    is_skipped: bool


@dataclass(frozen=True)
class _End:
    """An image whose tiles are all read, or that cannot be read on."""

    job: Input
    image: _Image | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class _Batch:
    """What goes through the three stages together, so that each works on one batch while the others do on theirs."""

    parts: list[_Part]  # windows of one shape, which the engine takes at once
    others: Sequence[_Passed | _End]  # what came between them and the next batch's


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str],
    outputs: Outputs,
    axes: str | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Predict files and write their masks; one that fails does not stop the others.

    Args:
        predictor: the network and its preprocessing.
        inputs: files, folders, glob patterns.
        outputs: where to, and what.
        axes: of TIFF and Zarr files whose metadata do not tell.
        progress: is told how it goes.

    Raises:
        DataError: there is nothing to predict. OutputError: the folder cannot be written, or is that of the images.
        RunError: `outputs.resume`, and nothing was begun, or something else. SettingError: the settings or the memory
            do not suit the network.
    """
    outputs.clean.require_classes(len(predictor.classes))
    jobs = name_inputs(find_inputs(inputs, outputs.folder))
    work = _Work(predictor, jobs, outputs, axes, progress or Progress())
    work.run()
    return work.summary


class _Work:
    """The three stages: `_read` in a thread of its own, the engine in the caller's, `_write` in another."""

    def __init__(
        self, predictor: Predictor, jobs: Sequence[Input], outputs: Outputs, axes: str | None, progress: Progress
    ) -> None:
        self.predictor, self.outputs, self.axes, self.progress = predictor, outputs, axes, progress
        settings = _settings(predictor, outputs)
        tasks = [Task(job, settings) for job in jobs]
        self.places = {str(task.job.source): place for place, task in enumerate(tasks)}
        self.summary = Summary(engine=predictor.runner.engine.name)
        if predictor.runner.engine.note:
            progress.note(predictor.runner.engine.note)
        if outputs.resume:
            self.summary.outputs = [entry for task in tasks if (entry := task.finished(outputs))]
            if not self.summary.outputs and not any(task.is_begun(outputs) for task in tasks):
                raise RunError(f"{outputs.folder}: holds no prediction that could be resumed. Start without --resume.")
        done = {entry["input"] for entry in self.summary.outputs}
        self.tasks = [task for task in tasks if str(task.job.source) not in done]
        self.summary.finished_before = outputs.resume and not self.tasks
        self.engine_lock = Lock()  # the reading thread measures the network where the memory is short
        self.is_stopped = Event()

    def run(self) -> None:
        """Predict all of them."""
        begin = time.perf_counter()
        with ahead(self._batches()) as batches, ThreadPoolExecutor(1, thread_name_prefix="writing") as writing:
            waiting: list[Future[None]] = []
            try:
                for batch in batches:
                    logits = self._logits(batch.parts)
                    # The windows are no longer needed.
                    bare = replace(batch, parts=[replace(part, window=NOTHING) for part in batch.parts])
                    while len(waiting) > 1:
                        waiting.pop(0).result()
                    waiting.append(writing.submit(self._write, bare, logits))
                for written in waiting:
                    written.result()
            except BaseException:
                self.is_stopped.set()  # so that the other threads end what takes long
                raise
        self.progress.show(1.0, self.summary.pixels)
        self.summary.outputs.sort(key=lambda entry: self.places[entry["input"]])
        self.summary.seconds = time.perf_counter() - begin

    def _logits(self, parts: list[_Part]) -> np.ndarray | Exception | None:
        if all(part.image.is_failed for part in parts):
            return None
        windows = parts[0].window[None] if len(parts) == 1 else np.stack([part.window for part in parts])
        try:
            with self.engine_lock:
                return self.predictor.runner(windows)
        except ModelError as error:  # which concerns these images; the others may fit
            return error

    def _batches(self) -> Iterator[_Batch]:
        """Windows of one shape together, as long as they are small; what needs no network goes with those before."""
        parts: list[_Part] = []
        others: list[_Passed | _End] = []
        for item in self._read():
            if len(others) == MOST_OTHERS or (isinstance(item, _Part) and parts and not _goes_with(parts, item)):
                yield _Batch(parts, others)
                parts, others = [], []
            if isinstance(item, _Part):
                parts.append(item)
            else:
                others.append(item)
        if parts or others:
            yield _Batch(parts, others)

    def _check(self) -> None:
        """End a thread that is in the midst of something long when the others have ended."""
        if self.is_stopped.is_set():
            raise KeyboardInterrupt

    # The reading thread

    def _read(self) -> Iterator[_Part | _Passed | _End]:
        for task in self.tasks:
            job = task.job
            image: _Image | None = None
            try:
                with ExitStack() as stack:
                    cache = min(MOST_CACHE, self.predictor.limit // 16)
                    left = self.predictor.limit - held_bytes()
                    source = stack.enter_context(open_source(job.source, self.axes, cache, left))
                    region = self._region(job, source, stack)
                    image = self._begin(task, source)
                    for number in range(source.pages):
                        page = Page(self.predictor, source, number, self._check)
                        yield from self._read_page(image, page, region)
                yield _End(job, image)
            except (DataError, ModelError) as error:
                yield _End(job, image, error)
            except (RunError, SettingError) as error:  # of one image among many it is that one's failure
                if len(self.tasks) == 1:
                    raise
                yield _End(job, image, error)

    def _region(self, job: Input, source: Source, stack: ExitStack) -> RegionMask | None:
        """What the user wants predicted of this image, if not all."""
        path = self.outputs.inside
        if path is None:
            return None
        if path.is_dir():
            found = sorted(other for other in path.iterdir() if other.stem == job.source.stem)
            if not found:
                raise DataError(f"{path}: holds no mask named {job.source.stem}; each image needs one.")
            path = found[0]
        mask = stack.enter_context(open_source(path, cache_bytes=SMALL_CACHE))
        return RegionMask(
            lambda window: np.max(mask.read(0, window), axis=2),
            (mask.height, mask.width),
            source.height,
            source.width,
        )

    def _begin(self, task: Task, source: Source) -> _Image:
        """Plan the image, and make the place for its mask."""
        runner, job = self.predictor.runner, task.job
        limit = self.predictor.limit - source.bytes_needed
        with self.engine_lock:
            plan = runner.plan(source.height, source.width, self._tile(job, source), limit)
            cost = int(runner.cost(plan))
        room = self._room_for_masks(limit, cost)
        instances = self.predictor.config.data.labels == "instances"
        canvas = open_canvas(
            task, source, self.outputs, self.predictor.classes, plan, room, instances, self.progress.note
        )
        is_approximate = len(plan.tiles) > 1 and not runner.geometry.exact
        blender = Blender(plan) if plan.overlap else None
        image = _Image(job, source.pages, source.height, source.width, plan, canvas, blender, is_approximate)
        image.left = image.tiles
        if image.is_approximate:
            self.progress.note(f"{job.source}: {approximation(self.predictor.network, runner)}")
        self._announce(image)
        return image

    def _room_for_masks(self, limit: int, cost: int) -> int:
        """Bytes that one image's mask and what belongs to it may take: a few images are on their way at once."""
        return (limit - self.predictor.runner.base - cost) // 2

    def _tile(self, job: Input, source: Source) -> Any:
        """The tile; a prediction that is resumed goes on with the one that it began with."""
        growing = ZarrCanvas.growing_path(job, source, self.outputs)
        begun = ZarrMask.description_of(growing) if self.outputs.resume else None
        return begun["tile"] if begun and "tile" in begun else self.predictor.tile

    def _announce(self, image: _Image) -> None:
        """Say what a long prediction will take, before it begins."""
        plan = image.plan
        if plan.window_pixels * image.pages < LONG_PIXELS:
            return
        with self.engine_lock:
            seconds = self.predictor.runner.seconds_per_pixel * plan.window_pixels * image.pages
        if seconds > LONG_SECONDS:
            pixels = image.pages * image.height * image.width
            height, width = plan.window_shape
            self.progress.note(
                f"{image.job.source}: {pixels / 1e6:,.0f} megapixels in {image.tiles} windows of {height} x {width}, "
                f"about {seconds / 60:.0f} minutes; the mask takes at most {size_text(1.4 * pixels)} on disk"
            )

    def _read_page(self, image: _Image, page: Page, region: RegionMask | None) -> Iterator[_Part | _Passed]:
        wanted = self._wanted(image, page, region)
        for index, tile in enumerate(image.plan.tiles):
            number = page.number * len(image.plan.tiles) + index
            if image.is_failed:
                return
            # What was blended depends on the windows around, so it is done again.
            is_done = image.canvas.is_done(number) and image.blender is None
            if is_done or not wanted[index]:
                yield _Passed(image, number, is_done, not wanted[index])
                continue
            inside = None if region is None else region.window(tile.owned)
            yield _Part(image, number, page.window(image.plan, tile), inside)

    def _wanted(self, image: _Image, page: Page, region: RegionMask | None) -> np.ndarray:
        """Which tiles are to be predicted."""
        tiles = image.plan.tiles
        wanted = np.ones(len(tiles), bool)
        if len(tiles) == 1 or image.blender is not None:
            if self.outputs.skip_background:
                self.progress.note(f"{image.job.source}: is predicted whole; --skip-background works by tiles alone.")
            return wanted
        if region is not None:
            wanted &= [region.touches(tile.owned) for tile in tiles]
        if self.outputs.skip_background:
            small = thumbnail(page.read, page.height, page.width)
            wanted &= ~empty_tiles(small, [image.plan.source(tile) for tile in tiles])
        return wanted

    # The writing thread

    def _write(self, batch: _Batch, logits: np.ndarray | Exception | None) -> None:
        for index, part in enumerate(batch.parts):
            if part.image.is_failed:
                continue
            try:
                if isinstance(logits, Exception):
                    raise logits
                assert logits is not None
                self._put(part, logits[index])
            except (DataError, ModelError) as error:
                self._fail(part.image.job, part.image, error)
        for other in batch.others:
            if isinstance(other, _End):
                self._end(other)
            else:
                self._pass(other)
        self._show(batch)

    def _show(self, batch: _Batch) -> None:
        """How far it is: the images that are done, and the tiles of the last."""
        last = [*batch.parts, *batch.others][-1].image
        done = len(self.summary.outputs) + len(self.summary.failed)
        begun = 0 if last is None else 1 - last.left / last.tiles
        self.progress.show(min((done + begun % 1) / len(self.places), 1.0), self.summary.pixels)

    def _put(self, part: _Part, logits: np.ndarray) -> None:
        image, tile = part.image, part.tile
        count = len(self.predictor.classes)
        if len(logits) != count:
            raise ModelError(f"the network returned {len(logits)} classes, and the run has {count}.")
        owned = image.blender.add(tile, logits) if image.blender else image.plan.part(tile, logits)
        image.canvas.put(part.number, part.page, tile, owned, part.region)
        image.left -= 1
        self.summary.pixels += tile.owned.height * tile.owned.width

    def _pass(self, passed: _Passed) -> None:
        image = passed.image
        if image.is_failed:
            return
        image.left -= 1
        image.skipped += passed.is_skipped
        if not passed.is_done:
            image.canvas.skip(passed.number, passed.page, passed.tile)

    def _end(self, end: _End) -> None:
        if end.image is not None and end.image.is_failed:
            return
        if end.error is not None or end.image is None:
            assert end.error is not None
            self._fail(end.job, end.image, end.error)
            return
        image = end.image
        assert image.left == 0, (end.job, image.left)
        details = image.details()
        try:
            written = image.canvas.finish(details, self.progress.note, lambda done, total: self._check())
        except (DataError, ModelError) as error:
            self._fail(end.job, image, error)
            return
        sizes = {"width": image.width, "height": image.height}
        self.summary.outputs.append({"input": str(end.job.source), **written, **sizes, **details})

    def _fail(self, job: Input, image: _Image | None, error: Exception) -> None:
        if image is not None:
            image.is_failed = True
        text = str(error)
        message = text if text.startswith(str(job.source)) else f"{job.source}: {text}"
        self.summary.failed.append({"input": str(job.source), "message": message})


def _goes_with(parts: Sequence[_Part], part: _Part) -> bool:
    """Whether the engine may take a window together with others."""
    shape = part.window.shape
    return parts[0].window.shape == shape and math.prod(shape[1:]) * (len(parts) + 1) <= BATCH_PIXELS


def _settings(predictor: Predictor, outputs: Outputs) -> dict[str, Any]:
    """All that the outputs depend on beside the image; see `Task`."""
    return {
        "network": fingerprint(predictor.network, predictor.config),
        "views": predictor.runner.views,
        "half_precision": predictor.engine.amp,
        "probabilities": outputs.probability_type if outputs.probabilities else None,
        "threshold": outputs.clean.threshold,
        "fill_holes": outputs.clean.fill_holes,
        "smallest_object": outputs.clean.smallest_object,
        "inside": identity(outputs.inside) if outputs.inside else None,
        "skip_background": outputs.skip_background,
        "format": outputs.format,
        "overlay": outputs.overlay,
    }


@contextmanager
def ahead(items: Iterator[Item]) -> Iterator[Iterator[Item]]:
    """Let a thread make items one or two ahead of who takes them; its errors are raised where they are taken.

    >>> with ahead(iter([1, 2, 3])) as numbers:
    ...     list(numbers)
    [1, 2, 3]
    """
    queue: Queue[tuple[Item | None, BaseException | None]] = Queue(1)
    stop = Event()

    def make() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                queue.put((item, None))
                if stop.is_set():
                    return
        except BaseException as raised:
            error = raised
        queue.put((None, error))

    def take() -> Iterator[Item]:
        while True:
            item, error = queue.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    thread = Thread(target=make, name="reading", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        stop.set()
        while thread.is_alive():  # it may be waiting for a place
            with suppress(Empty):
                queue.get(timeout=0.05)
        thread.join()
