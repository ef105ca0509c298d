"""Read images by window, even those larger than the memory: TIFF and Zarr by chunks, other files as a whole.

P pages, C channels, H height, W width. A chunk is what a file stores as one piece: a tile or a strip of a TIFF, a
chunk of a Zarr. The chunks decoded last are kept, up to a number of bytes, because tiles overlap.
"""

import io
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import psutil
import tifffile

from pixelwise.core.errors import UnreadableError, truncated
from pixelwise.core.windows import Window
from pixelwise.data.files.facts import FileFacts
from pixelwise.data.files.readers import check_pixels, image_dtype, image_info, read_errors, read_picture
from pixelwise.data.files.tiff import TIFF_MAGIC, TiffSource, check_axes
from pixelwise.data.files.tiff_facts import decode_segment
from pixelwise.data.files.zarrs import ZarrImage, is_zarr, open_zarr

__all__ = ["Source", "is_zarr", "open_source"]

_CACHE_BYTES = 256 * 2**20
# Smaller chunks are decoded several at a time, since a call costs as much as 100,000 pixels.
_LEAST_BLOCK = 512

_Page = tifffile.TiffPage | tifffile.TiffFrame


class Source(Protocol):
    """An open image. Any thread may read it, but only one at a time."""

    pages: int
    height: int
    width: int
    channels: int
    dtype: np.dtype
    facts: FileFacts  # what the file says besides
    streams: bool  # False: the pixels lie in memory as a whole
    bytes_needed: int  # the most that it holds in memory, besides what `read` returns

    def read(self, page: int, window: Window) -> np.ndarray:
        """Pixels of a window, h x w x C, equal to `read_image(path)[page][window.slices]`.

        Raises:
            DataError: this part of the file is damaged or missing; the message says which.
        """
        ...


@contextmanager
def open_source(
    path: Path,
    axes: str | None = None,
    cache_bytes: int = _CACHE_BYTES,
    largest: int | None = None,
    series: int | None = None,
) -> Iterator[Source]:
    """Open an image to be read by window.

    These are read by chunks: TIFF, BigTIFF and OME-TIFF (one image, at full resolution) that are tiled, striped
    or uncompressed; Zarr arrays and OME-Zarr images (the first, at full resolution), which are folders. Everything
    else is read as a whole by `read_picture` and offered through the same interface.

    Args:
        path: a file, or a folder of which `is_zarr` is true.
        axes: names the dimensions, as in `read_image`; also needed for a Zarr array without metadata.
        cache_bytes: the most bytes of decoded chunks to keep.
        largest: the most bytes for a file that must be read as a whole; None: what the machine has.
        series: number of the image in a file that holds several, as in `read_image`.

    Raises:
        DataError: the file is missing, not an image or without pixels, its axes are unclear, or a chunk is larger than
            the memory.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tifffile.imwrite(Path(folder) / "a.tif", np.arange(64 * 64, dtype="u2").reshape(64, 64), tile=(16, 16))
    ...     with open_source(Path(folder) / "a.tif") as source:
    ...         source.streams, source.read(0, Window(1, 3, 62, 64))[..., 0].tolist()
    (True, [[126, 127], [190, 191]])
    """
    with ExitStack() as stack:
        source: Source | None = None
        with read_errors(path):
            check_axes(axes)
            if is_zarr(path):
                source = _ZarrWindows(path, open_zarr(path, axes, series), cache_bytes)
            elif path.is_file():
                source = _open_tiff(path, axes, series, cache_bytes, stack)
        yield source or _Whole(path, axes, series, largest)


class _Whole:
    """An image in memory."""

    streams = False

    def __init__(self, path: Path, axes: str | None, series: int | None, largest: int | None) -> None:
        if largest is not None:
            _check_size(path, axes, series, largest)
        found = read_picture(path, axes, series)
        self._image, self.facts = found.pixels, found.facts
        self.pages, self.height, self.width, self.channels = self._image.shape
        self.dtype = self._image.dtype
        self.bytes_needed = self._image.nbytes

    def read(self, page: int, window: Window) -> np.ndarray:
        return self._image[page, *window.slices]


