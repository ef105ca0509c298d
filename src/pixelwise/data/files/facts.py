"""What a file says about its image besides the pixels."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Alpha = Literal["none", "dropped", "masks", "data"]

NODATA_TAG = 42113  # GDAL's
_HUGE = 1e30  # beyond it writers of a nodata value and of the pixels round differently: -3.4e38 means -3.4028235e38


@dataclass(frozen=True)
class GeoTags:
    """The tags of a GeoTIFF that place it on the earth: (code, type, count, value) each, as they are stored."""

    tags: tuple[tuple[int, int, int, Any], ...]


@dataclass(frozen=True)
class FileFacts:
    """What a file says about its image besides the pixels."""

    format: str  # "PNG", "JPEG", "TIFF", "Zarr", ...
    orientation: int = 1  # 1 to 8 as in EXIF: the turn that the file asks for, which readers apply
    full_scale: float | None = None  # the value of full intensity where the file states its bits; None: the type's own
    nodata: float | None = None  # the value of pixels without data, may be NaN
    series: int = 1  # images in the file; one of them is read
    alpha: Alpha = "none"  # what becomes of a transparency; "data": it holds many values and is kept as a channel
    photometric: bool = True  # False: a TIFF that does not say whether 0 is black or white
    palette: np.ndarray | None = field(default=None, compare=False)  # entries x 3 uint8
    geo: GeoTags | None = None
    pixel_size: float | None = None  # micrometres; None if unknown, or if rows and columns differ
    z_spacing: float | None = None  # micrometres between the pages of a stack

    def notes(self) -> list[str]:
        """What a user should know about how the file is read, each the end of a sentence that begins with its name."""
        found = {
            f"holds {self.series} images; one is read, by default the largest (choose another with --series)": (
                self.series > 1
            ),
            "has an alpha channel of many values, which is kept as a channel of data": self.alpha == "data",
            "has an alpha channel (transparency), which is left out": self.alpha == "dropped",
            "does not say whether 0 is black or white (no photometric tag); 0 is read as black": not self.photometric,
        }
        return [note for note, holds in found.items() if holds]


@dataclass(frozen=True)
class Placement:
    """Where the pixels of a mask lie, and which of them mean nothing: what a TIFF of it says besides."""

    geo: GeoTags | None = None
    nodata: float | None = None
    z_spacing: float | None = None  # micrometres

    @property
    def extra_tags(self) -> list[tuple[int, int, int, Any, bool]]:
        """For tifffile; of a pyramid only its first level has them."""
        tags = [(*tag, True) for tag in self.geo.tags] if self.geo else []
        if self.nodata is not None:
            tags.append((NODATA_TAG, 2, 0, f"{self.nodata:.17g}", True))
        return tags


@dataclass(frozen=True)
class Picture:
    """Pixels or labels of a file, with what the file says about them."""

    pixels: np.ndarray
    facts: FileFacts


def valid_pixels(pixels: np.ndarray, nodata: FileFacts | float | None) -> np.ndarray | None:
    """Which pixels hold data; None if all may, because no value stands for missing ones.

    Args:
        pixels: ... x H x W x C of an image, or ... x H x W labels (C is then left out of the result's shape, too).
        nodata: the value of pixels without data, or the facts that name it. NaN stands for every NaN.

    Returns:
        Bool, of the shape of `pixels` without the last axis if that holds channels. A pixel of whole numbers is
        without data if all of its channels hold the value, one of floats if any does.
        Arrays of 3 or more dimensions are taken as images; `valid_labels` is for labels.

    >>> valid_pixels(np.array([[[0, 1], [0, 0]]], np.uint8), 0).tolist()
    [[True, False]]
    """
    value = nodata.nodata if isinstance(nodata, FileFacts) else nodata
    if value is None:
        return None
    missing = equals_nodata(pixels, value)
    has_floats = np.issubdtype(pixels.dtype, np.floating)
    return np.asarray(~(missing.any(-1) if has_floats else missing.all(-1)))


def valid_labels(labels: np.ndarray, nodata: FileFacts | float | None) -> np.ndarray | None:
    """Which labels of a mask, P x H x W or P x H x W x 3 colours, hold data; as `valid_pixels`.

    >>> valid_labels(np.array([[[0, 9]]]), 9).tolist()
    [[[True, False]]]
    """
    return valid_pixels(labels if labels.ndim == 4 else labels[..., None], nodata)


def equals_nodata(pixels: np.ndarray, value: float) -> np.ndarray:
    """Where an array holds a nodata value; a value that its type cannot hold occurs nowhere."""
    if np.issubdtype(pixels.dtype, np.floating):
        if math.isnan(value):
            return np.asarray(np.isnan(pixels))
        if abs(value) > _HUGE:
            return np.asarray(pixels * np.sign(value) > 0.99 * min(abs(value), float(np.finfo(pixels.dtype).max)))
        return np.asarray(pixels == pixels.dtype.type(value))
    limits = np.iinfo(pixels.dtype if pixels.dtype != np.bool_ else np.uint8)
    if not float(value).is_integer() or not limits.min <= value <= limits.max:
        return np.zeros(pixels.shape, bool)
    return np.asarray(pixels == pixels.dtype.type(int(value)))


_USUAL = (999.0, 9999.0, 99999.0, 32767.0, 32768.0, 1e20, 1e30, 9.96921e36, 1e34)  # with either sign
_FEWEST = 0.001  # share of the pixels that a usual stand-in for missing ones has at least; of others ten times as many
_LEAST = 900.0  # its magnitude


def sentinel_of(pixels: np.ndarray) -> float | None:
    """A value of a floating-point image that probably stands for missing pixels, though nothing declares it.

    It is the lowest or the highest value, held by many exactly equal pixels, and lies far outside of all others:
    -9999 among heights of 0 to 3000, -3.4e38, 1e20. NaN is not looked for.

    >>> sentinel_of(np.float32([[-9999, -9999], [0.5, 0.25]]))
    -9999.0
    """
    if not np.issubdtype(pixels.dtype, np.floating):
        return None
    finite = pixels[np.isfinite(pixels)]
    if not finite.size:
        return None
    for value in (float(finite.min()), float(finite.max())):
        others = finite[finite != value]
        count = finite.size - others.size
        is_usual = _is_usual(value)
        if count >= max(2, finite.size * _FEWEST * (1 if is_usual else 10)) and _is_far(value, others, is_usual):
            return value
    return None


def _is_usual(value: float) -> bool:
    magnitude = abs(value)
    return magnitude > _HUGE or any(math.isclose(magnitude, usual, rel_tol=1e-3) for usual in _USUAL)


def _is_far(value: float, others: np.ndarray, is_usual: bool) -> bool:
    """Whether a value lies far outside of all others, and is not just where they are cut off."""
    if abs(value) < _LEAST or not others.size:
        return False
    low, high = float(others.min()), float(others.max())
    gap, spread, largest = max(low - value, value - high), high - low, max(abs(low), abs(high))
    return gap > spread / 4 and abs(value) > largest if is_usual else gap > 3 * spread and abs(value) > 3 * largest
