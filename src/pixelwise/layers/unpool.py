"""Pooling that remembers the positions of its maxima, and unpooling, which puts values back into a larger map.

Shapes: N images, C channels, H x W pixels; H' = ceil(H / factor), W' likewise.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pixelwise.core.errors import ModelError, SettingError
from pixelwise.geometry.reach import Reach
from pixelwise.geometry.tracing import described_by

DROPPED_BITS = {torch.float64: 29, torch.float32: 16}
"""Bits of a value that are ignored when its position is chosen, by type."""


class MaxPoolPositions(nn.Module):
    """Max pooling that also gives the position of each maximum, for `MaxUnpool`.

    Takes N x C x H x W of any size from 1 x 1; gives the maxima and their positions, both N x C x H' x W'. The last
    windows are smaller if the factor does not divide the size. A position is an int64 index into the H x W pixels of
    its channel, row by row.

    Where the image is flat, and where its last pixels were repeated to pad it, the values of a window differ only by
    rounding, which varies from tile to tile and from one memory format to another. To make positions independent of it,
    values are compared in a coarser precision (24 of float64's 53 bits, 8 of float32's 24), and the first of equal ones
    wins; the maxima themselves are exact. Only values on two sides of a step of that precision may still differ.

    Source: Zeiler and Fergus 2014, arXiv:1311.2901, section 2.1; the coarser positions are ours.

    >>> import torch
    >>> pooled, positions = MaxPoolPositions()(torch.tensor([[[[1.0, 2.0, 6.0], [3.0, 5.0, 2.0]]]]))
    >>> pooled, positions
    (tensor([[[[5., 6.]]]]), tensor([[[[4, 2]]]]))
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = _checked(factor)

    @described_by(lambda module, reach: reach.pooling(module.factor))
    @override
    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        values = _coarser(features.detach())
        if torch.compiler.is_exporting():
            return self._pooled(features), self.positions_in_steps(values)
        return self._pooled(features), F.max_pool2d(values, self.factor, ceil_mode=True, return_indices=True)[1]

    def _pooled(self, features: Tensor) -> Tensor:
        return F.max_pool2d(features, self.factor, ceil_mode=True)

    def positions_in_steps(self, values: Tensor) -> Tensor:
        """The positions of torch's pooling with indices, by other operators, for the graphs of other engines.

        OpenVINO runs a pooling with indices value by value, which took two thirds of a SegNet's time; torch runs it
        faster than this.
        """
        factor, (height, width) = self.factor, values.shape[-2:]
        rows, columns = (torch.arange(size, device=values.device) for size in (height, width))
        order = (rows % factor)[:, None] * factor + columns % factor  # of a pixel in its window
        largest = F.interpolate(self._pooled(values), scale_factor=factor, mode="nearest")[..., :height, :width]
        never = factor**2
        first = -self._pooled(torch.where(values == largest, -order, -never).float())
        place = first.long() % never  # where nothing equals itself, as NaN, the first pixel
        top, left = rows[::factor][:, None], columns[::factor]
        return (top + place // factor) * width + left + place % factor


def _coarser(values: Tensor) -> Tensor:
    """The values rounded to fewer bits, by the splitting of Dekker 1971, https://doi.org/10.1007/BF01397083, section 5.

    Casting there and back would do the same, but compilers remove it.
    """
    bits = DROPPED_BITS.get(values.dtype)
    if bits is None:  # half precision is coarse as it is
        return values
    large = values * (2**bits + 1)
    return torch.where(values.abs() < 1e30, large - (large - values), values)  # infinities stay what they are


def _reach_unpooled(module: "MaxUnpool", values: Reach, positions: Reach, height: int, width: int) -> Reach:
    """The reach of `MaxUnpool`."""
    return values.upsampling(module.factor).concatenation(positions.upsampling(module.factor))


class MaxUnpool(nn.Module):
    """Put each value back at the position of its maximum, with zeros elsewhere.

    Takes values and positions, both N x C x H' x W', and the H and W that were pooled; gives N x C x H x W. The result
    sees what the values see and what decides on the positions, the pooled map.

    Source: Noh et al. 2015, arXiv:1505.04366, section 3.2.1; Badrinarayanan et al. 2017, arXiv:1511.00561.

    Raises:
        ModelError: (forward) values and positions differ in shape, or pooling H x W gives another size.

    >>> import torch
    >>> values, positions = torch.tensor([[[[7.0, 8.0]]]]), torch.tensor([[[[4, 2]]]])
    >>> MaxUnpool()(values, positions, 2, 3)
    tensor([[[[0., 0., 8.],
              [0., 7., 0.]]]])
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = _checked(factor)

    @described_by(_reach_unpooled)
    @override
    def forward(self, values: Tensor, positions: Tensor, height: int, width: int) -> Tensor:
        self._check(values, positions, height, width)
        images, channels = values.shape[:2]
        empty = values.new_zeros(images, channels, height * width)
        return empty.scatter(2, positions.flatten(2), values.flatten(2)).reshape(images, channels, height, width)

    def _check(self, values: Tensor, positions: Tensor, height: int, width: int) -> None:
        if values.shape != positions.shape:
            shapes = " and ".join(" x ".join(map(str, part.shape)) for part in (values, positions))
            raise ModelError(
                f"max unpooling needs a position for each value, but got shapes of {shapes}: give the values "
                f"the channels and the size of the map that was pooled."
            )
        pooled = -(-height // self.factor), -(-width // self.factor)
        if tuple(values.shape[-2:]) != pooled:
            found = f"{values.shape[-2]} x {values.shape[-1]}"
            raise ModelError(
                f"max unpooling by {self.factor} cannot make {height} x {width} of {found}: pooling that size gives "
                f"{pooled[0]} x {pooled[1]}; ask for the size that was pooled."
            )


@described_by(lambda reach, factor: reach.upsampling(factor))
def bed_of_nails(features: Tensor, factor: int) -> Tensor:
    """Put each value at the top left of its own factor x factor pixels, with zeros elsewhere.

    Takes ... x H x W, gives ... x factor H x factor W.

    Source: Dosovitskiy et al. 2015, arXiv:1411.5928, whose network unpools so.

    Raises:
        SettingError: the factor is below 1.

    >>> import torch
    >>> bed_of_nails(torch.tensor([[1, 2]]), 2)
    tensor([[1, 0, 2, 0],
            [0, 0, 0, 0]])
    """
    _checked(factor)
    height, width = features.shape[-2:]
    nails = features.new_zeros(*features.shape[:-2], factor * height, factor * width)
    nails[..., ::factor, ::factor] = features
    return nails


def _checked(factor: int) -> int:
    if factor < 1:
        raise SettingError(f"factor: must be at least 1, not {factor}.")
    return factor
