"""TIFF files, plain or by ImageJ or OME: which image is read, the axes of its array, and whether it is complete.

Error messages are the end of a sentence: `readers` begins it with the file's path.
"""

import logging
import math
import re
import struct
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import tifffile

from pixelwise.core.errors import UnreadableError, truncated
from pixelwise.data.files.facts import Alpha, FileFacts, Picture
from pixelwise.data.files.ome import ome_pixels
from pixelwise.data.files.physical import tiff_size
from pixelwise.data.files.tiff_facts import (
    alpha_kind,
    alpha_samples,
    full_scale,
    geo_tags,
    has_photometric,
    nodata,
    palette,
)

# Without a handler, every remark of tifffile on odd metadata would go to stderr.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

TIFF_MAGIC = re.compile(rb"II[*+]\x00|MM\x00[*+]")

_PAGE_AXES = "ZTI"
_CHANNEL_AXES = "CS"
_CLEAR_AXES = frozenset(_PAGE_AXES + _CHANNEL_AXES + "YX")
_AXIS_ORDER = {"Y": 1, "X": 2, "C": 3, "S": 4}  # pages come before

_READ_COLORS = (
    tifffile.PHOTOMETRIC.MINISWHITE,
    tifffile.PHOTOMETRIC.MINISBLACK,
    tifffile.PHOTOMETRIC.RGB,
    tifffile.PHOTOMETRIC.PALETTE,
    tifffile.PHOTOMETRIC.MASK,
)
_JPEG_COMPRESSIONS = (6, 7, 34892)  # tifffile turns their YCbCr into RGB
_BOUNDED = (1, 5, 6, 7, 8, 32773, 32946)  # none, LZW, JPEG, deflate, PackBits
_ORIENTATION_TAG = 274
# Sizes, bits, compression, colours, description (with axes), strips, tiles, predictor, samples, JPEG tables.
_NEEDED_TAGS = frozenset({*range(256, 260), 262, 266, 270, 273, 274, *range(277, 280), 284, 317, 320})
_NEEDED_TAGS |= frozenset({*range(322, 326), 338, 339, 347})


