"""One conformance suite for every engine: what it returns, what it refuses, and what it leaves as it was."""

import copy
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pixelwise import engines
from pixelwise.core.errors import ModelError, SettingError
from pixelwise.engines import ENGINES, Arrays, Engine, EngineChoice, ExportedEngine, TorchEngine, exported, make_engine
from pixelwise.engines import openvino as openvino_engine
from pixelwise.geometry.reach import Geometry
from pixelwise.geometry.sizes import Sizes
from pixelwise.models import SegNet, UNet


def needs(name: str) -> pytest.MarkDecorator:
    missing = [package for package in ENGINES[name] if not find_spec(package)]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")


ALL = [pytest.param(name, marks=needs(name)) for name in ENGINES]
every_engine = pytest.mark.parametrize("name", ALL)
every_exported = pytest.mark.parametrize("name", [parameter for parameter in ALL if parameter.values != ("torch",)])


def make_network(**keywords: object) -> nn.Module:
    """A small U-Net whose train and eval mode differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(**{"in_channels": 2, "num_classes": 3, "width": 3, "depth": 2, **keywords})  # type: ignore[arg-type]
        network(torch.randn(4, network.in_channels, 60, 60))
    return network.eval()


class Own(nn.Module):
    """A user's own: bilinear, atrous, average and global pooling, a constant buffer, no geometry."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 6, 5, padding=2)
        self.atrous = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=2)
        self.last = nn.Conv2d(6, 2, 1)
        self.register_buffer("scale", torch.tensor([0.5, 1.0, 2.0, 1.5]).view(1, 4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        fine = F.elu(self.first(images * self.scale))
        coarse = self.atrous(F.avg_pool2d(fine, 4))
        upsampled = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return self.last(fine + upsampled + fine.mean((2, 3), keepdim=True))


class TwoHeads(nn.Module):
    """Two outputs at two resolutions, under names that the graph may use for something else."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(2, 4, 3, padding=1)
        self.first, self.second = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.body(images).relu()
        return {"logits": self.first(features), "conv2d": self.second(F.avg_pool2d(features, 2))}


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "same": make_network,
    "stem 2, residual": lambda: make_network(in_channels=1, stem=2, depth=1, residual=True),
    "stem 4, group norm": lambda: make_network(in_channels=3, stem=4, depth=1, norm="group", num_classes=2),
    "valid": lambda: make_network(in_channels=5, depth=1, padding="valid"),
    "a user's own": lambda: Own().eval(),
    "two outputs": lambda: TwoHeads().eval(),
}
NETWORKS = {key: make() for key, make in MAKERS.items()}


STRIDES: dict[type[nn.Module], int] = {Own: 4, TwoHeads: 2}


def sizes_for(network: nn.Module) -> Sizes:
    """The sizes that a network takes, by what the test knows of it."""
    channels = next((part.in_channels for part in network.modules() if hasattr(part, "in_channels")), 1)
    assert isinstance(channels, int)
    if not isinstance(network, UNet):
        return Sizes(channels, Geometry(STRIDES.get(type(network), 1), 0, 0))
    if network.padding == "same":
        return Sizes(channels, network.geometry)
    return Sizes(channels, network.geometry, lost=network.geometry.margin, smallest=network.input_size(1))


def engine_of(name: str, network: nn.Module, **options: Any) -> Engine:
    return make_engine(network, EngineChoice(name, **options), sizes_for(network))


def noise(network: nn.Module, count: int = 1, rows: int = 4, columns: int = 5) -> np.ndarray:
    """Images of so many strides a side, or of the next size that the network can take."""
    sizes = sizes_for(network)
    sides = [sizes.input_size(cells * sizes.step) for cells in (rows, columns)]
    return np.random.default_rng(rows).normal(size=(count, sizes.channels, *sides)).astype(np.float32)


def plain(network: nn.Module, images: np.ndarray) -> Arrays:
    """What the network itself gives in eval mode, in float64."""
    with torch.no_grad():
        outputs = copy.deepcopy(network).double().eval()(torch.from_numpy(images).double())
    named = {"logits": outputs} if isinstance(outputs, Tensor) else outputs
    return {name: values.numpy() for name, values in named.items()}


def assert_same(outputs: Arrays, expected: Arrays, tolerance: float = 1e-4) -> None:
    """Equal, each relative to its largest value."""
    assert list(outputs) == list(expected)
    for name, values in expected.items():
        assert outputs[name].shape == values.shape
        np.testing.assert_allclose(outputs[name], values, rtol=0, atol=tolerance * np.abs(values).max())


def assert_equal(outputs: Arrays, expected: Arrays) -> None:
    assert list(outputs) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(outputs[name], values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for the whole file, so that each network is exported once."""
    return tmp_path_factory.mktemp("compiled")


@cache
def engine_for(name: str, key: str, folder: Path) -> Engine:
    return engine_of(name, NETWORKS[key], cache=folder)


@every_engine
@pytest.mark.parametrize("key", NETWORKS)
@given(count=st.integers(1, 3), rows=st.integers(1, 12), columns=st.integers(1, 12))
@settings(deadline=None, max_examples=8)
def test_outputs_are_those_of_the_network(
    name: str, key: str, folder: Path, count: int, rows: int, columns: int
) -> None:
    images = noise(NETWORKS[key], count, rows, columns)
    outputs = engine_for(name, key, folder)(images)
    assert all(values.dtype == np.float32 for values in outputs.values())
    assert_same(outputs, plain(NETWORKS[key], images))


@every_engine
def test_any_layout_of_the_array_will_do(name: str, folder: Path) -> None:
    engine = engine_for(name, "same", folder)
    last = np.random.default_rng(0).normal(size=(1, 20, 24, 2)).astype(np.float32)
    turned = last.transpose(0, 3, 1, 2)
    expected = engine(np.ascontiguousarray(turned))
    mirrored = np.ascontiguousarray(turned[..., ::-1])[..., ::-1]  # negative strides
    fixed = np.ascontiguousarray(turned)
    fixed.flags.writeable = False
    for images in (turned, mirrored, fixed):
        assert_same(engine(images), expected, 1e-6)


@every_engine
@pytest.mark.parametrize("key", ["same", "two outputs"])
def test_each_call_has_arrays_of_its_own(name: str, key: str, folder: Path) -> None:
    engine, images = engine_for(name, key, folder), noise(NETWORKS[key])
    before = images.copy()
    first = engine(images)
    kept = copy.deepcopy(first)
    for other in (-images, noise(NETWORKS[key], 1, 6, 7), 2 * images):
        for values in engine(other).values():
            values[:] = 0  # what it returns may be written to
    assert_equal(first, kept)
    assert_equal(engine(images), kept)
    np.testing.assert_array_equal(images, before)


class Rounding(nn.Module):
    """Differences of nearly equal numbers, behind a convolution that half precision would speed up."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.narrow = nn.Conv2d(32, 1, 3, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.narrow(self.wide(images))


@every_engine
def test_float32_means_float32(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Rounding()
    images = np.random.default_rng(0).normal(size=(1, 1, 64, 64)).astype(np.float32)
    expected = plain(network, images)["logits"]
    with torch.no_grad():
        halved = copy.deepcopy(network).bfloat16()(torch.from_numpy(images).bfloat16()).float().numpy()
    largest = np.abs(expected).max()
    assert np.abs(halved - expected).max() > 1e-3 * largest
    assert np.abs(engine_of(name, network)(images)["logits"] - expected).max() < 3e-6 * largest


@every_engine
@pytest.mark.parametrize("training", [True, False])
def test_the_network_stays_as_it_was(name: str, training: bool, exports: list[str]) -> None:
    network = make_network(depth=1, dropout=0.9).train(training)
    network.contracting[1].train(not training)  # type: ignore[index]
    before = {key: (id(tensor), tensor.clone(), tensor.stride()) for key, tensor in state(network).items()}
    modes = [module.training for module in network.modules()]
    images = noise(network, 2)
    attributes = [sorted(vars(module)) for module in network.modules()]
    engine = engine_of(name, network)
    first = engine(images)
    assert_same(first, plain(network, images))  # dropout is off
    assert_equal(engine(images), first)  # batch norm has not moved
    assert [module.training for module in network.modules()] == modes
    assert [sorted(vars(module)) for module in network.modules()] == attributes
    for key, tensor in state(network).items():
        assert (id(tensor), tensor.stride()) == (before[key][0], before[key][2])
        assert torch.equal(tensor, before[key][1])
        assert tensor.grad is None


def state(network: nn.Module) -> dict[str, Tensor]:
    return dict([*network.named_parameters(), *network.named_buffers()])


@every_engine
def test_nothing_outside_is_changed_and_nothing_is_printed(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.5))

    def outside() -> tuple[object, ...]:
        return (
            list(warnings.filters),
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.backends.cudnn.allow_tf32,
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002 (the state that others may use)
        )

    before = outside()
    engine_of(name, network)(np.zeros((1, 2, 5, 6), np.float32))
    assert outside() == before
    assert capfd.readouterr() == ("", "")


@every_engine
def test_an_engine_says_what_it_is(name: str, folder: Path) -> None:
    engine = engine_for(name, "same", folder)
    assert (engine.name, engine.device, engine.note) == (name, "cpu", "")


# Which engine it is.


@pytest.mark.parametrize(
    ("missing", "expected"),
    [((), "openvino"), (("openvino",), "onnxruntime"), (("openvino", "onnxruntime"), "torch"), (("onnx",), "torch")],
)
def test_auto_takes_the_fastest_that_is_there(
    monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], expected: str
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda package: None if package in missing else object())
    choose, auto = engines.choose_engine, EngineChoice("auto")
    assert choose(NETWORKS["same"], auto) == expected
    for other in (
        EngineChoice(device="cuda"), EngineChoice(device="mps"), EngineChoice(amp=True), EngineChoice(compiled=True),
    ):  # fmt: skip
        assert choose(NETWORKS["same"], other) == "torch"
    assert choose(make_network().double(), auto) == "torch"
    assert choose(SegNet(width=2, depth=1), auto) == "torch"
    assert choose(nn.MaxPool2d(2, return_indices=True), auto) == "torch"
    assert choose(NETWORKS["same"], EngineChoice("onnxruntime")) == "onnxruntime"


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(SettingError, match=r"^engine touch: is not an engine; did you mean torch\?$"):
        engine_of("touch", NETWORKS["same"])
    with pytest.raises(SettingError, match=r"engine x: is not an engine; choose from: auto, openvino, .*, torch\.$"):
        engine_of("x", NETWORKS["same"])


@pytest.mark.parametrize(
    ("name", "package", "command"),
    [
        ("onnxruntime", "onnxruntime", r"pip install 'pixelwise\[onnxruntime\]'"),
        ("onnxruntime", "onnxscript", "pip install onnxscript"),
        ("openvino", "openvino", "pip install openvino"),
    ],
)
def test_an_engine_that_is_not_installed_says_how_to(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, command: str
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda asked: None if asked == package else object())
    with pytest.raises(
        SettingError,
        match=rf"^engine {name}: needs the package {package}, which is not installed\. Run `{command}`, or use",
    ):
        engine_of(name, NETWORKS["same"])


@every_exported
def test_other_devices_and_dtypes_are_for_torch(name: str) -> None:
    with pytest.raises(SettingError, match=rf"^engine {name}: only runs on the CPU, not on cuda\. Use the engine"):
        engine_of(name, NETWORKS["same"], device="cuda")
    with pytest.raises(ModelError, match=rf"^UNet: is not a float32 network, and {name} only runs those\. Use the"):
        engine_of(name, make_network().double())


class Branching(nn.Module):
    """Python decides by the data."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images) if images.mean() > 0 else -self.layer(images)


@every_exported
def test_a_network_that_cannot_be_exported_is_refused_by_name(name: str) -> None:
    with pytest.raises(
        ModelError,
        match=r"^Branching: cannot be exported \(.*data-dependent.*\)\. Use the engine torch \(",
    ) as caught:
        engine_of(name, Branching())
    assert "\n" not in str(caught.value)


@needs("openvino")
def test_auto_runs_a_network_that_cannot_be_exported_in_torch_and_says_why() -> None:
    network = Branching()
    engine = engine_of("auto", network)
    assert engine.name == "torch"
    assert engine.note.startswith("torch is used instead of openvino: Branching: cannot be exported (")
    for images in (np.ones((1, 1, 3, 4), np.float32), -np.ones((1, 1, 3, 4), np.float32)):
        assert_same(engine(images), plain(network, images))


class SizeDependent(nn.Module):
    """Becomes another graph where the image is small, which an export for all sizes cannot hold."""

    in_channels = 1

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, images: Tensor) -> Tensor:
        return images * 2 if images.shape[-2] > self.rows else images * 3


@every_exported
@pytest.mark.parametrize(
    ("rows", "why"),
    [(8, "gives other outputs than the network itself"), (66, r"cannot be exported \(Constraints viol.*\)")],
)
def test_a_graph_that_is_wrong_for_other_sizes_is_not_taken(name: str, rows: int, why: str) -> None:
    with pytest.raises(ModelError, match=rf"^SizeDependent: .*{why}\. Use the engine torch \(--engine torch\)\.$"):
        engine_of(name, SizeDependent(rows))


class Unpadded(nn.Module):
    """Cannot take images below 13 pixels a side."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 7), nn.InstanceNorm2d(2), nn.Conv2d(2, 2, 7))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


@every_exported
def test_a_network_that_takes_no_tiny_images_is_exported_for_the_others(name: str) -> None:
    network = Unpadded()
    engine = engine_of(name, network)
    for side in (14, 20, 75):
        images = np.random.default_rng(side).normal(size=(1, 1, side, 15)).astype(np.float32)
        assert_same(engine(images), plain(network, images))


class Broken(nn.Module):
    """Has an error of its own."""

    in_channels = 1

    def forward(self, images: Tensor) -> Tensor:
        raise ValueError("first line\nsecond line" + 300 * "x")


class Endless(nn.Module):
    """Cannot be exported in any time, but runs at once. Lets the exporter catch what interrupts it, a few times."""

    in_channels = 1

    def __init__(self, caught: int = 0) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout(0.5), nn.ReLU6(inplace=True))
        self.caught = caught

    def forward(self, images: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            for _ in range(self.caught):
                with suppress(BaseException):
                    self.wait()
            self.wait()
        return self.layer(images)

    @staticmethod
    def wait() -> None:
        """Not for ever, so that a test whose export is not given up fails."""
        for _ in range(10**8):
            pass


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "EXPORT_SECONDS", 0.2)


GIVEN_UP = r"Endless: its export was given up after 0\.2 seconds\. Use the engine torch \(--engine torch\)\.$"


@every_exported
@pytest.mark.usefixtures("impatient")
def test_an_export_that_takes_too_long_is_given_up(name: str) -> None:
    with pytest.raises(ModelError, match=f"^{GIVEN_UP}"):
        engine_of(name, Endless())


@needs("openvino")
@pytest.mark.parametrize("caught", [0, 2])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.usefixtures("impatient")
def test_torch_serves_where_an_export_was_given_up(caught: int, training: bool) -> None:
    network, filters = Endless(caught).train(training), list(warnings.filters)
    engine = engine_of("auto", network)
    assert engine.name == "torch"
    assert re.match(f"torch is used instead of openvino: {GIVEN_UP}", engine.note)
    assert_same(engine(IMAGE), plain(network, IMAGE))
    assert all(module.training == training for module in network.modules())
    assert network.layer[2].inplace
    assert list(warnings.filters) == filters
    assert not torch.compiler.is_exporting()


@needs("openvino")
def test_torch_and_its_exporter_are_sound_after_an_export_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """In earnest: the exporter is interrupted in the midst of its own work, at one moment and at another."""
    network = make_network(depth=1)
    for seconds in (0.05, 0.3, 1.0):
        with monkeypatch.context() as patch:
            patch.setattr(exported, "EXPORT_SECONDS", seconds)
            with suppress(ModelError):  # a fast machine may be done by then
                engine_of("openvino", network)
        images = torch.from_numpy(noise(network))
        network(images).sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
    engine = engine_of("openvino", network)
    assert_same(engine(noise(network)), plain(network, noise(network)))


@every_exported
def test_an_export_that_was_given_up_is_not_tried_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, told = Endless(), []
    assert not ExportedEngine.is_kept(network, tmp_path, sizes_for(network))
    with monkeypatch.context() as patch:
        patch.setattr(exported, "EXPORT_SECONDS", 0.2)
        with pytest.raises(ModelError, match=f"^{GIVEN_UP}"):
            engine_of(name, network, cache=tmp_path, tell=told.append)
        (kept,) = tmp_path.iterdir()
        assert ExportedEngine.is_kept(network, tmp_path, sizes_for(network))
        message = (
            rf"^Endless: its export was given up before \({re.escape(str(kept))}: delete this file to try again\)\. "
            r"Use the engine torch \(--engine torch\)\.$"
        )
        with pytest.raises(ModelError, match=message):
            engine_of(name, network, cache=tmp_path, tell=told.append)
    assert told == [f"preparing {name} for this network, once (given up after 0.2 s)"]
    kept.unlink()
    monkeypatch.setattr(Endless, "wait", staticmethod(lambda: None))
    assert_same(engine_of(name, network, cache=tmp_path)(IMAGE), plain(network, IMAGE))


@every_exported
def test_relu6_is_in_place_again(name: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU6(inplace=True), nn.Hardtanh(-1, 2))
    engine = engine_of(name, network)
    assert_same(engine(9 * IMAGE), plain(network, 9 * IMAGE))
    assert (network[1].inplace, network[2].inplace) == (True, False)


@every_exported
def test_the_reason_is_one_short_line(name: str) -> None:
    with pytest.raises(ModelError, match=r"^Broken: cannot be exported \(first line second linex{170,180}\.\.\.\)\."):
        engine_of(name, Broken())


class Parameterless(nn.Module):
    """States nothing."""

    def forward(self, images: Tensor) -> Tensor:
        return images.abs()


@every_exported
def test_a_network_that_states_nothing_is_exported_for_the_channels_that_come(name: str) -> None:
    images = np.random.default_rng(0).normal(size=(1, 3, 7, 8)).astype(np.float32)
    engine = make_engine(Parameterless(), EngineChoice(name), Sizes(3, Geometry(1, 0, 0)))
    assert_same(engine(images), plain(Parameterless(), images))


@every_exported
def test_images_that_do_not_fit_the_export_are_refused(name: str, folder: Path) -> None:
    engine = engine_for(name, "same", folder)
    for shape in ((1, 3, 8, 8), (1, 2, 8, 9), (1, 2, 0, 8), (2, 8, 8)):
        with pytest.raises(
            ModelError,
            match=rf"^images of {' x '.join(map(str, shape))} do not fit the exported network, which takes N x 2 x H",
        ):
            engine(np.zeros(shape, np.float32))


# What is kept.


EXPORTED: dict[tuple[str, float | None], bytes] = {}


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The networks that have been exported, each in earnest but once, to save time."""
    seen: list[str] = []
    export = exported.export

    def counted(network: nn.Module, sizes: Sizes) -> bytes:
        seen.append(type(network).__name__)
        key = (exported.fingerprint(network, sizes), getattr(network, "factor", None))
        if key not in EXPORTED:
            EXPORTED[key] = export(network, sizes)
        return EXPORTED[key]

    monkeypatch.setattr(exported, "export", counted)
    return seen


class Scaled(nn.Module):
    """One weight, and a number that its parts and weights do not show."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 1)
        self.factor = factor
        nn.init.constant_(self.layer.weight, 0.5)
        nn.init.ones_(self.layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images) * self.factor


IMAGE = np.random.default_rng(1).normal(size=(1, 1, 6, 7)).astype(np.float32)


@every_exported
def test_the_exported_network_is_kept(name: str, tmp_path: Path, exports: list[str]) -> None:
    for _ in range(2):
        assert_same(engine_of(name, Scaled(), cache=tmp_path / "new" / "compiled")(IMAGE), plain(Scaled(), IMAGE))
    assert len(exports) == 1
    assert [path.suffix for path in (tmp_path / "new" / "compiled").iterdir()] == [".onnx"]


@every_exported
def test_a_changed_network_is_exported_anew(name: str, tmp_path: Path, exports: list[str]) -> None:
    changed = Scaled()
    with torch.no_grad():
        changed.layer.bias[1] += 1e-3
    for network in (Scaled(), changed, Scaled(factor=-2.0)):
        assert_same(engine_of(name, network, cache=tmp_path)(IMAGE), plain(network, IMAGE), 1e-6)
    assert len(exports) == 3


@every_exported
@pytest.mark.parametrize("break_it", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: data[::-1]])
def test_a_broken_file_is_exported_anew(
    name: str, tmp_path: Path, exports: list[str], break_it: Callable[[bytes], bytes]
) -> None:
    engine_of(name, Scaled(), cache=tmp_path)
    (kept,) = tmp_path.glob("*.onnx")
    whole = kept.read_bytes()
    kept.write_bytes(break_it(whole))
    assert_same(engine_of(name, Scaled(), cache=tmp_path)(IMAGE), plain(Scaled(), IMAGE))
    assert len(exports) == 2
    assert len(kept.read_bytes()) == len(whole)


@every_exported
def test_weights_that_rotted_on_the_disk_are_found(name: str, tmp_path: Path, exports: list[str]) -> None:
    engine_of(name, Scaled(), cache=tmp_path)
    (kept,) = tmp_path.glob("*.onnx")
    half, quarter = np.full(2, 0.5, np.float32).tobytes(), np.full(2, 0.25, np.float32).tobytes()
    assert half in kept.read_bytes()
    kept.write_bytes(kept.read_bytes().replace(half, quarter))
    assert_same(engine_of(name, Scaled(), cache=tmp_path)(IMAGE), plain(Scaled(), IMAGE))
    assert len(exports) == 2


@every_exported
def test_a_folder_that_cannot_be_written_is_done_without(name: str, tmp_path: Path, exports: list[str]) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "compiled"):
        assert_same(engine_of(name, Scaled(), cache=folder)(IMAGE), plain(Scaled(), IMAGE))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@needs("openvino")
def test_openvino_takes_the_threads_of_torch() -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert openvino_engine._settings()["INFERENCE_NUM_THREADS"] == threads
    finally:
        torch.set_num_threads(before)


# What only torch does.


class Failing(nn.Module):
    """Raises on a call."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, images: Tensor) -> Tensor:
        raise self.error


def test_torch_puts_the_mode_back_after_an_error() -> None:
    network = Failing(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        engine_of("torch", network)(np.zeros((1, 1, 2, 2), np.float32))
    assert network.training


def test_too_little_memory_on_the_device_names_a_smaller_tile() -> None:
    engine = engine_of("torch", Failing(torch.OutOfMemoryError("CUDA out of memory.")))
    with pytest.raises(ModelError, match=r"^cpu has too little memory for .* 1 x 1 x 2 x 2: use smaller tiles"):
        engine(np.zeros((1, 1, 2, 2), np.float32))


class Returning(nn.Module):
    """Makes what it returns of its images."""

    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.make = make

    def forward(self, images: Tensor) -> object:
        return self.make(images)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda images: images, ["logits"]),
        (lambda images: {"out": images, "aux": -images}, ["out", "aux"]),
        (lambda images: OrderedDict(out=images), ["out"]),
        (lambda images: {1: images, 0: -images}, ["1", "0"]),
        (lambda images: (images, -images), ["0", "1"]),
        (lambda images: [images], ["0"]),
    ],
)
def test_outputs_have_names(make: Callable[[Tensor], object], names: list[str]) -> None:
    images = np.random.default_rng(0).normal(size=(1, 1, 2, 3)).astype(np.float32)
    outputs = engine_of("torch", Returning(make))(images)
    assert list(outputs) == names
    for values, factor in zip(outputs.values(), (1, -1), strict=False):
        np.testing.assert_array_equal(values, factor * images)


