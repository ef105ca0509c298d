"""Where a prediction goes, tile by tile: into memory and then a PNG or TIFF, or into a Zarr that may be of any size.

P pages, K classes, H x W pixels of the image.
"""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from pixelwise.core.classes import ClassMap
from pixelwise.core.config import Config
from pixelwise.core.errors import DataError, ModelError
from pixelwise.core.memory import size_text
from pixelwise.core.progress import Progress
from pixelwise.core.windows import Window
from pixelwise.data.files.facts import Placement
from pixelwise.data.files.physical import png_per_metre
from pixelwise.data.files.sinks import MaskForm, ZarrMask, write_pyramid_tiff
from pixelwise.data.files.sources import Source
from pixelwise.data.files.writers import TIFF_BUFFER, write_colors, write_image, write_mask, write_probabilities
from pixelwise.data.masks.labels import LabelRule
from pixelwise.data.pixels.pictures import overlay, to_display
from pixelwise.data.pixels.targets import objects
from pixelwise.engines import Arrays
from pixelwise.prediction.postprocess import choose_classes, clean, clean_tiles
from pixelwise.prediction.requests import PNG_PIXELS, Entry, OutputOptions, Request
from pixelwise.prediction.runner import logits_of
from pixelwise.prediction.tiling import Tile, Tiling

CHUNKS = (1024, 512)  # sides of a Zarr's chunks: the first that fits the tiles evenly, else the last
# What becomes of a pixel, where a canvas is told: it counts as background, is predicted, or holds no data.
OUTSIDE, INSIDE, MISSING = 0, 1, 2
CERTAIN = float(np.log(1e6))  # the logit of class 0 where nothing is predicted; the others are 0


