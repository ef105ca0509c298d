"""What one mask holds, in figures: its values, how they lie, and whether they look like objects."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from skimage.measure import label

from pixelwise.data.masks.blends import Edges, color_edges_of, edges_of
from pixelwise.data.masks.labels import eight_bit_range, pack, packed, without_gaps
from pixelwise.data.masks.stored import StoredMask
from pixelwise.data.pixels.counting import count_bytes

_KEPT = 2048  # values of a mask, both of the lowest and of the highest; more than there can be classes
_LOOKED_AT = 2048  # pixels; side of the middle part of a page in which objects and edges are looked for
_PLACES = 64  # numbers of a mask whose places are kept; more would not be parts of one thing
_GRID = 64  # pixels; side of the smaller page that places are found on
_CUSTOMARY = (1, 255, 65535)  # what a mask of two values holds; no number of an object


@dataclass(frozen=True)
class Ids:
    """The I numbers above 0 of one mask as if they were objects."""

    values: np.ndarray  # I, ascending
    pages: np.ndarray  # pages on which the number occurs
    connected: np.ndarray  # those on which its pixels form a single connected component
    places: np.ndarray | None  # I x 2: mean row and column, as shares of the page's; None if there are too many
    most: int  # most numbers on one page


@dataclass(frozen=True)
class MaskFacts:
    """What one mask holds: V values and their numbers of pixels. A photograph has more values than are kept."""

    shape: tuple[int, int, int]  # pages, height, width
    is_color: bool
    values: np.ndarray  # V, ascending; colours packed
    counts: np.ndarray  # 3 x V pixels in the top, middle and bottom third
    others: np.ndarray  # 3 numbers of pixels whose values are not kept
    colors: np.ndarray  # V packed colours that the values are, or are shown in
    has_palette: bool = False
    format: str = ""  # of the file: "PNG", "JPEG", ...
    edges: Edges | None = None  # None where there are no more than two values, or far too many
    ids: Ids | None = None  # None where the values cannot be objects
    alpha: tuple[int, ...] = ()  # values of the alpha channel, if the mask has a single value beside it


def mask_facts(mask: np.ndarray, palette: np.ndarray | None = None, form: str = "") -> MaskFacts:
    """What a mask, P x H x W or P x H x W x 3, holds; of a file of that format, with that palette."""
    return facts_of(StoredMask(mask, palette, form))


def facts_of(stored: StoredMask) -> MaskFacts:
    """What a mask holds."""
    mask = stored.pixels
    is_color = mask.ndim == 4
    numbers = pack(eight_bit_range(mask)) if is_color else mask
    height = mask.shape[1]
    bounds = [0, -(-height // 3), -(-2 * height // 3), height]
    thirds = [
        _histogram(numbers[:, top:bottom], None if stored.valid is None else stored.valid[:, top:bottom])
        for top, bottom in pairwise(bounds)
    ]
    values = np.unique(np.concatenate([third[0] for third in thirds]))
    counts = np.zeros((3, len(values)), np.int64)
    for row, (found, pixels) in zip(counts, thirds, strict=True):
        row[np.searchsorted(values, found)] = pixels
    middle = slice(_KEPT, max(_KEPT, len(values) - _KEPT))
    kept = np.delete(values, middle)
    palette = stored.palette
    if palette is not None and int(values.max(initial=0)) >= len(palette):
        palette = None
    if stored.valid is not None and len(values):  # what stands where there is no data has no shape
        numbers = np.where(stored.valid, numbers, values[0]).astype(numbers.dtype)
    return MaskFacts(
        mask.shape[:3],
        is_color,
        kept,
        np.delete(counts, middle, axis=1),
        counts[:, middle].sum(1),
        kept if is_color else packed(kept[None], palette)[0],
        palette is not None,
        stored.format,
        _edges(mask, numbers, values),
        None if is_color else _ids(numbers, values),
    )


def _histogram(mask: np.ndarray, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The values of a mask, ascending, and their numbers of pixels; only of the valid ones."""
    if valid is not None:
        mask = mask[valid]
    if mask.dtype in (np.uint8, np.uint16):  # far faster than sorting
        counts = count_bytes(mask) if mask.dtype == np.uint8 else np.bincount(mask.ravel())
        values = np.flatnonzero(counts)
        return values.astype(mask.dtype), counts[values]
    return np.unique(mask, return_counts=True)


