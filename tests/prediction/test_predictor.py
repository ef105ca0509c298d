"""Prediction: tiles give what the whole image gives, images come back at their size."""

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from networks import Brightness, make_settings
from pixelwise.core.errors import DataError, ModelError, SettingError
from pixelwise.geometry.reach import Geometry
from pixelwise.models import UNet
from pixelwise.prediction import costs, tiler
from pixelwise.prediction.predictor import ApproximateWarning, Predictor, predict

SIDES = st.integers(1, 110)


def make_network(**keywords: Any) -> UNet:
    """A small network in float64 and eval mode whose batch norm has seen something."""
    torch.manual_seed(0)
    network = UNet(1, 3, width=3, depth=2, **keywords).double()
    network(torch.randn(4, 1, 60, 60).double())
    return network.eval()


def make_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(height, width))


def whole(network: nn.Module, image: np.ndarray) -> np.ndarray:
    """K x H x W: one plain forward."""
    with torch.no_grad():
        return network(torch.from_numpy(image)[None, None])[0].numpy()


SAME = {"plain": make_network(), "stem": make_network(stem=2), "residual": make_network(residual=True)}
VALID = make_network(padding="valid")


@given(st.sampled_from(sorted(SAME)), SIDES, SIDES, st.integers(1, 6))
@settings(deadline=None, max_examples=20)
def test_tiles_give_what_the_whole_image_gives(name: str, height: int, width: int, strides: int) -> None:
    network, image = SAME[name], make_image(height, width)
    tiled = predict(network, image, tile=strides * network.geometry.stride, logits=True)
    np.testing.assert_allclose(tiled, whole(network, image), rtol=0, atol=1e-10)


def test_without_the_margin_they_would_not() -> None:
    network, image = make_network(), make_image(64, 64)
    network.geometry = replace(network.geometry, margin=network.geometry.margin - 8)
    tiled = predict(network, image, tile=16, logits=True)
    assert np.abs(tiled - whole(network, image)).max() > 1e-6


def mirrored(start: int, count: int, length: int) -> np.ndarray:
    """`count` indices from `start` on into an axis that is mirrored at its first and its last pixel, for ever."""
    period = max(2 * (length - 1), 1)
    place = np.arange(start, start + count) % period
    return np.minimum(place, period - place)


@given(SIDES, SIDES)
@settings(deadline=None, max_examples=20)
def test_valid_networks_see_the_image_mirrored_beyond_its_border(height: int, width: int) -> None:
    image, margin = make_image(height, width), VALID.geometry.margin
    rows, columns = (mirrored(-margin, VALID.input_size(side), side) for side in (height, width))
    expected = whole(VALID, image[rows][:, columns])[:, :height, :width]
    np.testing.assert_allclose(predict(VALID, image, tile=None, logits=True), expected, rtol=0, atol=1e-10)


def test_the_mirror_is_that_of_numpy() -> None:
    row = np.arange(7.0)
    np.testing.assert_array_equal(row[mirrored(-5, 17, 7)], np.pad(row, 5, mode="reflect"))


@given(SIDES, SIDES, st.integers(1, 12))
@settings(deadline=None, max_examples=20)
def test_valid_tiles_give_what_the_whole_image_gives(height: int, width: int, strides: int) -> None:
    image = make_image(height, width)
    tiled = predict(VALID, image, tile=4 * strides, logits=True)
    np.testing.assert_allclose(tiled, predict(VALID, image, tile=None, logits=True), rtol=0, atol=1e-10)


def sizes_seen(network: nn.Module) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    return seen


def test_only_large_images_are_tiled_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = make_network(), make_image(70, 90)
    assert network.geometry.stride == 4  # which is found by a run of its own
    seen = sizes_seen(network)
    small = predict(network, image, logits=True)
    # Padded to the stride, by the edge pixels that the network would take itself; before, a look at its maps.
    assert seen == [(1, 1, 8, 8), (1, 1, 72, 92)]
    monkeypatch.setattr(tiler, "WHOLE_PIXELS", 70 * 90 - 1)
    monkeypatch.setattr(tiler, "LARGEST_TILE", 27)  # becomes 24, a multiple of the stride
    monkeypatch.setattr(costs, "PROBE_SIDE", 8)
    np.testing.assert_allclose(predict(network, image, logits=True), small, rtol=0, atol=1e-10)
    tiles = [shape for shape in seen if shape[2:] == (72, 72)]  # with a margin of 24 on each side
    assert len(tiles) == 3 * 4
    predict(network, image, tile=None)
    assert seen[-1] == (1, 1, 72, 92)


