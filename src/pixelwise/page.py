"""One page of an image as the network wants it: its channels, its scale, its intensities, window by window."""

from collections.abc import Callable

import numpy as np

from pixelwise.data.normalize import match_channels, require_finite
from pixelwise.data.sampling import resize
from pixelwise.data.sources import Source
from pixelwise.errors import DataError
from pixelwise.inference import cut
from pixelwise.memory import held_bytes, size_text
from pixelwise.predict import Predictor
from pixelwise.tiling import Plan, Tile


class Page:
    """A page of an open image, to be read by one thread at a time.

    Attributes:
        number: of the page.
        height: rows, after `data.scale`.
        width: columns, after `data.scale`.
        is_scaled: whether `data.scale` is not 1; the page is then held as a whole.
    """

    def __init__(
        self, predictor: Predictor, source: Source, number: int, check: Callable[[], None] = lambda: None
    ) -> None:
        self.number = number
        self._check = check  # is called before each reading, and may raise to end it
        self._source, self._predictor = source, predictor
        self._channels, scale = predictor.config.data.channels, predictor.config.data.scale
        self.is_scaled = scale != 1
        self.height, self.width = source.height, source.width
        self._scaled: np.ndarray | None = None
        if self.is_scaled:
            self._check_room()
            self._scaled = resize(self._from_source(0, source.height, 0, source.width), scale)
            self.height, self.width = self._scaled.shape[:2]
        self._figures: tuple[np.ndarray, np.ndarray] | None = None

    def _check_room(self) -> None:
        """An image that is scaled is read whole."""
        source, limit = self._source, self._predictor.limit
        needed = source.height * source.width * source.channels * (source.dtype.itemsize + 4) if source.streams else 0
        if held_bytes() + needed > limit:
            raise DataError(
                f"is scaled by data.scale as a whole, which takes {size_text(needed)} of memory beside the "
                f"{size_text(held_bytes())} that are held already, and {size_text(limit)} are allowed. Allow more."
            )

    def _from_source(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        self._check()
        pixels = match_channels(self._source.read(self.number, y0, y1, x0, x1), self._channels)
        try:
            require_finite(pixels)
        except DataError as error:
            raise DataError(f"rows {y0} to {y1 - 1}, columns {x0} to {x1 - 1}: {error}") from error
        return pixels

    @property
    def bytes_held(self) -> int:
        """What the scaled page takes; what the source takes is its own."""
        return 0 if self._scaled is None else self._scaled.nbytes

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Pixels of a window of the scaled image."""
        if self._scaled is not None:
            return self._scaled[y0:y1, x0:x1]
        return self._from_source(y0, y1, x0, x1)

    def window(self, plan: Plan, tile: Tile) -> np.ndarray:
        """A tile's window, C x h x w float32, normalised by figures of the whole page."""
        return np.ascontiguousarray(self._normalized(cut(self.read, plan, tile)).transpose(2, 0, 1))

    def normalized(self, height: int, width: int) -> np.ndarray:
        """The first rows and columns, height x width x C float32, normalised by figures of the whole page."""
        return self._normalized(self.read(0, height, 0, width))

    def _normalized(self, pixels: np.ndarray) -> np.ndarray:
        if self._figures is None:
            source = self._source
            self._figures = self._predictor.normalization.figures(
                self._from_source, source.height, source.width, self._channels, source.dtype
            )
        gain, offset = self._figures
        return pixels.astype(np.float32) * gain + offset
