"""How well objects are found: counts of matched, surplus and missed objects, and their scores.

An object is the set of pixels with one id; id 0 is background. A true and a predicted object may match at a
threshold t if their IoU is at least t; the matching is one to one, and a largest one is taken. (Above 0.5 an
object can reach the threshold with only one partner; at exactly 0.5 an object cut into two halves has two.)

*Average precision* here is TP / (TP + FP + FN) at one threshold, as the 2018 Data Science Bowl defined it
(Caicedo et al., "Nucleus segmentation across imaging experiments", Nature Methods 16, 2019) and StarDist
reports it (Schmidt et al., "Cell detection with star-convex polygons", MICCAI 2018). Predicted objects have
no confidence, so it is not the area under a precision-recall curve that detection means by the same name.
Counts are pooled over the objects of a set.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from pixelwise.core.errors import DataError, SettingError
from pixelwise.metrics.confusion import check_pair

THRESHOLDS = (0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90, 0.95)
"""IoU thresholds of the 2018 Data Science Bowl."""

Counts = Mapping[float, tuple[int, int, int]]


def match_counts(
    truth_ids: np.ndarray,
    predicted_ids: np.ndarray,
    thresholds: Sequence[float] = THRESHOLDS,
    ignore: np.ndarray | None = None,
) -> dict[float, tuple[int, int, int]]:
    """Count the objects of one image that match, are surplus, and were missed, at each IoU threshold.

    `truth_ids` and `predicted_ids` are H x W integers, 0 for background, ids in any order and with gaps.
    `ignore` is H x W bool: its pixels become background in both, so that an object entirely inside it vanishes.

    Returns {threshold: (true positives, false positives, false negatives)}.

    Raises:
        DataError: the shapes differ, or a type is not an integer.
        SettingError: a threshold is outside 0.5 to 1.

    >>> match_counts(np.array([[1, 1, 1, 0, 2]]), np.array([[7, 7, 0, 0, 0]]), thresholds=(0.5, 0.75))
    {0.5: (1, 0, 1), 0.75: (0, 1, 2)}
    """
    check_pair(truth_ids, predicted_ids)
    _check_thresholds(thresholds)
    if ignore is not None:
        _check_ignore(ignore, truth_ids)
        truth_ids, predicted_ids = (np.where(ignore, 0, ids) for ids in (truth_ids, predicted_ids))
    overlaps = _pairwise_iou(truth_ids, predicted_ids)
    true, predicted = overlaps.shape
    matched = {threshold: _largest_matching(overlaps, threshold) for threshold in thresholds}
    return {threshold: (count, predicted - count, true - count) for threshold, count in matched.items()}


def _check_thresholds(thresholds: Sequence[float]) -> None:
    for threshold in thresholds:
        if not 0.5 <= threshold <= 1:
            raise SettingError(f"thresholds: an IoU threshold must be from 0.5 to 1, but {threshold} was given.")


def _check_ignore(ignore: np.ndarray, ids: np.ndarray) -> None:
    if ignore.shape != ids.shape or ignore.dtype != bool:
        raise DataError(
            f"ignore: must be a bool array of the labels' shape {ids.shape}, but it is {ignore.dtype} of "
            f"{ignore.shape}."
        )


def _pairwise_iou(truth_ids: np.ndarray, predicted_ids: np.ndarray) -> coo_array:
    """IoU of the objects that overlap: objects in truth x objects predicted, sparse."""
    true, rows = np.unique(truth_ids, return_inverse=True)
    predicted, columns = np.unique(predicted_ids, return_inverse=True)
    pixels = np.ones(truth_ids.size, dtype=np.int64)
    table = coo_array((pixels, (rows.ravel(), columns.ravel())), shape=(true.size, predicted.size)).tocsr()
    true_area, predicted_area = table.sum(axis=1)[true != 0], table.sum(axis=0)[predicted != 0]
    shared = table[true != 0][:, predicted != 0].tocoo()
    union = true_area[shared.row] + predicted_area[shared.col] - shared.data
    return coo_array((shared.data / union, (shared.row, shared.col)), shape=shared.shape)


def _largest_matching(overlaps: coo_array, threshold: float) -> int:
    enough = overlaps.data >= threshold
    if not enough.any():
        return 0
    edges = (overlaps.row[enough], overlaps.col[enough])
    graph = csr_array((np.ones(enough.sum(), dtype=bool), edges), shape=overlaps.shape)
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def sum_counts(counts: Iterable[Counts]) -> dict[float, tuple[int, int, int]]:
    """Add up the counts of several images.

    >>> sum_counts([{0.5: (1, 2, 0)}, {0.5: (3, 0, 1)}])
    {0.5: (4, 2, 1)}
    """
    total: dict[float, tuple[int, int, int]] = {}
    for image in counts:
        for threshold, (hits, surplus, missed) in image.items():
            before = total.get(threshold, (0, 0, 0))
            total[threshold] = (before[0] + hits, before[1] + surplus, before[2] + missed)
    return total


def instance_scores(counts: Counts) -> dict[str, dict[str, float | None]]:
    """Score counted objects at each threshold.

    `counts` is what `match_counts` or `sum_counts` gives. Returns {"0.50": {"ap", "f1", "precision",
    "recall"}, ...}: ap = TP / (TP + FP + FN), f1 = 2 TP / (2 TP + FP + FN), precision = TP / (TP + FP),
    recall = TP / (TP + FN); None where the denominator is zero.

    >>> instance_scores({0.5: (3, 1, 0)})["0.50"]["ap"]
    0.75
    """
    return {f"{threshold:.2f}": _scores(*count) for threshold, count in counts.items()}


def _scores(hits: int, surplus: int, missed: int) -> dict[str, float | None]:
    return {
        "ap": _share(hits, hits + surplus + missed),
        "f1": _share(2 * hits, 2 * hits + surplus + missed),
        "precision": _share(hits, hits + surplus),
        "recall": _share(hits, hits + missed),
    }


def _share(part: int, total: int) -> float | None:
    return part / total if total else None