def test_networks_that_cannot_be_tiled_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = make_network(norm="group"), make_image(30, 40)
    message = r"UNet: group norm averages over .*\. Its tiles overlap and are blended, so the result only approx"
    with pytest.warns(ApproximateWarning, match=message):
        tiled = predict(network, image, tile=16, logits=True)
    assert 1e-10 < np.abs(tiled - whole(network, image)).max() < 10
    monkeypatch.setattr(tiler, "WHOLE_PIXELS", 1)
    monkeypatch.setattr(costs, "PROBE_SIDE", 8)
    np.testing.assert_allclose(predict(network, image, logits=True), whole(network, image), rtol=0, atol=1e-10)


def test_tiles_of_an_inexact_network_without_padding() -> None:
    network = make_network(padding="valid", norm="group")
    with pytest.warns(ApproximateWarning, match=r"UNet: group norm .*\. Its tiles each see only a part of"):
        assert predict(network, make_image(30, 40), tile=16).shape == (30, 40)
    predict(network, make_image(30, 40), tile=40)  # one window sees all: no warning


def test_logits_and_classes() -> None:
    network, image = SAME["plain"], make_image(19, 23)
    logits = predict(network, image, logits=True)
    assert logits.shape == (3, 19, 23)
    classes = predict(network, image)
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, logits.argmax(0))
    np.testing.assert_array_equal(predict(network, image[..., None]), classes)


def test_float32_stays_float32() -> None:
    network = UNet(1, 2, width=2, depth=1).eval()
    assert predict(network, make_image(9, 9).astype(np.float32), logits=True).dtype == np.float32


def test_any_module_runs_whole_also_with_many_classes() -> None:
    torch.manual_seed(0)
    network, image = nn.Conv2d(2, 300, 1).double(), np.random.default_rng(0).normal(size=(20, 30, 2)) * 9
    with torch.no_grad():
        expected = network(torch.from_numpy(image).permute(2, 0, 1)[None])[0].argmax(0).numpy()
    assert expected.max() > 255
    np.testing.assert_array_equal(predict(network, image, tile=None), expected)
    np.testing.assert_array_equal(predict(network, image), expected)


def test_an_image_that_may_not_be_written_is_no_problem() -> None:
    image = make_image(12, 12)
    image.flags.writeable = False
    assert predict(SAME["plain"], image).shape == (12, 12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tile", [None, 8])
def test_the_mode_of_the_module_is_put_back(training: bool, tile: int | None) -> None:
    network = make_network(dropout=0.5).train(training)
    expected = whole(make_network(dropout=0.5), make_image(20, 20))
    np.testing.assert_allclose(predict(network, make_image(20, 20), tile, logits=True), expected, rtol=0, atol=1e-10)
    assert all(module.training is training for module in network.modules())


class Cropping(nn.Module):
    """Loses a pixel on each side without saying so."""

    geometry = Geometry(stride=1, halo=1, margin=1)

    def forward(self, images: Tensor) -> Tensor:
        return images[..., 1:-1, 1:-1]


class Squeezing(nn.Module):
    """Returns classes instead of logits."""

    def forward(self, images: Tensor) -> Tensor:
        return images.argmax(1)


@pytest.mark.parametrize("tile", [None, 4])
def test_a_module_that_returns_another_size(tile: int | None) -> None:
    network = Cropping()
    message = (
        r"for windows of 1 x 1 x \d x \d+ the network returned logits of 1 x 1 x \d x \d+; they must be N x K x H x W, "
        r"here 1 x K x \d x \d+\."
    )
    with pytest.raises(ModelError, match=message):
        predict(network, make_image(9, 12), tile=tile)
    assert network.training


def test_a_module_that_returns_no_logits() -> None:
    with pytest.raises(ModelError, match=r"Squeezing: was given images of .* and returned .*must return N x K x H x W"):
        predict(Squeezing(), make_image(9, 12))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (5,), (2, 3, 4, 5), (4, 4, 0)])
