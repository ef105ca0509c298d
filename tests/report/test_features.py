"""The picture of features: which layers, which part of the image, and what the network really made of it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from networks import make_settings
from pixelwise.core.errors import SettingError
from pixelwise.geometry.tracing import Layer, trace_layers
from pixelwise.models import UNet
from pixelwise.prediction.predictor import Predictor
from pixelwise.report.features import choose_layers, draw_features, look, mosaic, strongest


def make_predictor(channels: int = 1, **keywords: Any) -> Predictor:
    torch.manual_seed(0)
    network = UNet(channels, 2, width=4, depth=2, **keywords)
    return Predictor(network.eval(), make_settings(channels), engine="torch")


def save(path: Path, height: int, width: int, channels: int = 1) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path)
    return pixels


def opened(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


@pytest.mark.parametrize(("channels", "keywords"), [(1, {}), (3, {}), (3, {"stem": 2}), (1, {"padding": "valid"})])
def test_a_picture_is_drawn(tmp_path: Path, channels: int, keywords: dict[str, Any]) -> None:
    save(tmp_path / "x.png", 80, 72, channels)
    picture, features = draw_features(make_predictor(channels, **keywords), tmp_path / "x.png", [], "unet")
    names = [one.name for one in features]
    assert names == ["contracting.0", "contracting.1", "contracting.2", "expanding.0", "head"]
    image = opened(picture)
    assert image.shape[1] == 1650
    assert (image[0] == 255).all()
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 200


def test_the_maps_are_what_the_network_makes_of_the_normalised_image(tmp_path: Path) -> None:
    pixels = save(tmp_path / "x.png", 40, 48)
    predictor = make_predictor()
    _, (head, first) = draw_features(predictor, tmp_path / "x.png", ["head", "contracting.0.0.0"], "unet")
    images = torch.from_numpy((pixels[..., 0] / 255 - 0.5) / 0.25).float()[None, None]
    with torch.no_grad():
        np.testing.assert_allclose(head.maps, predictor.network(images)[0], atol=1e-5)
        convolved = predictor.network.get_submodule("contracting.0.0.0")(images)
    np.testing.assert_allclose(first.maps, convolved[0], atol=1e-5)
    assert (head.kind, head.maps.shape, first.maps.shape) == ("Conv2d", (2, 40, 48), (4, 40, 48))


def test_of_a_large_image_the_middle_is_shown(tmp_path: Path) -> None:
    pixels = save(tmp_path / "x.png", 520, 700)
    predictor = make_predictor()
    _, (head,) = draw_features(predictor, tmp_path / "x.png", ["head"], "unet")
    assert head.maps.shape == (2, 512, 512)
    images = torch.from_numpy((pixels[4:516, 94:606, 0] / 255 - 0.5) / 0.25).float()[None, None]
    with torch.no_grad():
        np.testing.assert_allclose(head.maps, predictor.network(images)[0], atol=1e-5)


def test_unknown_layers_and_layers_without_a_map(tmp_path: Path) -> None:
    save(tmp_path / "x.png", 20, 20)
    predictor = make_predictor()
    with pytest.raises(SettingError, match=r"^--layer haed: there is no such layer in the network; did you mean head"):
        draw_features(predictor, tmp_path / "x.png", ["haed"], "unet")
    with pytest.raises(
        SettingError, match=r"^--layer q: there is no such layer in the network; choose from: .*, \.\.\.$"
    ):
        draw_features(predictor, tmp_path / "x.png", ["q"], "unet")
    with pytest.raises(SettingError, match=r"^--layer up: does not run; choose a layer that returns a map"):
        draw_features(predictor, tmp_path / "x.png", ["up"], "unet")
    dense = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(SettingError, match=r"^--layer 1: returns values of 1 x 3; choose"):
        look(dense, torch.zeros(1, 1, 2, 2), ["1"])
    assert not any(module._forward_hooks for module in dense.modules())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.inside = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.inside(self.act(images - 1)) - 1)


def test_the_first_of_several_runs_counts_and_what_writes_into_a_map_comes_too_late() -> None:
    act, inside = look(Twice(), torch.full((1, 1, 2, 2), 1.5), ["act", "inside"])
    assert act.maps.tolist() == inside.maps.tolist() == [[[0.5, 0.5], [0.5, 0.5]]]


def layer(name: str, *shape: int, kind: str = "ReLU") -> Layer:
    return Layer(name, kind, shape, 0, 0, None, None)


def test_layers_are_chosen_over_the_depth() -> None:
    sides = [2**place for place in range(5, 12)] * 3
    chosen = choose_layers([layer(str(place), 4, side, side) for place, side in enumerate(sides)])
    assert (len(chosen), chosen[0], chosen[-1]) == (9, "0", "20")


def test_what_is_small_silent_or_no_map_is_not_chosen() -> None:
    layers = [
        layer("a", 4, 16, 16),
        layer("b", 4, 16, 16, kind="Dropout"),
        layer("c", 4, 1, 1),
        layer("d", 9),
        layer("", 2, 9, 9),
    ]
    assert choose_layers(layers) == ["a"]


def test_without_resolutions_any_layers_are_chosen() -> None:
    assert choose_layers([layer("a", 4, 16, 16), layer("b", 4, 16, 16), layer("c", 2, 8, 8)]) == ["a", "b", "c"]


def test_small_maps_are_chosen_where_there_is_nothing_else() -> None:
    assert choose_layers([layer("a", 4, 2, 2), layer("b", 4, 1, 1)]) == ["a", "b"]


def test_every_network_has_layers_to_choose() -> None:
    network = UNet(1, 2, width=2, depth=1)
    assert choose_layers(trace_layers(network, 1, 32, 32, 2, nested=True)) == ["contracting.0", "contracting.1", "head"]


def test_constant_and_broken_maps_are_drawn() -> None:
    maps = np.stack([np.zeros((3, 3)), np.full((3, 3), np.nan), np.eye(3)])
    np.testing.assert_array_equal(strongest(maps, 1), maps[2:])


def test_small_pictures_are_magnified() -> None:
    sheet = mosaic([np.full((3, 3, 3), value, np.uint8) for value in range(2)], gap_share=0.15)
    assert sheet.shape == (66, 8 * 66 + 7 * 10, 3)
    assert (sheet[:, :66] == 0).all()
    assert (sheet[:, 66:76] == 255).all()
    assert (sheet[:, 76:142] == 1).all()
