"""Networks that are one chain of convolutions and poolings (LeNet, AlexNet, VGG), as a backbone and as a classifier.

Shapes: N images, C channels, H x W pixels, K classes.

How the backbones deviate from the published chains:

- every convolution and pooling is padded by dilation (kernel - 1) / 2, so that a feature has exactly
  ceil(H / stride) x ceil(W / stride) cells; the papers pad some of them less, or not at all;
- a normalisation precedes each ReLU (batch norm unless set otherwise; "none" is the published form), and the
  convolutions then have no bias;
- the dense layers are left out.

With an output stride, poolings that would exceed it keep the resolution, and later layers are dilated: the hole
algorithm of Chen et al. 2018, arXiv:1606.00915, section 3.1. Subsampled to the chain's own stride, the result is that
of the network without an output stride.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn
from typing_extensions import override

from pixelwise.backbones.base import Backbone, check_depth
from pixelwise.core.errors import ModelError, SettingError
from pixelwise.layers import NORMS, he_start

PUBLISHED_WIDTH = 64
"""The width at which the chains have the published numbers of filters."""


@dataclass(frozen=True)
class Conv:
    """A convolution and its ReLU, as published."""

    filters: int
    kernel: int = 3
    stride: int = 1
    padding: int = 0  # pixels of zeros on each side, in the published classifier
    groups: int = 1


@dataclass(frozen=True)
class Pool:
    """A max pooling of stride 2 and without padding, as published."""

    kernel: int = 2


@dataclass(frozen=True)
class Chain:
    """A published network: its chain of layers, and the dense layers that follow."""

    name: str
    layers: tuple[Conv | Pool, ...]
    side: int  # pixels of the square images that the dense layers need
    dense: tuple[int, ...]  # outputs of the dense layers before the last
    dropout: Literal["before", "after", "no"]  # of half the values, around each dense layer but the last

    def scaled(self, filters: int, width: int) -> int:
        """The published `filters`, scaled to a width: a positive multiple of the largest number of groups.

        >>> Chain("example", (Conv(96, groups=2),), side=8, dense=(), dropout="no").scaled(96, width=8)
        12
        """
        groups = max(layer.groups for layer in self.layers if isinstance(layer, Conv))
        return groups * max(1, round(filters * width / PUBLISHED_WIDTH / groups))

    def strides(self) -> list[int]:
        """Input pixels along a cell before each pooling, and at the end.

        >>> Chain("example", (Conv(96, 11, stride=4), Pool(3)), side=227, dense=(), dropout="no").strides()
        [4, 8]
        """
        strides = [1]
        for layer in self.layers:
            if isinstance(layer, Conv):
                strides[-1] *= layer.stride
            else:
                strides.append(2 * strides[-1])
        return strides

    def shortened(self, depth: int) -> "Chain":
        """The chain up to its pooling number `depth` and the convolutions after it.

        >>> Chain("example", (Conv(8), Pool(), Conv(8), Pool()), side=8, dense=(), dropout="no").shortened(1).strides()
        [1, 2]
        """
        poolings = [place for place, layer in enumerate(self.layers) if isinstance(layer, Pool)]
        return replace(self, layers=self.layers[: poolings[depth]]) if depth < len(poolings) else self

    def sides(self) -> Iterator[int]:
        """Pixels on each side after each layer of the classifier: (N - F + 2P) / S + 1, rounded down.

        >>> list(Chain("example", (Conv(96, 11, stride=4), Pool(3)), side=227, dense=(), dropout="no").sides())
        [55, 27]
        """
        side = self.side
        for layer in self.layers:
            stride, padding = (layer.stride, layer.padding) if isinstance(layer, Conv) else (2, 0)
            side = (side - layer.kernel + 2 * padding) // stride + 1
            yield side


class ChainBackbone(Backbone):
    """The features that a chain has before each pooling, and at its end.

    Args:
        chain: the published network.
        in_channels: C.
        width: 64 has the published numbers of filters, 32 half as many.
        norm: a name in `NORMS`.
        output_stride: the largest stride, if it should be smaller than the chain's own.
        depth: halvings from the first feature to the last, where the chain ends. None: all.

    Raises:
        SettingError: the width is below 1, the chain does not reach the output stride, or it has fewer halvings.

    >>> import torch
    >>> chain = Chain("example", (Conv(64), Pool(), Conv(128)), side=8, dense=(), dropout="no")
    >>> [tuple(feature.shape) for feature in ChainBackbone(chain, width=4)(torch.zeros(1, 3, 5, 7))]
    [(1, 4, 5, 7), (1, 8, 3, 4)]
    """

    def __init__(
        self,
        chain: Chain,
        in_channels: int = 3,
        width: int = PUBLISHED_WIDTH,
        norm: str = "batch",
        output_stride: int | None = None,
        depth: int | None = None,
    ) -> None:
        check_width(width)
        _check_reached(chain, output_stride)
        chain = chain.shortened(check_depth(chain.name, chain.strides(), depth))
        features, taps = _padded(chain, in_channels, width, norm, output_stride or math.inf)
        super().__init__(chain.name, in_channels, [tap.stride for tap in taps], [tap.channels for tap in taps], norm)
        self.width = width
        self.features = nn.Sequential(*features)
        self.ends = [tap.end for tap in taps]
        self.apply(he_start)

    @override
    def features_on_grid(self, images: Tensor) -> list[Tensor]:
        features, start = [images], 0
        for end in self.ends:
            features.append(self.features[start:end](features[-1]))
            start = end
        return features[1:]


@dataclass(frozen=True)
class _Tap:
    """Where a feature is taken."""

    end: int  # modules before it
    stride: int
    channels: int


def _padded(
    chain: Chain, in_channels: int, width: int, norm: str, output_stride: float
) -> tuple[list[nn.Module], list[_Tap]]:
    """The modules of the backbone, and where to take its features."""
    modules: list[nn.Module] = []
    taps: list[_Tap] = []
    channels, stride, dilation = in_channels, 1, 1
    for layer in chain.layers:
        if isinstance(layer, Conv):
            filters = chain.scaled(layer.filters, width)
            modules += _convolution(layer, channels, filters, norm, dilation * (layer.kernel // 2), dilation)
            channels, stride = filters, stride * layer.stride
            continue
        taps.append(_Tap(len(modules), stride, channels))
        if stride < output_stride:
            modules.append(nn.MaxPool2d(layer.kernel, stride=2, padding=(layer.kernel - 1) // 2))
            stride *= 2
        else:
            modules.append(_dense_pooling(layer.kernel, dilation))
            dilation *= 2
    taps.append(_Tap(len(modules), stride, channels))
    return modules, taps


def _convolution(
    layer: Conv, in_channels: int, filters: int, norm: str, padding: int, dilation: int = 1
) -> list[nn.Module]:
    """Convolution, normalisation and ReLU; only two modules without a normalisation, so that published names fit."""
    modules: list[nn.Module] = [
        nn.Conv2d(
            in_channels, filters, layer.kernel, layer.stride, padding, dilation, layer.groups, bias=norm == "none"
        )
    ]
    if norm != "none":
        modules.append(NORMS[norm](filters))
    return [*modules, nn.ReLU(inplace=True)]


def _dense_pooling(kernel: int, dilation: int) -> nn.Module:
    """The windows of a pooling of stride 2, but at every pixel: an odd window around it, an even one starting from it.

    Border pixels are repeated. Zeros would do, but engines merge them into the pooling, and some of them do not allow
    it that much padding.
    """
    before, after = dilation * ((kernel - 1) // 2), dilation * (kernel // 2)
    return nn.Sequential(
        nn.ReplicationPad2d((before, after, before, after)),
        nn.MaxPool2d(kernel, stride=1, padding=0, dilation=dilation),
    )


class DenseClassifier(nn.Module):
    """A published chain with its dense layers: one image, one row of logits.

    Takes N x in_channels x side x side images, gives N x K logits. No other size fits, since the dense layers have a
    weight for each pixel of the last features.

    Args:
        chain: the published network.
        in_channels: C.
        num_classes: K.
        width: 64 has the published numbers of filters and of dense outputs.

    Raises:
        SettingError: a number is below 1.
        ModelError: (forward) the images have another size or other channels.

    >>> import torch
    >>> chain = Chain("example", (Conv(64), Pool()), side=10, dense=(128,), dropout="after")
    >>> DenseClassifier(chain, num_classes=5, width=4)(torch.zeros(2, 3, 10, 10)).shape
    torch.Size([2, 5])
    """

    def __init__(
        self, chain: Chain, in_channels: int = 3, num_classes: int = 1000, width: int = PUBLISHED_WIDTH
    ) -> None:
        super().__init__()
        check_width(width)
        self.name, self.side, self.in_channels = chain.name, chain.side, in_channels
        modules: list[nn.Module] = []
        channels = in_channels
        for layer in chain.layers:
            if isinstance(layer, Conv):
                filters = chain.scaled(layer.filters, width)
                modules += _convolution(layer, channels, filters, "none", layer.padding)
                channels = filters
            else:
                modules.append(nn.MaxPool2d(layer.kernel, stride=2))
        *_, last_side = chain.sides()
        self.features = nn.Sequential(*modules)
        self.classifier = nn.Sequential(*_dense(chain, channels * last_side**2, num_classes, width))
        self.apply(he_start)

    @override
    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (self.in_channels, self.side, self.side):
            shape = " x ".join(map(str, images.shape))
            raise ModelError(
                f"the dense layers of {self.name} take N x {self.in_channels} x {self.side} x {self.side} images, but "
                f"got {shape}: they have a weight for each pixel of the last features. Resize the images, or use a "
                f"fully convolutional network, which takes any size."
            )
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def _dense(chain: Chain, in_features: int, num_classes: int, width: int) -> list[nn.Module]:
    """The dense layers, with ReLU and dropout between them."""
    modules: list[nn.Module] = []
    for published in chain.dense:
        out_features = chain.scaled(published, width)
        if chain.dropout == "before":
            modules.append(nn.Dropout())
        modules += [nn.Linear(in_features, out_features), nn.ReLU(inplace=True)]
        if chain.dropout == "after":
            modules.append(nn.Dropout())
        in_features = out_features
    return [*modules, nn.Linear(in_features, num_classes)]


def check_width(width: int) -> None:
    """Refuse a width below 1.

    Raises:
        SettingError: it is.

    >>> check_width(8)
    """
    if width < 1:
        raise SettingError(f"model.width: must be at least 1, not {width}.")


def _check_reached(chain: Chain, output_stride: int | None) -> None:
    """Refuse an output stride that a chain does not reach."""
    largest = math.prod(layer.stride if isinstance(layer, Conv) else 2 for layer in chain.layers)
    if output_stride is not None and output_stride > largest:
        raise SettingError(
            f"model.output_stride: {output_stride} is more than the largest stride of {chain.name}, {largest}: leave "
            f"it out."
        )
