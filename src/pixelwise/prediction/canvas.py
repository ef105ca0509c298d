"""Where a prediction goes, tile by tile: into memory and then a PNG or TIFF, or into a Zarr that may be of any size.

P pages, K classes, H x W pixels of the image.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from pixelwise.core.classes import ClassMap
from pixelwise.core.errors import DataError, OutputError
from pixelwise.core.memory import size_text
from pixelwise.core.progress import Progress
from pixelwise.core.windows import Window
from pixelwise.data.files.sinks import MaskForm, ZarrMask, write_pyramid_tiff
from pixelwise.data.files.sources import Source, is_zarr, open_source
from pixelwise.data.files.writers import TIFF_BUFFER, record_of, write_image, write_mask, write_probabilities
from pixelwise.data.pixels.pictures import overlay, to_display
from pixelwise.data.pixels.targets import objects
from pixelwise.prediction.inputs import Input
from pixelwise.prediction.postprocess import PostProcess, choose_classes, clean, clean_tiles
from pixelwise.prediction.runner import softmax
from pixelwise.prediction.tiling import Tile, Tiling

PNG_PIXELS = 2**26  # a larger mask is written as TIFF, unless the user wants otherwise
CHUNKS = (1024, 512)  # sides of a Zarr's chunks: the first that fits the tiles evenly, else the last
Entry = dict[str, Any]
Note = Callable[[str], None]
CERTAIN = float(np.log(1e6))  # the logit of class 0, beside zeros, where nothing is predicted


@dataclass(frozen=True)
class Outputs:
    """What is written, and how."""

    folder: Path
    format: Literal["auto", "png", "tiff", "zarr"] = "auto"
    probabilities: bool = False
    overlay: bool = False
    probability_type: Literal["uint8", "float16"] = "uint8"
    clean: PostProcess = field(default_factory=PostProcess)
    inside: Path | None = None  # mask of the part to predict, or a folder of masks with the images' stems
    skip_background: bool = False
    resume: bool = False

    def format_of(self, job: Input, source: Source) -> str:
        """png, tiff or zarr; "auto" takes PNG for one page that a viewer can show, a Zarr for a Zarr, else TIFF."""
        if self.format != "auto":
            return self.format
        if is_zarr(job.source):
            return "zarr"
        return "png" if source.pages == 1 and source.height * source.width <= PNG_PIXELS else "tiff"

    def target(self, job: Input, suffix: str, kind: str = "") -> Path:
        """Where an output of a job goes; `kind` names a folder for those beside the mask."""
        target = self.folder / kind / job.name.parent / (job.name.name + suffix)
        if target.exists() and target.resolve() == job.source.resolve():
            raise OutputError(f"{target}: is the image itself, which its mask would replace; choose another folder.")
        return target


@dataclass(frozen=True)
class Task:
    """An image, and all that its outputs depend on, for JSON; the tile does not count, since it changes nothing."""

    job: Input
    settings: Mapping[str, Any]

    @property
    def description(self) -> dict[str, Any]:
        """What a Zarr that is resumed must have been begun with."""
        return {**self.settings, "image": identity(self.job.source)}

    @property
    def name(self) -> str:
        """A hash of it, which finished masks carry."""
        return hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()[:16]

    def is_begun(self, outputs: Outputs) -> bool:
        """Whether a Zarr of an earlier process lies where one would grow."""
        target = outputs.target(self.job, ".zarr")
        return any(ZarrMask.description_of(path) is not None for path in (target, growing(target)))

    def record(self, details: Entry) -> str:
        """What a finished PNG or TIFF carries: its name, and what its entry says beside paths and sizes."""
        return json.dumps({"name": self.name, **details})

    def finished(self, outputs: Outputs) -> Entry | None:
        """What an earlier process wrote for this image and these settings, if it came to an end."""
        if not self.job.source.exists():
            return None
        targets = [outputs.target(self.job, suffix) for suffix in (".png", ".tif", ".zarr")]
        masks = {path: record for path in targets if (record := _record_of(path)).get("name") == self.name}
        if not masks:
            return None
        path, record = next(iter(masks.items()))
        entry: Entry = {"input": str(self.job.source), "mask": str(path)}
        for kind, folder in (("instances", "instances"), ("probabilities", "probabilities"), ("overlay", "overlays")):
            paths = [outputs.target(self.job, suffix, folder) for suffix in (".png", ".tif", ".zarr")]
            if there := [path for path in paths if path.exists()]:
                entry[kind] = str(there[0])
        with open_source(path) as mask:
            entry |= {"width": mask.width, "height": mask.height}
        return entry | {key: value for key, value in record.items() if key != "name"}


def _record_of(path: Path) -> Entry:
    """What `Task.record` left in a finished mask; nothing in what is none of ours, or not finished."""
    if path.suffix == ".zarr":
        begun = ZarrMask.description_of(path)
        if begun is None or not (found := ZarrMask.resume(path, begun)).complete:
            return {}
        return {"name": begun.get("name"), **found.details}
    with suppress(ValueError):
        record = json.loads(record_of(path) or "{}")
        return record if isinstance(record, dict) else {}
    return {}


def growing(target: Path) -> Path:
    """Where a Zarr grows that is not the output itself."""
    return target.with_name(f".{target.stem}.growing.zarr")


class Canvas(Protocol):
    """Takes the logits of one image's tiles, in any order, and makes its outputs of them."""

    def is_done(self, number: int) -> bool:
        """Whether an earlier process wrote this tile."""
        ...

    def skip(self, number: int, page: int, tile: Tile) -> None:
        """Leave a tile as background."""
        ...

    def put(self, number: int, page: int, tile: Tile, logits: np.ndarray, region: np.ndarray | None) -> None:
        """Take in K x h x w logits of what a tile owns; outside of `region` (h x w bool) they count as background."""
        ...

    def finish(self, details: Entry, note: Note, tick: Progress) -> Entry:
        """Write what is to be written; the paths, by what they are.

        `details` are what else an entry says, which is kept with the mask; `tick` is called often, and may raise.
        """
        ...


