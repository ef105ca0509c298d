"""What the tests of networks and of prediction share."""

from typing import Any

import torch
from torch import Tensor, nn

from pixelwise.core.config import Config, make_config
from pixelwise.geometry.reach import Geometry


def draw(*shape: int, seed: int = 1) -> Tensor:
    """Noise in float64, the same at every call."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def count(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def lively(network: nn.Module) -> nn.Module:
    """The network in float64 and eval mode, with norms that are not the identity."""
    for part in network.double().eval().modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -1, 1)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 2)
    return network


class Brightness(nn.Module):
    """Class k where the mean of the normalised channels is nearest to `levels[k]`."""

    geometry = Geometry(stride=1, halo=0, margin=0)
    levels: Tensor

    def __init__(self, *levels: float) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels))

    def forward(self, images: Tensor) -> Tensor:
        return -((images.mean(1, keepdim=True) - self.levels[:, None, None]) ** 2)


def make_settings(channels: int = 1, **data: Any) -> Config:
    """Settings with which 8-bit values below 128 become negative, others positive."""
    return make_config(
        {
            "data": {
                "labels": "binary", "classes": ["background", "cell"], "colors": [[0, 0, 0], [250, 120, 10]],
                "values": [0, 255], "ignore": [], "channels": channels, "scale": 1.0, "normalization": "fixed",
                "mean": [0.5] * channels, "std": [0.25] * channels, **data,
            },
            "model": {},
            "train": {"patch": [32, 32], "batch": 2, "epochs": 1, "steps_per_epoch": 2, "rate": 0.001},
            "augment": {},
            "loss": {},
        }
    )  # fmt: skip
