"""Write masks and probabilities too large for the memory, tile by tile: an OME-Zarr that grows, and a TIFF of it.

P pages, K channels, H height, W width. An incomplete Zarr is a valid image, too: the missing tiles are 0, and its
attributes say `"complete": false`.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore

from pixelwise.core.classes import ClassMap
from pixelwise.core.errors import OutputError, RunError
from pixelwise.core.files import cannot_write, whole, write_json
from pixelwise.core.progress import Progress
from pixelwise.core.windows import Window, blocks
from pixelwise.data.files.facts import Placement
from pixelwise.data.files.ome import ome_metadata
from pixelwise.data.files.physical import zarr_size
from pixelwise.data.files.writers import resolution

_SMALLEST_LEVEL = 512  # pixels; a pyramid ends when its longer side is at most this
_TYPES = ("uint8", "uint16", "float16")
_TIFF_TILE = 512
_METADATA = "zarr.json"
_OURS = "pixelwise"  # the attribute that marks a Zarr as ours
_Size = tuple[float | None, float | None]  # of a pixel and between pages, micrometres
_DONE = ".done"  # in the folder of level 0, where readers of Zarr look at nothing but chunks


@dataclass(frozen=True)
class MaskForm:
    """The size, type and look of a Zarr of class indices or probabilities."""

    pages: int
    height: int
    width: int
    dtype: str  # uint8, uint16 or float16
    chunk: int  # side of a chunk in pixels; tiles that cover whole chunks are written without reading
    channels: int | None = None  # K of probabilities; None: class indices
    pixel_size: float | None = None  # micrometres
    z_spacing: float | None = None  # micrometres
    classes: ClassMap | None = None  # names and colours to keep with class indices

    @property
    def axes(self) -> str:
        """Of the array: "yx", "zyx", "cyx" or "czyx"."""
        return ("c" if self.channels else "") + ("z" if self.pages > 1 else "") + "yx"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array, in the order of its axes."""
        sizes = {"c": self.channels or 1, "z": self.pages, "y": self.height, "x": self.width}
        return tuple(sizes[axis] for axis in self.axes)


