"""What a network learns from label maps: border weights, objects, edges."""

import math
from collections.abc import Iterator

import cv2
import edt
import numpy as np
from scipy import ndimage

from pixelwise.core.classes import IGNORE
from pixelwise.core.errors import SettingError

NEGLIGIBLE = 1e-8
"""Share of `w0` below which a border weight may be taken as 0; float32 resolves 6e-8 of a number."""


def border_weights(instances: np.ndarray, w0: float = 10.0, sigma: float = 5.0) -> np.ndarray:
    """Weights that rise in the narrow gaps between cells: w0 * exp(-(d1 + d2)^2 / (2 sigma^2)).

    d1 and d2 are the Euclidean distances, in pixels, from a background pixel to the nearest and to the
    second-nearest cell, measured to the centre of the cell's nearest pixel. The result is exact up to
    `NEGLIGIBLE` * w0: each cell's distances are computed only as far as the weight can exceed that. The
    paper's whole weight map is the weight of the pixel's class plus this.

    Args:
        instances: H x W integers, 0 for background, one positive id for each cell; ids need not be consecutive,
            and a cell may have several parts.
        w0: the greatest weight.
        sigma: how far the weight reaches, in pixels.

    Returns:
        H x W float32: 0 on cells, and 0 everywhere if there are fewer than two cells.

    Raises:
        SettingError: `sigma` is not above 0.

    Ronneberger, Fischer and Brox 2015, "U-Net", equation 2.

    >>> border_weights(np.array([[1, 0, 2]]), w0=10, sigma=2).round(3)
    array([[0.   , 6.065, 0.   ]], dtype=float32)
    """
    if not sigma > 0:
        raise SettingError(f"sigma of the border weights: must be above 0 pixels, but it is {sigma}.")
    # Where the sum of the distances is larger, the weight is below NEGLIGIBLE * w0; one such distance is enough.
    reach = math.ceil(sigma * math.sqrt(-2 * math.log(NEGLIGIBLE)))
    nearest = np.full(instances.shape, np.inf, dtype=np.float32)
    second = nearest.copy()
    for window, squared in _squared_distances(instances, reach):
        second[window] = np.minimum(second[window], np.maximum(nearest[window], squared))
        nearest[window] = np.minimum(nearest[window], squared)
    total = np.sqrt(nearest, dtype=np.float64) + np.sqrt(second, dtype=np.float64)
    weights = w0 * np.exp(-(total**2) / (2 * sigma**2))
    return np.where(instances == 0, weights, 0).astype(np.float32)


def _squared_distances(instances: np.ndarray, reach: int) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """For each cell: its bounding box enlarged by `reach`, and the squared distances to the cell within."""
    ids = np.unique(instances)
    consecutive = np.searchsorted(ids[ids != 0], instances).astype(np.int32) + 1
    consecutive[instances == 0] = 0
    for cell, box in enumerate(ndimage.find_objects(consecutive), start=1):
        rows, columns = (slice(max(0, side.start - reach), side.stop + reach) for side in box)
        outside = consecutive[rows, columns] != cell
        yield (rows, columns), edt.edtsq(outside, parallel=1)


def objects(labels: np.ndarray, background: int = 0) -> np.ndarray:
    """Number the objects of a label map: the connected parts of each class.

    Pixels of one class that share a side belong together (4-connectivity), so cells that touch only at a corner
    stay apart; neighbours of different classes are different objects. `IGNORE` is not a class and has no objects.

    Args:
        labels: H x W integer classes.
        background: the class without objects.

    Returns:
        H x W int32: ids 1, 2, ... without gaps, class after class; 0 where there is no object.

    >>> objects(np.array([[1, 1, 0], [2, 0, 1]])).tolist()
    [[1, 1, 0], [3, 0, 2]]
    """
    found = np.zeros(labels.shape, dtype=np.int32)
    total = 0
    for value in np.flatnonzero(np.bincount(labels.ravel())).tolist():
        if value in (background, IGNORE):
            continue
        number, parts = cv2.connectedComponents((labels == value).astype(np.uint8), connectivity=4)
        np.add(parts, total, out=found, where=parts > 0)
        total += number - 1  # the first is "not this class"
    return found


def label_edges(labels: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mark the counted pixels with a counted 4-neighbour of another label.

    `labels` is H x W of integers, `counted` H x W bool. Returns H x W bool.

    >>> label_edges(np.array([[0, 0, 1, 1]]), np.ones((1, 4), bool)).tolist()
    [[False, True, True, False]]
    """
    edges = np.zeros(labels.shape, dtype=bool)
    for before, after in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        differ = (labels[before] != labels[after]) & counted[before] & counted[after]
        edges[before] |= differ
        edges[after] |= differ
    return edges
