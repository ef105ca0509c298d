"""Random changes of a sample: image and labels move together, by maps that SciPy confirms."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, optimize

from pixelwise.core.classes import IGNORE
from pixelwise.core.config import AugmentSettings
from pixelwise.data.pixels import augment
from pixelwise.data.pixels.augment import (
    Pose,
    change_intensities,
    draw_map,
    draw_pose,
    move_boxes,
    move_points,
    warp_image,
    warp_labels,
    warp_weights,
)

SEEDS = st.integers(0, 2**32 - 1)
Maps = tuple[np.ndarray, np.ndarray]

NOTHING = {
    "flip_horizontal": False,
    "flip_vertical": False,
    "turns": False,
    "warp": 1,
    "rotation": 0,
    "scale": 0,
    "aspect": 0,
    "elastic": 0,
    "brightness": 0,
    "contrast": 0,
    "noise": 0,
    "blur": 0,
}
ALL = AugmentSettings(warp=0.8, elastic_probability=1)
WARPED = ALL.model_copy(update={"warp": 1})


def only(**changes: Any) -> AugmentSettings:
    """Nothing but these changes."""
    return AugmentSettings(**(NOTHING | changes))


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_maps(seed: int, image_size: tuple[int, int], chosen: AugmentSettings = ALL) -> Maps:
    """Maps of a sample of random size, anywhere over an image and beyond its border."""
    rng = generator(seed)
    size = tuple(rng.integers(1, 40, 2).tolist())
    centre = tuple(rng.uniform(-3, length + 3) for length in image_size)
    return draw_map(rng, chosen, draw_pose(rng, chosen), centre, size)


# The pose


def test_without_settings_nothing_moves() -> None:
    assert np.array_equal(draw_pose(generator(0), only()).matrix, np.eye(2))


def test_flips_are_exact_and_each_is_drawn_half_of_the_time() -> None:
    matrices = [
        draw_pose(generator(seed), only(flip_horizontal=True, flip_vertical=True)).matrix for seed in range(200)
    ]
    found = [(matrix[0, 0], matrix[1, 1]) for matrix in matrices]
    assert set(found) == {(1, 1), (-1, 1), (1, -1), (-1, -1)}
    assert all(matrix[0, 1] == matrix[1, 0] == 0 for matrix in matrices)
    assert min(found.count(signs) for signs in set(found)) > 25
    for key, axis in (("flip_horizontal", 0), ("flip_vertical", 1)):
        signs = {tuple(np.diag(draw_pose(generator(seed), only(**{key: True})).matrix)) for seed in range(40)}
        assert signs == {(1.0, 1.0), tuple(-1.0 if place == axis else 1.0 for place in range(2))}


def sampled(image: np.ndarray, pose: Pose) -> np.ndarray:
    """The whole of a square image in a pose."""
    size = image.shape[:2]
    centre = (size[0] - 1) / 2, (size[1] - 1) / 2
    return warp_image(image, draw_map(generator(0), only(), pose, centre, size))


@pytest.mark.parametrize("side", [1, 2, 7, 64])
@pytest.mark.parametrize("warp", [0, 1])
def test_flips_and_turns_move_pixels_without_a_change(side: int, warp: int) -> None:
    image = generator(1).integers(0, 2**16, (side, side, 3)).astype(np.uint16)
    ways = {
        (turns, flip): np.rot90(np.flip(image, axis=1) if flip else image, turns)
        for turns in range(4)
        for flip in (False, True)
    }
    chosen = only(flip_horizontal=True, flip_vertical=True, turns=True, warp=warp)
    met = set()
    for seed in range(60):
        result = sampled(image, draw_pose(generator(seed), chosen))
        same = [way for way, expected in ways.items() if np.array_equal(result, expected)]
        assert len(same) == (8 if side == 1 else 1)
        met |= set(same)
    assert met == set(ways)


@pytest.mark.parametrize("size", [(5, 8), (8, 5), (1, 6)])
@pytest.mark.parametrize(("signs", "axes"), [((-1, 1), (1,)), ((1, -1), (0,)), ((-1, -1), (0, 1)), ((1, 1), ())])
def test_a_flip_is_numpys(size: tuple[int, int], signs: tuple[int, int], axes: tuple[int, ...]) -> None:
    image = generator(2).random((*size, 2)).astype(np.float32)
    assert np.array_equal(sampled(image, Pose(np.diag(signs).astype(float))), np.flip(image, axes))


@settings(deadline=None, max_examples=50)
@given(SEEDS, st.floats(0, 180), st.floats(0, 0.9), st.floats(0, 0.9))
def test_rotation_zoom_and_aspect_stay_within_their_bounds(
    seed: int, rotation: float, scale: float, aspect: float
) -> None:
    matrix = draw_pose(generator(seed), only(rotation=rotation, scale=scale, aspect=aspect)).matrix
    along_x, along_y = np.linalg.norm(matrix, axis=0)
    assert matrix[:, 0] @ matrix[:, 1] == pytest.approx(0, abs=1e-9)  # no shear
    assert 1 / (1 + scale) - 1e-9 <= np.sqrt(along_x * along_y) <= 1 + scale + 1e-9
    assert 1 / (1 + aspect) - 1e-9 <= along_x / along_y <= 1 + aspect + 1e-9
    assert np.linalg.det(matrix) > 0
    assert abs(np.rad2deg(np.arctan2(matrix[1, 0], matrix[0, 0]))) <= rotation + 1e-9


def test_the_bounds_are_nearly_reached() -> None:
    poses = [draw_pose(generator(seed), only(rotation=30, scale=0.5)).matrix for seed in range(300)]
    angles = np.rad2deg([np.arctan2(matrix[1, 0], matrix[0, 0]) for matrix in poses])
    zooms = np.sqrt([np.linalg.det(matrix) for matrix in poses])
    assert (angles.min(), angles.max()) == pytest.approx((-30, 30), abs=1)
    assert (zooms.min(), zooms.max()) == pytest.approx((1 / 1.5, 1.5), rel=0.02)
    assert np.median(zooms) == pytest.approx(1, abs=0.06)  # as often smaller as larger


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_the_extent_holds_the_corners(seed: int) -> None:
    pose = draw_pose(generator(seed), ALL)
    height, width = generator(seed).integers(1, 100, 2)
    corners = [pose.matrix @ (x, y) for x in (-width / 2, width / 2) for y in (-height / 2, height / 2)]
    assert pose.extent((height, width)) == pytest.approx(np.abs(corners).max(axis=0)[::-1])


# The map


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.sampled_from([(1, 1), (5, 8), (8, 5), (30, 31)]))
def test_a_sample_that_is_not_warped_keeps_its_pixels(seed: int, size: tuple[int, int]) -> None:
    rng = generator(seed)
    chosen = AugmentSettings(warp=0, elastic_probability=1)
    pose = draw_pose(rng, chosen)
    assert not pose.warped
    assert sorted(np.abs(pose.matrix).ravel()) == [0, 0, 1, 1]
    centre = tuple(rng.uniform(20, 80, 2).tolist())
    maps = draw_map(rng, chosen, pose, centre, size)
    columns, rows = (coordinates.astype(int) for coordinates in maps)
    assert np.array_equal(np.stack([columns, rows]), maps)  # whole pixels
    assert (rows.mean(), columns.mean()) == pytest.approx(centre, abs=0.5001)
    assert np.unique(rows * 100 + columns).size == size[0] * size[1]  # each another
    image = rng.integers(0, 2**16, (100, 100, 2)).astype(np.uint16)
    assert np.array_equal(warp_image(image, maps), image[rows, columns])
    labels = rng.integers(0, 200, (100, 100)).astype(np.uint8)
    assert np.array_equal(warp_labels(labels, maps), labels[rows, columns])


def test_samples_are_warped_as_often_as_it_says() -> None:
    for share in (0, 0.3, 1):
        poses = [draw_pose(generator(seed), AugmentSettings(warp=share)) for seed in range(300)]
        assert np.mean([pose.warped for pose in poses]) == pytest.approx(share, abs=0.08 * (0 < share < 1))


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_without_elastic_deformation_the_map_is_affine(seed: int) -> None:
    rng = generator(seed)
    pose = draw_pose(rng, WARPED)
    height, width = rng.integers(1, 50, 2).tolist()
    centre = tuple(rng.uniform(-100, 1000, 2))
    for still in (only(), only(elastic=4, elastic_probability=0)):
        map_x, map_y = draw_map(rng, still, pose, centre, (height, width))
        assert map_x.shape == map_y.shape == (height, width)
        assert map_x.dtype == map_y.dtype == np.float32
        for y, x in {(0, 0), (height - 1, 0), (height // 2, width // 3), (height - 1, width - 1)}:
            from_centre = pose.matrix @ (x - (width - 1) / 2, y - (height - 1) / 2)
            assert (map_x[y, x], map_y[y, x]) == pytest.approx(
                (centre[1] + from_centre[0], centre[0] + from_centre[1]), rel=1e-6, abs=1e-4
            )


def test_the_elastic_deformation_is_as_strong_as_it_says_and_smooth() -> None:
    size, pose = (200, 300), Pose(np.eye(2))
    straight = np.stack(draw_map(generator(0), only(), pose, (100, 100), size))
    chosen = only(elastic=4, elastic_spacing=40, elastic_probability=1)
    fields = [np.stack(draw_map(generator(seed), chosen, pose, (100, 100), size)) - straight for seed in range(30)]
    strength = np.std([field[:, ::20, ::20] for field in fields])
    assert 2.5 < strength < 4.5  # less between the grid's points than on them
    assert abs(np.mean(fields)) < 0.5
    steps = max(np.abs(np.diff(field, axis=axis)).max() for field in fields for axis in (1, 2))
    assert steps < 1  # neighbours stay in order: nothing folds over
    correlation = np.corrcoef(fields[0][0].ravel(), fields[0][1].ravel())[0, 1]
    assert abs(correlation) < 0.6  # x and y are drawn apart


def test_the_elastic_deformation_comes_as_often_as_it_says() -> None:
    chosen = only(elastic=3, elastic_probability=0.25)
    still = np.stack(draw_map(generator(0), only(), Pose(np.eye(2)), (5, 5), (6, 7)))
    moved = [
        not np.array_equal(draw_map(generator(seed), chosen, Pose(np.eye(2)), (5, 5), (6, 7)), still)
        for seed in range(300)
    ]
    assert 0.17 < np.mean(moved) < 0.33


# Resampling


LONGEST = st.sampled_from([augment.LONGEST, 1])  # with 1, every image is cut to what the map needs


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.sampled_from([np.uint8, np.uint16, np.float32, np.int32]), st.integers(1, 9), LONGEST)
def test_an_image_is_interpolated_linearly_and_mirrored(seed: int, dtype: type, channels: int, longest: int) -> None:
    rng = generator(seed)
    shape = (*rng.integers(1, 40, 2), channels)
    image = (rng.random(shape) * 200).astype(dtype)
    maps = random_maps(seed, shape[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "LONGEST", longest)
        result = warp_image(image, maps)
    assert result.shape == (*maps[0].shape, channels)
    for channel in range(channels):
        plane = image[..., channel].astype(np.float64)
        expected = ndimage.map_coordinates(plane, [maps[1], maps[0]], order=1, mode="mirror")
        # OpenCV may round coordinates to 1/32 of a pixel, and keeps whole numbers whole.
        bound = 200 * 2 / 64 + (0.5 if np.issubdtype(dtype, np.integer) else 0)
        assert np.abs(result[..., channel] - expected).max() <= bound + 1e-3


@settings(deadline=None, max_examples=40)
@given(SEEDS, LONGEST)
def test_weights_are_interpolated_linearly(seed: int, longest: int) -> None:
    weights = generator(seed).random((20, 30)).astype(np.float32)
    maps = random_maps(seed, weights.shape)
    expected = ndimage.map_coordinates(weights, [maps[1], maps[0]], order=1, mode="nearest")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "LONGEST", longest)
        result = warp_weights(weights, maps)
    assert result.dtype == np.float32
    assert np.abs(result - expected).max() <= 2 / 64 + 1e-4


def nearest(labels: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the pixel nearest to each place says, `IGNORE` outside; and where that is not in doubt."""
    rows, columns = np.rint(y).astype(int), np.rint(x).astype(int)
    inside = (rows >= 0) & (rows < labels.shape[0]) & (columns >= 0) & (columns < labels.shape[1])
    found = labels[rows.clip(0, labels.shape[0] - 1), columns.clip(0, labels.shape[1] - 1)]
    near_a_tie = 1 / 32
    sure = (np.abs(np.abs(y - rows) - 0.5) > near_a_tie) & (np.abs(np.abs(x - columns) - 0.5) > near_a_tie)
    return np.where(inside, found, IGNORE), sure