@dataclass(frozen=True)
class Blank:
    """What a canvas is made for.

    Fields:
        request: the input with all that its outputs depend on.
        source: the open image.
        options: what is written.
        tiling: of a page.
        room: bytes that the canvas may hold in memory.
        config: of the run.
        note: tells the user something.
    """

    request: Request
    source: Source
    options: OutputOptions
    tiling: Tiling
    room: int
    config: Config
    note: Callable[[str], None] = lambda text: None

    @cached_property
    def classes(self) -> ClassMap:
        """Names and colours of the classes."""
        return ClassMap.of(self.config.data)

    @cached_property
    def rule(self) -> LabelRule:
        """What the values of the training masks meant."""
        return LabelRule.from_settings(self.config.data)

    @property
    def instances(self) -> bool:
        """Whether the objects of a mask are numbered."""
        return self.config.data.labels == "instances"

    @property
    def format(self) -> str:
        """png, tiff or zarr."""
        return self.options.format_of(self.request.input, self.source)

    @property
    def pages(self) -> tuple[int, int, int]:
        """Number, height and width of the image's pages."""
        return self.source.pages, self.source.height, self.source.width

    @property
    def placement(self) -> Placement:
        """What the TIFF of a mask says besides: where the image lies, and which label means that there is no data.

        The image's own nodata value is kept, unless it is the number of a class.
        """
        facts, label = self.source.facts, self.options.nodata_label
        declared = facts.nodata if facts.nodata is not None else self.config.data.nodata
        if label is not None:
            kept: float | None = label if declared is not None else None
        else:
            kept = None if declared in range(1, len(self.classes)) else facts.nodata
        return Placement(facts.geo, kept, facts.z_spacing)

    @property
    def nodata_label(self) -> int | None:
        """The label of pixels without data, where they do not count as background."""
        return self.options.nodata_label

    def final_values(self, classes: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
        """What the training masks held for classes, ... or ... x 3 RGB; the label of no data where it is `missing`."""
        if missing is None or not missing.any():
            return self.rule.to_values(classes).astype(self.final_type, copy=False)
        values = self.rule.to_values(np.where(missing, 0, classes)).astype(self.final_type, copy=False)
        values[missing] = self.nodata_label
        return values

    @cached_property
    def final_type(self) -> np.dtype:
        """The type of `final_values`."""
        own = self.rule.to_values(np.zeros((1, 1), np.uint8)).dtype
        return own if self.nodata_label is None else np.result_type(own, np.min_scalar_type(self.nodata_label))

    def target(self, suffix: str, kind: str = "") -> Path:
        """Where an output goes; `kind` names a folder for those beside the mask."""
        return self.options.target(self.request.input, suffix, kind)


class Canvas(Protocol):
    """Takes the outputs of one image's tiles, in any order, and makes its files of them."""

    def is_done(self, number: int) -> bool:
        """Whether an earlier process wrote this tile."""
        ...

    def skip(self, number: int, page: int, tile: Tile, region: np.ndarray | None = None) -> None:
        """Leave a tile as background; `region` as in `put`."""
        ...

    def put(self, number: int, page: int, tile: Tile, outputs: Arrays, region: np.ndarray | None) -> None:
        """Take in what a tile owns, K x h x w each; `region`, h x w, says where it is OUTSIDE, INSIDE or MISSING."""
        ...

    def finish(self, details: Entry, tick: Progress) -> Entry:
        """Write the files; returns their paths, by what they are.

        `details` is what else the entry says; it is kept with the mask. `tick` is called often, and may raise.
        """
        ...


class MemoryCanvas:
    """Holds the whole mask, and writes its files when the last tile is in."""

    def __init__(self, blank: Blank) -> None:
        self._blank = blank
        self._suffix = ".png" if blank.format == "png" and blank.source.pages == 1 else ".tif"
        self._target = blank.target(self._suffix)
        options, (pages, height, width) = blank.options, blank.pages
        self._masks = np.zeros(blank.pages, blank.classes.mask_type)
        self._probabilities: np.ndarray | None = None
        if options.probabilities:
            self._probabilities = np.zeros((pages, len(blank.classes), height, width), options.probability_type)
        self._missing = None if blank.nodata_label is None else np.zeros(blank.pages, bool)
        self._picture = to_display(blank.source.read(0, Window.whole(height, width))) if options.overlay else None

    @staticmethod
    def bytes_needed(blank: Blank) -> int:
        """The most that it holds: masks of all pages, what is beside them, and what is needed to write them."""
        options, (pages, height, width) = blank.options, blank.pages
        pixels = height * width
        each = np.dtype(blank.classes.mask_type).itemsize + (8 if blank.instances else 0)
        each += (6 if options.label_values else 0) + (blank.nodata_label is not None)
        each += len(blank.classes) * np.dtype(options.probability_type).itemsize if options.probabilities else 0
        working = 16 + (48 if options.overlay else 0)
        encoder = min(2 * TIFF_BUFFER, 2 * pages * pixels * each)  # data before and after compression
        return pages * pixels * each + pixels * working + encoder

    def is_done(self, number: int) -> bool:
        """Nothing is kept from an earlier process."""
        return False

    def skip(self, number: int, page: int, tile: Tile, region: np.ndarray | None = None) -> None:
        """Leave a tile as background."""
        self.put(number, page, tile, _background(self._blank, tile), region)

    def put(self, number: int, page: int, tile: Tile, outputs: Arrays, region: np.ndarray | None) -> None:
        """Take in what a tile owns."""
        logits, options = _logits(self._blank, outputs, region), self._blank.options
        self._masks[page][tile.owned.slices] = choose_classes(logits, options.clean)
        if self._missing is not None and region is not None:
            self._missing[page][tile.owned.slices] = region == MISSING
        if self._probabilities is not None:
            self._probabilities[page][:, *tile.owned.slices] = _stored_probabilities(logits, options.probability_type)

    def finish(self, details: Entry, tick: Progress) -> Entry:
        """Write the mask and what was asked for beside it."""
        blank, options = self._blank, self._blank.options
        if options.clean.changes_mask:
            for mask in self._masks:
                mask[:] = clean(mask, options.clean)
        entry: Entry = {"mask": str(self._target)}
        if blank.instances:
            entry["instances"] = str(self._write_instances())
        if self._probabilities is not None:
            target = blank.target(".tif", "probabilities")
            write_probabilities(target, _flat(self._probabilities))
            entry["probabilities"] = str(target)
        if self._picture is not None:
            target = blank.target(".png", "overlays")
            write_image(target, overlay(self._picture, self._masks[0], blank.classes))
            entry["overlay"] = str(target)
        # Last, because it tells that everything is done.
        if self._missing is not None and not options.label_values:
            self._masks[self._missing] = blank.nodata_label
        self._write_mask(blank.request.record(details))
        return entry

    def _write_mask(self, record: str) -> None:
        blank, size = self._blank, self._blank.source.facts.pixel_size
        if size is not None and self._suffix == ".png" and png_per_metre(size) is None:
            blank.note(f"{self._target}: a PNG cannot hold a pixel size of {size:g} micrometres; it is left out")
        if not blank.options.label_values:
            write_mask(self._target, _flat(self._masks), blank.classes.palette, size, record, blank.placement)
            return
        values = blank.final_values(self._masks, self._missing)
        if blank.rule.kind == "color":
            write_colors(self._target, _flat(values), size, record, blank.placement)
        else:
            write_mask(self._target, _flat(values), None, size, record, blank.placement)

    def _write_instances(self) -> Path:
        """Objects are the connected components of the class; 16 bits, or 32 in a TIFF where they are too many."""
        ids = np.stack([objects(mask) for mask in self._masks])
        wide = int(ids.max(initial=0)) > np.iinfo(np.uint16).max
        target = self._blank.target(".tif" if wide else self._suffix, "instances")
        write_mask(target, _flat(ids.astype(np.uint32 if wide else np.uint16)))
        return target


class ZarrCanvas:
    """Writes each tile to a Zarr as it comes; what is on disk stays valid whenever the process ends.

    The Zarr is the output itself. Where a TIFF is wanted or the mask is to be cleaned, it grows under a hidden name
    beside the output, which is made from it in the end.
    """

    def __init__(self, blank: Blank) -> None:
        self._blank, options = blank, blank.options
        self._wants_tiff = blank.format == "tiff"
        self._target = blank.target(".tif" if self._wants_tiff else ".zarr")
        request = blank.request
        self._description = {**request.description, "name": request.name, "tile": blank.tiling.tile}
        self._mask = self._open(options.growing_path(request.input, blank.source), self._form(blank.classes.mask_type))
        self._probabilities: ZarrMask | None = None
        if options.probabilities:
            form = self._form(options.probability_type, len(blank.classes))
            self._probabilities = self._open(blank.target(".zarr", "probabilities"), form)

    def _open(self, path: Path, form: MaskForm) -> ZarrMask:
        if self._blank.options.resume and ZarrMask.description_of(path) is not None:
            return ZarrMask.resume(path, self._description)
        return ZarrMask.create(path, form, self._description, replace=True)

    def _form(self, dtype: str, channels: int | None = None) -> MaskForm:
        blank = self._blank
        facts = blank.source.facts
        return MaskForm(
            *blank.pages, dtype, _chunk(blank.tiling), channels, facts.pixel_size, facts.z_spacing, blank.classes
        )  # fmt: skip

    def is_done(self, number: int) -> bool:
        """Whether an earlier process wrote this tile."""
        return number in self._mask.done or self._mask.complete

    def skip(self, number: int, page: int, tile: Tile, region: np.ndarray | None = None) -> None:
        """Leave a tile as background."""
        self.put(number, page, tile, _background(self._blank, tile), region)

    def put(self, number: int, page: int, tile: Tile, outputs: Arrays, region: np.ndarray | None) -> None:
        """Write what a tile owns."""
        logits, options = _logits(self._blank, outputs, region), self._blank.options
        if self._probabilities is not None:
            stored = _stored_probabilities(logits, options.probability_type)
            self._probabilities.write(number, page, tile.owned, stored)
        classes = choose_classes(logits, options.clean)
        if self._blank.nodata_label is not None and region is not None:
            classes = np.where(region == MISSING, self._blank.nodata_label, classes).astype(classes.dtype)
        self._mask.write(number, page, tile.owned, classes)  # last: its record tells that the tile is done

    def finish(self, details: Entry, tick: Progress) -> Entry:
        """Clean the mask, add its pyramid, assemble the TIFF."""
        blank = self._blank
        entry: Entry = {"mask": str(self._target)}
        if self._probabilities is not None:
            self._probabilities.finish(tick)
            entry["probabilities"] = str(self._probabilities.path)
        mask = self._made_anew(tick) if blank.options.changes_mask else self._mask
        mask.finish(tick, details)
        if self._wants_tiff:
            blank.note(f"{self._target}: assembling the TIFF")
            look: list[int] | Literal["rgb"] | None = blank.classes.palette
            if blank.options.label_values:
                look = "rgb" if "c" in mask.axes else None
            record = blank.request.record(details)
            write_pyramid_tiff(self._target, mask, look, record, tick, blank.placement)
        for path in {self._mask.path, mask.path} - {self._target}:
            shutil.rmtree(path, ignore_errors=True)
        return entry

    def _made_anew(self, tick: Progress) -> ZarrMask:
        """The mask after its post-processing, page by page, in a Zarr of its own."""
        blank = self._blank
        blank.note(f"{self._target}: post-processing")
        path = self._target
        if self._wants_tiff:
            path = self._mask.path.with_name(f".{blank.request.input.name.name}.clean.zarr")
        cleaned = ZarrMask.create(path, self._final_form(), self._description, replace=True)
        for page in range(blank.source.pages):
            self._clean_page(page, cleaned, tick)
        return cleaned

    def _final_form(self) -> MaskForm:
        """Of the finished mask: as that of the tiles, or of the values of the training masks."""
        blank = self._blank
        if not blank.options.label_values:
            return self._form(blank.classes.mask_type)
        sample = blank.rule.to_values(np.zeros((1, 1), np.uint8))
        form = self._form(str(blank.final_type), 3 if sample.ndim == 3 else None)
        return replace(form, classes=None)

    def _final(self, block: np.ndarray) -> np.ndarray:
        """Classes of the tiles as the finished mask holds them, h x w or 3 x h x w."""
        if not self._blank.options.label_values:
            return block
        missing = None if self._blank.nodata_label is None else block == self._blank.nodata_label
        values = self._blank.final_values(block, missing)
        return np.ascontiguousarray(values.transpose(2, 0, 1)) if values.ndim == 3 else values

    def _clean_page(self, page: int, cleaned: ZarrMask, tick: Progress) -> None:
        (pages, height, width), chunk = self._blank.pages, _chunk(self._blank.tiling)

        label = self._blank.nodata_label
        kept = label if label is not None and label >= len(self._blank.classes) else None  # else it is a class's number

        def stored(window: Window) -> np.ndarray:
            return np.asarray(self._mask.levels[0][window.slices if pages == 1 else (page, *window.slices)])

        def read(window: Window) -> np.ndarray:
            block = stored(window)
            return block if kept is None else np.where(block == kept, 0, block).astype(block.dtype)

        def write(window: Window, block: np.ndarray) -> None:
            if kept is not None:
                block = np.where(stored(window) == kept, kept, block).astype(block.dtype)
            cleaned.write(0, page, window, self._final(block))

        side = max(1, 2048 // chunk) * chunk
        clean_tiles(read, write, (height, width), side, self._blank.options.clean, tick)


def open_canvas(blank: Blank) -> Canvas:
    """A canvas for a mask: in memory where the format and the memory let one, else a Zarr.

    Raises:
        DataError: the user wants a PNG, and its mask does not fit into the memory.
    """
    options, source, room = blank.options, blank.source, blank.room
    needed = MemoryCanvas.bytes_needed(blank)
    if options.format == "auto" and blank.format == "png" and needed > room:
        blank = replace(blank, options=replace(options, format="tiff"))
    if blank.format == "png":
        if needed > room:
            raise _too_large(source, needed, room)
        return MemoryCanvas(blank)
    # What was started by tiles continues by tiles. What takes long can only be resumed if it is written by tiles.
    begun = blank.options.begun(blank.request.input, source) is not None
    only_in_memory = blank.instances or options.overlay
    is_long = math.prod(blank.pages) > PNG_PIXELS and not only_in_memory
    if blank.format == "tiff" and needed <= room and not begun and not is_long:
        return MemoryCanvas(blank)
    if only_in_memory:
        blank.note(
            f"{blank.request.input.source}: is written tile by tile, so it gets no instances and no overlay, which "
            "need the whole mask in memory."
        )
    return ZarrCanvas(blank)


def _too_large(source: Source, needed: int, room: int) -> DataError:
    return DataError(
        f"a PNG needs its whole mask of {source.height} x {source.width} pixels in memory, which takes "
        f"{size_text(needed)}, but only {size_text(max(room, 0))} are left. Use --format tiff or zarr, or allow more."
    )


def _logits(blank: Blank, outputs: Arrays, region: np.ndarray | None) -> np.ndarray:
    """The logits; where a region is not INSIDE they are sure of class 0.

    Raises:
        ModelError: their number of classes is not that of the run.
    """
    logits, count = logits_of(outputs), len(blank.classes)
    if len(logits) != count:
        raise ModelError(f"the network returned {len(logits)} classes, but the run has {count}.")
    return logits if region is None else np.where(region == INSIDE, logits, _certain(count, logits.dtype))


def _background(blank: Blank, tile: Tile) -> Arrays:
    """Outputs that are sure of class 0 for all that a tile owns."""
    certain = _certain(len(blank.classes), np.dtype(np.float32))
    return {"logits": np.broadcast_to(certain, (len(certain), tile.owned.height, tile.owned.width))}


def _certain(count: int, dtype: np.dtype) -> np.ndarray:
    """K x 1 x 1 logits that are sure of class 0."""
    logits = np.zeros((count, 1, 1), dtype)
    logits[0] = CERTAIN
    return logits


def _stored_probabilities(logits: np.ndarray, dtype: str) -> np.ndarray:
    probabilities = softmax(logits)
    if dtype == "uint8":
        probabilities *= 255
        np.rint(probabilities, out=probabilities)
        return probabilities.astype(np.uint8)
    return probabilities.astype(np.float16)


def softmax(logits: np.ndarray) -> np.ndarray:
    """K x ... logits -> probabilities that sum to 1 over K.

    >>> softmax(np.zeros((2, 1, 1))).ravel().tolist()
    [0.5, 0.5]
    """
    shares: np.ndarray = logits - logits.max(0, keepdims=True)
    np.exp(shares, out=shares)
    shares /= shares.sum(0, keepdims=True)
    return shares


def _flat(pages: np.ndarray) -> np.ndarray:
    return pages[0] if len(pages) == 1 else pages


def _chunk(tiling: Tiling) -> int:
    """Side of a Zarr's chunks: one that divides the tiles, so that none is written twice, else a small one."""
    sides = math.gcd(tiling.tiles[0].owned.y1, tiling.tiles[0].owned.x1) if len(tiling.tiles) > 1 else 0
    return next((chunk for chunk in CHUNKS if sides % chunk == 0), CHUNKS[-1])
