import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import measure

from pixelwise.core.classes import IGNORE
from pixelwise.core.errors import SettingError
from pixelwise.data.pixels.targets import NEGLIGIBLE, border_weights, objects

SEEDS = st.integers(0, 2**32 - 1)


def random_instances(seed: int) -> np.ndarray:
    """Blobs with scattered ids, some in several parts, some touching, on a small image of any shape."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 70, 2))
    instances = np.zeros(shape, dtype=rng.choice([np.uint8, np.uint16, np.int32, np.int64]))
    for _ in range(rng.integers(0, 9)):
        row, column = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        height, width = rng.integers(1, 12, 2)
        instances[row : row + height, column : column + width] = rng.choice([1, 2, 5, 77, 200])
    return instances


def literal_border_weights(instances: np.ndarray, w0: float, sigma: float) -> np.ndarray:
    cells = [cell for cell in np.unique(instances) if cell != 0]
    if len(cells) < 2:
        return np.zeros(instances.shape)
    distances = np.sort([ndimage.distance_transform_edt(instances != cell) for cell in cells], axis=0)
    weights = w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))
    return weights * (instances == 0)


@settings(deadline=None, max_examples=50)
@given(SEEDS, st.sampled_from([(10.0, 5.0), (1.0, 0.7), (30.0, 12.0)]))
def test_border_weights_are_the_formula_over_all_cells(seed: int, parameters: tuple[float, float]) -> None:
    instances = random_instances(seed)
    weights = border_weights(instances, *parameters)
    assert weights.dtype == np.float32
    expected = literal_border_weights(instances, *parameters)
    np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=NEGLIGIBLE * parameters[0])


def test_border_weights_of_a_large_image_with_many_cells() -> None:
    rng = np.random.default_rng(7)
    instances = np.zeros((300, 400), dtype=np.int32)
    for cell, (row, column) in enumerate(rng.integers(0, (290, 390), (60, 2)), start=1):
        instances[row : row + 9, column : column + 7] = cell
    expected = literal_border_weights(instances, 10, 5)
    np.testing.assert_allclose(border_weights(instances), expected, rtol=1e-6, atol=1e-7)
    assert expected.max() > 5  # narrow gaps
    assert np.count_nonzero((instances == 0) & (expected < 1e-9)) > 100  # and pixels beyond the reach of any two cells


def test_border_weights_of_two_cells_in_a_row() -> None:
    # d1 + d2 = 6 everywhere between them: 10 exp(-36 / 50).
    weights = border_weights(np.array([[4, 0, 0, 0, 0, 0, 9]]))
    np.testing.assert_allclose(weights, [[0, *[10 * np.exp(-0.72)] * 5, 0]], rtol=1e-6)


@pytest.mark.parametrize("instances", [np.zeros((4, 5), int), np.eye(6, dtype=int), np.full((3, 3), 2), [[1, 2]]])
def test_border_weights_are_zero_with_fewer_than_two_cells_or_no_background(instances: np.ndarray) -> None:
    weights = border_weights(np.asarray(instances))
    assert weights.shape == np.shape(instances)
    assert not weights.any()


@pytest.mark.parametrize("sigma", [0, -1, float("nan")])
def test_a_sigma_that_is_not_positive_is_refused(sigma: float) -> None:
    message = rf"^sigma of the border weights: must be above 0 pixels, but it is {sigma}\.$"
    with pytest.raises(SettingError, match=message):
        border_weights(np.zeros((2, 2), int), sigma=sigma)


@settings(deadline=None, max_examples=50)
@given(SEEDS, st.integers(0, 2))
def test_objects_are_the_connected_components_of_each_class(seed: int, background: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, rng.integers(1, 40, 2)).astype(rng.choice([np.uint8, np.int64]))
    found = objects(labels, background)
    assert found.dtype == np.int32
    expected = measure.label(labels, background=background, connectivity=1)
    pairs = np.unique(np.stack([found.ravel(), expected.ravel()]), axis=1)
    assert np.array_equal(np.unique(found[labels != background]), np.arange(1, expected.max() + 1))
    assert pairs.shape[1] == len(np.unique(expected)) == len(np.unique(pairs[0]))  # one to one
    assert np.array_equal(found == 0, labels == background)


def test_corners_do_not_connect_and_ignored_pixels_are_no_object() -> None:
    assert objects(np.array([[1, 0], [0, 1]])).tolist() == [[1, 0], [0, 2]]
    assert objects(np.array([[1, IGNORE, 1]])).tolist() == [[1, 0, 2]]
    assert not objects(np.zeros((3, 3), np.uint8)).any()