@settings(deadline=None, max_examples=60)
@given(SEEDS, LONGEST)
def test_labels_are_those_of_the_nearest_pixel_and_unknown_beyond_the_border(seed: int, longest: int) -> None:
    rng = generator(seed)
    labels = rng.integers(0, 200, rng.integers(1, 40, 2)).astype(np.uint8)
    maps = random_maps(seed, labels.shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "LONGEST", longest)
        result = warp_labels(labels, maps)
    expected, sure = nearest(labels, maps[1].astype(float), maps[0].astype(float))
    assert result.dtype == np.uint8
    assert np.array_equal(result[sure], expected[sure])


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_image_and_labels_move_together(seed: int) -> None:
    """An image that holds its own coordinates tells where each label came from."""
    rng = generator(seed)
    labels = rng.integers(0, 200, (45, 37)).astype(np.uint16)
    image = np.stack(np.mgrid[:45, :37], axis=2).astype(np.float32)
    maps = random_maps(seed, labels.shape)
    where, found = warp_image(image, maps), warp_labels(labels, maps)
    expected, sure = nearest(labels, where[..., 0], where[..., 1])
    seen = sure & (found != IGNORE)
    assert np.array_equal(found[seen], expected[seen])


def test_an_image_that_equals_its_labels_still_does_after_all_changes() -> None:
    rows, columns = np.mgrid[:80, :90]
    labels = ((rows // 11 + columns // 13) % 2).astype(np.uint16)
    seen = 0
    for seed in range(20):
        maps = draw_map(rng := generator(seed), ALL, draw_pose(rng, ALL), (40, 45), (64, 64))
        image, moved = warp_image(labels[..., None].astype(np.float32), maps)[..., 0], warp_labels(labels, maps)
        known = moved != IGNORE
        # The nearest pixel has at least a quarter of the weight.
        assert (moved[known & (image < 0.2)] == 0).all()
        assert (moved[known & (image > 0.8)] == 1).all()
        assert np.mean((image > 0.5) == moved, where=known) > 0.97
        seen += np.count_nonzero(known)
    assert seen > 20 * 64 * 64 * 0.8


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 3), (2, 2, 5)])
def test_images_of_a_few_pixels_can_be_warped(shape: tuple[int, int, int]) -> None:
    image = np.full(shape, 7, np.uint8)
    maps = draw_map(generator(0), ALL, draw_pose(generator(0), ALL), (0, 0), (33, 21))
    assert warp_image(image, maps).tolist() == np.full((33, 21, shape[2]), 7).tolist()
    assert set(np.unique(warp_labels(np.ones(shape[:2], np.uint16), maps))) <= {1, IGNORE}