def _check_size(path: Path, axes: str | None, series: int | None, largest: int) -> None:
    info = image_info(path, axes, series)
    size = info.pages * info.height * info.width * info.channels * info.dtype.itemsize
    if size > largest:
        raise UnreadableError(
            f"{path}: can only be read as a whole, which takes {size / 2**20:,.0f} MiB, but only "
            f"{max(largest, 0) / 2**20:,.0f} MiB of memory are left. Save it as a tiled TIFF or a Zarr, or "
            "allow more memory."
        )


class _Recent:
    """The blocks used last, as many as fit into `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._blocks: OrderedDict[Hashable, np.ndarray] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        block = self._blocks.pop(key, None)
        if block is None:
            block = make()
            self._bytes += block.nbytes
        self._blocks[key] = block
        while self._bytes > self._limit:
            self._bytes -= self._blocks.popitem(last=False)[1].nbytes
        return block


class _Grid(NamedTuple):
    """Blocks of one size that cover an image."""

    height: int  # of the image
    width: int
    rows: int  # of a block
    columns: int

    def touched(self, window: Window) -> Iterator[tuple[int, int]]:
        """Row and column numbers of the blocks that a window touches."""
        for row in range(window.y0 // self.rows, -(-window.y1 // self.rows)):
            for column in range(window.x0 // self.columns, -(-window.x1 // self.columns)):
                yield row, column

    def block(self, row: int, column: int) -> Window:
        """The part of a block that lies in the image."""
        y0, x0 = row * self.rows, column * self.columns
        return Window(y0, y0 + self.rows, x0, x0 + self.columns).within(self.height, self.width)


def _paste(out: np.ndarray, window: Window, block: np.ndarray, place: Window) -> None:
    """Copy the part of a block at `place` that lies in the window, which is `out`."""
    shared = Window(
        max(window.y0, place.y0), min(window.y1, place.y1), max(window.x0, place.x0), min(window.x1, place.x1)
    )
    part = block[shared.moved(-place.y0, -place.x0).slices]
    out[shared.moved(-window.y0, -window.x0).slices] = part


@contextmanager
def _part_errors(path: Path, page: int, window: Window) -> Iterator[None]:
    """Name the part of the image that could not be read."""
    y0, y1, x0, x1 = window
    try:
        yield
    except Exception as error:  # decoders raise almost any type of exception on damaged input
        reason = str(error) or type(error).__name__
        raise UnreadableError(
            f"{path}: rows {y0} to {y1 - 1}, columns {x0} to {x1 - 1} of page {page + 1} cannot be read ({reason}). "
            "The file may be truncated or damaged there: copy or export it again.",
            error.code if isinstance(error, UnreadableError) else "unreadable",
        ) from error


def _check_block(size: int) -> None:
    """Refuse a chunk that is larger than the machine's memory, according to the header."""
    total = psutil.virtual_memory().total
    if size > total:
        raise UnreadableError(
            f"is stored in chunks of {size / 2**30:,.1f} GiB, each of which must be decoded at once, but this machine "
            f"has {total / 2**30:,.1f} GiB of memory. Save it with smaller tiles."
        )


# TIFF


class _TiffPlanes(Protocol):
    """The planes of a TIFF, counted as in `TiffSource.planes`."""

    bytes_needed: int

    def read(self, plane: int, window: Window) -> np.ndarray:
        """Rows x columns x samples, as stored."""
        ...


def _open_tiff(path: Path, axes: str | None, series: int | None, cache_bytes: int, stack: ExitStack) -> Source | None:
    """None if the file is not a TIFF, or a TIFF that is stored as one piece or in unusual dimensions."""
    handle = stack.enter_context(path.open("rb"))
    if not TIFF_MAGIC.match(handle.read(4)):
        return None
    handle.seek(0)
    file = stack.enter_context(tifffile.TiffFile(handle))
    source = TiffSource(file, axes, series)
    check_pixels(source.shape)
    numbers = source.planes()
    if numbers is None or source.orientation != 1 or source.series.is_multifile:
        return None
    planes: _TiffPlanes
    offset = source.series.dataoffset if source.keyframe.is_final else None
    if offset is not None:
        planes = _RawPlanes(path, source.series, offset, stack.enter_context(path.open("rb", buffering=0)))
    elif len(source.series) * math.prod(source.keyframe.chunked) > 1:
        planes = _ChunkedPlanes(path, source.series, cache_bytes)
    else:
        return None
    return _TiffWindows(source, numbers, planes)


