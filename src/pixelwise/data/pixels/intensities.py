"""The figures of an image's intensities: level, contrast, mean and variance, of the pixels that hold data."""

from dataclasses import dataclass

import numpy as np

from pixelwise.core.windows import reader
from pixelwise.data.files.facts import FileFacts, valid_pixels
from pixelwise.data.pixels.counting import count_bytes
from pixelwise.data.pixels.normalize import HIGH, LOW, SAMPLED, percentile_range, unit_scale


@dataclass(frozen=True)
class Intensities:
    """In units of `normalize.unit_scale`, of P x H x W x C pixels together."""

    low: float  # 1st percentile over all channels
    high: float  # 99th
    mean: np.ndarray  # C
    variance: np.ndarray  # C
    is_constant: bool
    missing: float = 0.0  # share of the pixels without data


def intensities(pixels: np.ndarray, facts: FileFacts) -> Intensities:
    """The figures of an image.

    Args:
        pixels: P x H x W x C of any type.
        facts: of its file; pixels without data do not count.

    >>> found = intensities(np.full((1, 2, 2, 1), 255, np.uint8), FileFacts("PNG"))
    >>> found.mean.tolist(), found.is_constant
    ([1.0], True)
    """
    _, _, width, channels = pixels.shape
    scale = unit_scale(pixels.dtype, facts.full_scale)
    valid = valid_pixels(pixels, facts)
    if valid is not None and valid.all():
        valid = None
    missing = 0.0 if valid is None else float(1 - valid.mean())
    flat = pixels.reshape(-1, channels) if valid is None else pixels[valid]
    if pixels.dtype == np.uint8 and 0 < flat.size <= SAMPLED:
        found = _of_counts(np.array([count_bytes(channel) for channel in flat.T]))
    else:
        tall = pixels.reshape(-1, width, channels)
        low, high = percentile_range(reader(tall), *tall.shape, nodata=None if valid is None else facts.nodata)
        flat = flat if len(flat) else np.zeros((1, channels), pixels.dtype)
        mean, variance = flat.mean(0, dtype=np.float64), flat.var(0, dtype=np.float64)
        found = Intensities(low, high, mean, variance, bool((flat == flat[0]).all()))
    return Intensities(
        found.low * scale, found.high * scale, found.mean * scale, found.variance * scale**2, found.is_constant, missing
    )


def _of_counts(counts: np.ndarray) -> Intensities:
    """The same from C x 256 numbers of pixels with each value, which is exact and several times as fast."""
    values, pixels = np.arange(256.0), counts[0].sum()
    mean = counts @ values / pixels
    variance = np.array(
        [(row * (values - middle) ** 2).sum() / pixels for row, middle in zip(counts, mean, strict=True)]
    )
    low, high = _percentiles(counts.sum(0))
    is_constant = bool((np.count_nonzero(counts, axis=1) == 1).all())
    return Intensities(low, high if high > low else low + max(1.0, low), mean, variance, is_constant)


def _percentiles(counts: np.ndarray) -> tuple[float, float]:
    """As `percentile_range`, of 256 numbers of values."""
    total = np.cumsum(counts)
    places = np.array([LOW, HIGH]) / 100 * (total[-1] - 1)
    below, above = (np.searchsorted(total, rounded(places), side="right") for rounded in (np.floor, np.ceil))
    low, high = below + (above - below) * (places - np.floor(places))
    if low == high:
        present = np.flatnonzero(counts)
        return float(present[0]), float(present[-1])
    return float(low), float(high)
