"""A mask as it lies in its file: its numbers, and what may give them another meaning."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from pixelwise.core.classes import IGNORE
from pixelwise.data.files.facts import valid_labels
from pixelwise.data.files.readers import read_labels
from pixelwise.data.files.tiff import TIFF_MAGIC
from pixelwise.data.masks.labels import LabelRule


@dataclass(frozen=True)
class StoredMask:
    """P pages of H x W pixels."""

    pixels: np.ndarray  # P x H x W numbers, or P x H x W x 3 RGB
    palette: np.ndarray | None = None  # entries x 3 uint8: the colours that a viewer shows for the numbers
    format: str = ""  # "PNG", "JPEG", ...
    valid: np.ndarray | None = None  # P x H x W bool; False where the file declares that it has no data
    orientation: int = 1  # as in EXIF: the turn that the file asked for, which was done


def read_stored(path: Path, axes: str | None = None) -> StoredMask:
    """The labels of a file, with its palette and format.

    Raises:
        DataError: as `read_mask`.
    """
    picture = read_labels(path, axes)
    pixels, facts = picture.pixels, picture.facts
    palette = facts.palette if pixels.ndim == 3 else None
    return StoredMask(pixels, palette, facts.format, valid_labels(pixels, facts), facts.orientation)


def classes_of(stored: StoredMask, page: int, rule: LabelRule, valid: np.ndarray | None = None) -> np.ndarray:
    """H x W uint16 class indices of a page, `IGNORE` where there is no data; what stands there need not be known.

    Args:
        stored: the mask.
        page: the number of the page.
        rule: what the values mean.
        valid: which pixels of the image hold data, H x W bool; None: all.

    Raises:
        DataError: a value does not stand for a class.
    """
    missing, pixels = _missing(stored, page, valid), stored.pixels[page]
    if missing is None or not missing.any():
        return rule.to_indices(pixels, stored.palette)
    if missing.all():
        return np.full(missing.shape, IGNORE, np.uint16)
    pixels = pixels.copy()
    pixels[missing] = pixels[~missing][0]
    indices = rule.to_indices(pixels, stored.palette)
    indices[missing] = IGNORE
    return indices


def ids_of(stored: StoredMask, page: int, valid: np.ndarray | None = None) -> np.ndarray:
    """H x W ids of objects, 0 where there is no data; arguments as of `classes_of`."""
    missing, ids = _missing(stored, page, valid), stored.pixels[page]
    return ids if missing is None else np.where(missing, 0, ids).astype(ids.dtype)


def _missing(stored: StoredMask, page: int, valid: np.ndarray | None) -> np.ndarray | None:
    """Where the image or the mask of a page has no data; None if nowhere."""
    own = None if stored.valid is None else stored.valid[page]
    known = [part for part in (valid, own) if part is not None]
    return ~np.logical_and.reduce(known) if known else None


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