class _TiffWindows:
    """A TIFF by window."""

    streams = True

    def __init__(self, source: TiffSource, numbers: np.ndarray, planes: _TiffPlanes) -> None:
        self._source, self._numbers, self._planes = source, numbers, planes
        self._samples = source.keyframe.shaped[4]
        self.pages, self.height, self.width, self.channels = source.shape
        self.dtype = image_dtype(source.dtype)
        self.facts = source.facts
        self.bytes_needed = planes.bytes_needed

    def read(self, page: int, window: Window) -> np.ndarray:
        stored = self._stored(self._numbers[page], window)
        with np.errstate(over="ignore"):  # float64 beyond float32 is infinite
            return np.ascontiguousarray(self._source.resolved(stored[None])[0], dtype=self.dtype)

    def _stored(self, numbers: np.ndarray, window: Window) -> np.ndarray:
        planes, samples = np.divmod(numbers, self._samples)
        if np.array_equal(samples, np.arange(self._samples)) and (planes == planes[0]).all():
            return self._planes.read(int(planes[0]), window)
        out = np.empty((window.height, window.width, len(numbers)), self._source.series.dtype)
        for plane in np.unique(planes):
            channels = planes == plane
            out[..., channels] = self._planes.read(int(plane), window)[..., samples[channels]]
        return out


