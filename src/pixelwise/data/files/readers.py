"""Read images and masks: PNG, JPEG, TIFF, BMP, GIF, WebP and portable maps.

The format is recognised by what a file holds, never by its name. P pages, H height, W width, C channels.
Every failure is a `DataError` whose message begins with the file's path.
"""

import codecs
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import psutil
import tifffile

from pixelwise.core.classes import IGNORE
from pixelwise.core.errors import DataError, UnreadableError, truncated
from pixelwise.data.files.facts import FileFacts, Picture, equals_nodata
from pixelwise.data.files.ome import ome_pixels
from pixelwise.data.files.raster import RASTER_FORMATS, RasterSource
from pixelwise.data.files.tiff import TIFF_MAGIC, TiffSource, begins_in, check_axes, check_series, product_text

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pbm", ".pgm", ".ppm", ".pnm"}
    | {".svs", ".stk", ".lsm", ".ndpi", ".scn", ".qptiff", ".btf"}  # microscopes and slide scanners write TIFF so
)
"""Extensions, in lower case, of the files in a folder that count as images."""

# Orientation of EXIF and TIFF -> (swap rows and columns, then flip rows, flip columns).
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


@dataclass(frozen=True)
class ImageInfo:
    """Size and type of the array that `read_image` returns for a file."""

    pages: int
    height: int  # rows, after the rotation that the file asks for
    width: int
    channels: int
    dtype: np.dtype


def image_info(path: Path, axes: str | None = None, series: int | None = None) -> ImageInfo:
    """Size and type of an image, from its header alone (and a sample of its alpha channel, if it has one).

    `axes` and `series` as in `read_image`.

    Raises:
        DataError: the header cannot be read. An image may be larger than the memory.
    """
    with _opened(path, axes, series) as source:
        pages, height, width, channels = source.shape
        if _TURNS[source.orientation][0]:
            height, width = width, height
        return ImageInfo(pages, height, width, channels, image_dtype(source.dtype))


def read_image(path: Path, axes: str | None = None, series: int | None = None) -> np.ndarray:
    """Pixels of an image, P x H x W x C.

    The array has the file's own type (uint8, uint16, uint32, ...) in this machine's byte order; 1-bit images become
    uint8 of 0 and 1, float16 and float64 become float32. Grey images have one channel. Palettes are resolved to RGB,
    transparency is dropped (but a channel of a TIFF that is tagged as alpha and holds many values is kept), white-is-
    zero is inverted, and the file's rotation is applied. P is the number of pages of a stack, else 1.

    `axes` names the dimensions of a TIFF in the array's order and overrides its metadata: Y and X; C or S for
    channels; Z, T or I for pages (if there are several, they are flattened in the file's order). Other formats do not
    need it. `series` is the number of the image, from 0, in a file that holds several; by default the largest is read.

    Raises:
        DataError: the file is missing, not an image, damaged, larger than the memory, or its axes are unclear.
    """
    return read_picture(path, axes, series).pixels


def read_picture(path: Path, axes: str | None = None, series: int | None = None) -> Picture:
    """What `read_image` returns, with what the file says about it; it is decoded once.

    Raises:
        UnreadableError: as in `read_image`; its `code` says in which way.
    """
    with _opened(path, axes, series) as source:
        _check_memory(source, path.stat().st_size)
        found = source.image()
        pixels = turned(found.pixels, source.orientation)
        with np.errstate(over="ignore"):  # float64 beyond float32 is infinite
            return Picture(np.ascontiguousarray(pixels, dtype=image_dtype(pixels.dtype)), found.facts)


def read_mask(path: Path, axes: str | None = None) -> np.ndarray:
    """Labels of a mask: P x H x W integers, or P x H x W x 3 where colours stand for classes.

    Labels are the numbers that the file stores: the indices of a palette, the 0 and 1 of a 1-bit image; 16 and 32 bits
    are kept. Floating-point labels become the smallest integer type that holds them. Colours become one channel if
    their three channels are equal everywhere. `axes` as in `read_image`.

    Raises:
        DataError: as in `read_image`; or the labels are fractions, or have two, four or more channels.
    """
    return read_labels(path, axes).pixels


