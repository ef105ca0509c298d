"""Values that are no classes: what smoothing, resampling and JPEG leave at the edges between classes.

A class fills areas; a value that is made of two others does not, and lies between them. For each value of a mask are
counted: the pixels that are looked at, those inside of an area of that value (with all eight neighbours), and those
between a lower and a higher neighbour. The sums over a set tell which values are solid and which are blends.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

_SOLID = 0.05  # share of a class's pixels that lie inside of its areas, at least
_FAINT = 0.3  # the same, of a value that is hardly different from a far more frequent one
_MUCH, _MORE = 20, 4  # how much more frequent that one is than a value with such areas, and than one with none
_NEAR = 0.1  # of the range of all values: the difference that counts as hardly any
_BLENDS = 0.7  # share of the other values' pixels that lie between two neighbours, or hardly differ from a solid value


@dataclass(frozen=True)
class Edges:
    """How the V values of one mask lie; arrays of V numbers of pixels."""

    pixels: np.ndarray
    inside: np.ndarray
    between: np.ndarray

    def of(self, kept: np.ndarray) -> "Edges":
        """Those of some of the values."""
        return Edges(self.pixels[kept], self.inside[kept], self.between[kept])


def edges_of(page: np.ndarray, values: int) -> Edges:
    """How values lie.

    Args:
        page: H x W ranks of the values (0 to V - 1, in the order of the values), uint8 or uint16.
        values: V.
    """
    lowest, highest = _neighbourhood(page)
    flat = page.ravel()
    inside = np.bincount(flat[(lowest == highest).ravel()], minlength=values)
    between = np.bincount(flat[((lowest < page) & (page < highest)).ravel()], minlength=values)
    return Edges(np.bincount(flat, minlength=values), inside, between)


def color_edges_of(colors: np.ndarray, page: np.ndarray, values: int) -> Edges:
    """As `edges_of`, of H x W x 3 colours whose ranks are `page`: between means so in all channels that change."""
    lowest, highest = _neighbourhood(colors)
    same = lowest == highest
    flat = page.ravel()
    everywhere = same.all(-1)
    between = (same | ((lowest < colors) & (colors < highest))).all(-1) & ~everywhere
    inside = np.bincount(flat[everywhere.ravel()], minlength=values)
    return Edges(np.bincount(flat, minlength=values), inside, np.bincount(flat[between.ravel()], minlength=values))


def _neighbourhood(page: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest value among each pixel and its eight neighbours."""
    square = np.ones((3, 3), np.uint8)
    return cv2.erode(page, square), cv2.dilate(page, square)


def blends(values: np.ndarray, edges: Edges, is_jpeg: bool = False) -> np.ndarray:
    """Which of a set's values are blends of others.

    Args:
        values: V, ascending; or V x 3 colours.
        edges: of the whole set, for these values.
        is_jpeg: some files are JPEG, so less has to be shown.

    Returns:
        V bool; all False if the values may as well be classes: at least two of them have to be blends, most of whose
        pixels lie between two neighbours or hardly differ from a class.
    """
    colors = (values[:, None] if values.ndim == 1 else values).astype(np.float64)
    span = max(float(np.ptp(colors)), 1.0)
    share = edges.inside / np.maximum(edges.pixels, 1)
    solid = (share >= _SOLID) & (edges.pixels > 0)
    solid &= ~(_is_near(colors, edges.pixels, solid, span, _MUCH).any(1) & (share < _FAINT))
    other = ~solid & (edges.pixels > 0)
    nothing = np.zeros(len(values), bool)
    if solid.sum() < 2 or other.sum() < (1 if is_jpeg else 2):
        return nothing
    near = _is_near(colors, edges.pixels, solid, span, _MORE)
    faint = near.any(1) & (is_jpeg or bool(near[other].any(0).sum() > 1))  # noise is not about a single class alone
    explained = np.where(faint, edges.pixels, edges.between)[other].sum()
    return other if explained >= _BLENDS * edges.pixels[other].sum() else nothing


def _is_near(colors: np.ndarray, pixels: np.ndarray, solid: np.ndarray, span: float, times: int) -> np.ndarray:
    """V x S: which values hardly differ from which of the solid ones, that are so much more frequent."""
    differences = np.abs(colors[:, None] - colors[solid][None]).max(-1)
    return np.asarray((differences <= _NEAR * span) & (pixels[solid][None] > times * pixels[:, None]))


def total(parts: Sequence[tuple[np.ndarray, Edges]]) -> tuple[np.ndarray, Edges]:
    """The values of all masks, ascending, and their edges together; each part is V values with their edges."""
    values = np.unique(np.concatenate([found for found, _ in parts]))
    sums = np.zeros((3, len(values)), np.int64)
    for found, edges in parts:
        sums[:, np.searchsorted(values, found)] += (edges.pixels, edges.inside, edges.between)
    return values, Edges(*sums)
