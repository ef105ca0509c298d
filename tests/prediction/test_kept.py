"""The second call of `predict`: nothing is prepared again, unless something has changed."""

import copy
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pixelwise.core.errors import ModelError
from pixelwise.engines import Arrays, Engine, EngineChoice, TorchEngine, exported
from pixelwise.geometry.reach import Geometry
from pixelwise.geometry.sizes import Sizes
from pixelwise.models import UNet
from pixelwise.prediction import kept, runner
from pixelwise.prediction.predictor import predict

IMAGE = np.random.default_rng(0).normal(size=(40, 52)).astype(np.float32)


class Snapshot:
    """Runs a network as it was when the engine was made, as an exported one does."""

    device, note = "cpu", ""

    def __init__(self, network: nn.Module, name: str) -> None:
        self.name, self._engine = name, TorchEngine(copy.deepcopy(network))

    def __call__(self, images: np.ndarray) -> Arrays:
        return self._engine(images)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[EngineChoice]:
    """The choices for which an engine was prepared; it costs no time here."""
    made: list[EngineChoice] = []

    def make(network: nn.Module, choice: EngineChoice, sizes: Sizes) -> Engine:
        made.append(choice)
        return Snapshot(network, choice.name)

    monkeypatch.setattr(runner, "make_engine", make)
    return made


class Own(nn.Module):
    """A user's own, with all that can change."""

    geometry = Geometry(stride=1, halo=2, margin=2)
    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Conv2d(3, 2, 3, padding=1)
        )
        self.register_buffer("offset", torch.zeros(2, 1, 1))
        self.factor = 1.0

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.layers(images) + self.offset


def make_own(seed: int = 0) -> Own:
    torch.manual_seed(seed)
    return Own().eval()


def expected(network: nn.Module, image: np.ndarray = IMAGE) -> np.ndarray:
    """K x H x W logits by one plain forward in eval mode."""
    with torch.no_grad():
        return copy.deepcopy(network).eval()(torch.from_numpy(image)[None, None])[0].numpy()


def logits(network: nn.Module, image: np.ndarray = IMAGE, engine: str = "openvino") -> np.ndarray:
    return predict(network, image, engine=engine, logits=True)


def test_nothing_is_prepared_again(prepared: list[EngineChoice]) -> None:
    network = make_own()
    for _ in range(3):
        np.testing.assert_allclose(logits(network), expected(network), atol=1e-6)
    larger = np.tile(IMAGE, (2, 3))
    np.testing.assert_allclose(logits(network, larger), expected(network, larger), atol=1e-6)
    np.testing.assert_array_equal(predict(network, IMAGE, tile=16, engine="openvino"), expected(network).argmax(0))
    assert len(prepared) == 1


def change_in_place(network: Own) -> None:
    with torch.no_grad():
        network.layers[0].weight[0, 0, 1, 1] += 1


def change_by_numpy(network: Own) -> None:
    network.layers[0].weight.detach().numpy()[0, 0, 0, 0] += 1


def replace_by_other_code(network: Own) -> None:
    """A part of the same name, with the same weights, that computes something else."""

    class Negative(nn.Conv2d):
        def forward(self, images: Tensor) -> Tensor:
            return -super().forward(images)

    Negative.__name__, Negative.__qualname__, Negative.__module__ = "Conv2d", "Conv2d", nn.Conv2d.__module__
    part = Negative(3, 2, 3, padding=1)
    part.load_state_dict(network.layers[3].state_dict())
    network.layers[3] = part


def change_through_data(network: Own) -> None:
    network.layers[3].bias.data[1] += 1


def take_a_step(network: Own) -> None:
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    network(torch.ones(1, 1, 8, 8)).mean().backward()
    optimizer.step()


def change_running_figures(network: Own) -> None:
    network.train()
    network.layers[1](torch.randn(2, 3, 9, 9))
    network.eval()


