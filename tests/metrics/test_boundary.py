import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import cKDTree

from pixelwise import metrics
from pixelwise.core.classes import IGNORE
from pixelwise.core.errors import DataError


@st.composite
def label_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Blocky truth with an ignored part and a disturbed copy as prediction."""
    num_classes = draw(st.integers(2, 5))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    truth = np.kron(random.integers(0, num_classes, (6, 6)), np.ones((4, 4)))[:height, :width].astype(np.uint16)
    prediction = np.roll(truth, draw(st.integers(0, 3)), axis=1)
    noise = random.random(truth.shape) < 0.05
    prediction[noise] = random.integers(0, num_classes, noise.sum())
    if draw(st.booleans()):
        truth[height // 2 :, : width // 2] = IGNORE
    return truth, prediction, num_classes


def slow_boundary(labels: np.ndarray, counted: np.ndarray, label: int) -> list[tuple[int, int]]:
    """Boundary pixels of a class by the definition, pixel by pixel."""
    found = []
    for row, column in np.argwhere(counted & (labels == label)):
        for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            inside = 0 <= near[0] < labels.shape[0] and 0 <= near[1] < labels.shape[1]
            if inside and counted[near] and labels[near] != label:
                found.append((int(row), int(column)))
                break
    return found


def slow_matched(points: list[tuple[int, int]], others: list[tuple[int, int]], tolerance: float) -> int:
    if not points or not others:
        return 0
    distances, _ = cKDTree(others).query(points)
    return int((distances <= tolerance + 1e-9).sum())


@given(label_pairs())
@settings(deadline=None, max_examples=40)
def test_counts_equal_the_definition(pair: tuple[np.ndarray, np.ndarray, int]) -> None:
    truth, prediction, num_classes = pair
    tolerances = (0, 1, 1.5, 3)
    counts = metrics.boundary_counts(truth, prediction, num_classes, tolerances)
    assert counts.shape == (num_classes, 4, 4)
    for label in range(num_classes):
        true = slow_boundary(truth, truth != IGNORE, label)
        predicted = slow_boundary(prediction, truth != IGNORE, label)
        for index, tolerance in enumerate(tolerances):
            assert counts[label, index].tolist() == [
                slow_matched(predicted, true, tolerance),
                len(predicted),
                slow_matched(true, predicted, tolerance),
                len(true),
            ]


@given(label_pairs())
@settings(deadline=None, max_examples=20)
def test_score_equals_dilation_by_discs(pair: tuple[np.ndarray, np.ndarray, int]) -> None:
    """The F measure as video segmentation computes it: outlines dilated by a disc, then intersected."""
    truth, prediction, num_classes = pair
    truth = np.where(truth == IGNORE, 0, truth)
    everywhere = np.ones(truth.shape, dtype=bool)
    rows, columns = np.mgrid[-2:3, -2:3]
    disc = rows**2 + columns**2 <= 4
    scores = []
    for label in range(num_classes):
        true, predicted = np.zeros(truth.shape, bool), np.zeros(truth.shape, bool)
        for outline, labels in ((true, truth), (predicted, prediction)):
            for point in slow_boundary(labels, everywhere, label):
                outline[point] = True
        if not true.any() and not predicted.any():
            continue
        precision = (predicted & ndimage.binary_dilation(true, disc)).sum() / max(predicted.sum(), 1)
        recall = (true & ndimage.binary_dilation(predicted, disc)).sum() / max(true.sum(), 1)
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    result = metrics.boundary_f(metrics.boundary_counts(truth, prediction, num_classes, (2,)), (2,))
    assert result == ({"2": pytest.approx(np.mean(scores), abs=1e-12)} if scores else {})


def test_a_shift_of_one_pixel_is_forgiven_at_tolerance_one_only() -> None:
    truth = np.zeros((20, 20), dtype=np.uint8)
    truth[:, 10:] = 1
    shifted = np.roll(truth, 2, axis=1)
    shifted[:, :2] = 0
    counts = metrics.boundary_counts(truth, shifted, 2)
    assert metrics.boundary_f(counts) == {"1": 0.0, "2": 1.0, "3": 1.0}


def test_counts_of_images_add_up() -> None:
    random = np.random.default_rng(1)
    truth, prediction = random.integers(0, 3, (2, 12, 12), dtype=np.uint8)
    gap = np.full((12, 1), IGNORE, dtype=np.uint16)
    single = metrics.boundary_counts(truth, truth, 3) + metrics.boundary_counts(truth, prediction, 3)
    # Far enough apart, two images side by side count as the sum of both.
    side_by_side = np.hstack([truth, gap, gap, gap, truth])
    predicted = np.hstack([truth, gap, gap, gap, prediction])
    np.testing.assert_array_equal(metrics.boundary_counts(side_by_side, predicted, 3), single)


def test_edges_of_ignored_regions_and_of_the_image_are_no_boundary() -> None:
    truth = np.full((9, 9), 1, dtype=np.uint16)
    truth[3:6, 3:6] = IGNORE
    prediction = np.full((9, 9), 1, dtype=np.uint8)
    prediction[3:6, 3:6] = 0
    counts = metrics.boundary_counts(truth, prediction, 2)
    assert counts.sum() == 0
    assert metrics.boundary_f(counts) == {}


def test_a_boundary_in_one_map_only_scores_zero() -> None:
    truth = np.zeros((8, 8), dtype=np.uint8)
    prediction = truth.copy()
    prediction[2:4, 2:4] = 1
    assert metrics.boundary_f(metrics.boundary_counts(truth, prediction, 2)) == {"1": 0.0, "2": 0.0, "3": 0.0}


def test_other_tolerances_are_refused() -> None:
    counts = metrics.boundary_counts(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), 2, (1, 2))
    message = r"boundary counts: made for 2 tolerances, but 3 are given\. Give the same tolerances to"
    with pytest.raises(DataError, match=message):
        metrics.boundary_f(counts)


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        ([[0, 2]], [[0, 1]], "truth: labels must be 0 to 1, but 2 was found"),
        ([[0, 1]], [[0, 3]], "prediction: labels must be 0 to 1, but 3 was found"),
        ([[0, 1]], [[0], [1]], "the same shape"),
    ],
)
def test_what_cannot_be_compared_is_refused(truth: list[list[int]], prediction: list[list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        metrics.boundary_counts(np.array(truth), np.array(prediction), 2)
