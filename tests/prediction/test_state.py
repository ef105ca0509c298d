"""What counts as a change of a network, and what does not."""

import copy
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pixelwise.models import UNet
from pixelwise.prediction.state import form_of, state_of


class Part(nn.Module):
    """A module of a user, with things of its own."""

    bias: Tensor
    coarse: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.LeakyReLU(0.1))
        self.register_buffer("bias", torch.zeros(3))
        self.register_buffer("coarse", torch.zeros(2, 2, dtype=torch.bfloat16))
        self.factor, self.names, self.sides, self.table = 1.0, ["a"], {1, 2}, np.zeros(3)
        self.plain, self.nothing, self.act = torch.zeros(2), None, torch.relu
        self.empty, self.scalar = torch.zeros(0), torch.tensor(True)


def set_data(part: Part) -> None:
    part.layers[0].weight.data[1, 0, 2, 2] += 1e-6


CHANGES: dict[str, Callable[[Part], object]] = {
    "a weight through .data": set_data,
    "data of its own": lambda part: setattr(part.layers[0].weight, "data", part.layers[0].weight.data + 1),
    "a buffer": lambda part: part.bias[0].fill_(1),
    "a buffer in half precision": lambda part: part.coarse[1, 0].fill_(1),
    "running figures": lambda part: part.layers[1].running_mean.add_(1),
    "a tensor that is neither": lambda part: part.plain[0].fill_(1),
    "a number of it": lambda part: part.scalar.fill_(False),
    "an array": lambda part: part.table.__setitem__(0, 1),
    "a number": lambda part: setattr(part, "factor", 2.0),
    "a list": lambda part: part.names.append("b"),
    "a set": lambda part: part.sides.add(3),
    "a function": lambda part: setattr(part, "act", torch.tanh),
    "a slope of a part": lambda part: setattr(part.layers[2], "negative_slope", 0.2),
    "a part": lambda part: part.layers.__setitem__(2, nn.LeakyReLU(0.1)),
    "one part more": lambda part: part.layers.append(nn.ReLU()),
    "a parameter": lambda part: setattr(part.layers[0], "weight", nn.Parameter(torch.zeros(2, 1, 3, 3))),
    "a type": lambda part: part.double(),
    "the mode": lambda part: part.eval(),
    "the mode of a part": lambda part: part.layers[1].eval(),
    "a hook": lambda part: part.layers[0].register_forward_hook(lambda module, inputs, output: output + 1),
    "forward": lambda part: setattr(part, "forward", part.layers.forward),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_a_change(change: str) -> None:
    part = Part()
    before = state_of(part)
    assert state_of(part) == before
    CHANGES[change](part)
    after = state_of(part)
    assert after != before
    assert state_of(part) == after


def test_what_is_not_a_change() -> None:
    part = Part()
    before = state_of(part)
    part.eval()
    with torch.no_grad():
        part.layers(torch.zeros(1, 1, 8, 8))
        part.layers[0].weight.add_(0)
    part.train()
    part.load_state_dict(copy.deepcopy(part.state_dict()))
    assert state_of(part) == before


def test_layouts_and_values_that_are_not_numbers() -> None:
    part = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    before = state_of(part)
    assert state_of(part) == before
    part.weight.data[0, 1, 2, 0] = float("nan")
    after = state_of(part)
    assert after != before
    assert state_of(part) == after


def test_a_tensor_that_cannot_show_its_bytes_is_never_the_same() -> None:
    part = nn.Identity()
    part.table = torch.eye(3).to_sparse()
    assert state_of(part) != state_of(part)


def test_the_form_is_the_parts_without_their_values() -> None:
    part = Part()
    before = form_of(part)
    for change in ("a weight through .data", "a buffer", "running figures", "the mode"):
        CHANGES[change](part)
    assert form_of(part) == before
    for change in ("a part", "a slope of a part", "one part more"):
        CHANGES[change](part)
        assert form_of(part) != before
        before = form_of(part)


def test_looking_costs_little() -> None:
    """31 million parameters, in far less time than an image takes."""
    network = UNet(1, 2, width=64, depth=4)
    begin = time.perf_counter()
    state_of(network)
    assert time.perf_counter() - begin < 5  # a hundredth of it alone; the machine may be busy