class MemoryCanvas:
    """Holds the whole mask, and writes its files when the last tile is in."""

    def __init__(
        self,
        task: Task,
        source: Source,
        outputs: Outputs,
        classes: ClassMap,
        instances: bool = False,
    ) -> None:
        self._task, self._job, self._outputs, self._classes = task, task.job, outputs, classes
        self._shape = source.pages, source.height, source.width
        self._instances = instances
        self._suffix = ".png" if outputs.format_of(task.job, source) == "png" and source.pages == 1 else ".tif"
        self._target = outputs.target(task.job, self._suffix)
        self._pixel_size = source.pixel_size
        self._masks = np.zeros(self._shape, np.uint8)
        self._probabilities: np.ndarray | None = None
        if outputs.probabilities:
            count = len(classes)
            self._probabilities = np.zeros((source.pages, count, *self._shape[1:]), outputs.probability_type)
        whole = Window.whole(source.height, source.width)
        self._picture = to_display(source.read(0, whole)) if outputs.overlay else None

    @staticmethod
    def bytes_needed(source: Source, outputs: Outputs, classes: int, instances: bool) -> int:
        """What it holds at most: masks and what is beside them of all pages, and what is needed to write them."""
        pixels = source.height * source.width
        each = 1 + (8 if instances else 0)
        each += classes * np.dtype(outputs.probability_type).itemsize if outputs.probabilities else 0
        working = 16 + (48 if outputs.overlay else 0)
        encoder = min(2 * TIFF_BUFFER, 2 * source.pages * pixels * each)  # what is compressed, and was
        return source.pages * pixels * each + pixels * working + encoder

    def is_done(self, number: int) -> bool:
        """Nothing is kept from an earlier process."""
        return False

    def skip(self, number: int, page: int, tile: Tile) -> None:
        """Leave a tile as background."""
        logits = np.zeros((len(self._classes), tile.owned.height, tile.owned.width), np.float32)
        self.put(number, page, tile, _only_inside(logits, np.zeros(logits.shape[1:], bool)), None)

    def put(self, number: int, page: int, tile: Tile, logits: np.ndarray, region: np.ndarray | None) -> None:
        """Take in what a tile owns."""
        if region is not None:
            logits = _only_inside(logits, region)
        self._masks[page][tile.owned.slices] = choose_classes(logits, self._outputs.clean)
        if self._probabilities is not None:
            stored = _stored_probabilities(logits, self._outputs.probability_type)
            self._probabilities[page][:, *tile.owned.slices] = stored

    def finish(self, details: Entry, note: Note, tick: Progress) -> Entry:
        """Write the mask and what was asked for beside it."""
        outputs = self._outputs
        if outputs.clean.changes_mask:
            for mask in self._masks:
                mask[:] = clean(mask, outputs.clean)
        entry: Entry = {"mask": str(self._target)}
        if self._instances:
            entry["instances"] = str(self._write_instances())
        if self._probabilities is not None:
            target = outputs.target(self._job, ".tif", "probabilities")
            write_probabilities(target, _flat(self._probabilities))
            entry["probabilities"] = str(target)
        if self._picture is not None:
            target = outputs.target(self._job, ".png", "overlays")
            write_image(target, overlay(self._picture, self._masks[0], self._classes))
            entry["overlay"] = str(target)
        # Last, because it says that all is done.
        record = self._task.record(details)
        write_mask(self._target, _flat(self._masks), self._classes.palette, self._pixel_size, record)
        return entry

    def _write_instances(self) -> Path:
        """Objects are the connected components of the class; 16 bits, or 32 in a TIFF where they are too many."""
        ids = np.stack([objects(mask) for mask in self._masks])
        wide = int(ids.max(initial=0)) > np.iinfo(np.uint16).max
        target = self._outputs.target(self._job, ".tif" if wide else self._suffix, "instances")
        write_mask(target, _flat(ids.astype(np.uint32 if wide else np.uint16)))
        return target


