import pytest
from torch import nn

from pixelwise.geometry.modes import evaluation_mode


def test_every_part_gets_its_own_mode_back() -> None:
    frozen = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2).eval())
    other = nn.Dropout().eval()
    with evaluation_mode(frozen, other):
        assert not any(part.training for part in [*frozen.modules(), other])
    assert [part.training for part in frozen.modules()] == [True, True, False]
    assert not other.training


def test_the_modes_come_back_after_an_error() -> None:
    network = nn.Dropout()
    with pytest.raises(ValueError, match="inside"), evaluation_mode(network):
        raise ValueError("inside")
    assert network.training
