"""Whether a mask lies on its image as it should."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelwise.data.health.alignment import SIDE, Fit, _explained, _indicators, _shifts, _thumbnail, fit_of


def pair(seed: int, size: tuple[int, int] = (96, 96)) -> tuple[np.ndarray, np.ndarray]:
    """An image of discs of two brightnesses on a dark ground, H x W x 1, and its classes."""
    rng = np.random.default_rng(seed)
    classes = np.zeros(size, np.uint8)
    for number in range(9):
        centre = int(rng.integers(10, size[1] - 10)), int(rng.integers(10, size[0] - 10))
        cv2.circle(classes, centre, int(rng.integers(4, 10)), 1 + number % 2, -1)
    image = np.array([60, 130, 200])[classes] + rng.normal(0, 8, size)
    return image.clip(0, 255).astype(np.uint8)[..., None], classes


def literal_share(image: np.ndarray, classes: np.ndarray) -> float:
    """The share of the variance that the classes explain, class by class and channel by channel."""
    shares = []
    for plane in image:
        between = sum(
            plane[classes == value].size * (plane[classes == value].mean() - plane.mean()) ** 2
            for value in np.unique(classes)
        )
        shares.append(between / ((plane - plane.mean()) ** 2).sum())
    return float(np.mean(shares))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(2, 6))
def test_the_fit_is_the_share_of_the_variance(seed: int, channels: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, count, (SIDE, SIDE))
    image = _thumbnail((rng.random((SIDE, SIDE, channels)) * 50 + 20 * classes[..., None]).astype(np.float32))
    indicators = _indicators(classes)
    assert image is not None
    assert indicators is not None
    assert _explained(image, indicators) == pytest.approx(literal_share(image, classes), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, 0), (-5, 7), (16, -16)])
def test_the_fits_of_shifts_are_those_of_shifted_classes(down: int, right: int) -> None:
    image, classes = pair(1)
    small, indicators = _thumbnail(image), _indicators(classes)
    assert small is not None
    assert indicators is not None
    shifts = _shifts(small, indicators)
    moved = np.roll(indicators, (down, right), (1, 2))
    assert shifts[down, right] == pytest.approx(_explained(small, moved), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_a_mask_that_lies_well_is_left_in_peace(seed: int) -> None:
    fit = fit_of(*pair(seed))
    assert fit is not None
    assert fit.now > 0.8
    assert not fit.is_clear


WAYS = {
    "flipped top to bottom": lambda mask: mask[::-1],
    "flipped left to right": lambda mask: mask[:, ::-1],
    "turned by 180 degrees": lambda mask: mask[::-1, ::-1],
    "turned by 90 degrees to the left": lambda mask: np.rot90(mask, -1),  # what undoes it
    "turned by 90 degrees to the right": np.rot90,
    "mirrored on its diagonal": lambda mask: mask.T,
    "mirrored on its other diagonal": lambda mask: mask[::-1, ::-1].T,
    "moved 9 pixels up and 12 pixels right": lambda mask: np.roll(mask, (9, -12), (0, 1)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(3))
def test_what_was_done_to_a_mask_is_told(way: str, seed: int) -> None:
    image, classes = pair(seed)
    fit = fit_of(image, np.ascontiguousarray(WAYS[way](classes)))
    assert fit is not None
    assert fit.is_clear
    assert fit.way == way
    assert fit.best > 0.8 > 2 * fit.now


def test_an_oblong_image_is_not_turned_by_a_quarter() -> None:
    image, classes = pair(0, (64, 128))
    fit = fit_of(image, np.ascontiguousarray(classes[::-1]))
    assert fit is not None
    assert fit.way == "flipped top to bottom"


def test_masks_that_have_nothing_to_do_with_their_images_say_nothing() -> None:
    for seed in range(20):
        fit = fit_of(pair(seed)[0], pair(seed + 1000)[1])
        assert fit is not None
        assert not fit.is_clear


def test_nothing_is_said_where_there_is_nothing_to_see() -> None:
    image, classes = pair(0)
    assert fit_of(image, np.zeros_like(classes)) is None
    assert fit_of(np.full_like(image, 7), classes) is None


def test_a_better_fit_is_clear_only_if_the_edges_agree_and_it_stands_out() -> None:
    assert Fit(0.2, 0.7, "", edges=1.5, deviations=20).is_clear
    assert not Fit(0.2, 0.7, "", edges=1.0, deviations=20).is_clear
    assert not Fit(0.2, 0.7, "", edges=1.5, deviations=3).is_clear
    assert not Fit(0.6, 0.7, "", edges=1.5, deviations=20).is_clear
