"""What surrounds a pixel: pooling over the whole image, and features gathered at several distances.

Shapes: N images, C channels, H x W pixels, K output channels.

Pooling over the whole image makes a network inexact: an output pixel then depends on every input pixel, and tiles only
approximate the whole image. Each class says so in its `reason`, which is empty if it is exact.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pixelwise.core.errors import SettingError
from pixelwise.geometry.reach import Reach
from pixelwise.geometry.tracing import WHOLE_IMAGE, described_by
from pixelwise.geometry.tracing.seen import NotLocalError
from pixelwise.layers.conv import ConvNormAct, DepthwiseSeparable


class GlobalAveragePool(nn.Module):
    """The mean of each channel: N x C x H x W gives N x C x 1 x 1.

    Source: Lin et al. 2014, arXiv:1312.4400, section 3.2.

    >>> GlobalAveragePool()(torch.tensor([[[[1.0, 2.0, 6.0]]]]))
    tensor([[[[3.]]]])
    """

    reason = WHOLE_IMAGE

    @override
    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=(-2, -1), keepdim=True)


class GlobalMaxPool(nn.Module):
    """The largest value of each channel: N x C x H x W gives N x C x 1 x 1.

    Source: Oquab et al. 2015, "Is object localization for free?", https://doi.org/10.1109/CVPR.2015.7298668.

    >>> GlobalMaxPool()(torch.tensor([[[[1.0, 2.0, 6.0]]]]))
    tensor([[[[6.]]]])
    """

    reason = WHOLE_IMAGE

    @override
    def forward(self, features: Tensor) -> Tensor:
        return features.amax(dim=(-2, -1), keepdim=True)


def _reach_all(*arguments: object) -> Reach:
    raise NotLocalError(WHOLE_IMAGE)


class GridAveragePool(nn.Module):
    """The means over a grid of regions: N x C x H x W gives N x C x bins x bins, for any H and W.

    Region i of an axis begins at floor(i size / bins) and ends before ceil((i + 1) size / bins), as in
    `torch.nn.AdaptiveAvgPool2d`. Unlike that one it can be exported for images of any size, because its means are
    products with two matrices.

    Args:
        bins: number of regions along each axis.

    >>> GridAveragePool(2)(torch.tensor([[[[1.0, 2.0, 6.0]]]]))[0, 0, 0]
    tensor([1.5000, 4.0000])
    """

    reason = WHOLE_IMAGE

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    @described_by(_reach_all)
    @override
    def forward(self, features: Tensor) -> Tensor:
        rows, columns = (self._weights(size, features) for size in features.shape[-2:])
        return rows @ features @ columns.T

    def _weights(self, size: int, features: Tensor) -> Tensor:
        """Bins x size: the weight of each row or column in each mean."""
        places = torch.arange(size, device=features.device)
        bins = torch.arange(self.bins, device=features.device)[:, None]
        first, end = bins * size // self.bins, -(-(bins + 1) * size // self.bins)
        return ((places >= first) & (places < end)).to(features.dtype) / (end - first)


class AtrousSpatialPyramidPooling(nn.Module):
    """A 1 x 1 convolution, one 3 x 3 convolution for each rate, and the image's mean, joined and mixed.

    Takes N x in_channels x H x W, gives N x out_channels x H x W. Each branch has `out_channels`; a final 1 x 1
    convolution mixes them. This is the form of Chen et al. 2017, arXiv:1706.05587, section 3.3, and 2018,
    arXiv:1802.02611; DeepLabV2 (arXiv:1606.00915) instead adds up branches that end in logits.

    Our deviation: the image branch has a bias instead of a normalisation, since it has one value for each channel, of
    which a batch of one image has no statistics.

    Args:
        in_channels: C.
        out_channels: K, of each branch and of the result; 256 in the papers.
        rates: dilations of the 3 x 3 convolutions; 6, 12, 18 at an output stride of 16, twice that at 8.
        image_branch: also join the mean over the image, which makes the network inexact.
        separable: make the 3 x 3 convolutions depthwise separable, as DeepLabV3+ does.
        norm: a name in `NORMS`.
        extra_channels: of a second input with a branch of its own, such as the boundaries of Takikawa et al. 2019,
            arXiv:1907.05740; 0 for none.

    Attributes:
        reason: why a network with this module is not exact; "" if it is.

    Raises:
        SettingError: a rate is below 1.

    >>> AtrousSpatialPyramidPooling(8, 4, rates=(2, 3)).eval()(torch.zeros(1, 8, 5, 6)).shape
    torch.Size([1, 4, 5, 6])
    """

    def __init__(  # noqa: PLR0913
        self,
        in_channels: int,
        out_channels: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        image_branch: bool = True,
        separable: bool = False,
        norm: str = "batch",
        extra_channels: int = 0,
    ) -> None:
        super().__init__()
        if min(rates, default=1) < 1:
            raise SettingError(f"rates: must be at least 1 pixel each, not {', '.join(map(str, rates))}.")
        atrous: Callable[..., nn.Module] = DepthwiseSeparable if separable else ConvNormAct
        self.branches = nn.ModuleList([ConvNormAct(in_channels, out_channels, kernel=1, norm=norm)])
        self.branches.extend(atrous(in_channels, out_channels, norm=norm, dilation=rate) for rate in rates)
        self.image = _pooled(GlobalAveragePool(), in_channels, out_channels, "none") if image_branch else None
        self.extra = ConvNormAct(extra_channels, out_channels, kernel=1, norm=norm) if extra_channels else None
        count = len(self.branches) + image_branch + bool(extra_channels)
        self.mix = ConvNormAct(count * out_channels, out_channels, kernel=1, norm=norm)
        self.reason = WHOLE_IMAGE if image_branch else ""

    @override
    def forward(self, features: Tensor, extra: Tensor | None = None) -> Tensor:
        """The mixed branches; `extra`: N x extra_channels x H x W, the second input, if there is one."""
        branches = [branch(features) for branch in self.branches]
        if self.extra is not None and extra is not None:
            branches.append(self.extra(extra))
        if self.image is not None:
            branches.append(self.image(features).expand_as(branches[0]))
        mixed: Tensor = self.mix(torch.cat(branches, dim=1))
        return mixed


class PyramidPooling(nn.Module):
    """The features beside their means over coarse grids, so that each pixel knows the scene around it.

    Takes N x in_channels x H x W, gives N x out_channels x H x W: the features first, then for each bin count b
    their means over b x b regions, reduced by a 1 x 1 convolution and enlarged bilinearly.

    Source: Zhao et al. 2017, arXiv:1612.01105, section 3.2. Our deviations: enlarging aligns areas, not corners
    (`align_corners=False`), and a grid of one bin has a bias instead of a normalisation, since a batch of one image
    has no statistics of it.

    Args:
        in_channels: C.
        bins: numbers of regions along each axis, one grid for each number.
        norm: a name in `NORMS`.

    Attributes:
        out_channels: C + the number of grids times floor(C / the number of grids).
        reason: why a network with this module is not exact.

    Raises:
        SettingError: there are no bins, a bin count is below 1, or there are fewer channels than grids.

    >>> pool = PyramidPooling(8).eval()
    >>> pool(torch.zeros(1, 8, 5, 7)).shape, pool.out_channels
    (torch.Size([1, 16, 5, 7]), 16)
    """

    reason = WHOLE_IMAGE

    def __init__(self, in_channels: int, bins: Sequence[int] = (1, 2, 3, 6), norm: str = "batch") -> None:
        super().__init__()
        if min(bins, default=0) < 1:
            raise SettingError(f"bins: must be one or more numbers of at least 1, not {tuple(bins)}.")
        if in_channels < len(bins):
            raise SettingError(
                f"bins: {len(bins)} grids need at least {len(bins)} channels, but there are {in_channels}."
            )
        narrow = in_channels // len(bins)
        self.grids = nn.ModuleList(
            _pooled(GridAveragePool(count), in_channels, narrow, norm if count > 1 else "none") for count in bins
        )
        self.out_channels = in_channels + len(bins) * narrow

    @override
    def forward(self, features: Tensor) -> Tensor:
        size = features.shape[-2:]
        grids = [F.interpolate(grid(features), size=size, mode="bilinear", align_corners=False) for grid in self.grids]
        return torch.cat([features, *grids], dim=1)


def _pooled(pool: nn.Module, in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    """A pooling and the 1 x 1 convolution after it."""
    return nn.Sequential(pool, ConvNormAct(in_channels, out_channels, kernel=1, norm=norm))