class ZarrMask:
    """An OME-Zarr 0.5 image of class indices or probabilities that is written tile by tile and can be resumed.

    Its dimensions are C (K channels, if there are any), Z (pages, if there are several), Y, X. Call `create` or
    `resume`, `write` every tile, then `finish`. Only one thread at a time may write. If the process ends at any moment,
    even by SIGKILL, all chunks are whole, and a tile counts as done only if its pixels are in place.

    Attributes:
        path: the folder.
        done: numbers of the tiles that are written.
        complete: whether `finish` has ended, so that nothing is left to write.
        details: what `finish` was told to keep.
        axes: "yx", "zyx", "cyx" or "czyx".
        levels: the array and, once it is complete, the smaller ones of its pyramid.
        pixel_size, z_spacing: in micrometres, or None.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mask = ZarrMask.create(Path(folder) / "a.zarr", MaskForm(1, 4, 6, "uint8", chunk=2), {"tile": 4})
    ...     mask.write(0, 0, Window(0, 4, 0, 4), np.ones((4, 4), np.uint8))
    ...     again = ZarrMask.resume(Path(folder) / "a.zarr", {"tile": 4})
    ...     again.done, again.levels[0][0].tolist()
    ({0}, [1, 1, 1, 1, 0, 0])
    """

    def __init__(self, path: Path, attributes: Mapping[str, Any], done: set[int]) -> None:
        """Open the folder of a Zarr of ours; call `create` or `resume` instead."""
        self.path = path
        self.done = done
        self.complete: bool = attributes[_OURS]["complete"]
        self.details: Mapping[str, Any] = attributes[_OURS].get("details", {})
        self._attributes = attributes
        multiscale = attributes["ome"]["multiscales"][0]
        self.axes = "".join(axis["name"] for axis in multiscale["axes"])
        self.pixel_size, self.z_spacing = zarr_size(multiscale)
        self.levels = [_open_level(path / str(number)) for number in range(len(multiscale["datasets"]))]

    @classmethod
    def create(cls, path: Path, form: MaskForm, description: Mapping[str, Any], replace: bool = False) -> "ZarrMask":
        """Make the folder; it appears as a whole.

        Args:
            path: the folder; its parent is made if it is missing.
            form: sizes, type, names and colours.
            description: what the pixels depend on, for JSON: the image with its size and date, weights, settings, tile.
            replace: delete what exists at `path`, if it is a Zarr of ours.

        Raises:
            OutputError: something exists at `path`, the type cannot be stored, or the folder cannot be written.
        """
        if form.dtype not in _TYPES:
            raise OutputError(f"{path}: masks are stored as {', '.join(_TYPES)}, not as {form.dtype}.")
        _check_target(path, replace)
        ome = _ome(path.stem, form.axes, (form.pixel_size, form.z_spacing), None if form.channels else form.classes)
        attributes = {"ome": ome, _OURS: {"complete": False, "job": dict(description)}}
        temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("part", "old"))
        with _writing(path):
            try:
                temporary.mkdir(parents=True)
                _make_level(temporary / "0", form.axes, form.shape, np.dtype(form.dtype), form.chunk)
                _write_attributes(temporary, attributes)
                if path.exists():
                    path.replace(old)
                temporary.rename(path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
        return cls(path, attributes, set())

    @staticmethod
    def description_of(path: Path) -> dict[str, Any] | None:
        """The description that a Zarr of ours was made with; None if there is no such Zarr."""
        attributes = _our_attributes(path)
        return None if attributes is None else attributes[_OURS]["job"]

    @classmethod
    def resume(cls, path: Path, description: Mapping[str, Any]) -> "ZarrMask":
        """Open what an earlier process began or finished.

        Raises:
            RunError: there is no Zarr of ours at `path`, or its description differs; the message says in what.
            OutputError: the folder cannot be written.
        """
        attributes = _our_attributes(path)
        if attributes is None:
            raise RunError(f"{path}: contains no prediction to resume. Start without --resume.")
        differences = _differences(attributes[_OURS]["job"], json.loads(json.dumps(description)))
        if differences:
            raise RunError(
                f"{path}: was started with another input or other settings: {'; '.join(differences)}. Use the same "
                "again, or start over without --resume."
            )
        with _writing(path):
            return cls(path, attributes, _read_done(path / "0" / _DONE))

    def write(self, number: int, page: int, window: Window, mask: np.ndarray) -> None:
        """Write the pixels of tile `number`, then note that it is done.

        `mask` is h x w, or K x h x w if there are channels, of the type that `create` was given.

        Raises:
            OutputError: the disk is full or the folder cannot be written; all earlier tiles stay valid.
            RunError: a chunk that the tile shares with others is damaged.
        """
        level = self.levels[0]
        assert mask.dtype == level.dtype, (mask.dtype, level.dtype)
        assert mask.ndim == 2 + ("c" in self.axes), mask.shape
        assert mask.shape[-2:] == (window.height, window.width), (window, mask.shape)
        assert window == window.within(*level.shape[-2:]), (window, level.shape)
        places: dict[str, int | slice] = {"c": slice(None), "z": page, **dict(zip("yx", window.slices, strict=True))}
        with _writing(self.path):
            level[tuple(places[axis] for axis in self.axes)] = mask
            with (self.path / "0" / _DONE).open("ab") as done:
                done.write(b"%d\n" % number)
        self.done.add(number)

    def finish(self, progress: Progress | None = None, details: Mapping[str, Any] | None = None) -> None:
        """Add the pyramid, whose levels hold every second pixel of the one before, and mark the Zarr as complete.

        `progress` is called with the number of chunks done and of all; `details`, for JSON, are kept.

        Raises:
            OutputError: the disk is full or the folder cannot be written; `finish` may be called again later.
            RunError: a chunk is damaged.
        """
        if self.complete:
            return
        with _writing(self.path):
            shapes = _pyramid(self.levels[0].shape)
            self.levels = _make_pyramid(self.path, self.axes, self.levels[0], shapes[1:], progress)
            multiscale = _multiscale(self.path.stem, self.axes, len(shapes), (self.pixel_size, self.z_spacing))
            ome = {**self._attributes["ome"], "multiscales": [multiscale]}
            self.details = dict(details or {})
            own = {**self._attributes[_OURS], "complete": True, "details": self.details}
            _write_attributes(self.path, {"ome": ome, _OURS: own})
            self.complete = True
            (self.path / "0" / _DONE).unlink(missing_ok=True)
            _remove_torn(self.path)


def write_pyramid_tiff(
    path: Path,
    mask: ZarrMask,
    look: Sequence[int] | Literal["rgb"] | None = None,
    record: str | None = None,
    progress: Progress | None = None,
    placement: Placement | None = None,
) -> None:
    """Assemble a tiled BigTIFF (an OME-TIFF) from a complete Zarr, with its pyramid as sub-images and its pixel size.

    `look` is flat RGB of 256 colours, like `ClassMap.palette`, for class indices of 8 bits, or says that the three
    channels are RGB. `record` is kept for `writers.record_of`; `progress` is called with the number of rows done and of
    all, for each level. The axes are those of the Zarr in the same order. `placement` is kept besides. The memory holds
    at most four times 512 rows.

    Raises:
        OutputError: the file cannot be written. RunError: the Zarr is not complete, or damaged.
    """
    if not mask.complete:
        raise RunError(
            f"{mask.path}: is not complete, so it cannot be turned into a TIFF. Resume the prediction first."
        )
    base = mask.levels[0]
    # OME, because tifffile's own metadata cannot describe a pyramid as one image. OME has no floats of 16 bits.
    is_ome = base.dtype.kind == "u"
    metadata = ome_metadata(mask.axes.upper(), mask.pixel_size, mask.z_spacing, record or "") if is_ome else None
    options: dict[str, Any] = {"photometric": "minisblack"}
    if look == "rgb":
        options = {"photometric": "rgb", "planarconfig": "separate"}
    elif look is not None and base.dtype == np.uint8 and "c" not in mask.axes:
        options = {"photometric": "palette", "colormap": np.array(look, np.uint16).reshape(256, 3).T * 257}
    with whole(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True, ome=is_ome) as writer:
        for number, level in enumerate(mask.levels):
            if mask.pixel_size is not None:
                options |= resolution(mask.pixel_size * 2**number)
            writer.write(
                _tiff_tiles(mask.path, level, progress),
                shape=level.shape,
                dtype=level.dtype,
                tile=(_TIFF_TILE, _TIFF_TILE),
                compression="zlib",
                compressionargs={"level": 1},
                maxworkers=1,  # with more, tifffile would read many tiles ahead
                software=False,
                metadata=metadata if number == 0 else None,
                extratags=placement.extra_tags if placement and number == 0 else (),
                subifds=len(mask.levels) - 1 if number == 0 and len(mask.levels) > 1 else None,
                subfiletype=0 if number == 0 else 1,
                **options,
            )


def _tiff_tiles(path: Path, level: zarr.Array[Any], progress: Progress | None) -> Iterator[np.ndarray]:
    """Tiles of an array, row by row of each of its planes; those at the edges may be smaller."""
    for number in np.ndindex(level.shape[:-2]):
        for y0 in range(0, level.shape[-2], _TIFF_TILE):
            if progress:
                progress(y0, level.shape[-2])
            with _writing(path):
                rows = np.asarray(level[*number, y0 : y0 + _TIFF_TILE])
            for x0 in range(0, level.shape[-1], _TIFF_TILE):
                yield rows[:, x0 : x0 + _TIFF_TILE]
            del rows  # before the next ones are read


def _check_target(path: Path, replace: bool) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if not replace:
        raise OutputError(f"{path}: already exists. Resume it, replace it, or choose another folder.")
    if path.is_symlink() or _our_attributes(path) is None:
        raise OutputError(f"{path}: is not a Zarr that pixelwise wrote, so it is left alone. Choose another folder.")


def _our_attributes(path: Path) -> dict[str, Any] | None:
    """Attributes of a Zarr that `ZarrMask` made; None for anything else."""
    try:
        attributes = json.loads((path / _METADATA).read_bytes())["attributes"]
        is_ours = isinstance(attributes[_OURS]["job"], dict) and "multiscales" in attributes["ome"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return attributes if is_ours else None


def _write_attributes(folder: Path, attributes: Mapping[str, Any]) -> None:
    write_json(folder / _METADATA, {"zarr_format": 3, "node_type": "group", "attributes": attributes})


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What two descriptions differ in, named by dotted keys.

    >>> _differences({"tile": 512, "image": {"size": 1}}, {"tile": 512, "image": {"size": 2}})
    ['image.size was 1 and is 2']
    """
    found = []
    for key in dict.fromkeys((*old, *new)):
        before, after = old.get(key, "absent"), new.get(key, "absent")
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key} was {before} and is {after}")
    return found


def _read_done(record: Path) -> set[int]:
    """The numbers in the record; the last line is cut off unless it was written to its end."""
    content = record.read_bytes() if record.exists() else b""
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(record, end)
    return {int(line) for line in content[:end].splitlines() if line.isdigit()}


def _remove_torn(folder: Path) -> None:
    """Delete the temporary files that zarr leaves behind when a process ends within a write."""
    for path in folder.glob("**/*.partial"):
        path.unlink(missing_ok=True)


def _pyramid(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes of all levels, the full one first.

    >>> _pyramid((2, 1025, 600))
    [(2, 1025, 600), (2, 513, 300), (2, 257, 150)]
    """
    shapes = [shape]
    while max(shapes[-1][-2:]) > _SMALLEST_LEVEL:
        *others, height, width = shapes[-1]
        shapes.append((*others, -(-height // 2), -(-width // 2)))
    return shapes


def _make_pyramid(
    path: Path, axes: str, base: zarr.Array[Any], shapes: Sequence[tuple[int, ...]], progress: Progress | None
) -> list[zarr.Array[Any]]:
    """The array and smaller ones of these shapes, each with every second pixel of the one before."""
    levels = [base]
    for number, shape in enumerate(shapes, start=1):
        shutil.rmtree(path / str(number), ignore_errors=True)  # left by a process that ended here
        _make_level(path / str(number), axes, shape, base.dtype, max(base.chunks))
        levels.append(_open_level(path / str(number)))
    total, done = sum(math.prod(level.cdata_shape) for level in levels[1:]), 0
    for fine, coarse in pairwise(levels):
        for plane, window in _chunks(coarse):
            twice = Window(*(2 * edge for edge in window))
            coarse[_place(plane, window)] = np.asarray(fine[_place(plane, twice)])[::2, ::2]
            done += 1
            if progress:
                progress(done, total)
    return levels


def _chunks(level: zarr.Array[Any]) -> Iterator[tuple[tuple[int, ...], Window]]:
    """Numbers of the plane, and the window in it, of each chunk."""
    height, width = level.shape[-2:]
    for plane in np.ndindex(level.shape[:-2]):
        for window in blocks(height, width, max(level.chunks[-2:])):
            yield plane, window


def _place(plane: tuple[int, ...], window: Window) -> tuple[int | slice, ...]:
    return (*plane, *window.slices)


def _make_level(folder: Path, axes: str, shape: tuple[int, ...], dtype: np.dtype, chunk: int) -> None:
    zarr.create_array(
        LocalStore(folder),
        shape=shape,
        dtype=dtype,
        chunks=(*[1] * (len(shape) - 2), *[min(chunk, size) for size in shape[-2:]]),
        compressors=BloscCodec(
            typesize=dtype.itemsize, cname="zstd", clevel=1, shuffle="noshuffle" if dtype.itemsize == 1 else "shuffle"
        ),
        fill_value=0,
        dimension_names=list(axes),
    )


def _open_level(folder: Path) -> zarr.Array[Any]:
    # Comparing every chunk with 0, to leave out the empty ones, takes longer than compressing them.
    level = zarr.open_array(store=LocalStore(folder), mode="r+", zarr_format=3)
    return level.with_config({"write_empty_chunks": True})


def _ome(name: str, axes: str, size: _Size, classes: ClassMap | None) -> dict[str, Any]:
    """OME-Zarr 0.5 attributes of an image of classes or probabilities with a single level."""
    ome: dict[str, Any] = {"version": "0.5", "multiscales": [_multiscale(name, axes, 1, size)]}
    if classes is not None:
        colors = [{"label-value": number, "rgba": [*color, 255]} for number, color in enumerate(classes.colors)]
        names = [{"label-value": number, "class": text} for number, text in enumerate(classes.names)]
        ome["image-label"] = {"version": "0.5", "colors": colors, "properties": names}
    return ome


def _multiscale(name: str, axes: str, levels: int, size: _Size) -> dict[str, Any]:
    pixel_size, z_spacing = size
    kinds: dict[str, dict[str, str]] = {"c": {"type": "channel"}}
    if pixel_size is not None:
        kinds |= {axis: {"type": "space", "unit": "micrometer"} for axis in "yx"}
    if z_spacing is not None:
        kinds["z"] = {"type": "space", "unit": "micrometer"}
    datasets = []
    for level in range(levels):
        side = (pixel_size or 1.0) * 2**level
        sides = {"y": side, "x": side, "z": z_spacing or 1.0}
        scale = [sides.get(axis, 1.0) for axis in axes]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    described = [{"name": axis, **kinds.get(axis, {"type": "space"})} for axis in axes]
    return {"name": name, "axes": described, "datasets": datasets, "type": "nearest"}


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say what a failed write means for the Zarr at `path`; the system's error may be hidden below zarr's own."""
    try:
        yield
    except (OutputError, RunError):
        raise
    except Exception as error:  # codecs raise almost any type of exception on a damaged chunk
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cannot_write(path, cause) from error
        reason = str(error) or type(error).__name__
        raise RunError(f"{path}: contains a damaged part ({reason}). Start over without --resume.") from error
