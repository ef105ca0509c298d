"""The operators that networks are made of."""

from pixelwise.layers.conv import NORMS, ConvNormAct, ResidualBlock, he_start
from pixelwise.layers.upsample import UpConcatenate, center_crop, pad_to_stride

__all__ = ["NORMS", "ConvNormAct", "ResidualBlock", "UpConcatenate", "center_crop", "he_start", "pad_to_stride"]
