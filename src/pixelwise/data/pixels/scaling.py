"""Images scaled to the network's size, and its logits scaled back, any window of them alone.

An axis of `before` samples becomes one of `after`. Both cover the same extent: sample i of n lies at (i + 0.5) / n of
it ("align_corners=False"). Images that become smaller are averaged by area; those that become larger are interpolated
linearly, as are logits. Weights follow from places on the whole axis, in whole numbers, and each result is summed in
the order of its samples; so a window that is computed alone equals the same window of the whole.

K classes, C channels, H x W pixels of the image, h x w of the scaled image.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.sparse import csr_array

from pixelwise.core.windows import Read, Window, reader

Taps = tuple[np.ndarray, np.ndarray]  # (results, taps) -> the index of a sample, and its weight

BAND_PIXELS = 2**19  # of the image, about, are read at a time


@dataclass(frozen=True)
class Axis:
    """One axis of a resampling, either by area or linear."""

    before: int
    after: int
    by_area: bool

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """First and last (exclusive) sample that the results `start` to `stop` depend on.

        >>> Axis(10, 4, by_area=True).needs(1, 3), Axis(4, 10, by_area=False).needs(1, 3)
        ((2, 8), (0, 2))
        """
        if self.by_area:
            return start * self.before // self.after, -(-stop * self.before // self.after)
        return max(self._below(start), 0), min(self._below(stop - 1) + 2, self.before)

    def _below(self, result: int) -> int:
        """The last sample whose centre does not lie beyond that of a result; -1 before the first."""
        return ((2 * result + 1) * self.before - self.after) // (2 * self.after)

    def first_beyond(self, sample: int) -> int:
        """The first result whose centre is not before that of a sample, in linear interpolation.

        >>> axis = Axis(4, 8, by_area=False)
        >>> [axis.first_beyond(sample) for sample in range(5)]
        [0, 3, 5, 7, 8]
        """
        if sample <= 0:
            return 0
        if sample >= self.before:
            return self.after
        return -(-((2 * sample + 1) * self.after - self.before) // (2 * self.before))

    def weights(self, start: int, stop: int, first: int) -> csr_array:
        """The matrix that turns samples, from `first` to the last needed, into the results `start` to `stop`."""
        results = np.arange(start, stop, dtype=np.int64)
        samples, weights = self._area(results) if self.by_area else self._linear(results)
        is_used = weights > 0
        ends = np.concatenate([[0], is_used.sum(1).cumsum()])
        shape = (stop - start, self.needs(start, stop)[1] - first)
        return csr_array((weights[is_used], samples[is_used] - first, ends), shape=shape)

    def _area(self, results: np.ndarray) -> Taps:
        """Shares of the samples that a result covers; a sample is `after` wide, a result `before`."""
        starts = (results * self.before)[:, None]
        samples = starts // self.after + np.arange(-(-self.before // self.after) + 1)
        shared = np.minimum(starts + self.before, (samples + 1) * self.after) - np.maximum(starts, samples * self.after)
        return samples, shared.clip(0) / self.before

    def _linear(self, results: np.ndarray) -> Taps:
        """The two samples around the centre of a result; the first and the last sample continue beyond the ends."""
        places = (2 * results + 1) * self.before - self.after
        below = places // (2 * self.after)
        share = (places - below * 2 * self.after) / (2 * self.after)
        samples = np.stack([below, below + 1], axis=1)
        weights = np.stack([1 - share, share], axis=1)
        weights[below < 0] = 0, 1
        weights[below >= self.before - 1] = 1, 0
        return samples, weights


@dataclass(frozen=True)
class Scaling:
    """An image of `rows[0]` x `columns[0]` pixels and its scaled one, of `rows[1]` x `columns[1]`.

    Fields:
        rows, columns: pixels before and after.

    >>> scaling = Scaling.by(5, 8, 0.5)
    >>> scaling.height, scaling.width
    (2, 4)
    """

    rows: tuple[int, int]
    columns: tuple[int, int]

    @classmethod
    def by(cls, height: int, width: int, scale: float) -> "Scaling":
        """The scaling of an image of this size; the scaled one has at least one pixel."""
        after = (max(1, round(length * scale)) for length in (height, width))
        return cls((height, next(after)), (width, next(after)))

    @property
    def height(self) -> int:
        """Rows of the scaled image."""
        return self.rows[1]

    @property
    def width(self) -> int:
        """Columns of the scaled image."""
        return self.columns[1]

    def source(self, window: Window) -> Window:
        """The window of the image that a window of the scaled image depends on."""
        y0, y1, x0, x1 = window
        return Window(*_down(self.rows).needs(y0, y1), *_down(self.columns).needs(x0, x1))

    def read(self, read: Read, window: Window) -> np.ndarray:
        """A window of the scaled image, h x w x C, from an image that is read by window, band by band.

        It has the image's type if that is uint8, uint16 or float32 (rounded, halves upwards), else float32.
        """
        source = self.source(window)
        columns = _down(self.columns).weights(window.x0, window.x1, source.x0)
        band = max(1, BAND_PIXELS * window.height // (source.height * source.width))
        blocks = []
        for start in range(window.y0, window.y1, band):
            stop = min(start + band, window.y1)
            top, bottom = _down(self.rows).needs(start, stop)
            block = read(source._replace(y0=top, y1=bottom))
            rows = _down(self.rows).weights(start, stop, top)
            blocks.append(_as_type(_scaled(block.astype(np.float32, copy=False), rows, columns), block.dtype))
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def owned(self, window: Window) -> Window:
        """The part of the image whose logits follow from a window of scaled logits and one more row and column.

        Adjacent windows own adjacent parts; a part may be empty if the image is smaller than the scaled one.
        """
        rows, columns = _up(self.rows), _up(self.columns)
        return Window(*map(rows.first_beyond, window[:2]), *map(columns.first_beyond, window[2:]))

    def back(self, logits: np.ndarray, place: Window, owned: Window) -> np.ndarray:
        """Logits of a window of the image, K x h x w, from those of the scaled image.

        Args:
            logits: K x rows x columns of the scaled image.
            place: the window of the scaled image that they belong to.
            owned: the window of the image, which depends on these logits alone.
        """
        y0, y1, x0, x1 = owned
        needed = Window(*_up(self.rows).needs(y0, y1), *_up(self.columns).needs(x0, x1))
        used = needed.moved(-place.y0, -place.x0)
        assert used == used.within(*logits.shape[1:]), (needed, place, logits.shape)
        rows = _up(self.rows).weights(y0, y1, needed.y0).astype(logits.dtype)
        columns = _up(self.columns).weights(x0, x1, needed.x0).astype(logits.dtype)
        out = np.empty((len(logits), owned.height, owned.width), logits.dtype)
        for plane, result in zip(logits[:, *used.slices], out, strict=True):
            result[:] = rows @ cv2.transpose(columns @ cv2.transpose(plane))
        return out


def _down(lengths: tuple[int, int]) -> Axis:
    """From the image to the scaled image."""
    return Axis(*lengths, by_area=lengths[1] < lengths[0])


def _up(lengths: tuple[int, int]) -> Axis:
    """From the scaled image to the image."""
    return Axis(lengths[1], lengths[0], by_area=False)


def _scaled(image: np.ndarray, rows: csr_array, columns: csr_array) -> np.ndarray:
    """H x W x C float32 -> h x w x C."""
    low = (rows.astype(np.float32) @ image.reshape(len(image), -1)).reshape(-1, *image.shape[1:])
    across = columns.astype(np.float32)
    planes = [cv2.transpose(across @ cv2.transpose(low[..., channel])) for channel in range(image.shape[2])]
    return np.stack(planes, axis=2)


def _as_type(scaled: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.floor(scaled + 0.5).astype(dtype) if dtype in (np.uint8, np.uint16) else scaled


def resize(image: np.ndarray, scale: float, nearest: bool = False) -> np.ndarray:
    """Resize an image, H x W x C, by `scale`, to at least one pixel: by area if it shrinks, else linearly.

    `nearest` is for labels, H x W, which take the value of the nearest pixel.

    >>> resize(np.array([[[0], [2]], [[4], [6]]], np.uint8), 0.5).tolist()
    [[[3]]]
    """
    if scale == 1:
        return image
    scaling = Scaling.by(image.shape[0], image.shape[1], scale)
    if nearest:
        return cv2.resize(image, (scaling.width, scaling.height), interpolation=cv2.INTER_NEAREST_EXACT)
    return scaling.read(reader(image), Window.whole(scaling.height, scaling.width))
