"""Files in, masks out: what is written, how images of any size come through, and what an end half-way leaves."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from networks import Brightness, make_settings
from pixelwise import pictures
from pixelwise.canvas import Outputs
from pixelwise.data.readers import read_image, read_mask
from pixelwise.data.sinks import ZarrMask
from pixelwise.errors import ModelError, OutputError, RunError, SettingError
from pixelwise.geometry import Geometry
from pixelwise.models import UNet
from pixelwise.postprocess import PostProcess, clean
from pixelwise.predict import Predictor
from pixelwise.stream import Progress, Summary, predict_files


def bright(channels: int = 1, tile: Any = "auto", **data: Any) -> Predictor:
    return Predictor(Brightness(-1.0, 1.0), make_settings(channels, **data), engine="torch", tile=tile)


def noise(height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


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
    predictor = Predictor(Brightness(-1.0, 1.0), make_settings(labels="instances", values=[]), engine="torch")
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
    predictor = Predictor(Brightness(-1.0, 0.0, 1.5), config, engine="torch")
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


def test_one_that_is_broken_does_not_stop_the_others(tmp_path: Path, out: Path) -> None:
    good = [save(tmp_path / name, noise(6, 8)) for name in ("1.png", "5.png")]
    broken = save(tmp_path / "2.png", noise(60, 80))
    broken.write_bytes(broken.read_bytes()[:200])
    color = save(tmp_path / "3.png", noise(6, 8, 3))
    missing = tmp_path / "4.png"
    calls: list[tuple[float, int]] = []
    inputs = [str(path) for path in (good[0], broken, color, missing, good[1])]
    progress = Progress(show=lambda *call: calls.append(call))
    summary = predict_files(bright(), inputs, Outputs(out), progress=progress)
    assert [entry["input"] for entry in summary.outputs] == [str(path) for path in good]
    assert [failure["input"] for failure in summary.failed] == [str(broken), str(color), str(missing)]
    for failure, text in zip(summary.failed, ("truncated", "is a colour image", "no such file"), strict=True):
        assert failure["message"].startswith(f"{failure['input']}: ")
        assert failure["message"].count(failure["input"]) == 1
        assert text in failure["message"]
    assert calls == sorted(calls)
    assert all(0 < share <= 1 for share, _ in calls)
    assert calls[-1][1] == summary.pixels == 96
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
    predictor = Predictor(UNet(1, 2, width=2, depth=2, padding=padding), make_settings(), engine="torch")
    run(predictor, [source], Outputs(out))
    mask = read_mask(out / "x.png")[0]
    assert mask.shape == (37, 51)
    np.testing.assert_array_equal(mask, predictor.labels(read_image(source)[0]))


# Tiles.


class Spy:
    """An engine that notes what it is given, and calls `before` with how many windows there were."""

    def __init__(self, predictor: Predictor, before: Callable[[int], None] = lambda count: None) -> None:
        self._engine, self._before = predictor.runner.engine, before
        self.name, self.device, self.note = self._engine.name, self._engine.device, self._engine.note
        self.shapes: list[tuple[int, ...]] = []
        predictor.runner = replace(predictor.runner, engine=self)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if images.shape[2] < 700:  # and not the measurement of its speed
            self._before(sum(shape[0] for shape in self.shapes))
            self.shapes.append(images.shape)
        return self._engine(images)

    @property
    def windows(self) -> int:
        return sum(shape[0] for shape in self.shapes)


def make_network(**keywords: Any) -> UNet:
    torch.manual_seed(0)
    network = UNet(1, 2, width=3, depth=2, **keywords)
    network(torch.randn(4, 1, 60, 60))
    return network.eval()


def tiled(tile: Any = 32, network: nn.Module | None = None, limit: int | None = None, **data: Any) -> Predictor:
    network = make_network() if network is None else network
    return Predictor(network, make_settings(**data), engine="torch", tile=tile, limit=limit)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Spots, H x W uint8."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), 3)
    return (255 * (field - field.min()) / np.ptp(field)).astype(np.uint8)


def save_tiled(path: Path, image: np.ndarray, **keywords: Any) -> Path:
    tifffile.imwrite(path, image, tile=(64, 64), photometric="minisblack", **keywords)
    return path


def pixels_of(path: str | Path) -> np.ndarray:
    """A mask or probabilities, without the axis of a single page."""
    path = Path(path)
    return np.asarray(zarr.open_array(path / "0", mode="r")) if path.suffix == ".zarr" else tifffile.imread(path)


def mask_of(entry: dict[str, Any]) -> np.ndarray:
    return read_mask(Path(entry["mask"]))[0] if entry["mask"].endswith(".png") else pixels_of(entry["mask"])


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called, it leaves no room for masks in memory."""
    return lambda: monkeypatch.setattr("pixelwise.stream._Work._room_for_masks", lambda *_: 0)


