"""What goes through the threads of a prediction: images under way, their windows, and what is to be written.

The reading thread makes images and items, the writing thread writes the items and counts. Each item knows how it is
written.
"""

import math
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from pixelwise.core.errors import OutputError, PixelwiseError, RunError, SettingError, reason
from pixelwise.core.progress import Progress
from pixelwise.engines import Arrays
from pixelwise.prediction.blending import Blender
from pixelwise.prediction.canvas import Canvas
from pixelwise.prediction.inputs import Input
from pixelwise.prediction.requests import Entry
from pixelwise.prediction.tiling import Tile, Tiling

BATCH_PIXELS = 8 * 256 * 256  # small windows are run together, up to so many pixels
LOG = "log.txt"  # in the folder of the outputs
MOST_OTHERS = 64  # tiles that are passed over and images that end, in a batch


@dataclass
class Outcome:
    """What became of the inputs."""

    outputs: list[Entry] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    pixels: int = 0
    seconds: float = 0.0
    finished_before: bool = False  # there was nothing left to resume
    engine: str = ""  # its name


@dataclass(frozen=True)
class Listener:
    """Hears how a prediction goes, from one thread at a time."""

    show: Callable[[float, int], None] = lambda share, pixels: None  # 0 .. 1, pixels predicted so far
    note: Callable[[str], None] = lambda text: None


class StoppedError(Exception):
    """Ends a thread in the middle of long work when the others have ended."""


class Image:
    """An image under way."""

    def __init__(self, image: Input, pages: int, tiling: Tiling, canvas: Canvas, is_approximate: bool) -> None:
        self.input, self.pages, self.tiling, self.canvas = image, pages, tiling, canvas
        self.is_approximate = is_approximate
        self.blender = Blender(tiling)
        self.tiles = pages * len(tiling.tiles)
        self.left = self.tiles  # to come
        self.skipped = 0  # tiles that are empty background, or outside of the region
        self.is_failed = False

    def details(self) -> Entry:
        """What its entry says beside paths and sizes."""
        found = {
            "pages": self.pages if self.pages > 1 else None,
            "tiles": self.tiles if len(self.tiling.tiles) > 1 else None,
            "skipped_tiles": self.skipped or None,
            "approximate": self.is_approximate or None,
        }
        return {key: value for key, value in found.items() if value is not None}


class Step(Protocol):
    """What the reading thread makes, one after the other."""

    def fits(self, batch: "Batch") -> bool:
        """Whether there is a place for it in a batch."""
        ...

    def enter(self, batch: "Batch") -> None:
        """Take its place in a batch."""
        ...


class Item(Protocol):
    """Something to be written."""

    @property
    def image(self) -> Image | None:
        """The image that it belongs to; None if that could not be opened."""
        ...

    def write(self, writer: "Writer") -> None:
        """Write it."""
        ...


@dataclass(frozen=True)
class Batch:
    """What goes through the three threads together, so that each works on one batch while the others do on theirs."""

    parts: list["Part"] = field(default_factory=list)  # windows of one shape, which the engine takes at once
    others: list[Item] = field(default_factory=list)  # what came between them and the next batch's


class _NeedsNoEngine:
    """Goes with the windows that came before it."""

    def fits(self, batch: Batch) -> bool:
        """Up to a number."""
        return len(batch.others) < MOST_OTHERS

    def enter(self: Item, batch: Batch) -> None:
        """Wait beside the windows."""
        batch.others.append(self)


@dataclass(frozen=True)
class Place:
    """A tile of an image."""

    image: Image
    number: int  # of the tile, over all pages

    @property
    def page(self) -> int:
        """Number of the page."""
        return self.number // len(self.image.tiling.tiles)

    @property
    def tile(self) -> Tile:
        """The tile."""
        return self.image.tiling.tiles[self.number % len(self.image.tiling.tiles)]


@dataclass(frozen=True)
class Part(Place):
    """A window that was read, for the engine."""

    window: np.ndarray  # C x h x w float32
    region: np.ndarray | None  # of the owned part, see `canvas`

    def fits(self, batch: Batch) -> bool:
        """Windows of one shape go together, as long as they are small."""
        shape, count = self.window.shape, len(batch.parts)
        same = not count or batch.parts[0].window.shape == shape
        return same and (not count or math.prod(shape[1:]) * (count + 1) <= BATCH_PIXELS)

    def enter(self, batch: Batch) -> None:
        """Wait for the engine."""
        batch.parts.append(self)

    def predicted(self, outputs: Arrays) -> "Predicted":
        """With the window's outputs, K x h x w each, in place of the window."""
        return Predicted(self.image, self.number, outputs, self.region)


