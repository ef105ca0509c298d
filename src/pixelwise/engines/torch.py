"""PyTorch, in channels_last. float32 means float32 (no TF32, no bfloat16), unless the user wants half precision."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pixelwise.core.errors import ModelError, SettingError, reason
from pixelwise.engines.choice import Arrays, EngineChoice
from pixelwise.geometry.modes import evaluation_mode

_EAGER = EngineChoice("torch")
TOLERANCE = 1e-4  # of the largest value: by how much float32 may differ


class TorchEngine:
    """Runs a module, eagerly or compiled.

    The module stays as it is: one that lives on another device is copied to this one, and the train / eval mode of
    each of its parts is put back after each call.

    Args:
        network: takes N x C x H x W; returns a tensor such as N x K x H' x W', a dict of them, a tuple or a list.
        choice: the device, half precision, and whether torch.compile runs it. To compile takes from seconds to a
            minute before the first image, and as long again before the first of another size; from then on any size
            will do. The first outputs are compared with the eager ones.
        note: why this engine runs the network.

    Raises:
        SettingError: half precision on the CPU.

    >>> TorchEngine(nn.Conv2d(1, 3, 1))(np.zeros((1, 1, 4, 5), np.float32))["logits"].shape
    (1, 3, 4, 5)
    """

    name = "torch"

    def __init__(self, network: nn.Module, choice: EngineChoice = _EAGER, note: str = "") -> None:
        self._place = torch.device(choice.device)
        if choice.amp and self._place.type == "cpu":
            raise SettingError("amp: half precision only works on a GPU. Leave it out on the CPU.")
        self.device = self._place.type
        self.note = note
        self._network = on_device(network, self._place)
        self._amp = choice.amp
        self._run = torch.compile(self._network) if choice.compiled else self._network
        self._unproved = choice.compiled

    def __call__(self, images: np.ndarray) -> Arrays:
        """N x C x H x W float32 -> outputs by name, float32; a float64 module takes and gives float64.

        A tensor is called "logits"; those of a dict keep their names; those of a tuple or a list are "0", "1", ...

        Raises:
            ModelError: the device has too little memory, the network returns something else, or it cannot be compiled.
        """
        try:
            with evaluation_mode(self._network), torch.inference_mode(), _full_precision(), self._autocast():
                batch = torch.from_numpy(np.require(images, requirements=["C", "W"]))
                outputs = self._forward(batch.to(self._place, memory_format=torch.channels_last))
                return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}
        except torch.OutOfMemoryError as error:
            shape = " x ".join(map(str, images.shape))
            raise ModelError(
                f"{self._place} has too little memory for an image or tile of {shape}: use smaller tiles (--tile), "
                "or the CPU (--device cpu)."
            ) from error

    def _forward(self, batch: Tensor) -> dict[str, Tensor]:
        if not self._unproved:
            return self._named(self._run(batch))
        expected = self._named(self._network(batch))
        compiled = self._named(self._compiled(batch))
        for name, values in expected.items():
            self._prove(compiled[name], values)
        self._unproved = False
        return compiled

    def _compiled(self, batch: Tensor) -> object:
        """The first call of the compiled network.

        Raises:
            ModelError: it cannot be compiled here.
        """
        try:
            return self._run(batch)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # any failure of torch.compile is one
            raise ModelError(
                f"{type(self._network).__name__}: torch.compile cannot compile it here: {reason(error)}. "
                "Leave --compile out."
            ) from error

    def _prove(self, compiled: Tensor, expected: Tensor) -> None:
        """Refuse a compiled network whose outputs differ; half precision rounds too much to tell."""
        difference = float((compiled - expected).abs().max())
        if not self._amp and difference > TOLERANCE * float(expected.abs().max()):
            raise ModelError(
                f"{type(self._network).__name__}: compiled by torch.compile, its outputs differ by {difference:.2g} "
                "from its own. Leave --compile out."
            )

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self._place.type, dtype=self._half()) if self._amp else nullcontext()

    def _half(self) -> torch.dtype:
        bfloat16 = self._place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bfloat16 else torch.float16

    def _named(self, returned: object) -> dict[str, Tensor]:
        """What the network returned, by name."""
        match returned:
            case Tensor():
                outputs: dict[Any, object] = {"logits": returned}
            case dict():
                outputs = returned
            case tuple() | list():
                outputs = dict(enumerate(returned))
            case _:
                outputs = {}
        tensors = {str(name): values for name, values in outputs.items() if isinstance(values, Tensor)}
        if not tensors or len(tensors) < len(outputs):
            raise ModelError(
                f"{type(self._network).__name__}: returned {_kinds(returned)}; it must return a tensor of logits, "
                "N x K x H x W, or a dict, tuple or list of tensors. Wrap it in a module that does so."
            )
        return {name: values.float() if self._amp else values for name, values in tensors.items()}


def _kinds(returned: object) -> str:
    """The type of a value, and for a container those of what it holds."""
    held = returned.values() if isinstance(returned, dict) else returned if isinstance(returned, tuple | list) else ()
    kinds = sorted({type(value).__name__ for value in held})
    return f"{type(returned).__name__} of {', '.join(kinds)}" if kinds else type(returned).__name__


def on_device(network: nn.Module, device: torch.device) -> nn.Module:
    """The network itself where all of it lives on that device, else a copy there."""
    tensors = [*network.parameters(), *network.buffers()]
    if all(tensor.device.type == device.type and device.index in (None, tensor.device.index) for tensor in tensors):
        return network
    return copy.deepcopy(network).to(device)


def is_float32(network: nn.Module) -> bool:
    """Whether all its floating-point parameters and buffers are float32.

    >>> is_float32(nn.Conv2d(1, 1, 1)), is_float32(nn.Conv2d(1, 1, 1).double())
    (True, False)
    """
    tensors = [*network.parameters(), *network.buffers()]
    return all(tensor.dtype == torch.float32 or not tensor.is_floating_point() for tensor in tensors)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Switch TF32 off for the time of a call."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