def only(summary: Summary) -> dict[str, Any]:
    assert summary.failed == []
    assert len(summary.outputs) == 1
    return summary.outputs[0]


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_every_format_holds_the_mask_of_the_whole_image(
    padding: Any, tmp_path: Path, out: Path, little_memory: Callable[[], None]
) -> None:
    image = smooth(201, 170)
    source, network = save_tiled(tmp_path / "x.tif", image), make_network(padding=padding)
    expected = tiled(None, network).labels(image[..., None])
    assert 0.02 < expected.mean() < 0.98
    for form in ("png", "tiff", "zarr"):
        entry = only(run(tiled(32, network), [source], Outputs(out / form, form)))
        assert entry["tiles"] == 7 * 6
        np.testing.assert_array_equal(mask_of(entry), expected)
    little_memory()
    entry = only(run(tiled(32, network), [source], Outputs(out / "grown", "tiff")))
    assert entry["mask"] == str(out / "grown" / "x.tif")
    np.testing.assert_array_equal(mask_of(entry), expected)
    assert [path.name for path in (out / "grown").iterdir()] == ["x.tif"]


def test_a_zarr_stays_a_zarr(tmp_path: Path, out: Path) -> None:
    image = smooth(80, 90)
    zarr.create_array(store=str(tmp_path / "x.zarr"), data=image, chunks=(32, 32), dimension_names=["y", "x"])
    entry = only(run(tiled(), [tmp_path / "x.zarr"], Outputs(out)))
    assert entry["mask"] == str(out / "x.zarr")
    np.testing.assert_array_equal(mask_of(entry), tiled(None).labels(image[..., None]))


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("form", ["tiff", "zarr"])
def test_stacks_by_tiles(form: Any, grows: bool, tmp_path: Path, out: Path, little_memory: Callable[[], None]) -> None:
    stack = save_stack(tmp_path / "s.tif", 3, 40, 50)
    if grows:
        little_memory()
    entry = only(run(tiled(16), [tmp_path / "s.tif"], Outputs(out, form, probabilities=True)))
    assert (entry["pages"], entry["tiles"]) == (3, 3 * 12)
    np.testing.assert_array_equal(mask_of(entry), [tiled(None).labels(page[..., None]) for page in stack])
    shares = pixels_of(entry["probabilities"])
    logits = np.stack([tiled(None).logits(page[..., None]) for page in stack], 1 if shares.shape[0] == 2 else 0)
    expected = torch.from_numpy(logits).softmax(0 if shares.shape[0] == 2 else 1).numpy()
    np.testing.assert_allclose(shares / 255, expected, atol=0.501 / 255)


@pytest.mark.parametrize(("kind", "atol"), [("uint8", 0.501 / 255), ("float16", 5e-4)])
@pytest.mark.parametrize("form", ["tiff", "zarr"])
def test_probabilities_by_tiles(form: Any, kind: Any, atol: float, tmp_path: Path, out: Path) -> None:
    image = smooth(70, 90)
    outputs = Outputs(out, form, probabilities=True, probability_type=kind)
    entry = only(run(tiled(), [save_tiled(tmp_path / "x.tif", image)], outputs))
    shares = pixels_of(entry["probabilities"])
    assert shares.dtype == kind
    expected = torch.from_numpy(tiled(None).logits(image[..., None])).softmax(0).numpy()
    np.testing.assert_allclose(shares / (255 if kind == "uint8" else 1.0), expected, atol=atol)


