"""Images that are scaled for the network: streamed like all others, to masks of their own size."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from networks import Brightness, make_settings
from pixelwise.core.memory import growth, held_bytes
from pixelwise.core.windows import Window
from pixelwise.data.files.sources import open_source
from pixelwise.prediction import costs, tiler
from pixelwise.prediction.costs import Costs, Memory
from pixelwise.prediction.page import Page
from pixelwise.prediction.postprocess import PostProcess, clean
from pixelwise.prediction.predictor import Predictor
from pixelwise.prediction.requests import OutputOptions
from streams import (
    Spy,
    interrupted_after,
    make_network,
    mask_of,
    noise,
    only,
    pixels_of,
    run,
    save,
    save_stack,
    save_tiled,
    smooth,
    tiled,
)

SCALES = [0.5, 0.37, 1.5]


def balance(network: nn.Module, logits: np.ndarray) -> None:
    """Shift the last bias so that either class has half of the pixels."""
    bias = next(values for values in reversed(list(network.parameters())) if values.shape == (2,))
    with torch.no_grad():
        bias[1] -= float(np.median(logits[1] - logits[0]))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("scale", SCALES)
def test_every_format_holds_the_mask_of_the_whole_image(
    scale: float, padding: Any, tmp_path: Path, out: Path, little_memory: Callable[[], None]
) -> None:
    image, network = smooth(131, 150), make_network(padding=padding)
    source = save_tiled(tmp_path / "x.tif", image)
    balance(network, tiled(None, network, scale=scale).logits(image[..., None]))
    expected = tiled(None, network, scale=scale).labels(image[..., None])
    assert 0.4 < expected.mean() < 0.6
    for form in ("png", "tiff", "zarr"):
        entry = only(run(tiled(16, network, scale=scale), [source], OutputOptions(out / form, form)))
        assert (entry["width"], entry["height"]) == (150, 131)
        assert entry["tiles"] >= 3 * 4
        np.testing.assert_array_equal(mask_of(entry), expected)
    little_memory()
    entry = only(run(tiled(16, network, scale=scale), [source], OutputOptions(out / "grown", "tiff")))
    np.testing.assert_array_equal(mask_of(entry), expected)


def test_a_zarr_becomes_a_zarr(tmp_path: Path, out: Path) -> None:
    image = smooth(90, 70)
    store = only(run(tiled(), [save_tiled(tmp_path / "x.tif", image)], OutputOptions(tmp_path / "in", "zarr")))["mask"]
    entry = only(run(tiled(16, scale=0.5), [store], OutputOptions(out)))
    assert entry["mask"] == str(out / "x.zarr")
    np.testing.assert_array_equal(mask_of(entry), tiled(None, scale=0.5).labels(pixels_of(store)[..., None]))


def test_stacks(tmp_path: Path, out: Path) -> None:
    stack = save_stack(tmp_path / "s.tif", 3, 40, 50)
    entry = only(run(tiled(8, scale=0.5), [tmp_path / "s.tif"], OutputOptions(out, "zarr")))
    assert (entry["pages"], entry["tiles"]) == (3, 3 * 12)
    np.testing.assert_array_equal(mask_of(entry), [tiled(None, scale=0.5).labels(page[..., None]) for page in stack])


@pytest.mark.parametrize("form", ["tiff", "zarr"])
@pytest.mark.parametrize("scale", SCALES)
def test_probabilities(scale: float, form: Any, tmp_path: Path, out: Path) -> None:
    image = smooth(70, 90)
    outputs = OutputOptions(out, form, probabilities=True, probability_type="float16")
    entry = only(run(tiled(16, scale=scale), [save_tiled(tmp_path / "x.tif", image)], outputs))
    expected = torch.from_numpy(tiled(None, scale=scale).logits(image[..., None])).softmax(0).numpy()
    np.testing.assert_allclose(pixels_of(entry["probabilities"]), expected, atol=5e-4)


@pytest.mark.parametrize("form", ["tiff", "zarr"])
def test_post_processing_is_that_of_the_mask(form: Any, tmp_path: Path, out: Path) -> None:
    image, options = noise(90, 110)[..., 0] // 2 + smooth(90, 110) // 2, PostProcess(0.4, 40, 30)
    chances = torch.from_numpy(tiled(None, scale=0.5).logits(image[..., None])).softmax(0).numpy()
    expected = clean((chances[1] >= 0.4).astype(np.uint8), options)
    entry = only(
        run(tiled(16, scale=0.5), [save_tiled(tmp_path / "x.tif", image)], OutputOptions(out, form, clean=options))
    )
    np.testing.assert_array_equal(mask_of(entry), expected)


def test_percentiles_are_those_of_the_image_before_it_is_scaled(tmp_path: Path, out: Path) -> None:
    image = smooth(90, 110).astype(np.uint16) * 3 + 50
    keywords: dict[str, Any] = {"normalization": "percentile", "mean": [0.0], "std": [1.0], "scale": 0.37}
    entry = only(run(tiled(16, **keywords), [save_tiled(tmp_path / "x.tif", image)], OutputOptions(out, "zarr")))
    np.testing.assert_array_equal(mask_of(entry), tiled(None, **keywords).labels(image[..., None]))


def test_views(tmp_path: Path, out: Path) -> None:
    image = smooth(90, 110)
    one, many = (Predictor(make_network(), make_settings(scale=0.5), "torch", tile, "flips") for tile in (None, 16))
    entry = only(run(many, [save_tiled(tmp_path / "x.tif", image)], OutputOptions(out, "zarr")))
    np.testing.assert_array_equal(mask_of(entry), one.labels(image[..., None]))


def test_empty_tiles_of_a_slide_are_skipped(tmp_path: Path, out: Path) -> None:
    slide = np.random.default_rng(0).normal(230, 2, (1024, 1024))
    rows, columns = np.indices(slide.shape)
    for y, x in ((200, 300), (700, 760)):
        slide[(rows - y) ** 2 + (columns - x) ** 2 < 40**2] -= 120
    source = save_tiled(tmp_path / "x.tif", slide.clip(0, 255).astype(np.uint8))
    predictor = tiled(32, scale=0.5)
    spy = Spy(predictor)
    entry = only(run(predictor, [source], OutputOptions(out, "zarr", skip_background=True)))
    assert 150 < entry["skipped_tiles"] < 16 * 16
    assert spy.windows == 16 * 16 - entry["skipped_tiles"]
    expected = tiled(None, scale=0.5).labels(tifffile.imread(source)[..., None])
    around = np.s_[140:260, 240:360]
    np.testing.assert_array_equal(mask_of(entry)[around], expected[around])


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_what_was_interrupted_goes_on(
    scale: float, tmp_path: Path, out: Path, one_by_one: None, little_memory: Callable[[], None]
) -> None:
    little_memory()
    image = smooth(150, 120)
    source = save_tiled(tmp_path / "x.tif", image)
    tile, outputs = int(64 * scale) // 4 * 4, OutputOptions(out, "zarr", probabilities=True)
    first = tiled(tile, scale=scale)
    Spy(first, interrupted_after(3))
    with pytest.raises(KeyboardInterrupt):
        run(first, [source], outputs)
    second = tiled("auto", scale=scale)
    spy = Spy(second)
    entry = only(run(second, [source], replace(outputs, resume=True)))
    assert 6 - 3 <= spy.windows < 6
    np.testing.assert_array_equal(mask_of(entry), tiled(None, scale=scale).labels(image[..., None]))
    assert run(second, [source], replace(outputs, resume=True)).outputs == [entry]


def test_small_images_are_run_together(tmp_path: Path, out: Path) -> None:
    images = [smooth(81, 60, seed=seed) for seed in range(5)]
    paths = [save(tmp_path / f"{number}.png", image) for number, image in enumerate(images)]
    predictor = tiled("auto", scale=0.5)
    spy = Spy(predictor)
    summary = run(predictor, [*paths], OutputOptions(out))
    assert [shape[0] for shape in spy.shapes] == [5]
    for image, entry in zip(images, summary.outputs, strict=True):
        np.testing.assert_array_equal(mask_of(entry), tiled(None, scale=0.5).labels(image[..., None]))


@pytest.mark.filterwarnings("ignore::pixelwise.prediction.predictor.ApproximateWarning")
@pytest.mark.parametrize("form", ["png", "zarr"])
def test_what_is_blended(form: Any, tmp_path: Path, out: Path) -> None:
    image, network = smooth(130, 200), make_network(norm="group")
    predictor = tiled(32, network, scale=0.5)
    entry = only(run(predictor, [save_tiled(tmp_path / "x.tif", image)], OutputOptions(out, form)))
    assert entry["approximate"] is True
    np.testing.assert_array_equal(mask_of(entry), predictor.labels(image[..., None]))


# Memory


def test_an_image_is_read_by_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read at a time does not grow with the image."""
    monkeypatch.setattr("pixelwise.data.pixels.scaling.BAND_PIXELS", 5000)
    predictor = tiled(32, scale=0.25)
    for height, width in ((600, 500), (1200, 1500)):
        largest = 0
        with open_source(save_tiled(tmp_path / "x.tif", smooth(height, width))) as source:
            page = Page.of_source(source, 0, predictor.config.data)
            read = source.read

            def watched(number: int, window: Window) -> np.ndarray:
                nonlocal largest
                largest = max(largest, window.height * window.width)
                return read(number, window)  # noqa: B023

            monkeypatch.setattr(source, "read", watched)
            tiling = predictor.runner.tiler.choose((height, width), 32, predictor.memory)
            windows = [page.window(tiling, tile).shape for tile in tiling.tiles]
        assert set(windows) == {(1, *tiling.window_shape)}
        assert 2500 < largest <= 5000


