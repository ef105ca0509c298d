"""Engines that are kept with their networks: used again while nothing has changed, and never after."""

import gc
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pixelwise.engines import EngineChoice, TorchEngine, kept
from pixelwise.engines.exported import ExportedEngine
from pixelwise.engines.kept import kept_engine
from pixelwise.geometry.reach import Geometry
from pixelwise.geometry.sizes import Sizes
from pixelwise.models import UNet

IMAGE = np.random.default_rng(0).normal(size=(1, 1, 32, 48)).astype(np.float32)
OPENVINO = EngineChoice("openvino")


def unet() -> UNet:
    torch.manual_seed(0)
    network = UNet(1, 2, width=2, depth=1)
    network(torch.randn(2, 1, 16, 16))
    return network.eval()


def sizes() -> Sizes:
    return Sizes(1, unet().geometry)


class Stub(ExportedEngine):
    """An engine that took no time to prepare."""

    def __init__(self, name: str) -> None:
        self.name = name


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[EngineChoice]:
    """The choices for which an engine was prepared; these are stubs."""
    seen: list[EngineChoice] = []

    def counting(network: nn.Module, choice: EngineChoice, sizes: Sizes) -> Any:
        seen.append(choice)
        return Stub(choice.name) if choice.name != "torch" else TorchEngine(network, choice)

    monkeypatch.setattr(kept, "make_engine", counting)
    return seen


def test_the_second_engine_is_the_first(made: list[EngineChoice]) -> None:
    network = unet()
    assert kept_engine(network, OPENVINO, sizes()) is kept_engine(network, OPENVINO, sizes())
    assert len(made) == 1
    assert kept_engine(unet(), OPENVINO, sizes()) is not kept_engine(network, OPENVINO, sizes())


def in_place(network: UNet) -> None:
    with torch.no_grad():
        next(network.parameters()).mul_(2)


def through_data(network: UNet) -> None:
    next(network.parameters()).data[0, 0, 0, 0] += 1


def by_numpy(network: UNet) -> None:
    next(network.parameters()).detach().numpy()[0, 0, 0, 0] += 1


def new_parameter(network: UNet) -> None:
    network.head.bias = nn.Parameter(torch.ones(2))


def loaded(network: UNet) -> None:
    network.load_state_dict({name: tensor + 1 for name, tensor in network.state_dict().items()})


def a_buffer(network: UNet) -> None:
    next(buffer for name, buffer in network.named_buffers() if name.endswith("running_var")).mul_(3)


def a_part(network: UNet) -> None:
    network.head = nn.Conv2d(2, 2, 1)


def a_part_with_the_same_weights(network: UNet) -> None:
    """Only its code is another."""

    class Negative(nn.Conv2d):
        def forward(self, images: Tensor) -> Tensor:
            return -super().forward(images)

    Negative.__name__, Negative.__qualname__, Negative.__module__ = "Conv2d", "Conv2d", nn.Conv2d.__module__
    head = Negative(2, 2, 1)
    head.load_state_dict(network.head.state_dict())
    network.head = head


def a_setting(network: UNet) -> None:
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 0.5


def a_hook(network: UNet) -> None:
    network.head.register_forward_hook(lambda module, inputs, output: output * 2)


CHANGES = [
    in_place, through_data, by_numpy, new_parameter, loaded, a_buffer, a_part, a_part_with_the_same_weights, a_setting,
    a_hook,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_an_engine_is_not_used_after_a_change(change: Callable[[UNet], None], made: list[EngineChoice]) -> None:
    network = unet()
    first = kept_engine(network, OPENVINO, sizes())
    change(network)
    network.eval()
    second = kept_engine(network, OPENVINO, sizes())
    assert second is not first
    assert kept_engine(network, OPENVINO, sizes()) is second
    assert len(made) == 2


def test_what_is_predicted_is_what_the_network_is_now() -> None:
    network, found = unet(), []
    for change in (lambda network: None, through_data, a_hook):
        change(network)
        with torch.inference_mode():
            expected = network(torch.from_numpy(IMAGE)).numpy()
        found.append(kept_engine(network, EngineChoice(), sizes())(IMAGE)["logits"])
        np.testing.assert_allclose(found[-1], expected, atol=1e-4 * np.abs(expected).max())
    assert min(np.abs(found[0] - found[1]).max(), np.abs(found[1] - found[2]).max()) > 1e-3


def test_another_mode_or_number_of_threads_is_a_change(made: list[EngineChoice]) -> None:
    network = unet()
    first = kept_engine(network, OPENVINO, sizes())
    network.train()
    second = kept_engine(network, OPENVINO, sizes())
    assert second is not first
    assert network.training
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert kept_engine(network, OPENVINO, sizes()) is not second
    finally:
        torch.set_num_threads(threads)
    assert len(made) == 3


def test_another_engine_or_other_sizes_are_a_change(made: list[EngineChoice]) -> None:
    network = unet()
    for choice in (OPENVINO, EngineChoice("onnxruntime"), OPENVINO):
        assert kept_engine(network, choice, sizes()).name == choice.name
    kept_engine(network, OPENVINO, Sizes(1, Geometry(stride=4, halo=9, margin=8)))
    assert len(made) == 4


def test_torch_is_made_anew_and_keeps_nothing(made: list[EngineChoice]) -> None:
    network = unet()
    first, second = (kept_engine(network, EngineChoice("torch"), sizes()) for _ in range(2))
    assert first is not second
    assert network not in kept._KEPT


class Unexportable(nn.Conv2d):
    """Its forward looks at values, which no graph can."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) if images.abs().max().item() > 0 else super().forward(images + 1)


def test_a_network_that_cannot_be_exported_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Unexportable(1, 2, 1)
    flat = Sizes(1, Geometry(stride=1, halo=0, margin=0))
    first = kept_engine(network, EngineChoice(), flat)
    monkeypatch.setattr(kept, "make_engine", lambda *_: pytest.fail("it was tried again"))
    second = kept_engine(network, EngineChoice(), flat)
    assert isinstance(second, TorchEngine)
    assert first.note == second.note != ""


@pytest.mark.parametrize("name", ["openvino", "auto"])  # which of the second falls back on torch
def test_a_network_that_nobody_needs_is_freed(name: str) -> None:
    network = unet() if name == "openvino" else Unexportable(1, 2, 1)
    flat = sizes() if name == "openvino" else Sizes(1, Geometry(stride=1, halo=0, margin=0))
    kept_engine(network, EngineChoice(name), flat)
    engine, gone = weakref.ref(kept._KEPT[network]), weakref.ref(network)
    del network
    gc.collect()
    assert gone() is None
    assert engine() is None


def test_looking_costs_little() -> None:
    """31 million parameters are looked at in far less time than an image takes."""
    network = UNet(1, 2, width=64, depth=4)
    begin = time.perf_counter()
    kept._state(network, Sizes(1, network.geometry))
    assert time.perf_counter() - begin < 5  # a tenth of it alone; the machine may be busy
