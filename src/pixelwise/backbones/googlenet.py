"""GoogLeNet: nine Inception modules, each of which convolves at several sizes side by side.

Paper: Szegedy et al. 2015, arXiv:1409.4842, table 1.

The layers are torchvision's, so that its published weights fit. They deviate from the paper:

- batch norm follows each convolution, and there is no local response normalisation;
- the branches of 5 x 5 pixels have 3 x 3 (a slip of the first port, kept for its weights);
- there are no auxiliary classifiers.

We deviate from torchvision: the backbone ends with the last Inception module, and `he_start` initialises its weights.
"""

from torch import Tensor, nn
from torchvision.models import GoogLeNet
from typing_extensions import override

from pixelwise.backbones.base import Backbone, check_depth
from pixelwise.backbones.norms import replace_batch_norms
from pixelwise.core.errors import SettingError
from pixelwise.layers import he_start

STAGES = (
    ("conv1",),
    ("maxpool1", "conv2", "conv3"),
    ("maxpool2", "inception3a", "inception3b"),
    ("maxpool3", "inception4a", "inception4b", "inception4c", "inception4d", "inception4e"),
    ("maxpool4", "inception5a", "inception5b"),
)
"""torchvision's names of the layers up to each feature."""

STRIDES, CHANNELS = (2, 4, 8, 16, 32), (64, 192, 480, 832, 1024)  # of each feature


class GoogLeNetBackbone(Backbone):
    """The features of GoogLeNet before each pooling, and of its last module.

    Args:
        in_channels: C.
        norm: "batch" (published) or "group".
        output_stride: must be None or 32.
        depth: halvings from the first feature to the last; later layers are left out. None: all.

    Raises:
        SettingError: the network does not have the normalisation, the output stride or the depth.
    """

    def __init__(
        self, in_channels: int = 3, norm: str = "batch", output_stride: int | None = None, depth: int | None = None
    ) -> None:
        if output_stride not in (None, 32):
            raise SettingError(
                f"model.output_stride: googlenet cannot be dilated to an output stride of {output_stride}: leave it "
                f"out, or use a backbone such as vgg16 or resnet50."
            )
        end = check_depth("googlenet", STRIDES, depth) + 1
        super().__init__("googlenet", in_channels, STRIDES[:end], CHANNELS[:end], norm)
        self.stages = STAGES[:end]
        published = make_googlenet(in_channels)
        for name in (name for stage in self.stages for name in stage):
            self.add_module(name, published.get_submodule(name))
        replace_batch_norms(self, self.name, norm)

    @override
    def features_on_grid(self, images: Tensor) -> list[Tensor]:
        features = [images]
        for stage in self.stages:
            values = features[-1]
            for name in stage:
                values = self.get_submodule(name)(values)
            features.append(values)
        return features[1:]


def make_googlenet(in_channels: int = 3, num_classes: int = 1000) -> GoogLeNet:
    """torchvision's GoogLeNet for any number of channels, without auxiliary classifiers: N x C x H x W to N x K."""
    network = GoogLeNet(num_classes=num_classes, aux_logits=False, init_weights=False)
    network.conv1.conv = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return network.apply(he_start)
