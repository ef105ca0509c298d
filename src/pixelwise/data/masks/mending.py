"""Masks mended: what `doctor --fix` does to labels, array to array.

P pages of H x W pixels: numbers P x H x W, colours P x H x W x 3.
"""

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
from skimage.measure import label

from pixelwise.data.masks.evidence import Evidence, Found, two_conventions
from pixelwise.data.masks.labels import packed, unpacked
from pixelwise.data.masks.meaning import ignored_values
from pixelwise.data.masks.stored import StoredMask, read_alpha
from pixelwise.data.sets.folder import Description

Mend = Callable[[Path, StoredMask], np.ndarray | None]

_RARE = 20  # values more frequent than this share of the commonest are kept where blends cannot be told from classes


def mender(description: Description, found: Found, codes: Collection[str]) -> Mend:
    """A function that mends one mask of a set.

    Args:
        description: what `dataset.toml` says.
        found: all masks of the set with what they hold.
        codes: of the set's problems.

    Returns:
        A function of a mask's path and content; it returns the labels as they should be, or None where the mask is
        right as it is.
    """
    if description.labels == "index":  # the numbers are right, then, whatever they look like
        codes = set(codes) - {"antialiased", "jpeg-mask"}
    colors = any(facts.is_color for _, facts in found)
    evidence = Evidence.of(found, ignored_values(description, colors) if description.ignored else ())
    if "alpha-labels" in codes:
        return lambda path, stored: alpha_as_mask(path)
    if "palettes-differ" in codes and description.labels in ("index", "binary", "instances"):
        numbers = one_palette(found)
        return lambda path, stored: by_color(stored, numbers)
    if "palettes-differ" in codes:
        return lambda path, stored: resolved(stored)
    if "mixed-conventions" in codes and (groups := two_conventions(evidence)):
        table = one_convention(evidence, groups)
        return lambda path, stored: renumbered(stored.pixels, table)
    if {"antialiased", "jpeg-mask"} & set(codes):
        kept = frequent_values(evidence, colors)
        return lambda path, stored: snapped(stored, kept, colors)
    if "disconnected-instance" in codes:
        return lambda path, stored: parted(stored.pixels)
    return lambda path, stored: None


def frequent_values(evidence: Evidence, colors: bool) -> np.ndarray:
    """The values (or packed colours) that are classes, ascending: all but the blends, or the most frequent ones."""
    pixels = evidence.colors if colors else evidence.values
    blended = evidence.blended(colors)
    if blended:
        kept = [value for value in pixels if value not in blended]
    else:
        most = max(pixels.values())
        kept = [value for value, count in pixels.items() if count * _RARE >= most]
    return np.array(sorted({*kept, *evidence.ignored}), np.int64)


def snapped(stored: StoredMask, kept: np.ndarray, colors: bool) -> np.ndarray | None:
    """The mask with each value replaced by the nearest kept one (of equals, the lower); None if nothing changes.

    >>> snapped(StoredMask(np.array([[[0, 3, 250]]], np.uint8)), np.array([0, 255]), False).tolist()
    [[[0, 0, 255]]]
    """
    pixels = stored.pixels
    numbers = np.stack([packed(page, stored.palette) for page in pixels]) if colors else pixels.astype(np.int64)
    values, places = np.unique(numbers, return_inverse=True)
    if np.isin(values, kept).all():
        return None
    own = unpacked(values) if colors else values[:, None]
    targets = unpacked(kept) if colors else kept[:, None]
    distances = np.stack([((own - target) ** 2).sum(1) for target in targets])
    nearest = kept[distances.argmin(0)][places.reshape(numbers.shape)]
    return unpacked(nearest).astype(np.uint8) if colors else nearest.astype(pixels.dtype)


def one_convention(evidence: Evidence, groups: tuple[tuple[Path, ...], tuple[Path, ...]]) -> dict[int, int]:
    """Each value of masks of two conventions, and the one that it shall have: 0, 1, 2, ... in their order."""
    table: dict[int, int] = {0: 0}
    for group in groups:
        chosen = set(group)
        own = sorted(frozenset().union(*(evidence.counted(facts) for path, facts in evidence.found if path in chosen)))
        table |= {value: place for place, value in enumerate([value for value in own if value != 0], start=1)}
    return table


def renumbered(pixels: np.ndarray, table: dict[int, int]) -> np.ndarray | None:
    """P x H x W with values replaced by those of a table; others stay. None if nothing changes.

    >>> renumbered(np.array([[[0, 255]]], np.uint8), {0: 0, 255: 1}).tolist()
    [[[0, 1]]]
    """
    new = pixels.copy()
    for value, other in table.items():
        new[pixels == value] = other
    return new if (new != pixels).any() else None


def one_palette(found: Found) -> dict[int, int]:
    """A number for each (packed) colour of the masks' palettes: that of the first mask that has it, if it is free."""
    numbers: dict[int, int] = {}
    for _, facts in found:
        for value, color in zip(facts.values.tolist(), facts.colors.tolist(), strict=True):
            if facts.has_palette and color not in numbers:
                taken = set(numbers.values())
                numbers[color] = next(free for free in (value, *range(len(taken) + 1)) if free not in taken)
    return numbers


def by_color(stored: StoredMask, numbers: dict[int, int]) -> np.ndarray | None:
    """P x H x W numbers of the colours that a palette shows; None if nothing changes.

    >>> palette = np.array([[9, 9, 9], [0, 0, 1]], np.uint8)
    >>> by_color(StoredMask(np.array([[[0, 1]]], np.uint8), palette), {1: 0, 592137: 1}).tolist()
    [[[1, 0]]]
    """
    if stored.palette is None:
        return None
    new = np.stack([packed(page, stored.palette) for page in stored.pixels])
    for color in np.unique(new).tolist():
        new[new == color] = -1 - numbers[color]  # below 0, so that no number is taken for a colour
    new = (-1 - new).astype(stored.pixels.dtype)
    return new if (new != stored.pixels).any() else None


def resolved(stored: StoredMask) -> np.ndarray | None:
    """The colours that a palette shows, P x H x W x 3; None where there is no palette."""
    return None if stored.palette is None else np.asarray(stored.palette[stored.pixels])


def alpha_as_mask(path: Path) -> np.ndarray | None:
    """The alpha channel of a file, 1 x H x W; None if it has none."""
    alpha = read_alpha(path)
    return None if alpha is None else alpha[None]


def parted(pixels: np.ndarray) -> np.ndarray | None:
    """P x H x W ids whose separate parts have ids of their own: the largest keeps its id, the others get new ones.

    None if every id is in one piece.

    >>> parted(np.array([[[5, 5, 0, 5]]])).tolist()
    [[[5, 5, 0, 6]]]
    """
    new = pixels.astype(np.int64)
    following = int(pixels.max(initial=0)) + 1
    for page in new:
        parts = np.asarray(label(page, connectivity=2))  # type: ignore[no-untyped-call]  # scikit-image's
        sizes = np.bincount(parts.ravel())
        ids = np.zeros(len(sizes), np.int64)
        ids[parts] = page
        for value in np.unique(ids[1:]):
            own = 1 + np.flatnonzero(ids[1:] == value)
            for part in sorted(own, key=lambda number: -sizes[number])[1:]:
                page[parts == part] = following
                following += 1
    if (new == pixels).all():
        return None
    return new.astype(np.min_scalar_type(following - 1))
