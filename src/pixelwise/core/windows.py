"""A window of an image, and how one is read: the same four numbers everywhere."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """Rows y0 to y1 and columns x0 to x1 of an image, in pixels; each interval holds its start and not its end.

    >>> window = Window(2, 5, 0, 4)
    >>> window.height, window.width, np.zeros((8, 8))[window.slices].shape
    (3, 4, (3, 4))
    """

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.x1 - self.x0

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to index an array whose last two axes (or first two) are an image's."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    @classmethod
    def whole(cls, height: int, width: int) -> "Window":
        """The window that is the whole image."""
        return cls(0, height, 0, width)


Read = Callable[[Window], np.ndarray]
"""Reads a window of an image: h x w x C of the image's type."""
