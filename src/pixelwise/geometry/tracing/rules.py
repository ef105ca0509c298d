"""What each operator sees: the reach of its result, from the reaches of its arguments.

The operators are those of torch's core ("aten"), to which every call of a network comes down. Borders are ignored, as
in `Reach`: padding only moves the cells.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch._ops import OpOverload

from pixelwise.geometry.reach import Reach
from pixelwise.geometry.tracing.seen import Along, Call, NotLocalError, Seen, from_end, joined, size_along

WHOLE_IMAGE = "pooling over the whole image: an output pixel depends on every input pixel"
"""Why the geometry of a network with such a pooling is not exact."""

GROUP_NORM = "group norm averages over the image: an output pixel depends on every input pixel"
"""Why the geometry of a network with group norm is not exact."""

Rule = Callable[[Call], Seen | None]
RULES: dict[str, Rule] = {}
"""Rules by the operators' names; operators that work in place share the name of those that do not."""


def rule_of(operator: OpOverload) -> Rule | None:
    """The rule of an operator, if there is one."""
    name = name_of(operator)
    if name in RULES:
        return RULES[name]
    return elementwise if torch.Tag.pointwise in operator.tags else None


def name_of(operator: OpOverload) -> str:
    """`aten.relu_.default` is "relu"."""
    name: str = operator.overloadpacket.__name__
    return name.removesuffix("_") if operator._schema.is_mutable else name


def fallback(call: Call, reason: str) -> Seen:
    """What remains known of an operator that is not local: its own pixels, if its result still has them."""
    axes = []
    for axis in (0, 1):
        same = [
            along for tensor, along in call.known(axis) if size_along(call.result, along.dim) == tensor.shape[along.dim]
        ]
        alike = [along.reach for along in same if _is_like(along, same[0])]
        axes.append(Along(same[0].dim, joined(alike, call.name)) if same else None)
    return Seen((axes[0], axes[1]), call.reason or reason)


def _is_like(one: Along, other: Along) -> bool:
    return one.dim == other.dim and len(one.reach.cells) == len(other.reach.cells)


