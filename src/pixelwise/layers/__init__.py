"""The operators that networks are made of."""

from pixelwise.geometry.tracing import WHOLE_IMAGE
from pixelwise.layers.context import (
    AtrousSpatialPyramidPooling,
    GlobalAveragePool,
    GlobalMaxPool,
    PyramidPooling,
)
from pixelwise.layers.conv import (
    NORMS,
    ConvNormAct,
    DepthwiseSeparable,
    InceptionModule,
    ResidualBlock,
    he_start,
)
from pixelwise.layers.gates import GatedConvolution
from pixelwise.layers.transposed import (
    convolution_matrix,
    coverage,
    insert_zeros,
    transposed_by_matrix,
    transposed_by_stamps,
    transposed_by_zeros,
)
from pixelwise.layers.unpool import MaxPoolPositions, MaxUnpool, bed_of_nails
from pixelwise.layers.upsample import (
    MODES,
    UpConcatenate,
    bilinear_kernel,
    bilinear_start,
    center_crop,
    enlarge,
    pad_to_stride,
)

__all__ = [
    "MODES",
    "NORMS",
    "WHOLE_IMAGE",
    "AtrousSpatialPyramidPooling",
    "ConvNormAct",
    "DepthwiseSeparable",
    "GatedConvolution",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "InceptionModule",
    "MaxPoolPositions",
    "MaxUnpool",
    "PyramidPooling",
    "ResidualBlock",
    "UpConcatenate",
    "bed_of_nails",
    "bilinear_kernel",
    "bilinear_start",
    "center_crop",
    "convolution_matrix",
    "coverage",
    "enlarge",
    "he_start",
    "insert_zeros",
    "pad_to_stride",
    "transposed_by_matrix",
    "transposed_by_stamps",
    "transposed_by_zeros",
]