def test_a_long_image_can_be_warped() -> None:
    image = np.arange(40_000, dtype=np.float32).reshape(40_000, 1, 1)
    maps = draw_map(generator(0), only(), Pose(np.eye(2)), (39_000.0, 0.0), (5, 1))
    assert warp_image(image, maps).ravel().tolist() == [38_998, 38_999, 39_000, 39_001, 39_002]
    assert warp_labels((image[..., 0] % 200).astype(np.uint8), maps).ravel().tolist() == [198, 199, 0, 1, 2]
    assert warp_weights(image[..., 0], maps).ravel().tolist() == [38_998, 38_999, 39_000, 39_001, 39_002]


# Intensities

NOISE = generator(3).normal(size=(40, 50, 3)).astype(np.float32)


def test_without_settings_intensities_stay() -> None:
    for seed in range(10):
        assert np.array_equal(change_intensities(generator(seed), only(), NOISE), NOISE)


@pytest.mark.parametrize("color", [0, 1])
def test_brightness_and_contrast_are_a_line_within_bounds(color: int) -> None:
    chosen = only(brightness=0.3, contrast=0.5, color=color)
    gains, offsets = [], []
    for seed in range(200):
        result = change_intensities(generator(seed), chosen, NOISE)
        lines = [np.polyfit(NOISE[..., channel].ravel(), result[..., channel].ravel(), 1) for channel in range(3)]
        gain, offset = np.transpose(lines)
        np.testing.assert_allclose(result, NOISE * gain + offset, atol=1e-4)
        assert (np.ptp(gain) > 1e-4) == (np.ptp(offset) > 1e-4) == bool(color)
        gains.append(gain)
        offsets.append(offset)
    assert 1 / 1.5 - 1e-4 <= np.min(gains) < 0.7
    assert 1.45 < np.max(gains) <= 1.5 + 1e-4
    assert (np.min(offsets), np.max(offsets)) == pytest.approx((-0.3, 0.3), abs=0.01)
    assert np.abs(offsets).max() <= 0.3 + 1e-4


