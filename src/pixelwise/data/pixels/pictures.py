"""Turn arrays into pictures: label maps in their colours, errors, overlays.

H x W are an image's height and width, C its channels. A picture is H x W x 3 uint8, RGB.
"""

import io

import numpy as np
from PIL import Image

from pixelwise.core.classes import IGNORE, ClassMap
from pixelwise.data.pixels.targets import label_edges

STRETCH = (0.5, 99.5)  # percentiles of a channel that become black and full brightness
SAMPLE = 1_000_000  # about so many values are enough to find percentiles
ERROR_COLOR = np.array([220, 20, 30], dtype=np.float32)


def to_display(image: np.ndarray) -> np.ndarray:
    """Turn any image into a picture.

    `image` is H x W or H x W x C. uint8 keeps its values and bool becomes black and white; every other type is
    stretched channel by channel between its 0.5th and 99.5th percentiles, and values that are not finite become black.
    One channel is shown as grey, two as red and green; of more than three, the first three are shown.

    >>> to_display(np.array([[0, 30_000, 60_000]], dtype=np.uint16))[0, :, 0].tolist()
    [0, 127, 255]
    """
    channels = image[..., np.newaxis] if image.ndim == 2 else image[..., :3]
    if channels.dtype == bool:
        channels = channels.astype(np.uint8) * 255
    if channels.dtype != np.uint8:
        channels = np.stack([_stretch(channels[..., index]) for index in range(channels.shape[2])], axis=2)
    if channels.shape[2] == 1:
        return np.repeat(channels, 3, axis=2)
    return np.pad(channels, ((0, 0), (0, 0), (0, 3 - channels.shape[2])))


def _stretch(channel: np.ndarray) -> np.ndarray:
    values = channel.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(channel.shape, dtype=np.uint8)
    known = values[finite]
    low, high = np.percentile(known[:: max(1, known.size // SAMPLE)], STRETCH)
    scaled: np.ndarray = np.where(finite, values - low, 0) / max(high - low, np.finfo(np.float32).tiny)
    return (scaled.clip(0, 1) * 255).astype(np.uint8)


def colorize(labels: np.ndarray, classes: ClassMap) -> np.ndarray:
    """Show each label in the colour of its class, and ignored pixels in white.

    `labels` is H x W of integers, 0 to K - 1 or `IGNORE`. Returns H x W x 3 uint8.
    """
    return np.asarray(_palette(classes)[labels])


def _palette(classes: ClassMap) -> np.ndarray:
    table = np.zeros((IGNORE + 1, 3), np.uint8)
    table[: len(classes)] = classes.colors
    table[IGNORE] = 255
    return table


def overlay(image: np.ndarray, labels: np.ndarray, classes: ClassMap, alpha: float = 0.45) -> np.ndarray:
    """Tint an image with the colours of its labels, and draw thin outlines between classes.

    `image` is H x W x 3 uint8 (see `to_display`), `labels` is H x W of 0 to K - 1 or `IGNORE`, `alpha` is the
    strength of the tint, 0 to 1. Classes whose colour is black (usually the background) and ignored pixels
    are not tinted. Returns H x W x 3 uint8.
    """
    palette = _palette(classes)
    tinted = np.asarray(palette.any(axis=1))
    tinted[IGNORE] = False
    edges = label_edges(labels, labels != IGNORE)
    strength = np.where(edges, 1.0, alpha) * tinted[labels]
    return _blend(image, palette[labels], strength)


def _blend(image: np.ndarray, color: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Mix `color` (3, or H x W x 3) into the image; `strength` is H x W of 0 to 1."""
    share = strength[..., np.newaxis].astype(np.float32)
    return (image * (1 - share) + color * share).round().astype(np.uint8)


def error_picture(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Show where a prediction is wrong: the image in pale grey, wrong pixels in red, ignored ones hatched in white.

    `image` is H x W x 3 uint8, `truth` and `prediction` are H x W of integers; a pixel whose truth is
    `IGNORE` is never wrong. Returns H x W x 3 uint8.
    """
    ignored = truth == IGNORE
    wrong = (truth != prediction) & ~ignored
    grey = 64 + image.mean(axis=2, keepdims=True, dtype=np.float32) * 0.6
    picture = np.repeat(grey, 3, axis=2)
    picture = _blend(picture, np.array([255.0] * 3), ignored * np.where(_hatch(truth.shape), 0.85, 0.25))
    return _blend(picture, ERROR_COLOR, wrong * 0.85)


def _hatch(shape: tuple[int, ...]) -> np.ndarray:
    """Diagonal stripes, wide enough to stay visible when the picture is scaled down."""
    period = max(8, max(shape) // 50)
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows + columns) % period < period // 3


def shrink(picture: np.ndarray, limit: int) -> np.ndarray:
    """Scale a picture down, by averaging, so that neither side is longer than `limit` pixels."""
    longest = max(picture.shape[:2])
    if longest <= limit:
        return picture
    height, width = (max(1, round(side * limit / longest)) for side in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def png_bytes(picture: np.ndarray) -> bytes:
    """Encode a picture (H x W x 3 uint8) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
