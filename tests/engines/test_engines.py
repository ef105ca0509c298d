"""One conformance suite for every engine: what it returns, what it refuses, and what it leaves as it was."""

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pixelwise import engines
from pixelwise.core.errors import ModelError, SettingError
from pixelwise.engines import ENGINES, Engine, TorchEngine, exported, make_engine
from pixelwise.engines import openvino as openvino_engine
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


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "same": make_network,
    "stem 2, residual": lambda: make_network(in_channels=1, stem=2, depth=1, residual=True),
    "stem 4, group norm": lambda: make_network(in_channels=3, stem=4, depth=1, norm="group", num_classes=2),
    "valid": lambda: make_network(in_channels=5, depth=1, padding="valid"),
    "a user's own": lambda: Own().eval(),
}
NETWORKS = {key: make() for key, make in MAKERS.items()}


def stride_of(network: nn.Module) -> int:
    return network.geometry.stride if isinstance(network, UNet) else 4


def channels_of(network: nn.Module) -> int:
    return exported.InputSizes.of(network, stride_of(network)).channels


def noise(network: nn.Module, count: int = 1, rows: int = 4, columns: int = 5) -> np.ndarray:
    """Images of so many strides a side, or of the next size that the network can take."""
    fitting = network.input_size if isinstance(network, UNet) else int
    sides = [fitting(cells * stride_of(network)) for cells in (rows, columns)]
    return np.random.default_rng(rows).normal(size=(count, channels_of(network), *sides)).astype(np.float32)


