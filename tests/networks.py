"""A network whose predictions are known beforehand, and settings that go with it; shared by the tests of prediction."""

from typing import Any

import torch
from torch import Tensor, nn

from pixelwise.config import Config, make_config
from pixelwise.geometry import Geometry


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
