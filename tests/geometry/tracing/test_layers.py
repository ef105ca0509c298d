"""The table of layers against numbers worked out by hand, torchvision's networks, and what each pixel really sees."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from pixelwise.core.errors import ModelError
from pixelwise.geometry.tracing import Layer, Totals, totals, trace_layers
from pixelwise.layers import MaxPoolPositions
from pixelwise.models import UNet

NETWORKS: dict[str, tuple[int, int]] = {  # parameters, and multiply-adds at 224 x 224 as torchvision publishes them
    "alexnet": (61_100_840, 714_188_480),
    "vgg16": (138_357_544, 15_470_264_320),
    "resnet50": (25_557_032, 4_089_184_256),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_totals_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        network = getattr(torchvision.models, name)()
    assert totals(network, trace_layers(network, 3, 224, 224, stride=32)) == Totals(*NETWORKS[name])


def test_rows_stand_in_the_order_of_execution() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 5, padding=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ConvTranspose2d(8, 4, 2, stride=2),
    )  # fmt: skip
    assert trace_layers(network, 3, 32, 48, stride=2) == [
        Layer("0", "Conv2d", (8, 32, 48), 600, 600 * 32 * 48, 5, 1),
        Layer("1", "BatchNorm2d", (8, 32, 48), 16, 0, 5, 1),
        Layer("2", "ReLU", (8, 32, 48), 0, 0, 5, 1),
        Layer("3", "MaxPool2d", (8, 16, 24), 0, 0, 6, 2),
        Layer("4", "Conv2d", (8, 16, 24), 80, 72 * 16 * 24, 10, 2),
        Layer("5", "ConvTranspose2d", (4, 32, 48), 132, 8 * 4 * 4 * 16 * 24, 10, 1),
    ]


class Own(nn.Module):
    """Weights of its own beside a module; one of its modules runs twice, another never."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2, 1, 1))
        self.inside, self.unused, self.pool = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2, 9), MaxPoolPositions()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        values, positions = self.pool(F.conv2d(self.inside(self.inside(images)), self.weight))
        return values * values.mean((2, 3), keepdim=True), positions


def test_weights_of_a_module_with_others_and_modules_that_run_twice() -> None:
    network = Own()
    layers = trace_layers(network, 2, 8, 8, stride=2)
    assert layers == [
        Layer("inside", "Conv2d", (2, 8, 8), 38, 36 * 64, 3, 1),
        Layer("inside", "Conv2d", (2, 8, 8), 38, 36 * 64, 5, 1),
        Layer("pool", "MaxPoolPositions", (2, 4, 4), 0, 0, 6, 2),
        Layer("", "Own", (2, 4, 4), 4, 4 * 64, None, None),
    ]
    assert totals(network, layers) == Totals(4 + 38 + 27, 76 * 64)


def test_dense_layers_and_what_sees_everything() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    layers = trace_layers(network, 3, 20, 30, stride=1)
    assert [(layer.shape, layer.multiply_adds, layer.receptive_field) for layer in layers] == [
        ((4, 18, 28), 27 * 4 * 18 * 28, 3), ((4, 1, 1), 0, None), ((4,), 0, None), ((10,), 40, None),
    ]  # fmt: skip


def test_more_cells_than_pixels_have_no_stride() -> None:
    (layer,) = trace_layers(nn.Upsample(scale_factor=2), 1, 4, 4, stride=1)
    assert (layer.shape, layer.receptive_field, layer.stride) == ((1, 8, 8), 1, None)


def test_nested_modules_stand_after_what_they_hold() -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()))
    layers = trace_layers(network, 1, 4, 4, stride=1, nested=True)
    assert [(layer.name, layer.multiply_adds) for layer in layers] == [("0.0", 16), ("0.1", 0), ("0", 0), ("", 0)]


def test_the_last_layer_of_a_network_sees_what_its_geometry_says() -> None:
    network = UNet(1, 2, width=2, depth=2)
    layers = trace_layers(network, 1, 50, 70, network.geometry.stride)
    assert layers[-1].shape == (2, 52, 72)  # padded to the stride
    reached = 0
    image = torch.zeros(1, 1, 96, 96, dtype=torch.float64)
    image[..., 48, 48] = torch.nan
    changed = network.double().eval()(image).isnan().any(dim=1)[0].any(dim=1).nonzero()
    reached = int(changed.max() - changed.min()) + 1
    assert reached <= layers[-1].receptive_field
    assert layers[-1].receptive_field <= 2 * network.geometry.halo + 1


def test_hooks_are_taken_away_and_errors_pass() -> None:
    network: Any = UNet(3, 2, width=2, depth=1)
    with pytest.raises(ModelError, match="this network takes N x 3 x H x W images"):
        trace_layers(network, 1, 8, 8, stride=2)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
