"""Predictions of files that mean something else than their pixels seem to: bits, brightness, series, places."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from networks import make_settings
from pixelwise.core.errors import DataError, OutputError, SettingError
from pixelwise.data.files.facts import FileFacts
from pixelwise.data.files.physical import micrometres
from pixelwise.data.files.sources import open_source
from pixelwise.data.pixels.normalize import stretched, unlike_training
from pixelwise.prediction.canvas import MemoryCanvas, open_canvas
from pixelwise.prediction.requests import OutputOptions
from pixelwise.prediction.stream import Listener, Outcome, predict_files
from streams import Spy, bright, mask_of, noise, only, save, smooth

LEVELS = [0.1, 0.6, 0.5, 0.7]


def run(
    inputs: list[Path | str], options: OutputOptions, predictor: Any = None, **keywords: Any
) -> tuple[Outcome, list[str]]:
    notes: list[str] = []
    texts = [str(path) for path in inputs]
    found = predict_files(predictor or bright(), texts, options, listener=Listener(note=notes.append), **keywords)
    return found, notes


# Bits and brightness


def test_twelve_bits_are_normalised_as_their_stretched_twin(tmp_path: Path, out: Path) -> None:
    image = np.random.default_rng(0).integers(0, 4096, (40, 50), dtype=np.uint16)
    tags = [(341, "H", 1, 4095, True)]
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", extratags=tags)
    tifffile.imwrite(tmp_path / "b.tif", (image / 4095 * 65535).round().astype(np.uint16), photometric="minisblack")
    outcome, _ = run([tmp_path / "a.tif", tmp_path / "b.tif"], OutputOptions(out))
    masks = [mask_of(entry) for entry in outcome.outputs]
    assert 0.4 < masks[0].mean() < 0.6
    assert (masks[0] != masks[1]).mean() < 0.001


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(1, False), (0.5, False), (1.6, False), (0.4, False), (1 / 16, True), (1 / 4.2, True), (1 / 64, True), (99, True)],
)
def test_an_image_far_from_the_training_is_seen(factor: float, expected: bool) -> None:
    settings = make_settings(levels=LEVELS).data
    assert unlike_training(0.1 * factor, 0.6 * factor, settings) is expected
    by_percentiles = make_settings(levels=LEVELS, normalization="percentile").data
    assert not unlike_training(0.1 * factor, 0.6 * factor, by_percentiles)
    assert not unlike_training(0.1 * factor, 0.6 * factor, make_settings().data)


def test_an_empty_image_of_the_same_kind_is_not_far() -> None:
    assert not unlike_training(0.1, 0.12, make_settings(levels=LEVELS).data)
    assert not unlike_training(0.0, 0.0, make_settings(levels=LEVELS).data)


def test_decibels_have_no_ratio() -> None:
    settings = make_settings(levels=[-25.0, -5.0, -8.0, -3.0]).data
    assert not unlike_training(-27, -8, settings)
    assert unlike_training(0.0, 1.0, settings) is False
    assert unlike_training(100, 200, settings)
    assert unlike_training(-100, -60, settings)


def test_what_is_said_of_an_image_far_from_the_training(tmp_path: Path, out: Path) -> None:
    dark = (smooth(60, 60).astype(np.uint16) * 16).clip(256)
    tifffile.imwrite(tmp_path / "a.tif", dark, photometric="minisblack")
    save(tmp_path / "b.png", smooth(60, 60))
    predictor = bright(levels=[0.1, 0.8, 0.7, 0.9])
    _, notes = run([tmp_path / "a.tif", tmp_path / "b.png"], OutputOptions(out), predictor)
    (note,) = notes
    low, high = np.percentile(dark, (1, 99)) / 65535
    assert note == (
        f"{tmp_path / 'a.tif'}: its intensities reach from {low:.3g} to {high:.3g} of full scale (1st to 99th "
        "percentile), those of the training from 0.1 to 0.8; its bits may not be what its type says, and the result "
        "may be worthless: scale the image as those of the training, or predict with --normalize percentile"
    )


def test_a_stretch_to_the_level_of_the_training() -> None:
    """An image of the training's own level is normalised the same both ways; one 16 times darker gets there."""
    from pixelwise.data.pixels.normalize import Normalization

    image = np.random.default_rng(0).random((100, 100, 1)).astype(np.float32)
    low, high = np.percentile(image, (1, 99))
    fixed = make_settings(levels=[float(low), float(high), 0.5, 1.0]).data
    other = stretched(fixed)
    expected = Normalization.from_settings(fixed)(image)
    np.testing.assert_allclose(Normalization.from_settings(other)(image), expected, atol=1e-4)
    np.testing.assert_allclose(Normalization.from_settings(other)(image / 16), expected, atol=1e-4)
    assert stretched(other) is other
    with pytest.raises(SettingError, match=r"--normalize percentile: the run does not say how bright its training"):
        stretched(make_settings().data)


