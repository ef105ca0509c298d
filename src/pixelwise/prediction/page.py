"""A page of an image as the network wants it: its channels, intensities and scale, window by window."""

from copy import copy
from functools import cached_property

import numpy as np

from pixelwise.core.config import DataSettings
from pixelwise.core.errors import UnreadableError
from pixelwise.core.windows import Read, Window, reader
from pixelwise.data.files.facts import FileFacts
from pixelwise.data.files.sources import Source
from pixelwise.data.pixels.normalize import (
    HIGH,
    LOW,
    Normalization,
    Numbers,
    match_channels,
    medians,
    require_finite,
    sampled,
    with_data,
)
from pixelwise.prediction.tiling import Shape, Tile, Tiling

_GLANCED = 512  # pixels; side of the parts of a large page that tell how bright it is
_PARTS = 8  # of them along each axis


class Page:
    """A page of an image in a file or in memory; one thread may read it at a time.

    Args:
        read: gives windows of the page, h x w x C.
        shape: height, width and channels of the page.
        numbers: what its numbers mean.
        settings: of the data that the network was trained on: channels and normalisation.
    """

    def __init__(self, read: Read, shape: tuple[int, ...], numbers: Numbers, settings: DataSettings) -> None:
        self.shape: Shape = (shape[0], shape[1])
        self.numbers = numbers
        self._read, self._channels, self._settings = read, shape[2], settings
        self._top, self._left = 0, 0

    @classmethod
    def of_array(cls, image: np.ndarray, settings: DataSettings, facts: FileFacts | None = None) -> "Page":
        """The page that is an H x W x C array; `facts` are those of its file."""
        return cls(reader(image), image.shape, Numbers.of(image.dtype, facts, settings.nodata), settings)

    @classmethod
    def of_source(cls, source: Source, number: int, settings: DataSettings) -> "Page":
        """A page of an open image."""
        shape = source.height, source.width, source.channels
        numbers = Numbers.of(source.dtype, source.facts, settings.nodata)
        return cls(lambda window: source.read(number, window), shape, numbers, settings)

    def read(self, window: Window) -> np.ndarray:
        """Pixels of a window, with the network's channels; those without data have the median of the page's others.

        Raises:
            DataError: it cannot be read, or holds NaN. ModelError: the channels do not fit.
        """
        pixels = self._read(window.moved(self._top, self._left))
        valid = self.numbers.valid(pixels)
        if valid is not None and not valid.all():
            pixels = np.where(valid[..., None], pixels, self._medians)
        return self._fitted(pixels, window, None)

    def _stored(self, window: Window) -> np.ndarray:
        """The same, but pixels without data are as they are stored."""
        return self._fitted(self._read(window.moved(self._top, self._left)), window, self.numbers.nodata)

    def _fitted(self, pixels: np.ndarray, window: Window, nodata: float | None) -> np.ndarray:
        """The network's channels of a window's pixels; those that are not `nodata` must be finite."""
        pixels = match_channels(pixels, self._settings.channels)
        try:
            require_finite(with_data(pixels, nodata))
        except UnreadableError as error:
            if window == Window.whole(*self.shape):
                raise
            y0, y1, x0, x1 = window.moved(self._top, self._left)
            raise error.about(f"rows {y0} to {y1 - 1}, columns {x0} to {x1 - 1}") from error
        return pixels

    def valid(self, window: Window) -> np.ndarray | None:
        """Which pixels of a window hold data, h x w bool; None if all may, because no value stands for missing ones."""
        if self.numbers.nodata is None:
            return None
        return self.numbers.valid(self._read(window.moved(self._top, self._left)))

    @cached_property
    def missing_share(self) -> float:
        """The share of the page's pixels that hold no data, counted on a regular grid if the page is large."""
        if self.numbers.nodata is None:
            return 0.0
        return 1 - len(self._sample[0]) / self._sample[1]

    def level(self) -> tuple[float, float]:
        """1st and 99th percentile of the intensities, on the scale of 0 to 1; of a large page those of some parts."""
        glance = self._glance()
        if not glance.size:
            return 0.0, 0.0
        low, high = np.percentile(glance, (LOW, HIGH)) * self.numbers.unit
        return float(low), float(high)

    def _glance(self) -> np.ndarray:
        """S x C pixels that hold data, of the whole page or of parts spread evenly over a large one."""
        height, width = self.shape
        if height * width <= _GLANCED**2 * _PARTS**2:
            return self._sample[0]
        tops, lefts = (np.linspace(0, length - _GLANCED, _PARTS).astype(int).clip(0) for length in self.shape)
        places = (Window(y, y + _GLANCED, x, x + _GLANCED).within(height, width) for y in tops for x in lefts)
        return np.concatenate([with_data(self._read(place), self.numbers.nodata) for place in places])

    def window(self, tiling: Tiling, tile: Tile) -> np.ndarray:
        """A tile's window, C x h x w float32, scaled, and normalised by figures of the whole page."""
        gain, offset = self._figures
        return planes_of(cut(self.read, tiling, tile).astype(np.float32) * gain + offset)

    def crop(self, part: Window) -> "Page":
        """A part of the page as a page of its own, normalised by the figures of this one."""
        crop = copy(self)
        crop._figures = self._figures
        if self.numbers.nodata is not None:
            crop._medians = self._medians
        crop.shape = part.height, part.width
        crop._top, crop._left = self._top + part.y0, self._left + part.x0
        return crop

    @cached_property
    def _figures(self) -> tuple[np.ndarray, np.ndarray]:
        """Gain and offset of each channel."""
        normalization = Normalization.from_settings(self._settings)
        return normalization.figures(self._stored, (*self.shape, self._settings.channels), self.numbers)

    @cached_property
    def _sample(self) -> tuple[np.ndarray, int]:
        """S x C pixels that hold data, on a regular grid, and how many were looked at."""
        every = sampled(self._read, *self.shape, self._channels)
        return with_data(every, self.numbers.nodata), len(every)

    @cached_property
    def _medians(self) -> np.ndarray:
        """C values for pixels without data."""
        return medians(self._sample[0])


def planes_of(image: np.ndarray) -> np.ndarray:
    """H x W x C -> C x H x W, as a network takes it."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def cut(read: Read, tiling: Tiling, tile: Tile) -> np.ndarray:
    """The tile's window of an image, h x w x C, scaled and extended beyond the image's border as the tiling says."""
    y0, y1, x0, x1 = tile.window
    height, width = tiling.seen_shape
    rows, columns = _inside(y0, y1, height, tiling.border), _inside(x0, x1, width, tiling.border)
    top, left = rows.min(), columns.min()
    needed = Window(int(top), int(rows.max()) + 1, int(left), int(columns.max()) + 1)
    block = read(needed) if tiling.scaling is None else tiling.scaling.read(read, needed)
    if block.shape[:2] == (len(rows), len(columns)) and rows[0] == top and columns[0] == left:
        return block
    return np.asarray(block[(rows - top)[:, None], columns - left])


def _inside(start: int, end: int, length: int, border: str) -> np.ndarray:
    """Indices `start` to `end`, those beyond 0 to `length` - 1 brought back.

    >>> _inside(-2, 6, 4, "reflect").tolist(), _inside(-2, 6, 4, "edge").tolist()
    ([2, 1, 0, 1, 2, 3, 2, 1], [0, 0, 0, 1, 2, 3, 3, 3])
    """
    indices = np.arange(start, end)
    if border == "edge":
        return indices.clip(0, length - 1)
    period = max(2 * (length - 1), 1)
    folded = indices % period
    return np.minimum(folded, period - folded) if length > 1 else np.zeros_like(indices)