@pytest.mark.parametrize("options", [PostProcess(0.7), PostProcess(None, 40, 30), PostProcess(0.4, 40, 30)])
def test_post_processing_knows_no_tiles(
    options: PostProcess, tmp_path: Path, out: Path, little_memory: Callable[[], None]
) -> None:
    image = noise(90, 110)[..., 0] // 2 + smooth(90, 110) // 2
    source = save_tiled(tmp_path / "x.tif", image)
    whole = tiled(None)
    chosen = whole.labels(image[..., None])
    if options.threshold is not None:
        chances = torch.from_numpy(whole.logits(image[..., None])).softmax(0).numpy()
        chosen = (chances[1] >= options.threshold).astype(np.uint8)
    expected = clean(chosen, options)
    assert (expected != tiled(None).labels(image[..., None])).any()
    for form in ("png", "tiff", "zarr"):
        for tile in (None, 16):
            entry = only(run(tiled(tile), [source], Outputs(out / form, form, clean=options)))
            np.testing.assert_array_equal(mask_of(entry), expected)
        assert len(list((out / form).iterdir())) == 1
    little_memory()
    entry = only(run(tiled(16), [source], Outputs(out / "grown", "tiff", clean=options)))
    np.testing.assert_array_equal(mask_of(entry), expected)
    assert [path.name for path in (out / "grown").iterdir()] == ["x.tif"]


@pytest.mark.parametrize(("form", "scale"), [("png", 1.0), ("png", 0.5), ("zarr", 1.0)])
@pytest.mark.parametrize("tile", [None, 16])
def test_only_inside_of_a_mask(form: Any, tile: int | None, scale: float, tmp_path: Path, out: Path) -> None:
    image = smooth(64, 96)
    region = np.zeros((32, 48), np.uint8)
    region[3:20, 5:17] = 7
    inside = save(tmp_path / "region.png", region)
    entry = only(run(tiled(tile, scale=scale), [save(tmp_path / "x.png", image)], Outputs(out, form, inside=inside)))
    expected = tiled(None, scale=scale).labels(image[..., None]) * (region.repeat(2, 0).repeat(2, 1) > 0)
    assert expected.any()
    np.testing.assert_array_equal(mask_of(entry), expected)
    if tile and scale == 1:
        assert entry["skipped_tiles"] == 4 * 6 - 3 * 3


def test_a_folder_of_masks_to_stay_inside_of(tmp_path: Path, out: Path) -> None:
    image, region = smooth(30, 40), np.zeros((30, 40), np.uint8)
    region[:9, 7:] = 1
    paths = [save(tmp_path / name, image) for name in ("a.png", "b.png", "c.png")]
    save(tmp_path / "regions" / "a.tif", region)
    save(tmp_path / "regions" / "b.png", region[:-4])
    summary = run(tiled(None), [*paths], Outputs(out, inside=tmp_path / "regions"))
    np.testing.assert_array_equal(mask_of(summary.outputs[0]), tiled(None).labels(image[..., None]) * region)
    assert [failure["input"] for failure in summary.failed] == [str(path) for path in paths[1:]]
    assert "26 x 40" in summary.failed[0]["message"]
    assert "regions: holds no mask named c; each image needs one." in summary.failed[1]["message"]


def test_empty_tiles_of_a_slide_are_skipped(tmp_path: Path, out: Path) -> None:
    random = np.random.default_rng(0)
    slide = random.normal(230, 2, (1024, 1024))
    rows, columns = np.indices(slide.shape)
    for y, x in ((200, 300), (260, 350), (700, 760)):
        slide[(rows - y) ** 2 + (columns - x) ** 2 < 40**2] -= 120
    source = save_tiled(tmp_path / "x.tif", slide.clip(0, 255).astype(np.uint8))
    masks = []
    for skip in (False, True):
        predictor = tiled(64, Brightness(1.0, -1.0))
        spy = Spy(predictor)
        entry = only(run(predictor, [source], Outputs(out / str(skip), "zarr", skip_background=skip)))
        masks.append(mask_of(entry))
        assert spy.windows == 16 * 16 - entry.get("skipped_tiles", 0)
        assert (entry.get("skipped_tiles", 0) > 150) == skip
    assert masks[0].sum() > 10_000
    np.testing.assert_array_equal(masks[1], masks[0])