# Several images in a file


def test_series_and_what_is_said_about_a_file(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "a.tif"
    small, large = noise(20, 30)[..., 0], noise(60, 50, seed=1)[..., 0]
    with tifffile.TiffWriter(path) as writer:
        for page in (small, large):
            writer.write(page, photometric="minisblack", metadata=None)
    for series, image in ((None, large), (0, small), (1, large)):
        outcome, notes = run([path], OutputOptions(out / str(series), series=series))
        np.testing.assert_array_equal(mask_of(only(outcome)), image > 127)
        assert notes == [f"{path}: holds 2 images; one is read, by default the largest (choose another with --series)"]
    outcome, _ = run([path], OutputOptions(out / "2", series=2))
    assert outcome.failed[0]["message"] == (
        f"{path}: holds 2 images, numbered from 0 to 1, but --series asks for number 2. Choose one of these."
    )


def test_a_stack_in_several_ome_files_is_done_once(tmp_path: Path, out: Path) -> None:
    stack = np.stack([noise(30, 20, seed=page)[..., 0] for page in range(2)])
    names = ("s_0.ome.tif", "s_1.ome.tif")
    parts = "".join(
        f'<TiffData FirstZ="{z}" FirstC="0" FirstT="0" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{z}'
        "</UUID></TiffData>"
        for z, name in enumerate(names)
    )
    for z, name in enumerate(names):
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{z}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" '
            f'SizeX="20" SizeY="30" SizeZ="2" SizeC="1" SizeT="1"><Channel ID="Channel:0:0"/>{parts}</Pixels></Image>'
            "</OME>"
        )
        tifffile.imwrite(tmp_path / name, stack[z], photometric="minisblack", description=xml, metadata=None)
    outcome, _ = run([tmp_path], OutputOptions(out))
    entry = only(outcome)
    assert entry["input"] == str(tmp_path / names[0])
    np.testing.assert_array_equal(tifffile.imread(entry["mask"]), stack > 127)
    assert only(run([tmp_path / names[1]], OutputOptions(out / "b"))[0])["pages"] == 2


# Inputs that are not there, and errors that nobody expects


