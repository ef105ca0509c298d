"""One page of an image as the network wants it: its channels, its intensities, its scale, window by window."""

from collections.abc import Callable

import numpy as np

from pixelwise.core.errors import DataError
from pixelwise.core.windows import Window
from pixelwise.data.files.sources import Source
from pixelwise.data.pixels.normalize import match_channels, require_finite
from pixelwise.prediction.predictor import Predictor
from pixelwise.prediction.runner import cut, planes_of
from pixelwise.prediction.tiling import Tile, Tiling


class Page:
    """A page of an open image, to be read by one thread at a time.

    Attributes:
        number: of the page.
        height: rows.
        width: columns.
    """

    def __init__(
        self, predictor: Predictor, source: Source, number: int, check: Callable[[], None] = lambda: None
    ) -> None:
        self.number = number
        self._check = check  # is called before each reading, and may raise to end it
        self._source, self._predictor = source, predictor
        self._channels = predictor.config.data.channels
        self.height, self.width = source.height, source.width
        self._figures: tuple[np.ndarray, np.ndarray] | None = None

    def read(self, window: Window) -> np.ndarray:
        """Pixels of a window, with the network's channels.

        Raises:
            DataError: it cannot be read, or holds NaN. ModelError: the channels do not fit.
        """
        self._check()
        pixels = match_channels(self._source.read(self.number, window), self._channels)
        try:
            require_finite(pixels)
        except DataError as error:
            y0, y1, x0, x1 = window
            raise DataError(f"rows {y0} to {y1 - 1}, columns {x0} to {x1 - 1}: {error}") from error
        return pixels

    def window(self, plan: Tiling, tile: Tile) -> np.ndarray:
        """A tile's window, C x h x w float32, scaled, and normalised by figures of the whole page."""
        if self._figures is None:
            self._figures = self._predictor.normalization.figures(
                self.read, self.height, self.width, self._channels, self._source.dtype
            )
        gain, offset = self._figures
        return planes_of(cut(self.read, plan, tile).astype(np.float32) * gain + offset)
