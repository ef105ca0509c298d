"""A window of an image, and how to read one: the same four numbers everywhere."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """Rows y0 to y1 and columns x0 to x1 of an image, in pixels; each interval includes its start but not its end.

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
        """Rows and columns, to index an array in which they are two neighbouring axes."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def moved(self, down: int, right: int) -> "Window":
        """The same window, shifted by so many pixels."""
        return Window(self.y0 + down, self.y1 + down, self.x0 + right, self.x1 + right)

    def shrunk(self, border: int) -> "Window":
        """The window without a border of so many pixels."""
        return Window(self.y0 + border, self.y1 - border, self.x0 + border, self.x1 - border)

    def within(self, height: int, width: int) -> "Window":
        """The part that lies in an image of this size; an empty window if there is none.

        >>> Window(-2, 5, 6, 12).within(8, 8)
        Window(y0=0, y1=5, x0=6, x1=8)
        """
        limits = (height, height, width, width)
        return Window(*(min(max(edge, 0), limit) for edge, limit in zip(self, limits, strict=True)))

    @classmethod
    def whole(cls, height: int, width: int) -> "Window":
        """The window that covers the whole image."""
        return cls(0, height, 0, width)


Read = Callable[[Window], np.ndarray]
"""Reads a window of an image: h x w x C of the image's type, or h x w."""


def reader(image: np.ndarray) -> Read:
    """A function that reads windows of an image in memory, H x W x C or H x W, as views."""
    return lambda window: image[window.slices]


def blocks(height: int, width: int, side: int) -> Iterator[Window]:
    """Cut an image into squares of `side` pixels, row by row; those at the right and the bottom may be smaller.

    >>> [(block.height, block.width) for block in blocks(2, 5, 4)]
    [(2, 4), (2, 1)]
    """
    for y0 in range(0, height, side):
        for x0 in range(0, width, side):
            yield Window(y0, min(y0 + side, height), x0, min(x0 + side, width))
