"""Which images a network takes: the toolkit's own networks say so, other modules are probed."""

from collections.abc import Hashable
from weakref import WeakKeyDictionary

from torch import nn

from pixelwise.geometry.probing import Probed, probe_geometry
from pixelwise.geometry.reach import Geometry
from pixelwise.geometry.sizes import Sizes
from pixelwise.models import Segmenter
from pixelwise.prediction.state import form_of

_PROBED: WeakKeyDictionary[nn.Module, tuple[Hashable, Probed]] = WeakKeyDictionary()


def sizes_of(network: nn.Module, channels: int) -> Sizes:
    """The images that a network takes; a module is probed once, and again when its parts have changed.

    A module of a user that states a `geometry` is believed; it must keep the size of the image.

    Raises:
        ModelError: the module does not keep the image's size, or does not run at all.
    """
    if isinstance(network, Segmenter):
        smallest = network.input_size(1)
        lost = (smallest - network.output_size(smallest)) // 2
        return Sizes(channels, network.geometry, lost=lost, smallest=smallest if lost else None)
    stated = getattr(network, "geometry", None)
    if isinstance(stated, Geometry):
        return Sizes(channels, stated)
    form = form_of(network)
    if network not in _PROBED or _PROBED[network][0] != form:
        _PROBED[network] = form, probe_geometry(network, channels)
    probed = _PROBED[network][1]
    return Sizes(channels, probed.geometry, probed.any_size)
