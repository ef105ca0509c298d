"""What the values of one tensor depend on, while a network is traced."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pixelwise.core.errors import ModelError
from pixelwise.geometry.reach import Reach


class NotLocalError(ModelError):
    """No reach can describe what an operator sees; the message is the reason."""


@dataclass(frozen=True)
class Along:
    """One axis of the image in a tensor."""

    dim: int  # of the tensor, counted from its end: -1 is the last
    reach: Reach


@dataclass(frozen=True)
class Seen:
    """The input pixels on which the values of a tensor depend.

    Without axes and without a reason the values are the same everywhere. A tensor about which nothing is known, such as
    a parameter, has no `Seen` at all: it does not depend on the image, but may vary with the position.
    """

    axes: tuple[Along | None, Along | None] = (None, None)  # rows, columns; None: the tensor does not have them
    reason: str = ""  # why other pixels may matter, too

    @property
    def is_uniform(self) -> bool:
        """The same everywhere, whatever the image."""
        return self.axes == (None, None) and not self.reason


@dataclass
class Call:
    """An operator that has run: what it received and what it returned."""

    name: str  # such as "convolution"
    arguments: dict[str, Any]  # by the names of the operator's schema
    inputs: list[tuple[Tensor, Seen | None]]  # its tensors, in order
    result: Tensor  # the first, where there are several
    reason: str = field(init=False)  # why one of its tensors is not local

    def __post_init__(self) -> None:
        self.reason = next((seen.reason for _, seen in self.inputs if seen and seen.reason), "")

    def seen(self, name: str) -> Seen:
        """What one of its arguments depends on."""
        wanted = self.arguments[name]
        return next((seen for tensor, seen in self.inputs if tensor is wanted and seen), Seen())

    def dim(self, name: str = "dim") -> int:
        """An argument that names a dimension of its first tensor, counted from the end."""
        return from_end(self.arguments[name], self.inputs[0][0].ndim)

    def known(self, axis: int) -> list[tuple[Tensor, Along]]:
        """The tensors that have this axis of the image: 0 for rows, 1 for columns."""
        return [(tensor, along) for tensor, seen in self.inputs if seen and (along := seen.axes[axis])]


def from_end(dim: int, count: int) -> int:
    """A dimension counted from the end: -1 is the last of `count`.

    >>> from_end(1, 4), from_end(-3, 4)
    (-3, -3)
    """
    return dim - count if dim >= 0 else dim


def size_along(tensor: Tensor, dim: int) -> int:
    """Cells along a dimension counted from the end; 1 where the tensor has fewer dimensions."""
    return tensor.shape[dim] if tensor.ndim >= -dim else 1


def joined(reaches: Sequence[Reach], name: str) -> Reach:
    """What all of them see together.

    Raises:
        NotLocalError: their resolutions differ.
    """
    whole = reaches[0]
    for reach in reaches[1:]:
        if len(reach.cells) != len(whole.cells):
            raise NotLocalError(
                f"{name} joins maps of different resolutions, {len(whole.cells)} and {len(reach.cells)} cells for "
                f"{whole.stride} pixels, so what it sees depends on the position"
            )
        if reach is not whole:
            whole = whole.concatenation(reach)
    return whole
