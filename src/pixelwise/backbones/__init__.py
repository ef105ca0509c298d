"""Networks that turn an image into a pyramid of features, by name; torchvision and timm are imported only if needed."""

from pixelwise.backbones.base import Backbone
from pixelwise.backbones.factory import BACKBONES, make_backbone, make_classifier
from pixelwise.backbones.installed import how_to_install, installed_encoders
from pixelwise.backbones.pretrained import Loaded, load_pretrained, load_weights

__all__ = [
    "BACKBONES",
    "Backbone",
    "Loaded",
    "how_to_install",
    "installed_encoders",
    "load_pretrained",
    "load_weights",
    "make_backbone",
    "make_classifier",
]
