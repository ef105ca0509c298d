"""VGG16: thirteen convolutions of 3 x 3 pixels, the encoder of FCN, SegNet, DeconvNet and DeepLab.

Paper: Simonyan and Zisserman 2015, arXiv:1409.1556, table 1, column D.

The layers have torchvision's names. No deviations beyond those of `pixelwise.backbones.chain`.
"""

from pixelwise.backbones.chain import Chain, Conv, Pool

VGG16 = Chain(
    name="vgg16",
    layers=(
        *(Conv(64, padding=1), Conv(64, padding=1), Pool()),
        *(Conv(128, padding=1), Conv(128, padding=1), Pool()),
        *(Conv(256, padding=1), Conv(256, padding=1), Conv(256, padding=1), Pool()),
        *(Conv(512, padding=1), Conv(512, padding=1), Conv(512, padding=1), Pool()),
        *(Conv(512, padding=1), Conv(512, padding=1), Conv(512, padding=1), Pool()),
    ),
    side=224,
    dense=(4096, 4096),
    dropout="after",
)
