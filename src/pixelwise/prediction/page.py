"""A page of an image as the network wants it: its channels, intensities and scale, window by window."""

from copy import copy
from functools import cached_property

import numpy as np

from pixelwise.core.config import DataSettings
from pixelwise.core.errors import DataError
from pixelwise.core.windows import Read, Window, reader
from pixelwise.data.files.sources import Source
from pixelwise.data.pixels.normalize import Normalization, match_channels, require_finite
from pixelwise.prediction.tiling import Shape, Tile, Tiling


class Page:
    """A page of an image in a file or in memory; one thread may read it at a time.

    Args:
        read: gives windows of the page, h x w x C.
        shape: height and width of the page in pixels.
        dtype: of its pixels.
        settings: of the data that the network was trained on: channels and normalisation.
    """

    def __init__(self, read: Read, shape: Shape, dtype: np.dtype, settings: DataSettings) -> None:
        self.shape = shape
        self._read, self._dtype, self._settings = read, dtype, settings
        self._top, self._left = 0, 0

    @classmethod
    def of_array(cls, image: np.ndarray, settings: DataSettings) -> "Page":
        """The page that is an H x W x C array."""
        return cls(reader(image), image.shape[:2], image.dtype, settings)

    @classmethod
    def of_source(cls, source: Source, number: int, settings: DataSettings) -> "Page":
        """A page of an open image."""
        return cls(lambda window: source.read(number, window), (source.height, source.width), source.dtype, settings)

    def read(self, window: Window) -> np.ndarray:
        """Pixels of a window, with the network's channels.

        Raises:
            DataError: it cannot be read, or holds NaN. ModelError: the channels do not fit.
        """
        place = window.moved(self._top, self._left)
        pixels = match_channels(self._read(place), self._settings.channels)
        try:
            require_finite(pixels)
        except DataError as error:
            if window == Window.whole(*self.shape):
                raise
            y0, y1, x0, x1 = place
            raise DataError(f"rows {y0} to {y1 - 1}, columns {x0} to {x1 - 1}: {error}") from error
        return pixels

    def window(self, tiling: Tiling, tile: Tile) -> np.ndarray:
        """A tile's window, C x h x w float32, scaled, and normalised by figures of the whole page."""
        gain, offset = self._figures
        return planes_of(cut(self.read, tiling, tile).astype(np.float32) * gain + offset)

    def crop(self, part: Window) -> "Page":
        """A part of the page as a page of its own, normalised by the figures of this one."""
        crop = copy(self)
        crop.shape = part.height, part.width
        crop._figures = self._figures
        crop._top, crop._left = self._top + part.y0, self._left + part.x0
        return crop

    @cached_property
    def _figures(self) -> tuple[np.ndarray, np.ndarray]:
        """Gain and offset of each channel."""
        normalization = Normalization.from_settings(self._settings)
        return normalization.figures(self.read, *self.shape, self._settings.channels, self._dtype)


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
