"""Views, blends and tiles of networks of every kind against one plain forward."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from pixelwise.core.errors import ModelError, SettingError
from pixelwise.core.windows import Window, reader
from pixelwise.engines import EngineChoice
from pixelwise.geometry.reach import Geometry
from pixelwise.models import UNet
from pixelwise.prediction import sizes as probing
from pixelwise.prediction.costs import Memory
from pixelwise.prediction.page import cut, planes_of
from pixelwise.prediction.predictor import ApproximateWarning, predict
from pixelwise.prediction.runner import assembled, logits_of, make_runner
from pixelwise.prediction.sizes import sizes_of
from pixelwise.prediction.views import VIEWS

SIDES = st.integers(1, 70)
PLENTY = Memory(10**15, 0)
TORCH = EngineChoice("torch")


def lively(**keywords: Any) -> UNet:
    """A small network in float64 and eval mode whose batch norm has seen something."""
    torch.manual_seed(0)
    network = UNet(1, 3, width=2, **keywords).double()
    network(torch.randn(4, 1, 60, 60).double())
    return network.eval()


def forward(network: nn.Module, image: np.ndarray) -> np.ndarray:
    """H x W -> K x h x w by one plain forward."""
    with torch.no_grad():
        return network(torch.from_numpy(np.ascontiguousarray(image))[None, None])[0].numpy()


def draw(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(height, width))


SAME = lively(depth=2)
VALID = lively(depth=2, padding="valid")


# Views


def literal_views(network: nn.Module, padded: np.ndarray, views: str) -> np.ndarray:
    """The mean over flips and quarter turns, each undone in the logits."""
    outputs = []
    for turns in range(4 if views == "turns" else 1):
        for axes in [(), (0,)] if views == "turns" else [(), (0,), (1,), (0, 1)]:
            seen = np.rot90(np.flip(padded, axes), turns)
            back = np.rot90(forward(network, seen), -turns, axes=(1, 2))
            outputs.append(np.flip(back, tuple(axis + 1 for axis in axes)))
    assert len(outputs) == VIEWS[views]
    return np.mean(outputs, axis=0)


@given(SIDES, SIDES, st.sampled_from(["flips", "turns"]), st.integers(1, 6))
@settings(deadline=None, max_examples=12)
def test_views_are_the_mean_over_the_turned_image(height: int, width: int, views: str, strides: int) -> None:
    image = draw(height, width)
    padded = np.pad(image, ((0, -height % 4), (0, -width % 4)), mode="edge")
    expected = literal_views(SAME, padded, views)[:, :height, :width]
    for tile in (None, 4 * strides):
        result = predict(SAME, image, tile, logits=True, views=views)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10)


@given(SIDES, SIDES, st.sampled_from(["flips", "turns"]), st.integers(1, 6))
@settings(deadline=None, max_examples=8)
def test_views_of_a_network_without_padding(height: int, width: int, views: str, strides: int) -> None:
    image, margin = draw(height, width), VALID.geometry.margin
    sides = [(margin, VALID.input_size(side) - side - margin) for side in (height, width)]
    expected = literal_views(VALID, np.pad(image, sides, mode="reflect"), views)[:, :height, :width]
    for tile in (None, 4 * strides):
        result = predict(VALID, image, tile, logits=True, views=views)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10)


def test_views_that_there_are_not() -> None:
    with pytest.raises(SettingError, match=r"views flip: is not a test-time augmentation; did you mean flips\?"):
        predict(SAME, draw(5, 5), views="flip")


# Networks that are not exact


class Pooled(nn.Module):
    """A convolution, and the mean of the whole image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 2, 3, padding=1).double()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.convolution(images)
        return maps + functional.adaptive_avg_pool2d(maps, 1)


def test_blended_tiles_of_global_pooling_come_near_with_a_warning() -> None:
    network, image = Pooled(), draw(100, 130)
    with pytest.warns(ApproximateWarning, match=r"Pooled: an output pixel depends on every .* overlap and are blended"):
        result = predict(network, image, tile=40, logits=True)
    away = np.abs(result - forward(network, image))
    assert np.isfinite(result).all()
    assert 1e-6 < away.max() < 0.3  # the means of 40 x 40 normal values are away from 0 by about 1 / 40
    np.testing.assert_allclose(predict(network, image, logits=True), forward(network, image), rtol=0, atol=1e-10)


