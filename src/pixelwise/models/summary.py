"""How large the networks are, what they cost and how far they see, without holding a single weight in memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from pixelwise.core.config import STARTS, ModelSettings, explain
from pixelwise.core.errors import SettingError
from pixelwise.geometry.reach import Geometry
from pixelwise.geometry.tracing import Layer, totals, trace_layers
from pixelwise.models import MODELS, build


@dataclass(frozen=True)
class Summary:
    """A network in figures."""

    name: str  # in `MODELS`
    parameters: int
    multiply_adds: int  # for one image of the chosen size
    geometry: Geometry
    layers: list[Layer]  # in the order in which they run

    def totals(self) -> dict[str, Any]:
        """The figures of the whole network, for JSON."""
        figures = {"name": self.name, "parameters": self.parameters, "multiply_adds": self.multiply_adds}
        return figures | asdict(self.geometry)

    def to_json(self) -> dict[str, Any]:
        """The same with the table of layers."""
        return self.totals() | {"layers": [asdict(layer) for layer in self.layers]}


def summarize(
    name: str, settings: Mapping[str, Any] | None = None, in_channels: int = 3, num_classes: int = 2, size: int = 512
) -> Summary:
    """Build a network without weights and run it once without values.

    Args:
        name: in `MODELS`.
        settings: its keywords, as the settings `model.*` have them.
        in_channels: C of the image.
        num_classes: K.
        size: side of the image in pixels.

    Raises:
        SettingError: the network is unknown, or a setting makes no sense.
        ModelError: the network cannot take an image of that size.

    >>> found = summarize("unet", {"width": 8, "depth": 2}, in_channels=1)
    >>> found.parameters, found.geometry.stride, found.layers[0].shape
    (29490, 4, (8, 512, 512))
    """
    with torch.device("meta"), _NoStart():
        network = build(name, in_channels=in_channels, num_classes=num_classes, **_checked(settings or {}))
    return summarize_network(name, network, in_channels, size)


class _NoStart(TorchFunctionMode):
    """Skips the initialisation of weights that do not exist; torch would import its compiler for it, for seconds."""

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else None
        return func(*args, **(kwargs or {}))


def summarize_network(name: str, network: nn.Module, in_channels: int, size: int = 512) -> Summary:
    """Summarise a network that has been built, under the name `name`."""
    geometry = network.geometry
    assert isinstance(geometry, Geometry)
    layers = trace_layers(network, in_channels, size, size, geometry.stride)
    total = totals(network, layers)
    return Summary(name, total.parameters, total.multiply_adds, geometry, layers)


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given, with values of the right types."""
    try:
        return ModelSettings.model_validate(dict(settings)).model_dump(exclude_unset=True, exclude={"name", *STARTS})
    except ValidationError as error:
        raise SettingError(explain(error, "model")) from error


def summarize_all(in_channels: int = 3, num_classes: int = 2, size: int = 512) -> list[Summary]:
    """Every network of `MODELS`, with its defaults."""
    return [summarize(name, {}, in_channels, num_classes, size) for name in MODELS]


def describe_all(summaries: Sequence[Summary]) -> list[str]:
    """A table of networks as lines of text, and below it why some of them are not exact."""
    head = ("network", "parameters", "multiply-adds", "stride", "halo", "margin", "exact")
    rows = [(found.name, *_figures(found)) for found in summaries]
    reasons = [f"{found.name}: {found.geometry.reason}" for found in summaries if not found.geometry.exact]
    return [*_table([head, *rows]), *([""] if reasons else []), *reasons]


def _figures(found: Summary) -> tuple[str, ...]:
    geometry = found.geometry
    costs = (f"{found.parameters:,}", f"{found.multiply_adds:,}")
    return (*costs, *map(str, (geometry.stride, geometry.halo, geometry.margin)), "yes" if geometry.exact else "no")


def describe(found: Summary) -> list[str]:
    """A table of a network's layers as lines of text, and its totals."""
    head = ("layer", "kind", "shape", "parameters", "multiply-adds", "receptive field", "stride")
    rows = [
        (layer.name, layer.kind, " x ".join(map(str, layer.shape)), f"{layer.parameters:,}", f"{layer.multiply_adds:,}",
         "" if layer.receptive_field is None else str(layer.receptive_field),
         "" if layer.stride is None else str(layer.stride))
        for layer in found.layers
    ]  # fmt: skip
    return [*_table([head, *rows], left=3), "", *describe_all([found])]


def _table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Rows of cells as lines of text: the first `left` columns flush left, the figures after them flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