def test_noise_has_at_most_the_strength_that_is_set() -> None:
    chosen = only(noise=0.4, noise_probability=0.5)
    strengths = np.array([np.std(change_intensities(generator(seed), chosen, NOISE) - NOISE) for seed in range(200)])
    assert 70 < np.count_nonzero(strengths) < 130
    assert 0.35 < strengths.max() < 0.41
    assert np.median(strengths[strengths > 0]) == pytest.approx(0.2, abs=0.06)
    moved = change_intensities(generator(1), only(noise=0.4, noise_probability=1), NOISE) - NOISE
    assert abs(np.corrcoef(moved[..., 0].ravel(), moved[..., 1].ravel())[0, 1]) < 0.1  # each channel has its own


@pytest.mark.parametrize("seed", range(5))
def test_blur_is_a_gaussian_within_bounds(seed: int) -> None:
    result = change_intensities(generator(seed), only(blur=2.0, blur_probability=1), NOISE)

    def distance(sigma: float) -> float:
        expected = ndimage.gaussian_filter(NOISE, (sigma, sigma, 0), mode="mirror", truncate=6)
        return float(np.abs(result - expected).max())

    best = optimize.minimize_scalar(distance, bounds=(0.4, 2.1), method="bounded", options={"xatol": 1e-5})
    assert 0.5 - 1e-3 <= best.x <= 2.0 + 1e-3
    assert best.fun < 5e-3


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (9, 7, 1), (9, 7, 6)])
def test_intensities_keep_shape_and_type(shape: tuple[int, int, int]) -> None:
    strong = AugmentSettings(blur_probability=1, noise_probability=1)
    image = generator(0).random(shape).astype(np.float32)
    before = image.copy()
    result = change_intensities(generator(0), strong, image)
    assert (result.shape, result.dtype) == (shape, np.float32)
    assert np.isfinite(result).all()
    assert not np.array_equal(result, before)
    assert np.array_equal(image, before)  # the stored image is not touched


