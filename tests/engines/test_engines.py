"""One conformance suite for every engine: what it returns, and what it leaves as it was."""

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pixelwise.engines import ENGINES, make_engine
from pixelwise.errors import SettingError
from pixelwise.models import UNet

every_engine = pytest.mark.parametrize("name", ENGINES)


def make_network(**keywords: object) -> nn.Module:
    torch.manual_seed(0)
    network = UNet(**{"in_channels": 2, "num_classes": 3, "width": 3, "depth": 2, **keywords})  # type: ignore[arg-type]
    network(torch.randn(4, 2, 64, 64))  # so that train and eval mode differ
    return network.eval()


def plain(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """What the network itself gives in eval mode, in float64."""
    with torch.no_grad():
        return copy.deepcopy(network).double().eval()(torch.from_numpy(images).double()).numpy()


NETWORK = make_network()


@every_engine
@given(n=st.integers(1, 3), height=st.integers(1, 40), width=st.integers(1, 40))
@settings(deadline=None, max_examples=20)
def test_logits_are_those_of_the_network(name: str, n: int, height: int, width: int) -> None:
    images = np.random.default_rng(height).normal(size=(n, 2, height, width)).astype(np.float32)
    logits = make_engine(name, NETWORK, "cpu")(images)
    assert logits.shape == (n, 3, height, width)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, plain(NETWORK, images), rtol=1e-4, atol=1e-4)


@every_engine
def test_a_network_without_padding_returns_less(name: str) -> None:
    network = make_network(padding="valid", num_classes=2)
    images = np.random.default_rng(0).normal(size=(1, 2, 60, 68)).astype(np.float32)
    logits = make_engine(name, network, "cpu")(images)
    assert logits.shape == (1, 2, network.output_size(60), network.output_size(68))  # type: ignore[operator]
    np.testing.assert_allclose(logits, plain(network, images), rtol=1e-4, atol=1e-4)


@every_engine
def test_any_layout_of_the_array_will_do(name: str) -> None:
    engine = make_engine(name, NETWORK, "cpu")
    last = np.random.default_rng(0).normal(size=(1, 20, 24, 2)).astype(np.float32)
    turned = last.transpose(0, 3, 1, 2)
    expected = engine(np.ascontiguousarray(turned))
    mirrored = np.ascontiguousarray(turned[..., ::-1])[..., ::-1]  # negative strides
    fixed = np.ascontiguousarray(turned)
    fixed.flags.writeable = False
    for images in (turned, mirrored, fixed):
        np.testing.assert_allclose(engine(images), expected, rtol=1e-5, atol=1e-5)


@every_engine
def test_the_array_and_the_weights_stay_as_they_were(name: str) -> None:
    network = make_network()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    images = np.random.default_rng(0).normal(size=(2, 2, 16, 16)).astype(np.float32)
    kept = images.copy()
    engine = make_engine(name, network.train(), "cpu")
    first = engine(images)
    np.testing.assert_array_equal(engine(images), first)  # batch norm has not moved
    np.testing.assert_array_equal(images, kept)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


@every_engine
def test_each_call_has_an_array_of_its_own(name: str) -> None:
    engine = make_engine(name, NETWORK, "cpu")
    images = np.random.default_rng(0).normal(size=(1, 2, 16, 16)).astype(np.float32)
    first = engine(images)
    kept = first.copy()
    engine(-images)
    np.testing.assert_array_equal(first, kept)


@every_engine
@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_is_put_back(name: str, training: bool) -> None:
    network = make_network(dropout=0.9).train(training)
    images = np.random.default_rng(0).normal(size=(1, 2, 16, 16)).astype(np.float32)
    logits = make_engine(name, network, "cpu")(images)
    np.testing.assert_allclose(logits, plain(network, images), rtol=1e-4, atol=1e-4)
    assert all(module.training == training for module in network.modules())


@every_engine
def test_a_part_that_its_owner_froze_stays_frozen(name: str) -> None:
    network = make_network().train()
    frozen = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in frozen:
        module.eval()
    make_engine(name, network, "cpu")(np.zeros((1, 2, 16, 16), np.float32))
    assert network.training
    assert frozen
    assert not any(module.training for module in frozen)


@every_engine
def test_random_numbers_are_not_used_up(name: str) -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    make_engine(name, make_network_after_seed(), "cpu")(np.zeros((1, 2, 16, 16), np.float32))
    assert torch.equal(torch.rand(3), expected)


def make_network_after_seed() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return make_network(dropout=0.5)


@every_engine
def test_every_engine_is_found_by_name_and_auto_is_one_of_them(name: str) -> None:
    assert type(make_engine(name, NETWORK, "cpu")) is ENGINES[name]
    assert type(make_engine("auto", NETWORK, "cpu")) in ENGINES.values()


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(SettingError, match=r"engine touch: is not an engine; did you mean torch\?"):
        make_engine("touch", NETWORK, "cpu")
    with pytest.raises(SettingError, match=r"engine x: is not an engine; choose from: auto, torch"):
        make_engine("x", NETWORK, "cpu")


class Failing(nn.Module):
    """Raises on a call."""

    def forward(self, images: Tensor) -> Tensor:
        raise ValueError("no")


def test_torch_puts_the_mode_back_after_an_error() -> None:
    network = Failing()
    with pytest.raises(ValueError, match="no"):
        make_engine("torch", network, "cpu")(np.zeros((1, 1, 2, 2), np.float32))
    assert network.training


def test_torch_runs_float64_networks_in_float64() -> None:
    network = make_network().double()
    images = np.random.default_rng(0).normal(size=(1, 2, 17, 9))
    logits = make_engine("torch", network, "cpu")(images)
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, plain(network, images), rtol=1e-10, atol=1e-12)


def test_torch_records_no_gradients() -> None:
    seen: list[bool] = []
    network = nn.Conv2d(1, 2, 1)
    network.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    make_engine("torch", network, "cpu")(np.zeros((1, 1, 2, 2), np.float32))
    assert seen == [False]
    assert torch.is_grad_enabled()


@pytest.fixture(params=[True, False])
def tf32(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = request.param
    yield request.param
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_torch_switches_tf32_off_for_the_time_of_a_call(tf32: bool) -> None:
    seen: list[tuple[bool, bool]] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))

    network = nn.Conv2d(1, 2, 1)
    network.register_forward_pre_hook(look)
    make_engine("torch", network, "cpu")(np.zeros((1, 1, 2, 2), np.float32))
    assert seen == [(False, False)]
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32
