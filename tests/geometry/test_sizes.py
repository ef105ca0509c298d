"""The sides that a network takes and gives, against what networks say and do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelwise.geometry.reach import Geometry
from pixelwise.geometry.sizes import Sizes
from pixelwise.models import UNet

VALID = UNet(1, 2, width=1, depth=2, padding="valid")


def unpadded() -> Sizes:
    return Sizes(1, VALID.geometry, lost=VALID.geometry.margin, smallest=VALID.input_size(1))


@given(st.integers(1, 3000))
def test_a_network_without_padding_takes_what_it_says(side: int) -> None:
    sizes = unpadded()
    assert sizes.input_size(side) == VALID.input_size(side)
    assert sizes.output_size(sizes.input_size(side)) == VALID.output_size(VALID.input_size(side))
    assert not sizes.keeps_size


@given(st.integers(1, 3000), st.sampled_from([1, 2, 3, 16]))
def test_a_network_that_pads_takes_multiples_of_its_stride(side: int, stride: int) -> None:
    sizes = Sizes(3, Geometry(stride, halo=9, margin=9))
    assert sizes.input_size(side) % stride == 0
    assert 0 <= sizes.input_size(side) - side < stride
    assert sizes.output_size(side) == side
    assert sizes.keeps_size


@pytest.mark.parametrize("side", [1, 15, 16, 17])
def test_a_network_that_takes_any_size(side: int) -> None:
    sizes = Sizes(3, Geometry(16, halo=9, margin=9), any_size=True)
    assert (sizes.step, sizes.input_size(side), sizes.output_size(side)) == (1, side, side)
