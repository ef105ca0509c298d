import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import contingency_table

from pixelwise import metrics
from pixelwise.core.classes import IGNORE
from pixelwise.core.errors import DataError
from pixelwise.metrics import confusion

LECTURE_TRUTH = np.array([[1, 1, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]], dtype=np.uint8)
LECTURE_PREDICTION = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0]], dtype=np.uint8)


@st.composite
def label_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Truth with ignored pixels, prediction, number of classes; some classes may be absent."""
    num_classes = draw(st.integers(1, 7))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    present = draw(st.integers(1, num_classes))
    dtype = draw(st.sampled_from([np.uint16, np.int32, np.int64]))
    truth = random.integers(0, present, shape).astype(dtype)
    prediction = random.integers(0, num_classes, shape).astype(dtype)
    truth[random.random(shape) < draw(st.sampled_from([0.0, 0.2]))] = IGNORE
    return truth, prediction, num_classes


def test_lecture_example_is_three_elevenths() -> None:
    matrix = metrics.confusion_matrix(LECTURE_TRUTH, LECTURE_PREDICTION, num_classes=2)
    assert matrix[1, 1] == 3
    assert metrics.iou(matrix)[1] == pytest.approx(3 / 11, abs=1e-12)


@given(label_pairs())
@settings(deadline=None, max_examples=40)
def test_matrix_equals_scikit_image(pair: tuple[np.ndarray, np.ndarray, int]) -> None:
    truth, prediction, num_classes = pair
    matrix = metrics.confusion_matrix(truth, prediction, num_classes)
    counted = truth != IGNORE
    expected = np.zeros((num_classes, num_classes), dtype=np.int64)
    if counted.any():
        table = contingency_table(truth[counted].astype(int), prediction[counted].astype(int))
        rows, columns = table.shape
        expected[:rows, :columns] = table.toarray()
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, expected)


def literal(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


@given(label_pairs())
@settings(deadline=None, max_examples=40)
def test_scores_equal_formulas_on_sets_of_pixels(pair: tuple[np.ndarray, np.ndarray, int]) -> None:
    truth, prediction, num_classes = pair
    matrix = metrics.confusion_matrix(truth, prediction, num_classes)
    expected: dict[str, list[float]] = {"iou": [], "dice": [], "precision": [], "recall": []}
    for label in range(num_classes):
        true = set(np.flatnonzero(truth == label).tolist())
        predicted = set(np.flatnonzero((prediction == label) & (truth != IGNORE)).tolist())
        expected["iou"].append(literal(len(true & predicted), len(true | predicted)))
        expected["dice"].append(literal(2 * len(true & predicted), len(true) + len(predicted)))
        expected["precision"].append(literal(len(true & predicted), len(predicted)))
        expected["recall"].append(literal(len(true & predicted), len(true)))
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(metrics, name)(matrix), values, rtol=1e-12, err_msg=name)
    present = [value for value in expected["iou"] if not np.isnan(value)]
    assert metrics.mean_iou(matrix) == pytest.approx(np.mean(present) if present else np.nan, nan_ok=True)
    right = int(((truth == prediction) & (truth != IGNORE)).sum())
    accuracy = literal(right, int((truth != IGNORE).sum()))
    assert metrics.pixel_accuracy(matrix) == pytest.approx(accuracy, nan_ok=True)


def test_blocks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    truth, prediction = random.integers(0, 4, (2, 33, 31), dtype=np.uint8)
    whole = metrics.confusion_matrix(truth, prediction, 4)
    monkeypatch.setattr(confusion, "BLOCK", 100)
    np.testing.assert_array_equal(metrics.confusion_matrix(truth, prediction, 4), whole)
    assert whole.sum() == truth.size


def test_ignored_pixels_count_nowhere_whatever_is_predicted() -> None:
    truth = np.array([[0, IGNORE, IGNORE], [1, 1, 3]], dtype=np.uint16)
    prediction = np.array([[0, 77, IGNORE], [1, 0, 1]], dtype=np.uint16)
    truth[1, 2] = IGNORE
    assert metrics.confusion_matrix(truth, prediction, 2).tolist() == [[1, 0], [1, 1]]
    truth[truth == IGNORE] = 3
    assert metrics.confusion_matrix(truth, prediction, 2, ignore_index=3).tolist() == [[1, 0], [1, 1]]


def test_many_classes_do_not_overflow_uint8() -> None:
    labels = np.arange(255, dtype=np.uint8)
    np.testing.assert_array_equal(metrics.confusion_matrix(labels, labels, 255), np.eye(255))


def test_bool_masks_are_two_classes() -> None:
    matrix = metrics.confusion_matrix(LECTURE_TRUTH.astype(bool), LECTURE_PREDICTION.astype(bool), 2)
    assert matrix.tolist() == [[5, 1], [7, 3]]


def test_summary_has_the_keys_of_metrics_json() -> None:
    truth = np.array([0, 0, 1, 1, 1], dtype=np.uint8)
    prediction = np.array([0, 1, 1, 1, 1], dtype=np.uint8)
    result = metrics.summary(metrics.confusion_matrix(truth, prediction, 3), ["back", "cell", "rare"])
    assert result == {
        "mean_iou": pytest.approx((1 / 2 + 3 / 4) / 2),
        "pixel_accuracy": pytest.approx(4 / 5),
        "mean_dice": pytest.approx((2 / 3 + 6 / 7) / 2),
        "confusion": [[1, 1, 0], [0, 3, 0], [0, 0, 0]],
        "classes": [
            {
                "name": "back",
                "iou": 0.5,
                "dice": pytest.approx(2 / 3),
                "precision": 1.0,
                "recall": 0.5,
                "pixels": 2,
            },
            {
                "name": "cell",
                "iou": 0.75,
                "dice": pytest.approx(6 / 7),
                "precision": 0.75,
                "recall": 1.0,
                "pixels": 3,
            },
            {"name": "rare", "iou": None, "dice": None, "precision": None, "recall": None, "pixels": 0},
        ],
    }


def test_summary_of_nothing_is_none() -> None:
    result = metrics.summary(np.zeros((2, 2), dtype=np.int64), ["a", "b"])
    assert [result[key] for key in ("mean_iou", "pixel_accuracy", "mean_dice")] == [None, None, None]


def test_summary_refuses_names_that_do_not_fit() -> None:
    with pytest.raises(DataError, match=r"confusion: 1 class names do not fit a matrix of shape \(2, 2\)\."):
        metrics.summary(np.zeros((2, 2), dtype=np.int64), ["a"])


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        (
            [0, 1],
            [0, 2],
            r"^prediction: labels must be 0 to 1, but 2 was found\. Check the number of classes",
        ),
        ([0, 7], [0, 1], r"^truth: labels must be 0 to 1, but 7 was found\. Check the number of classes"),
        ([-1, 0], [0, 1], r"^truth: labels must be 0 to 1, but -1 was found\."),
        ([0, 1], [0, IGNORE], r"^prediction: labels must be 0 to 1, but 65535 was found\."),
        (
            [0, 1],
            [0.0, 1.0],
            r"^prediction: labels must be integers, but the array is float64\. Convert it\.",
        ),
        (
            [0, 1],
            [0],
            r"the same shape, but they have \(2,\) and \(1,\)\. Compare them at the image's own size",
        ),
    ],
)
def test_what_cannot_be_counted_is_refused(truth: list[int], prediction: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        metrics.confusion_matrix(np.array(truth), np.array(prediction), num_classes=2)
