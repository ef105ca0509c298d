"""Another normalisation in a network from another library."""

from torch import nn

from pixelwise.core.errors import SettingError
from pixelwise.layers import NORMS


def replace_batch_norms(network: nn.Module, name: str, norm: str) -> None:
    """Replace the network's batch norms by `norm`; "batch" leaves it as it is.

    The new norms keep the initial scales and shifts of the old ones, since some networks start a branch at zero. An
    activation inside a batch norm of timm is kept, too.

    Args:
        network: changed in place.
        name: of the backbone, for the message.
        norm: "batch" or "group".

    Raises:
        SettingError: the norm is "none", or the network has no batch norm to replace.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> replace_batch_norms(network, "example", "group")
    >>> network[1].num_groups, network[1].num_channels
    (8, 8)
    """
    if norm == "batch":
        return
    if norm == "none":
        raise SettingError(
            f"model.norm: {name} cannot train without a normalisation, which keeps its sums and branches in range: "
            f'use "batch" or "group", or one of lenet, alexnet, alexnet_paper and vgg16.'
        )
    found = [place for place, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if not found:
        raise SettingError(
            f'model.norm: {name} has no batch norm that group norm could replace: use "batch", which leaves it as it '
            f"is."
        )
    for place in found:
        parent, _, child = place.rpartition(".")
        setattr(network.get_submodule(parent), child, _group_norm(network.get_submodule(place)))


def _group_norm(old: nn.Module) -> nn.Module:
    """A group norm that replaces a batch norm, with what timm puts into it."""
    assert isinstance(old, nn.BatchNorm2d)
    new = NORMS["group"](old.num_features).to(old.running_mean.device if old.running_mean is not None else None)
    if old.affine:
        new.load_state_dict({"weight": old.weight, "bias": old.bias})
    extras = [getattr(old, part) for part in ("drop", "act") if hasattr(old, part)]
    return nn.Sequential(new, *extras) if extras else new
