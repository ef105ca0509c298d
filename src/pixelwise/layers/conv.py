"""Convolution, normalisation and activation as one operator, and how their weights start.

Shapes: N images, C channels, H x W pixels.
"""

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from pixelwise.errors import SettingError, near

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(math.gcd(32, channels), channels),
    "none": lambda channels: nn.Identity(),
}
"""Normalisations by name, each made from a number of channels.

"group" takes 32 groups (Wu and He 2018, arXiv:1803.08494), or as many as divide the channels and 32.
"""


class ConvNormAct(nn.Sequential):
    """Convolution, normalisation, ReLU.

    Takes N x C x H x W, gives N x out_channels x H' x W', where H' = H with padding and H - kernel + 1
    without. The convolution has a bias only where no normalisation follows, which would take it away again.

    Args:
        in_channels: C.
        out_channels: filters.
        kernel: side in pixels, odd.
        padded: surround the image with zeros, so that its size stays.
        norm: a name in `NORMS`.

    Raises:
        SettingError: there is no such normalisation.

    >>> import torch
    >>> ConvNormAct(3, 8)(torch.zeros(1, 3, 5, 6)).shape
    torch.Size([1, 8, 5, 6])
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, padded: bool = True, norm: str = "batch"
    ) -> None:
        if norm not in NORMS:
            raise SettingError(f"model.norm: {norm!r} is no normalisation; {near(norm, NORMS)}.")
        padding = kernel // 2 if padded else 0
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, padding=padding, bias=norm == "none"),
            NORMS[norm](out_channels),
            nn.ReLU(inplace=True),
        )


class ResidualBlock(nn.Module):
    """Two padded 3 x 3 convolutions beside a 1 x 1 shortcut; ReLU after their sum.

    Takes N x in_channels x H x W, gives N x out_channels x H x W. The shortcut lets the gradient past the
    convolutions, so that short trainings get further.

    Source: He et al. 2016, arXiv:1512.03385, section 3.2; our shortcut is always a convolution and has no
    normalisation of its own.

    >>> import torch
    >>> ResidualBlock(3, 8)(torch.zeros(1, 3, 5, 6)).shape
    torch.Size([1, 8, 5, 6])
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str = "batch") -> None:
        super().__init__()
        self.first = ConvNormAct(in_channels, out_channels, norm=norm)
        self.second = nn.Sequential(*list(ConvNormAct(out_channels, out_channels, norm=norm))[:2])
        self.shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """The block's features."""
        return F.relu(self.second(self.first(features)) + self.shortcut(features), inplace=True)


def he_start(module: nn.Module) -> None:
    """Draw a convolution's weights from a normal distribution of deviation sqrt(2 / N), and clear its bias.

    N is the number of values that make one output value: kernel area times input channels; for a transposed
    convolution whose kernel is its stride, the input channels. Any other module stays as it is: made for
    `network.apply`.

    Source: He et al. 2015, arXiv:1502.01852, equation 10.
    """
    if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        return
    taps = math.prod(module.kernel_size)
    if isinstance(module, nn.ConvTranspose2d):
        taps //= math.prod(module.stride)
    nn.init.normal_(module.weight, std=math.sqrt(2 / (taps * module.in_channels)))
    if module.bias is not None:
        nn.init.zeros_(module.bias)
