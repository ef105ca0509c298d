"""How often each value occurs, fast."""

import cv2
import numpy as np

_EXACT = 2**24  # OpenCV counts in float32


def count_bytes(values: np.ndarray) -> np.ndarray:
    """256 numbers (int64) of the values of a uint8 array of any shape.

    >>> count_bytes(np.array([[0, 2], [2, 2]], np.uint8))[:4].tolist()
    [1, 0, 3, 0]
    """
    if values.size >= _EXACT:
        return np.bincount(values.ravel(), minlength=256)
    if not values.size:
        return np.zeros(256, np.int64)
    # Four times as fast as bincount, and other threads may run meanwhile.
    found = cv2.calcHist([np.ascontiguousarray(values).reshape(1, -1)], [0], None, [256], [0, 256])
    return np.asarray(found).astype(np.int64).ravel()