def plain(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """What the network itself gives in eval mode, in float64."""
    with torch.no_grad():
        return copy.deepcopy(network).double().eval()(torch.from_numpy(images).double()).numpy()


def assert_same(logits: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    """Equal, relative to the largest logit."""
    assert logits.shape == expected.shape
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for the whole file, so that each network is exported once."""
    return tmp_path_factory.mktemp("compiled")


@cache
def engine_for(name: str, key: str, folder: Path) -> Engine:
    return make_engine(name, NETWORKS[key], "cpu", folder, stride_of(NETWORKS[key]))


@every_engine
@pytest.mark.parametrize("key", NETWORKS)
@given(count=st.integers(1, 3), rows=st.integers(1, 12), columns=st.integers(1, 12))
@settings(deadline=None, max_examples=8)
def test_logits_are_those_of_the_network(
    name: str, key: str, folder: Path, count: int, rows: int, columns: int
) -> None:
    images = noise(NETWORKS[key], count, rows, columns)
    logits = engine_for(name, key, folder)(images)
    assert logits.dtype == np.float32
    assert_same(logits, plain(NETWORKS[key], images))


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
def test_each_call_has_an_array_of_its_own(name: str, folder: Path) -> None:
    engine, images = engine_for(name, "same", folder), noise(NETWORKS["same"])
    before = images.copy()
    first = engine(images)
    kept = first.copy()
    for other in (-images, noise(NETWORKS["same"], 1, 6, 7), 2 * images):
        engine(other)[:] = 0  # what it returns may be written to
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(engine(images), kept)
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
    expected = plain(network, images)
    with torch.no_grad():
        halved = copy.deepcopy(network).bfloat16()(torch.from_numpy(images).bfloat16()).float().numpy()
    largest = np.abs(expected).max()
    assert np.abs(halved - expected).max() > 1e-3 * largest
    assert np.abs(make_engine(name, network)(images) - expected).max() < 3e-6 * largest


@every_engine
@pytest.mark.parametrize("training", [True, False])
def test_the_network_stays_as_it_was(name: str, training: bool, exports: list[str]) -> None:
    network = make_network(depth=1, dropout=0.9).train(training)
    network.contracting[1].train(not training)  # type: ignore[index]
    before = {key: (id(tensor), tensor.clone(), tensor.stride()) for key, tensor in state(network).items()}
    modes = [module.training for module in network.modules()]
    images, stride = noise(network, 2), stride_of(network)
    attributes = [sorted(vars(module)) for module in network.modules()]
    engine = make_engine(name, network, "cpu", None, stride)
    first = engine(images)
    assert_same(first, plain(network, images))  # dropout is off
    np.testing.assert_array_equal(engine(images), first)  # batch norm has not moved
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
    make_engine(name, network)(np.zeros((1, 2, 5, 6), np.float32))
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
    assert engines.choose_engine("auto", NETWORKS["same"], "cpu") == expected
    assert engines.choose_engine("auto", NETWORKS["same"], "cuda") == "torch"
    assert engines.choose_engine("auto", NETWORKS["same"], "mps") == "torch"
    assert engines.choose_engine("auto", make_network().double(), "cpu") == "torch"
    assert engines.choose_engine("auto", SegNet(width=2, depth=1), "cpu") == "torch"
    assert engines.choose_engine("auto", nn.MaxPool2d(2, return_indices=True), "cpu") == "torch"
    assert engines.choose_engine("onnxruntime", NETWORKS["same"], "cpu") == "onnxruntime"


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(SettingError, match=r"^engine touch: is not an engine; did you mean torch\?$"):
        make_engine("touch", NETWORKS["same"])
    with pytest.raises(SettingError, match=r"engine x: is not an engine; choose from: auto, openvino, .*, torch\.$"):
        make_engine("x", NETWORKS["same"])


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
        SettingError, match=f"^engine {name}: needs {package}, which is not installed: {command}, or use another"
    ):
        make_engine(name, NETWORKS["same"])


@every_exported
def test_other_devices_and_dtypes_are_for_torch(name: str) -> None:
    with pytest.raises(SettingError, match=rf"^engine {name}: runs on the CPU alone, not on cuda; use the engine"):
        make_engine(name, NETWORKS["same"], "cuda")
    with pytest.raises(ModelError, match=rf"^UNet: is not a float32 network, and {name} runs these alone; use the"):
        make_engine(name, make_network().double())


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
        make_engine(name, Branching())
    assert "\n" not in str(caught.value)


@needs("openvino")
def test_auto_runs_a_network_that_cannot_be_exported_in_torch_and_says_why() -> None:
    network = Branching()
    engine = make_engine("auto", network)
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
    [(8, "gives other logits than the network itself"), (66, r"cannot be exported \(Constraints viol.*\)")],
)
def test_a_graph_that_is_wrong_for_other_sizes_is_not_taken(name: str, rows: int, why: str) -> None:
    with pytest.raises(ModelError, match=rf"^SizeDependent: .*{why}\. Use the engine torch \(--engine torch\)\.$"):
        make_engine(name, SizeDependent(rows))


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
    engine = make_engine(name, network)
    for side in (14, 20, 75):
        images = np.random.default_rng(side).normal(size=(1, 1, side, 15)).astype(np.float32)
        assert_same(engine(images), plain(network, images))


class Broken(nn.Module):
    """Has an error of its own."""

    in_channels = 1

    def forward(self, images: Tensor) -> Tensor:
        raise ValueError("first line\nsecond line" + 300 * "x")


@every_exported
def test_the_reason_is_one_short_line(name: str) -> None:
    with pytest.raises(ModelError, match=r"^Broken: cannot be exported \(first line second linex{170,180}\.\.\.\)\."):
        make_engine(name, Broken())


@every_exported
def test_a_stride_that_is_not_the_networks_is_refused_before_it_is_exported(name: str, exports: list[str]) -> None:
    for stride in (1, 2, 6):
        with pytest.raises(
            ModelError,
            match=rf"^UNet: has a stride of 4 pixels, so it cannot be exported for images of any multiple of {stride}:",
        ):
            make_engine(name, NETWORKS["same"], stride=stride)
    engine = make_engine("auto", NETWORKS["same"])
    assert engine.name == "torch"
    assert "UNet: has a stride of 4 pixels" in engine.note
    assert exports == []


class Parameterless(nn.Module):
    """States nothing."""

    def forward(self, images: Tensor) -> Tensor:
        return images


@every_exported
def test_a_network_without_channels_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"^Parameterless: states no in_channels, which its export needs\. Use"):
        make_engine(name, Parameterless())


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

    def counted(network: nn.Module, sizes: exported.InputSizes) -> bytes:
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
        assert_same(make_engine(name, Scaled(), cache=tmp_path / "new" / "compiled")(IMAGE), plain(Scaled(), IMAGE))
    assert len(exports) == 1
    assert [path.suffix for path in (tmp_path / "new" / "compiled").iterdir()] == [".onnx"]


@every_exported
def test_a_changed_network_is_exported_anew(name: str, tmp_path: Path, exports: list[str]) -> None:
    changed = Scaled()
    with torch.no_grad():
        changed.layer.bias[1] += 1e-3
    for network in (Scaled(), changed, Scaled(factor=-2.0)):
        assert_same(make_engine(name, network, cache=tmp_path)(IMAGE), plain(network, IMAGE), 1e-6)
    assert len(exports) == 3


@every_exported
@pytest.mark.parametrize("break_it", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: data[::-1]])
def test_a_broken_file_is_exported_anew(
    name: str, tmp_path: Path, exports: list[str], break_it: Callable[[bytes], bytes]
) -> None:
    make_engine(name, Scaled(), cache=tmp_path)
    (kept,) = tmp_path.glob("*.onnx")
    whole = kept.read_bytes()
    kept.write_bytes(break_it(whole))
    assert_same(make_engine(name, Scaled(), cache=tmp_path)(IMAGE), plain(Scaled(), IMAGE))
    assert len(exports) == 2
    assert len(kept.read_bytes()) == len(whole)


@every_exported
def test_weights_that_rotted_on_the_disk_are_found(name: str, tmp_path: Path, exports: list[str]) -> None:
    make_engine(name, Scaled(), cache=tmp_path)
    (kept,) = tmp_path.glob("*.onnx")
    half, quarter = np.full(2, 0.5, np.float32).tobytes(), np.full(2, 0.25, np.float32).tobytes()
    assert half in kept.read_bytes()
    kept.write_bytes(kept.read_bytes().replace(half, quarter))
    assert_same(make_engine(name, Scaled(), cache=tmp_path)(IMAGE), plain(Scaled(), IMAGE))
    assert len(exports) == 2


@every_exported
def test_a_folder_that_cannot_be_written_is_done_without(name: str, tmp_path: Path, exports: list[str]) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "compiled"):
        assert_same(make_engine(name, Scaled(), cache=folder)(IMAGE), plain(Scaled(), IMAGE))
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
        make_engine("torch", network, "cpu")(np.zeros((1, 1, 2, 2), np.float32))
    assert network.training


def test_too_little_memory_on_the_device_names_a_smaller_tile() -> None:
    engine = make_engine("torch", Failing(torch.OutOfMemoryError("CUDA out of memory.")))
    with pytest.raises(ModelError, match=r"^cpu has too little memory for .* 1 x 1 x 2 x 2: use smaller tiles"):
        engine(np.zeros((1, 1, 2, 2), np.float32))


class ManyOutputs(nn.Module):
    """Returns a dict, as some networks of others do."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": images}


def test_torch_wants_a_tensor() -> None:
    with pytest.raises(ModelError, match=r"^ManyOutputs: returned dict; it must return a tensor of logits, N x K"):
        make_engine("torch", ManyOutputs())(np.zeros((1, 1, 2, 2), np.float32))


def test_half_precision_is_for_gpus() -> None:
    with pytest.raises(SettingError, match=r"^amp: half precision runs on a GPU alone; leave it out on the CPU\.$"):
        make_engine("torch", NETWORKS["same"], amp=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("amp", "tolerance"), [(False, 1e-4), (True, 5e-2)])
def test_a_gpu_gives_the_logits_of_the_cpu(amp: bool, tolerance: float) -> None:
    network, images = NETWORKS["same"], noise(NETWORKS["same"])
    engine = make_engine("auto", network, "cuda", amp=amp)
    logits = engine(images)
    assert (engine.name, engine.device, logits.dtype) == ("torch", "cuda", np.float32)
    assert_same(logits, plain(network, images), tolerance)
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())


