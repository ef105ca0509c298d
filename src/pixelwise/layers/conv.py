"""Convolution, normalisation and activation as one operator, blocks made of it, and how to initialise their weights.

Shapes: N images, C channels, H x W pixels.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pixelwise.core.errors import SettingError, near

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(math.gcd(32, channels), channels),
    "none": lambda channels: nn.Identity(),
}
"""Normalisations by name, each made from a number of channels.

"group" takes 32 groups (Wu and He 2018, arXiv:1803.08494), or the largest number that divides both 32 and the channels.
"""


def check_norm(norm: str) -> None:
    """Refuse a name that is not in `NORMS`.

    Raises:
        SettingError: it is not.

    >>> check_norm("batch")
    """
    if norm not in NORMS:
        raise SettingError(f"model.norm: unknown normalisation {norm!r}; {near(norm, NORMS)}")


class ConvNormAct(nn.Sequential):
    """Convolution, normalisation, ReLU.

    Takes N x C x H x W, gives N x out_channels x H' x W', where H' = ceil(H / stride) with padding and
    floor((H - dilation (kernel - 1) - 1) / stride) + 1 without. The convolution has a bias only if no normalisation
    follows, which would cancel it. With a dilation it is the atrous convolution y[i] = sum over k of
    x[i + dilation k] w[k] of Chen et al. 2017, arXiv:1706.05587, equation 1.

    Args:
        in_channels: C.
        out_channels: filters.
        kernel: side in pixels; must be odd if padded.
        padded: surround the image with zeros, so that it keeps its size (at stride 1).
        norm: a name in `NORMS`.
        stride: pixels from one position to the next.
        dilation: pixels from one tap of the kernel to the next.
        groups: number of parts of the channels that are convolved separately.

    Raises:
        SettingError: the normalisation is unknown, a padded kernel is even, or the groups do not divide the channels.

    >>> ConvNormAct(3, 8)(torch.zeros(1, 3, 5, 6)).shape
    torch.Size([1, 8, 5, 6])
    >>> ConvNormAct(3, 8, kernel=7, stride=2)(torch.zeros(1, 3, 5, 6)).shape
    torch.Size([1, 8, 3, 3])
    """

    def __init__(  # noqa: PLR0913
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        padded: bool = True,
        norm: str = "batch",
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        _check_convolution(in_channels, out_channels, kernel, padded, norm, groups)
        padding = dilation * (kernel // 2) if padded else 0
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=norm == "none"),
            NORMS[norm](out_channels),
            nn.ReLU(inplace=True),
        )


def _check_convolution(in_channels: int, out_channels: int, kernel: int, padded: bool, norm: str, groups: int) -> None:
    """Refuse settings that make no sense."""
    check_norm(norm)
    if padded and kernel % 2 == 0:
        raise SettingError(
            f"a padded convolution needs an odd kernel, whose middle is a pixel, not {kernel}: "
            f"use {kernel - 1} or {kernel + 1}, or no padding."
        )
    if groups < 1 or in_channels % groups or out_channels % groups:
        raise SettingError(
            f"{groups} groups do not divide {in_channels} input and {out_channels} output channels: use a "
            f"number that divides both, such as {math.gcd(in_channels, out_channels)}."
        )


class DepthwiseSeparable(nn.Sequential):
    """A convolution of each channel by itself, then a 1 x 1 convolution that mixes them; norm and ReLU after both.

    Takes N x in_channels x H x W, gives N x out_channels x ceil(H / stride) x ceil(W / stride). It has
    kernel^2 C + C out_channels weights where a full convolution has kernel^2 C out_channels.

    Source: Howard et al. 2017, arXiv:1704.04861, section 3.1; with a dilation it is the atrous separable convolution
    of Chen et al. 2018, arXiv:1802.02611, section 3.1.

    Args:
        in_channels: C.
        out_channels: filters of the 1 x 1 convolution.
        kernel: side in pixels, odd.
        norm: a name in `NORMS`.
        stride: pixels from one position to the next.
        dilation: pixels from one tap of the kernel to the next.

    >>> DepthwiseSeparable(3, 8, stride=2)(torch.zeros(1, 3, 5, 6)).shape
    torch.Size([1, 8, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        norm: str = "batch",
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__(
            ConvNormAct(
                in_channels, in_channels, kernel, norm=norm, stride=stride, dilation=dilation, groups=in_channels
            ),
            ConvNormAct(in_channels, out_channels, kernel=1, norm=norm),
        )


class InceptionModule(nn.Module):
    """Convolutions of 1, 3 and 5 pixels and a pooling, side by side; 1 x 1 convolutions keep the large ones cheap.

    Takes N x in_channels x H x W, gives N x out_channels x H x W: the branches in this order, joined.

    Source: Szegedy et al. 2015, arXiv:1409.4842, figure 2b; the arguments are the columns of table 1.

    Args:
        in_channels: C.
        one: filters of the 1 x 1 branch.
        three: channels to which the 3 x 3 branch is reduced, and its filters.
        five: the same for the 5 x 5 branch.
        pooled: filters after the 3 x 3 max pooling.
        norm: a name in `NORMS`; the paper has none.

    Attributes:
        out_channels: the sum of all filters.

    >>> module = InceptionModule(192, one=64, three=(96, 128), five=(16, 32), pooled=32)
    >>> module(torch.zeros(1, 192, 4, 5)).shape
    torch.Size([1, 256, 4, 5])
    """

    def __init__(
        self,
        in_channels: int,
        one: int,
        three: tuple[int, int],
        five: tuple[int, int],
        pooled: int,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.out_channels = one + three[1] + five[1] + pooled
        self.one = ConvNormAct(in_channels, one, kernel=1, norm=norm)
        self.three = nn.Sequential(
            ConvNormAct(in_channels, three[0], kernel=1, norm=norm), ConvNormAct(*three, kernel=3, norm=norm)
        )
        self.five = nn.Sequential(
            ConvNormAct(in_channels, five[0], kernel=1, norm=norm), ConvNormAct(*five, kernel=5, norm=norm)
        )
        self.pooled = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), ConvNormAct(in_channels, pooled, kernel=1, norm=norm)
        )

    @override
    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([branch(features) for branch in (self.one, self.three, self.five, self.pooled)], dim=1)


class ResidualBlock(nn.Module):
    """Two padded 3 x 3 convolutions beside a 1 x 1 shortcut, and ReLU after their sum.

    Takes N x in_channels x H x W, gives N x out_channels x H x W. The gradient bypasses the convolutions through the
    shortcut, so that short trainings get further.

    Source: He et al. 2016, arXiv:1512.03385, section 3.2; our shortcut is always a convolution and is not normalised.

    >>> ResidualBlock(3, 8)(torch.zeros(1, 3, 5, 6)).shape
    torch.Size([1, 8, 5, 6])
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str = "batch") -> None:
        super().__init__()
        self.first = ConvNormAct(in_channels, out_channels, norm=norm)
        self.second = nn.Sequential(*list(ConvNormAct(out_channels, out_channels, norm=norm))[:2])
        self.shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)

    @override
    def forward(self, features: Tensor) -> Tensor:
        return F.relu(self.second(self.first(features)) + self.shortcut(features), inplace=True)


def he_start(module: nn.Module) -> None:
    """Draw a convolution's weights from a normal distribution of deviation sqrt(2 / N), and clear its bias.

    N is the number of input values of one output value: the kernel's area times the input channels of a group; for a
    transposed convolution with a kernel as large as its stride, those channels. Any other module stays as it is, so
    that `network.apply` can take this function.

    Source: He et al. 2015, arXiv:1502.01852, equation 10.

    >>> convolution = nn.Conv2d(8, 1024, kernel_size=3)
    >>> he_start(convolution)
    >>> round(convolution.weight.std().item(), 2), convolution.bias.abs().max().item()  # sqrt(2 / 72) is 0.17
    (0.17, 0.0)
    """
    if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        return
    taps = math.prod(module.kernel_size)
    if isinstance(module, nn.ConvTranspose2d):
        taps //= math.prod(module.stride)
    nn.init.normal_(module.weight, std=math.sqrt(2 / (taps * (module.in_channels // module.groups))))
    if module.bias is not None:
        nn.init.zeros_(module.bias)