CHANGES: dict[str, Callable[[Own], object]] = {
    "in place": change_in_place,
    "through .data": change_through_data,
    "by numpy": change_by_numpy,
    "other code": replace_by_other_code,
    "a setting of a part": lambda network: setattr(network.layers[1], "eps", 0.5),
    "by load_state_dict": lambda network: network.load_state_dict(make_own(1).state_dict()),
    "by an optimiser": take_a_step,
    "running figures of batch norm": change_running_figures,
    "a buffer": lambda network: network.offset.add_(torch.tensor([3.0, 0])[:, None, None]),
    "a replaced part": lambda network: network.layers.__setitem__(2, nn.Sigmoid()),
    "a replaced parameter": lambda network: setattr(network.layers[3], "bias", nn.Parameter(torch.tensor([5.0, 0]))),
    "a number": lambda network: setattr(network, "factor", -2.0),
    "a hook": lambda network: network.layers[0].register_forward_hook(lambda module, inputs, output: 2 * output),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_prepared_again(change: str, prepared: list[EngineChoice]) -> None:
    network = make_own()
    before = logits(network)
    CHANGES[change](network)
    after = logits(network)
    np.testing.assert_allclose(after, expected(network), atol=1e-5)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_array_equal(logits(network), after)
    assert len(prepared) == 2


@pytest.mark.parametrize("part", [None, 2])
def test_in_any_mode_the_result_is_that_of_eval_mode(part: int | None, prepared: list[EngineChoice]) -> None:
    network = make_own()
    before = logits(network)
    changed = network if part is None else network.layers[part]
    changed.train()
    modes = [module.training for module in network.modules()]
    np.testing.assert_array_equal(logits(network), before)
    assert [module.training for module in network.modules()] == modes
    assert len(prepared) == 2
    changed.eval()
    np.testing.assert_array_equal(logits(network), before)


def test_a_change_back_and_forth(prepared: list[EngineChoice]) -> None:
    network = make_own()
    before = logits(network)
    network.layers[3].bias.data += 1
    np.testing.assert_allclose(logits(network), before + 1, atol=1e-5)
    network.layers[3].bias.data -= 1
    np.testing.assert_allclose(logits(network), before, atol=1e-5)


def test_each_choice_has_a_runner_of_its_own(prepared: list[EngineChoice]) -> None:
    network = make_own()
    for _ in range(2):
        for engine in ("openvino", "onnxruntime"):
            np.testing.assert_allclose(logits(network, engine=engine), expected(network), atol=1e-6)
        flipped = predict(network, IMAGE, engine="openvino", logits=True, views="flips")
        assert np.abs(flipped - expected(network)).max() > 1e-3
    assert [choice.name for choice in prepared] == ["openvino", "onnxruntime", "openvino"]
    network.layers[0].weight.data += 1
    logits(network, engine="onnxruntime")
    assert [kind[1].name for kind in kept._KEPT[network].runners] == ["onnxruntime"]  # the others were outdated


def test_other_channels_have_a_runner_of_their_own(prepared: list[EngineChoice]) -> None:
    class Mean(nn.Module):
        geometry = Geometry(stride=1, halo=0, margin=0)

        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([images.mean(1, keepdim=True), images[:, :1]], 1)

    network = Mean()
    for _ in range(2):
        assert logits(network).shape == logits(network, np.dstack([IMAGE, IMAGE])).shape == (2, *IMAGE.shape)
    assert len(prepared) == 2


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_another_number_of_threads_is_another_engine(prepared: list[EngineChoice]) -> None:
    network = make_own()
    for count in (1, 2, 1, 2):
        torch.set_num_threads(count)
        logits(network)
    assert len(prepared) == 2


def test_a_forked_process_has_engines_of_its_own(prepared: list[EngineChoice], monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_own()
    logits(network)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    logits(network)
    assert len(prepared) == 2


def test_a_copy_is_another_network(prepared: list[EngineChoice]) -> None:
    network = make_own()
    logits(network)
    other = copy.deepcopy(network)
    other.factor = 3.0
    np.testing.assert_allclose(logits(other), 3 * logits(network), rtol=1e-5, atol=1e-5)
    assert len(prepared) == 2


def test_an_export_that_failed_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[nn.Module] = []

    def refuse(network: nn.Module, sizes: Sizes) -> bytes:
        tried.append(network)
        raise ModelError("it cannot be exported")

    monkeypatch.setattr(exported, "export", refuse)
    monkeypatch.setattr("pixelwise.prediction.predictor._EXPORT_PIXELS", 0)
    network = make_own()
    for _ in range(3):
        np.testing.assert_allclose(logits(network, engine="auto"), expected(network), atol=1e-6)
    assert len(tried) == 1
    assert kept._KEPT[network].runners == {}  # torch's engine would hold the network
    network.layers[0].weight.data += 1
    logits(network, engine="auto")
    assert len(tried) == 2


def test_what_torch_runs_is_not_kept() -> None:
    network = make_own()
    logits(network, engine="torch")
    assert network not in kept._KEPT


def exported_unet() -> UNet:
    torch.manual_seed(0)
    return UNet(1, 2, width=2, depth=1).eval()


def test_an_exported_network_is_exported_once_and_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the true engine, whose memory goes with the network's."""
    pytest.importorskip("openvino")
    exports: list[str] = []
    export = exported.export

    def counted(network: nn.Module, sizes: Sizes) -> bytes:
        exports.append(type(network).__name__)
        return export(network, sizes)

    monkeypatch.setattr(exported, "export", counted)
    network = exported_unet()
    for _ in range(2):
        np.testing.assert_allclose(logits(network), expected(network), atol=1e-5)
    network.head.bias.data[0] += 1
    np.testing.assert_allclose(logits(network), expected(network), atol=1e-5)
    assert exports == ["UNet", "UNet"]
    (ready,) = kept._KEPT[network].runners.values()
    gone, engine = weakref.ref(network), weakref.ref(ready.engine)
    del network, ready
    gc.collect()
    assert gone() is None
    assert engine() is None


def test_threads_take_turns_with_what_is_kept() -> None:
    pytest.importorskip("openvino")
    network = exported_unet()
    images = [np.random.default_rng(seed).normal(size=(60, 80)).astype(np.float32) for seed in range(4)]
    wanted = [logits(network, image) for image in images]
    results: dict[int, list[np.ndarray]] = {number: [] for number in range(4)}

    def work(number: int) -> None:
        for _ in range(10):
            results[number].append(logits(network, images[number]))
            time.sleep(0)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for number, found in results.items():
        assert len(found) == 10
        for one in found:
            np.testing.assert_array_equal(one, wanted[number])
