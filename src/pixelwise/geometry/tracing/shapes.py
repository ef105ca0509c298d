"""Results without values of the operators that our own networks run.

Torch's own functions for tensors without values give the same shapes, but the first of them imports sympy and torch's
compiler. On two cores a U-Net's geometry takes 0.02 s and 4 MiB with what is here, and 10 s and 168 MiB without: more
than most predictions take. So they are left for what is not here, and for whatever is wrong: their errors say what.
(timm imports the compiler itself, so that for a network on one of its encoders nothing is saved.)
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves, tree_map_only

from pixelwise.geometry.reach import output_size, transposed_output_size

Arguments = dict[str, Any]

_UNMARKED = ("floor_divide",)  # is pointwise, too


def result_of(func: OpOverload, name: str, args: Any, kwargs: Any, arguments: Arguments) -> Any:
    """What an operator returns for tensors without values.

    Args:
        func: the operator.
        name: of it, such as "convolution".
        args: that it is called with.
        kwargs: that it is called with.
        arguments: the same by name, with the defaults.
    """
    result = None
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if all(tensor.is_meta for tensor in tensors):
        if name in _RESULTS and not func._schema.is_mutable:
            result = _RESULTS[name](arguments)
        elif torch.Tag.pointwise in func.tags or name in _UNMARKED:
            result = _pointwise(func, args, kwargs, tensors)
    return func(*args, **kwargs) if result is None else result


def _pointwise(func: OpOverload, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> Tensor | None:
    """The result of a pointwise operator: shapes are broadcast, and single values show its type."""
    try:
        shape = np.broadcast_shapes(*(tensor.shape for tensor in tensors))
    except ValueError:
        return None
    if func._schema.is_mutable:
        return tensors[0] if args and args[0] is tensors[0] and shape == tensors[0].shape else None
    args, kwargs = tree_map_only(Tensor, _one_value, (args, kwargs))
    one = func(*args, **kwargs)
    return _empty(shape, one.dtype) if isinstance(one, Tensor) else None


def _one_value(tensor: Tensor) -> Tensor:
    """A single value with as many dimensions, since these also decide on the type of a result."""
    return torch.ones([1] * tensor.ndim, dtype=tensor.dtype, device="cpu")


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def _like(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    return _empty(shape, tensor.dtype)


def _convolution(arguments: Arguments) -> Tensor | None:
    features, weight, groups = (arguments[name] for name in ("input", "weight", "groups"))
    is_transposed = arguments["transposed"]
    in_channels = weight.shape[0] if is_transposed else weight.shape[1] * groups
    if features.ndim != 4 or features.shape[1] != in_channels:
        return None
    size = _transposed_size if is_transposed else _convolved_size
    names = ("stride", "padding", "dilation", "output_padding")
    figures = zip(features.shape[2:], weight.shape[2:], *(_pair(arguments[name]) for name in names), strict=True)
    channels = weight.shape[1] * groups if is_transposed else weight.shape[0]
    return _like(features, (features.shape[0], channels, *(size(*axis) for axis in figures)))


def _convolved_size(size: int, kernel: int, stride: int, padding: int, dilation: int, output_padding: int) -> int:
    return output_size(size, dilation * (kernel - 1) + 1, stride, padding)


def _transposed_size(size: int, kernel: int, stride: int, padding: int, dilation: int, output_padding: int) -> int:
    return transposed_output_size(size, dilation * (kernel - 1) + 1, stride, padding, output_padding)


def _pair(values: Sequence[int]) -> Sequence[int]:
    return values if len(values) == 2 else list(values) * 2


def _pooled(arguments: Arguments) -> Tensor | None:
    features, kernel = arguments["self"], _pair(arguments["kernel_size"])
    strides = _pair(arguments["stride"] or kernel)
    paddings, dilations = _pair(arguments["padding"]), _pair(arguments.get("dilation", [1]))
    if features.ndim != 4:
        return None
    axes = zip(features.shape[2:], kernel, strides, paddings, dilations, strict=True)
    sizes = [_pooled_size(*axis, is_ceiled=arguments["ceil_mode"]) for axis in axes]
    return _like(features, (*features.shape[:2], *sizes)) if min(sizes) > 0 else None


def _pooled_size(size: int, kernel: int, stride: int, padding: int, dilation: int, is_ceiled: bool) -> int:
    """With ceil the last window may be cut short, but it must begin inside the image or its left padding."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-room // stride) if is_ceiled else room // stride) + 1
    return count - 1 if is_ceiled and (count - 1) * stride >= size + padding else count


