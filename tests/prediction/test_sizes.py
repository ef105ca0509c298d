"""What networks take: those of the toolkit as they say, others as probed."""

from typing import Any

import pytest
from torch import Tensor, nn

from pixelwise.geometry.reach import Geometry
from pixelwise.geometry.sizes import Sizes
from pixelwise.models import UNet
from pixelwise.prediction import sizes
from pixelwise.prediction.sizes import sizes_of


def test_a_network_of_the_toolkit_says_it() -> None:
    padded, unpadded = UNet(3, 2, width=1, depth=2), UNet(3, 2, width=1, depth=2, padding="valid")
    assert sizes_of(padded, 3) == Sizes(3, padded.geometry)
    found = sizes_of(unpadded, 3)
    assert found == Sizes(3, unpadded.geometry, lost=unpadded.geometry.margin, smallest=unpadded.input_size(1))
    for side in (1, 7, 60):
        assert found.input_size(side) == unpadded.input_size(side)
        assert found.output_size(found.input_size(side)) == unpadded.output_size(unpadded.input_size(side))


class Stating(nn.Module):
    geometry = Geometry(stride=4, halo=2, margin=1)
    padding = "valid"  # which means something of its own to it

    def forward(self, images: Tensor) -> Tensor:
        return images


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The modules that were probed."""
    calls: list[nn.Module] = []
    probe = sizes.probe_geometry

    def counting(network: nn.Module, channels: int) -> Any:
        calls.append(network)
        return probe(network, channels)

    monkeypatch.setattr(sizes, "probe_geometry", counting)
    return calls


def test_a_module_that_states_its_geometry_is_believed(probed: list[nn.Module]) -> None:
    assert sizes_of(Stating(), 2) == Sizes(2, Stating.geometry)
    assert probed == []


def test_any_other_module_is_probed_once(probed: list[nn.Module]) -> None:
    network, other = nn.Conv2d(1, 2, 3, padding=1), nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2))
    for _ in range(2):
        assert sizes_of(network, 1) == Sizes(1, Geometry(stride=1, halo=1, margin=1), any_size=True)
    assert sizes_of(other, 1) == Sizes(1, Geometry(stride=2, halo=1, margin=0))
    assert probed == [network, other]
    network.weight.data *= 2  # other values see as far
    assert sizes_of(network.eval(), 1).geometry.halo == 1
    assert probed == [network, other]


def test_a_module_whose_parts_have_changed_is_probed_again(probed: list[nn.Module]) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1))
    assert sizes_of(network, 1).geometry.halo == 1
    network[0] = nn.Conv2d(1, 2, 7, padding=3)
    assert sizes_of(network, 1).geometry.halo == 3
    assert probed == [network, network]
