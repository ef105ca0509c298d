"""Engines run a network: array in, logits out. One file an engine, one interface, one conformance suite.

`torch` runs any module as it is. `openvino` and `onnxruntime` run float32 networks on the CPU, from a graph that
`torch.export` takes of them and that is proved equal to the network before it is used.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import nn

from pixelwise.core.errors import ModelError, SettingError, near
from pixelwise.engines import onnxruntime, openvino
from pixelwise.engines.exported import ExportedEngine
from pixelwise.engines.torch import TorchEngine, is_float32
from pixelwise.layers import MaxPoolPositions

__all__ = ["ENGINES", "Engine", "ExportedEngine", "TorchEngine", "choose_engine", "depends_on_rounding", "make_engine"]


class Engine(Protocol):
    """Anything that turns images into logits; one call at a time.

    Attributes:
        name: the engine's name, one of `ENGINES`.
        device: where it runs: "cpu", "cuda", "mps".
        note: why "auto" took this engine and not a faster one, or nothing.
    """

    name: str
    device: str
    note: str

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """N x C x H x W float32 -> N x K x H' x W' float32, an array of its own."""
        ...


ENGINES: dict[str, tuple[str, ...]] = {
    "openvino": ("openvino", "onnx", "onnxscript"),
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "torch": (),
}
"""Every engine with the packages that it needs beside torch, the fastest on a CPU first."""


def make_engine(
    name: str,
    network: nn.Module,
    device: str = "cpu",
    cache: Path | None = None,
    stride: int = 1,
    amp: bool = False,
    compiled: bool = False,
) -> Engine:
    """The engine of that name for a network, which stays as it is.

    Args:
        name: one of `ENGINES`, or "auto" for the fastest that can run this network here: `choose_engine`, and
            where that one cannot take the network, torch, whose `note` then says why.
        network: any module that takes N x C x H x W and returns N x K x H' x W'.
        device: where it runs.
        cache: folder that keeps the exported network from one process to the next, since to export takes seconds;
            one that cannot be written is done without.
        stride: every H and W of the images to come is a multiple of it (for a network without padding: one of
            the sizes that it can take).
        amp: half precision where it serves ("cuda" and "mps" alone): faster, and outside the promise that the
            logits are those of the network within 1e-4.
        compiled: run it by torch.compile ("torch" alone), which pays for long work on a GPU.

    Raises:
        SettingError: there is no such engine, it is not installed, or it does not run on that device.
        ModelError: the named engine cannot run this network.
    """
    chosen = "torch" if name == "auto" and (amp or compiled) else choose_engine(name, network, device)
    if amp and chosen != "torch":
        raise SettingError(f"engine {chosen}: has no half precision (amp); use the engine torch, on a GPU.")
    if compiled and chosen != "torch":
        raise SettingError(f"engine {chosen}: is no engine for torch.compile; use the engine torch.")
    if chosen == "torch":
        return TorchEngine(network, device, amp, compiled)
    try:
        return _exported_engine(chosen, network, device, cache, stride)
    except (ModelError, SettingError) as error:
        if name != "auto":
            raise
        return TorchEngine(network, device, amp, note=f"torch is used instead of {chosen}: {error}")


def choose_engine(name: str, network: nn.Module, device: str) -> str:
    """The name of an engine; "auto" becomes the fastest that is installed and fits the network and the device.

    A network that `depends_on_rounding` goes with torch, whose tiles and whole images round alike.

    Raises:
        SettingError: there is no such engine.

    >>> choose_engine("auto", nn.Conv2d(1, 2, 3).double(), "cpu")
    'torch'
    """
    if name != "auto":
        if name not in ENGINES:
            raise SettingError(f"engine {name}: is not an engine; {near(name, ['auto', *ENGINES])}")
        return name
    if device != "cpu" or not is_float32(network) or depends_on_rounding(network):
        return "torch"
    return next(engine for engine, packages in ENGINES.items() if all(map(find_spec, packages)))


def depends_on_rounding(network: nn.Module) -> bool:
    """Whether the network uses the positions of maxima (max unpooling): of two that are nearly equal, rounding chooses.

    >>> depends_on_rounding(nn.Sequential(nn.MaxPool2d(2))), depends_on_rounding(nn.MaxPool2d(2, return_indices=True))
    (False, True)
    """
    return any(
        isinstance(module, MaxPoolPositions) or (isinstance(module, nn.MaxPool2d) and module.return_indices)
        for module in network.modules()
    )


def _exported_engine(name: str, network: nn.Module, device: str, cache: Path | None, stride: int) -> Engine:
    if device != "cpu":
        raise SettingError(f"engine {name}: runs on the CPU alone, not on {device}; use the engine torch there.")
    if not is_float32(network):
        raise ModelError(
            f"{type(network).__name__}: is not a float32 network, and {name} runs these alone; use the engine torch."
        )
    missing = next((package for package in ENGINES[name] if not find_spec(package)), None)
    if missing:
        raise SettingError(
            f"engine {name}: needs {missing}, which is not installed: {_installation(missing)}, or use another engine."
        )
    compilers = {"openvino": openvino.compile_graph, "onnxruntime": onnxruntime.compile_graph}
    return ExportedEngine(name, network, compilers[name], cache, stride)


def _installation(package: str) -> str:
    return "pip install 'pixelwise[onnxruntime]'" if package == "onnxruntime" else f"pip install {package}"
