"""The tensors of a backbone as its published files name them, in the order of the whole network."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pixelwise.backbones.base import Backbone
from pixelwise.backbones.factory import OWN, make_backbone
from pixelwise.backbones.fitting import Outline, flat

EXTRACTORS = ("", "model.", "body.")
"""What timm's extractors of features put before the names of a network's layers."""


def outline_of(backbone: Backbone) -> Outline:
    """The names, order and shapes by which a file is compared with a backbone.

    The whole network is built once more, without memory and for one channel more: weights that then have another shape
    are those of first layers.
    """
    complete = _complete(backbone)
    state = backbone.state_dict()
    own = {name: name for name in state} if backbone.name in OWN else _published_names(list(state), complete)
    shapes = {name: state[inside].shape for name, inside in own.items()}
    stems = frozenset(name for name in own if name in complete and shapes[name] != complete[name])
    foldable = {name for name in stems if len(shapes[name]) == 4 and shapes[name][1] == backbone.in_channels}
    return Outline(own, shapes, complete, stems, frozenset(foldable))


def _complete(backbone: Backbone) -> dict[str, torch.Size]:
    """Shapes of the whole network but its classifier."""
    channels = backbone.in_channels + 1
    if backbone.name in OWN:
        width = getattr(backbone, "width", None)
        with torch.device("meta"):
            state = make_backbone(backbone.name, channels, width=width, norm=backbone.norm).state_dict()
        return {name: value.shape for name, value in state.items()}
    network = _network_of_timm(backbone.name, channels)
    classifier = network.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    state = network.state_dict()
    return {name: value.shape for name, value in state.items() if name.rpartition(".")[0] not in heads}


def _network_of_timm(name: str, channels: int) -> Any:
    """timm's whole network, without memory."""
    import timm

    with torch.device("meta"):
        return timm.create_model(name, in_chans=channels)


def _published_names(inside: list[str], complete: Mapping[str, Any]) -> dict[str, str]:
    """Published name -> the name in an extractor of timm; a layer of a name of its own keeps that."""
    published = {flat(name): name for name in complete}
    bare = {name: name.removeprefix("network.") for name in inside}

    def named(before: str) -> dict[str, str]:
        found = {name: flat(short.removeprefix(before)) for name, short in bare.items()}
        return {published.get(key, bare[name]): name for name, key in found.items()}

    return max((named(before) for before in EXTRACTORS), key=lambda names: len(names.keys() & complete.keys()))


def converted(backbone: Backbone, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors as timm renames those of the authors' own files; None if it has no way to."""
    if backbone.name in OWN:
        return None
    network = _network_of_timm(backbone.name, 3)
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        found = convert(dict(tensors), network) if convert else None
    except Exception:  # it meets names that it does not expect
        return None
    return found if isinstance(found, dict) and all(isinstance(value, Tensor) for value in found.values()) else None
