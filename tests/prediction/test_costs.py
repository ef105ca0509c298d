"""What windows cost: as measured on small networks, and as it adds up."""

import numpy as np
import pytest
import torch
from torch import nn

from pixelwise.engines import Arrays, EngineChoice
from pixelwise.geometry.reach import Geometry
from pixelwise.geometry.sizes import Sizes
from pixelwise.models import UNet
from pixelwise.prediction import costs
from pixelwise.prediction.costs import Costs, Memory, largest_map, small_images
from pixelwise.prediction.runner import make_runner
from pixelwise.prediction.tiling import plan_tiles


class Constant:
    """Gives two outputs, of 2 channels in float32 and of 1 in float64."""

    name, device, note = "constant", "cpu", ""

    def __call__(self, images: np.ndarray) -> Arrays:
        shape = images.shape[2:]
        return {"logits": np.zeros((len(images), 2, *shape), np.float32), "depth": np.zeros((len(images), 1, *shape))}


def make_costs(runs: int = 1, scale: float = 1.0) -> Costs:
    return Costs(Constant(), Sizes(1, Geometry(8, 20, 13)), np.dtype(np.float32), 4.0, runs, scale)


def test_what_an_engine_keeps_counts_once() -> None:
    made = make_costs()
    made.__dict__["bytes_per_pixel"] = 1000.0  # as if it were measured
    memory = Memory(limit=1000 + costs.FIXED_BYTES + 1000 * 50**2, held=1000)
    assert made.room(memory) == 50 * 50
    assert made.room(memory.less(1000 * 100)) == 50 * 50 - 100
    assert made.room(memory.less(10**9)) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_what_a_pixel_costs_is_measured_in_the_type_of_the_network(
    padding: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "PROBE_SIDE", 64)
    network = UNet(1, 3, width=2, depth=2, padding=padding).to(dtype)
    made = make_runner(network, 1, EngineChoice("torch")).costs
    waiting = dtype.itemsize * costs.WAITING * (1 + 3)
    assert made.bytes_per_pixel >= waiting + 2.2 * dtype.itemsize * 2  # two maps of 2 channels at least
    assert made.seconds_per_pixel > 0


def test_every_output_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "PROBE_SIDE", 64)
    monkeypatch.setattr(costs, "growth", lambda work: 0)
    outputs = 2 * 4 + 8
    assert make_costs().bytes_per_pixel == pytest.approx(1.1 * 2 * 4 + costs.WAITING * (4 + outputs))
    assert make_costs(runs=4).bytes_per_pixel == pytest.approx(1.1 * 2 * 4 + (costs.WAITING + 1) * (4 + outputs))
    assert make_costs(scale=0.25).bytes_scaled_back == costs.SCALED_BACK * outputs * 16
    assert make_costs().bytes_scaled_back == 0


def test_the_cost_of_a_tiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "SAFE_MAPS", 10)
    made, tiling = make_costs(), plan_tiles((100, 100), None, 8, 13)
    assert made.cost(tiling) == costs.FIXED_BYTES + 10 * 4 * 104**2  # a map of 4 bytes
    made.__dict__["bytes_per_pixel"] = 1000.0
    assert made.cost(tiling) == costs.FIXED_BYTES + 1000 * 104**2


def test_what_surely_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "SAFE_MAPS", 10)
    made, memory = make_costs(), Memory(costs.FIXED_BYTES + 40 * 100 + 7, held=7)
    assert made.surely_fits(100, memory)
    assert not made.surely_fits(101, memory)


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        (Sizes(1, Geometry(8, 9, 9)), 16),
        (Sizes(1, Geometry(8, 9, 9), any_size=True), 16),
        (Sizes(1, Geometry(4, 9, 8), lost=8, smallest=20), 20),
    ],
)
def test_small_images(sizes: Sizes, side: int) -> None:
    assert small_images(sizes, np.dtype(np.float64)).shape == (1, 1, side, side)


def test_the_largest_map_of_a_network() -> None:
    network = nn.Sequential(nn.Conv2d(1, 7, 1), nn.MaxPool2d(2), nn.Conv2d(7, 40, 1)).train()
    images = np.zeros((1, 1, 8, 6), np.float32)
    assert largest_map(network, images) == 40  # 40 of 4 bytes at a quarter of the pixels: more than 7 of 4 bytes
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())
