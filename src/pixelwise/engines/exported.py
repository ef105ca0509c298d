"""From a network to a graph that other engines run: by torch.export to ONNX, kept in a folder, proved before use."""

import hashlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim

from pixelwise.core.errors import ModelError, OutputError, reason
from pixelwise.core.files import write_with
from pixelwise.engines.choice import Arrays, EngineChoice
from pixelwise.engines.deadline import within
from pixelwise.engines.torch import TOLERANCE, TorchEngine, on_device
from pixelwise.geometry.modes import evaluation_mode
from pixelwise.geometry.sizes import Sizes

EXAMPLE_SIDE = 64  # pixels, at least: large enough for the kernels of networks that pad nothing
EXPORT_SECONDS = 120.0  # after which an export is given up; most take less than 20 of a processor to itself
Run = Callable[[np.ndarray], list[np.ndarray]]  # images -> the outputs of a graph, in its order
NamedRun = Callable[[np.ndarray], Arrays]


@dataclass(frozen=True)
class _Examples:
    """Images of the sizes that a network takes: it is exported with them, and compared on them."""

    sizes: Sizes

    @property
    def smallest(self) -> int:
        """The smallest side."""
        return self.sizes.input_size(1)

    def side(self, more: int = 0) -> int:
        """A side that is large enough for any kernel, and `more` steps beyond."""
        return self.smallest + (math.ceil(EXAMPLE_SIDE / self.sizes.step) + more) * self.sizes.step

    def images(self, count: int, height: int, width: int) -> np.ndarray:
        """Noise, always the same."""
        shape = (count, self.sizes.channels, height, width)
        return np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def dimensions(self) -> dict[int, Any]:
        """The axes that may vary, for torch.export.

        It hears of sizes from the example on, because many networks cannot take the smallest; what the graph gives
        for that one is compared before the graph is used.
        """
        step = self.sizes.step
        steps, offset = divmod(self.side(), step)
        rows, columns = Dim("rows", min=steps), Dim("columns", min=steps)
        return {0: Dim("batch", min=1), 2: step * rows + offset, 3: step * columns + offset}


class ExportedEngine:
    """Runs the graph of a network, with the outputs of the network.

    Args:
        choice: the engine's name, the folder for the exported graph, and who hears that it is exported.
        network: a float32 module.
        compile_graph: turns an ONNX graph into a function of images.
        sizes: of the images to come.

    Raises:
        ModelError: the network cannot be exported, or not within `EXPORT_SECONDS`, the engine cannot run it, or the
            outputs differ.
    """

    device = "cpu"
    note = ""

    def __init__(
        self, choice: EngineChoice, network: nn.Module, compile_graph: Callable[[bytes], Run], sizes: Sizes
    ) -> None:
        self.name, self._tell = choice.name, choice.tell
        self._sizes, self._examples = sizes, _Examples(sizes)
        self._compile_graph = compile_graph
        self._lock = Lock()
        network = on_device(network, torch.device("cpu"))
        self._run = self._from_cache(network, choice.cache) if choice.cache else self._export(network, None)

    def __call__(self, images: np.ndarray) -> Arrays:
        """N x C x H x W float32 -> outputs by name, such as N x K x H' x W' float32.

        Raises:
            ModelError: the images have other channels, or sizes that the network does not take.
        """
        sizes = self._sizes
        fits = images.ndim == 4 and images.shape[1] == sizes.channels
        if not fits or any(side < 1 or sizes.input_size(sizes.output_size(side)) != side for side in images.shape[2:]):
            raise ModelError(
                f"images of {' x '.join(map(str, images.shape))} do not fit the exported network, which takes "
                f"N x {sizes.channels} x H x W with H and W of {sizes.step} * n + {self._examples.smallest} pixels."
            )
        with self._lock:  # several threads may use an engine that is kept with its network
            return self._run(np.ascontiguousarray(images, np.float32))

    @staticmethod
    def is_kept(network: nn.Module, cache: Path, sizes: Sizes) -> bool:
        """Whether a cache folder holds the graph of this very network, or that its export takes too long."""
        path = _kept_path(network, cache, sizes)
        return path.is_file() or _slow_path(path).is_file()

    def _from_cache(self, network: nn.Module, cache: Path) -> NamedRun:
        """The graph that was kept, unless it is missing, broken, or not this network's."""
        path = _kept_path(network, cache, self._sizes)
        with suppress(ModelError, OSError):
            return self._proved(network, path.read_bytes())
        slow = _slow_path(path)
        if slow.is_file():
            raise self._refused(network, f"its export was given up before ({slow}: delete this file to try again)")
        return self._export(network, path)

    def _export(self, network: nn.Module, path: Path | None) -> NamedRun:
        self._tell(preparing(self.name))
        try:
            graph = within(EXPORT_SECONDS, partial(export, network, self._sizes))
        except TimeoutError as error:
            why = f"its export was given up after {EXPORT_SECONDS:g} seconds"
            _keep(path and _slow_path(path), why.encode())
            raise self._refused(network, why) from error
        run = self._proved(network, graph)
        _keep(path, graph)
        return run

    def _proved(self, network: nn.Module, graph: bytes) -> NamedRun:
        """Compile the graph, and compare it with the network at sizes that the export has not seen."""
        examples = self._examples
        large = examples.images(1, examples.side(3), examples.side(2))
        small = examples.images(1, examples.smallest, examples.smallest)
        try:
            expected = TorchEngine(network)(large)
            run = _named(self._compile_graph(graph), list(expected))
            same = _equal(run(large), expected) and self._equal_where_it_runs(network, run, small)
        except Exception as error:  # whatever a compiler or a network may raise
            raise self._refused(network, f"{self.name} cannot run it: {reason(error)}") from error
        if not same:
            raise self._refused(network, f"{self.name} gives other outputs than the network itself")
        return run

    def _equal_where_it_runs(self, network: nn.Module, run: NamedRun, images: np.ndarray) -> bool:
        """Many networks refuse tiny images; then nothing is compared."""
        try:
            expected = TorchEngine(network)(images)
        except Exception:
            return True
        return _equal(run(images), expected)

    def _refused(self, network: nn.Module, why: str) -> ModelError:
        return ModelError(f"{type(network).__name__}: {why}. Use the engine torch (--engine torch).")


