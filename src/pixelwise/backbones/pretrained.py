"""Published weights for a backbone: timm's from the Hugging Face hub, torchvision's from its server.

The weights were trained on images with the mean and deviation of ImageNet, so they work best on images that are
normalised to a mean of 0 and a deviation of 1.

If the channels are not red, green and blue, the first convolution is adapted as timm does it: summed for one channel,
repeated and rescaled for others.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixelwise.backbones import fetch
from pixelwise.backbones.base import Backbone
from pixelwise.backbones.chain import PUBLISHED_WIDTH
from pixelwise.backbones.factory import OWN, make_backbone
from pixelwise.backbones.installed import installed_weights
from pixelwise.core.errors import SettingError

TORCHVISION = {
    ("alexnet", "none"): "AlexNet_Weights",
    ("vgg16", "none"): "VGG16_Weights",
    ("vgg16", "batch"): "VGG16_BN_Weights",
    ("googlenet", "batch"): "GoogLeNet_Weights",
}
"""torchvision's name for the weights of a backbone with a normalisation."""

HEADS = ("classifier.", "fc.", "aux1.", "aux2.")
"""The first parts of the names of torchvision's layers that a backbone does not have."""

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_pretrained(backbone: Backbone, *, endpoint: str | None = None, folder: Path | None = None) -> str:
    """Replace a backbone's weights by published ones, fetched once and kept in a cache.

    Args:
        backbone: changed in place, but not if an error is raised.
        endpoint: address of a hub that replaces huggingface.co.
        folder: of the cache, if not the usual ones of the hub and of torch.

    Returns:
        A sentence that says what was loaded.

    Raises:
        SettingError: this form of the backbone has no published weights, they cannot be fetched, or they do not fit.
    """
    if backbone.name in OWN:
        source = _load_from_torchvision(backbone, folder)
    else:
        source = _load_from_timm(backbone, endpoint, folder)
    adapted = "" if backbone.in_channels == 3 else f", its first layer adapted to {backbone.in_channels} channel(s)"
    return f"{backbone.name} starts with the published weights of {source}{adapted}."


def published_url(weights: str) -> str:
    """The address of the weights that torchvision publishes under that name."""
    import torchvision.models

    return str(getattr(torchvision.models, weights).IMAGENET1K_V1.url)


def _load_from_torchvision(backbone: Backbone, folder: Path | None) -> str:
    """Load, fold into our form, adapt, compare, copy."""
    if getattr(backbone, "width", PUBLISHED_WIDTH) != PUBLISHED_WIDTH:
        raise _unpublished(f"{backbone.name} with model.width {backbone.width}", f"model.width {PUBLISHED_WIDTH}")
    weights = TORCHVISION.get((backbone.name, backbone.norm))
    if weights is None:
        raise _no_such_form(backbone)
    url = published_url(weights)
    tensors = fetch.from_url(backbone.name, url, folder)
    tensors = {name: value for name, value in tensors.items() if not name.startswith(HEADS)}
    with torch.device("meta"):  # all layers, also where ours ends earlier
        wanted = make_backbone(backbone.name, backbone.in_channels, norm=backbone.norm).state_dict()
    first = next(name for name, value in wanted.items() if value.ndim == 4)
    _fold_biases(tensors, wanted)
    if backbone.name == "googlenet":
        _fold_input_range(tensors)
    if first in tensors:
        from timm.models import adapt_input_conv

        tensors[first] = adapt_input_conv(backbone.in_channels, tensors[first])
    _check_fit(backbone.name, url, tensors, wanted)
    _load(backbone, tensors)
    return f"torchvision ({weights}.IMAGENET1K_V1)"