def _for(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule under the names of its operators."""

    def enter(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return enter


# Values: every pixel by itself


@_for("clone", "detach", "alias", "lift_fresh", "_to_copy", "expand", "channel_shuffle")
@_for("hardswish", "floor_divide", "log_sigmoid_forward", "_prelu_kernel")  # what torch has not marked as pointwise
def elementwise(call: Call) -> Seen | None:
    """Each value depends on the values at its own position, in all arguments."""
    if all(seen is None or seen.is_uniform for _, seen in call.inputs):
        varies = any(seen is None and _varies(tensor.shape[-2:]) for tensor, seen in call.inputs)
        return None if varies else Seen()
    return Seen((_along(call, 0), _along(call, 1)), call.reason)


def _varies(sizes: Iterable[int]) -> bool:
    return any(size > 1 for size in sizes)


def _along(call: Call, axis: int) -> Along | None:
    """Rows or columns of a result whose values depend on those at their own positions.

    Raises:
        NotLocalError: the arguments are not aligned, or one of them depends on the position.
    """
    known = call.known(axis)
    if not known:
        return None
    dim = known[0][1].dim
    size = size_along(call.result, dim)
    if any(along.dim != dim or tensor.shape[dim] != size for tensor, along in known):
        raise NotLocalError(f"{call.name} combines rows or columns with other axes of a tensor")
    if any(seen is None and size_along(tensor, dim) > 1 for tensor, seen in call.inputs):
        raise NotLocalError(f"{call.name} takes values that depend on the position in the image, not on its pixels")
    return Along(dim, joined([along.reach for _, along in known], call.name))


@_for("copy")
def _copy(call: Call) -> Seen | None:
    """What a tensor held before it was written to does not count."""
    return elementwise(Call(call.name, call.arguments, call.inputs[1:], call.result))


@_for("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty")
@_for("zeros", "ones", "full", "empty", "scalar_tensor", "new_empty_strided", "empty_strided", "fill", "zero")
def uniform(call: Call) -> Seen:
    """The same value everywhere, or none yet."""
    return Seen()


@_for("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training")
@_for("_batch_norm_no_update", "_batch_norm_with_update", "cudnn_batch_norm", "miopen_batch_norm")
def _batch_norm(call: Call) -> Seen:
    if call.arguments.get("training", False):
        raise NotLocalError(
            "a norm takes its statistics from the image: an output pixel depends on every input pixel (instance norm, "
            "or batch norm without running statistics)"
        )
    return Seen(call.inputs[0][1].axes if call.inputs[0][1] else (None, None), call.reason)


@_for("native_group_norm")
def _group_norm(call: Call) -> Seen:
    raise NotLocalError(GROUP_NORM)


@_for("native_layer_norm")
def _layer_norm(call: Call) -> Seen:
    _forbid(call, range(-len(call.arguments["normalized_shape"]), 0), "averages over the image")
    return Seen(call.seen("input").axes, call.reason)


@_for("_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "logcumsumexp", "glu")
def _within_dimension(call: Call) -> Seen:
    _forbid(call, [call.dim()], "mixes all rows or columns")
    return Seen(call.inputs[0][1].axes if call.inputs[0][1] else (None, None), call.reason)


def _forbid(call: Call, dims: Iterable[int], what: str) -> None:
    """Raise the reason if one of these dimensions, counted from the end, belongs to the image."""
    if {along.dim for axis in (0, 1) for _, along in call.known(axis)} & set(dims):
        raise NotLocalError(f"{call.name} {what}: an output pixel depends on every input pixel")


@_for("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "argmax", "argmin", "prod")
@_for("any", "all", "logsumexp", "linalg_vector_norm", "norm", "median", "aminmax", "nansum")
def _reduction(call: Call) -> Seen | None:
    """One value from many, over some dimensions or all of them."""
    if len(call.inputs) > 1:  # such as torch.max of two tensors
        return elementwise(call)
    tensor, seen = call.inputs[0]
    if seen is None:
        return None
    given = call.arguments.get("dim")
    listed = [given] if isinstance(given, int) else list(given or range(tensor.ndim))
    dims = {from_end(dim, tensor.ndim) for dim in listed}
    if dims & {along.dim for along in seen.axes if along}:
        raise NotLocalError(WHOLE_IMAGE)
    return Seen(_without(seen, () if call.arguments.get("keepdim") else dims), call.reason)


def _without(seen: Seen, gone: Iterable[int]) -> tuple[Along | None, Along | None]:
    """The axes of a tensor that loses some dimensions, none of which belongs to the image."""
    rows, columns = (
        along and Along(along.dim + sum(dim > along.dim for dim in gone), along.reach) for along in seen.axes
    )
    return rows, columns


@_for("_adaptive_avg_pool2d", "adaptive_max_pool2d")
def _adaptive(call: Call) -> Seen:
    if call.inputs[0][1] == Seen():
        return Seen()
    return Seen(reason=call.reason or WHOLE_IMAGE)


# Images: operators that look around, on the last two axes

AxisRule = Callable[[Reach], Reach]


def _over_image(call: Call, name: str, rows: AxisRule, columns: AxisRule) -> Seen:
    """Apply one rule to the rows and one to the columns of a map, its last two axes."""
    axes: list[Along | None] = []
    for dim, along, rule in zip((-2, -1), call.seen(name).axes, (rows, columns), strict=True):
        if along and along.dim != dim:
            raise NotLocalError(f"{call.name} takes other axes of a tensor for rows and columns")
        axes.append(Along(dim, rule(along.reach)) if along else None)
    return Seen((axes[0], axes[1]), call.reason)


def _pairs(values: Any, default: Any = None) -> Sequence[int]:
    """A figure for rows and one for columns, from one for both, from those of a volume, or from the default."""
    given = [values] if isinstance(values, int) else list(values if values else default)
    return given * 2 if len(given) == 1 else given[-2:]


@_for("convolution")
def _convolution(call: Call) -> Seen:
    arguments = call.arguments
    kernels = arguments["weight"].shape[2:]
    if call.seen("input").axes == (None, None):
        return Seen(reason=call.reason)
    if len(kernels) != 2:
        raise NotLocalError(f"a convolution over {len(kernels)} dimensions mixes rows or columns with others")
    make = _transposed if arguments["transposed"] else _gathered
    figures = (_pairs(arguments[name]) for name in ("stride", "padding", "dilation"))
    return _over_image(call, "input", *(partial(make, *axis) for axis in zip(kernels, *figures, strict=True)))


def _gathered(kernel: int, stride: int, padding: int, dilation: int, reach: Reach) -> Reach:
    return reach.convolution(kernel, stride, dilation, padding)


def _transposed(kernel: int, stride: int, crop: int, dilation: int, reach: Reach) -> Reach:
    """As if a dilated kernel had no gaps, and the stamps left no pixel out."""
    return reach.transposed_convolution(max(dilation * (kernel - 1) + 1, stride), stride, crop)


@_for("max_pool2d_with_indices", "avg_pool2d", "avg_pool3d")  # over volumes for norms across channels
def _pooling(call: Call) -> Seen:
    arguments = call.arguments
    kernels = _pairs(arguments["kernel_size"])
    strides, paddings = _pairs(arguments["stride"], kernels), _pairs(arguments["padding"])
    dilations = _pairs(arguments.get("dilation", 1))
    axes = zip(kernels, strides, paddings, dilations, strict=True)
    return _over_image(call, "self", *(partial(_gathered, *axis) for axis in axes))


@_for("constant_pad_nd", "reflection_pad2d", "replication_pad2d")
def _padding(call: Call) -> Seen:
    amounts = list(call.arguments["pad" if call.name == "constant_pad_nd" else "padding"])
    amounts += [0] * (4 - len(amounts))
    return _over_image(call, "self", partial(_moved, amounts[2]), partial(_moved, amounts[0]))


def _moved(before: int, reach: Reach) -> Reach:
    """Add cells before the first, or remove some if the number is negative."""
    return reach.convolution(1, padding=before) if before else reach


@_for("pixel_shuffle")
def _pixel_shuffle(call: Call) -> Seen:
    def rule(reach: Reach) -> Reach:
        return reach.upsampling(call.arguments["upscale_factor"])

    return _over_image(call, "self", rule, rule)


@_for("pixel_unshuffle")
def _pixel_unshuffle(call: Call) -> Seen:
    def rule(reach: Reach) -> Reach:
        return reach.pooling(call.arguments["downscale_factor"])

    return _over_image(call, "self", rule, rule)


# Cells that an interpolation reads on either side of the nearest one, if the ratio is even.
_RADII = {
    "upsample_nearest2d": -1,
    "_upsample_nearest_exact2d": -1,
    "upsample_bilinear2d": 0,
    "upsample_bicubic2d": 1,
}


@_for(*_RADII)
def _interpolation(call: Call) -> Seen:
    before = call.arguments["self"].shape[-2:]
    after = call.result.shape[-2:]
    return _over_image(call, "self", *(partial(_resized, call, *sizes) for sizes in zip(before, after, strict=True)))


def _resized(call: Call, before: int, after: int, reach: Reach) -> Reach:
    """From `before` to `after` cells."""
    if after == before:
        return reach
    if call.arguments.get("align_corners"):
        raise NotLocalError(
            f"{call.name} with align_corners=True from {before} to {after} cells: its ratio depends on the image's size"
        )
    if after % before == 0:
        return _enlarged(call.name, after // before, reach)
    if before % after == 0:
        return _reduced(call.name, before // after, reach)
    raise NotLocalError(f"{call.name} from {before} to {after} cells: the ratio is not a whole number")


def _enlarged(name: str, factor: int, reach: Reach) -> Reach:
    """By a power of two positions are exact; otherwise torch rounds them, and a cell may read its neighbours."""
    radius = _RADII[name]
    if factor & (factor - 1):
        return reach.convolution(2 * radius + 3 if radius >= 0 else 3).upsampling(factor)
    return (reach.upsampling, reach.bilinear, reach.bicubic)[radius + 1](factor)


def _reduced(name: str, factor: int, reach: Reach) -> Reach:
    """Every cell reads those nearest to its centre; nearest interpolation reads the first one."""
    radius, odd = _RADII[name], factor % 2
    if radius < 0:
        return reach.convolution(1, factor, padding=-(factor // 2) if "exact" in name else 0)
    return reach.convolution(2 + 2 * radius + odd, factor, padding=-((factor - 1) // 2 - radius - odd))


# Axes: parts of tensors, and tensors in another shape


@_for("cat")
def _concatenation(call: Call) -> Seen | None:
    if call.dim() in {along.dim for axis in (0, 1) for _, along in call.known(axis)}:
        raise NotLocalError(f"{call.name} puts maps side by side: what it sees depends on the position")
    return elementwise(call)


@_for("stack")
def _stacked(call: Call) -> Seen | None:
    new = from_end(call.arguments["dim"], call.result.ndim)
    inputs = [(tensor.unsqueeze(new), seen and _with_dimension(seen, new)) for tensor, seen in call.inputs]
    return elementwise(Call(call.name, call.arguments, inputs, call.result))


def _with_dimension(seen: Seen, new: int) -> Seen:
    """The axes of a tensor that gains a dimension, counted from the end of the result."""
    rows, columns = (along and Along(along.dim - (along.dim <= new), along.reach) for along in seen.axes)
    return Seen((rows, columns), seen.reason)


@_for("slice")
def _slice(call: Call) -> Seen:
    seen, dim = call.seen("self"), call.dim()
    size = call.arguments["self"].shape[dim]
    start, _, step = slice(call.arguments["start"], call.arguments["end"], call.arguments["step"]).indices(size)
    rows, columns = (
        Along(dim, along.reach.convolution(1, step, padding=-start)) if along and along.dim == dim else along
        for along in seen.axes
    )
    return Seen((rows, columns), call.reason)


@_for("select", "unbind")
def _select(call: Call) -> Seen:
    _forbid(call, [call.dim()], "takes single rows or columns")
    return Seen(_without(call.seen("self"), [call.dim()]), call.reason)


@_for("split", "split_with_sizes", "index_select", "roll", "flip", "topk", "gather")
def _parts(call: Call) -> Seen:
    """Channels may be rearranged; rows and columns must stay."""
    given = call.arguments.get("dim", call.arguments.get("dims"))
    dims = [given] if isinstance(given, int) else given
    if not dims:
        raise NotLocalError(f"{call.name} treats the tensor as one row of values")
    _forbid(call, [from_end(dim, call.inputs[0][0].ndim) for dim in dims], "takes rows or columns from other positions")
    return Seen(call.seen("self").axes, call.reason)


@_for("repeat")
def _repeated(call: Call) -> Seen:
    repeats = call.arguments["repeats"]
    _forbid(call, [place - len(repeats) for place, times in enumerate(repeats) if times > 1], "repeats the whole image")
    return Seen(call.seen("self").axes, call.reason)


@_for("permute", "transpose", "t")
def _permuted(call: Call) -> Seen:
    count = call.result.ndim
    order = list(range(-count, 0))
    if call.name == "permute":
        order = [from_end(dim, count) for dim in call.arguments["dims"]]
    else:
        one, other = (from_end(call.arguments.get(f"dim{place}", place), count) for place in (0, 1))
        order[one], order[other] = other, one
    rows, columns = (along and Along(order.index(along.dim) - count, along.reach) for along in call.seen("self").axes)
    return Seen((rows, columns), call.reason)


@_for("view", "_unsafe_view", "_reshape_alias", "unsqueeze", "squeeze")
def _reshaped(call: Call) -> Seen:
    before, after = call.inputs[0][0].shape, call.result.shape
    places = {along.dim: axis for axis in (0, 1) for _, along in call.known(axis)}
    axes: list[Along | None] = [None, None]
    for old, new in _runs(before, after):
        of_image = [dim for dim in old if dim - len(before) in places]
        if not of_image:
            continue
        if of_image != old[:1]:
            raise NotLocalError(f"{call.name} puts rows or columns into one axis with others, as attention does")
        axis = places[old[0] - len(before)]
        (_, along), *_ = call.known(axis)
        reach = along.reach.upsampling(math.prod(before[dim] for dim in old[1:]))
        axes[axis] = Along(new[0] - len(after), reach.pooling(math.prod(after[dim] for dim in new[1:])))
    return Seen((axes[0], axes[1]), call.reason)


def _runs(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Dimensions before and after a reshape that hold the same values, without those of size 1.

    >>> list(_runs((1, 12, 6), (3, 4, 1, 6)))
    [([1], [0, 1]), ([2], [3])]
    """
    old = [dim for dim, size in enumerate(before) if size != 1]
    new = [dim for dim, size in enumerate(after) if size != 1]
    while old:
        first, second = [old.pop(0)], [new.pop(0)]
        while (here := math.prod(before[dim] for dim in first)) != (there := math.prod(after[dim] for dim in second)):
            (first if here < there else second).append((old if here < there else new).pop(0))
        yield first, second


@_for("mm", "bmm", "addmm", "baddbmm", "mv", "dot")
def _product(call: Call) -> Seen:
    if any(seen and seen.axes != (None, None) for _, seen in call.inputs):
        raise NotLocalError(f"{call.name} multiplies matrices made of the image, so how far it sees cannot be derived")
    return Seen(reason=call.reason)


def linear(call: Call) -> Seen:
    """A dense layer mixes the last axis only."""
    _forbid(call, [-1], "mixes all rows or columns")
    return Seen(call.seen("input").axes, call.reason)
