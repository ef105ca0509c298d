"""Weights that a backbone starts from: published ones, or those of a file.

Published weights are timm's or torchvision's. They are taken from the caches of the Hugging Face hub and of torch, else
from an installed package, else from the internet. They were trained on images with the mean and deviation of ImageNet,
so they work best on images that are normalised to a mean of 0 and a deviation of 1.

If the channels are not red, green and blue, the first convolution is folded, see `fold`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from pixelwise.backbones import fetch
from pixelwise.backbones.base import Backbone
from pixelwise.backbones.chain import PUBLISHED_WIDTH
from pixelwise.backbones.factory import OWN
from pixelwise.backbones.fitting import ENOUGH, Fit, fault, fit, shortened
from pixelwise.backbones.installed import PACKAGES, check_content, how_to_install, installed_file
from pixelwise.backbones.outline import converted, outline_of
from pixelwise.backbones.reading import read_tensors, sha256_of
from pixelwise.core.errors import SettingError
from pixelwise.core.progress import Progress

TORCHVISION = {
    ("alexnet", "none"): "AlexNet_Weights",
    ("vgg16", "none"): "VGG16_Weights",
    ("vgg16", "batch"): "VGG16_BN_Weights",
    ("googlenet", "batch"): "GoogLeNet_Weights",
}
"""torchvision's name for the weights of a backbone with a normalisation."""

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Loaded:
    """Which weights a backbone starts from: kept with the run, and told as a sentence."""

    encoder: str
    source: str  # whose they are, in words
    file: str
    size: int  # bytes
    sha256: str  # of the file
    how: str  # by name, by name below a prefix, by order
    taken: int  # tensors, without the counters of batch norms
    wanted: int  # that the encoder has
    left: tuple[str, ...]  # names in the file of tensors that the encoder does not have, such as a classifier's
    afresh: tuple[str, ...]  # names of the encoder's tensors that the file lacks: they start at random
    folded: int | None  # channels to which the first layer was folded, if it was

    @override
    def __str__(self) -> str:
        left = f", {len(self.left)} of the file were left ({shortened(self.left)})" if self.left else ""
        afresh = f", {len(self.afresh)} start afresh ({shortened(self.afresh)})" if self.afresh else ""
        folded = f"; its first layer is folded to {self.folded} channel(s)" if self.folded else ""
        return (
            f"{self.encoder} starts with {self.source} ({self.file}, {self.size / 1e6:,.1f} MB, SHA-256 "
            f"{self.sha256[:8]}...): {self.taken} of its {self.wanted} tensors were taken {self.how}{left}{afresh}"
            f"{folded}."
        )


@dataclass(frozen=True)
class _Source:
    """A file of weights, and whose it is."""

    setting: str
    words: str
    file: Path


def load_pretrained(
    backbone: Backbone, *, endpoint: str | None = None, folder: Path | None = None, progress: Progress | None = None
) -> Loaded:
    """Replace a backbone's weights by published ones, all of them; they are fetched once and kept in a cache.

    Args:
        backbone: changed in place, but not if an error is raised.
        endpoint: address of a hub that replaces huggingface.co.
        folder: of the cache, if not the usual ones of the hub and of torch.
        progress: is called with the bytes that have come from the internet, and with all.

    Raises:
        SettingError: this form of the backbone has no published weights, they cannot be fetched, or they do not fit.
    """
    if backbone.name in OWN:
        source = _from_torchvision(backbone, folder, progress)
    else:
        source = _from_timm(backbone, endpoint, folder, progress)
    return _load(backbone, source, share=1.0)


def load_weights(backbone: Backbone, path: Path) -> Loaded:
    """Replace a backbone's weights by those of a file: of safetensors, or what torch saved, of tensors alone.

    Args:
        backbone: changed in place, but not if an error is raised.
        path: a state_dict of the encoder itself or of a network around it, of timm, torchvision or others, also within
            a checkpoint.

    Raises:
        SettingError: the file is none of weights, or of another encoder; the message says what fits and what does not.

    >>> import tempfile
    >>> from pixelwise.backbones import make_backbone
    >>> path = Path(tempfile.mkdtemp(), "lenet.pth")
    >>> torch.save(make_backbone("lenet", width=8).state_dict(), path)
    >>> loaded = load_weights(make_backbone("lenet", width=8), path)
    >>> loaded.taken == loaded.wanted, loaded.how
    (True, 'by name')
    """
    return _load(backbone, _Source("model.weights", "the weights of a file", path), share=ENOUGH)


def published_url(weights: str) -> str:
    """The address of the weights that torchvision publishes under that name."""
    import torchvision.models

    return str(getattr(torchvision.models, weights).IMAGENET1K_V1.url)