def read_labels(path: Path, axes: str | None = None) -> Picture:
    """What `read_mask` returns, with what the file says about it; it is decoded once.

    A nodata value that no integer type holds (NaN, -3.4e38) becomes one that does, in the labels and in the facts.

    Raises:
        UnreadableError: as in `read_mask`; its `code` says in which way.
    """
    with _opened(path, axes) as source:
        _check_memory(source, path.stat().st_size)
        found = source.labels()
        labels, facts = _whole_numbers(turned(found.pixels, source.orientation), found.facts)
        channels = labels.shape[-1]
        if channels not in (1, 3):
            raise UnreadableError(
                f"has {channels} channels, but a mask has one (labels) or three (a colour for each class)."
            )
        is_color = channels == 3 and (labels[..., :1] != labels[..., 1:]).any()
        return Picture(np.ascontiguousarray(labels if is_color else labels[..., 0]), facts)


class StackFiles(NamedTuple):
    """The files of a set of OME-TIFFs, among them this one."""

    begins: bool  # an image begins in this file; the pixels of the others' are read from where they begin
    files: frozenset[Path]  # absolute


def stack_files(path: Path) -> StackFiles | None:
    """The set of files that a TIFF belongs to; None if it stands alone, or cannot be read."""
    with suppress(Exception), path.open("rb") as handle:
        if not TIFF_MAGIC.match(handle.read(4)):
            return None
        handle.seek(0)
        with tifffile.TiffFile(handle) as file:
            images = ome_pixels(file.ome_metadata) if file.is_ome and file.ome_metadata else []
            names = frozenset().union(*(image.files for image in images))
            if len(names) < 2:
                return None
            folder = Path(os.path.abspath(path)).parent  # noqa: PTH100 (links keep their own names)
            begins = any(begins_in(series, file) for series in file.series)
            return StackFiles(begins, frozenset(folder / name for name in names))
    return None


class _Source(Protocol):
    """An open file: its header, and its pixels before any rotation."""

    shape: tuple[int, int, int, int]  # P, H, W, C of `image()`
    dtype: np.dtype
    orientation: int  # 1 to 8
    is_bounded: bool  # no byte of the file can stand for more than some thousands of the image
    bytes_needed: int  # at least so many are allocated by decoding, according to the header

    def image(self) -> Picture:
        """P x H x W x C, colours resolved."""
        ...

    def labels(self) -> Picture:
        """P x H x W x C, numbers as they are stored."""
        ...


