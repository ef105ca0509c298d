"""Gates: one stream of features decides where another one passes.

Shapes: N images, S channels of the gated stream, R channels of the stream that gates, H x W pixels.
"""

import torch
from torch import Tensor, nn
from typing_extensions import override

from pixelwise.core.errors import ModelError
from pixelwise.layers.conv import ConvNormAct


class GatedConvolution(nn.Module):
    """A 1 x 1 convolution of features that a second stream amplifies where they matter.

    The attention a = sigmoid(norm(C(s joined with r))) has one value for each pixel (C is a 1 x 1 convolution); the
    result is the 1 x 1 convolution of s a + s.

    Takes s: N x in_channels x H x W and r: N x gate_channels x H x W; gives N x out_channels x H x W.

    Source: Takikawa et al. 2019, arXiv:1907.05740, equations 1 and 2.

    Args:
        in_channels: S, of the gated stream (the shapes).
        gate_channels: R, of the gating stream (the regular one).
        out_channels: filters of the convolution.
        norm: a name in `NORMS`, of the attention.

    Raises:
        ModelError: (forward) the streams differ in size.

    >>> GatedConvolution(4, 8, 2)(torch.zeros(1, 4, 5, 6), torch.zeros(1, 8, 5, 6)).shape
    torch.Size([1, 2, 5, 6])
    """

    def __init__(self, in_channels: int, gate_channels: int, out_channels: int, norm: str = "batch") -> None:
        super().__init__()
        gate = ConvNormAct(in_channels + gate_channels, 1, kernel=1, norm=norm)
        self.gate = nn.Sequential(*list(gate)[:2], nn.Sigmoid())
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def attention(self, features: Tensor, gating: Tensor) -> Tensor:
        """How much each pixel of `features` is amplified: N x 1 x H x W, from 0 to 1."""
        if features.shape[-2:] != gating.shape[-2:]:
            sizes = " and ".join(f"{part.shape[-2]} x {part.shape[-1]}" for part in (features, gating))
            raise ModelError(f"a gate needs two streams of one size, but got {sizes}: enlarge the smaller one.")
        attention: Tensor = self.gate(torch.cat([features, gating], dim=1))
        return attention

    @override
    def forward(self, features: Tensor, gating: Tensor) -> Tensor:
        gated: Tensor = self.convolution(features * self.attention(features, gating) + features)
        return gated
