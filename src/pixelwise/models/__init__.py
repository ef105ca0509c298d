"""The networks: plain modules that take N x C x H x W images and return N x K x H x W logits, by name."""

import inspect
from typing import Any

from torch import nn

from pixelwise.errors import SettingError, near
from pixelwise.models.unet import UNet

__all__ = ["MODELS", "UNet", "build"]

MODELS: dict[str, type[nn.Module]] = {"unet": UNet}
"""Every architecture by its name; each takes `in_channels` and `num_classes`, the rest has defaults."""


def build(name: str, **keywords: Any) -> nn.Module:
    """Make the network called `name`.

    Raises:
        SettingError: there is no such network, it has no such setting, or a setting's value makes no sense.

    >>> build("unet", in_channels=3, num_classes=5, width=8).num_classes
    5
    """
    if name not in MODELS:
        raise SettingError(f"model.name: there is no network {name!r}; {near(name, MODELS)}.")
    settings = list(inspect.signature(MODELS[name]).parameters)
    for keyword in keywords:
        if keyword not in settings:
            raise SettingError(f"model.{keyword}: {name} has no such setting; {near(keyword, settings)}.")
    return MODELS[name](**keywords)
