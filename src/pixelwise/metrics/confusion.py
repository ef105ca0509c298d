"""The confusion matrix of label maps, and the scores that follow from it.

Shapes: H x W pixels (any shape will do, the same for truth and prediction), K classes.

Confusion matrices add up: sum those of a set's images first and score once, so that every pixel of the set has the
same weight. Averaging the scores of single images answers another question. (Everingham et al., "The
Pascal Visual Object Classes Challenge", IJCV 2010, section 4.3; Long, Shelhamer and Darrell, "Fully
Convolutional Networks for Semantic Segmentation", CVPR 2015, section 5.)
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from pixelwise.core.classes import IGNORE
from pixelwise.core.errors import DataError

BLOCK = 1 << 20  # pixels counted at a time, since the 64-bit codes of a large image would fill the memory


def confusion_matrix(
    truth: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_index: int = IGNORE
) -> np.ndarray:
    """Count the pixels of every pair of true and predicted class.

    `truth` and `prediction` are integer arrays of the same shape with values 0 to K - 1; a pixel whose truth is
    `ignore_index` is ignored, whatever was predicted there.

    Returns K x K int64, rows truth, columns prediction.

    Raises:
        DataError: the shapes differ, a type is not an integer, or a counted value is outside 0 to K - 1.

    >>> confusion_matrix(np.array([0, 1, 1, IGNORE]), np.array([0, 1, 0, 0]), num_classes=2).tolist()
    [[1, 0], [1, 1]]
    """
    check_pair(truth, prediction)
    flat_truth, flat_prediction = truth.reshape(-1), prediction.reshape(-1)
    counts = np.zeros(num_classes * num_classes, dtype=np.int64)
    for start in range(0, flat_truth.size, BLOCK):
        block = slice(start, start + BLOCK)
        counts += _count(flat_truth[block], flat_prediction[block], num_classes, ignore_index)
    return counts.reshape(num_classes, num_classes)


def _count(truth: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_index: int) -> np.ndarray:
    counted = truth != ignore_index
    truth, prediction = truth[counted], prediction[counted]
    check_range("truth", truth, num_classes)
    check_range("prediction", prediction, num_classes)
    code = truth.astype(np.intp)
    code *= num_classes
    code += prediction.astype(np.intp)
    return np.bincount(code, minlength=num_classes * num_classes)


def check_pair(truth: np.ndarray, prediction: np.ndarray) -> None:
    """Refuse label maps that cannot be compared pixel by pixel.

    Raises:
        DataError: the shapes differ, or a type is not an integer.
    """
    if truth.shape != prediction.shape:
        raise DataError(
            f"truth and prediction must have the same shape, but they have {truth.shape} and "
            f"{prediction.shape}. Compare them at the image's own size."
        )
    for name, labels in (("truth", truth), ("prediction", prediction)):
        if labels.dtype.kind not in "biu":
            raise DataError(f"{name}: labels must be integers, but the array is {labels.dtype}. Convert it.")


def check_range(name: str, labels: np.ndarray, num_classes: int) -> None:
    """Refuse labels outside the classes; `name` says whose labels they are.

    Raises:
        DataError: a value is outside 0 to K - 1.
    """
    if not labels.size:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"{name}: labels must be 0 to {num_classes - 1}, but {low if low < 0 else high} was found. "
            "Check the number of classes and the value to ignore."
        )


def iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class: hits / (truth + predicted - hits).

    `confusion` is K x K as `confusion_matrix` gives it. Returns K float64 of 0 to 1; NaN for a class that
    occurs in neither truth nor prediction.

    >>> iou(np.array([[2, 1], [0, 1]])).round(3).tolist()
    [0.667, 0.5]
    """
    hits, true, predicted = _totals(confusion)
    return _ratio(hits, true + predicted - hits)


def mean_iou(confusion: np.ndarray, absent: Collection[int] = ()) -> float:
    """The mean of `iou` over the classes that occur in truth or prediction; NaN if none does.

    Classes of `absent`, which training did not know, count only where they occur in the truth.
    """
    return _mean(_known(iou(confusion), confusion, absent))


def _known(scores: np.ndarray, confusion: np.ndarray, absent: Collection[int]) -> np.ndarray:
    """Scores of K classes, NaN for those that neither training nor truth has."""
    unknown = np.isin(np.arange(len(confusion)), list(absent)) & (confusion.sum(axis=1) == 0)
    return np.where(unknown, np.nan, scores)


def dice(confusion: np.ndarray) -> np.ndarray:
    """Dice coefficient (F1) of each class: 2 hits / (truth + predicted); NaN as for `iou`."""
    hits, true, predicted = _totals(confusion)
    return _ratio(2 * hits, true + predicted)


def precision(confusion: np.ndarray) -> np.ndarray:
    """Share of a class's predicted pixels that are right; NaN for a class that is never predicted."""
    hits, _, predicted = _totals(confusion)
    return _ratio(hits, predicted)


def recall(confusion: np.ndarray) -> np.ndarray:
    """Share of a class's true pixels that were found; NaN for a class without a true pixel."""
    hits, true, _ = _totals(confusion)
    return _ratio(hits, true)


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of the counted pixels that are right; NaN if no pixel counts."""
    return float(_ratio(np.trace(confusion), confusion.sum()))


def summary(confusion: np.ndarray, names: Sequence[str], absent: Collection[int] = ()) -> dict[str, Any]:
    """Every score of a confusion matrix, ready for JSON: undefined scores (NaN) become None.

    Returns `mean_iou`, `pixel_accuracy`, `mean_dice`, `confusion` (nested lists, rows truth) and `classes`, a
    list of {`name`, `iou`, `dice`, `precision`, `recall`, `pixels`} where `pixels` counts the class's truth. Classes
    of `absent`, which training did not know, have `trained: false`, too, and stand outside of the means unless they
    occur in the truth.

    Raises:
        DataError: there are more or fewer names than classes.
    """
    if confusion.shape != (len(names), len(names)):
        raise DataError(f"confusion: {len(names)} class names do not fit a matrix of shape {confusion.shape}.")
    scores = {"iou": iou, "dice": dice, "precision": precision, "recall": recall}
    columns = {key: score(confusion) for key, score in scores.items()}
    pixels = confusion.sum(axis=1)
    return {
        "mean_iou": _or_none(mean_iou(confusion, absent)),
        "pixel_accuracy": _or_none(pixel_accuracy(confusion)),
        "mean_dice": _or_none(_mean(_known(columns["dice"], confusion, absent))),
        "confusion": confusion.tolist(),
        "classes": [
            {
                "name": name,
                **{key: _or_none(values[index]) for key, values in columns.items()},
                "pixels": int(pixels[index]),
                **({"trained": False} if index in absent else {}),
            }
            for index, name in enumerate(names)
        ],
    }


def _totals(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each class: pixels that are right, pixels in the truth, pixels in the prediction."""
    return np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    ratio = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=ratio, where=np.asarray(denominator) > 0)
    return ratio


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
