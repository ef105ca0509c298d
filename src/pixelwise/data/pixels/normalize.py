"""Intensities as the network sees them."""

import math
from dataclasses import dataclass

import numpy as np

from pixelwise.core.config import DataSettings
from pixelwise.core.errors import DataError, ModelError
from pixelwise.core.windows import Read, blocks, reader

LOW, HIGH = 1.0, 99.0  # the percentiles between which an image is stretched
SAMPLED = 1 << 20  # values to take percentiles of; more do not change them
_BLOCK = 2048  # pixels; side of the windows in which an image is read for them


def unit_scale(dtype: np.dtype, full_scale: float | None = None) -> float:
    """Factor that scales a type's intensities to 0 .. 1; floating-point images are taken as they are."""
    if full_scale is not None:
        return 1.0 / full_scale
    return 1.0 / np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1.0


def percentile_range(
    read: Read, height: int, width: int, channels: int, nodata: float | None = None
) -> tuple[float, float]:
    """The 1st and 99th percentile over all channels of an image, in the image's own units; they are never equal.

    Large images are sampled on a regular grid, so the result depends neither on chance nor on how they are read.
    """
    step = max(1, math.ceil((height * width * channels / SAMPLED) ** 0.5))
    sample = []
    for block in blocks(height, width, _BLOCK):
        chosen = read(block)[-block.y0 % step :: step, -block.x0 % step :: step]
        sample.append(chosen.flatten())  # a copy, since a view would keep the whole block
    low, high = np.percentile(np.concatenate(sample), (LOW, HIGH))
    if high - low < 1e-6 * max(abs(low), abs(high), 1e-30):
        parts = (read(block) for block in blocks(height, width, _BLOCK))
        extremes = np.array([(part.min(), part.max()) for part in parts], np.float64)
        low, high = extremes[:, 0].min(), extremes[:, 1].max()
    return float(low), float(high) if high > low else float(low) + max(1.0, abs(float(low)))


def match_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Give an image, H x W x C, the network's number of channels: grey is repeated to RGB, equal RGB becomes grey.

    Raises:
        ModelError: the image does not fit the network.
    """
    if image.shape[2] == channels:
        return image
    if image.shape[2] == 1 and channels == 3:
        return np.repeat(image, 3, axis=2)
    if image.shape[2] == 3 and channels == 1:
        if (image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all():
            return image[..., :1]
        raise ModelError("is a colour image, but the network was trained on grey ones; convert it to grey first.")
    raise ModelError(f"has {image.shape[2]} channels, but the network takes {channels}.")


@dataclass(frozen=True)
class Normalization:
    """Fixed figures of the training set, applied after a stretch of each image by its percentiles, if that is used.

    Fields:
        percentile: first stretch the 1st..99th percentile of each image to -1..1, so that 8-bit, 16-bit, dark and
            bright images look alike; otherwise integers are divided by the largest value of their type.
        mean, std: C figures to subtract and to divide by.
    """

    percentile: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_settings(cls, settings: DataSettings) -> "Normalization":
        """The normalisation that a run was trained with."""
        return cls(settings.normalization == "percentile", tuple(settings.mean), tuple(settings.std))

    def gain_and_offset(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Per channel (C) float32 such that normalised = image * gain + offset, for the whole H x W x C image."""
        height, width, channels = image.shape
        return self.figures(reader(image), height, width, channels, image.dtype)

    def figures(
        self, read: Read, height: int, width: int, channels: int, dtype: np.dtype
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same for an image that is read by window, in one pass or none."""
        if self.percentile:
            low, high = percentile_range(read, height, width, channels)
            factor, shift = 2.0 / (high - low), -1.0 - 2.0 * low / (high - low)
        else:
            factor, shift = unit_scale(dtype), 0.0
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        return (factor / std).astype(np.float32), ((shift - mean) / std).astype(np.float32)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """H x W x C of any type -> H x W x C float32.

        >>> Normalization(False, (0.5,), (0.5,))(np.full((1, 1, 1), 255, np.uint8)).item()
        1.0

        Raises:
            DataError: the image holds NaN or infinite values.
        """
        require_finite(image)
        gain, offset = self.gain_and_offset(image)
        return np.asarray(image.astype(np.float32) * gain + offset)


def require_finite(image: np.ndarray) -> None:
    """Raise a DataError if a floating-point image holds NaN or infinite values."""
    if np.issubdtype(image.dtype, np.floating) and not np.isfinite(image).all():
        count = int((~np.isfinite(image)).sum())
        raise DataError(f"holds {count} values that are NaN or infinite; replace them with numbers first.")
