"""Requests: an input with all that its outputs depend on, what a user wants written, and what was written before."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pixelwise.core.errors import DataError, OutputError
from pixelwise.data.files.sinks import ZarrMask
from pixelwise.data.files.sources import Source, is_zarr, open_source
from pixelwise.data.files.writers import record_of
from pixelwise.prediction.inputs import Input
from pixelwise.prediction.postprocess import PostProcess

PNG_PIXELS = 2**26  # a larger mask is written as TIFF, unless the user wants otherwise
Entry = dict[str, Any]  # what became of an input, for JSON


@dataclass(frozen=True)
class OutputOptions:
    """What a user wants written, and how."""

    folder: Path
    format: Literal["auto", "png", "tiff", "zarr"] = "auto"
    probabilities: bool = False
    overlay: bool = False
    probability_type: Literal["uint8", "float16"] = "uint8"
    clean: PostProcess = field(default_factory=PostProcess)
    inside: Path | None = None  # mask of the part to predict, or a folder of masks with the images' stems
    skip_background: bool = False
    resume: bool = False
    label_values: bool = False  # the mask holds what the training masks held: their values or colours
    series: int | None = None  # number of the image in files that hold several, from 0; None: the largest
    nodata_label: int | None = None  # of pixels without data; None: that of class 0

    @property
    def changes_mask(self) -> bool:
        """Whether the finished mask is made from that of the tiles."""
        return self.clean.changes_mask or self.label_values

    def format_of(self, image: Input, source: Source) -> str:
        """png, tiff or zarr; "auto" takes PNG for one page that a viewer can show, a Zarr for a Zarr, else TIFF."""
        if self.format != "auto":
            return self.format
        if is_zarr(image.source):
            return "zarr"
        return "png" if source.pages == 1 and source.height * source.width <= PNG_PIXELS else "tiff"

    def target(self, image: Input, suffix: str, kind: str = "") -> Path:
        """Where an output goes; `kind` names a folder for those beside the mask."""
        target = self.folder / kind / image.name.parent / (image.name.name + suffix)
        if target.exists() and target.resolve() == image.source.resolve():
            raise OutputError(f"{target}: is the image itself, and its mask would replace it. Choose another folder.")
        return target

    def growing_path(self, image: Input, source: Source) -> Path:
        """The Zarr that tiles are written to: the output itself, or a hidden one that the output is made of."""
        target = self.target(image, ".zarr")
        is_output = self.format_of(image, source) == "zarr" and not self.changes_mask
        return target if is_output else _growing(target)

    def begun(self, image: Input, source: Source) -> dict[str, Any] | None:
        """The description of the Zarr that a prediction continues; None if it starts anew."""
        return ZarrMask.description_of(self.growing_path(image, source)) if self.resume else None


@dataclass(frozen=True)
class Request:
    """An input with all that its outputs depend on, for JSON; not the tile, since it changes nothing."""

    input: Input
    settings: Mapping[str, Any]

    @property
    def description(self) -> dict[str, Any]:
        """What a Zarr must have been started with, to be continued."""
        return {**self.settings, "image": identity(self.input.source)}

    @property
    def name(self) -> str:
        """A hash of the description, which finished masks carry."""
        return hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()[:16]

    def is_begun(self, options: OutputOptions) -> bool:
        """Whether there is a Zarr of an earlier process where one would grow."""
        target = options.target(self.input, ".zarr")
        return any(ZarrMask.description_of(path) is not None for path in (target, _growing(target)))

    def record(self, details: Entry) -> str:
        """What a finished PNG or TIFF carries: the request's name, and what its entry says beside paths and sizes."""
        return json.dumps({"name": self.name, **details})

    def finished(self, options: OutputOptions) -> Entry | None:
        """What an earlier process wrote for this request, if it finished."""
        if not self.input.source.exists():
            return None
        targets = [options.target(self.input, suffix) for suffix in (".png", ".tif", ".zarr")]
        masks = {path: record for path in targets if (record := _record_in(path)).get("name") == self.name}
        if not masks:
            return None
        path, record = next(iter(masks.items()))
        entry: Entry = {"input": str(self.input.source), "mask": str(path)}
        for kind, folder in (("instances", "instances"), ("probabilities", "probabilities"), ("overlay", "overlays")):
            paths = [options.target(self.input, suffix, folder) for suffix in (".png", ".tif", ".zarr")]
            if there := [path for path in paths if path.exists()]:
                entry[kind] = str(there[0])
        with open_source(path) as mask:
            entry |= {"width": mask.width, "height": mask.height}
        return entry | {key: value for key, value in record.items() if key != "name"}


def _record_in(path: Path) -> Entry:
    """What `Request.record` left in a finished mask; nothing if the mask is someone else's, or not finished."""
    if path.suffix == ".zarr":
        begun = ZarrMask.description_of(path)
        if begun is None or not (found := ZarrMask.resume(path, begun)).complete:
            return {}
        return {"name": begun.get("name"), **found.details}
    with suppress(ValueError):
        record = json.loads(record_of(path) or "{}")
        return record if isinstance(record, dict) else {}
    return {}


def _growing(target: Path) -> Path:
    """Where a Zarr grows that is not the output itself."""
    return target.with_name(f".{target.stem}.growing.zarr")


def identity(path: Path) -> dict[str, Any]:
    """Facts that change when a file or folder changes.

    Raises:
        DataError: it does not exist.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: no such file or folder.") from error
    return {"path": str(path), "bytes": status.st_size, "changed": status.st_mtime_ns}
