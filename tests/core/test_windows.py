"""Windows of an image."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pixelwise.core.windows import Window, blocks, reader

SIZES = st.integers(1, 40)


def test_a_window_is_its_four_numbers() -> None:
    window = Window(2, 5, 0, 4)
    assert window == (2, 5, 0, 4)
    assert (window.height, window.width) == (3, 4)
    assert Window.whole(3, 4) == (0, 3, 0, 4)
    assert window.moved(-2, 1) == (0, 3, 1, 5)
    assert window.shrunk(1) == (3, 4, 1, 3)
    assert window.shrunk(-1) == (1, 6, -1, 5)


def test_the_part_within_an_image() -> None:
    assert Window(-3, 9, 2, 4).within(5, 3) == (0, 5, 2, 3)
    assert Window(1, 2, 0, 3).within(5, 3) == (1, 2, 0, 3)
    assert Window(-4, -2, 5, 9).within(5, 3) == (0, 0, 3, 3)


@given(SIZES, SIZES, st.integers(1, 50))
def test_blocks_cover_every_pixel_once(height: int, width: int, side: int) -> None:
    image, seen = np.arange(height * width).reshape(height, width), np.zeros((height, width), int)
    for window in blocks(height, width, side):
        assert max(window.height, window.width) <= side
        np.testing.assert_array_equal(reader(image)(window), image[window.y0 : window.y1, window.x0 : window.x1])
        seen[window.slices] += 1
    assert (seen == 1).all()
