"""Engines run a network: an array in, its outputs by name out. One file an engine, one interface, one test suite.

`torch` runs any module as it is. `openvino` and `onnxruntime` run float32 networks on the CPU: `torch.export` turns
these into a graph, which is proved equal to the network before it is used.
"""

from dataclasses import replace
from importlib.util import find_spec
from typing import Protocol

import numpy as np
from torch import nn

from pixelwise.core.errors import ModelError, SettingError, near
from pixelwise.engines import onnxruntime, openvino
from pixelwise.engines.choice import Arrays, EngineChoice
from pixelwise.engines.exported import ExportedEngine
from pixelwise.engines.torch import TorchEngine, is_float32
from pixelwise.geometry.sizes import Sizes
from pixelwise.layers import MaxPoolPositions

__all__ = [
    "ENGINES",
    "Arrays",
    "Engine",
    "EngineChoice",
    "ExportedEngine",
    "TorchEngine",
    "choose_engine",
    "depends_on_rounding",
    "make_engine",
]


class Engine(Protocol):
    """Anything that turns images into outputs; one call at a time.

    Attributes:
        name: the engine's name, one of `ENGINES`.
        device: where it runs: "cpu", "cuda", "mps".
        note: why "auto" did not take a faster engine; empty if it did.
    """

    name: str
    device: str
    note: str

    def __call__(self, images: np.ndarray) -> Arrays:
        """N x C x H x W float32 -> the outputs by name, such as N x K x H' x W' float32; the caller may change them."""
        ...


ENGINES: dict[str, tuple[str, ...]] = {
    "openvino": ("openvino", "onnx", "onnxscript"),
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "torch": (),
}
"""Every engine with the packages that it needs beside torch, the fastest on a CPU first."""


def make_engine(network: nn.Module, choice: EngineChoice, sizes: Sizes) -> Engine:
    """The engine of a user's choice for a network, which stays as it is.

    Args:
        network: any module that takes N x C x H x W and returns a tensor, or several as a dict, tuple or list.
        choice: which engine, and how. If "auto" chooses one that then cannot run the network, torch runs it, and its
            `note` says why.
        sizes: of the images to come.

    Raises:
        SettingError: there is no such engine, it is not installed, or it does not run on that device.
        ModelError: the engine that the user named cannot run this network.
    """
    name = choose_engine(network, choice)
    if name == "torch":
        return TorchEngine(network, choice)
    if choice.amp:
        raise SettingError(f"engine {name}: does not support half precision (amp). Use the engine torch on a GPU.")
    if choice.compiled:
        raise SettingError(f"engine {name}: cannot use torch.compile. Use the engine torch.")
    try:
        return _exported_engine(name, network, choice, sizes)
    except (ModelError, SettingError) as error:
        if choice.name != "auto":
            raise
        return TorchEngine(network, choice, note=f"torch is used instead of {name}: {error}")


def choose_engine(network: nn.Module, choice: EngineChoice) -> str:
    """The name of an engine; "auto" becomes the fastest that is installed and suits the network and the choice.

    A network that `depends_on_rounding` stays with torch, which rounds tiles and whole images alike.

    Raises:
        SettingError: there is no such engine.

    >>> choose_engine(nn.Conv2d(1, 2, 3).double(), EngineChoice("auto"))
    'torch'
    """
    if choice.name != "auto":
        if choice.name not in ENGINES:
            raise SettingError(f"engine {choice.name}: is not an engine; {near(choice.name, ['auto', *ENGINES])}")
        return choice.name
    only_torch = choice.device != "cpu" or choice.amp or choice.compiled
    if only_torch or not is_float32(network) or depends_on_rounding(network):
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


def _exported_engine(name: str, network: nn.Module, choice: EngineChoice, sizes: Sizes) -> Engine:
    if choice.device != "cpu":
        raise SettingError(f"engine {name}: only runs on the CPU, not on {choice.device}. Use the engine torch there.")
    if not is_float32(network):
        raise ModelError(
            f"{type(network).__name__}: is not a float32 network, and {name} only runs those. Use the engine torch."
        )
    missing = next((package for package in ENGINES[name] if not find_spec(package)), None)
    if missing:
        raise SettingError(
            f"engine {name}: needs the package {missing}, which is not installed. Run `{_installation(missing)}`, "
            "or use another engine."
        )
    compilers = {"openvino": openvino.compile_graph, "onnxruntime": onnxruntime.compile_graph}
    return ExportedEngine(replace(choice, name=name), network, compilers[name], sizes)


def _installation(package: str) -> str:
    return "pip install 'pixelwise[onnxruntime]'" if package == "onnxruntime" else f"pip install {package}"
