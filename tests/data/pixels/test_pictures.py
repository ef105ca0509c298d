"""Pictures: what is stretched, coloured, blended and shrunk, against other implementations."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import exposure, segmentation, transform

from pixelwise.core.classes import IGNORE, ClassMap
from pixelwise.data.pixels import pictures

CLASSES = ClassMap(("background", "cell", "wall"))
SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS)
@settings(deadline=None, max_examples=20)
def test_stretch_equals_scikit_image(seed: int) -> None:
    random = np.random.default_rng(seed)
    image = random.gamma(2, 3000, (20, 30, 5)).astype(np.uint16)
    shown = pictures.to_display(image)
    assert shown.dtype == np.uint8
    for channel in range(3):
        values = image[..., channel].astype(np.float64)
        low, high = np.percentile(values, (0.5, 99.5))
        expected = exposure.rescale_intensity(values, (low, high), (0, 255))
        np.testing.assert_allclose(shown[..., channel], expected, atol=1.01)


def test_display_of_each_kind_of_image() -> None:
    random = np.random.default_rng(0)
    color = random.integers(0, 256, (4, 5, 4), dtype=np.uint8)
    np.testing.assert_array_equal(pictures.to_display(color), color[..., :3])
    two = pictures.to_display(color[..., :2])
    np.testing.assert_array_equal(two[..., :2], color[..., :2])
    assert not two[..., 2].any()
    for grey in (color[..., 0], color[..., :1]):
        np.testing.assert_array_equal(pictures.to_display(grey), np.dstack([color[..., 0]] * 3))
    assert pictures.to_display(np.array([[True, False]]))[0, :, 0].tolist() == [255, 0]
    assert not pictures.to_display(np.full((3, 3), 7.5)).any()
    assert not pictures.to_display(np.full((3, 3), np.nan)).any()
    broken = np.array([[np.nan, np.inf, -np.inf, 0.0, 1.0]])
    assert pictures.to_display(broken)[0, :, 0].tolist() == [0, 0, 0, 0, 255]


def test_percentiles_of_a_large_image_come_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).normal(1000, 50, (200, 300)).astype(np.float32)
    exact = pictures.to_display(image).astype(int)
    monkeypatch.setattr(pictures, "SAMPLE", 6000)
    np.testing.assert_allclose(pictures.to_display(image), exact, atol=8)


def test_colorize_shows_classes_and_ignored_pixels() -> None:
    labels = np.array([[0, 1], [2, IGNORE]])
    expected = [[CLASSES.colors[0], CLASSES.colors[1]], [CLASSES.colors[2], (255, 255, 255)]]
    np.testing.assert_array_equal(pictures.colorize(labels, CLASSES), np.array(expected, dtype=np.uint8))


def test_overlay_tints_classes_and_draws_their_outline() -> None:
    image = np.full((5, 7, 3), 100, dtype=np.uint8)
    labels = np.zeros((5, 7), dtype=np.uint16)
    labels[:, 3:] = 1
    labels[:, 6] = IGNORE
    picture = pictures.overlay(image, labels, CLASSES, alpha=0.25)
    color = np.array(CLASSES.colors[1])
    assert (picture[:, :3] == 100).all()
    assert (picture[:, 3] == color).all()
    np.testing.assert_allclose(picture[:, 4:6], np.broadcast_to(75 + color / 4, (5, 2, 3)), atol=0.5)
    assert (picture[:, 6] == 100).all()


@given(SEEDS)
@settings(deadline=None, max_examples=20)
def test_outlines_are_those_of_scikit_image(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, (3, 4)).repeat(3, 0).repeat(4, 1)
    picture = pictures.overlay(np.zeros((*labels.shape, 3), np.uint8), labels, CLASSES, alpha=0.0)
    outlined = picture.any(axis=2)
    expected = segmentation.find_boundaries(labels, connectivity=1, mode="thick") & (labels > 0)
    np.testing.assert_array_equal(outlined, expected)
    np.testing.assert_array_equal(picture[outlined], pictures.colorize(labels, CLASSES)[outlined])


def test_errors_are_red_and_the_rest_is_grey() -> None:
    image = np.random.default_rng(9).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    truth = np.zeros((24, 32), dtype=np.uint16)
    truth[4:12, 4:12] = 1
    truth[-4:] = IGNORE
    prediction = np.where(truth == IGNORE, 0, truth).astype(np.uint8)
    prediction[0, :9] = 1
    picture = pictures.error_picture(image, truth, prediction).astype(int)
    counted = truth != IGNORE
    wrong = (truth != prediction) & counted
    assert wrong.sum() == 9
    assert (picture[wrong][:, 0] > picture[wrong][:, 1] + 100).all()
    assert (np.ptp(picture[~wrong], axis=1) == 0).all()
    right = counted & ~wrong
    np.testing.assert_allclose(picture[right][:, 0], 64 + 0.6 * image[right].mean(axis=1), atol=0.51)
    assert picture[~counted].mean() > picture[right].mean()
    assert picture[~counted].max() > 235


def test_shrink_averages() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    expected = transform.downscale_local_mean(picture, (4, 4, 1))
    # Pillow rounds after each of its two passes, along rows and along columns.
    np.testing.assert_allclose(pictures.shrink(picture, 16), expected, atol=1.0)
    assert pictures.shrink(picture, 64) is picture
    assert pictures.shrink(picture[:1], 8).shape == (1, 8, 3)


def test_png_keeps_every_pixel() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(pictures.png_bytes(picture)))), picture)
