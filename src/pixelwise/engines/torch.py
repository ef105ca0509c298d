"""PyTorch: in channels_last, in float32 that is float32 (no TF32, no bfloat16) unless half precision is asked for."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from pixelwise.core.errors import ModelError, SettingError, reason
from pixelwise.geometry.modes import evaluation_mode

TOLERANCE = 1e-4  # of the largest logit: what float32 is allowed to differ by


class TorchEngine:
    """Runs a module, eagerly or compiled.

    The module stays as it is: one that lives on another device is copied to this one, and the train / eval mode of
    each of its parts is put back after each call.

    Args:
        network: takes N x C x H x W, returns N x K x H' x W'.
        device: "cpu", "cuda", "cuda:1", "mps".
        amp: bfloat16 or float16 where autocast takes it to be safe; on a GPU alone.
        compiled: run it by torch.compile, which takes from seconds to a minute before the first image and as long
            again when another size of image comes; then the sizes do not matter. Its first logits are compared with
            the eager ones.
        note: why this engine runs the network.

    Raises:
        SettingError: half precision on the CPU.

    >>> TorchEngine(nn.Conv2d(1, 3, 1))(np.zeros((1, 1, 4, 5), np.float32)).shape
    (1, 3, 4, 5)
    """

    name = "torch"

    def __init__(
        self, network: nn.Module, device: str = "cpu", amp: bool = False, compiled: bool = False, note: str = ""
    ) -> None:
        self._place = torch.device(device)
        if amp and self._place.type == "cpu":
            raise SettingError("amp: half precision runs on a GPU alone; leave it out on the CPU.")
        self.device = self._place.type
        self.note = note
        self._network = on_device(network, self._place)
        self._amp = amp
        self._run = torch.compile(self._network) if compiled else self._network
        self._unproved = compiled

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """N x C x H x W float32 -> N x K x H' x W' logits, float32; a float64 module takes and gives float64.

        Raises:
            ModelError: the device has too little memory, the network returns no tensor, or it cannot be compiled.
        """
        try:
            with evaluation_mode(self._network), torch.inference_mode(), _full_precision(), self._autocast():
                batch = torch.from_numpy(np.require(images, requirements=["C", "W"]))
                logits = self._forward(batch.to(self._place, memory_format=torch.channels_last))
                return logits.cpu().numpy()
        except torch.OutOfMemoryError as error:
            shape = " x ".join(map(str, images.shape))
            raise ModelError(
                f"{self._place} has too little memory for an image or tile of {shape}: use smaller tiles (--tile), "
                "or the CPU (--device cpu)."
            ) from error

    def _forward(self, batch: Tensor) -> Tensor:
        if not self._unproved:
            return self._checked(self._run(batch))
        expected = self._checked(self._network(batch))
        compiled = self._checked(self._compiled(batch))
        self._prove(compiled, expected)
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
        except RuntimeError as error:  # whatever torch.compile meets is one
            raise ModelError(
                f"{type(self._network).__name__}: torch.compile cannot compile it here: {reason(error)}. "
                "Leave --compile out."
            ) from error

    def _prove(self, compiled: Tensor, expected: Tensor) -> None:
        """Refuse a compiled network whose logits are others; half precision rounds too much to tell."""
        difference = float((compiled - expected).abs().max())
        if not self._amp and difference > TOLERANCE * float(expected.abs().max()):
            raise ModelError(
                f"{type(self._network).__name__}: compiled by torch.compile its logits differ from its own by "
                f"{difference:.2g}. Leave --compile out."
            )
        self._unproved = False

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self._place.type, dtype=self._half()) if self._amp else nullcontext()

    def _half(self) -> torch.dtype:
        bfloat16 = self._place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bfloat16 else torch.float16

    def _checked(self, logits: object) -> Tensor:
        if not isinstance(logits, Tensor):
            raise ModelError(
                f"{type(self._network).__name__}: returned {type(logits).__name__}; it must return a tensor of "
                "logits, N x K x H x W. Wrap it in a module that does."
            )
        return logits.float() if self._amp else logits


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
