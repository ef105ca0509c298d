"""PyTorch: on the CPU in channels_last; on a GPU in float32 with TF32 off, because float32 means float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


class TorchEngine:
    """Runs a module eagerly.

    The module is moved to the device and its memory format; the train / eval mode of each of its parts is put back
    after each call.

    >>> TorchEngine(nn.Conv2d(1, 3, 1), "cpu")(np.zeros((1, 1, 4, 5), np.float32)).shape
    (1, 3, 4, 5)
    """

    def __init__(self, network: nn.Module, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """N x C x H x W float32 -> N x K x H' x W' logits, float32; a float64 module takes and gives float64."""
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        try:
            with torch.inference_mode(), _full_precision():
                batch = torch.from_numpy(np.require(images, requirements=["C", "W"]))
                batch = batch.to(self.device, memory_format=torch.channels_last)
                return self.network(batch).cpu().numpy()
        finally:
            for module, training in modes:
                module.training = training


@contextmanager
def _full_precision() -> Iterator[None]:
    """Switch TF32 off for the time of a call."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
