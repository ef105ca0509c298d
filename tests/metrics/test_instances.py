import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from skimage.segmentation import relabel_sequential

from pixelwise import metrics
from pixelwise.core.errors import DataError, SettingError


@st.composite
def id_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Rectangular objects with ids in any order, and a disturbed copy with other ids."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.integers(1, 16)), draw(st.integers(1, 16))
    blocks = random.integers(0, draw(st.integers(1, 12)), (4, 4))
    truth = np.kron(blocks, np.ones((4, 4), dtype=int))[:height, :width]
    predicted = np.roll(truth, draw(st.integers(0, 2)), axis=draw(st.integers(0, 1)))
    predicted = np.where(random.random(predicted.shape) < 0.1, 0, predicted)
    return (truth * 1000).astype(np.uint16), (predicted * 70_001).astype(np.int32)


def slow_counts(truth: np.ndarray, predicted: np.ndarray, threshold: float) -> tuple[int, int, int]:
    """Every pair of objects as sets of pixels, matched by optimal assignment."""
    trues = [set(np.flatnonzero(truth == value).tolist()) for value in np.unique(truth) if value]
    found = [set(np.flatnonzero(predicted == value).tolist()) for value in np.unique(predicted) if value]
    if not trues or not found:
        return 0, len(found), len(trues)
    enough = np.array([[len(a & b) / len(a | b) >= threshold for b in found] for a in trues])
    hits = int(enough[linear_sum_assignment(enough, maximize=True)].sum())
    return hits, len(found) - hits, len(trues) - hits


@given(id_pairs())
@settings(deadline=None, max_examples=40)
def test_counts_equal_optimal_assignment_of_sets(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, predicted = pair
    counts = metrics.match_counts(truth, predicted)
    assert list(counts) == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    for threshold, count in counts.items():
        assert count == slow_counts(truth, predicted, threshold), threshold


@given(id_pairs())
@settings(deadline=None, max_examples=20)
def test_ids_are_only_names(pair: tuple[np.ndarray, np.ndarray]) -> None:
    truth, predicted = pair
    renamed = relabel_sequential(truth)[0], relabel_sequential(predicted)[0]
    assert metrics.match_counts(*renamed) == metrics.match_counts(truth, predicted)


def test_an_object_cut_into_halves_matches_once() -> None:
    truth = np.ones((2, 4), dtype=np.uint8)
    halves = np.array([[1, 1, 2, 2], [1, 1, 2, 2]], dtype=np.uint8)
    assert metrics.match_counts(truth, halves, (0.5, 0.51)) == {0.5: (1, 1, 0), 0.51: (0, 2, 1)}
    assert metrics.match_counts(halves, truth, (0.5, 0.51)) == {0.5: (1, 0, 1), 0.51: (0, 1, 2)}


def test_a_threshold_is_reached_exactly() -> None:
    truth = np.array([[1] * 20], dtype=np.uint8)
    predicted = np.array([[1] * 11 + [0] * 9], dtype=np.uint8)
    counts = metrics.match_counts(truth, predicted)
    assert (counts[0.55], counts[0.6]) == ((1, 0, 0), (0, 1, 1))


@pytest.mark.parametrize(
    ("truth", "predicted", "expected"),
    [
        ([[0, 0]], [[0, 0]], (0, 0, 0)),
        ([[1, 2]], [[0, 0]], (0, 0, 2)),
        ([[0, 0]], [[5, 5]], (0, 1, 0)),
        ([[3, 3]], [[9, 9]], (1, 0, 0)),
    ],
)
def test_without_background_or_objects(
    truth: list[list[int]], predicted: list[list[int]], expected: tuple[int, int, int]
) -> None:
    assert metrics.match_counts(np.array(truth), np.array(predicted), (0.5,)) == {0.5: expected}


def test_ignored_pixels_are_background_in_both() -> None:
    truth = np.array([[1, 1, 0, 2, 2, 2]])
    predicted = np.array([[0, 0, 0, 4, 4, 0]])
    ignore = np.array([[True, True, False, False, False, True]])
    assert metrics.match_counts(truth, predicted, (0.9,)) == {0.9: (0, 1, 2)}
    assert metrics.match_counts(truth, predicted, (0.9,), ignore) == {0.9: (1, 0, 0)}


@given(st.tuples(*[st.integers(0, 50)] * 3))
@settings(deadline=None, max_examples=40)
def test_scores_equal_formulas_on_lists(count: tuple[int, int, int]) -> None:
    hits, surplus, missed = count
    found = [True] * hits + [False] * surplus
    wanted = [True] * hits + [False] * missed
    scores = metrics.instance_scores({0.5: count, 0.75: (0, 0, 0)})
    precision = sum(found) / len(found) if found else None
    recall = sum(wanted) / len(wanted) if wanted else None
    assert scores["0.50"]["precision"] == precision
    assert scores["0.50"]["recall"] == recall
    if precision and recall:
        assert scores["0.50"]["f1"] == pytest.approx(2 / (1 / precision + 1 / recall))
        assert scores["0.50"]["ap"] == pytest.approx(1 / (1 / precision + 1 / recall - 1))
    assert scores["0.75"] == {"ap": None, "f1": None, "precision": None, "recall": None}


def test_counts_add_up_over_images() -> None:
    random = np.random.default_rng(0)
    images = [(random.integers(0, 4, (6, 6)), random.integers(0, 4, (6, 6))) for _ in range(3)]
    counts = [metrics.match_counts(*image, (0.5, 0.75)) for image in images]
    total = metrics.sum_counts(counts)
    for threshold in (0.5, 0.75):
        assert total[threshold] == tuple(np.sum([count[threshold] for count in counts], axis=0))


@pytest.mark.parametrize("threshold", [0.3, 1.1, float("nan")])
def test_thresholds_below_a_half_are_refused(threshold: float) -> None:
    message = f"thresholds: an IoU threshold must be from 0.5 to 1, but {threshold} was given"
    with pytest.raises(SettingError, match=message):
        metrics.match_counts(np.zeros((2, 2), int), np.zeros((2, 2), int), (0.5, threshold))


def test_an_ignore_mask_that_does_not_fit_is_refused() -> None:
    ids = np.zeros((2, 2), dtype=int)
    message = r"ignore: must be a bool array of the labels' shape \(2, 2\), but it is bool of \(2, 3\)"
    with pytest.raises(DataError, match=message):
        metrics.match_counts(ids, ids, ignore=np.zeros((2, 3), dtype=bool))
    with pytest.raises(DataError, match="but it is uint8 of"):
        metrics.match_counts(ids, ids, ignore=np.zeros((2, 2), dtype=np.uint8))


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="the same shape"):
        metrics.match_counts(np.zeros((2, 2), int), np.zeros((2, 3), int))
    with pytest.raises(DataError, match="prediction: labels must be integers, but the array is float64"):
        metrics.match_counts(np.zeros((2, 2), int), np.zeros((2, 2)))
