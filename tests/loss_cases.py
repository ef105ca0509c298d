"""Random batches for the tests of losses, and the softmax written out."""

import math

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from pixelwise.core.classes import IGNORE

SEEDS = st.integers(0, 2**32 - 1)


def batch(seed: int, num_classes: int = 3, ignored: float = 0.2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels, class weights, pixel weights, in float64."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 6, 3))
    labels = rng.integers(0, num_classes, shape)
    labels[rng.random(shape) < ignored] = IGNORE
    logits = rng.normal(0, 3, (shape[0], num_classes, *shape[1:]))
    arrays = (logits, labels, rng.uniform(0.1, 4, num_classes), rng.uniform(0, 10, shape))
    return tuple(torch.from_numpy(array) for array in arrays)  # type: ignore[return-value]


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]
