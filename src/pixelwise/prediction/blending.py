"""The outputs of windows, fitted together again: each tile gets what it owns.

K channels of an output, h x w pixels of a window.
"""

import numpy as np

from pixelwise.engines import Arrays
from pixelwise.prediction.tiling import Tile, Tiling


class Blender:
    """Cuts what tiles own out of their windows' outputs, and blends the windows of a tiling that overlap.

    The weights of such windows fade across the overlap. Tiles must come row by row, from left to right.
    What a window shares with later ones is kept as strips: one of the image's width at the bottom, one of a window's
    height at the right. So the memory grows with the width alone. Once a window has come, everything is known that
    its tile owns and one row and column more, because the weights of later windows are 0 there.
    """

    def __init__(self, tiling: Tiling) -> None:
        self._tiling = tiling
        self._below: dict[tuple[str, int], np.ndarray] = {}  # output, first column -> K x overlap x window width
        self._beside: Arrays = {}  # K x window height x overlap, for the tile to the right

    def add(self, tile: Tile, outputs: Arrays) -> Arrays:
        """Take in a window's outputs, K x h x w each; give the part of them that the tile owns."""
        if self._tiling.overlap:
            outputs = {name: self._blended(tile, name, values) for name, values in outputs.items()}
        return {name: self._tiling.part(tile, values) for name, values in outputs.items()}

    def _blended(self, tile: Tile, name: str, values: np.ndarray) -> np.ndarray:
        tiling, overlap, left = self._tiling, self._tiling.overlap, tile.window.x0
        height, width = tiling.window_shape
        is_top, is_left = tile.window.y0 == 0, left == 0
        is_bottom, is_right = tile.owned.y1 == tiling.height, tile.owned.x1 == tiling.width
        weights = _fade(height, overlap, is_top, is_bottom)[:, None] * _fade(width, overlap, is_left, is_right)
        mixed: np.ndarray = values * weights.astype(values.dtype)
        if not is_top:
            mixed[:, :overlap] += self._below.pop((name, left))
        if not is_left:
            mixed[:, :, :overlap] += self._beside[name]
        if not is_right:
            self._beside[name] = mixed[:, :, width - overlap :].copy()
        if not is_bottom:
            strip = mixed[:, height - overlap :].copy()
            if not is_right:  # all of its last columns but the first go on to the right, and come down from there
                strip[:, :, width - overlap + 1 :] = 0
            if not is_left:
                strip[:, :, 0] = 0
            self._below[name, left] = strip
        return mixed


def _fade(length: int, overlap: int, is_first: bool, is_last: bool) -> np.ndarray:
    """Weights along a window that sum to 1 with those of its neighbours.

    They begin with 0, so that later tiles do not change one pixel beyond what a tile owns either.

    >>> _fade(6, 3, is_first=True, is_last=False).tolist(), _fade(6, 3, is_first=False, is_last=True).tolist()
    ([1.0, 1.0, 1.0, 1.0, 0.5, 0.0], [0.0, 0.5, 1.0, 1.0, 1.0, 1.0])
    """
    weights = np.ones(length)
    ramp = np.linspace(0, 1, overlap)
    if not is_first:
        weights[:overlap] = ramp
    if not is_last:
        weights[length - overlap :] = 1 - ramp
    return weights
