"""Intensities as the network sees them."""

import math
from dataclasses import dataclass

import numpy as np

from pixelwise.core.config import DataSettings
from pixelwise.core.errors import ModelError, SettingError, UnreadableError
from pixelwise.core.windows import Read, blocks, reader
from pixelwise.data.files.facts import FileFacts, valid_pixels

LOW, HIGH = 1.0, 99.0  # the percentiles between which an image is stretched
SAMPLED = 1 << 20  # values to take percentiles of; more do not change them
_BLOCK = 2048  # pixels; side of the windows in which an image is read for them


def unit_scale(dtype: np.dtype, full_scale: float | None = None) -> float:
    """Factor that scales intensities to 0 .. 1: by the full scale that a file states, else by that of the type.

    Floating-point images are taken as they are, unless their file states a full scale.

    >>> unit_scale(np.dtype(np.uint8)) == 1 / 255, unit_scale(np.dtype(np.uint16), 4095) == 1 / 4095
    (True, True)
    """
    if full_scale is not None:
        return 1.0 / full_scale
    return 1.0 / np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1.0


@dataclass(frozen=True)
class Numbers:
    """What the numbers of an image mean."""

    dtype: np.dtype
    full_scale: float | None = None  # as in `FileFacts`
    nodata: float | None = None

    @classmethod
    def of(cls, dtype: np.dtype, facts: FileFacts | None, declared: float | None = None) -> "Numbers":
        """Those of a file; `declared` is a nodata value that counts where the file states none."""
        if facts is None:
            return cls(dtype, nodata=declared)
        return cls(dtype, facts.full_scale, declared if facts.nodata is None else facts.nodata)

    @property
    def unit(self) -> float:
        """Factor that scales intensities to 0 .. 1."""
        return unit_scale(self.dtype, self.full_scale)

    def valid(self, pixels: np.ndarray) -> np.ndarray | None:
        """Which pixels of H x W x C hold data; None if all may."""
        return valid_pixels(pixels, self.nodata)


def sampled(read: Read, height: int, width: int, channels: int) -> np.ndarray:
    """S x C pixels of an image on a regular grid, all of them if it is small.

    The result depends neither on chance nor on how the image is read.
    """
    step = max(1, math.ceil((height * width * channels / SAMPLED) ** 0.5))
    sample = []
    for block in blocks(height, width, _BLOCK):
        chosen = read(block)[-block.y0 % step :: step, -block.x0 % step :: step]
        sample.append(chosen.reshape(-1, chosen.shape[2]).copy())  # a view would keep the whole block
    return np.concatenate(sample)


def percentile_range(
    read: Read, height: int, width: int, channels: int, nodata: float | None = None
) -> tuple[float, float]:
    """The 1st and 99th percentile over all channels of an image, in the image's own units; they are never equal.

    Large images are sampled on a regular grid. Pixels without data do not count; if there are no others, the range is
    0 to 1.
    """
    sample = with_data(sampled(read, height, width, channels), nodata)
    if not sample.size:
        return 0.0, 1.0
    low, high = np.percentile(sample, (LOW, HIGH))
    if high - low < 1e-6 * max(abs(low), abs(high), 1e-30):
        parts = (with_data(read(block), nodata) for block in blocks(height, width, _BLOCK))
        extremes = np.array([(part.min(), part.max()) for part in parts if part.size], np.float64)
        low, high = extremes[:, 0].min(), extremes[:, 1].max()
    return float(low), float(high) if high > low else float(low) + max(1.0, abs(float(low)))


def with_data(pixels: np.ndarray, nodata: float | None) -> np.ndarray:
    """The pixels of ... x C that hold data, as S x C; all of them if no value stands for missing ones."""
    valid = valid_pixels(pixels, nodata)
    return pixels.reshape(-1, pixels.shape[-1]) if valid is None else pixels[valid]