@contextmanager
def _opened(path: Path, axes: str | None, series: int | None = None) -> Iterator[_Source]:
    """Open a file by what it holds; any failure becomes a `DataError` that names the file."""
    with read_errors(path):
        check_axes(axes)
        if not path.is_file():
            raise UnreadableError("no such file.")
        with path.open("rb") as handle, _source(handle, axes, series) as source:
            check_pixels(source.shape)
            image_dtype(source.dtype)
            yield source


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn any failure while `path` is read into an `UnreadableError` that names it."""
    try:
        yield
    except UnreadableError as error:
        raise error.about(path) from error
    except DataError as error:
        raise UnreadableError(f"{path}: {error}") from error
    except PermissionError as error:
        raise UnreadableError(f"{path}: cannot be opened ({error.strerror}). Change the file's permissions.") from error
    except Exception as error:  # decoders raise almost any type of exception on damaged input
        reason = str(error) or type(error).__name__
        raise UnreadableError(
            f"{path}: cannot be read ({reason}). It may be truncated or damaged: copy or export it again.",
            "truncated" if isinstance(error, EOFError) or "truncated" in reason.lower() else "unreadable",
        ) from error


@contextmanager
def _source(handle: BinaryIO, axes: str | None, series: int | None) -> Iterator[_Source]:
    head = handle.read(512)
    handle.seek(0)
    if TIFF_MAGIC.match(head):
        with tifffile.TiffFile(handle) as file:
            yield TiffSource(file, axes, series)
        return
    for name, (magic, plugin) in RASTER_FORMATS.items():
        if magic.match(head):
            check_series(series, 1)
            yield RasterSource(handle, name, plugin)
            return
    raise _unknown(head)


def _unknown(head: bytes) -> UnreadableError:
    readable = f"Readable formats: TIFF, {', '.join(RASTER_FORMATS)}."
    if not head:
        return truncated("is empty: it holds 0 bytes. Copy or export it again.")
    if _is_text(head):
        return UnreadableError(f"is a text file, not an image. {readable}", "unknown-format")
    return UnreadableError(f"is not an image in a known format. {readable}", "unknown-format")


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # may end within a character
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)


def check_pixels(shape: tuple[int, ...]) -> None:
    """Refuse an image without pixels.

    Raises:
        DataError: one of the sizes is 0.
    """
    if 0 in shape:
        raise UnreadableError(f"contains no pixels: its size is {product_text(shape)}.")


_MOST_COMPRESSED = 25_000  # bytes of an image a byte of the file, at most: bits that are all alike, by LZW
_SMALL = 2**24  # bytes; of less nobody needs to be warned


@cache
def _total_memory() -> int:
    """Bytes of this machine."""
    return int(psutil.virtual_memory().total)


def _check_memory(source: _Source, file_bytes: int) -> None:
    """Refuse an image whose header declares more than the file can hold, or the memory, before any is allocated."""
    total = _total_memory()
    if source.bytes_needed > total:
        raise UnreadableError(
            f"is too large: its header declares {product_text(source.shape)} {source.dtype}, which takes "
            f"{source.bytes_needed / 2**30:,.1f} GiB, but this machine has {total / 2**30:,.1f} GiB of "
            "memory. Cut it into smaller files."
        )
    if source.is_bounded and source.bytes_needed > max(_SMALL, _MOST_COMPRESSED * file_bytes):
        raise truncated(
            f"is truncated or damaged: its header declares {product_text(source.shape)} {source.dtype}, which "
            f"{file_bytes:,} bytes cannot hold. Copy or export it again."
        )


def image_dtype(dtype: np.dtype) -> np.dtype:
    """The type that pixels of `dtype` are returned in, as described for `read_image`.

    Raises:
        DataError: the pixels are complex, or not numbers.

    >>> image_dtype(np.dtype(">u2")), image_dtype(np.dtype(np.float64))
    (dtype('uint16'), dtype('float32'))
    """
    if dtype.kind == "f":
        return np.dtype(np.float32)
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind in "ui":
        return dtype.newbyteorder("=")
    raise UnreadableError(
        f"holds {dtype} pixels, but only whole and real numbers can be used. Save the parts as channels."
    )


def _whole_numbers(labels: np.ndarray, facts: FileFacts) -> tuple[np.ndarray, FileFacts]:
    """Labels as integers, and the facts with a nodata value that these hold."""
    if labels.dtype.kind != "f":
        return labels.astype(image_dtype(labels.dtype), copy=False), facts
    missing = np.zeros(labels.shape, bool) if facts.nodata is None else equals_nodata(labels, facts.nodata)
    given = labels[~missing]
    broken = int(np.count_nonzero(~np.isfinite(given)))
    if broken:
        raise UnreadableError(
            f"holds NaN or infinite values at {broken} of its pixels, but labels are whole numbers. Give these pixels "
            "a number, and say in dataset.toml that it does not count (`ignore`).",
            "float-labels",
        )
    if (given != np.rint(given)).any():
        raise UnreadableError(
            "holds fractions, but labels are whole numbers. Is it an image, or a map of probabilities?", "float-labels"
        )
    low, high = int(given.min(initial=0)), int(given.max(initial=0))
    if max(-low, high) >= 2**31:
        raise UnreadableError(f"holds labels from {low} to {high}, but they must fit into 31 bits.", "float-labels")
    if missing.any():
        stand_in = _nodata_label(facts.nodata, given, high)
        labels, facts = np.where(missing, stand_in, labels), replace(facts, nodata=float(stand_in))
        low, high = min(low, stand_in), max(high, stand_in)
    return labels.astype(np.min_scalar_type(high if low >= 0 else min(low, -high - 1))), facts


def _nodata_label(nodata: float | None, given: np.ndarray, high: int) -> int:
    """A whole number for missing labels: the file's own where it is one, else 255 or one that no label has."""
    if nodata is not None and np.isfinite(nodata) and nodata == np.rint(nodata) and abs(nodata) < 2**31:
        return int(nodata)
    return IGNORE if not (given == IGNORE).any() else high + 1


def turn_text(image: tuple[int, ...], mask: tuple[int, ...], facts: FileFacts) -> str:
    """What to add where sizes (P, H, W, ...) differ: that the turn which an image asks for explains it, if it does.

    >>> turn_text((1, 6, 4), (1, 4, 6), FileFacts("JPEG", orientation=6))[:64]
    ' The image asks viewers to turn it (EXIF orientation 6), and its'
    """
    turns = _TURNS[facts.orientation][0] and image[1:3] == mask[2:0:-1]
    return (
        f" The image asks viewers to turn it (EXIF orientation {facts.orientation}), and its mask lies as the image is "
        "stored: turn one of them."
        if turns and image[1] != image[2]
        else ""
    )


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels, P x H x W x ..., as an orientation of EXIF, 1 to 8, asks for them to be shown."""
    swap, flip_rows, flip_columns = _TURNS[orientation]
    if swap:
        pixels = pixels.swapaxes(1, 2)
    if flip_rows:
        pixels = pixels[:, ::-1]
    return pixels[:, :, ::-1] if flip_columns else pixels
