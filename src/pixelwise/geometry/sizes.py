"""The images that a network takes, and the size of its outputs. Whole numbers, no torch."""

from dataclasses import dataclass

from pixelwise.geometry.reach import Geometry, round_up


@dataclass(frozen=True)
class Sizes:
    """The images that a network takes, N x channels x H x W, and the sides of what it gives; H and W alike.

    A network that pads takes multiples of its stride. One without padding takes a `smallest` side and any that is
    larger by a multiple of the stride, and its outputs lose `lost` pixels on each side.

    Fields:
        channels: C.
        geometry: of the network.
        any_size: the sides need not be multiples of the stride.
        lost: pixels; 0 for a network that pads.
        smallest: pixels of the smallest side, of a network without padding.

    >>> Sizes(3, Geometry(stride=16, halo=107, margin=92), lost=92, smallest=188).input_size(388)
    572
    """

    channels: int
    geometry: Geometry
    any_size: bool = False
    lost: int = 0
    smallest: int | None = None

    @property
    def step(self) -> int:
        """Pixels from one side that the network takes to the next."""
        return 1 if self.any_size else self.geometry.stride

    @property
    def keeps_size(self) -> bool:
        """Whether the outputs have the size of the image."""
        return self.lost == 0

    def input_size(self, output_size: int) -> int:
        """The smallest side of an image whose outputs have at least that side."""
        first = self.step if self.smallest is None else self.smallest
        return first + round_up(max(output_size + 2 * self.lost - first, 0), self.step)

    def output_size(self, input_size: int) -> int:
        """The side of the outputs for an image of that side."""
        return input_size - 2 * self.lost