def test_arrays_that_are_no_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"the image has the shape \(.*\); H x W or H x W x C with H, W of at least 1"):
        predict(SAME["plain"], np.zeros(shape, np.float32))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_arrays_are_brought_to_the_type_of_the_network(kind: type) -> None:
    image = make_image(12, 9).astype(kind)
    single = UNet(1, 2, width=2, depth=1).eval()
    assert predict(single, image, logits=True).dtype == np.float32
    assert predict(SAME["plain"], image, logits=True).dtype == np.float64
    np.testing.assert_allclose(
        predict(SAME["plain"], image, logits=True), whole(SAME["plain"], image.astype(np.float64)), atol=1e-10
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_arrays_with_values_that_are_no_numbers(value: float) -> None:
    image = make_image(12, 9)
    image[3, 4] = value
    with pytest.raises(DataError, match="holds 1 values that are NaN or infinite"):
        predict(SAME["plain"], image)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, bool])
def test_arrays_that_are_not_normalised(kind: type) -> None:
    with pytest.raises(DataError, match=r"the image is (uint8|int64|bool); normalised floating-point values"):
        predict(SAME["plain"], np.zeros((4, 4), kind))


@pytest.mark.parametrize(
    ("network", "tile", "message"),
    [
        (SAME["plain"], 6, r"tile: 6 is not a multiple of the network's stride 4; take 4 or 8"),
        (VALID, 6, r"tile: 6 is not a multiple of the network's stride 4; take 4 or 8"),
        (SAME["plain"], 0, r'tile = 0: must be a positive number of pixels, "auto" or None'),
        (VALID, -8, r"tile = -8: must be a positive number"),
        (SAME["plain"], True, r"tile = True: must be a positive number"),
        (SAME["plain"], 8.0, r"tile = 8\.0: must be a positive number"),
        (SAME["plain"], "large", r"tile = 'large': must be a positive number"),
    ],
)
def test_tiles_that_make_no_sense(network: nn.Module, tile: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        predict(network, make_image(20, 20), tile=tile)


def test_a_module_without_geometry_is_tiled_by_what_is_probed() -> None:
    network, image = nn.Conv2d(1, 2, 1).double(), make_image(20, 20)
    np.testing.assert_allclose(predict(network, image, tile=8, logits=True), whole(network, image), rtol=0, atol=1e-12)


def test_an_unknown_engine() -> None:
    with pytest.raises(SettingError, match="engine onyx: is not an engine"):
        predict(SAME["plain"], make_image(4, 4), engine="onyx")


def test_other_channels_than_the_network_takes() -> None:
    with pytest.raises(ModelError, match="takes N x 1 x H x W images, but got 1 x 2 x 8 x 8"):
        predict(SAME["plain"], np.zeros((4, 4, 2)))


# A network whose predictions are known beforehand.


def bright(channels: int = 1, tile: Any = "auto", engine: str = "torch", **data: Any) -> Predictor:
    return Predictor(Brightness(-1.0, 1.0), make_settings(channels, **data), engine, tile)


def noise(height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_images_are_normalised_by_the_figures_of_the_run(engine: str) -> None:
    image, predictor = noise(9, 7), bright(engine=engine)
    values = (image[..., 0] / 255 - 0.5) / 0.25
    logits = predictor.logits(image)
    np.testing.assert_allclose(logits, np.stack([-((values + 1) ** 2), -((values - 1) ** 2)]), rtol=1e-4, atol=1e-5)
    labels = predictor.labels(image)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, image[..., 0] > 127)


@pytest.mark.parametrize("factor", [1, 100])
def test_images_are_stretched_between_their_percentiles(factor: int) -> None:
    image = noise(40, 50).astype(np.uint16) * factor
    low, high = np.percentile(image, (1, 99))
    values = 2 * (image[..., 0] - low) / (high - low) - 1
    logits = bright(normalization="percentile", mean=[0.0], std=[1.0]).logits(image)
    np.testing.assert_allclose(logits[1], -((values - 1) ** 2), rtol=1e-3, atol=1e-4)


def test_16_bits_are_seen_as_8() -> None:
    image = noise(20, 20)
    np.testing.assert_allclose(bright().logits(image.astype(np.uint16) * 257), bright().logits(image), atol=1e-5)


def test_parts_are_what_tiles_own() -> None:
    predictor, image = bright(tile=8), noise(33, 47)
    logits, seen = predictor.logits(image), np.zeros((33, 47), int)
    for window, outputs in predictor.parts(image):
        assert list(outputs) == ["logits"]
        np.testing.assert_array_equal(outputs["logits"], logits[:, *window.slices])
        seen[window.slices] += 1
    assert (seen == 1).all()


def test_what_is_made_of_the_parts_is_put_together() -> None:
    predictor, image = bright(tile=8), noise(33, 47)
    made = predictor.assembled(image, lambda outputs: outputs["logits"].astype(np.float64).max(0))
    np.testing.assert_array_equal(made, predictor.logits(image).max(0))
    assert made.dtype == np.float64


def test_tiles_of_a_predictor() -> None:
    image = noise(33, 47)
    np.testing.assert_array_equal(bright(tile=8).logits(image), bright().logits(image))
    np.testing.assert_array_equal(bright(tile=None).logits(image), bright().logits(image))


def test_a_wrong_tile_is_refused_before_any_image() -> None:
    with pytest.raises(SettingError, match="tile: 6 is not a multiple of the network's stride 4"):
        Predictor(SAME["plain"], make_settings(), tile=6)
    with pytest.raises(SettingError, match="tile: 6 is not a multiple"):
        Predictor(VALID, make_settings(), tile=6)
    with pytest.raises(SettingError, match="tile = 'x': must be a positive number"):
        Predictor(SAME["plain"], make_settings(), tile="x")  # type: ignore[arg-type]


def test_half_scale_is_block_means_and_linear_upsampling() -> None:
    image = np.random.default_rng(0).random((20, 28, 1), dtype=np.float32)
    blocks = image.reshape(10, 2, 14, 2).mean((1, 3))
    values = torch.from_numpy((blocks - 0.5) / 0.25)
    logits = torch.stack([-((values + 1) ** 2), -((values - 1) ** 2)])
    expected = F.interpolate(logits[None], (20, 28), mode="bilinear", align_corners=False)[0].numpy()
    np.testing.assert_allclose(bright(scale=0.5).logits(image), expected, rtol=1e-4, atol=1e-4)


def literal_scaled(network: nn.Module, image: np.ndarray, scale: float) -> np.ndarray:
    """K x H x W logits of an H x W image by OpenCV, one plain forward and PyTorch."""
    height, width = (max(1, round(length * scale)) for length in image.shape)
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    logits = torch.from_numpy(whole(network, (small - 0.5) / 0.25))
    return F.interpolate(logits[None], image.shape, mode="bilinear", align_corners=False)[0].numpy()


def single(**keywords: Any) -> UNet:
    torch.manual_seed(0)
    network = UNet(1, 2, width=3, depth=2, **keywords)
    network(torch.randn(4, 1, 60, 60))
    return network.eval()


SINGLE = {"same": single(), "valid": single(padding="valid"), "stem": single(stem=2)}


@pytest.mark.parametrize("scale", [0.5, 0.37, 1.5])
@pytest.mark.parametrize("name", ["same", "stem"])
def test_a_scaled_image_goes_the_way_that_others_go(name: str, scale: float) -> None:
    image = np.random.default_rng(0).random((100, 160), dtype=np.float32)
    logits = Predictor(SINGLE[name], make_settings(scale=scale), engine="torch", tile=None).logits(image[..., None])
    np.testing.assert_allclose(logits, literal_scaled(SINGLE[name], image, scale), rtol=0, atol=2e-4)


@pytest.mark.parametrize(("height", "width"), [(61, 90), (64, 37), (3, 50)])
@pytest.mark.parametrize("scale", [0.5, 0.37, 1.5])
@pytest.mark.parametrize("name", SINGLE)
def test_scaled_tiles_give_what_the_whole_image_gives(name: str, scale: float, height: int, width: int) -> None:
    network, image = SINGLE[name], noise(height, width)
    config = make_settings(scale=scale)
    expected = Predictor(network, config, engine="torch", tile=None).logits(image)
    size = 1e-4 * np.abs(expected).max()
    for strides in (2, 5):
        tiles = Predictor(network, config, engine="torch", tile=strides * network.geometry.stride)
        logits = tiles.logits(image)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=size)
        flipped = logits.argmax(0) != expected.argmax(0)
        assert (np.abs(expected[0] - expected[1])[flipped] < 2 * size).all()
    np.testing.assert_array_equal(tiles.labels(image), logits.argmax(0))