@pytest.mark.parametrize(
    ("make", "kinds"),
    [
        (lambda images: None, "NoneType"),
        (lambda images: {}, "dict"),
        (lambda images: {"out": images, "aux": None}, "dict of NoneType, Tensor"),
        (lambda images: ([images], images), "tuple of Tensor, list"),
        (lambda images: {"0": images, 0: images}, "dict of Tensor"),
    ],
)
def test_torch_wants_tensors(make: Callable[[Tensor], object], kinds: str) -> None:
    message = rf"^Returning: returned {kinds}; it must return a tensor of logits, N x K x H x W, or a dict, tuple or"
    with pytest.raises(ModelError, match=message):
        engine_of("torch", Returning(make))(np.zeros((1, 1, 2, 2), np.float32))


def test_half_precision_is_for_gpus() -> None:
    with pytest.raises(SettingError, match=r"^amp: half precision only works on a GPU\. Leave it out on the CPU\.$"):
        engine_of("torch", NETWORKS["same"], amp=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("amp", "tolerance"), [(False, 1e-4), (True, 5e-2)])
def test_a_gpu_gives_the_logits_of_the_cpu(amp: bool, tolerance: float) -> None:
    network, images = NETWORKS["same"], noise(NETWORKS["same"])
    engine = engine_of("auto", network, device="cuda", amp=amp)
    outputs = engine(images)
    assert (engine.name, engine.device, outputs["logits"].dtype) == ("torch", "cuda", np.float32)
    assert_same(outputs, plain(network, images), tolerance)
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())