def _fold_biases(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Move the biases that our layers do not have into the running means of the batch norms behind them."""
    for name in [name for name in tensors if re.fullmatch(r"features\.\d+\.bias", name) and name not in wanted]:
        place = int(name.split(".")[1])
        mean = f"features.{place + 1}.running_mean"
        if mean in tensors:
            tensors[mean] = tensors[mean] - tensors.pop(name)


def _fold_input_range(tensors: dict[str, Tensor]) -> None:
    """Let GoogLeNet take images in ImageNet's normalisation, like all others, instead of in -1 to 1.

    torchvision scales and shifts the image. The scale goes into the first weights, the shift into the running mean
    behind them; at the image's border, where the padding is not shifted, the first features differ slightly.
    """
    weight, mean = "conv1.conv.weight", "conv1.bn.running_mean"
    if not {weight, mean} <= tensors.keys():
        return
    scale = torch.tensor(IMAGENET_DEVIATION).view(3, 1, 1) / 0.5
    shift = (torch.tensor(IMAGENET_MEAN).view(3, 1, 1) - 0.5) / 0.5
    tensors[mean] = tensors[mean] - (tensors[weight] * shift).sum(dim=(1, 2, 3))
    tensors[weight] = tensors[weight] * scale


def _check_fit(name: str, source: str, tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Refuse tensors if one of them is missing, has another shape, or is unknown."""
    for key, value in wanted.items():
        if key not in tensors and key.endswith(".num_batches_tracked"):
            continue  # older files lack it; torch starts it at zero
        if key not in tensors:
            raise _misfit(name, source, f"{key} is missing")
        if tensors[key].shape != value.shape:
            shapes = (" x ".join(map(str, part.shape)) for part in (tensors[key], value))
            raise _misfit(name, source, "{} is {} instead of {}".format(key, *shapes))
    for key in tensors:
        if key not in wanted:
            raise _misfit(name, source, f"{key} is unknown")


def _load_from_timm(backbone: Any, endpoint: str | None, folder: Path | None) -> str:
    """Let timm load, rename and adapt the tensors, first for the whole network, where it compares their names."""
    import timm

    from pixelwise.backbones.encoders import create_features, given

    if backbone.norm != "batch":
        raise _unpublished(f"{backbone.name} with model.norm {backbone.norm!r}", 'model.norm "batch"')
    hub_id = backbone.network.pretrained_cfg.get("hf_hub_id")
    if not hub_id:
        raise _unpublished(backbone.name, "another encoder, such as resnet18")
    with torch.device("meta"):
        wanted = timm.create_model(backbone.name).state_dict()
    tensors = installed_weights(backbone.name, wanted) or fetch.from_hub(backbone.name, hub_id, endpoint, folder)
    try:
        timm.create_model(backbone.name, in_chans=backbone.in_channels, **given(tensors))
    except Exception as error:  # of torch where names differ, of timm's own renaming where they are strange
        raise _misfit(backbone.name, hub_id, _first_of(str(error))) from error
    features = create_features(backbone.name, backbone.in_channels, backbone.output_stride, tensors)
    _load(backbone.network, features.state_dict())
    return f"{hub_id} (Hugging Face hub)"


def _load(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load those tensors that the network has; one that ends earlier does not have all of them."""
    own = network.state_dict()
    network.load_state_dict({name: values for name, values in tensors.items() if name in own})


def _first_of(message: str) -> str:
    """The first complaint of torch's load_state_dict, which lists them all.

    >>> _first_of('Error(s) in loading:\\n    Missing key(s) in state_dict: "a.weight", "b.weight". ')
    'Missing key(s) in state_dict: "a.weight"'
    """
    lines = [line.strip() for line in message.splitlines()]
    complaint = lines[1] if len(lines) > 1 else message
    named = re.match(r'.*?state_dict: "[^"]*"', complaint)
    return named[0] if named else complaint.rstrip(". ")


def _no_such_form(backbone: Backbone) -> SettingError:
    """The error for a form without weights; another normalisation of the same network may have some."""
    norms = [f'"{norm}"' for name, norm in TORCHVISION if name == backbone.name]
    if norms:
        return _unpublished(f'{backbone.name} with model.norm "{backbone.norm}"', f"model.norm {' or '.join(norms)}")
    return _unpublished(backbone.name, 'vgg16, googlenet, alexnet with model.norm "none", or resnet18')


def _unpublished(what: str, instead: str) -> SettingError:
    return SettingError(
        f"model.pretrained: there are no published weights for {what}: use {instead}, or leave model.pretrained out."
    )


def _misfit(name: str, source: str, why: str) -> SettingError:
    return SettingError(
        f"model.pretrained: the weights of {source} do not fit {name}: {why}. Use another backbone, or leave "
        f"model.pretrained out."
    )
