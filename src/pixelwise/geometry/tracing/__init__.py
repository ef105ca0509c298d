"""What a network sees, derived from running it once without data: its geometry and its layers.

The network runs on tensors that have a shape but no values (torch's "meta" device). Each operator that runs says on
which input pixels its result depends, given those of its arguments.
"""

from pixelwise.geometry.tracing.layers import Layer, Totals, totals, trace_layers
from pixelwise.geometry.tracing.rules import GROUP_NORM, WHOLE_IMAGE
from pixelwise.geometry.tracing.seen import NotLocalError
from pixelwise.geometry.tracing.trace import Trace, described_by, trace_geometry

__all__ = [
    "GROUP_NORM",
    "WHOLE_IMAGE",
    "Layer",
    "NotLocalError",
    "Totals",
    "Trace",
    "described_by",
    "totals",
    "trace_geometry",
    "trace_layers",
]