def test_small_images_are_run_together(tmp_path: Path, out: Path) -> None:
    sizes = [(40, 40)] * 9 + [(41, 40)] * 3 + [(40, 40)] * 2 + [(30, 20)]
    images = [smooth(*size, seed=seed) for seed, size in enumerate(sizes)]
    paths = [save(tmp_path / f"{number:02d}.png", image) for number, image in enumerate(images)]
    predictor = tiled("auto")
    spy = Spy(predictor)
    summary = run(predictor, [*paths], Outputs(out))
    assert [shape[0] for shape in spy.shapes] == [9, 3, 2, 1]
    assert [entry["input"] for entry in summary.outputs] == [str(path) for path in paths]
    assert summary.pixels == sum(image.size for image in images)
    for image, entry in zip(images, summary.outputs, strict=True):
        np.testing.assert_array_equal(mask_of(entry), tiled(None).labels(image[..., None]))


def test_percentiles_are_those_of_the_whole_image(tmp_path: Path, out: Path) -> None:
    image = smooth(150, 170).astype(np.uint16) * 3 + 50
    keywords: dict[str, Any] = {"normalization": "percentile", "mean": [0.0], "std": [1.0]}
    entry = only(run(tiled(**keywords), [save_tiled(tmp_path / "x.tif", image)], Outputs(out, probabilities=True)))
    logits = tiled(None, **keywords).logits(image[..., None])
    shares = pixels_of(entry["probabilities"])
    np.testing.assert_allclose(shares / 255, torch.from_numpy(logits).softmax(0), atol=0.51 / 255)
    assert shares.std() > 5


def test_a_pixel_that_is_no_number_is_named_by_its_place(tmp_path: Path, out: Path) -> None:
    image = smooth(256, 128).astype(np.float32) / 255
    good = save_tiled(tmp_path / "good.tif", image)
    image[200, 100] = np.nan
    bad = save_tiled(tmp_path / "bad.tif", image)
    summary = run(tiled(64), [bad, good], Outputs(out, "zarr"))
    (failure,) = summary.failed
    assert failure["message"].startswith(f"{bad}: rows ")
    assert "values that are NaN or infinite" in failure["message"]
    assert [entry["input"] for entry in summary.outputs] == [str(good)]


def test_an_image_that_breaks_off_half_way_fails_alone(tmp_path: Path, out: Path) -> None:
    image = noise(512, 256)[..., 0]
    before, after = (save_tiled(tmp_path / name, image) for name in ("1.tif", "3.tif"))
    broken = save_tiled(tmp_path / "2.tif", image, compression="zlib")
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size * 2 // 3])
    predictor = tiled(64)
    spy = Spy(predictor)
    summary = run(predictor, [before, broken, after], Outputs(out))
    (failure,) = summary.failed
    assert failure["message"].startswith(f"{broken}: rows ")
    assert "truncated or damaged" in failure["message"]
    assert [entry["input"] for entry in summary.outputs] == [str(before), str(after)]
    assert 2 * 32 < spy.windows < 3 * 32
    for entry in summary.outputs:
        np.testing.assert_array_equal(mask_of(entry), tiled(None).labels(image[..., None]))
    assert sorted(path.name for path in out.iterdir()) == ["1.png", "3.png"]