@pytest.mark.parametrize("views", ["flips", "turns"])
@pytest.mark.parametrize("name", ["same", "valid"])
def test_views_of_scaled_tiles(name: str, views: str) -> None:
    network, image = SINGLE[name], noise(70, 91)
    one, many = (
        Predictor(network, make_settings(scale=0.5), engine="torch", tile=tile, views=views).logits(image)
        for tile in (None, 8)
    )
    np.testing.assert_allclose(many, one, rtol=0, atol=1e-4 * np.abs(one).max())


def test_a_margin_without_the_pixel_beyond_leaves_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail."""
    network, image = single(), noise(101, 150)
    network.geometry = replace(network.geometry, margin=16)
    one, many = (Predictor(network, make_settings(scale=0.5), engine="torch", tile=tile) for tile in (None, 8))
    assert np.abs(many.logits(image) - one.logits(image)).max() > 1e-3


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_scaled_tiles_that_are_blended_have_no_seams(scale: float) -> None:
    """Windows of a network that is exact, but says that it is not, are equal where they overlap."""
    image, network = noise(130, 101), Brightness(-1.0, 1.0)
    network.geometry = Geometry(stride=4, halo=0, margin=0, exact=False, reason="it says so")
    exact = Predictor(Brightness(-1.0, 1.0), make_settings(scale=scale), engine="torch", tile=None)
    blended = Predictor(network, make_settings(scale=scale), engine="torch", tile=16)
    with pytest.warns(ApproximateWarning, match="it says so"):
        logits = blended.logits(image)
    np.testing.assert_allclose(logits, exact.logits(image), rtol=0, atol=1e-5)


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([0.25, 0.5, 0.7, 1.0, 2.0]))
@settings(deadline=None, max_examples=30)
def test_the_mask_has_the_size_of_the_image(height: int, width: int, scale: float) -> None:
    assert bright(scale=scale).labels(noise(height, width)).shape == (height, width)


def test_at_half_scale_the_mask_lies_where_the_object_is() -> None:
    truth = np.zeros((101, 77), np.uint8)
    cv2.circle(truth, (40, 60), 22, 1, -1)
    labels = bright(scale=0.5).labels((truth * 255)[..., None])
    assert (labels != truth).mean() < 0.01
    np.testing.assert_allclose(ndimage.center_of_mass(labels), ndimage.center_of_mass(truth), atol=0.15)


def test_grey_and_color_where_they_fit() -> None:
    grey = noise(8, 9)
    expected = bright().labels(grey)
    np.testing.assert_array_equal(bright(channels=3).labels(grey), expected)
    np.testing.assert_array_equal(bright().labels(np.repeat(grey, 3, axis=2)), expected)
    with pytest.raises(ModelError, match="is a colour image, but the network was trained on grey ones"):
        bright().labels(noise(8, 9, 3))
    with pytest.raises(ModelError, match="has 4 channels, but the network takes 1"):
        bright().labels(noise(8, 9, 4))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (5, 6), (9, 9)])
@pytest.mark.parametrize("kind", ["fixed", "percentile"])
def test_pixels_that_are_no_numbers(value: float, place: tuple[int, int], kind: str) -> None:
    image = np.random.default_rng(0).random((10, 10, 1), dtype=np.float32)
    image[place] = value
    with pytest.raises(DataError, match="values that are NaN or infinite; replace them with numbers first"):
        bright(normalization=kind).labels(image)