def test_good_inputs_are_done_beside_missing_ones(tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty").mkdir()
    good = save(tmp_path / "images" / "a.png", noise(20, 20))
    missing: list[Path | str] = [tmp_path / "b[1].png", tmp_path / "*.jpg", tmp_path / "empty", tmp_path / "c.png"]
    outcome, _ = run([missing[0], good, *missing[1:]], OutputOptions(out))
    assert [entry["input"] for entry in outcome.outputs] == [str(good)]
    again = "Give another file, folder or pattern."
    assert {failure["input"]: failure["message"] for failure in outcome.failed} == {
        str(missing[0]): f"{missing[0]}: no image matches this pattern. {again}",
        str(missing[1]): f"{missing[1]}: no image matches this pattern. {again}",
        str(missing[2]): f"{missing[2]}: contains no images. {again}",
        str(missing[3]): f"{missing[3]}: no such file.",
    }
    with pytest.raises(DataError, match="no image matches this pattern"):
        run(missing[:3], OutputOptions(out))


class Odd(MemoryCanvas):
    """Breaks in the writing thread."""

    def finish(self, details: Any, tick: Any) -> Any:
        raise ZeroDivisionError("nobody expects this")


@pytest.mark.parametrize("place", ["reading", "engine", "writing"])
def test_an_unexpected_error_ends_one_image_alone(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, one_by_one: None, place: str
) -> None:
    paths = [save(tmp_path / f"{name}.png", noise(20, 20, seed=number)) for number, name in enumerate("abc")]
    predictor, keywords = bright(), {}

    def fail(count: int) -> None:
        if count == 1:
            raise ZeroDivisionError("nobody expects this")

    if place == "reading":
        monkeypatch.setattr(
            "pixelwise.prediction.reading.Reader._tell", lambda self, image, source: fail(int(image.name.name == "b"))
        )
    elif place == "engine":
        Spy(predictor, fail)
    else:
        keywords["open_canvas"] = lambda blank: (
            Odd(blank) if blank.request.input.name.name == "b" else open_canvas(blank)
        )
    outcome, _ = run(list(paths), OutputOptions(out), predictor, **keywords)
    done = {entry["input"] for entry in outcome.outputs}
    failed = [failure for failure in outcome.failed if failure["input"] not in done]
    assert len(done) + len(failed) == 3
    assert failed[0]["input"] == str(paths[1])
    assert failed[0]["message"] == (
        f"{paths[1]}: failed unexpectedly (ZeroDivisionError: nobody expects this). This is a bug in pixelwise: please "
        f"report it with the lines in {out / 'log.txt'}."
    )
    log = (out / "log.txt").read_text()
    assert str(paths[1]) in log
    assert "Traceback" in log
    assert "nobody expects this" in log


def test_a_full_disk_ends_all(tmp_path: Path, out: Path) -> None:
    class Full(MemoryCanvas):
        def finish(self, details: Any, tick: Any) -> Any:
            raise OutputError("the disk is full.")

    paths = [save(tmp_path / f"{name}.png", noise(20, 20)) for name in "ab"]
    with pytest.raises(OutputError, match=r"the disk is full\."):
        run(list(paths), OutputOptions(out), open_canvas=Full)


# What a mask's file says


GEO = [(33550, "d", 3, (10.0, 10.0, 0.0), True), (33922, "d", 6, (0, 0, 0, 5e5, 5e6, 0), True),
       (34735, "H", 8, (1, 1, 0, 1, 3072, 0, 1, 32633), True), (34737, "s", 0, "UTM 33N|", True)]  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
def test_a_mask_lies_where_its_image_lies(tmp_path: Path, out: Path, little_memory: Any, streamed: bool) -> None:
    if streamed:
        little_memory()
    tags = [*GEO, (42113, "s", 0, "0", True)]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth(600, 700), photometric="minisblack", extratags=tags, tile=(64, 64))
    entry = only(run([path], OutputOptions(out, "tiff"))[0])
    with tifffile.TiffFile(path) as image, tifffile.TiffFile(entry["mask"]) as mask:
        for code in (33550, 33922, 34735, 34737, 42113):
            assert mask.pages.first.tags[code].value == image.pages.first.tags[code].value
            assert mask.pages.first.tags[code].dtype == image.pages.first.tags[code].dtype


@pytest.mark.parametrize(("file_format", "streamed"), [("tiff", False), ("tiff", True), ("zarr", True)])
def test_a_stack_keeps_its_distances(
    tmp_path: Path, out: Path, little_memory: Any, file_format: Any, streamed: bool
) -> None:
    if streamed:
        little_memory()
    stack = np.stack([smooth(40, 50, seed) for seed in range(3)])
    metadata = {"axes": "ZYX", "unit": "um", "spacing": 2.5}
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, resolution=(4, 4), metadata=metadata)
    entry = only(run([tmp_path / "a.tif"], OutputOptions(out, file_format))[0])
    with open_source(Path(entry["mask"])) as source:
        assert (source.facts.pixel_size, source.facts.z_spacing) == (pytest.approx(0.25), 2.5)
        assert source.pages == 3
    again = run([tmp_path / "a.tif"], OutputOptions(out, file_format, resume=True))[0]
    assert again.finished_before


