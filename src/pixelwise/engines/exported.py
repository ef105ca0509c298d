"""From a network to a graph that other engines run: by torch.export to ONNX, kept in a folder, proved before use."""

import hashlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim

from pixelwise.core.errors import ModelError, OutputError, reason
from pixelwise.core.files import write_with
from pixelwise.engines.torch import TOLERANCE, TorchEngine, on_device
from pixelwise.geometry.modes import evaluation_mode
from pixelwise.geometry.reach import Geometry

EXAMPLE_SIDE = 64  # pixels, at least: large enough for the kernels of networks that pad nothing
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class InputSizes:
    """The images that a network takes: N x channels x H x W, where H and W are stride * i + offset.

    Attributes:
        channels: C.
        stride: pixels from one side that it can take to the next.
        offset: what a network without padding needs beside them, below one stride.
        smallest: the smallest i.
    """

    channels: int
    stride: int = 1
    offset: int = 0
    smallest: int = 1

    @classmethod
    def of(cls, network: nn.Module, stride: int) -> "InputSizes":
        """What a network states, and its first convolution.

        Raises:
            ModelError: the stride is not one of the network's, or nothing says how many channels it takes.

        >>> InputSizes.of(nn.Conv2d(3, 2, 1), stride=8)
        InputSizes(channels=3, stride=8, offset=0, smallest=1)
        """
        geometry = getattr(network, "geometry", None)
        if isinstance(geometry, Geometry) and stride % geometry.stride:
            raise ModelError(
                f"{type(network).__name__}: has a stride of {geometry.stride} pixels, so it cannot be exported for "
                f"images of any multiple of {stride}: state a multiple of its stride, or use the engine torch."
            )
        side_for = getattr(network, "input_size", lambda side: side)
        offset = side_for(stride * math.ceil(EXAMPLE_SIDE / stride)) % stride
        return cls(_channels(network), stride, offset, max(1, side_for(1) // stride))

    @property
    def example(self) -> int:
        """An i that is large enough for any kernel."""
        return self.smallest + math.ceil(EXAMPLE_SIDE / self.stride)

    def images(self, count: int, rows: int, columns: int) -> np.ndarray:
        """Noise, always the same, of so many strides a side beside the offset."""
        sides = [self.stride * cells + self.offset for cells in (rows, columns)]
        return np.random.default_rng(0).normal(size=(count, self.channels, *sides)).astype(np.float32)

    def dimensions(self) -> dict[int, Any]:
        """The axes that may vary, for torch.export.

        It is told of sizes from the example on, since many a network cannot take the smallest: what the graph
        gives there is compared before it is used.
        """
        batch, rows, columns = Dim("batch", min=1), Dim("rows", min=self.example), Dim("columns", min=self.example)
        return {0: batch, 2: self.stride * rows + self.offset, 3: self.stride * columns + self.offset}

    def checked(self, images: np.ndarray) -> np.ndarray:
        """The images in C order.

        Raises:
            ModelError: they have another shape.
        """
        fits = images.ndim == 4 and images.shape[1] == self.channels
        if not fits or any(side < 1 or (side - self.offset) % self.stride for side in images.shape[2:]):
            raise ModelError(
                f"images of {' x '.join(map(str, images.shape))} do not fit the exported network, which takes "
                f"N x {self.channels} x H x W with H and W of {self.stride} * n + {self.offset} pixels."
            )
        return np.ascontiguousarray(images, np.float32)


def _channels(network: nn.Module) -> int:
    """What the network states as `in_channels`, or the first convolution that it holds."""
    for module in network.modules():
        stated = getattr(module, "in_channels", None)
        if isinstance(stated, int):
            return stated
    raise ModelError(
        f"{type(network).__name__}: states no in_channels, which its export needs. Use the engine torch, or give "
        "it an attribute `in_channels`."
    )


class ExportedEngine:
    """Runs the graph of a network, with the logits of the network.

    Args:
        name: the engine's name.
        network: a float32 module.
        compile_graph: makes something to call out of an ONNX graph.
        cache: folder for the exported graph, or None.
        stride: every H and W of the images is a multiple of it.

    Raises:
        ModelError: the network cannot be exported, the engine cannot run it, or the logits differ.
    """

    device = "cpu"
    note = ""

    def __init__(
        self, name: str, network: nn.Module, compile_graph: Callable[[bytes], Run], cache: Path | None, stride: int
    ) -> None:
        self.name = name
        network = on_device(network, torch.device("cpu"))
        self._sizes = InputSizes.of(network, stride)
        self._compile_graph = compile_graph
        self._run = self._from_cache(network, cache) if cache else self._export(network, None)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """N x C x H x W float32 -> N x K x H' x W' float32.

        Raises:
            ModelError: the images have other channels, or sizes that are no multiples of the stride.
        """
        return self._run(self._sizes.checked(images))

    @staticmethod
    def is_kept(network: nn.Module, cache: Path, stride: int) -> bool:
        """Whether a cache folder holds the graph of this very network."""
        with suppress(ModelError):
            return (cache / f"{fingerprint(network, InputSizes.of(network, stride))}.onnx").is_file()
        return False

    def _from_cache(self, network: nn.Module, cache: Path) -> Run:
        """The graph that was kept, unless it is missing, broken, or not this network's."""
        path = cache / f"{fingerprint(network, self._sizes)}.onnx"
        with suppress(ModelError, OSError):
            return self._proved(network, path.read_bytes())
        return self._export(network, path)

    def _export(self, network: nn.Module, path: Path | None) -> Run:
        graph = export(network, self._sizes)
        run = self._proved(network, graph)
        if path:
            with suppress(OutputError):  # a cache that cannot be written is done without
                write_with(path, lambda temporary: temporary.write_bytes(graph))
        return run

    def _proved(self, network: nn.Module, graph: bytes) -> Run:
        """Compile the graph, and compare it with the network at sizes that the export has not seen."""
        example, smallest = self._sizes.example, self._sizes.smallest
        large, small = self._sizes.images(1, example + 3, example + 2), self._sizes.images(1, smallest, smallest)
        try:
            run = self._compile_graph(graph)
            same = _equal(run(large), TorchEngine(network)(large)) and self._equal_where_it_runs(network, run, small)
        except Exception as error:  # whatever a compiler or a network may raise
            raise self._refused(network, f"{self.name} cannot run it: {reason(error)}") from error
        if not same:
            raise self._refused(network, f"{self.name} gives other logits than the network itself")
        return run

    def _equal_where_it_runs(self, network: nn.Module, run: Run, images: np.ndarray) -> bool:
        """Many a network refuses tiny images; nothing is to be compared then."""
        try:
            expected = TorchEngine(network)(images)
        except Exception:
            return True
        return _equal(run(images), expected)

    def _refused(self, network: nn.Module, why: str) -> ModelError:
        return ModelError(f"{type(network).__name__}: {why}. Use the engine torch (--engine torch).")


def _equal(logits: np.ndarray, expected: np.ndarray) -> bool:
    tolerance = TOLERANCE * float(np.abs(expected).max())
    return logits.shape == expected.shape and np.allclose(logits, expected, rtol=0, atol=tolerance)


def export(network: nn.Module, sizes: InputSizes) -> bytes:
    """The network in eval mode as an ONNX graph with its weights; N, H and W may vary.

    Raises:
        ModelError: it cannot be exported; the message has the exporter's reason.
    """
    images = torch.from_numpy(sizes.images(2, sizes.example, sizes.example + 1))
    try:
        with evaluation_mode(network), torch.no_grad(), _quiet():
            # Given the module itself, torch.onnx.export would trace it in a mode that takes five times as long.
            traced = torch.export.export(network, (images,), dynamic_shapes=(sizes.dimensions(),), strict=False)
            program = torch.onnx.export(traced, dynamo=True, verbose=False)
            assert program is not None
            return program.model_proto.SerializeToString()
    except Exception as error:  # the exporter passes on whatever the network raises
        raise ModelError(
            f"{type(network).__name__}: cannot be exported ({reason(error)}). Use the engine torch (--engine torch)."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own warnings, which tell its makers something, not our users."""
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


def fingerprint(network: nn.Module, sizes: InputSizes) -> str:
    """A name for the exported network that changes with its weights, its parts, and what exports it.

    A network that computes something else with the same weights and parts is found out by the proof.
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