class ZarrCanvas:
    """Writes each tile to a Zarr as it comes; what is on disk stays valid whenever the process ends.

    The Zarr is the output itself, or, where a TIFF is wanted or the mask is to be cleaned, grows under a hidden name
    beside it, to be turned into the output in the end.
    """

    def __init__(self, task: Task, source: Source, outputs: Outputs, classes: ClassMap, plan: Tiling) -> None:
        job = task.job
        self._task, self._job, self._outputs, self._classes, self._plan = task, job, outputs, classes, plan
        self._wants_tiff = outputs.format_of(job, source) == "tiff"
        self._pixel_size = source.pixel_size
        self._size = source.pages, source.height, source.width
        self._target = outputs.target(job, ".tif" if self._wants_tiff else ".zarr")
        self._grows = self.growing_path(job, source, outputs)
        description = {**task.description, "name": task.name, "tile": plan.tile}
        self._description = description
        self._mask = self._open(self._grows, description, "uint8", None)
        self._probabilities: ZarrMask | None = None
        if outputs.probabilities:
            target = outputs.target(job, ".zarr", "probabilities")
            self._probabilities = self._open(target, description, outputs.probability_type, len(classes))

    @staticmethod
    def growing_path(job: Input, source: Source, outputs: Outputs) -> Path:
        """The Zarr that tiles are written to."""
        if outputs.format_of(job, source) == "zarr" and not outputs.clean.changes_mask:
            return outputs.target(job, ".zarr")
        target = outputs.target(job, ".zarr")
        return growing(target)

    def _open(self, path: Path, description: Mapping[str, Any], dtype: str, channels: int | None) -> ZarrMask:
        if self._outputs.resume and ZarrMask.description_of(path) is not None:
            return ZarrMask.resume(path, description)
        return ZarrMask.create(path, self._form(dtype, channels), description, replace=True)

    def _form(self, dtype: str, channels: int | None = None) -> MaskForm:
        return MaskForm(*self._size, dtype, _chunk(self._plan), channels, self._pixel_size, self._classes)

    def is_done(self, number: int) -> bool:
        """Whether an earlier process wrote this tile."""
        return number in self._mask.done or self._mask.complete

    def skip(self, number: int, page: int, tile: Tile) -> None:
        """Leave a tile as background."""
        logits = np.zeros((len(self._classes), tile.owned.height, tile.owned.width), np.float32)
        self.put(number, page, tile, logits, np.zeros(logits.shape[1:], bool))

    def put(self, number: int, page: int, tile: Tile, logits: np.ndarray, region: np.ndarray | None) -> None:
        """Write what a tile owns."""
        if region is not None:
            logits = _only_inside(logits, region)
        if self._probabilities is not None:
            stored = _stored_probabilities(logits, self._outputs.probability_type)
            self._probabilities.write(number, page, tile.owned, stored)
        classes = choose_classes(logits, self._outputs.clean)
        self._mask.write(number, page, tile.owned, classes)  # last: its record says that the tile is done

    def finish(self, details: Entry, note: Note, tick: Progress) -> Entry:
        """Clean the mask, add its pyramid, assemble the TIFF."""
        entry: Entry = {"mask": str(self._target)}
        if self._probabilities is not None:
            self._probabilities.finish(tick)
            entry["probabilities"] = str(self._probabilities.path)
        mask = self._cleaned(note, tick) if self._outputs.clean.changes_mask else self._mask
        mask.finish(tick, details)
        if self._wants_tiff:
            note(f"{self._target}: assembling the TIFF")
            write_pyramid_tiff(self._target, mask, self._classes.palette, self._task.record(details), tick)
        for path in {self._grows, mask.path} - {self._target}:
            shutil.rmtree(path, ignore_errors=True)
        return entry

    def _cleaned(self, note: Note, tick: Progress) -> ZarrMask:
        """The mask after its post-processing, page by page, in a Zarr of its own."""
        note(f"{self._target}: post-processing")
        path = self._target if not self._wants_tiff else self._grows.with_name(f".{self._job.name.name}.clean.zarr")
        cleaned = ZarrMask.create(path, self._form("uint8"), self._description, replace=True)
        chunk = _chunk(self._plan)
        side = max(1, 2048 // chunk) * chunk
        for page in range(self._size[0]):
            self._clean_page(page, cleaned, side, tick)
        return cleaned

    def _clean_page(self, page: int, cleaned: ZarrMask, side: int, tick: Progress) -> None:
        pages, height, width = self._size

        def read(window: Window) -> np.ndarray:
            return np.asarray(self._mask.levels[0][window.slices if pages == 1 else (page, *window.slices)])

        def write(window: Window, block: np.ndarray) -> None:
            cleaned.write(0, page, window, block)

        clean_tiles(read, write, (height, width), side, self._outputs.clean, tick)


def open_canvas(
    task: Task,
    source: Source,
    outputs: Outputs,
    classes: ClassMap,
    plan: Tiling,
    room: int,
    instances: bool,
    note: Note,
) -> Canvas:
    """A canvas in memory where the format and the memory let one, else a Zarr.

    Raises:
        DataError: a PNG is wanted, whose mask must be held in memory, and is too large.
    """
    job = task.job
    kind = outputs.format_of(job, source)
    needed = MemoryCanvas.bytes_needed(source, outputs, len(classes), instances)
    if outputs.format == "auto" and kind == "png" and needed > room:
        outputs, kind = replace(outputs, format="tiff"), "tiff"
    if kind == "png":
        if needed > room:
            raise _too_large(source, needed, room)
        return MemoryCanvas(task, source, outputs, classes, instances)
    # What was begun by tiles goes on so; what takes long can only be resumed if it is written by tiles.
    begun = outputs.resume and ZarrMask.description_of(ZarrCanvas.growing_path(job, source, outputs)) is not None
    is_long = source.pages * source.height * source.width > PNG_PIXELS and not (instances or outputs.overlay)
    if kind == "tiff" and needed <= room and not begun and not is_long:
        return MemoryCanvas(task, source, outputs, classes, instances)
    if instances or outputs.overlay:
        note(f"{job.source}: is written by tiles; instances and overlays are made of images in memory alone.")
    return ZarrCanvas(task, source, outputs, classes, plan)


def _too_large(source: Source, needed: int, room: int) -> DataError:
    return DataError(
        f"a PNG holds the whole mask of {source.height} x {source.width} pixels in memory, which takes "
        f"{size_text(needed)}, and {size_text(max(room, 0))} are left; take --format tiff or zarr, or allow more."
    )


def _only_inside(logits: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Logits that are sure of class 0 outside of the region."""
    sure = np.zeros((len(logits), 1, 1), logits.dtype)
    sure[0] = CERTAIN
    return np.where(region, logits, sure)


def _stored_probabilities(logits: np.ndarray, dtype: str) -> np.ndarray:
    probabilities = softmax(logits)
    if dtype == "uint8":
        probabilities *= 255
        return np.rint(probabilities, out=probabilities).astype(np.uint8)
    return probabilities.astype(np.float16)


def _flat(pages: np.ndarray) -> np.ndarray:
    return pages[0] if len(pages) == 1 else pages


def _chunk(plan: Tiling) -> int:
    """Side of a Zarr's chunks: one that divides the tiles, so that none is written twice, else a small one."""
    sides = math.gcd(plan.tiles[0].owned.y1, plan.tiles[0].owned.x1) if len(plan.tiles) > 1 else 0
    return next((chunk for chunk in CHUNKS if sides % chunk == 0), CHUNKS[-1])


def identity(path: Path) -> dict[str, Any]:
    """What tells whether a file or folder is still the one that it was.

    Raises:
        DataError: it is not there.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: no such file or folder.") from error
    return {"path": str(path), "bytes": status.st_size, "changed": status.st_mtime_ns}
