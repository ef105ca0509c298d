"""AlexNet, in the form of the paper and in the slimmer form for which torchvision publishes weights.

Papers: Krizhevsky, Sutskever and Hinton 2012, "ImageNet Classification with Deep Convolutional Neural Networks",
https://doi.org/10.1145/3065386, section 3 (`ALEXNET_PAPER`); Krizhevsky 2014, arXiv:1404.5997 (`ALEXNET`).

Our deviations: no local response normalisation (section 3.3), which has no parameters; one device instead of two, whose
halves are groups of the convolutions; 227 x 227 pixels, since the paper's 224 do not give its 55 x 55 maps.

The paper's form has 60,965,224 parameters; torchvision's 61,100,840.
"""

from pixelwise.backbones.chain import Chain, Conv, Pool

ALEXNET = Chain(
    name="alexnet",
    layers=(
        Conv(64, kernel=11, stride=4, padding=2),
        Pool(3),
        Conv(192, kernel=5, padding=2),
        Pool(3),
        Conv(384, padding=1),
        Conv(256, padding=1),
        Conv(256, padding=1),
        Pool(3),
    ),
    side=224,
    dense=(4096, 4096),
    dropout="before",
)

ALEXNET_PAPER = Chain(
    name="alexnet_paper",
    layers=(
        Conv(96, kernel=11, stride=4),
        Pool(3),
        Conv(256, kernel=5, padding=2, groups=2),
        Pool(3),
        Conv(384, padding=1),
        Conv(384, padding=1, groups=2),
        Conv(256, padding=1, groups=2),
        Pool(3),
    ),
    side=227,
    dense=(4096, 4096),
    dropout="after",
)
