"""Gated-SCNN: a thin stream for shapes beside the network for regions, which cleans the shapes through gates.

Shapes: N images, C channels, H x W pixels, K classes; F features of the finest map, at H / f x W / f.

Paper: Takikawa et al. 2019, arXiv:1907.05740. The regular stream is any backbone. The shape stream starts from its
finest features and is gated by three deeper ones (section 3.1, equations 1 and 2); it draws class boundaries. Atrous
spatial pyramid pooling joins the boundaries with the deepest features (section 3, fusion module), and a decoder like
that of DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611) gives the logits. The paper's losses of the boundaries and of
their agreement with the logits are in `pixelwise.losses`.

Our deviations:

- the regular stream is a ResNet-50 by default, one of the paper's own choices; its best figures come from a
  WideResNet-38. Its last three features are the gates;
- the shape stream works at the resolution of the backbone's finest features (half the image's in a ResNet, whose
  first convolution has a stride of 2), and its boundaries are then enlarged; the paper's works at full resolution;
- the image gradients are Sobel magnitudes of the mean over channels, computed by the network itself. The paper computes
  Canny edges outside of it: their hysteresis follows an edge to its end, so that a pixel may depend on the whole image;
- boundaries are reduced to the resolution of the pyramid as means over its cells, so that tiles agree with the image;
- upsampling aligns areas (`align_corners=False`), and an image of any size goes in.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pixelwise.backbones import Backbone
from pixelwise.core.errors import SettingError
from pixelwise.layers import (
    AtrousSpatialPyramidPooling,
    ConvNormAct,
    GatedConvolution,
    ResidualBlock,
    enlarge,
)
from pixelwise.models.base import Segmenter, check_at_least_one, check_output_stride
from pixelwise.models.segmentation.pspnet import make_scaled_backbone, start_heads

OUTPUT_STRIDES = (8, 16)
RATES = (6, 12, 18)  # of the pyramid's branches at an output stride of 16
WIDTH = 256  # channels of the pyramid and the decoder
GATES = 3  # deeper features that gate the shape stream
SHAPES = (64, 32, 16, 8)  # channels of the shape stream, before the first gate and after each, at a width of 256
FINE = 48  # channels of the fine features in the decoder, at a width of 256
FINE_STRIDE = 4  # of the decoder's fine features, where the backbone has them


class GSCNN(Segmenter):
    """Gated-SCNN: regions and shapes in two streams, joined by atrous spatial pyramid pooling.

    Takes N x in_channels x H x W float images of any size from 1 x 1, already normalised; gives
    N x num_classes x H x W logits. `outputs` also gives "edges": N x 1 x H x W logits of class boundaries.

    Args:
        in_channels: C of the image.
        num_classes: K.
        backbone: name of the regular stream, which needs at least three features.
        width: channels of the pyramid and the decoder; those of the shape stream are 1/4 to 1/32 of it. It also scales
            a backbone of variable width.
        norm: "batch", "group" or "none".
        output_stride: stride of the deepest features, 8 or 16. The rates of the pyramid are 6, 12, 18 at 16, twice
            that at 8.
        image_branch: also join the mean over the image, as the paper does; without it the network is exact.

    Raises:
        SettingError: a setting makes no sense.
        ModelError: (forward) as in `Segmenter`.

    >>> network = GSCNN(in_channels=3, num_classes=5, backbone="resnet18", width=32).eval()
    >>> {name: tuple(values.shape) for name, values in network.outputs(torch.zeros(1, 3, 31, 17)).items()}
    {'logits': (1, 5, 31, 17), 'edges': (1, 1, 31, 17)}
    """

    small: ClassVar = {"backbone": "resnet10t", "output_stride": 16, "width": 64}
    large: ClassVar = {"backbone": "resnet50", "output_stride": 8}
    backbone: Backbone

    def __init__(  # noqa: PLR0913
        self,
        in_channels: int = 3,
        num_classes: int = 19,
        backbone: str = "resnet50",
        width: int = WIDTH,
        norm: str = "batch",
        output_stride: int = 8,
        image_branch: bool = True,
    ) -> None:
        check_at_least_one(in_channels=in_channels, num_classes=num_classes, width=width)
        check_output_stride(output_stride, OUTPUT_STRIDES)
        regular = make_scaled_backbone(backbone, in_channels, width / WIDTH, norm, output_stride)
        _check_features(backbone, regular.strides)
        super().__init__(in_channels, num_classes, regular.stride)
        self.backbone = regular
        self.fine = next((level for level, stride in enumerate(regular.strides) if stride >= FINE_STRIDE), -1)
        self.strides = regular.strides

        self.gradients = ImageGradients()
        self.shapes = ShapeStream(regular.channels, regular.strides, width, norm)
        self.join = nn.Conv2d(2, 1, kernel_size=1)
        rates = [rate * 16 // output_stride for rate in RATES]
        self.pyramid = AtrousSpatialPyramidPooling(
            regular.channels[-1], width, rates, image_branch, norm=norm, extra_channels=1
        )
        narrow = _scaled(FINE, width)
        self.narrow = ConvNormAct(regular.channels[self.fine], narrow, kernel=1, norm=norm)
        self.decoder = nn.Sequential(
            ConvNormAct(narrow + width, width, norm=norm), ConvNormAct(width, width, norm=norm)
        )
        self.head = nn.Conv2d(width, num_classes, kernel_size=1)
        start_heads(self)
        nn.init.normal_(self.shapes.head.weight, std=0.01)  # undecided about boundaries at first

    @override
    def outputs_on_grid(self, images: Tensor) -> dict[str, Tensor]:
        """Logits and boundaries; the logits depend on the boundaries."""
        features = self.features_on_grid(images)
        edges = enlarge(self.shapes(features), self.strides[0])
        joined = self.join(torch.cat([edges.sigmoid(), self.gradients(images)], dim=1)).sigmoid()
        regions = self.pyramid(features[-1], F.avg_pool2d(joined, self.stride))
        fine_stride = self.strides[self.fine]
        regions = enlarge(regions, self.stride // fine_stride)
        decoded = self.decoder(torch.cat([self.narrow(features[self.fine]), regions], dim=1))
        return {"logits": enlarge(self.head(decoded), fine_stride), "edges": edges}


def _scaled(count: int, width: int) -> int:
    """Channels at that width where the published network, of width 256, has `count`.

    At least two: the next normalisation would undo the scale of a single channel, which could then not train.
    """
    return max(count * width // WIDTH, 2)


def _check_features(backbone: str, strides: Sequence[int]) -> None:
    if len(strides) < GATES:
        raise SettingError(
            f"model.backbone: {backbone} has {len(strides)} feature map(s), but the shape stream needs three as "
            f"gates: use another backbone, such as resnet18."
        )


class ImageGradients(nn.Module):
    """How steep the image is: magnitudes of its Sobel gradients.

    Takes N x C x H x W, gives N x 1 x H x W: the gradient of the mean over channels, in value per pixel (the Sobel
    weights divided by 8); border pixels are repeated. A magnitude is at least 1e-6, so that its own gradient is finite.

    >>> ramp = torch.arange(4.0).expand(1, 3, 3, 4)
    >>> ImageGradients()(ramp)[0, 0, 1]
    tensor([0.5000, 1.0000, 1.0000, 0.5000])
    """

    sobel: Tensor

    def __init__(self) -> None:
        super().__init__()
        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
        self.register_buffer("sobel", torch.stack([across, across.T])[:, None], persistent=False)

    @override
    def forward(self, images: Tensor) -> Tensor:
        brightness = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        slopes = F.conv2d(brightness, self.sobel)
        return (slopes.square().sum(1, keepdim=True) + 1e-12).sqrt()


class ShapeStream(nn.Module):
    """Residual blocks at a fine resolution, each followed by a gate that a deeper feature map opens.

    Takes the feature maps of a backbone, finest first; gives edge logits, N x 1 x the size of the finest. A gate sees
    one value for each pixel of its deeper map, reduced by a 1 x 1 convolution and enlarged to the finest.

    Source: Takikawa et al. 2019, arXiv:1907.05740, sections 3 and 3.1, with the channels of the authors' published
    network.

    Args:
        channels: of the backbone's feature maps.
        strides: of the backbone's feature maps, in input pixels.
        width: at 256 the stream has 64 channels, then 32, 16 and 8 after the gates.
        norm: a name in `layers.NORMS`.

    >>> stream = ShapeStream([8, 16, 32], [1, 2, 4], width=32, norm="batch")
    >>> stream([torch.zeros(1, 8, 8, 8), torch.zeros(1, 16, 4, 4), torch.zeros(1, 32, 2, 2)]).shape
    torch.Size([1, 1, 8, 8])
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int, norm: str) -> None:
        super().__init__()
        shapes = [_scaled(count, width) for count in SHAPES]
        self.factors = [stride // strides[0] for stride in strides[-GATES:]]
        self.enter = nn.Conv2d(channels[0], shapes[0], kernel_size=1)
        # No bias: the gate's normalisation would cancel it, and without a normalisation the gate has its own.
        self.reduce = nn.ModuleList(nn.Conv2d(count, 1, kernel_size=1, bias=False) for count in channels[-GATES:])
        self.blocks = nn.ModuleList(ResidualBlock(count, count, norm) for count in shapes[:-1])
        self.gates = nn.ModuleList(GatedConvolution(count, 1, after, norm) for count, after in pairwise(shapes))
        self.head = nn.Conv2d(shapes[-1], 1, kernel_size=1)

    @override
    def forward(self, features: Sequence[Tensor]) -> Tensor:
        shapes = self.enter(features[0])
        steps = zip(self.blocks, self.gates, self.reduce, features[-GATES:], self.factors, strict=True)
        for block, gate, reduce, deeper, factor in steps:
            shapes = gate(block(shapes), enlarge(reduce(deeper), factor))
        edges: Tensor = self.head(shapes)
        return edges