# An end half-way.


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows are not run together."""
    monkeypatch.setattr("pixelwise.stream.BATCH_PIXELS", 1)


def interrupted_after(count: int) -> Callable[[int], None]:
    def check(windows: int) -> None:
        if windows >= count:
            raise KeyboardInterrupt

    return check


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("options", [PostProcess(), PostProcess(None, 40, 30)])
@pytest.mark.parametrize("form", ["zarr", "tiff"])
def test_a_prediction_goes_on_where_it_was_interrupted(
    form: Any, options: PostProcess, tmp_path: Path, out: Path, little_memory: Callable[[], None]
) -> None:
    little_memory()
    image = smooth(512, 384)
    source = save_tiled(tmp_path / "x.tif", image)
    outputs = Outputs(out, form, probabilities=True, clean=options)
    first = tiled(128)
    Spy(first, interrupted_after(7))
    with pytest.raises(KeyboardInterrupt):
        run(first, [source], outputs)
    second = tiled("auto")  # it goes on with the tiles that it began with
    spy = Spy(second)
    entry = only(run(second, [source], replace(outputs, resume=True)))
    assert 12 - 7 <= spy.windows < 12
    assert entry["tiles"] == 12
    whole = tiled(None)
    np.testing.assert_array_equal(mask_of(entry), clean(whole.labels(image[..., None]), options))
    chances = torch.from_numpy(whole.logits(image[..., None])).softmax(0).numpy()
    np.testing.assert_allclose(pixels_of(entry["probabilities"]) / 255, chances, atol=0.501 / 255)
    third = tiled("auto")
    spy = Spy(third)
    again = run(third, [source], replace(outputs, resume=True))
    assert again.finished_before
    assert spy.windows == 0
    assert again.outputs == [{key: value for key, value in entry.items() if key != "tiles"}]


@pytest.mark.parametrize("options", [PostProcess(), PostProcess(None, 40, 30)])
def test_an_end_while_the_file_is_assembled_costs_no_tile(
    options: PostProcess, tmp_path: Path, out: Path, little_memory: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    little_memory()
    image = smooth(128, 160)
    source = save_tiled(tmp_path / "x.tif", image)
    with monkeypatch.context() as patch:
        patch.setattr("pixelwise.canvas.write_pyramid_tiff", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tiled(32), [source], Outputs(out, "tiff", clean=options))
    assert not (out / "x.tif").exists()
    predictor = tiled(32)
    spy = Spy(predictor)
    entry = only(run(predictor, [source], Outputs(out, "tiff", clean=options, resume=True)))
    assert spy.windows == 0
    np.testing.assert_array_equal(mask_of(entry), clean(tiled(None).labels(image[..., None]), options))
    assert [path.name for path in out.iterdir()] == ["x.tif"]


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.filterwarnings("ignore::pixelwise.predict.ApproximateWarning")
def test_what_is_blended_goes_on_too(tmp_path: Path, out: Path) -> None:
    image = smooth(130, 200)
    source, network = save_tiled(tmp_path / "x.tif", image), make_network(norm="group")
    first = tiled(64, network)
    Spy(first, interrupted_after(3))
    with pytest.raises(KeyboardInterrupt):
        run(first, [source], Outputs(out, "zarr"))
    predictor = tiled("auto", network)
    entry = only(run(predictor, [source], Outputs(out, "zarr", resume=True)))
    np.testing.assert_array_equal(mask_of(entry), tiled(64, network).labels(image[..., None]))


def test_of_many_images_only_those_that_are_left_are_predicted(tmp_path: Path, out: Path) -> None:
    paths = [save(tmp_path / f"{number}.png", smooth(20 + number, 30, number)) for number in range(4)]
    outputs = Outputs(out, probabilities=True, overlay=True)
    first = run(tiled("auto"), [*paths[:2]], outputs)
    predictor = tiled("auto")
    spy = Spy(predictor)
    summary = run(predictor, [*paths], replace(outputs, resume=True))
    assert not summary.finished_before
    assert [entry["input"] for entry in summary.outputs] == [str(path) for path in paths]
    assert spy.windows == 2
    assert summary.outputs[:2] == first.outputs
    again = run(predictor, [*paths], replace(outputs, resume=True))
    assert again.finished_before
    assert again.outputs == summary.outputs
    save(paths[1], smooth(21, 30, 9))  # another image
    run(predictor, [*paths], replace(outputs, resume=True))
    assert spy.windows == 3


def test_nothing_to_resume(tmp_path: Path, out: Path) -> None:
    source = save(tmp_path / "x.png", smooth(20, 30))
    with pytest.raises(RunError, match=r"out: holds no prediction that could be resumed\. Start without --resume\."):
        run(tiled(), [source], Outputs(out, resume=True))


@pytest.mark.usefixtures("one_by_one")
def test_other_settings_do_not_go_on(tmp_path: Path, out: Path) -> None:
    source = save_tiled(tmp_path / "x.tif", smooth(128, 128))
    first = tiled(32)
    Spy(first, interrupted_after(5))
    with pytest.raises(KeyboardInterrupt):
        run(first, [source], Outputs(out, "zarr"))
    with pytest.raises(RunError, match=r"x\.zarr: was begun with other .*: skip_background was False and is True"):
        run(tiled(32), [source], Outputs(out, "zarr", skip_background=True, resume=True))
    other = make_network()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(RunError, match=r"x\.zarr: was begun with other .*: network was"):
        run(tiled(32, other), [source], Outputs(out, "zarr", resume=True))


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_stream
from pixelwise import stream
from pixelwise.canvas import Outputs
stream.BATCH_PIXELS = 1
predictor = test_stream.tiled(64)
test_stream.Spy(predictor, lambda count: count >= 20 and os.kill(os.getpid(), signal.SIGKILL))
test_stream.run(predictor, [Path({source!r})], Outputs(Path({out!r}), "zarr"))
"""


