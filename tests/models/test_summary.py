"""Figures of the networks against those of networks that are really built; how they are told."""

from typing import Any

import pytest
import torch

from pixelwise.core.errors import ModelError, SettingError
from pixelwise.models import MODELS, UNet, build
from pixelwise.models.summary import describe, describe_all, summarize, summarize_all, summarize_network


@pytest.fixture(scope="module")
def every() -> Any:
    return summarize_all()


def test_every_network_is_summed_up(every: Any) -> None:
    assert [found.name for found in every] == list(MODELS)
    for found in every:
        assert found.parameters == sum(layer.parameters for layer in {one.name: one for one in found.layers}.values())
        assert found.multiply_adds > 10**9
        assert found.geometry.exact == (not found.geometry.reason)


def test_the_paper_has_as_many_parameters() -> None:
    """Ronneberger et al. 2015, with biases, one channel and two classes."""
    found = summarize("unet", {"padding": "valid", "dropout": 0.5}, in_channels=1, size=572)
    assert found.parameters == 31_030_658
    assert found.layers[-1].shape == (2, 388, 388)


def test_settings_count_and_nothing_is_built() -> None:
    found = summarize("unet", {"width": 4, "depth": 2, "norm": "group"}, in_channels=2, num_classes=5, size=64)
    network = build("unet", in_channels=2, num_classes=5, width=4, depth=2, norm="group")
    assert found.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert found == summarize_network("unet", network, 2, 64)
    assert found.geometry == network.geometry
    assert found.layers[-1].shape == (5, 64, 64)
    assert found.totals() == {
        "name": "unet", "parameters": found.parameters, "multiply_adds": found.multiply_adds, "stride": 4,
        "halo": found.geometry.halo, "margin": found.geometry.margin, "exact": False, "reason": found.geometry.reason,
    }  # fmt: skip
    assert found.to_json()["layers"][0]["shape"] == (4, 64, 64)


def test_what_only_a_training_wants_does_not_count() -> None:
    settings = {"width": 2, "depth": 1}
    assert summarize("unet", settings | {"pretrained": True}, size=8) == summarize("unet", settings, size=8)


def test_multiply_adds_are_those_of_torch() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    network = UNet(3, 2, width=4, depth=3).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 64, 64))
    assert summarize_network("unet", network, 3, 64).multiply_adds == counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("unt", {}, "model.name: unknown network 'unt'; did you mean unet?"),
        ("unet", {"width": "x"}, "model.width = 'x': input should be a valid integer"),
        ("unet", {"widht": 3}, "model.widht is not a setting; did you mean width or weights?"),
        ("unet", {"depth": 0}, "model.depth"),
        ("unet", {"output_stride": 8}, "model.output_stride: unet has no such setting"),
    ],
)
def test_bad_settings(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        summarize(name, settings)
    assert message in str(caught.value)


def test_a_size_that_is_not_taken() -> None:
    with pytest.raises(ModelError, match="cannot take a side of 512 pixels: use 508 or 524"):
        summarize("unet", {"padding": "valid", "width": 2})


def test_the_tables_are_aligned() -> None:
    found = summarize("unet", {"width": 2, "depth": 1, "norm": "group"}, size=8)
    assert describe_all([found]) == [
        "network  parameters  multiply-adds  stride  halo  margin  exact",
        "unet            486         16,896       2     9       8     no",
        "",
        "unet: group norm averages over the image: an output pixel depends on every input pixel",
    ]
    lines = describe(found)
    assert lines[:2] == [
        "layer              kind             shape      parameters  multiply-adds  receptive field  stride",
        "contracting.0.0.0  Conv2d           2 x 8 x 8          54          3,456                3       1",
    ]
    assert lines[2] == "contracting.0.0.1  GroupNorm        2 x 8 x 8           4              0"
    assert lines[-5:] == ["", *describe_all([found])]
