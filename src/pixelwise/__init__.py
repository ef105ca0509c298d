"""pixelwise labels every pixel of an image with fully convolutional networks.

>>> import pixelwise as pw
>>> pw.models.UNet(in_channels=3, num_classes=5, width=8).geometry.stride
16
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixelwise import models
    from pixelwise.api import Run, load, train
    from pixelwise.predict import predict

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "load", "models", "predict", "train"]

# PyTorch takes seconds to import, so the names that need it are fetched when they are first used.
_HOMES = {"Run": "api", "load": "api", "train": "api", "predict": "predict"}


def __getattr__(name: str) -> Any:
    if name == "models":
        return importlib.import_module("pixelwise.models")
    if name in _HOMES:
        globals()[name] = getattr(importlib.import_module(f"pixelwise.{_HOMES[name]}"), name)
        return globals()[name]
    raise AttributeError(f"module 'pixelwise' has no attribute {name!r}")


class _Package(ModuleType):
    """Python would put the modules train.py and predict.py in the place of the functions of those names."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