# Modules without a geometry of their own


class Local(nn.Module):
    """Convolutions with zero padding: any size, and a border that only the image itself has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 5, padding=2)).double()

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Strided(nn.Module):
    """Pools by 2 and upsamples; with `crop` it takes odd sizes in a way of its own."""

    def __init__(self, crop: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.MaxPool2d(2, ceil_mode=crop), nn.Conv2d(3, 2, 3, padding=1),
            nn.Upsample(scale_factor=2),
        ).double()  # fmt: skip
        self.crop = crop

    def forward(self, images: Tensor) -> Tensor:
        logits = self.layers(images)
        return logits[..., : images.shape[2], : images.shape[3]] if self.crop else logits


LOCAL, CROPPING, EVEN = Local(), Strided(crop=True), Strided(crop=False)


def test_what_their_geometry_is() -> None:
    assert sizes_of(LOCAL, 1).any_size
    assert sizes_of(CROPPING, 1).any_size
    assert not sizes_of(EVEN, 1).any_size
    assert [sizes_of(network, 1).geometry.stride for network in (LOCAL, CROPPING, EVEN)] == [1, 2, 2]
    assert all(sizes_of(network, 1).geometry.exact for network in (LOCAL, CROPPING, EVEN))


@given(SIDES, SIDES, st.integers(1, 12), st.sampled_from([LOCAL, CROPPING]))
@settings(deadline=None, max_examples=30)
def test_tiles_of_a_module_that_takes_any_size(height: int, width: int, strides: int, network: nn.Module) -> None:
    image = draw(height, width)
    result = predict(network, image, tile=2 * strides, logits=True)
    np.testing.assert_allclose(result, forward(network, image), rtol=0, atol=1e-10)


def test_their_windows_end_with_the_image() -> None:
    tiling = make_runner(CROPPING, 1).tiler.choose((31, 33), 8, PLENTY)
    assert max(tile.window.y1 for tile in tiling.tiles) == 31
    assert max(tile.window.x1 for tile in tiling.tiles) == 33


@given(SIDES, SIDES, st.integers(1, 12))
@settings(deadline=None, max_examples=30)
def test_odd_sizes_are_padded_for_a_module_that_takes_even_ones(height: int, width: int, strides: int) -> None:
    image = draw(height, width)
    padded = np.pad(image, ((0, height % 2), (0, width % 2)), mode="edge")
    expected = forward(EVEN, padded)[:, :height, :width]
    for tile in (None, 2 * strides):
        np.testing.assert_allclose(predict(EVEN, image, tile, logits=True), expected, rtol=0, atol=1e-10)


@given(SIDES, SIDES, st.sampled_from(["flips", "turns"]), st.integers(1, 12))
@settings(deadline=None, max_examples=12)
def test_views_of_such_a_module_are_exact_too(height: int, width: int, views: str, strides: int) -> None:
    image = draw(height, width)
    padded = np.pad(image, ((0, height % 2), (0, width % 2)), mode="edge")
    expected = literal_views(CROPPING, padded, views)[:, :height, :width]
    for tile in (None, 2 * strides):
        result = predict(CROPPING, image, tile, logits=True, views=views)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10)


def test_a_module_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[nn.Module] = []
    probe = probing.probe_geometry

    def counting(network: nn.Module, channels: int) -> Any:
        calls.append(network)
        return probe(network, channels)

    monkeypatch.setattr(probing, "probe_geometry", counting)
    network, other = nn.Conv2d(1, 2, 1).double(), nn.Conv2d(1, 2, 1).double()
    for _ in range(3):
        predict(network, draw(20, 20), tile=8)
    predict(other, draw(20, 20), tile=8)
    assert calls == [network, other]
    predict(SAME, draw(20, 20), tile=8)  # states its own
    predict(Local(), draw(20, 20))  # a small image that is not cut needs no geometry
    assert calls == [network, other]


# What a run gives


class Cropped(nn.Module):
    geometry = Geometry(stride=1, halo=1, margin=1)

    def forward(self, images: Tensor) -> Tensor:
        return images[..., 1:-1, :]


@pytest.mark.parametrize("views", ["none", "turns"])
def test_a_module_that_gives_another_size_than_promised(views: str) -> None:
    runner = make_runner(Cropped(), 1, TORCH, views)
    message = (
        r"for windows of 2 x 1 x 12 x 9 the network returned logits of 2 x 1 x 10 x 9; they must be N x K x H x W, "
        r"here 2 x K x 12 x 9\."
    )
    with pytest.raises(ModelError, match=message):
        runner(np.zeros((2, 1, 12, 9), np.float32))


class Unchanged(UNet):
    """Says that it pads nothing, and keeps the size."""

    def forward(self, images: Tensor) -> Tensor:
        return images


def test_a_network_without_padding_that_breaks_its_word() -> None:
    network = Unchanged(1, 3, width=2, depth=2, padding="valid")
    side = network.input_size(8)
    with pytest.raises(ModelError, match=f"here 1 x K x {network.output_size(side)} x {network.output_size(side)}"):
        make_runner(network, 1, TORCH)(np.zeros((1, 1, side, side), np.float32))


class TwoOutputs(nn.Module):
    """A network under a name of its own, and a map that is not linear in its logits."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network, self.geometry = network, network.geometry

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits = self.network(images)
        return {"logits": logits, "depth": logits[:, :2].square().sum(1, keepdim=True)}