def test_a_process_that_was_killed_leaves_whole_tiles(tmp_path: Path, out: Path) -> None:
    image = smooth(512, 512)
    source = save_tiled(tmp_path / "x.tif", image)
    code = KILLED.format(tests=str(Path(__file__).parent), source=str(source), out=str(out))
    killed = subprocess.run([sys.executable, "-c", code], check=False, timeout=120, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    expected = tiled(None).labels(image[..., None])
    left = pixels_of(out / "x.zarr")
    assert left.any()
    assert ((left == expected) | (left == 0)).all()
    predictor = tiled(64)
    spy = Spy(predictor)
    entry = only(run(predictor, [source], Outputs(out, "zarr", resume=True)))
    assert 64 - 20 <= spy.windows < 64
    np.testing.assert_array_equal(mask_of(entry), expected)


def test_a_full_disk_stops_with_what_is_written(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = smooth(256, 256)
    source = save_tiled(tmp_path / "x.tif", image)
    write, calls = ZarrMask.write, []

    def full(self: ZarrMask, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) > 6:
            raise OutputError("x.zarr: cannot be written (No space left on device).")
        write(self, *arguments)

    monkeypatch.setattr(ZarrMask, "write", full)
    with pytest.raises(OutputError, match="No space left on device"):
        run(tiled(64), [source], Outputs(out, "zarr"))
    monkeypatch.undo()
    left, expected = pixels_of(out / "x.zarr"), tiled(None).labels(image[..., None])
    np.testing.assert_array_equal(left[:64], expected[:64])
    assert not left[128:].any()
    predictor = tiled(64)
    spy = Spy(predictor)
    np.testing.assert_array_equal(mask_of(only(run(predictor, [source], Outputs(out, "zarr", resume=True)))), expected)
    assert spy.windows == 16 - 6


# What is not exact, and what does not fit.


class Averaging(nn.Module):
    """Compares pixels with the mean of what it is given."""

    geometry = Geometry(stride=4, halo=0, margin=0, exact=False, reason="it averages over the whole image")

    def forward(self, images: Tensor) -> Tensor:
        apart = images - images.mean((2, 3), keepdim=True)
        return torch.cat([-apart, apart], 1)


@pytest.mark.filterwarnings("ignore::pixelwise.predict.ApproximateWarning")
@pytest.mark.parametrize("form", ["png", "zarr"])
@pytest.mark.parametrize("kind", ["group", "averaging"])
def test_what_is_blended_says_so(kind: str, form: Any, tmp_path: Path, out: Path) -> None:
    network = make_network(norm="group") if kind == "group" else Averaging()
    image = smooth(130, 200)
    source = save_tiled(tmp_path / "x.tif", image)
    notes: list[str] = []
    predictor = tiled(64, network)
    entry = only(predict_files(predictor, [str(source)], Outputs(out, form), progress=Progress(note=notes.append)))
    assert entry["approximate"] is True
    assert any("are blended, which only comes near" in note for note in notes)
    np.testing.assert_array_equal(mask_of(entry), predictor.labels(image[..., None]))  # blended there as well
    assert (mask_of(entry) == tiled(None, network).labels(image[..., None])).mean() > 0.8
    whole = only(run(tiled("auto", network), [source], Outputs(out / "whole", form)))
    assert "approximate" not in whole
    np.testing.assert_array_equal(mask_of(whole), tiled(None, network).labels(image[..., None]))


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_scaled_images_by_tiles(form: Any, tmp_path: Path, out: Path) -> None:
    image = smooth(101, 150)
    entry = only(run(tiled(16, scale=0.5), [save_tiled(tmp_path / "x.tif", image)], Outputs(out, form)))
    np.testing.assert_array_equal(mask_of(entry), tiled(None, scale=0.5).labels(image[..., None]))


def test_what_is_scaled_is_no_zarr(tmp_path: Path, out: Path) -> None:
    source = save_tiled(tmp_path / "x.tif", smooth(64, 64))
    (failure,) = run(tiled(16, scale=0.5), [source], Outputs(out, "zarr")).failed
    assert failure["message"] == f"{source}: a network with data.scale other than 1 writes PNG or TIFF, not Zarr."


def test_what_does_not_fit_the_memory(tmp_path: Path, out: Path, little_memory: Callable[[], None]) -> None:
    source = save_tiled(tmp_path / "x.tif", smooth(64, 64))
    little_memory()
    (failure,) = run(tiled(16), [source], Outputs(out, "png")).failed
    assert failure["message"].startswith(f"{source}: a PNG holds the whole mask of 64 x 64 pixels in memory")
    assert "0 MiB are left; take --format tiff or zarr, or allow more" in failure["message"]
    (failure,) = run(tiled(16, scale=0.5), [source], Outputs(out, "tiff")).failed
    assert "a network with data.scale other than 1 holds the whole mask" in failure["message"]


def test_a_scaled_image_larger_than_the_memory(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_tiled(tmp_path / "x.tif", smooth(64, 64))
    monkeypatch.setattr("pixelwise.page.held_bytes", lambda: 2**60)
    (failure,) = run(tiled(16, scale=0.5), [source], Outputs(out)).failed
    assert failure["message"].startswith(f"{source}: is scaled by data.scale as a whole")
    assert "are allowed. Allow more." in failure["message"]


def test_a_network_of_other_classes_than_the_run(tmp_path: Path, out: Path) -> None:
    source = save(tmp_path / "x.png", smooth(16, 16))
    predictor = tiled("auto", Brightness(-1.0, 0.0, 1.0))
    (failure,) = run(predictor, [source], Outputs(out)).failed
    assert failure["message"] == f"{source}: the network returned 3 classes, and the run has 2."


def test_a_threshold_is_for_two_classes(tmp_path: Path, out: Path) -> None:
    config = make_settings(labels="index", classes=["a", "b", "c"], colors=[[0, 0, 0], [1, 1, 1], [2, 2, 2]], values=[])
    predictor = Predictor(Brightness(-1.0, 0.0, 1.5), config, engine="torch")
    with pytest.raises(SettingError, match="threshold"):
        run(predictor, [save(tmp_path / "x.png", smooth(8, 8))], Outputs(out, clean=PostProcess(0.4)))


def test_what_takes_long_is_announced(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelwise.stream.LONG_SECONDS", 0.0)
    monkeypatch.setattr("pixelwise.stream.LONG_PIXELS", 0)
    notes: list[str] = []
    source = save_tiled(tmp_path / "x.tif", smooth(64, 64))
    predict_files(tiled(32), [str(source)], Outputs(out), progress=Progress(note=notes.append))
    assert "0 megapixels in 4 windows of" in notes[0]
    assert "minutes; the mask takes at most" in notes[0]


def test_a_region_may_be_a_mask_with_a_palette(tmp_path: Path, out: Path) -> None:
    """Whose colours may have no red; the numbers count, not a channel."""
    image, region = smooth(40, 40), np.zeros((40, 40), np.uint8)
    region[5:20] = 1
    picture = Image.fromarray(region)
    picture.putpalette([0, 0, 0, 0, 160, 0] + [0, 0, 0] * 254)
    picture.save(tmp_path / "region.png")
    entry = only(run(tiled(None), [save(tmp_path / "x.png", image)], Outputs(out, inside=tmp_path / "region.png")))
    np.testing.assert_array_equal(mask_of(entry), tiled(None).labels(image[..., None]) * region)


@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("form", ["tiff", "zarr"])
def test_outside_of_a_region_background_is_certain(tile: int | None, form: Any, tmp_path: Path, out: Path) -> None:
    image, region = smooth(48, 48), np.zeros((48, 48), np.uint8)
    region[20:40, 3:9] = 1
    outputs = Outputs(out, form, probabilities=True, inside=save(tmp_path / "region.png", region))
    entry = only(run(tiled(tile), [save(tmp_path / "x.png", image)], outputs))
    background, other = pixels_of(entry["probabilities"])
    assert (background[region == 0] == 255).all()
    assert (other[region == 0] == 0).all()
    assert background[region == 1].min() < 255


def test_without_room_for_a_png_auto_takes_tiff(tmp_path: Path, out: Path, little_memory: Callable[[], None]) -> None:
    image = smooth(64, 64)
    source = save_tiled(tmp_path / "x.tif", image)
    little_memory()
    entry = only(run(tiled(16), [source], Outputs(out)))
    assert entry["mask"].endswith("x.tif")
    np.testing.assert_array_equal(mask_of(entry), tiled(None).labels(image[..., None]))


def test_a_foreign_zarr_in_the_way_is_one_image_s_failure(tmp_path: Path, out: Path) -> None:
    """Begun with other settings, it cannot be resumed; the other image can."""
    sources = [save_tiled(tmp_path / name, smooth(32, 32)) for name in ("a.tif", "b.tif")]
    run(tiled(16), [sources[0]], Outputs(out, "zarr"))
    again = Outputs(out, "zarr", clean=PostProcess(0.3), resume=True)
    summary = run(tiled(16), [*sources], again)
    assert [failure["input"] for failure in summary.failed] == [str(sources[0])]
    assert "was begun with other input or settings" in summary.failed[0]["message"]
    assert only(Summary(outputs=summary.outputs))["input"] == str(sources[1])


def test_an_engine_that_fails_once_fails_what_it_was_given(tmp_path: Path, out: Path, one_by_one: None) -> None:
    sources = [save(tmp_path / f"{name}.png", smooth(16, 16)) for name in "abc"]

    calls = iter(range(9))

    def fail_second(count: int) -> None:
        if next(calls) == 1:
            raise ModelError("it is too much")

    predictor = tiled("auto")
    Spy(predictor, fail_second)
    summary = run(predictor, [*sources], Outputs(out))
    assert [failure["message"] for failure in summary.failed] == [f"{sources[1]}: it is too much"]
    assert [entry["input"] for entry in summary.outputs] == [str(sources[0]), str(sources[2])]


def test_a_file_larger_than_the_memory_that_must_be_read_whole(tmp_path: Path, out: Path) -> None:
    predictor = tiled("auto")
    sources = [save(tmp_path / "x.png", noise(64, 64)), save(tmp_path / "y.png", noise(4, 4))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pixelwise.stream.held_bytes", lambda: predictor.limit - 1000)
        summary = run(predictor, [*sources], Outputs(out))
    assert [entry["input"] for entry in summary.outputs] == [str(sources[1])]
    assert "can only be read as a whole" in summary.failed[0]["message"]
    assert "Save it as a tiled TIFF or a Zarr" in summary.failed[0]["message"]
