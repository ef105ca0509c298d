"""Does a mask lie on its image as it should, or would it fit far better flipped, turned or shifted?

The fit of a mask is the share of the image's variance that its classes explain (the correlation ratio, eta squared),
between 0 and 1. Large patches explain something wherever they lie, so the fit has to stand out from that of all shifts.
And a class may look like anything (a house with a white wall and a dark shop), so the borders of the classes have to
agree: they must lie on stronger edges of the image, too. S pixels is the side of a thumbnail.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import fft

SIDE = 64  # pixels of a thumbnail
CHANNELS = 3  # of the image that are looked at
CLASSES = 6  # of the mask: the largest ones
REACH = 0.25  # of the side: how far a mask may have moved
CLEAR_GAIN, CLEAR_FACTOR = 0.12, 1.6  # how much better something must fit than the mask as it is
EDGE_FACTOR = 1.05  # how much stronger the edges below its borders must be
OUTSTANDING = 12.0  # standard deviations that it must be above the fits of all shifts
LARGE, LARGE_OUTSTANDING = 0.6, 4.0  # the same for a large fit, as of a scene's road and sky


@dataclass(frozen=True)
class Fit:
    """How well a mask fits its image as it is, and in the best other way."""

    now: float
    best: float
    way: str  # "flipped top to bottom", "moved 12 pixels down and 3 pixels left", ...
    edges: float = 1.0  # strength of the image's edges below the borders of the best way, relative to those now
    deviations: float = 0.0  # of the fits of all shifts, by which the best is above their mean

    @property
    def is_clear(self) -> bool:
        """Whether the other way is far better."""
        better = self.best > max(self.now + CLEAR_GAIN, CLEAR_FACTOR * self.now)
        enough = LARGE_OUTSTANDING if self.best > LARGE else OUTSTANDING
        return better and self.edges > EDGE_FACTOR and self.deviations > enough


def fit_of(image: np.ndarray, labels: np.ndarray) -> Fit | None:
    """Compare the ways in which a mask could lie on its image.

    Args:
        image: H x W x C of any type.
        labels: H x W integers; the largest classes are compared.

    Returns:
        None if the image or the mask shows nothing.
    """
    small = _thumbnail(image)
    classes = _indicators(labels)
    if small is None or classes is None:
        return None
    now = _explained(small, classes)
    if CLEAR_FACTOR * now >= 1:  # nothing could fit far better
        return Fit(now, now, "")
    square = labels.shape[0] == labels.shape[1]
    ways = [way for way in _WAYS if square or way not in _TURNED]
    best, way = max((_explained(small, _moved(classes, way)), way) for way in ways)
    moved = _moved(classes, way)
    shifts = _shifts(small, classes)
    shifted, (down, right) = _best_shift(shifts)
    if shifted > best:
        height, width = labels.shape
        best, way = shifted, _shift_text(down * height / SIDE, right * width / SIDE)
        moved = np.roll(classes, (down, right), (1, 2))
    edges = _edge_strength(small, moved) / _edge_strength(small, classes)
    return Fit(now, best, way, edges, float((best - shifts.mean()) / max(float(shifts.std()), 1e-9)))


_TURNS = {
    "turned by 90 degrees to the left": 1,
    "turned by 90 degrees to the right": 3,
}
_TURNED = (*_TURNS, "mirrored on its diagonal", "mirrored on its other diagonal")  # of square images alone
_WAYS = ("flipped top to bottom", "flipped left to right", "turned by 180 degrees", *_TURNED)


def _moved(classes: np.ndarray, way: str) -> np.ndarray:
    """K x S x S indicators, moved in one of `_WAYS`."""
    if way in _TURNS:
        return np.rot90(classes, _TURNS[way], axes=(1, 2))
    if way == "mirrored on its diagonal":
        return classes.transpose(0, 2, 1)
    if way == "mirrored on its other diagonal":
        return classes[:, ::-1, ::-1].transpose(0, 2, 1)
    rows = -1 if way != "flipped left to right" else 1
    columns = -1 if way != "flipped top to bottom" else 1
    return classes[:, ::rows, ::columns]


def _thumbnail(image: np.ndarray) -> np.ndarray | None:
    """C x S x S, each channel with mean 0 and variance 1; None if all are constant."""
    chosen = np.ascontiguousarray(image[..., :CHANNELS])
    if chosen.dtype not in (np.uint8, np.uint16, np.float32):
        chosen = chosen.astype(np.float32)
    small = cv2.resize(chosen, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    planes = small.reshape(SIDE, SIDE, -1).transpose(2, 0, 1)
    planes = planes - planes.mean((1, 2), keepdims=True)
    deviation = planes.std((1, 2), keepdims=True)
    kept = deviation.ravel() > 1e-6 * max(float(np.abs(small).max()), 1e-30)
    return planes[kept] / deviation[kept] if kept.any() else None


def _indicators(labels: np.ndarray) -> np.ndarray | None:
    """K x S x S float32: where each of the largest classes is; the last one is all the rest. None if there is one."""
    height, width = labels.shape
    rows = (np.arange(SIDE) * height + height // 2) // SIDE
    columns = (np.arange(SIDE) * width + width // 2) // SIDE
    small = labels[rows.clip(max=height - 1)[:, None], columns.clip(max=width - 1)]
    values, counts = np.unique(small, return_counts=True)
    if len(values) < 2:
        return None
    largest = values[np.argsort(-counts)[:CLASSES]]
    planes = np.array([small == value for value in largest], np.float32)
    rest = 1 - planes.sum(0, keepdims=True)
    return np.concatenate([planes, rest]) if rest.any() else planes


def _explained(image: np.ndarray, classes: np.ndarray) -> float:
    """Share of the variance of C x S x S that K x S x S indicators explain, mean over the channels."""
    flat, weights = image.reshape(len(image), -1), classes.reshape(len(classes), -1)
    sums, counts = flat @ weights.T, weights.sum(1)
    return float((sums**2 / counts).sum() / flat.size)


def _edge_strength(image: np.ndarray, classes: np.ndarray) -> float:
    """Mean gradient of C x S x S on the borders of K x S x S classes; above 0."""
    down, right = np.gradient(image, axis=(1, 2))
    strength = np.sqrt(down**2 + right**2).sum(0)
    labels = classes.argmax(0)
    border = np.zeros(labels.shape, bool)
    border[1:] |= labels[1:] != labels[:-1]
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    return float(strength[border].mean()) + 1e-6 if border.any() else 1e-6


def _shifts(image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """S x S: the share that the classes explain when they are moved so many rows down and columns to the right."""
    spectrum = fft.rfft2(image)
    total = np.zeros((SIDE, SIDE), np.float32)
    for plane, count in zip(classes, classes.sum((1, 2)), strict=True):
        sums = fft.irfft2(spectrum * np.conj(fft.rfft2(plane)), (SIDE, SIDE))
        total += (sums**2).sum(0) / count
    return total / image.size


def _best_shift(shifts: np.ndarray) -> tuple[float, tuple[int, int]]:
    """The best share of all shifts within reach, and that shift (down, right), in pixels of the thumbnail."""
    reach = int(REACH * SIDE)
    near = np.roll(shifts, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]
    down, right = np.unravel_index(int(near.argmax()), near.shape)
    return float(near.max()), (int(down) - reach, int(right) - reach)


def _shift_text(down: float, right: float) -> str:
    parts: Iterator[str] = (
        f"{abs(round(by))} pixels {word}"
        for by, word in ((down, "down" if down > 0 else "up"), (right, "right" if right > 0 else "left"))
        if round(by)
    )
    return f"moved {' and '.join(parts)}"