def _edges(mask: np.ndarray, numbers: np.ndarray, values: np.ndarray) -> Edges | None:
    """How the values lie on all pages; two values alone have nothing between them, nor have 0, 1, 2, ..."""
    if not 2 < len(values) <= 2 * _KEPT or (len(values) <= _PLACES and without_gaps(values.tolist())):
        return None
    sums = np.zeros((3, len(values)), np.int64)
    for page, own in zip(mask, numbers, strict=True):
        ranks = _ranks(_middle(own), values)
        colors = eight_bit_range(_middle(page)) if mask.ndim == 4 else None
        edges = edges_of(ranks, len(values)) if colors is None else color_edges_of(colors, ranks, len(values))
        sums += (edges.pixels, edges.inside, edges.between)
    return Edges(*sums)


def _ids(mask: np.ndarray, values: np.ndarray) -> Ids | None:
    """The numbers above 0 as objects; one of the customary two values alone is a class."""
    own = values[values > 0]
    if not len(own) or (len(own) == 1 and int(own[0]) in _CUSTOMARY) or len(own) >= 2**16:
        return None
    pages, connected, most = np.zeros(len(own), np.int64), np.zeros(len(own), np.int64), 0
    sums, known = np.zeros((len(own), 2)), len(own) <= _PLACES
    for page in mask:
        ranks = _ranks(page, own, above_zero=True)
        components = _components(_middle(ranks), len(own))
        pages += components > 0
        connected += components == 1
        most = max(most, int(np.count_nonzero(np.bincount(ranks.ravel(), minlength=len(own) + 1)[1:])))
        if known:
            sums += _places(ranks, len(own))
    return Ids(own, pages, connected, sums / len(mask) if known else None, most)


def _ranks(page: np.ndarray, values: np.ndarray, above_zero: bool = False) -> np.ndarray:
    """The place of each pixel's value among ascending values; counted from 1, with 0 for all others, `above_zero`."""
    first = int(above_zero)
    if page.dtype in (np.uint8, np.uint16):
        table = np.zeros(np.iinfo(page.dtype).max + 1, np.uint16)
        table[values] = np.arange(first, first + len(values))
        return np.asarray(table[page])
    ranks = (np.searchsorted(values, page) + first).astype(np.uint16)
    return np.where(page > 0, ranks, np.uint16(0)) if above_zero else ranks


def _middle(page: np.ndarray) -> np.ndarray:
    """The middle of a large page."""
    rows, columns = (slice(max(0, length - _LOOKED_AT) // 2, (length + _LOOKED_AT) // 2) for length in page.shape[:2])
    return page[rows, columns]


def _components(page: np.ndarray, count: int) -> np.ndarray:
    """The number of connected components of each of the values 1 to `count`."""
    labels, number = label(page, connectivity=2, return_num=True)  # type: ignore[no-untyped-call]  # scikit-image's
    values = np.zeros(number + 1, page.dtype)
    values[labels] = page  # all pixels of a component have the same one
    return np.bincount(values, minlength=count + 1)[1:]


def _places(page: np.ndarray, count: int) -> np.ndarray:
    """The mean row and column of each of the values 1 to `count`, as shares of the page's sides; NaN if absent."""
    step = max(1, max(page.shape) // _GRID)
    small = page[::step, ::step]
    pixels = np.bincount(small.ravel(), minlength=count + 1)[1:]
    sums = []
    for axis, length in enumerate(small.shape):
        shares = (np.arange(length) + 0.5) / length
        weights = np.broadcast_to(shares[:, None] if axis == 0 else shares, small.shape)
        sums.append(np.bincount(small.ravel(), weights.ravel(), count + 1)[1:])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack(sums, axis=1) / pixels[:, None]
