"""The proof of seamless prediction: what it finds where there are seams, and where there are none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor, nn

from pixelwise.core.config import Config, make_config
from pixelwise.core.errors import DataError, SettingError
from pixelwise.data.files.readers import read_image
from pixelwise.geometry.reach import Geometry
from pixelwise.models import SegNet, UNet
from pixelwise.prediction.predictor import Predictor
from pixelwise.prediction.verify import verify_seams


def settings(scale: float = 1.0) -> Config:
    return make_config(
        {
            "data": {
                "labels": "binary", "classes": ["background", "cell"], "colors": [[0, 0, 0], [250, 120, 10]],
                "values": [0, 255], "ignore": [], "channels": 1, "scale": scale, "normalization": "fixed",
                "mean": [0.5], "std": [0.25],
            },
            "model": {},
            "train": {"patch": [32, 32], "batch": 2, "epochs": 1, "steps_per_epoch": 2, "rate": 0.001},
            "augment": {},
            "loss": {},
        }
    )  # fmt: skip


def predictor(network: nn.Module, scale: float = 1.0, **keywords: Any) -> Predictor:
    return Predictor(network, settings(scale), engine="torch", **keywords)


def make_network(**keywords: Any) -> UNet:
    torch.manual_seed(0)
    network = UNet(1, 2, width=3, depth=2, **keywords)
    network(torch.randn(4, 1, 60, 60))
    return network.eval()


def save(path: Path, height: int = 130, width: int = 170, pages: int = 1) -> Path:
    stack = np.random.default_rng(0).integers(0, 256, (pages, height, width), dtype=np.uint8)
    tifffile.imwrite(path, stack, tile=(64, 64), photometric="minisblack", metadata={"axes": "ZYX"})
    return path


@pytest.mark.parametrize("tile", ["auto", 32])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_exact_networks_have_no_seams(padding: Any, tile: Any, tmp_path: Path) -> None:
    network = make_network(padding=padding)
    found = verify_seams(predictor(network), save(tmp_path / "x.tif"), tile)
    assert 0 <= found["max_relative_difference"] < 2e-6
    assert found["flipped_pixels"] == 0
    assert (found["whole"], found["height"], found["width"]) == (True, 130, 170)
    assert found["tiles"] == (5 * 6 if tile == 32 else 3 * 4)
    geometry = network.geometry
    assert (found["stride"], found["halo"], found["margin"]) == (geometry.stride, geometry.halo, geometry.margin)
    assert found["exact"] is True
    assert found["engine"] == "torch"


@pytest.mark.parametrize("scale", [0.5, 1.5])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_exact_networks_have_none_where_images_are_scaled(padding: Any, scale: float, tmp_path: Path) -> None:
    found = verify_seams(predictor(make_network(padding=padding), scale), save(tmp_path / "x.tif"))
    assert 0 <= found["max_relative_difference"] < 2e-6
    assert found["flipped_pixels"] == 0
    assert (found["whole"], found["height"], found["width"]) == (True, 130, 170)
    assert found["tiles"] >= 3 * 3


def test_a_margin_that_is_short_shows_where_images_are_scaled(tmp_path: Path) -> None:
    network = make_network()
    network.geometry = replace(network.geometry, margin=4, halo=4)
    found = verify_seams(predictor(network, 0.5), save(tmp_path / "x.tif"), 16)
    assert found["max_relative_difference"] > 10 * found["tolerance"]


def test_the_differences_are_those_of_the_logits(tmp_path: Path) -> None:
    network = make_network()
    right = predictor(network)
    network.geometry = replace(network.geometry, margin=4, halo=4)
    wrong = predictor(network, tile=32)
    found = verify_seams(wrong, save(tmp_path / "x.tif"), 32)
    image = read_image(tmp_path / "x.tif")[0]
    tiles, whole = wrong.logits(image), right.logits(image)
    assert found["max_abs_difference"] == pytest.approx(np.abs(tiles - whole).max(), rel=1e-5)
    relative = np.abs(tiles - whole).max() / np.abs(whole).max()
    assert found["max_relative_difference"] == pytest.approx(relative, rel=1e-5)
    assert found["max_relative_difference"] > 10 * found["tolerance"]
    flipped = tiles.argmax(0) != whole.argmax(0)
    clear = np.abs(whole[1] - whole[0]) > found["tolerance"] * np.abs(whole).max()
    assert found["flipped_pixels"] == (flipped & clear).sum() > 0
    assert found["near_ties"] == (flipped & ~clear).sum()


class Averaging(nn.Module):
    """Compares pixels with the mean of what it is given."""

    geometry = Geometry(stride=4, halo=0, margin=0, exact=False, reason="it averages over the image")

    def forward(self, images: Tensor) -> Tensor:
        apart = images - images.mean((2, 3), keepdim=True)
        return torch.cat([-apart, apart], 1)


def test_a_network_that_is_not_exact_says_how_far_it_is(tmp_path: Path) -> None:
    found = verify_seams(predictor(Averaging()), save(tmp_path / "x.tif"), 32)
    assert (found["exact"], found["reason"]) == (False, "it averages over the image")
    assert found["max_abs_difference"] > 1e-3


def test_one_class_has_no_ties(tmp_path: Path) -> None:
    found = verify_seams(predictor(UNet(1, 1, width=2, depth=1)), save(tmp_path / "x.tif"), 32)
    assert (found["flipped_pixels"], found["near_ties"]) == (0, 0)


def test_of_a_stack_the_first_page(tmp_path: Path) -> None:
    found = verify_seams(predictor(make_network()), save(tmp_path / "x.tif", 40, 50, pages=3), 16)
    assert (found["height"], found["width"], found["tiles"]) == (40, 50, 12)


def test_a_crop_where_the_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.tif", 700, 900)
    found = verify_seams(with_room(monkeypatch, 200_000), path, 64)
    assert found["whole"] is False
    assert found["height"] * found["width"] <= 200_000
    assert found["height"] == 444  # the root, on the stride
    assert found["flipped_pixels"] == 0
    with pytest.raises(DataError, match=r"of memory is not enough for a forward pass of any part of the image"):
        verify_seams(with_room(monkeypatch, 9), path, 64)


def with_room(monkeypatch: pytest.MonkeyPatch, pixels: int) -> Predictor:
    """A predictor that has memory for so many pixels."""
    made = predictor(make_network())
    monkeypatch.setattr("pixelwise.prediction.verify.held_bytes", lambda: made.memory.limit - pixels * 1000)
    monkeypatch.setattr("pixelwise.prediction.costs.Costs.bytes_per_pixel", 1000.0)
    return made


def test_images_and_tiles_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        verify_seams(predictor(make_network()), tmp_path / "no.tif")
    with pytest.raises(SettingError, match="tile: 6 is not a multiple of the network's stride 4"):
        verify_seams(predictor(make_network()), save(tmp_path / "x.tif"), 6)


def test_a_network_that_depends_on_rounding_is_exact_by_torch_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, path = SegNet(1, 2, width=2, depth=2).eval(), save(tmp_path / "x.tif")
    found = verify_seams(predictor(network), path)
    assert (found["exact"], found["flipped_pixels"]) == (True, 0)
    other = predictor(network)
    other.runner.engine.name = "openvino"  # whether its own rounding shows here differs from machine to machine
    found = verify_seams(other, path)
    assert not found["exact"]
    assert found["reason"] == (
        "it places values where maxima were, and openvino rounds differently from torch; use torch"
    )
