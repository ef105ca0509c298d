"""Engines run a network: array in, logits out. One file an engine, one interface, one conformance suite."""

from typing import Protocol

import numpy as np
from torch import nn

from pixelwise.engines.torch import TorchEngine
from pixelwise.errors import SettingError, near


class Engine(Protocol):
    """Anything that turns images into logits."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """N x C x H x W float32 -> N x K x H' x W' float32."""
        ...


ENGINES: dict[str, type[TorchEngine]] = {"torch": TorchEngine}


def make_engine(name: str, network: nn.Module, device: str) -> Engine:
    """The engine of that name; "auto" takes the fastest that is there.

    Raises:
        SettingError: there is no such engine.
    """
    if name == "auto":
        name = "torch"
    if name not in ENGINES:
        raise SettingError(f"engine {name}: is not an engine; {near(name, ['auto', *ENGINES])}")
    return ENGINES[name](network, device)
