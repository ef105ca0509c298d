"""Read images and masks: PNG, JPEG, TIFF, BMP, GIF, WebP and portable maps.

The format is recognised by what a file holds, never by its name. P pages, H height, W width, C channels.
Every failure is a `DataError` whose message begins with the file's path.
"""

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import psutil
import tifffile

from pixelwise.core.errors import DataError
from pixelwise.data.files.raster import RASTER_FORMATS, RasterSource
from pixelwise.data.files.tiff import TIFF_MAGIC, TiffSource, check_axes, product_text

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pbm", ".pgm", ".ppm", ".pnm"}
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


def image_info(path: Path, axes: str | None = None) -> ImageInfo:
    """Size and type of an image, from its header alone.

    `axes` names the dimensions of a TIFF whose metadata do not, as in `read_image`.

    Raises:
        DataError: the header cannot be read. An image may be larger than the memory.
    """
    with _opened(path, axes) as source:
        pages, height, width, channels = source.shape
        if _TURNS[source.orientation][0]:
            height, width = width, height
        return ImageInfo(pages, height, width, channels, image_dtype(source.dtype))


def read_image(path: Path, axes: str | None = None) -> np.ndarray:
    """Pixels of an image, P x H x W x C.

    The array has the file's own type (uint8, uint16, uint32, ...) in this machine's byte order; 1-bit images become
    uint8 of 0 and 1, float16 and float64 become float32. Grey images have one channel. Palettes are resolved to RGB,
    alpha is dropped, white-is-zero is inverted, and the file's rotation is applied. P is the number of pages of a
    stack, else 1.

    `axes` names the dimensions of a TIFF in the array's order and overrides its metadata: Y and X; C or S for
    channels; Z, T or I for pages (if there are several, they are flattened in the file's order). Other formats do not
    need it.

    Raises:
        DataError: the file is missing, not an image, damaged, larger than the memory, or its axes are unclear.
    """
    with _opened(path, axes) as source:
        _check_memory(source)
        pixels = _turned(source.image(), source.orientation)
        with np.errstate(over="ignore"):  # float64 beyond float32 is infinite
            return np.ascontiguousarray(pixels, dtype=image_dtype(pixels.dtype))


def read_mask(path: Path, axes: str | None = None) -> np.ndarray:
    """Labels of a mask: P x H x W integers, or P x H x W x 3 where colours stand for classes.

    Labels are the numbers that the file stores: the indices of a palette, the 0 and 1 of a 1-bit image; 16 and 32 bits
    are kept. Floating-point labels become the smallest integer type that holds them. Colours become one channel if
    their three channels are equal everywhere. `axes` as in `read_image`.

    Raises:
        DataError: as in `read_image`; or the labels are fractions, or have two, four or more channels.
    """
    with _opened(path, axes) as source:
        _check_memory(source)
        labels = _whole_numbers(_turned(source.labels(), source.orientation))
        channels = labels.shape[-1]
        if channels not in (1, 3):
            raise DataError(f"has {channels} channels, but a mask has one (labels) or three (a colour for each class).")
        is_color = channels == 3 and (labels[..., :1] != labels[..., 1:]).any()
        return np.ascontiguousarray(labels if is_color else labels[..., 0])


class _Source(Protocol):
    """An open file: its header, and its pixels before any rotation."""

    shape: tuple[int, int, int, int]  # P, H, W, C of `image()`
    dtype: np.dtype
    orientation: int  # 1 to 8
    bytes_needed: int  # at least so many are allocated by decoding, according to the header

    def image(self) -> np.ndarray:
        """P x H x W x C, colours resolved."""
        ...

    def labels(self) -> np.ndarray:
        """P x H x W x C, numbers as they are stored."""
        ...


@contextmanager
def _opened(path: Path, axes: str | None) -> Iterator[_Source]:
    """Open a file by what it holds; any failure becomes a `DataError` that names the file."""
    with read_errors(path):
        check_axes(axes)
        if not path.is_file():
            raise DataError("no such file.")
        with path.open("rb") as handle, _source(handle, axes) as source:
            check_pixels(source.shape)
            image_dtype(source.dtype)
            yield source


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn any failure while `path` is read into a `DataError` that names it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except PermissionError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}). Change the file's permissions.") from error
    except Exception as error:  # decoders raise almost any type of exception on damaged input
        reason = str(error) or type(error).__name__
        raise DataError(
            f"{path}: cannot be read ({reason}). It may be truncated or damaged: copy or export it again."
        ) from error


@contextmanager
def _source(handle: BinaryIO, axes: str | None) -> Iterator[_Source]:
    head = handle.read(512)
    handle.seek(0)
    if TIFF_MAGIC.match(head):
        with tifffile.TiffFile(handle) as file:
            yield TiffSource(file, axes)
        return
    for name, (magic, plugin) in RASTER_FORMATS.items():
        if magic.match(head):
            yield RasterSource(handle, name, plugin)
            return
    raise _unknown(head)


def _unknown(head: bytes) -> DataError:
    readable = f"Readable formats: TIFF, {', '.join(RASTER_FORMATS)}."
    if not head:
        return DataError("is empty: it holds 0 bytes. Copy or export it again.")
    if _is_text(head):
        return DataError(f"is a text file, not an image. {readable}")
    return DataError(f"is not an image in a known format. {readable}")


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
        raise DataError(f"contains no pixels: its size is {product_text(shape)}.")


def _check_memory(source: _Source) -> None:
    """Refuse an image whose header declares more than the machine's memory, before anything is allocated."""
    total = psutil.virtual_memory().total
    if source.bytes_needed > total:
        raise DataError(
            f"is too large: its header declares {product_text(source.shape)} {source.dtype}, which takes "
            f"{source.bytes_needed / 2**30:,.1f} GiB, but this machine has {total / 2**30:,.1f} GiB of "
            "memory. Cut it into smaller files."
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
    raise DataError(f"holds {dtype} pixels, but only whole and real numbers can be used. Save the parts as channels.")


def _whole_numbers(labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind != "f":
        return labels.astype(image_dtype(labels.dtype), copy=False)
    if not np.isfinite(labels).all() or (labels != np.rint(labels)).any():
        raise DataError("holds fractions, but labels are whole numbers. Is it an image, or a map of probabilities?")
    low, high = int(labels.min()), int(labels.max())
    if max(-low, high) >= 2**31:
        raise DataError(f"holds labels from {low} to {high}, but they must fit into 31 bits.")
    return labels.astype(np.min_scalar_type(high if low >= 0 else min(low, -high - 1)))


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    swap, flip_rows, flip_columns = _TURNS[orientation]
    if swap:
        pixels = pixels.swapaxes(1, 2)
    if flip_rows:
        pixels = pixels[:, ::-1]
    return pixels[:, :, ::-1] if flip_columns else pixels
