"""Eval mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(*networks: nn.Module) -> Iterator[None]:
    """Put networks in eval mode; afterwards each of their parts has the mode again that it had.

    >>> network = nn.Dropout()
    >>> with evaluation_mode(network):
    ...     network.training
    False
    >>> network.training
    True
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