class TiffSource:
    """An image of an open TIFF, at full resolution, not yet decoded: series `series`, or the largest one."""

    def __init__(self, file: tifffile.TiffFile, axes: str | None, series: int | None = None) -> None:
        _check_chain(file)
        self.series, number, count = _chosen_series(file, series)
        self.keyframe = self.series.keyframe
        _check_tags(file, self.keyframe)
        self._axes = _clear_axes(self.series, axes)
        _check_colors(self.keyframe)
        self._kept_samples, self._kept_labels, alpha = self._split_samples()
        channels = self._size("C") * (len(self._kept_samples) if self._kept_samples else self._size("S"))
        pages = math.prod(self._size(axis) for axis in self._axes if axis not in "YXCS")
        self._stored_shape = (pages, self._size("Y"), self._size("X"), channels)
        self._has_palette = self.keyframe.photometric == tifffile.PHOTOMETRIC.PALETTE and channels == 1
        self.shape = (*self._stored_shape[:3], 3 if self._has_palette else channels)
        self.dtype = np.dtype(np.uint8) if self._has_palette else self.series.dtype
        orientation = self.keyframe.tags.valueof(_ORIENTATION_TAG)
        self.orientation = orientation if orientation in range(1, 9) else 1
        largest = max(math.prod(self.series.shape), math.prod(self.shape), math.prod(self.keyframe.chunks))
        self.bytes_needed = largest * self.series.dtype.itemsize
        self.is_bounded = self.keyframe.compression in _BOUNDED and all(self.keyframe.databytecounts)
        self._has_photometric = has_photometric(self.keyframe)
        self._facts = self._read_facts(file, number, count, alpha)

    @property
    def facts(self) -> FileFacts:
        """What the file says about `image()`."""
        if self._has_palette:  # its numbers are no intensities, and the image has others
            return replace(self._facts, nodata=None, full_scale=None)
        value = self._facts.nodata
        if value is None or not self._is_inverted or not value.is_integer():
            return self._facts
        return replace(self._facts, nodata=float(2**self.keyframe.bitspersample - 1 - value))

    def _read_facts(self, file: tifffile.TiffFile, number: int, count: int, alpha: Alpha) -> FileFacts:
        images = ome_pixels(file.ome_metadata) if file.ome_metadata else []
        ome = images[number if count == len(images) else 0] if images else None
        size = tiff_size(file, self.keyframe, ome)
        return FileFacts(
            "TIFF",
            self.orientation,
            full_scale(self.keyframe, ome.significant_bits if ome else None),
            nodata(self.keyframe, self.series.dtype),
            count,
            alpha,
            self._has_photometric,
            palette(self.keyframe) if self._has_palette else None,
            # The place of an image that is turned would be that of the image as stored.
            geo_tags(self.keyframe) if self.orientation == 1 else None,
            size.pixel,
            size.z,
        )

    def image(self) -> Picture:
        """P x H x W x C, colours resolved."""
        return Picture(self.resolved(self._stored(self._kept_samples)), self.facts)

    def resolved(self, pixels: np.ndarray) -> np.ndarray:
        """Resolve palette and white-is-zero of pixels as they are stored, P x H x W x C or a part of it."""
        if self._has_palette:
            return np.asarray(palette(self.keyframe)[self._indices(pixels[..., 0])])
        return self._white_high(pixels)

    def _indices(self, pixels: np.ndarray) -> np.ndarray:
        """Numbers of colours; of one bit they are bool, which would choose elements instead."""
        return pixels.astype(np.uint8) if pixels.dtype.kind == "b" else pixels

    def labels(self) -> Picture:
        """P x H x W x C, the numbers that are stored; but white is 1 in every 1-bit image."""
        pixels = self._stored(self._kept_labels)
        is_inverted = self.keyframe.bitspersample == 1 and self._is_inverted
        return Picture(self._white_high(pixels), self.facts) if is_inverted else Picture(pixels, self._facts)

    def planes(self) -> np.ndarray | None:
        """P x C numbers that say where each channel of each page lies, so that a single window can be read.

        Number n is sample `n % samples` (of those stored pixel by pixel) of the plane `n // samples`. Planes are
        counted over the pages of the file and, within a page, over the samples that are stored one after another.
        None if the image's rows and columns are not those of the pages.
        """
        _, depth, *size, samples = self.keyframe.shaped
        shape, y, x = self.series.shape, self._axes.index("Y"), self._axes.index("X")
        inner = (*shape[y : x + 1], math.prod(shape[x + 1 :]))
        if depth != 1 or self.series.transform is not None or inner != (*size, samples):
            return None
        others = shape[:y] + shape[x + 1 :]
        axes = self._axes[:y] + self._axes[x + 1 :]
        numbers = np.arange(math.prod(others)).reshape(others)
        if self._kept_samples:
            numbers = numbers.take(self._kept_samples, axis=axes.index("S"))
        order = sorted(range(numbers.ndim), key=lambda index: _AXIS_ORDER.get(axes[index], 0))
        return numbers.transpose(order).reshape(self._stored_shape[0], self._stored_shape[3])

    def _size(self, axis: str) -> int:
        return self.series.shape[self._axes.index(axis)] if axis in self._axes else 1

    def _split_samples(self) -> tuple[list[int], list[int], Alpha]:
        """Indices along S of an image and of labels, empty if all are kept; and what becomes of an alpha channel."""
        count, alpha = self.keyframe.samplesperpixel, alpha_samples(self.keyframe)
        if not alpha or self._size("S") != count or count < 2:
            return [], [], "none"
        without = [index for index in range(count) if index not in alpha]
        is_data = any(alpha_kind(self.keyframe, index) == "data" for index in alpha)
        return ([] if is_data else without), without, "data" if is_data else "dropped"

    @property
    def _is_inverted(self) -> bool:
        """Whether the file says that white is 0."""
        is_white_low = self._has_photometric and self.keyframe.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        return is_white_low and self.series.dtype.kind in "ub"

    def _white_high(self, pixels: np.ndarray) -> np.ndarray:
        if not self._is_inverted:
            return pixels
        return ~pixels if pixels.dtype.kind == "b" else (2**self.keyframe.bitspersample - 1) - pixels

    def _stored(self, kept: list[int]) -> np.ndarray:
        _check_segments(self.series)
        array = self.series.asarray()
        if kept:
            array = array.take(kept, axis=self._axes.index("S"))
        order = sorted(range(array.ndim), key=lambda index: _AXIS_ORDER.get(self._axes[index], 0))
        return array.transpose(order).reshape(*self._stored_shape[:3], -1)


def product_text(shape: Iterable[int]) -> str:
    """A shape for people.

    >>> product_text((5, 64, 48))
    '5 x 64 x 48'
    """
    return " x ".join(str(size) for size in shape)


def check_axes(axes: str | None) -> None:
    """Refuse names of axes that cannot be right.

    Raises:
        DataError: a letter is unknown or occurs twice, or Y or X is missing.
    """
    if axes is not None and (len(set(axes)) != len(axes) or not {"Y", "X"} <= set(axes) <= _CLEAR_AXES):
        raise UnreadableError(
            f'axes = "{axes}" is not valid. Name Y and X once each, and C or S (channels) and Z, T or I (pages) '
            'at most once each, as in "ZYX".'
        )


def _clear_axes(series: tifffile.TiffPageSeries, axes: str | None) -> str:
    """The axes of the array: the user's, or the file's if their meaning is clear."""
    shape, found = series.shape, series.axes
    if axes is not None:
        if len(axes) != len(shape):
            raise UnreadableError(
                f"has {len(shape)} dimensions, {product_text(shape)} (axes {found} in its metadata), but "
                f'axes = "{axes}" names {len(axes)}. Name each of them, in this order.'
            )
        return axes
    unclear = [axis for axis, size in zip(found, shape, strict=True) if axis not in _CLEAR_AXES and size > 1]
    if unclear or found.count("Y") != 1 or found.count("X") != 1:
        raise UnreadableError(
            f"has the shape {product_text(shape)} with the axes {found}, whose meaning is unclear. Name them "
            'in this order (Z, T: pages; C: channels; Y, X: rows, columns), for example axes = "ZYX" in '
            "dataset.toml or --axes ZYX on the command line."
        )
    return found


