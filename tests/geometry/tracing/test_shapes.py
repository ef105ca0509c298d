"""Shapes and types of results against those of torch with values; and that torch's compiler stays out of it."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pixelwise.geometry.tracing.trace import Trace

FEATURES = (2, 4, 9, 12)
WEIGHT = torch.ones(6, 4, 3, 3)

OPERATORS: dict[str, Callable[[Tensor], Any]] = {
    "convolution": lambda x: F.conv2d(x, WEIGHT.to(x), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    "convolution with groups": lambda x: F.conv2d(x, WEIGHT[:, :2].to(x), groups=2),
    "convolution along a line": lambda x: F.conv1d(x.flatten(2), WEIGHT[..., 0].to(x)),
    "transposed": lambda x: F.conv_transpose2d(x, WEIGHT[:4].to(x), stride=3, padding=1, output_padding=2, dilation=2),
    "transposed with groups": lambda x: F.conv_transpose2d(x, WEIGHT[:4].to(x), groups=2),
    "maximum": lambda x: F.max_pool2d(x, 3, stride=2, padding=1, return_indices=True),
    "maximum of all windows": lambda x: F.max_pool2d(x, (2, 5), ceil_mode=True),
    "mean of windows": lambda x: F.avg_pool2d(x, 2, 4, 1, ceil_mode=True),
    "mean of volumes": lambda x: F.avg_pool2d(x[0], 2),
    "added": lambda x: x + x[:, :1, :, :1],
    "compared": lambda x: (x > 0) & (x < 1),
    "double": lambda x: x.double() * x,
    "whole": lambda x: x.long() // 2 + x[:1],
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "number": lambda x: x.mean() * x.half(),
    "in place": lambda x: x.clone().relu_().mul_(x[:, :1]),
    "hardswish": lambda x: F.hardswish(x, inplace=False),
    "joined": lambda x: torch.cat([x, x[:, :1]], dim=-3),
    "joined types": lambda x: torch.cat([x, x.double()], dim=0),
    "filled": lambda x: F.pad(x, (1, -2, 0, 3)),
    "repeated border": lambda x: F.pad(x, (1, 2, 0, 3), mode="replicate"),
    "mirrored border": lambda x: F.pad(x, (1, 2, 0, 3), mode="reflect"),
    "mean": lambda x: (x.mean((1, -1)), x.mean(2, keepdim=True), x.mean(), x.sum(0), x.long().sum(1)),
    "largest": lambda x: (x.amax((2, 3), keepdim=True), x.amin(1), x.max(1), x.max()),
    "grid": lambda x: (F.adaptive_avg_pool2d(x, (2, 3)), F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 2)),
    "resized": lambda x: [F.interpolate(x, (5, 20), mode=mode) for mode in ("nearest", "bilinear", "bicubic")],
    "norms": lambda x: (F.group_norm(x, 2), F.layer_norm(x, (12,)), F.instance_norm(x), F.local_response_norm(x, 2)),
    "batch norm": lambda x: F.batch_norm(x, x[0, :, 0, 0], x[0, :, 0, 0]),
    "shuffled": lambda x: (F.pixel_shuffle(x, 2), F.pixel_unshuffle(x, 3), F.channel_shuffle(x, 2)),
    "made": lambda x: (torch.zeros_like(x, dtype=torch.int32), x.new_ones(3), torch.full_like(x, 2), x.half()),
    "products": lambda x: (x @ x.mT, F.linear(x, x[0, 0]), x[0, 0] @ x[0, 0].T),
    "softmax": lambda x: (x.softmax(1), x.log_softmax(-1)),
    "scattered": lambda x: torch.zeros_like(x).scatter(2, torch.zeros_like(x).long()[:, :, :2], x[:, :, :2]),
    "turned": lambda x: (x.mT, x.permute(1, 0, 3, 2), x.flatten(1), x[:, 0], x[..., ::2], x[:1].expand(3, -1, -1, -1)),
}  # fmt: skip


def traced(function: Callable[[Tensor], Any], *shape: int) -> Any:
    with torch.no_grad(), Trace(1):
        return function(torch.empty(shape, device="meta"))


def signature(values: Any) -> list[tuple[tuple[int, ...], torch.dtype]]:
    leaves = torch.utils._pytree.tree_leaves(values)
    return [(tuple(leaf.shape), leaf.dtype) for leaf in leaves]


@pytest.mark.parametrize("function", OPERATORS.values(), ids=OPERATORS)
def test_results_have_the_shape_and_type_of_torch(function: Callable[[Tensor], Any]) -> None:
    torch.manual_seed(0)
    found = traced(function, *FEATURES)
    assert signature(found) == signature(function(torch.rand(FEATURES)))
    assert all(leaf.is_meta for leaf in torch.utils._pytree.tree_leaves(found))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_pooling_and_convolution_of_any_figures(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    kernel = draw(1, 4)
    stride, padding, dilation = draw(1, 4), draw(0, kernel // 2), draw(1, 2)
    shape = (1, 2, draw(8, 20), draw(8, 20))
    is_ceiled = data.draw(st.booleans())

    def run(images: Tensor) -> list[Tensor]:
        return [
            F.max_pool2d(images, kernel, stride, padding, dilation, is_ceiled),
            F.avg_pool2d(images, kernel, stride, padding, is_ceiled),
            F.conv2d(images, images.new_zeros(3, 2, kernel, kernel), None, stride, padding, dilation),
            F.conv_transpose2d(images, images.new_zeros(2, 3, kernel, kernel), None, stride, padding, 0, 1, dilation),
        ]

    assert signature(traced(run, *shape)) == signature(run(torch.zeros(shape)))


WRONG: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "channels": (lambda x: F.conv2d(x, x.new_zeros(1, 3, 1, 1)), "channel"),
    "kernel": (lambda x: F.conv2d(x, x.new_zeros(1, 4, 10, 1)), "a kernel of 10 pixels does not fit into 9"),
    "window": (lambda x: F.max_pool2d(x, 12), "too small"),
    "sizes": (lambda x: x + x[..., :3], "match|broadcast"),
    "joined sizes": (lambda x: torch.cat([x, x[..., :3]], dim=1), "match|Sizes|sizes"),
    "mirror": (lambda x: F.pad(x, (12, 0, 0, 0), mode="reflect"), "[Pp]adding size"),
    "folding": (lambda x: F.pixel_unshuffle(x, 5), "invalid"),
    "unfolding": (lambda x: F.pixel_shuffle(x, 3), "pixel_shuffle"),
    "product": (lambda x: x[0, 0] @ x[0, 0], "shape|size|dim"),
    "too much cropped": (lambda x: F.pad(x, (-13, 0)), "negative"),
}  # fmt: skip


@pytest.mark.parametrize(("function", "message"), WRONG.values(), ids=WRONG)
def test_what_torch_refuses_is_refused(function: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        traced(function, *FEATURES)


def test_the_compiler_is_not_imported() -> None:
    """It takes seconds, and 150 MiB of what a prediction may hold."""
    code = (
        "import sys\n"
        "from pixelwise.layers import MaxPoolPositions, MaxUnpool, PyramidPooling, enlarge\n"
        "from pixelwise.models import UNet\n"
        "from pixelwise.geometry.tracing import trace_geometry\n"
        "for form in ({}, {'stem': 2, 'residual': True}, {'norm': 'group'}):\n"
        "    trace_geometry(UNet(1, 2, width=2, depth=2, **form), 1, 8)\n"
        "trace_geometry(PyramidPooling(4), 4, 1)\n"
        "print({'sympy', 'torch._dynamo'} & set(sys.modules))\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "set()\n"