@pytest.mark.parametrize("views", ["none", "flips"])
@pytest.mark.parametrize("scale", [1.0, 0.5, 1.5])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_each_of_several_outputs_is_what_it_is_alone(norm: str, scale: float, views: str) -> None:
    """By tiles, blended where the network is not exact, of views, and scaled."""

    class Alone(TwoOutputs):
        def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(images)["depth"]

    network, image = lively(depth=2, norm=norm).float(), draw(50, 61)[..., None].astype(np.float32)
    several, alone, plain = (
        make_runner(one, 1, TORCH, views, scale) for one in (TwoOutputs(network), Alone(network), network)
    )
    tiling = several.tiler.cut((50, 61), 16)
    assert bool(tiling.overlap) is (norm == "group")
    results = [
        list(runner.run(lambda tile: planes_of(cut(reader(image), tiling, tile)), tiling))
        for runner in (several, alone, plain)
    ]
    for (tile, both), (_, depth), (_, logits) in zip(*results, strict=True):
        assert list(both) == ["logits", "depth"]
        assert both["depth"].shape == (1, tile.owned.height, tile.owned.width)
        np.testing.assert_array_equal(both["depth"], depth["logits"])
        np.testing.assert_array_equal(both["logits"], logits["logits"])


def test_classes_come_from_the_logits_among_several_outputs() -> None:
    image = draw(30, 40)
    np.testing.assert_array_equal(predict(TwoOutputs(SAME), image, tile=8), predict(SAME, image))
    with pytest.raises(
        ModelError, match=r'^the network returned out, aux, but classes come from "logits"\. Wrap it in a'
    ):
        logits_of({"out": image, "aux": image})


def test_tiles_come_in_order_with_what_they_own() -> None:
    runner, image = make_runner(SAME, 1), draw(30, 40)[..., None]
    tiling = runner.tiler.choose((30, 40), 12, PLENTY)
    parts = list(runner.run(lambda tile: planes_of(cut(reader(image), tiling, tile)), tiling))
    assert [tile for tile, _ in parts] == list(tiling.tiles)
    assert all(out["logits"].shape == (3, tile.owned.height, tile.owned.width) for tile, out in parts)


def test_parts_are_put_together() -> None:
    image = np.random.default_rng(0).normal(size=(2, 3, 10, 12))
    windows = [Window(0, 4, 0, 12), Window(4, 10, 0, 5), Window(4, 10, 5, 12)]
    np.testing.assert_array_equal(assembled(((one, image[..., *one.slices]) for one in windows), 10, 12), image)
    whole = assembled([(Window.whole(10, 12), image[:, ::-1])], 10, 12)
    np.testing.assert_array_equal(whole, image[:, ::-1])
    assert whole.flags.c_contiguous
