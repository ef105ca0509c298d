"""The checkerboard of a transposed convolution; the curves stand in test_report.py."""

import io

import numpy as np
import pytest
from PIL import Image

from pixelwise.core.errors import ModelError
from pixelwise.report.figures import checkerboard


def colors(picture: bytes) -> int:
    """How many blues cover at least one part in a hundred of the picture: one for each count."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    image = pixels.reshape(-1, 3)[np.ptp(pixels.reshape(-1, 3).astype(int), axis=1) > 10]
    _, counts = np.unique(image, axis=0, return_counts=True)
    return int((counts > pixels.shape[0] * pixels.shape[1] / 100).sum())


def test_an_uneven_kernel_shows_its_pattern() -> None:
    """Cropped to what every stamp's border leaves, 4 x 4 at stride 2 is one colour and 3 x 3 has three counts."""
    assert colors(checkerboard(5, kernel=4, stride=2, crop=2)) == 1
    assert colors(checkerboard(5, kernel=3, stride=2, crop=1)) == 3


def test_a_picture_for_a_dark_page_differs() -> None:
    light, dark = checkerboard(3, 3, 2), checkerboard(3, 3, 2, dark=True)
    assert light != dark
    assert {Image.open(io.BytesIO(picture)).format for picture in (light, dark)} == {"PNG"}


def test_nothing_cannot_be_drawn() -> None:
    with pytest.raises(ModelError, match=r"a crop of 2 pixels on each side leaves nothing"):
        checkerboard(1, kernel=3, stride=2, crop=2)
