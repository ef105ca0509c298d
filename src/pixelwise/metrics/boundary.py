"""How well the outlines of the classes agree: the boundary F score.

The definition. A pixel *counts* if its truth is not ignored. A *boundary pixel* of a class is a counted pixel
of that class with at least one counted pixel of another class among its four neighbours; so neither the
image's border nor the edge of an ignored region is a boundary. In the prediction the same pixels count. A
boundary pixel of one map is *matched* at tolerance t if a boundary pixel of the same class in the other map
lies at a Euclidean distance of at most t pixels between centres. With P the matched share of the predicted
boundary pixels and R the matched share of the true ones, F = 2 P R / (P + R); a class that has a boundary in
one map only has F = 0.

Source: Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC
2013; used by Takikawa et al., "Gated-SCNN", ICCV 2019. Our deviations: P and R are pooled over the pixels
of the set instead of averaged over its images, and matching is by distance, not one to one.
"""

from collections.abc import Sequence

import edt
import numpy as np

from pixelwise.core.classes import IGNORE
from pixelwise.core.errors import DataError
from pixelwise.data.pixels.targets import label_edges
from pixelwise.metrics.confusion import check_pair, check_range

TOLERANCES = (1, 2, 3)
"""Distances in pixels at which boundaries are compared."""


def boundary_counts(
    truth: np.ndarray,
    prediction: np.ndarray,
    num_classes: int,
    tolerances: Sequence[float] = TOLERANCES,
    ignore_index: int = IGNORE,
) -> np.ndarray:
    """Count boundary pixels and matched boundary pixels; the counts of several images add up.

    `truth` and `prediction` are H x W integers of 0 to K - 1; pixels whose truth is `ignore_index` are
    left out. `tolerances` are T distances in pixels.

    Returns K x T x 4 int64; the last axis holds matched predicted, predicted, matched true and true boundary
    pixels.

    Raises:
        DataError: the shapes differ, a type is not an integer, or a counted value is outside 0 to K - 1.
    """
    check_pair(truth, prediction)
    counted = truth != ignore_index
    check_range("truth", truth[counted], num_classes)
    check_range("prediction", prediction[counted], num_classes)
    true_edges, predicted_edges = label_edges(truth, counted), label_edges(prediction, counted)
    counts = np.zeros((num_classes, len(tolerances), 4), dtype=np.int64)
    for label in np.union1d(truth[true_edges], prediction[predicted_edges]):
        true, predicted = true_edges & (truth == label), predicted_edges & (prediction == label)
        counts[int(label), :, :2] = _matches(predicted, true, tolerances)
        counts[int(label), :, 2:] = _matches(true, predicted, tolerances)
    return counts


def _matches(boundary: np.ndarray, other: np.ndarray, tolerances: Sequence[float]) -> list[tuple[int, int]]:
    """For each tolerance, the number of pixels of `boundary` that are near one of `other`, and of all of them."""
    # Squared distances are whole numbers, so this is exact; if `other` is empty, they are infinite.
    squared = edt.edtsq(~other)[boundary]
    return [(int((squared <= tolerance * tolerance).sum()), squared.size) for tolerance in tolerances]


def boundary_f(counts: np.ndarray, tolerances: Sequence[float] = TOLERANCES) -> dict[str, float]:
    """Boundary F score at each tolerance: the mean over the classes that have a boundary in either map.

    `counts` is K x T x 4, a sum of `boundary_counts` with the same `tolerances`.

    Returns {"1": F, "2": F, ...} with F of 0 to 1; an empty dict where no class has a boundary.

    Raises:
        DataError: the counts were made with another number of tolerances.

    >>> truth = np.array([[0, 0, 1, 1]])
    >>> boundary_f(boundary_counts(truth, truth, num_classes=2))
    {'1': 1.0, '2': 1.0, '3': 1.0}
    """
    if counts.shape[1] != len(tolerances):
        raise DataError(
            f"boundary counts: made for {counts.shape[1]} tolerances, but {len(tolerances)} are given. "
            "Give the same tolerances to boundary_counts and boundary_f."
        )
    present = counts[(counts[:, :, 1] + counts[:, :, 3]).any(axis=1)]
    if not len(present):
        return {}
    means = _f_scores(present).mean(axis=0)
    return {f"{tolerance:g}": float(mean) for tolerance, mean in zip(tolerances, means, strict=True)}


def _f_scores(counts: np.ndarray) -> np.ndarray:
    matched_predicted, predicted, matched_true, true = np.moveaxis(counts, -1, 0)
    # A share of no boundary pixels is 0 / 1 here: its class is missing in one map, so F is 0.
    precision = matched_predicted / np.maximum(predicted, 1)
    recall = matched_true / np.maximum(true, 1)
    total = precision + recall
    scores = np.zeros(total.shape)
    np.divide(2 * precision * recall, total, out=scores, where=total > 0)
    return scores