def _from_torchvision(backbone: Any, folder: Path | None, progress: Progress | None) -> _Source:
    """torchvision's file for a backbone of our own."""
    if getattr(backbone, "width", PUBLISHED_WIDTH) != PUBLISHED_WIDTH:
        raise _unpublished(f"{backbone.name} with model.width {backbone.width}", f"model.width {PUBLISHED_WIDTH}")
    weights = TORCHVISION.get((backbone.name, backbone.norm))
    if weights is None:
        raise _no_such_form(backbone)
    url = published_url(weights)
    path = (folder or fetch.torch_folder()) / url.rpartition("/")[2]
    words = f"the published weights of torchvision ({weights}.IMAGENET1K_V1)"
    return _Source("model.pretrained", words, path if path.is_file() else _fetched(backbone.name, url, path, progress))


def _from_timm(backbone: Any, endpoint: str | None, folder: Path | None, progress: Progress | None) -> _Source:
    """The file of one of timm's encoders: from a cache, a package, or the internet."""
    if backbone.norm != "batch":
        raise _unpublished(f"{backbone.name} with model.norm {backbone.norm!r}", 'model.norm "batch"')
    facts = backbone.network.pretrained_cfg
    hub_id, url = facts.get("hf_hub_id"), facts.get("url")
    if not hub_id and backbone.name not in PACKAGES:
        raise _unpublished(backbone.name, "another encoder, such as resnet18")
    words = f"the published weights of {hub_id or backbone.name}"
    if hub_id and (cached := fetch.cached_of_hub(hub_id, folder)):
        return _Source("model.pretrained", f"{words}, from the cache", cached)
    named = (folder or fetch.torch_folder()) / str(url).rpartition("/")[2]
    if url and named.is_file():
        return _Source("model.pretrained", f"{words}, from the cache", named)
    if path := installed_file(backbone.name):
        words = f"the published weights of the installed package {PACKAGES[backbone.name].name}"
        return _Source("model.pretrained", words, path)
    if not hub_id:
        raise _unpublished(f"{backbone.name} here", f"`{how_to_install(backbone.name)}`")
    place = fetch.place_of_hub(hub_id, folder)
    path = _fetched(backbone.name, fetch.url_of_hub(hub_id, endpoint), place, progress)
    return _Source("model.pretrained", f"{words}, from the Hugging Face hub", path)


def _fetched(name: str, url: str, path: Path, progress: Progress | None) -> Path:
    fetch.fetch(name, url, path, progress)
    return path


def _load(backbone: Backbone, source: _Source, share: float) -> Loaded:
    """Read, fold what has another form, compare, copy."""
    tensors = read_tensors(source.file, source.setting)
    checksum = sha256_of(source.file)
    if source.file == installed_file(backbone.name):
        check_content(backbone.name, source.file, checksum)
    elif source.setting == "model.pretrained" and not checksum.startswith(fetch.checksum_in(source.file.name)):
        raise SettingError(
            f"model.pretrained: {source.file} is not what its name says: its SHA-256 is {checksum}. Remove it and try "
            f"again."
        )
    outline = outline_of(backbone)
    if backbone.name == "vgg16":
        _fold_biases(tensors, set(outline.complete))
    if backbone.name == "googlenet" and checksum.startswith(fetch.checksum_in(published_url("GoogLeNet_Weights"))):
        _fold_input_range(tensors)
    found = fit(tensors, outline)
    if fault(found, share) and (renamed := converted(backbone, tensors)):
        again = fit(renamed, outline)
        found = again if again.taken > found.taken else found
    if why := fault(found, share):
        raise _misfit(backbone.name, source, why)
    own = backbone.state_dict()
    backbone.load_state_dict({**own, **{outline.own[name]: value for name, value in found.values.items()}})
    return _told(backbone, source, checksum, found)


def _told(backbone: Backbone, source: _Source, checksum: str, found: Fit) -> Loaded:
    size, folded = source.file.stat().st_size, backbone.in_channels if found.folded else None
    counts = (found.how, found.taken, found.wanted, found.left, found.missing, folded)
    return Loaded(backbone.name, source.words, str(source.file), size, checksum, *counts)


def _fold_biases(tensors: dict[str, Tensor], wanted: set[str]) -> None:
    """Move the biases that our layers do not have into the running means of the batch norms behind them."""
    for name in [name for name in tensors if re.search(r"(^|\.)features\.\d+\.bias$", name)]:
        before, place, _ = name.rsplit(".", 2)
        mean = f"{before}.{int(place) + 1}.running_mean"
        is_there = mean in tensors and tensors[mean].shape == tensors[name].shape
        if f"features.{place}.bias" not in wanted and is_there:
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


def _misfit(name: str, source: _Source, why: str) -> SettingError:
    return SettingError(
        f"{source.setting}: the weights of {source.file} do not fit {name}: {why}. Use another backbone, or leave "
        f"{source.setting} out."
    )
