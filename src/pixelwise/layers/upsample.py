"""Making feature maps larger, and making sizes agree.

Shapes: N images, C channels, H x W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelwise.errors import ModelError


class UpConcatenate(nn.Module):
    """Double the size with a transposed convolution, then join the skip features, centre-cropped to it.

    The 2 x 2 kernel has stride 2, so its stamps do not overlap: each input value makes its own four.

    Takes N x in_channels x H x W and a skip of N x C x H' x W' with H' >= 2H, W' >= 2W; gives
    N x (C + out_channels) x 2H x 2W, the skip's channels first.

    >>> UpConcatenate(8, 4)(torch.zeros(1, 8, 5, 6), torch.zeros(1, 4, 14, 12)).shape
    torch.Size([1, 8, 10, 12])
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """Upsample `features` and put them behind the channels of `skip`."""
        larger = self.up(features)
        return torch.cat([center_crop(skip, larger.shape[-2], larger.shape[-1]), larger], dim=1)


def center_crop(features: Tensor, height: int, width: int) -> Tensor:
    """The middle height x width of ... x H x W features; where the rest is odd, one more goes at the end.

    Raises:
        ModelError: the features are smaller than that.

    >>> center_crop(torch.arange(5.0).view(1, 1, 1, 5), 1, 3)
    tensor([[[[1., 2., 3.]]]])
    """
    top, left = (features.shape[-2] - height) // 2, (features.shape[-1] - width) // 2
    if top < 0 or left < 0:
        size = f"{features.shape[-2]} x {features.shape[-1]}"
        raise ModelError(f"features of {size} cannot be cropped to {height} x {width}: they are smaller.")
    return features[..., top : top + height, left : left + width]


def pad_to_stride(images: Tensor, stride: int) -> Tensor:
    """Repeat the last row and column of N x C x H x W until both sides are multiples of `stride`.

    >>> pad_to_stride(torch.tensor([[[[1.0, 2.0, 3.0]]]]), 2)
    tensor([[[[1., 2., 3., 3.],
              [1., 2., 3., 3.]]]])
    """
    bottom, right = -images.shape[-2] % stride, -images.shape[-1] % stride
    return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images