@pytest.mark.parametrize("size", [1e-5, 1e7, 6e5])
def test_a_pixel_size_that_a_png_cannot_hold_is_left_out(tmp_path: Path, out: Path, size: float) -> None:
    image = smooth(40, 50)
    metadata = {"axes": "YX", **{f"PhysicalSize{axis}": size for axis in "XY"}}
    tifffile.imwrite(tmp_path / "a.ome.tif", image, photometric="minisblack", metadata=metadata)
    outcome, notes = run([tmp_path / "a.ome.tif"], OutputOptions(out))
    assert notes == [f"{out / 'a.ome.png'}: a PNG cannot hold a pixel size of {size:g} micrometres; it is left out"]
    np.testing.assert_array_equal(mask_of(only(outcome)), image > 127)
    with Image.open(out / "a.ome.png") as mask:
        assert "dpi" not in mask.info
    entry = only(run([tmp_path / "a.ome.tif"], OutputOptions(out / "tiff", "tiff"))[0])
    with open_source(Path(entry["mask"])) as source:
        assert source.facts.pixel_size in (None, pytest.approx(size, rel=1e-3))


def test_a_streamed_tiff_is_found_by_resume_and_opens_without_a_remark(
    tmp_path: Path, out: Path, little_memory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    little_memory()
    image = smooth(1100, 1200)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", tile=(256, 256))
    first = only(run([tmp_path / "a.tif"], OutputOptions(out, "tiff"))[0])
    again, _ = run([tmp_path / "a.tif"], OutputOptions(out, "tiff", resume=True))
    assert again.finished_before
    assert again.outputs == [first]
    with tifffile.TiffFile(first["mask"]) as file:
        assert [level.shape for level in file.series[0].levels] == [(1100, 1200), (550, 600), (275, 300)]
        assert len(file.series) == 1
        np.testing.assert_array_equal(file.asarray(), image > 127)
    assert [record for record in caplog.records if record.name == "tifffile"] == []
    with open_source(Path(first["mask"])) as source:
        assert source.facts == FileFacts("TIFF", palette=source.facts.palette)


# Units


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("pm", 5e-7), ("\u00c5", 5e-5), ("\u212b", 5e-5), ("nm", 5e-4), ("micrometres", 0.5), ("\u03bcm", 0.5),
     ("dm", 5e4), ("m", 5e5), ("meter", 5e5), ("km", 5e8), ("Mm", 5e11), ("in", 12700), ("thou", 12.7), ("ft", 152400),
     ("li", 0.5 * 25400 / 12), ("fm", 5e-10), ("pixel", None), ("reference frame", None), ("", None)],
)  # fmt: skip
def test_units(unit: str, expected: float | None) -> None:
    found = micrometres(0.5, unit)
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-9))


OME = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<!-- a > b --><o:OME xmlns:o="http://www.openmicroscopy.org/Schemas/OME/'
    "2016-06\"><o:Image ID='Image:0'><o:Pixels ID='P' DimensionOrder='XYZCT' Type='uint8' SizeX='40' SizeY='32' "
    "SizeZ='1' SizeC='1' SizeT='1' PhysicalSizeX={0} PhysicalSizeXUnit={1} PhysicalSizeY={0} PhysicalSizeYUnit={1}>"
    "<o:Channel ID='C'/><o:TiffData IFD='0' PlaneCount='1'/></o:Pixels></o:Image></o:OME>"
)


@pytest.mark.parametrize(
    ("size", "unit", "expected"),
    [("'0.325'", "'&#181;m'", 0.325), ('"0.325"', '"&#xB5;m"', 0.325), ('"0.325"', '"&#956;m"', 0.325),
     ("'500'", "'pm'", 0.0005), ('"0.325"', '"furlong"', None), ('"none"', '"nm"', None), ('"-1"', '"nm"', None)],
)  # fmt: skip
def test_sizes_in_ome_xml(tmp_path: Path, size: str, unit: str, expected: float | None) -> None:
    path, xml = tmp_path / "a.ome.tif", OME.format(size, unit)
    tifffile.imwrite(path, smooth(32, 40), photometric="minisblack", description=xml, metadata=None)
    with open_source(path) as source:
        assert source.facts.pixel_size == expected


def test_xml_that_would_grow_is_not_read(tmp_path: Path) -> None:
    xml = OME.format('"1"', '"&a;"').replace("\n", '<!DOCTYPE x [<!ENTITY a "nm">]>', 1)
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, smooth(32, 40), photometric="minisblack", description=xml, metadata=None)
    with open_source(path) as source:
        assert source.facts.pixel_size is None
        assert source.height == 32
