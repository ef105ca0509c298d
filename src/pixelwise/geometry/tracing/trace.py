"""Running a network without data, while every tensor knows on what it depends.

Shapes: N images, C channels, H x W pixels, K classes.
"""

import functools
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from pixelwise.core.errors import ModelError, PixelwiseError
from pixelwise.geometry.modes import evaluation_mode
from pixelwise.geometry.reach import Geometry, Reach
from pixelwise.geometry.tracing.rules import fallback, linear, name_of, rule_of, uniform
from pixelwise.geometry.tracing.seen import Along, Call, NotLocalError, Seen
from pixelwise.geometry.tracing.shapes import result_of

STRIDES = (17, 19)  # height and width of the traced image in strides; primes, so that none divides another by chance

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_current: "Trace | None" = None


def trace_geometry(network: nn.Module, in_channels: int, stride: int) -> Geometry:
    """Derive stride, halo and margin of a network in eval mode from the operators that it runs.

    The network runs once, on an image of 17 x 19 strides without values; its parameters are neither read nor copied,
    and its modes are restored. It must not run elsewhere at the same time.

    Args:
        network: takes N x in_channels x H x W, returns N x K x H x W where H and W are multiples of `stride`.
        in_channels: C.
        stride: a multiple of every step that the network takes.

    Returns:
        The larger figures of rows and columns. If an operator is not local, or unknown, the geometry is not exact, its
        reason names the operator, and halo and margin are those of the local operators.

    Raises:
        ModelError: the network does not run, or does not return N x K x H x W.

    >>> trace_geometry(nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2)), in_channels=3, stride=2)
    Geometry(stride=2, halo=1, margin=0, exact=True, reason='')
    """
    height, width = (times * stride for times in STRIDES)
    trace = Trace(stride)
    output = trace.run(network, in_channels, height, width)
    name = type(network).__name__
    if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[-2:] != (height, width):
        returned = " x ".join(map(str, output.shape)) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ModelError(
            f"{name}: was given images of 1 x {in_channels} x {height} x {width} and returned {returned}: a network "
            f"must return N x K x H x W logits of the image's height and width."
        )
    seen = trace.seen(output) or Seen()
    return _geometry([along.reach for along in seen.axes if along], stride, seen.reason, name)


def _geometry(reaches: list[Reach], stride: int, reason: str, name: str) -> Geometry:
    """Combine rows and columns; an output that sees nothing has a halo of 0."""
    if any(len(reach.cells) != stride for reach in reaches):
        cells = " and ".join(str(len(reach.cells)) for reach in reaches)
        raise ModelError(
            f"{name}: its logits have {cells} cells for {stride} pixels of the image: enlarge them to the image's size."
        )
    figures = [reach.geometry() for reach in reaches]
    halo, margin = (max([0, *values]) for values in ([of.halo for of in figures], [of.margin for of in figures]))
    return Geometry(stride, halo, margin, exact=not reason, reason=reason)


