"""Which images a network takes: one of the toolkit says so, any other module is probed."""

from weakref import WeakKeyDictionary

from torch import nn

from pixelwise.geometry.probing import Probed, probe_geometry
from pixelwise.geometry.reach import Geometry
from pixelwise.geometry.sizes import Sizes
from pixelwise.models import Segmenter

_PROBED: WeakKeyDictionary[nn.Module, Probed] = WeakKeyDictionary()


def sizes_of(network: nn.Module, channels: int) -> Sizes:
    """The images that a network takes; a module is probed once.

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
    if network not in _PROBED:
        _PROBED[network] = probe_geometry(network, channels)
    probed = _PROBED[network]
    return Sizes(channels, probed.geometry, probed.any_size)
