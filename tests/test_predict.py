"""Prediction: tiles give what the whole image gives, images come back at their size, files as promised."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise import pictures
from pixelwise.config import Config, make_config
from pixelwise.data.readers import read_image, read_mask
from pixelwise.errors import DataError, ModelError, OutputError, SettingError
from pixelwise.geometry import Geometry
from pixelwise.models import UNet
from pixelwise.predict import (
    Outputs,
    Predictor,
    Summary,
    find_inputs,
    geometry_of,
    predict,
    predict_files,
    softmax,
)

MODULE = importlib.import_module("pixelwise.predict")  # `pixelwise.predict` itself is the function
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
    rows, columns = (mirrored(-margin, VALID.valid_input_size(side), side) for side in (height, width))
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
    seen = sizes_seen(network)
    small = predict(network, image, logits=True)
    assert seen == [(1, 1, 70, 90)]
    monkeypatch.setattr(MODULE, "WHOLE_PIXELS", 70 * 90 - 1)
    monkeypatch.setattr(MODULE, "AUTO_TILE", 21)  # becomes 24, a multiple of the stride
    np.testing.assert_allclose(predict(network, image, logits=True), small, rtol=0, atol=1e-10)
    assert len(seen) == 1 + 3 * 4
    predict(network, image, tile=None)
    assert seen[-1] == (1, 1, 70, 90)


def test_networks_that_cannot_be_tiled_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = make_network(norm="group"), make_image(30, 40)
    with pytest.raises(
        ModelError, match=r"UNet: cannot be tiled exactly: group norm averages over .*\. Use no tiles\."
    ):
        predict(network, image, tile=16)
    monkeypatch.setattr(MODULE, "WHOLE_PIXELS", 1)
    np.testing.assert_allclose(predict(network, image, logits=True), whole(network, image), rtol=0, atol=1e-10)


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
    with pytest.raises(ModelError, match=r"the network returned 1 x \d x \d+ logits for an image of \d x \d+; it must"):
        predict(network, make_image(9, 12), tile=tile)
    assert network.training


def test_a_module_that_returns_no_logits() -> None:
    with pytest.raises(ModelError, match=r"the network returned 9 x 12 logits for an image of 9 x 12; it must return"):
        predict(Squeezing(), make_image(9, 12))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (5,), (2, 3, 4, 5), (4, 4, 0)])
def test_arrays_that_are_no_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"the image has the shape \(.*\); H x W or H x W x C with H, W of at least 1"):
        predict(SAME["plain"], np.zeros(shape, np.float32))


@pytest.mark.parametrize("kind", [np.uint8, np.int64, bool])
def test_arrays_that_are_not_normalised(kind: type) -> None:
    with pytest.raises(DataError, match=r"the image is (uint8|int64|bool); normalised floating-point values"):
        predict(SAME["plain"], np.zeros((4, 4), kind))


@pytest.mark.parametrize(
    ("network", "tile", "message"),
    [
        (SAME["plain"], 6, r"tile: 6 is no multiple of the network's stride 4; take 4 or 8"),
        (VALID, 6, r"tile = 6: must be a multiple of the network's stride, 4"),
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


def test_a_module_without_geometry_is_not_tiled() -> None:
    with pytest.raises(
        ModelError, match=r"Conv2d: states no `geometry`, so its tiles cannot be planned; use tile=None"
    ):
        predict(nn.Conv2d(1, 2, 1).double(), make_image(20, 20), tile=8)
    with pytest.raises(ModelError, match="states no `geometry`"):
        geometry_of(nn.Identity())


def test_an_unknown_engine() -> None:
    with pytest.raises(SettingError, match="engine onyx: is not an engine"):
        predict(SAME["plain"], make_image(4, 4), engine="onyx")


def test_other_channels_than_the_network_takes() -> None:
    with pytest.raises(ModelError, match="takes N x 1 x H x W images, but got 1 x 2 x 4 x 4"):
        predict(SAME["plain"], np.zeros((4, 4, 2)))


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_softmax_equals_torch(seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 300, (4, 3, 5))  # beyond what exp can take
    np.testing.assert_allclose(softmax(logits), torch.from_numpy(logits).softmax(0).numpy(), rtol=1e-10, atol=1e-300)


# A network whose predictions are known beforehand.


class Brightness(nn.Module):
    """Class k where the mean of the normalised channels is nearest to `levels[k]`."""

    geometry = Geometry(stride=1, halo=0, margin=0)
    levels: Tensor

    def __init__(self, *levels: float) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels))

    def forward(self, images: Tensor) -> Tensor:
        return -((images.mean(1, keepdim=True) - self.levels[:, None, None]) ** 2)


def make_settings(channels: int = 1, **data: Any) -> Config:
    """Settings with which 8-bit values below 128 become negative, others positive."""
    return make_config(
        {
            "data": {
                "labels": "binary", "classes": ["background", "cell"], "colors": [[0, 0, 0], [250, 120, 10]],
                "values": [0, 255], "ignore": [], "channels": channels, "scale": 1.0, "normalization": "fixed",
                "mean": [0.5] * channels, "std": [0.25] * channels, **data,
            },
            "model": {},
            "train": {"patch": [32, 32], "batch": 2, "epochs": 1, "steps_per_epoch": 2, "rate": 0.001},
            "augment": {},
            "loss": {},
        }
    )  # fmt: skip


def bright(channels: int = 1, tile: Any = "auto", **data: Any) -> Predictor:
    return Predictor(Brightness(-1.0, 1.0), make_settings(channels, **data), tile=tile)


def noise(height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_images_are_normalised_by_the_figures_of_the_run() -> None:
    image = noise(9, 7)
    values = (image[..., 0] / 255 - 0.5) / 0.25
    logits = bright().logits(image)
    np.testing.assert_allclose(logits, np.stack([-((values + 1) ** 2), -((values - 1) ** 2)]), rtol=1e-4, atol=1e-5)
    labels = bright().labels(image)
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


def test_tiles_of_a_predictor() -> None:
    image = noise(33, 47)
    np.testing.assert_array_equal(bright(tile=8).logits(image), bright().logits(image))
    np.testing.assert_array_equal(bright(tile=None).logits(image), bright().logits(image))


def test_a_wrong_tile_is_refused_before_any_image() -> None:
    with pytest.raises(SettingError, match="tile: 6 is no multiple of the network's stride 4"):
        Predictor(SAME["plain"], make_settings(), tile=6)
    with pytest.raises(SettingError, match="tile: 6 is no multiple"):
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
    with pytest.raises(DataError, match="values that are NaN or infinite; replace them by numbers first"):
        bright(normalization=kind).labels(image)


# Files.


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.squeeze()).save(path)
    return path


def save_stack(path: Path, pages: int, height: int = 30, width: int = 20) -> np.ndarray:
    stack = np.stack([noise(height, width, seed=page)[..., 0] for page in range(pages)])
    tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "ZYX"})
    return stack


def run(predictor: Predictor, inputs: list[Path | str], outputs: Outputs) -> Summary:
    return predict_files(predictor, [str(path) for path in inputs], outputs)


def test_a_mask_is_an_index_image_with_the_colors_of_the_classes(tmp_path: Path, out: Path) -> None:
    image = noise(21, 34)
    source = save(tmp_path / "a.b.png", image)
    predictor = bright()
    summary = run(predictor, [source], Outputs(out))
    assert summary.outputs == [{"input": str(source), "mask": str(out / "a.b.png"), "width": 34, "height": 21}]
    assert summary.failed == []
    assert summary.pixels == 21 * 34
    assert summary.seconds > 0
    with Image.open(out / "a.b.png") as mask:
        assert mask.mode == "P"
        assert mask.getpalette() == predictor.classes.palette
        np.testing.assert_array_equal(np.asarray(mask), image[..., 0] > 127)
    assert [path.name for path in out.iterdir()] == ["a.b.png"]


def test_a_mask_as_tiff(tmp_path: Path, out: Path) -> None:
    image = noise(21, 34)
    summary = run(bright(), [save(tmp_path / "a.png", image)], Outputs(out, "tiff"))
    assert summary.outputs[0]["mask"] == str(out / "a.tif")
    np.testing.assert_array_equal(read_mask(out / "a.tif")[0], image[..., 0] > 127)
    with tifffile.TiffFile(out / "a.tif") as file:
        assert file.pages[0].colormap[:, 1].tolist() == [250 * 257, 120 * 257, 10 * 257]  # type: ignore[union-attr]


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_a_stack_becomes_a_stack(tmp_path: Path, out: Path, form: Any) -> None:
    stack = save_stack(tmp_path / "s.tif", 3)
    predictor = Predictor(Brightness(-1.0, 1.0), make_settings(labels="instances", values=[]))
    summary = run(predictor, [tmp_path / "s.tif"], Outputs(out, form, probabilities=True, overlay=True))
    entry = summary.outputs[0]
    assert (entry["pages"], entry["width"], entry["height"]) == (3, 20, 30)
    assert summary.pixels == 3 * 20 * 30
    np.testing.assert_array_equal(read_mask(out / "s.tif"), stack > 127)
    assert entry["instances"] == str(out / "instances" / "s.tif")
    np.testing.assert_array_equal(read_mask(out / "instances" / "s.tif") > 0, stack > 127)
    assert tifffile.imread(out / "probabilities" / "s.tif").shape == (3, 2, 30, 20)
    expected = pictures.overlay(pictures.to_display(stack[0]), (stack[0] > 127).astype(np.uint8), predictor.classes)
    np.testing.assert_array_equal(read_image(out / "overlays" / "s.png")[0], expected)


def test_probabilities_sum_to_one_and_agree_with_the_mask(tmp_path: Path, out: Path) -> None:
    config = make_settings(labels="index", classes=["a", "b", "c"], colors=[[0, 0, 0], [1, 1, 1], [2, 2, 2]], values=[])
    image = noise(40, 30)
    predictor = Predictor(Brightness(-1.0, 0.0, 1.5), config)
    summary = run(predictor, [save(tmp_path / "x.png", image)], Outputs(out, probabilities=True))
    path = out / "probabilities" / "x.tif"
    assert summary.outputs[0]["probabilities"] == str(path)
    with tifffile.TiffFile(path) as file:
        assert file.series[0].axes == "CYX"
        shares = file.asarray().astype(int)
    assert shares.shape == (3, 40, 30)
    assert np.abs(shares.sum(0) - 255).max() <= 1  # each is rounded by half a step at most
    mask = read_mask(out / "x.png")[0]
    assert set(np.unique(mask)) == {0, 1, 2}
    np.testing.assert_array_equal(np.take_along_axis(shares, mask[None].astype(int), 0)[0], shares.max(0))
    logits = torch.from_numpy(predictor.logits(image))
    np.testing.assert_allclose(shares / 255, logits.softmax(0).numpy(), atol=0.5001 / 255)


def test_overlays_are_pictures(tmp_path: Path, out: Path) -> None:
    image = noise(24, 16, 3)
    predictor = bright(channels=3)
    summary = run(predictor, [save(tmp_path / "x.png", image)], Outputs(out, overlay=True))
    assert summary.outputs[0]["overlay"] == str(out / "overlays" / "x.png")
    expected = pictures.overlay(image, predictor.labels(image), predictor.classes)
    np.testing.assert_array_equal(read_image(out / "overlays" / "x.png")[0], expected)


def test_instances_are_connected_components(tmp_path: Path, out: Path) -> None:
    image = ndimage.uniform_filter(noise(64, 80)[..., 0].astype(float), 5)
    image = (255 * (image > np.median(image))).astype(np.uint8)
    expected, count = ndimage.label(image)  # pixels that share a side
    assert count > 5
    predictor = bright(labels="instances", values=[])
    summary = run(predictor, [save(tmp_path / "x.png", image)], Outputs(out))
    assert summary.outputs[0]["instances"] == str(out / "instances" / "x.png")
    ids = np.asarray(Image.open(out / "instances" / "x.png"))
    assert ids.dtype == np.uint16
    assert ids.max() == count
    pairs = np.unique(np.stack([ids.ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == count + 1  # one partner each: the same parts under other numbers
    np.testing.assert_array_equal(ids == 0, image == 0)


def test_more_instances_than_16_bits_hold(tmp_path: Path, out: Path) -> None:
    board = (np.indices((370, 370)).sum(0) % 2 * 255).astype(np.uint8)
    predictor = bright(labels="instances", values=[])
    summary = run(predictor, [save(tmp_path / "x.png", board)], Outputs(out))
    assert summary.outputs[0]["instances"] == str(out / "instances" / "x.tif")
    ids = read_mask(out / "instances" / "x.tif")[0]
    assert ids.dtype == np.uint32
    assert ids.max() == len(np.unique(ids)) - 1 == 370 * 370 // 2
    assert (out / "x.png").is_file()


def test_names_that_collide_keep_their_folders(tmp_path: Path, out: Path) -> None:
    names = ["a/x.png", "b/x.png", "b/y.png", "b/deep/X.png"]
    paths = [save(tmp_path / "in" / name, noise(4, 5, seed=seed)) for seed, name in enumerate(names)]
    summary = run(bright(), [*paths], Outputs(out, overlay=True))
    masks = [Path(str(entry["mask"])).relative_to(out).as_posix() for entry in summary.outputs]
    assert masks == ["a/x.png", "b/x.png", "y.png", "b/deep/X.png"]
    assert (out / "overlays" / "b" / "deep" / "X.png").is_file()
    for path, entry in zip(paths, summary.outputs, strict=True):
        np.testing.assert_array_equal(read_mask(Path(str(entry["mask"])))[0], np.asarray(Image.open(path)) > 127)


def test_names_that_differ_in_their_extension_keep_it(tmp_path: Path, out: Path) -> None:
    paths = [save(tmp_path / name, noise(4, 5)) for name in ("x.png", "x.tif", "x.png.bmp", "z.png")]
    summary = run(bright(), [*paths], Outputs(out))
    assert summary.failed == []
    masks = [Path(str(entry["mask"])).name for entry in summary.outputs]
    assert len({name.casefold() for name in masks}) == 4
    assert masks[:2] == ["x.png.png", "x.tif.png"]
    assert masks[3] == "z.png"


def test_links_are_called_by_their_own_names(tmp_path: Path, out: Path) -> None:
    links = []
    for seed, folder in enumerate("ab"):
        real = save(tmp_path / "store" / f"{seed}.png", noise(4, 5, seed=seed))
        (tmp_path / folder).mkdir()
        links.append(tmp_path / folder / "x.png")
        try:
            links[-1].symlink_to(real)
        except OSError:
            pytest.skip("links may not be made here")
    summary = run(bright(), [*links], Outputs(out))
    assert [str(entry["mask"]) for entry in summary.outputs] == [str(out / "a" / "x.png"), str(out / "b" / "x.png")]


def test_a_path_that_goes_up_stays_inside_the_output_folder(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("x.png", "here/x.png"):
        save(tmp_path / name, noise(4, 5))
    monkeypatch.chdir(tmp_path / "here")
    summary = run(bright(), ["x.png", "../x.png"], Outputs(out))
    assert [str(entry["mask"]) for entry in summary.outputs] == [str(out / "here" / "x.png"), str(out / "x.png")]


def test_files_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.tif", "deep/c.JPG", "deep/er/d.bmp", ".hidden.png", ".git/e.png", "odd[1].png"):
        save(tmp_path / name, noise(4, 5))
    (tmp_path / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)

    def found(*inputs: str) -> list[str]:
        return [path.as_posix() for path in find_inputs(inputs)]

    everything = ["a.png", "b.tif", "odd[1].png", "deep/c.JPG", "deep/er/d.bmp"]
    assert found(".") == everything
    assert found("deep") == ["deep/c.JPG", "deep/er/d.bmp"]
    assert found("*.png") == ["a.png", "odd[1].png"]
    assert found("**/*.bmp") == ["deep/er/d.bmp"]
    assert found("odd[1].png") == ["odd[1].png"]  # a file that is there is no pattern
    assert found("b.tif", "*.tif", ".") == ["b.tif", *(name for name in everything if name != "b.tif")]
    assert found("missing.png") == ["missing.png"]
    assert found(str(tmp_path / "*.tif")) == [(tmp_path / "b.tif").as_posix()]


def test_nothing_to_predict(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds no images\."):
        find_inputs([str(tmp_path / "empty")])
    with pytest.raises(DataError, match=r"\*\.tif: no file matches this pattern\."):
        find_inputs([str(tmp_path / "*.tif")])


def test_one_that_is_broken_does_not_stop_the_others(tmp_path: Path, out: Path) -> None:
    good = [save(tmp_path / name, noise(6, 8)) for name in ("1.png", "5.png")]
    broken = save(tmp_path / "2.png", noise(60, 80))
    broken.write_bytes(broken.read_bytes()[:200])
    color = save(tmp_path / "3.png", noise(6, 8, 3))
    missing = tmp_path / "4.png"
    calls: list[tuple[int, int, int]] = []
    inputs = [str(path) for path in (good[0], broken, color, missing, good[1])]
    summary = predict_files(bright(), inputs, Outputs(out), progress=lambda *call: calls.append(call))
    assert [entry["input"] for entry in summary.outputs] == [str(path) for path in good]
    assert [failure["input"] for failure in summary.failed] == [str(broken), str(color), str(missing)]
    for failure, text in zip(summary.failed, ("truncated", "is a colour image", "no such file"), strict=True):
        assert failure["message"].startswith(f"{failure['input']}: ")
        assert failure["message"].count(failure["input"]) == 1
        assert text in failure["message"]
    assert calls == [(1, 5, 48), (2, 5, 48), (3, 5, 48), (4, 5, 48), (5, 5, 96)]
    assert sorted(path.name for path in out.iterdir()) == ["1.png", "5.png"]


def test_a_stack_whose_axes_are_unclear_needs_their_names(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, np.zeros((2, 3, 5, 6), np.uint8), photometric="minisblack", metadata={"axes": "QQYX"})
    summary = predict_files(bright(), [str(path)], Outputs(out))
    assert "--axes" in summary.failed[0]["message"]
    summary = predict_files(bright(), [str(path)], Outputs(out), axes="TZYX")
    assert summary.outputs[0]["pages"] == 6


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_an_image_is_never_replaced_by_its_mask(tmp_path: Path, form: Any) -> None:
    source = save(tmp_path / ("x.png" if form == "png" else "x.tif"), noise(4, 5))
    before = source.read_bytes()
    with pytest.raises(OutputError, match=r"x\.(png|tif): is the image itself, which its mask would replace; choose"):
        run(bright(), [source], Outputs(tmp_path, form))
    assert source.read_bytes() == before
    run(bright(), [source], Outputs(tmp_path, "tiff" if form == "png" else "png"))
    assert source.read_bytes() == before


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    source = save(tmp_path / "x.png", noise(4, 5))
    with pytest.raises(
        OutputError, match=r"x\.png: cannot be written \(.+\)\. Free some space or choose another folder"
    ):
        run(bright(), [source], Outputs(source / "masks"))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_network_of_either_form_labels_files(tmp_path: Path, out: Path, padding: Any) -> None:
    source = save(tmp_path / "x.png", noise(37, 51))
    torch.manual_seed(0)
    predictor = Predictor(UNet(1, 2, width=2, depth=2, padding=padding), make_settings())
    run(predictor, [source], Outputs(out))
    mask = read_mask(out / "x.png")[0]
    assert mask.shape == (37, 51)
    np.testing.assert_array_equal(mask, predictor.labels(read_image(source)[0]))
