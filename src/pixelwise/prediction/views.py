"""Test-time augmentation: the mean of a network's outputs over several views of an image."""

from collections.abc import Callable

import numpy as np

from pixelwise.engines import Arrays

VIEWS = {"none": 1, "flips": 4, "turns": 8}  # test-time augmentation -> runs of the network for a window


def mean_of_views(run: Callable[[np.ndarray], Arrays], windows: np.ndarray, count: int) -> Arrays:
    """The mean of the outputs over the first `count` views of N x C x h x w windows, each turned back."""
    totals: Arrays = {}
    for view in range(count):
        for name, values in run(np.ascontiguousarray(_turned(windows, view))).items():
            totals[name] = totals.get(name, 0) + _turned_back(values, view)
    return {name: total / count for name, total in totals.items()}


def _turned(windows: np.ndarray, view: int) -> np.ndarray:
    """One of the 8 views of N x C x h x w: bit 0 flips rows, bit 1 flips columns, bit 2 then swaps them."""
    flipped = windows[:, :, :: -1 if view & 1 else 1, :: -1 if view & 2 else 1]
    return flipped.swapaxes(2, 3) if view & 4 else flipped


def _turned_back(values: np.ndarray, view: int) -> np.ndarray:
    straight = values.swapaxes(2, 3) if view & 4 else values
    return straight[:, :, :: -1 if view & 1 else 1, :: -1 if view & 2 else 1]