def described_by(
    rule: Callable[..., Reach],
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """State the reach of a function or a `forward`, whose inside is then not traced; without a trace nothing changes.

    Args:
        rule: takes the function's arguments, each tensor replaced by its reach along one axis, and returns the reach of
            the result; it is called for rows and for columns. A tensor that does not depend on the image, or depends on
            all of it, has the reach of the others. The rule raises a `NotLocalError` with the reason if the result
            depends on the whole image.

    >>> @described_by(lambda reach, factor: reach.upsampling(factor))
    ... def repeat(features: Tensor, factor: int) -> Tensor:
    ...     return features.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    >>> repeat(torch.zeros(1, 1, 2, 3), 2).shape
    torch.Size([1, 1, 4, 6])
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            if _current is None:
                return function(*args, **kwargs)
            result: Result = _current.run_described(rule, function, args, kwargs)
            return result

        return run

    return decorate


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it open, as the next
    """A run of a network on tensors without values.

    Args:
        stride: input pixels in a period of every `Reach`.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._image = Reach.of_input(stride)
        self._seen: MutableMapping[Tensor, Seen] = WeakTensorKeyDictionary()
        self._is_paused = False
        self.multiply_adds = 0  # of convolutions and matrix products so far

    @classmethod
    @override
    def _should_skip_dynamo(cls) -> bool:
        """Torch asks this. A yes would import its compiler, which takes seconds, although nothing is compiled here."""
        return False

    def run(self, network: nn.Module, in_channels: int, height: int, width: int) -> Any:
        """The network's output for one image; its modes are restored.

        Raises:
            ModelError: it does not run.
        """
        tensors = [*network.named_parameters(), *network.named_buffers()]
        dtypes = [tensor.dtype for _, tensor in tensors if tensor.is_floating_point()]
        with torch.no_grad(), evaluation_mode(network):
            ghosts = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
            image = torch.empty(1, in_channels, height, width, device="meta", dtype=dtypes[0] if dtypes else None)
            self._seen[image] = Seen((Along(-2, self._image), Along(-1, self._image)))
            try:
                with _traced_by(self), _DenseLayers(self), self:
                    return torch.func.functional_call(network, ghosts, (image,))
            except PixelwiseError:
                raise
            except Exception as error:
                raise ModelError(
                    f"{type(network).__name__}: raised {type(error).__name__} for an image of {in_channels} x {height} "
                    f"x {width} without values: {error}"
                ) from error

    def seen(self, tensor: Tensor) -> Seen | None:
        """What a tensor depends on; None if it does not come from the image."""
        return self._seen.get(tensor)

    @override
    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator without values, and note what its result depends on."""
        args, kwargs = _on_one_device((args, kwargs or {}))
        arguments = _named(func, args, kwargs)
        result = result_of(func, name_of(func), args, kwargs, arguments)
        self.multiply_adds += _multiply_adds(name_of(func), args, result)
        results = _tensors(result)
        if results and not self._is_paused:
            self._note(func, arguments, results)
        return result

    def _note(self, func: OpOverload, arguments: dict[str, Any], results: list[Tensor]) -> None:
        call = self._call(name_of(func), arguments, results[0])
        before = self.seen(results[0])
        after = self._apply(rule_of(func), call)
        for tensor in results:
            self._set(tensor, after)
        if func._schema.is_mutable and after != before:
            self._note_writing(results[0], call.name)

    def _call(self, name: str, arguments: dict[str, Any], result: Tensor) -> Call:
        return Call(name, arguments, [(tensor, self.seen(tensor)) for tensor in _tensors(arguments)], result)

    def _apply(self, rule: Callable[[Call], Seen | None] | None, call: Call) -> Seen | None:
        """What the result depends on."""
        is_constant = not any(seen for _, seen in call.inputs)
        if rule is None:
            unknown = f"the operator {call.name} is unknown, so how far it sees cannot be derived"
            return None if is_constant else fallback(call, unknown)
        try:
            return None if is_constant and rule is not uniform else rule(call)
        except ModelError as error:
            return fallback(call, str(error))

    def _set(self, tensor: Tensor, seen: Seen | None) -> None:
        if seen is None:
            self._seen.pop(tensor, None)
        else:
            self._seen[tensor] = seen

    def _note_writing(self, written: Tensor, name: str) -> None:
        """Note that tensors that share memory with one that was written to have changed, too."""
        memory = written.untyped_storage()._cdata
        for tensor in list(self._seen.keys()):
            if tensor is not written and tensor.untyped_storage()._cdata == memory:
                reason = f"{name} writes into a part of a map, so what it sees depends on the position"
                self._seen[tensor] = Seen(reason=reason)

    def run_described(self, rule: Callable[..., Reach], function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a function whose reach is stated."""
        result = self.run_paused(function, args, kwargs)
        tensors = _tensors((args, kwargs))
        call = Call(function.__name__, {}, [(tensor, self.seen(tensor)) for tensor in tensors], _tensors(result)[0])
        after = self._apply(functools.partial(_described, rule, args, kwargs), call)
        for tensor in _tensors(result):
            self._set(tensor, after)
        return result

    def run_linear(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a dense layer, which torch would split into reshapes and a matrix product."""
        result = self.run_paused(function, args, kwargs)
        arguments = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        self._set(result, self._apply(linear, self._call("linear", arguments, result)))
        return result

    def run_paused(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a function without tracing its inside."""
        was_paused, self._is_paused = self._is_paused, True
        try:
            return function(*args, **kwargs)
        finally:
            self._is_paused = was_paused


class _DenseLayers(TorchFunctionMode):
    """Finds dense layers before torch splits them."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        run = self._trace.run_linear if func is F.linear else _call_plainly
        return run(func, args, kwargs or {})


def _call_plainly(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _described(rule: Callable[..., Reach], args: Any, kwargs: Any, call: Call) -> Seen:
    """Ask a rule for rows and for columns."""
    rows, columns = (_described_along(rule, args, kwargs, call, axis, dim) for axis, dim in ((0, -2), (1, -1)))
    return Seen((rows, columns), call.reason)


def _described_along(
    rule: Callable[..., Reach], args: Any, kwargs: Any, call: Call, axis: int, dim: int
) -> Along | None:
    """The result's rows or columns, which lie along that dimension of every tensor."""
    known = call.known(axis)
    if not known:
        return None
    if any(along.dim != dim for _, along in known):
        raise NotLocalError(f"{call.name} takes other axes of a tensor for rows and columns")
    reaches = {id(tensor): along.reach for tensor, along in known}
    others = known[0][1].reach
    args, kwargs = tree_map_only(Tensor, lambda tensor: reaches.get(id(tensor), others), (args, kwargs))
    return Along(dim, rule(*args, **kwargs))


@contextmanager
def _traced_by(trace: Trace) -> Iterator[None]:
    """Let functions that are `described_by` a rule find the trace."""
    global _current
    before, _current = _current, trace
    try:
        yield
    finally:
        _current = before


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _on_one_device(values: Any) -> Any:
    """Constants that a network makes on another device also lose their values once they meet the image."""
    tensors = _tensors(values)
    if len({tensor.device.type for tensor in tensors}) < 2:
        return values
    return tree_map_only(Tensor, lambda tensor: tensor if tensor.is_meta else tensor.to("meta"), values)


def _named(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an operator by their names, with their defaults."""
    schema = func._schema.arguments
    defaults = {argument.name: argument.default_value for argument in schema}
    given = dict(zip((argument.name for argument in schema), args, strict=False))
    return defaults | given | kwargs


def _multiply_adds(name: str, args: tuple[Any, ...], result: Any) -> int:
    """Multiplications of a convolution or a matrix product; biases do not count."""
    if name == "convolution":
        features, weight, is_transposed = args[0], args[1], args[6]
        return int((features if is_transposed else result).numel() * weight[0].numel())
    if name in ("mm", "bmm", "mv", "dot"):
        return int(result.numel() * args[0].shape[-1])
    if name in ("addmm", "baddbmm"):
        return int(result.numel() * args[1].shape[-1])
    return 0
