"""A mask as it lies in its file: its numbers, and what may give them another meaning."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from pixelwise.core.classes import IGNORE
from pixelwise.data.files.readers import read_mask
from pixelwise.data.files.tiff import TIFF_MAGIC
from pixelwise.data.sets.labels import LabelRule


@dataclass(frozen=True)
class StoredMask:
    """P pages of H x W pixels."""

    pixels: np.ndarray  # P x H x W numbers, or P x H x W x 3 RGB
    palette: np.ndarray | None = None  # entries x 3 uint8: the colours that a viewer shows for the numbers
    format: str = ""  # "PNG", "JPEG", ...
    valid: np.ndarray | None = None  # P x H x W bool; False where the file declares that it has no data


def read_stored(path: Path, axes: str | None = None) -> StoredMask:
    """The labels of a file, with its palette and format.

    Raises:
        DataError: as `read_mask`.
    """
    pixels = read_mask(path, axes)
    form, palette = _form_of(path)
    return StoredMask(pixels, palette if pixels.ndim == 3 else None, form)


def classes_of(stored: StoredMask, page: int, rule: LabelRule) -> np.ndarray:
    """H x W uint16 class indices of a page, `IGNORE` where the file declares that it has no data.

    Raises:
        DataError: a value does not stand for a class.
    """
    indices = rule.to_indices(stored.pixels[page], stored.palette)
    if stored.valid is not None:
        indices[~stored.valid[page]] = IGNORE
    return indices


def _form_of(path: Path) -> tuple[str, np.ndarray | None]:
    with path.open("rb") as file:
        is_tiff = TIFF_MAGIC.match(file.read(8))
    if is_tiff:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            colors = getattr(page, "colormap", None)
            return "TIFF", None if colors is None else (np.asarray(colors).T >> 8).astype(np.uint8)
    with suppress(Exception), Image.open(path) as image:  # what cannot be opened here has been read before
        colors = image.getpalette("RGB") if image.mode == "P" else None
        return image.format or "", None if colors is None else np.array(colors, np.uint8).reshape(-1, 3)
    return "", None


def values_of_alpha(path: Path) -> tuple[int, ...]:
    """The values in the alpha channel of a mask, ascending; none if it has no such channel."""
    alpha = read_alpha(path)
    return () if alpha is None else tuple(int(value) for value in np.unique(alpha))


def read_alpha(path: Path) -> np.ndarray | None:
    """The alpha channel of a PNG, GIF, WebP or TIFF, H x W; None if the file has none."""
    with suppress(Exception):  # what is damaged is told where the mask is read
        with path.open("rb") as file:
            is_tiff = TIFF_MAGIC.match(file.read(8))
        if is_tiff:
            with tifffile.TiffFile(path) as tiff:
                page = tiff.pages[0]
                array = page.asarray()
                return np.asarray(array[..., -1]) if getattr(page, "extrasamples", ()) and array.ndim == 3 else None
        with Image.open(path) as image:
            if "A" in image.getbands() or "transparency" in image.info:
                return np.asarray(image.convert("RGBA").getchannel("A"))
    return None