class _RawPlanes:
    """Planes that are stored uncompressed, one after another."""

    bytes_needed = 0

    def __init__(self, path: Path, series: tifffile.TiffPageSeries, offset: int, handle: io.FileIO) -> None:
        self._path, self._offset, self._handle = path, offset, handle
        self._separate, _, *self._size = series.keyframe.shaped  # rows, columns, samples
        self._dtype = series.dtype.newbyteorder(series.keyframe.parent.byteorder)
        end = offset + math.prod(series.shape) * self._dtype.itemsize
        size = path.stat().st_size
        if size < end:
            row = max(size - offset, 0) // (math.prod(self._size[1:]) * self._dtype.itemsize)
            plane, row = divmod(row, self._size[0])
            raise truncated(
                f"is truncated: the pixels from row {row} of page {plane // self._separate + 1} on lie beyond the "
                "end of the file. Copy or export it again."
            )

    def read(self, plane: int, window: Window) -> np.ndarray:
        height, width, samples = self._size
        out = np.empty((window.height, window.width, samples), self._dtype)
        pixel = samples * self._dtype.itemsize
        start = self._offset + ((plane * height + window.y0) * width + window.x0) * pixel
        with _part_errors(self._path, plane // self._separate, window):
            if window.width == width:
                self._fill(start, out)
            else:
                for number, row in enumerate(out):
                    self._fill(start + number * width * pixel, row)
        return out

    def _fill(self, start: int, out: np.ndarray) -> None:
        self._handle.seek(start)
        view, done = out.reshape(-1).view(np.uint8).data, 0
        while done < len(view):  # the system returns at most 2 GiB at once
            count = self._handle.readinto(view[done:])
            if not count:
                raise truncated("the file ends before its pixels do")
            done += count


class _ChunkedPlanes:
    """Planes in tiles or strips, usually compressed."""

    def __init__(self, path: Path, series: tifffile.TiffPageSeries, cache_bytes: int) -> None:
        self._path, self._series, self._page = path, series, series.keyframe
        self._separate, _, height, width, self._samples = self._page.shaped
        strip = min(self._page.rowsperstrip, height), width
        tile = (self._page.tilelength, self._page.tilewidth) if self._page.is_tiled else strip
        self._grid = _Grid(height, width, *tile)
        self._columns = -(-width // self._grid.columns)
        self._rows = -(-height // self._grid.rows)
        block = self._grid.rows * self._grid.columns * self._samples * series.dtype.itemsize
        _check_block(block)
        self._checked_page(series[0])
        self.bytes_needed = min(cache_bytes, math.prod(series.shape) * series.dtype.itemsize) + 2 * block
        self._recent = _Recent(cache_bytes)

    def read(self, plane: int, window: Window) -> np.ndarray:
        out = np.empty((window.height, window.width, self._samples), self._series.dtype)
        for row, column in self._grid.touched(window):
            block = self._recent.get((plane, row, column), lambda: self._decode(plane, row, column))  # noqa: B023
            _paste(out, window, block, self._grid.block(row, column))
        return out

    def _decode(self, plane: int, row: int, column: int) -> np.ndarray:
        """A tile, without the part that sticks out of the image."""
        place = self._grid.block(row, column)
        number, separate = divmod(plane, self._separate)
        with read_errors(self._path):
            page = self._checked_page(self._series[number])
        with _part_errors(self._path, number, place):
            pixels = decode_segment(page, self._page, (separate * self._rows + row) * self._columns + column)
            if pixels is None:  # a tile that was never written
                return np.full((place.height, place.width, self._samples), self._page.nodata, self._series.dtype)
            return pixels[0, : place.height, : place.width]

    def _checked_page(self, page: _Page | None) -> _Page:
        if page is None:
            raise UnreadableError("belongs to a set of files, of which another is missing. Put it next to this one.")
        if min(len(page.dataoffsets), len(page.databytecounts)) < math.prod(self._page.chunked):
            raise truncated("is truncated: its list of tiles is cut short. Copy or export it again.")
        return page


# Zarr


class _ZarrWindows:
    """A Zarr array by window."""

    streams = True

    def __init__(self, path: Path, image: ZarrImage, cache_bytes: int) -> None:
        self._path, self._array, self._axes = path, image.array, image.axes
        self._page_sizes = self._sizes("ZTI")
        self.pages = math.prod(self._page_sizes)
        (self.height,), (self.width,) = self._sizes("Y"), self._sizes("X")
        self.channels = math.prod(self._sizes("CS"))
        check_pixels((self.pages, self.height, self.width, self.channels))
        self.dtype = image_dtype(self._array.dtype)
        self.facts = FileFacts("Zarr", series=image.images, pixel_size=image.size.pixel, z_spacing=image.size.z)
        chunk = math.prod(self._array.chunks) * self._array.dtype.itemsize
        _check_block(chunk)
        total = math.prod(self._array.shape) * self._array.dtype.itemsize
        self._grid = _Grid(self.height, self.width, self._block_side("Y"), self._block_side("X"))
        block = self._grid.rows * self._grid.columns * self.channels * self._array.dtype.itemsize
        self.bytes_needed = min(cache_bytes, total) + 2 * max(chunk, block)
        self._recent = _Recent(cache_bytes)

    def read(self, page: int, window: Window) -> np.ndarray:
        out = np.empty((window.height, window.width, self.channels), self._array.dtype)
        for row, column in self._grid.touched(window):
            place = self._grid.block(row, column)
            block = self._recent.get((page, row, column), lambda: self._decode(page, place))  # noqa: B023
            _paste(out, window, block, place)
        with np.errstate(over="ignore"):
            return out.astype(self.dtype, copy=False)

    def _sizes(self, axes: str) -> list[int]:
        return [size for axis, size in zip(self._axes, self._array.shape, strict=True) if axis in axes]

    def _block_side(self, axis: str) -> int:
        index = self._axes.index(axis)
        chunk, size = self._array.chunks[index], self._array.shape[index]
        return max(min(chunk * -(-_LEAST_BLOCK // chunk), size), 1)

    def _decode(self, page: int, place: Window) -> np.ndarray:
        with _part_errors(self._path, page, place):
            stored = np.asarray(self._array[self._selection(page, place)])
        axes = [axis for axis in self._axes if axis in "YXCS"]
        order = sorted(range(stored.ndim), key=lambda index: "YXCS".index(axes[index]))
        return stored.transpose(order).reshape(place.height, place.width, self.channels)

    def _selection(self, page: int, place: Window) -> tuple[int | slice, ...]:
        numbers: Iterator[int] = iter(_unravel(page, self._page_sizes))
        ranges = dict(zip("YX", place.slices, strict=True))
        return tuple(next(numbers) if axis in "ZTI" else ranges.get(axis, slice(None)) for axis in self._axes)


def _unravel(number: int, sizes: Sequence[int]) -> list[int]:
    return [int(index) for index in np.unravel_index(number, tuple(sizes))] if sizes else []
