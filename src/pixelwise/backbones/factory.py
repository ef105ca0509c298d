"""Backbones and classifiers by name."""

import difflib

from torch import nn

from pixelwise.backbones.alexnet import ALEXNET, ALEXNET_PAPER
from pixelwise.backbones.base import ENCODERS, Backbone, check_backbone
from pixelwise.backbones.chain import PUBLISHED_WIDTH, ChainBackbone, DenseClassifier
from pixelwise.backbones.lenet import LENET
from pixelwise.backbones.vgg import VGG16
from pixelwise.core.errors import SettingError, near

CHAINS = {chain.name: chain for chain in (LENET, ALEXNET, ALEXNET_PAPER, VGG16)}
OWN = (*CHAINS, "googlenet")
BACKBONES = (*OWN, *ENCODERS)
"""Names to show in lists: the backbones of the lectures. Any other name is looked up in timm."""


def make_backbone(
    name: str,
    in_channels: int = 3,
    *,
    width: int | None = None,
    norm: str = "batch",
    output_stride: int | None = None,
    depth: int | None = None,
) -> Backbone:
    """A backbone by name: N x in_channels x H x W images to a pyramid of features, finest first.

    Args:
        name: lenet, alexnet (torchvision's form), alexnet_paper, vgg16, googlenet, or an encoder of timm that gives
            features, such as resnet50, inception_resnet_v2, mobilenetv2_100 or darknet53.
        in_channels: C.
        width: scales lenet, alexnet, alexnet_paper and vgg16: 64 (or None) has the published numbers of filters.
        norm: "batch" (what the encoders of timm have), "group", or "none" where the published network has none.
        output_stride: 8, 16 or 32: the largest stride; deeper features keep it by dilation.
        depth: halvings from the first feature to the last; later layers are left out. None: all.

    Raises:
        SettingError: the backbone is unknown, or does not have the width, normalisation, output stride or depth.

    >>> backbone = make_backbone("vgg16", in_channels=1, width=4, output_stride=16)
    >>> backbone.strides, backbone.channels
    ([1, 2, 4, 8, 16, 16], [4, 8, 16, 32, 32, 32])
    """
    check_backbone(in_channels, norm, output_stride)
    if name in CHAINS:
        return ChainBackbone(
            CHAINS[name], in_channels, PUBLISHED_WIDTH if width is None else width, norm, output_stride, depth
        )
    _check_known(name)
    _check_no_width(name, width)
    if name == "googlenet":
        from pixelwise.backbones.googlenet import GoogLeNetBackbone  # torchvision is slow to import

        return GoogLeNetBackbone(in_channels, norm, output_stride, depth)
    from pixelwise.backbones.encoders import Encoder  # so is timm

    return Encoder(name, in_channels, norm, output_stride, depth)


def make_classifier(name: str, in_channels: int = 3, num_classes: int = 1000, *, width: int | None = None) -> nn.Module:
    """A network in its published form, which classifies whole images: N x C x H x W images to N x K logits.

    Those with dense layers take only one size: lenet 32 x 32 pixels, alexnet and vgg16 224 x 224, alexnet_paper
    227 x 227.

    Args:
        name: as for `make_backbone`.
        in_channels: C.
        num_classes: K.
        width: scales lenet, alexnet, alexnet_paper and vgg16, including their dense layers; 64 (or None) is published.

    Raises:
        SettingError: the network is unknown, or a number is below 1.
        ModelError: (forward) the dense layers do not fit the size of the images.

    >>> sum(parameter.numel() for parameter in make_classifier("lenet", in_channels=1, num_classes=10).parameters())
    61706
    """
    if min(in_channels, num_classes) < 1:
        raise SettingError(
            f"a classifier needs at least one channel and one class, not {in_channels} and {num_classes}."
        )
    if name in CHAINS:
        return DenseClassifier(CHAINS[name], in_channels, num_classes, PUBLISHED_WIDTH if width is None else width)
    _check_known(name)
    _check_no_width(name, width)
    network: nn.Module
    if name == "googlenet":
        from pixelwise.backbones.googlenet import make_googlenet

        network = make_googlenet(in_channels, num_classes)
    else:
        import timm

        network = timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=num_classes)
    return network


def _check_known(name: str) -> None:
    """Refuse an unknown name, and name similar ones."""
    if name in OWN:
        return
    import timm

    if ":" in name or "/" in name or not timm.is_model(name):  # timm would look elsewhere for a name with a colon
        known = dict.fromkeys((*OWN, *timm.list_models()))  # each once
        close = difflib.get_close_matches(name, known, n=1)
        usual = f"choose from: {', '.join((*OWN, *ENCODERS))}, or any of timm.list_models()."
        hint = near(name, known) if close else usual
        raise SettingError(f"model.backbone: unknown backbone {name!r}; {hint}")


def _check_no_width(name: str, width: int | None) -> None:
    """Refuse a width for a backbone that cannot be scaled."""
    if width is not None:
        raise SettingError(
            f"model.width: {name} has only its published width: leave it out, or use one of {', '.join(CHAINS)}."
        )
