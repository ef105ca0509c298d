"""Files in, masks out: what is written, and how images of any size come through."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from PIL import Image
from scipy import ndimage

from networks import Brightness, make_settings
from pixelwise.core.errors import OutputError
from pixelwise.data.files.readers import read_image, read_mask
from pixelwise.data.pixels import pictures
from pixelwise.models import UNet
from pixelwise.prediction.postprocess import PostProcess, clean
from pixelwise.prediction.predictor import Predictor
from pixelwise.prediction.requests import OutputOptions
from pixelwise.prediction.stream import Listener, predict_files
from streams import (
    Spy,
    bright,
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


def test_a_mask_is_an_index_image_with_the_colors_of_the_classes(tmp_path: Path, out: Path) -> None:
    image = noise(21, 34)
    source = save(tmp_path / "a.b.png", image)
    predictor = bright()
    summary = run(predictor, [source], OutputOptions(out))
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
    summary = run(bright(), [save(tmp_path / "a.png", image)], OutputOptions(out, "tiff"))
    assert summary.outputs[0]["mask"] == str(out / "a.tif")
    np.testing.assert_array_equal(read_mask(out / "a.tif")[0], image[..., 0] > 127)
    with tifffile.TiffFile(out / "a.tif") as file:
        assert file.pages[0].colormap[:, 1].tolist() == [250 * 257, 120 * 257, 10 * 257]  # type: ignore[union-attr]


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_a_stack_becomes_a_stack(tmp_path: Path, out: Path, form: Any) -> None:
    stack = save_stack(tmp_path / "s.tif", 3)
    predictor = Predictor(Brightness(-1.0, 1.0), make_settings(labels="instances", values=[]), engine="torch")
    summary = run(predictor, [tmp_path / "s.tif"], OutputOptions(out, form, probabilities=True, overlay=True))
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
    summary = run(predictor, [save(tmp_path / "x.png", image)], OutputOptions(out, probabilities=True))
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
    summary = run(predictor, [save(tmp_path / "x.png", image)], OutputOptions(out, overlay=True))
    assert summary.outputs[0]["overlay"] == str(out / "overlays" / "x.png")
    expected = pictures.overlay(image, predictor.labels(image), predictor.classes)
    np.testing.assert_array_equal(read_image(out / "overlays" / "x.png")[0], expected)


def test_instances_are_connected_components(tmp_path: Path, out: Path) -> None:
    image = ndimage.uniform_filter(noise(64, 80)[..., 0].astype(float), 5)
    image = (255 * (image > np.median(image))).astype(np.uint8)
    expected, count = ndimage.label(image)  # pixels that share a side
    assert count > 5
    predictor = bright(labels="instances", values=[])
    summary = run(predictor, [save(tmp_path / "x.png", image)], OutputOptions(out))
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
    summary = run(predictor, [save(tmp_path / "x.png", board)], OutputOptions(out))
    assert summary.outputs[0]["instances"] == str(out / "instances" / "x.tif")
    ids = read_mask(out / "instances" / "x.tif")[0]
    assert ids.dtype == np.uint32
    assert ids.max() == len(np.unique(ids)) - 1 == 370 * 370 // 2
    assert (out / "x.png").is_file()


def test_names_that_collide_keep_their_folders(tmp_path: Path, out: Path) -> None:
    names = ["a/x.png", "b/x.png", "b/y.png", "b/deep/X.png"]
    paths = [save(tmp_path / "in" / name, noise(4, 5, seed=seed)) for seed, name in enumerate(names)]
    summary = run(bright(), [*paths], OutputOptions(out, overlay=True))
    masks = [Path(str(entry["mask"])).relative_to(out).as_posix() for entry in summary.outputs]
    assert masks == ["a/x.png", "b/x.png", "y.png", "b/deep/X.png"]
    assert (out / "overlays" / "b" / "deep" / "X.png").is_file()
    for path, entry in zip(paths, summary.outputs, strict=True):
        np.testing.assert_array_equal(read_mask(Path(str(entry["mask"])))[0], np.asarray(Image.open(path)) > 127)


def test_names_that_differ_in_their_extension_keep_it(tmp_path: Path, out: Path) -> None:
    paths = [save(tmp_path / name, noise(4, 5)) for name in ("x.png", "x.tif", "x.png.bmp", "z.png")]
    summary = run(bright(), [*paths], OutputOptions(out))
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
    summary = run(bright(), [*links], OutputOptions(out))
    assert [str(entry["mask"]) for entry in summary.outputs] == [str(out / "a" / "x.png"), str(out / "b" / "x.png")]


def test_a_path_that_goes_up_stays_inside_the_output_folder(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("x.png", "here/x.png"):
        save(tmp_path / name, noise(4, 5))
    monkeypatch.chdir(tmp_path / "here")
    summary = run(bright(), ["x.png", "../x.png"], OutputOptions(out))
    assert [str(entry["mask"]) for entry in summary.outputs] == [str(out / "here" / "x.png"), str(out / "x.png")]


def test_one_that_is_broken_does_not_stop_the_others(tmp_path: Path, out: Path) -> None:
    good = [save(tmp_path / name, noise(6, 8)) for name in ("1.png", "5.png")]
    broken = save(tmp_path / "2.png", noise(60, 80))
    broken.write_bytes(broken.read_bytes()[:200])
    color = save(tmp_path / "3.png", noise(6, 8, 3))
    missing = tmp_path / "4.png"
    calls: list[tuple[float, int]] = []
    inputs = [str(path) for path in (good[0], broken, color, missing, good[1])]
    listener = Listener(show=lambda *call: calls.append(call))
    summary = predict_files(bright(), inputs, OutputOptions(out), listener=listener)
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
    summary = predict_files(bright(), [str(path)], OutputOptions(out))
    assert "--axes" in summary.failed[0]["message"]
    summary = predict_files(bright(), [str(path)], OutputOptions(out), axes="TZYX")
    assert summary.outputs[0]["pages"] == 6


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_an_image_is_never_replaced_by_its_mask(tmp_path: Path, form: Any) -> None:
    source = save(tmp_path / ("x.png" if form == "png" else "x.tif"), noise(4, 5))
    before = source.read_bytes()
    with pytest.raises(OutputError, match=r"x\.(png|tif): is the image itself, and its mask would replace it\. Choose"):
        run(bright(), [source], OutputOptions(tmp_path, form))
    assert source.read_bytes() == before
    run(bright(), [source], OutputOptions(tmp_path, "tiff" if form == "png" else "png"))
    assert source.read_bytes() == before


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    source = save(tmp_path / "x.png", noise(4, 5))
    with pytest.raises(
        OutputError, match=r"x\.png: cannot be written \(.+\)\. Free some space or choose another folder"
    ):
        run(bright(), [source], OutputOptions(source / "masks"))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_network_of_either_form_labels_files(tmp_path: Path, out: Path, padding: Any) -> None:
    source = save(tmp_path / "x.png", noise(37, 51))
    torch.manual_seed(0)
    predictor = Predictor(UNet(1, 2, width=2, depth=2, padding=padding), make_settings(), engine="torch")
    run(predictor, [source], OutputOptions(out))
    mask = read_mask(out / "x.png")[0]
    assert mask.shape == (37, 51)
    np.testing.assert_array_equal(mask, predictor.labels(read_image(source)[0]))


# Tiles.


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_every_format_holds_the_mask_of_the_whole_image(
    padding: Any, tmp_path: Path, out: Path, little_memory: Callable[[], None]
) -> None:
    image = smooth(201, 170)
    source, network = save_tiled(tmp_path / "x.tif", image), make_network(padding=padding)
    expected = tiled(None, network).labels(image[..., None])
    assert 0.02 < expected.mean() < 0.98
    for form in ("png", "tiff", "zarr"):
        entry = only(run(tiled(32, network), [source], OutputOptions(out / form, form)))
        assert entry["tiles"] == 7 * 6
        np.testing.assert_array_equal(mask_of(entry), expected)
    little_memory()
    entry = only(run(tiled(32, network), [source], OutputOptions(out / "grown", "tiff")))
    assert entry["mask"] == str(out / "grown" / "x.tif")
    np.testing.assert_array_equal(mask_of(entry), expected)
    assert [path.name for path in (out / "grown").iterdir()] == ["x.tif"]


def test_a_zarr_stays_a_zarr(tmp_path: Path, out: Path) -> None:
    image = smooth(80, 90)
    zarr.create_array(store=str(tmp_path / "x.zarr"), data=image, chunks=(32, 32), dimension_names=["y", "x"])
    entry = only(run(tiled(), [tmp_path / "x.zarr"], OutputOptions(out)))
    assert entry["mask"] == str(out / "x.zarr")
    np.testing.assert_array_equal(mask_of(entry), tiled(None).labels(image[..., None]))


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("form", ["tiff", "zarr"])
def test_stacks_by_tiles(form: Any, grows: bool, tmp_path: Path, out: Path, little_memory: Callable[[], None]) -> None:
    stack = save_stack(tmp_path / "s.tif", 3, 40, 50)
    if grows:
        little_memory()
    entry = only(run(tiled(16), [tmp_path / "s.tif"], OutputOptions(out, form, probabilities=True)))
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
    outputs = OutputOptions(out, form, probabilities=True, probability_type=kind)
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
            entry = only(run(tiled(tile), [source], OutputOptions(out / form, form, clean=options)))
            np.testing.assert_array_equal(mask_of(entry), expected)
        assert len(list((out / form).iterdir())) == 1
    little_memory()
    entry = only(run(tiled(16), [source], OutputOptions(out / "grown", "tiff", clean=options)))
    np.testing.assert_array_equal(mask_of(entry), expected)
    assert [path.name for path in (out / "grown").iterdir()] == ["x.tif"]


@pytest.mark.parametrize(("form", "scale"), [("png", 1.0), ("png", 0.5), ("zarr", 1.0), ("zarr", 0.5)])
@pytest.mark.parametrize("tile", [None, 16])
def test_only_inside_of_a_mask(form: Any, tile: int | None, scale: float, tmp_path: Path, out: Path) -> None:
    image = smooth(64, 96)
    region = np.zeros((32, 48), np.uint8)
    region[3:20, 5:17] = 7
    inside = save(tmp_path / "region.png", region)
    entry = only(
        run(tiled(tile, scale=scale), [save(tmp_path / "x.png", image)], OutputOptions(out, form, inside=inside))
    )
    expected = tiled(None, scale=scale).labels(image[..., None]) * (region.repeat(2, 0).repeat(2, 1) > 0)
    assert expected.any()
    np.testing.assert_array_equal(mask_of(entry), expected)
    if tile:  # 16 pixels of the network
        assert entry["skipped_tiles"] == (4 * 6 - 3 * 3 if scale == 1 else 2 * 3 - 2 * 2)


def test_a_folder_of_masks_to_stay_inside_of(tmp_path: Path, out: Path) -> None:
    image, region = smooth(30, 40), np.zeros((30, 40), np.uint8)
    region[:9, 7:] = 1
    paths = [save(tmp_path / name, image) for name in ("a.png", "b.png", "c.png")]
    save(tmp_path / "regions" / "a.tif", region)
    save(tmp_path / "regions" / "b.png", region[:-4])
    summary = run(tiled(None), [*paths], OutputOptions(out, inside=tmp_path / "regions"))
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
        entry = only(run(predictor, [source], OutputOptions(out / str(skip), "zarr", skip_background=skip)))
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
    summary = run(predictor, [*paths], OutputOptions(out))
    assert [shape[0] for shape in spy.shapes] == [9, 3, 2, 1]
    assert [entry["input"] for entry in summary.outputs] == [str(path) for path in paths]
    assert summary.pixels == sum(image.size for image in images)
    for image, entry in zip(images, summary.outputs, strict=True):
        np.testing.assert_array_equal(mask_of(entry), tiled(None).labels(image[..., None]))


def test_percentiles_are_those_of_the_whole_image(tmp_path: Path, out: Path) -> None:
    image = smooth(150, 170).astype(np.uint16) * 3 + 50
    keywords: dict[str, Any] = {"normalization": "percentile", "mean": [0.0], "std": [1.0]}
    entry = only(
        run(tiled(**keywords), [save_tiled(tmp_path / "x.tif", image)], OutputOptions(out, probabilities=True))
    )
    logits = tiled(None, **keywords).logits(image[..., None])
    shares = pixels_of(entry["probabilities"])
    np.testing.assert_allclose(shares / 255, torch.from_numpy(logits).softmax(0), atol=0.51 / 255)
    assert shares.std() > 5


def test_a_pixel_that_is_no_number_is_named_by_its_place(tmp_path: Path, out: Path) -> None:
    image = smooth(256, 128).astype(np.float32) / 255
    good = save_tiled(tmp_path / "good.tif", image)
    image[200, 100] = np.nan
    bad = save_tiled(tmp_path / "bad.tif", image)
    summary = run(tiled(64), [bad, good], OutputOptions(out, "zarr"))
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
    summary = run(predictor, [before, broken, after], OutputOptions(out))
    (failure,) = summary.failed
    assert failure["message"].startswith(f"{broken}: rows ")
    assert "truncated or damaged" in failure["message"]
    assert [entry["input"] for entry in summary.outputs] == [str(before), str(after)]
    assert 2 * 32 < spy.windows < 3 * 32
    for entry in summary.outputs:
        np.testing.assert_array_equal(mask_of(entry), tiled(None).labels(image[..., None]))
    assert sorted(path.name for path in out.iterdir()) == ["1.png", "3.png"]


def test_a_region_may_be_a_mask_with_a_palette(tmp_path: Path, out: Path) -> None:
    """Whose colours may have no red; the numbers count, not a channel."""
    image, region = smooth(40, 40), np.zeros((40, 40), np.uint8)
    region[5:20] = 1
    picture = Image.fromarray(region)
    picture.putpalette([0, 0, 0, 0, 160, 0] + [0, 0, 0] * 254)
    picture.save(tmp_path / "region.png")
    entry = only(
        run(tiled(None), [save(tmp_path / "x.png", image)], OutputOptions(out, inside=tmp_path / "region.png"))
    )
    np.testing.assert_array_equal(mask_of(entry), tiled(None).labels(image[..., None]) * region)


@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("form", ["tiff", "zarr"])
def test_outside_of_a_region_background_is_certain(tile: int | None, form: Any, tmp_path: Path, out: Path) -> None:
    image, region = smooth(48, 48), np.zeros((48, 48), np.uint8)
    region[20:40, 3:9] = 1
    outputs = OutputOptions(out, form, probabilities=True, inside=save(tmp_path / "region.png", region))
    entry = only(run(tiled(tile), [save(tmp_path / "x.png", image)], outputs))
    background, other = pixels_of(entry["probabilities"])
    assert (background[region == 0] == 255).all()
    assert (other[region == 0] == 0).all()
    assert background[region == 1].min() < 255
