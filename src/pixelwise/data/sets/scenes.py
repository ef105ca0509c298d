"""Scenes, as a camera on a street sees them: what is above differs from what is below, and a patch has to see both."""

import math
from collections.abc import Sequence

import numpy as np

from pixelwise.data.health.examine import ImageFacts

UPRIGHT = 0.2  # share of pixels whose class would have to move for the top third to look like the bottom third


def typical_size(facts: Sequence[ImageFacts]) -> tuple[float, float]:
    """Median height and width of the images."""
    return float(np.median([fact.height for fact in facts])), float(np.median([fact.width for fact in facts]))


def is_upright(facts: Sequence[ImageFacts]) -> bool:
    """Whether what is at the top of the pictures differs from what is at the bottom, as in a camera's scene.

    Measured by the total variation distance between the class frequencies of the images' top and bottom thirds.
    """
    rows = np.sum([fact.labels for fact in facts], axis=0).astype(np.float64)
    if not rows[0].sum() or not rows[2].sum():
        return False
    share = rows / np.maximum(rows.sum(1, keepdims=True), 1)
    return bool(np.abs(share[0] - share[2]).sum() / 2 > UPRIGHT)


def scene_scale(facts: Sequence[ImageFacts], pixels: int) -> float:
    """The largest scale 1/2^k at which a patch of so many pixels sees a whole scene."""
    height, width = typical_size(facts)
    return float(0.5 ** max(0, math.ceil(math.log(height * width / pixels, 4))))