@dataclass(frozen=True)
class Predicted(Place):
    """A window's outputs."""

    outputs: Arrays
    region: np.ndarray | None

    def write(self, writer: "Writer") -> None:
        """Put what the tile owns on the canvas."""
        image, tile = self.image, self.tile
        image.canvas.put(self.number, self.page, tile, image.blender.add(tile, self.outputs), self.region)
        image.left -= 1
        writer.outcome.pixels += tile.owned.height * tile.owned.width


@dataclass(frozen=True)
class Passed(_NeedsNoEngine, Place):
    """A tile that is not predicted: an earlier process did it, or it is known to be background."""

    is_done: bool
    is_skipped: bool
    region: np.ndarray | None = None

    def write(self, writer: "Writer") -> None:
        """Leave it as background, unless it is done."""
        self.image.left -= 1
        self.image.skipped += self.is_skipped
        if not self.is_done:
            self.image.canvas.skip(self.number, self.page, self.tile, self.region)


@dataclass(frozen=True)
class End(_NeedsNoEngine):
    """An image whose tiles have all been read."""

    image: Image

    def write(self, writer: "Writer") -> None:
        """Finish its files, and list it among the outputs."""
        image = self.image
        assert image.left == 0, (image.input, image.left)
        details = image.details()
        written = image.canvas.finish(details, writer.tick)
        sizes = {"width": image.tiling.width, "height": image.tiling.height}
        writer.outcome.outputs.append({"input": str(image.input.source), **written, **sizes, **details})


@dataclass(frozen=True)
class Failure(_NeedsNoEngine):
    """An image that cannot be read to its end, or that the network cannot take."""

    input: Input
    image: Image | None
    error: Exception

    def write(self, writer: "Writer") -> None:
        """List it as failed."""
        writer.fail(self.input, self.error)
        if self.image is not None:
            self.image.is_failed = True


class Writer:
    """The writing part: writes items, counts, and tells how far it is.

    Args:
        count: of the inputs.
        outcome: to be filled.
        listener: hears how it goes.
        folder: of the outputs, which gets a log where something unexpected happens.
        tick: is called often during long work, and may raise to end it.
    """

    def __init__(self, count: int, outcome: Outcome, listener: Listener, folder: Path, tick: Progress) -> None:
        self.outcome, self.tick, self._log = outcome, tick, folder / LOG
        self._count, self._listener = count, listener

    def write(self, items: Sequence[Item]) -> None:
        """Write items in their order; if one fails, its image fails."""
        for item in items:
            image = item.image
            if image is not None and image.is_failed:
                continue
            try:
                item.write(self)
            except (OutputError, RunError, SettingError, StoppedError):  # which concern all images
                raise
            except Exception as error:
                assert image is not None
                Failure(image.input, image, error).write(self)
        self._show(items[-1].image)

    def fail(self, image: Input, error: Exception) -> None:
        """List an input as failed."""
        text = str(error) if isinstance(error, PixelwiseError) else self._unexpected(image, error)
        message = text if text.startswith(str(image.source)) else f"{image.source}: {text}"
        self.outcome.failed.append({"input": str(image.source), "message": message})

    def _unexpected(self, image: Input, error: Exception) -> str:
        """What to say of an error that is no one's but ours; its traceback goes to the log."""
        lines = "".join(traceback.format_exception(error))
        with suppress(OSError):
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("a", encoding="utf-8", errors="backslashreplace") as log:
                log.write(f"{image.source}\n{lines}\n")
        return (
            f"failed unexpectedly ({type(error).__name__}: {reason(error)}). This is a bug in pixelwise: please report "
            f"it with the lines in {self._log}."
        )

    def _show(self, last: Image | None) -> None:
        """How far it is: the images that are done, and the tiles of the last."""
        done = len(self.outcome.outputs) + len(self.outcome.failed)
        begun = 0 if last is None else 1 - last.left / last.tiles
        self._listener.show(min((done + begun % 1) / self._count, 1.0), self.outcome.pixels)