def _kept_path(network: nn.Module, cache: Path, sizes: Sizes) -> Path:
    return cache / f"{fingerprint(network, sizes)}.onnx"


def _slow_path(path: Path) -> Path:
    """Beside the place of a graph: the file that says that there is none because its export takes too long."""
    return path.with_suffix(".slow")


def _keep(path: Path | None, content: bytes) -> None:
    """Write a file of the cache, if there is a cache; where it cannot be written, all works without."""
    if path:
        with suppress(OutputError):
            write_with(path, lambda temporary: temporary.write_bytes(content))


def preparing(engine: str) -> str:
    """What to tell a person when an export begins."""
    return f"preparing {engine} for this network, once (given up after {EXPORT_SECONDS:g} s)"


def _named(run: Run, names: Sequence[str]) -> NamedRun:
    """Add the network's own names; a graph cannot hold them, since it may already use one for an inner value."""
    return lambda images: dict(zip(names, run(images), strict=True))


def _equal(outputs: Arrays, expected: Arrays) -> bool:
    """Whether each array is equal within float32."""
    return all(
        outputs[name].shape == values.shape
        and np.allclose(outputs[name], values, rtol=0, atol=TOLERANCE * float(np.abs(values).max()))
        for name, values in expected.items()
    )


def export(network: nn.Module, sizes: Sizes) -> bytes:
    """The network in eval mode as an ONNX graph with its weights; N, H and W may vary.

    Raises:
        ModelError: it cannot be exported; the message gives the exporter's reason.
    """
    examples = _Examples(sizes)
    images = examples.images(2, examples.side(), examples.side(1))
    try:
        with evaluation_mode(network), _relu6_out_of_place(network), torch.no_grad(), _quiet():
            # Given the module itself, torch.onnx.export would trace it in a mode that takes five times as long.
            traced = torch.export.export(
                network, (torch.from_numpy(images),), dynamic_shapes=(examples.dimensions(),), strict=False
            )
            program = torch.onnx.export(traced, dynamo=True, verbose=False)
            assert program is not None
            return bytes(program.model_proto.SerializeToString())
    except Exception as error:  # the exporter passes on whatever the network raises
        raise ModelError(
            f"{type(network).__name__}: cannot be exported ({reason(error)}). Use the engine torch (--engine torch)."
        ) from error


@contextmanager
def _relu6_out_of_place(network: nn.Module) -> Iterator[None]:
    """Let ReLU6 return a new tensor while a network is exported, which halves the time that the export takes.

    In place, the exporter takes each apart into comparisons of sizes.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Hardtanh) and module.inplace]
    try:
        for layer in layers:
            layer.inplace = False
        yield
    finally:
        for layer in layers:
            layer.inplace = True


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings, which are meant for its makers and not for our users."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def fingerprint(network: nn.Module, sizes: Sizes) -> str:
    """A name for the exported network that changes with its weights, its parts, and what exports it.

    If a network computes something else with the same weights and parts, the proof finds out.
    """
    packages = [_version(package) for package in ("pixelwise", "torch", "onnx", "onnxscript")]
    facts = (type(network).__module__, type(network).__qualname__, repr(network), sizes, packages)
    digest = hashlib.sha256(repr(facts).encode())
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _version(package: str) -> str:
    with suppress(PackageNotFoundError):
        return version(package)
    return "unknown"
