"""The networks: plain modules that take N x C x H x W images and return N x K x H x W logits, by name."""

import inspect
from typing import Any

from pixelwise.core.errors import SettingError, near
from pixelwise.models.base import Segmenter
from pixelwise.models.segmentation.deconvnet import DeconvNet
from pixelwise.models.segmentation.deeplab import DeepLabV2, DeepLabV3Plus
from pixelwise.models.segmentation.fcn import FCN8s, FCN16s, FCN32s
from pixelwise.models.segmentation.gscnn import GSCNN
from pixelwise.models.segmentation.patch import Patch, convolutionalize, slide
from pixelwise.models.segmentation.pspnet import PSPNet
from pixelwise.models.segmentation.segnet import SegNet
from pixelwise.models.segmentation.unet import UNet

__all__ = [
    "GSCNN",
    "MODELS",
    "DeconvNet",
    "DeepLabV2",
    "DeepLabV3Plus",
    "FCN8s",
    "FCN16s",
    "FCN32s",
    "PSPNet",
    "Patch",
    "SegNet",
    "Segmenter",
    "UNet",
    "build",
    "convolutionalize",
    "slide",
]

MODELS: dict[str, type[Segmenter]] = {
    "patch": Patch,
    "fcn32s": FCN32s,
    "fcn16s": FCN16s,
    "fcn8s": FCN8s,
    "unet": UNet,
    "deconvnet": DeconvNet,
    "segnet": SegNet,
    "pspnet": PSPNet,
    "deeplabv2": DeepLabV2,
    "deeplabv3plus": DeepLabV3Plus,
    "gscnn": GSCNN,
}
"""Every architecture by its name; each takes `in_channels` and `num_classes`, the rest has defaults."""


def build(name: str, **keywords: Any) -> Segmenter:
    """Make the network called `name`.

    Raises:
        SettingError: the network is unknown, it does not have a setting, or a setting's value makes no sense.

    >>> build("unet", in_channels=3, num_classes=5, width=8).num_classes
    5
    """
    if name not in MODELS:
        raise SettingError(f"model.name: unknown network {name!r}; {near(name, MODELS)}")
    settings = list(inspect.signature(MODELS[name]).parameters)
    for keyword in keywords:
        if keyword == "backbone" and MODELS[name].own_encoder:
            raise SettingError(f"model.backbone: {name} takes none: {MODELS[name].own_encoder}.")
        if keyword not in settings:
            raise SettingError(f"model.{keyword}: {name} has no such setting; {near(keyword, settings)}")
    return MODELS[name](**keywords)
