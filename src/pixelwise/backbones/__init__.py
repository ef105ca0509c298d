"""Networks that turn an image into a pyramid of features, by name; torchvision and timm are imported only if needed."""

from pixelwise.backbones.base import Backbone
from pixelwise.backbones.factory import BACKBONES, make_backbone, make_classifier
from pixelwise.backbones.pretrained import load_pretrained

__all__ = ["BACKBONES", "Backbone", "load_pretrained", "make_backbone", "make_classifier"]