def test_torch_runs_float64_networks_in_float64() -> None:
    network = make_network().double()
    images = np.random.default_rng(0).normal(size=(1, 2, 17, 9))
    logits = make_engine("auto", network, "cpu")(images)
    assert logits.dtype == np.float64
    assert_same(logits, plain(network, images), 1e-12)


def test_torch_takes_any_size() -> None:
    engine = make_engine("torch", NETWORKS["same"])
    for height, width in ((1, 1), (31, 17), (6, 50)):
        images = np.random.default_rng(0).normal(size=(1, 2, height, width)).astype(np.float32)
        assert_same(engine(images), plain(NETWORKS["same"], images))


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


@pytest.mark.skipif(not which("g++"), reason="torch.compile on the CPU needs a C++ compiler")
@pytest.mark.slow
def test_torch_compiled_gives_the_logits_of_the_network() -> None:
    network = make_network()
    engine = make_engine("auto", network, compiled=True)
    assert engine.name == "torch"
    for rows, columns in ((4, 5), (2, 7)):  # of two sizes
        images = noise(network, 2, rows, columns)
        np.testing.assert_allclose(engine(images), TorchEngine(network)(images), rtol=0, atol=1e-4)


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
        make_engine("torch", network, compiled=True)(noise(network))


def test_a_compiled_network_with_other_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda network: lambda images: network(images) + 1)
    network = make_network()
    with pytest.raises(ModelError, match=r"compiled by torch.compile its logits differ from its own by 1\b"):
        make_engine("torch", network, compiled=True)(noise(network))


def test_compiling_is_for_torch_alone() -> None:
    with pytest.raises(SettingError, match=r"engine openvino: is no engine for torch\.compile; use the engine torch"):
        make_engine("openvino", make_network(), compiled=True)