def test_tiles_leave_room_for_logits_at_the_image_s_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of 2 classes, 4 bytes each; at a quarter of the size a pixel of the network has 16 of the image."""
    monkeypatch.setattr(tiler, "WHOLE_PIXELS", 0)
    tilers = [tiled(network=make_network(), scale=scale).runner.tiler for scale in (1.0, 0.25)]
    assert [one.costs.bytes_scaled_back for one in tilers] == [0, costs.SCALED_BACK * 2 * 4 * 16]
    monkeypatch.setattr(Costs, "bytes_per_pixel", property(lambda one: 100 + one.bytes_scaled_back))
    memory = Memory(costs.FIXED_BYTES + (100 + costs.SCALED_BACK * 2 * 4 * 16) * 150**2, held=0)
    tiling = tilers[1].choose((40_000, 40_000), "auto", memory)
    assert np.prod(tiling.window_shape) <= 150**2
    assert tiling.tile is not None
    assert tiling.tile >= 64
    assert tilers[1].costs.surely_fits(100, memory)
    assert not tilers[1].costs.surely_fits(150**2, memory)


def test_a_large_image_under_a_small_limit(tmp_path: Path, out: Path) -> None:
    """Its logits alone would take 512 MB, and 128 MB at the size that the network sees."""
    image = np.tile(smooth(500, 500), (16, 16))
    source = save_tiled(tmp_path / "x.tif", image, compression="zlib")
    network = Brightness(-0.1, 0.1)
    limit = held_bytes() + costs.FIXED_BYTES + 100 * 2**20
    predictor = Predictor(network, make_settings(scale=0.5), engine="torch", limit=limit)
    entries: list[dict[str, Any]] = []
    grown = growth(lambda: entries.append(only(run(predictor, [source], OutputOptions(out, "zarr")))))
    assert grown < costs.FIXED_BYTES + 100 * 2**20
    assert entries[0]["tiles"] > 9
    mask = mask_of(entries[0])
    assert 0.1 < mask.mean() < 0.9
    expected = predictor.labels(image[1500:3000, 2500:4000, None])
    np.testing.assert_array_equal(mask[1500:3000, 2500:4000][100:-100, 100:-100], expected[100:-100, 100:-100])
