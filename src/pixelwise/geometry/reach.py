"""How far a network sees: output sizes of its operators, and its stride, halo and margin, without torch.

A network made of local operators is described by a `Reach`: on which input pixels does each of its cells depend? The
operators are applied to the reach one after another, just as to the image, and the figures of the whole network come
out. Rows and columns behave alike, so one axis is enough.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pixelwise.core.errors import ModelError


def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """Number of positions of a convolution or pooling along one axis: M = floor((N - F + 2P) / S) + 1.

    If the division leaves a remainder, the last pixels are not used (floor), as in every framework.

    Args:
        size: N, input pixels.
        kernel: F, pixels.
        stride: S, pixels from one position to the next.
        padding: P, pixels added on each side.

    Raises:
        ModelError: the kernel is larger than the padded input.

    >>> output_size(227, kernel=11, stride=4)
    55
    """
    if kernel > size + 2 * padding:
        raise ModelError(
            f"a kernel of {kernel} pixels does not fit into {size} pixels with a padding of {padding}: "
            f"use a larger image or a smaller kernel."
        )
    return (size - kernel + 2 * padding) // stride + 1


def transposed_output_size(size: int, kernel: int, stride: int = 1, crop: int = 0, output_padding: int = 0) -> int:
    """Size of a transposed convolution's output along one axis: (N - 1) S + F - 2 crop + output_padding.

    Args:
        size: N, input values, each of which stamps the kernel.
        kernel: F, pixels.
        stride: S, pixels from one stamp to the next.
        crop: pixels trimmed on each side of the stamped image (what PyTorch calls padding).
        output_padding: pixels of the crop to keep at the right and bottom.

    Raises:
        ModelError: the crop leaves nothing.

    >>> transposed_output_size(2, kernel=3, stride=3, crop=1)
    4
    """
    stamped = (size - 1) * stride + kernel
    result = stamped - 2 * crop + output_padding
    if result < 1:
        raise ModelError(
            f"a crop of {crop} pixels on each side leaves nothing of the {stamped} pixels that {size} values "
            f"with a kernel of {kernel} and a stride of {stride} give: use a smaller crop."
        )
    return result


def parameters(in_channels: int, out_channels: int, kernel: int = 1, groups: int = 1, bias: bool = True) -> int:
    """Number of weights of a convolution with a square kernel, including its biases.

    A dense layer that takes C channels of K x K pixels is a convolution with a kernel of K on them, in a single
    position.

    Args:
        in_channels: C.
        out_channels: filters.
        kernel: side in pixels.
        groups: number of parts of the channels that are convolved separately; `in_channels` if depthwise.
        bias: whether each filter has a bias.

    >>> parameters(3, 96, kernel=11), parameters(256, 4096, kernel=6)
    (34944, 37752832)
    """
    return kernel**2 * (in_channels // groups) * out_channels + (out_channels if bias else 0)


def multiply_adds(in_channels: int, out_channels: int, kernel: int, height: int, width: int, groups: int = 1) -> int:
    """Multiplications (each with its addition) of a convolution with height x width output pixels.

    Every weight is used once in each position; biases do not count.

    >>> multiply_adds(192, 32, kernel=5, height=28, width=28)
    120422400
    """
    return parameters(in_channels, out_channels, kernel, groups, bias=False) * height * width


def round_up(size: int, step: int) -> int:
    """The smallest multiple of `step` that is not below `size`.

    >>> round_up(94, 16)
    96
    """
    return -(-size // step) * step


@dataclass(frozen=True)
class Geometry:
    """How far a network sees, and what its tiles need, in pixels; rows and columns alike.

    A network with `padding="same"` can be tiled on its stride grid: a tile that begins and ends at multiples of
    `stride`, extended on each side by `margin` rounded up to the grid, gets the logits of the whole image. A network
    with `padding="valid"` cuts off `margin` pixels on each side: a window that begins anywhere, extended by just
    `margin`, gives logits for the window. Its cells begin with that window, which may save up to a stride: a U-Net of
    depth 4 has a margin of 92 in this form and of 94 (96 on the grid) in the other.

    >>> Geometry(stride=16, halo=107, margin=94).exact
    True
    """

    stride: int  # shifting the image by this many pixels shifts the logits by as many
    halo: int  # the most pixels that any output pixel sees on one side
    margin: int  # the most pixels that a tile on the stride grid needs on one side
    exact: bool = True  # False: an output pixel may depend on every input pixel, so tiles only approximate
    reason: str = ""  # why it is not exact


@dataclass(frozen=True)
class Reach:
    """The input pixels on which the cells of a feature map depend, along one axis.

    Everything repeats after `stride` input pixels, so the cells of one period are enough. Each method is an operator
    and gives the reach after it. Borders are ignored, as if the map were endless.

    >>> Reach.of_input(stride=2).convolution(3).pooling(2).upsampling(2).geometry()
    Geometry(stride=2, halo=2, margin=1, exact=True, reason='')
    """

    stride: int  # input pixels in a period
    cells: tuple[tuple[int, int], ...]  # first and last input pixel of each cell, from pixel 0 on

    @classmethod
    def of_input(cls, stride: int) -> "Reach":
        """The image itself: each pixel sees itself. `stride` is the stride of the network that follows."""
        return cls(stride, tuple((pixel, pixel) for pixel in range(stride)))

    def convolution(self, kernel: int, stride: int = 1, dilation: int = 1, padding: int | None = None) -> "Reach":
        """After a convolution, or a pooling whose windows overlap.

        Args:
            kernel: F, taps.
            stride: S, cells from one position to the next.
            dilation: cells from one tap to the next; 1 for a plain convolution.
            padding: P, cells added before the first; None centres the kernel, where an even one looks one cell
                further ahead than back.

        Raises:
            ModelError: the stride does not divide the cells of a period.

        >>> Reach.of_input(stride=2).convolution(3, dilation=4).cells
        ((-4, 4), (-3, 5))
        >>> Reach.of_input(stride=2).convolution(7, stride=2).cells
        ((-3, 3),)
        """
        before = dilation * (kernel - 1) // 2 if padding is None else padding
        taps = [dilation * tap - before for tap in range(kernel)]
        return self._gather([stride * cell + tap for tap in taps] for cell in range(self._count(stride)))

    def transposed_convolution(self, kernel: int, stride: int, crop: int = 0) -> "Reach":
        """After a transposed convolution that trims `crop` pixels of its stamps at the top and left.

        Raises:
            ModelError: the kernel is smaller than the stride, so that some pixels would see nothing.

        >>> Reach.of_input(stride=2).pooling(2).transposed_convolution(4, stride=2, crop=1).cells
        ((-2, 1), (0, 3))
        """
        if kernel < stride:
            raise ModelError(
                f"a transposed convolution with a kernel of {kernel} and a stride of {stride} leaves pixels that "
                f"depend on nothing: use a kernel of at least {stride} pixels."
            )
        return self._gather(
            range(-((kernel - 1 - crop - pixel) // stride), (crop + pixel) // stride + 1)
            for pixel in range(len(self.cells) * stride)
        )

    def pooling(self, factor: int) -> "Reach":
        """After anything that turns `factor` cells into one: pooling, or folding cells into channels.

        Raises:
            ModelError: the factor does not divide the cells of a period.
        """
        return self._gather(range(factor * cell, factor * (cell + 1)) for cell in range(self._count(factor)))

    def upsampling(self, factor: int) -> "Reach":
        """After anything that turns one cell into `factor`, such as an up-convolution with kernel = stride."""
        return self._gather((cell // factor,) for cell in range(len(self.cells) * factor))

    def bilinear(self, factor: int) -> "Reach":
        """After bilinear upsampling with `align_corners=False`: each cell mixes the two with the nearest centres."""
        count = len(self.cells)
        return self._gather(
            {math.floor((2 * cell + 1 - factor) / (2 * factor)), math.ceil((2 * cell + 1 - factor) / (2 * factor))}
            for cell in range(count * factor)
        )

    def bicubic(self, factor: int) -> "Reach":
        """After bicubic upsampling with `align_corners=False`: each cell mixes the four with the nearest centres.

        A cell with the same centre as one of them (in the middle of an odd factor) is that one alone.
        """
        places = (divmod(2 * cell + 1 - factor, 2 * factor) for cell in range(len(self.cells) * factor))
        return self._gather(range(before - 1, before + 3) if ahead else (before,) for before, ahead in places)

    def concatenation(self, other: "Reach") -> "Reach":
        """After joining another map of the same size, by concatenation or sum."""
        return Reach(self.stride, tuple(map(_cover, zip(self.cells, other.cells, strict=True))))

    def geometry(self) -> Geometry:
        """The figures of the network that has this output, with as many cells as pixels.

        The margin is what the cells of one period, a tile of one stride, see outside that period.
        """
        first, last = _cover(self.cells)
        halo = max(max(pixel - left, right - pixel) for pixel, (left, right) in enumerate(self.cells))
        return Geometry(self.stride, halo, max(-first, last - (self.stride - 1)))

    def _count(self, stride: int) -> int:
        """Cells of a period once every `stride` of them have become one."""
        count, rest = divmod(len(self.cells), stride)
        if rest:
            raise ModelError(
                f"a step of {stride} does not divide the {len(self.cells)} cells of a period of {self.stride} pixels: "
                f"begin with the stride of the whole network."
            )
        return count

    def _gather(self, sources: Iterable[Iterable[int]]) -> "Reach":
        """New cells, each of which covers the given cells of this map."""
        return Reach(self.stride, tuple(_cover(map(self._cell, source)) for source in sources))

    def _cell(self, index: int) -> tuple[int, int]:
        """First and last input pixel of any cell, also outside the first period."""
        period, inside = divmod(index, len(self.cells))
        first, last = self.cells[inside]
        return first + period * self.stride, last + period * self.stride


def _cover(intervals: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The smallest interval that holds all of them."""
    firsts, lasts = zip(*intervals, strict=True)
    return min(firsts), max(lasts)