def _check_chain(file: tifffile.TiffFile) -> None:
    """The list of pages must reach its end marker; tifffile silently drops what comes after a broken link."""
    end = file.pages.next_page_offset if file.pages else None
    if end is None:
        raise truncated("is truncated or damaged: it contains no page. Copy or export it again.")
    file.filehandle.seek(end)
    if file.filehandle.read(file.tiff.offsetsize) != bytes(file.tiff.offsetsize):
        raise truncated("is truncated or damaged: its list of pages is cut short. Copy or export it again.")


def _check_tags(file: tifffile.TiffFile, page: tifffile.TiffPage) -> None:
    """No tag that the pixels depend on may be missing; tifffile leaves out those that it cannot read."""
    handle, form = file.filehandle, file.tiff
    handle.seek(page.offset)
    (count,) = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))
    entries = handle.read(count * form.tagsize)
    codes = {struct.unpack_from(f"{form.byteorder}H", entries, form.tagsize * index)[0] for index in range(count)}
    lost = [str(code) for code in sorted(codes & _NEEDED_TAGS) if code not in page.tags]
    if lost:
        raise truncated(f"is truncated or damaged: the value of tag {', '.join(lost)} is missing. Copy it again.")


def check_series(series: int | None, count: int) -> None:
    """Refuse the number of an image that a file does not hold.

    Raises:
        DataError: it is not among them.
    """
    if series is not None and not 0 <= series < count:
        held = "one image, number 0" if count == 1 else f"{count} images, numbered from 0 to {count - 1}"
        raise UnreadableError(f"holds {held}, but --series asks for number {series}. Choose one of these.")


def _chosen_series(file: tifffile.TiffFile, wanted: int | None) -> tuple[tifffile.TiffPageSeries, int, int]:
    """A series of the file, its number, and how many there are: the wanted one, or that of the largest pages.

    Of a set of OME files, each is read for the images that begin in it, so that none is read twice.
    """
    found = list(file.series)
    if found[0].kind == "shaped" and len(found) > 1 and {_kind(other) for other in found} == {_kind(found[0])}:
        # Equal pages that tifffile wrote one at a time, as a series each, are a stack as well.
        found = list(tifffile.TiffFile(file.filehandle, is_shaped=False).series)
    check_series(wanted, len(found))
    own = [number for number, series in enumerate(found) if begins_in(series, file)] or range(len(found))
    number = max(own, key=lambda index: _page_pixels(found[index])) if wanted is None else wanted
    series = found[number]
    if file.is_imagej and series.kind == "generic":
        raise truncated("is truncated: ImageJ's header declares more images than the file holds. Copy it again.")
    if series.keyframe.dtype is None:  # of which tifffile would make float64
        raise UnreadableError("holds numbers of a type that cannot be read. Convert it to 8, 16 or 32 bits.")
    return series, number, len(found)


def begins_in(series: tifffile.TiffPageSeries, file: tifffile.TiffFile) -> bool:
    """Whether the first page of an image lies in this file, not in another one of its set."""
    first = series[0]
    return first is not None and first.parent is file


def _page_pixels(series: tifffile.TiffPageSeries) -> int:
    return int(series.keyframe.imagelength) * int(series.keyframe.imagewidth)


def _kind(series: tifffile.TiffPageSeries) -> tuple[tuple[int, ...], np.dtype | None]:
    return series.shape, series.dtype


def _check_colors(page: tifffile.TiffPage) -> None:
    photometric = page.photometric
    is_ycbcr_jpeg = photometric == tifffile.PHOTOMETRIC.YCBCR and page.compression in _JPEG_COMPRESSIONS
    if photometric not in _READ_COLORS and not is_ycbcr_jpeg:
        name = getattr(photometric, "name", photometric)
        raise UnreadableError(f"stores its colours as {name}, which cannot be read. Convert it to RGB or grey.")


def _check_segments(series: tifffile.TiffPageSeries) -> None:
    """Every strip and tile must lie within the file, because tifffile may leave out those that do not."""
    for page in series.pages:
        if page is None:
            raise UnreadableError("belongs to a set of files, of which another is missing. Put it next to this one.")
        offsets, counts = page.dataoffsets, page.databytecounts
        size = page.parent.filehandle.size
        is_outside = any(start + count > size for start, count in zip(offsets, counts, strict=False))
        if is_outside or min(len(offsets), len(counts)) < math.prod(page.chunked):
            raise truncated("is truncated: some pixels lie beyond the end of the file. Copy or export it again.")