def test_torch_runs_float64_networks_in_float64() -> None:
    network = make_network().double()
    images = np.random.default_rng(0).normal(size=(1, 2, 17, 9))
    outputs = engine_of("auto", network)(images)
    assert outputs["logits"].dtype == np.float64
    assert_same(outputs, plain(network, images), 1e-12)


def test_torch_takes_any_size() -> None:
    engine = engine_of("torch", NETWORKS["same"])
    for height, width in ((1, 1), (31, 17), (6, 50)):
        images = np.random.default_rng(0).normal(size=(1, 2, height, width)).astype(np.float32)
        assert_same(engine(images), plain(NETWORKS["same"], images))


def test_torch_records_no_gradients() -> None:
    seen: list[bool] = []
    network = nn.Conv2d(1, 2, 1)
    network.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    engine_of("torch", network)(np.zeros((1, 1, 2, 2), np.float32))
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
    engine_of("torch", network)(np.zeros((1, 1, 2, 2), np.float32))
    assert seen == [(False, False)]
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cudnn.allow_tf32 is tf32


@pytest.mark.skipif(not which("g++"), reason="torch.compile on the CPU needs a C++ compiler")
@pytest.mark.slow
def test_torch_compiled_gives_the_logits_of_the_network() -> None:
    network = make_network()
    engine = engine_of("auto", network, compiled=True)
    assert engine.name == "torch"
    for rows, columns in ((4, 5), (2, 7)):  # of two sizes
        images = noise(network, 2, rows, columns)
        assert_same(engine(images), TorchEngine(network)(images))


def test_what_cannot_be_compiled_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(network: nn.Module) -> Callable[[Tensor], Tensor]:
        def run(images: Tensor) -> Tensor:
            raise RuntimeError("no compiler\nand much more")

        return run

    monkeypatch.setattr(torch, "compile", fail)
    network = make_network()
    with pytest.raises(
        ModelError,
        match=r"^UNet: torch.compile cannot compile it here: no compiler and much more\. Leave --compile out\.$",
    ):
        engine_of("torch", network, compiled=True)(noise(network))


def test_a_compiled_network_with_other_outputs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda network: lambda images: network(images) + 1)
    network = make_network()
    with pytest.raises(ModelError, match=r"compiled by torch.compile, its outputs differ by 1 from its own\. Leave"):
        engine_of("torch", network, compiled=True)(noise(network))


def test_compiling_is_for_torch_alone() -> None:
    with pytest.raises(SettingError, match=r"engine openvino: cannot use torch\.compile\. Use the engine torch"):
        engine_of("openvino", make_network(), compiled=True)