def medians(pixels: np.ndarray) -> np.ndarray:
    """C medians of S x C pixels, in their own type; 0 if there are none."""
    if not len(pixels):
        return np.zeros(pixels.shape[-1], pixels.dtype)
    found = np.median(pixels, axis=0)
    return np.asarray(np.rint(found) if np.issubdtype(pixels.dtype, np.integer) else found).astype(pixels.dtype)


def filled(image: np.ndarray, nodata: float | None) -> np.ndarray:
    """An image, H x W x C, whose pixels without data have the median of the others."""
    valid = valid_pixels(image, nodata)
    if valid is None or valid.all():
        return image
    sample = with_data(sampled(reader(image), *image.shape), nodata)
    return np.where(valid[..., None], image, medians(sample))


def stretched(settings: DataSettings) -> DataSettings:
    """The settings under which each image is stretched by its percentiles, to the level of the training images.

    Raises:
        SettingError: the run does not know the level of its training images.
    """
    if settings.normalization == "percentile":
        return settings
    if settings.levels is None:
        raise SettingError(
            "--normalize percentile: the run does not say how bright its training images were (data.levels), as it "
            "was made by an older version. Train it again, or use --normalize run."
        )
    low, high = settings.levels[:2]
    half = (high - low) / 2
    mean = [(value - low) / half - 1 for value in settings.mean]
    std = [value / half for value in settings.std]
    return settings.model_copy(update={"normalization": "percentile", "mean": mean, "std": std})


_DIMMER = 3.0  # times as dark or as bright as any usual image of the training is far outside


def unlike_training(low: float, high: float, settings: DataSettings) -> bool:
    """Whether an image's intensities lie far outside of those of the training.

    Twelve bits in a file of sixteen are 16 times too dark, floats of 0 to 255 are 255 times too bright. An image that
    is moderately darker or brighter is not meant, nor one that shows nothing but the training images' background.

    Args:
        low: 1st percentile of the image in units of `unit_scale`.
        high: 99th.
        settings: of the run.
    """
    if settings.normalization != "fixed" or settings.levels is None or not low < high:
        return False
    usual_low, usual_high, dimmest, brightest = settings.levels
    if usual_low < 0 or usual_high <= 0:  # no scale that begins at 0: how far is it, in contrasts of the training?
        contrast = usual_high - usual_low
        return low > usual_high + contrast or high < usual_low - contrast or high - low > 10 * contrast
    too_dark = high < dimmest / _DIMMER and low <= usual_low / _DIMMER
    return too_dark or high > brightest * _DIMMER


def unlike_text(low: float, high: float, settings: DataSettings) -> str:
    """What to say of an image of which `unlike_training` is true, after its name."""
    assert settings.levels is not None
    usual_low, usual_high = settings.levels[:2]
    return (
        f"its intensities reach from {low:.3g} to {high:.3g} of full scale (1st to 99th percentile), those of the "
        f"training from {usual_low:.3g} to {usual_high:.3g}; its bits may not be what its type says, and the result "
        "may be worthless: scale the image as those of the training, or predict with --normalize percentile"
    )


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

    def gain_and_offset(self, image: np.ndarray, numbers: Numbers | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Per channel (C) float32 such that normalised = image * gain + offset, for the whole H x W x C image."""
        return self.figures(reader(image), image.shape, numbers or Numbers(image.dtype))

    def figures(self, read: Read, shape: tuple[int, ...], numbers: Numbers) -> tuple[np.ndarray, np.ndarray]:
        """The same for an image of height, width and channels that is read by window, in one pass or none."""
        if self.percentile:
            low, high = percentile_range(read, shape[0], shape[1], shape[2], numbers.nodata)
            factor, shift = 2.0 / (high - low), -1.0 - 2.0 * low / (high - low)
        else:
            factor, shift = numbers.unit, 0.0
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
        raise UnreadableError(
            f"holds {count} values that are NaN or infinite; replace them with numbers first.", "non-finite"
        )