def _pooled_with_indices(arguments: Arguments) -> tuple[Tensor, Tensor] | None:
    values = _pooled(arguments)
    return None if values is None else (values, _empty(values.shape, torch.int64))


def _resized(arguments: Arguments) -> Tensor:
    features = arguments["self"]
    return _like(features, (*features.shape[:-2], *arguments["output_size"]))


def _padded(arguments: Arguments) -> Tensor | None:
    features, amounts = arguments["self"], arguments["pad" if "pad" in arguments else "padding"]
    sizes = list(features.shape)
    for place in range(len(amounts) // 2):
        sizes[-1 - place] += amounts[2 * place] + amounts[2 * place + 1]
    return _like(features, sizes) if min(sizes) > 0 else None


def _concatenated(arguments: Arguments) -> Tensor | None:
    tensors = arguments["tensors"]
    place = arguments["dim"] % tensors[0].ndim
    others = {(tensor.dtype, tensor.shape[:place], tensor.shape[place + 1 :]) for tensor in tensors}
    if len(others) > 1:
        return None
    ((_, before, after),) = others
    return _like(tensors[0], (*before, sum(tensor.shape[place] for tensor in tensors), *after))


def _reduced(arguments: Arguments) -> Tensor | None:
    values, dims = arguments["self"], arguments.get("dim")
    if not dims or arguments.get("dtype") or not values.is_floating_point():
        return None
    gone = {dim % values.ndim for dim in dims}
    sizes = [1 if place in gone else size for place, size in enumerate(values.shape)]
    kept = sizes if arguments["keepdim"] else [size for place, size in enumerate(sizes) if place not in gone]
    return _like(values, kept)


def _normalized(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """The statistics are left empty, since nobody looks at them."""
    values = arguments["input"]
    return _like(values, values.shape), _like(values, [0]), _like(values, [0])


def _unshuffled(arguments: Arguments) -> Tensor | None:
    features, factor = arguments["self"], arguments["downscale_factor"]
    *rest, channels, height, width = features.shape
    if height % factor or width % factor:
        return None
    return _like(features, (*rest, channels * factor**2, height // factor, width // factor))


def _product(arguments: Arguments) -> Tensor | None:
    """N x K times K x M, or as many of them."""
    first, second = arguments["self"], arguments["mat2"]
    if first.ndim != second.ndim or first.shape[:-2] != second.shape[:-2] or first.shape[-1] != second.shape[-2]:
        return None
    return _like(first, (*first.shape[:-1], second.shape[-1]))


def _scattered(arguments: Arguments) -> Tensor | None:
    values, places, source = arguments["self"], arguments["index"], arguments.get("src")
    return _like(values, values.shape) if isinstance(source, Tensor) and places.shape == source.shape else None


_RESULTS: dict[str, Callable[[Arguments], Any]] = {
    "convolution": _convolution,
    "avg_pool2d": _pooled,
    "max_pool2d_with_indices": _pooled_with_indices,
    "constant_pad_nd": _padded,
    "replication_pad2d": _padded,
    "upsample_bilinear2d": _resized,
    "cat": _concatenated,
    "mean": _reduced,
    "sum": _reduced,
    "native_batch_norm": _normalized,
    "native_group_norm": _normalized,
    "pixel_unshuffle": _unshuffled,
    "mm": _product,
    "bmm": _product,
    "scatter": _scattered,
}
"""What an operator returns for its arguments; None leaves it to torch."""
