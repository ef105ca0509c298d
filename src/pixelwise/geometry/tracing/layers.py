"""The table of a network's layers: what each returns, what it costs, and how far it sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from pixelwise.geometry.tracing.seen import Seen
from pixelwise.geometry.tracing.trace import Trace


@dataclass(frozen=True)
class Layer:
    """One call of a layer."""

    name: str  # of the module in the network, "" for the network itself
    kind: str  # the module's class
    shape: tuple[int, ...]  # of its output for one image: C x H x W
    parameters: int  # of its own
    multiply_adds: int  # of its convolutions and matrix products
    receptive_field: int | None  # side in pixels of the square that a value sees; None: the whole image, or unknown
    stride: int | None  # input pixels from one value to the next; None: as above, or less than one


@dataclass(frozen=True)
class Totals:
    """The size and cost of a whole network."""

    parameters: int
    multiply_adds: int


def trace_layers(
    network: nn.Module, in_channels: int, height: int, width: int, stride: int, nested: bool = False
) -> list[Layer]:
    """A row for each module without children, or with weights of its own, each time that it runs, in order.

    The network runs in eval mode on an image without values, and stays unchanged.

    Args:
        network: takes N x in_channels x H x W.
        in_channels: C.
        height: H of the image, in pixels.
        width: W of the image.
        stride: a multiple of every step that the network takes, as its geometry has it.
        nested: also list the modules around them if they return a tensor, after the modules inside.

    Raises:
        ModelError: the network does not run at this size.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2))
    >>> for layer in trace_layers(network, 3, 64, 64, stride=2):
    ...     print(layer.kind, layer.shape, layer.parameters, layer.multiply_adds, layer.receptive_field)
    Conv2d (8, 64, 64) 224 884736 3
    MaxPool2d (8, 32, 32) 0 0 4
    """
    trace = Trace(stride)
    table = _Table(trace, nested)
    handles: list[RemovableHandle] = []
    try:
        for name, module in network.named_modules():
            handles.append(module.register_forward_pre_hook(table.enter))
            handles.append(module.register_forward_hook(partial(table.leave, name)))
        trace.run(network, in_channels, height, width)
    finally:
        for handle in handles:
            handle.remove()
    return table.layers


def totals(network: nn.Module, layers: Sequence[Layer]) -> Totals:
    """All parameters, each counted once, and the multiply-adds of all layers.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2))
    >>> totals(network, trace_layers(network, 3, 64, 64, stride=2))
    Totals(parameters=224, multiply_adds=884736)
    """
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Totals(parameters, sum(layer.multiply_adds for layer in layers))


class _Table:
    """Gets a row whenever a module returns."""

    def __init__(self, trace: Trace, nested: bool) -> None:
        self.layers: list[Layer] = []
        self._trace, self._nested = trace, nested
        self._entered: list[int] = []  # multiply-adds before each module that is running
        self._listed = [0]  # multiply-adds of the rows inside each module that is running

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """A module begins."""
        self._entered.append(self._trace.multiply_adds)
        self._listed.append(0)

    def leave(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """A module returns: whatever the modules inside did not count is its own."""
        spent = self._trace.multiply_adds - self._entered.pop()
        own = spent - self._listed.pop()
        self._listed[-1] += spent
        parameters = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        is_listed = next(module.children(), None) is None or (self._nested and isinstance(output, Tensor))
        if tensors and (is_listed or parameters or own):
            seen = self._trace.seen(tensors[0]) or Seen()
            shape, kind = tuple(tensors[0].shape[1:]), type(module).__name__
            self.layers.append(Layer(name, kind, shape, parameters, own, *_figures(seen)))


def _figures(seen: Seen) -> tuple[int | None, int | None]:
    """Receptive field and stride, each of the axis where it is larger."""
    reaches = [along.reach for along in seen.axes if along]
    if seen.reason or not reaches:
        return None, None
    sides = [last - first + 1 for reach in reaches for first, last in reach.cells]
    strides = [reach.stride / len(reach.cells) for reach in reaches]
    return max(sides), int(max(strides)) if max(strides) >= 1 else None