# Points and boxes


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_point_goes_back_to_where_its_map_came_from(seed: int) -> None:
    rng = generator(seed)
    size = tuple(rng.integers(120, 200, 2).tolist())  # smaller ones may fold over, so that there is no one way back
    maps = draw_map(rng, ALL, draw_pose(rng, ALL), (70.0, 90.0), size)
    places = rng.uniform(0, 1, (20, 2)) * (size[1] - 1, size[0] - 1)
    points = np.stack([ndimage.map_coordinates(axis, places[:, ::-1].T, order=1) for axis in maps], axis=1)
    np.testing.assert_allclose(move_points(points, maps), places, atol=0.02)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_a_moved_point_stands_where_the_picture_of_it_does(seed: int) -> None:
    rng = generator(seed)
    maps = draw_map(rng, ALL, draw_pose(rng, ALL), (60.0, 60.0), (144, 144))
    y, x = np.mgrid[:120, :120]
    image = np.exp(-((y - 57) ** 2 + (x - 64) ** 2) / 18).astype(np.float32)[..., None]
    warped, moved = warp_image(image, maps)[..., 0], move_points(np.array([[64.0, 57.0]]), maps)[0]
    rows, columns = np.mgrid[:144, :144]
    near = np.hypot(columns - moved[0], rows - moved[1]) < 20  # beyond its border the image is mirrored, and so is this
    brightest = np.unravel_index(np.where(near, warped, 0).argmax(), (144, 144))
    assert warped[brightest] > 0.8
    np.testing.assert_allclose(moved, brightest[::-1], atol=1.0)


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_boxes_hold_what_is_labelled_and_no_more(seed: int) -> None:
    """Flips and turns keep pixels whole, so the box of a moved rectangle is exact."""
    rng = generator(seed)
    chosen = only(flip_horizontal=True, flip_vertical=True, turns=True, warp=0)
    maps = draw_map(rng, chosen, draw_pose(rng, chosen), (20.0, 20.0), (40, 40))
    x0, y0 = rng.integers(8, 20, 2)
    x1, y1 = x0 + rng.integers(1, 10), y0 + rng.integers(1, 10)
    labels = np.zeros((40, 40), np.uint8)
    labels[y0:y1, x0:x1] = 1
    rows, columns = np.nonzero(warp_labels(labels, maps) == 1)
    wanted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(move_boxes(np.array([[x0, y0, x1, y1]]), maps)[0], wanted, atol=1e-6)


def test_a_point_beyond_the_sample_goes_on_along_the_map() -> None:
    maps = draw_map(generator(0), only(), Pose(np.eye(2)), (50.0, 50.0), (11, 21))
    np.testing.assert_allclose(move_points(np.array([[0.0, 100.0]]), maps), [[-40, 55]], atol=1e-4)
