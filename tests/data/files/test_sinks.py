"""Masks that grow tile by tile: what is on disk is valid at every moment, and memory is bounded."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelwise.core.classes import ClassMap
from pixelwise.core.errors import OutputError, RunError
from pixelwise.core.windows import Window, blocks
from pixelwise.data.files.readers import read_image, read_mask
from pixelwise.data.files.sinks import MaskForm, ZarrMask, write_pyramid_tiff
from pixelwise.data.files.sources import open_source

RNG = np.random.default_rng(0)
DESCRIPTION = {"image": {"path": "a.tif", "bytes": 17}, "weights": "abc", "tile": 32}


def make(path: Path, height: int = 50, width: int = 70, chunk: int = 16, **options: Any) -> ZarrMask:
    description, replace = options.pop("description", DESCRIPTION), options.pop("replace", False)
    form = MaskForm(**({"pages": 1, "dtype": "uint8"} | options), height=height, width=width, chunk=chunk)
    return ZarrMask.create(path, form, description, replace)


def tiles(pages: int, height: int, width: int, tile: int) -> Iterator[tuple[int, int, Window]]:
    """Number, page, window."""
    windows = list(blocks(height, width, tile))
    for number in range(pages * len(windows)):
        yield number, number // len(windows), windows[number % len(windows)]


def fill(mask: ZarrMask, pixels: np.ndarray, tile: int, skip: set[int] | None = None) -> None:
    """Write P x H x W pixels, or P x K x H x W."""
    for number, page, window in tiles(len(pixels), *pixels.shape[-2:], tile):
        if number not in (skip or set()):
            mask.write(number, page, window, pixels[page, ..., *window.slices])


def attributes(path: Path) -> dict[str, Any]:
    return json.loads((path / "zarr.json").read_text())["attributes"]


@settings(max_examples=25, deadline=None)
@given(
    pages=st.integers(1, 3),
    channels=st.sampled_from([None, 1, 3]),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    tile=st.integers(16, 60),
    chunk=st.integers(8, 64),
    dtype=st.sampled_from(["uint8", "uint16", "float16"]),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    pages: int,
    channels: int | None,
    height: int,
    width: int,
    tile: int,
    chunk: int,
    dtype: str,
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.zarr"
    shape = (pages, channels, height, width) if channels else (pages, height, width)
    pixels = RNG.integers(0, 5, shape).astype(dtype)
    mask = make(path, height, width, chunk, pages=pages, dtype=dtype, channels=channels)
    fill(mask, pixels, tile)
    mask.finish()
    array = np.asarray(zarr.open_group(path, mode="r")["0"][...])
    planes = pixels if channels is None else np.moveaxis(pixels, 1, 0)
    np.testing.assert_array_equal(array, planes if pages > 1 else planes.reshape(array.shape))
    with open_source(path) as source:
        assert (source.pages, source.channels) == (pages, channels or 1)
        for page in range(pages):
            expected = np.moveaxis(pixels[page], 0, -1) if channels else pixels[page][..., None]
            np.testing.assert_array_equal(source.read(page, Window.whole(height, width)), expected)


def test_the_metadata_are_those_of_ome_zarr(tmp_path: Path) -> None:
    classes = ClassMap(("background", "cell"), ((0, 0, 0), (255, 128, 0)))
    mask = make(tmp_path / "a.zarr", 600, 1100, 256, pages=2, pixel_size=0.5, classes=classes)
    before = attributes(tmp_path / "a.zarr")
    assert [level["path"] for level in before["ome"]["multiscales"][0]["datasets"]] == ["0"]
    assert before["pixelwise"] == {"complete": False, "job": DESCRIPTION}
    fill(mask, np.ones((2, 600, 1100), np.uint8), 256)
    mask.finish(details={"tiles": 3})
    after = attributes(tmp_path / "a.zarr")
    assert after["pixelwise"] == {"complete": True, "job": DESCRIPTION, "details": {"tiles": 3}}
    assert mask.details == ZarrMask.resume(tmp_path / "a.zarr", DESCRIPTION).details == {"tiles": 3}
    ome = after["ome"]
    assert ome["version"] == "0.5"
    assert ome["image-label"]["colors"][1] == {"label-value": 1, "rgba": [255, 128, 0, 255]}
    assert ome["image-label"]["properties"][1] == {"label-value": 1, "class": "cell"}
    multiscale = ome["multiscales"][0]
    assert multiscale["axes"] == [
        {"name": "z", "type": "space"},
        {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "micrometer"},
    ]
    assert multiscale["datasets"][2] == {
        "path": "2",
        "coordinateTransformations": [{"type": "scale", "scale": [1.0, 2.0, 2.0]}],
    }
    with open_source(tmp_path / "a.zarr") as source:
        assert source.facts.pixel_size == 0.5
    assert mask.pixel_size == 0.5


def test_axes_of_probabilities_stand_in_the_order_of_ome(tmp_path: Path) -> None:
    mask = make(tmp_path / "a.zarr", pages=2, channels=3, dtype="float16")
    axes = attributes(tmp_path / "a.zarr")["ome"]["multiscales"][0]["axes"]
    assert [(axis["name"], axis["type"]) for axis in axes] == [
        ("c", "channel"),
        ("z", "space"),
        ("y", "space"),
        ("x", "space"),
    ]
    assert mask.levels[0].shape == (3, 2, 50, 70)
    assert mask.levels[0].metadata.dimension_names == ("c", "z", "y", "x")  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [(1500, 900), (513, 1), (512, 512), (1, 2049)])
def test_every_level_is_every_second_pixel(shape: tuple[int, int], tmp_path: Path) -> None:
    pixels = RNG.integers(0, 200, (2, *shape)).astype(np.uint8)
    mask = make(tmp_path / "a.zarr", *shape, 300, pages=2)
    fill(mask, pixels, 300)
    seen: list[tuple[int, int]] = []
    mask.finish(lambda done, total: seen.append((done, total)))
    for number, level in enumerate(mask.levels):
        np.testing.assert_array_equal(level[...], pixels[:, :: 2**number, :: 2**number])
    assert max(mask.levels[-1].shape[1:]) <= 512
    assert len(mask.levels) == 1 or max(mask.levels[-2].shape[1:]) > 512
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert all(total == len(seen) for _, total in seen)


def test_an_unfinished_zarr_is_valid_and_says_so(tmp_path: Path) -> None:
    pixels = RNG.integers(1, 5, (1, 50, 70)).astype(np.uint8)
    mask = make(tmp_path / "a.zarr")
    fill(mask, pixels, 32, skip={1, 4})
    assert mask.done == {0, 2, 3, 5}
    assert not mask.complete
    assert attributes(tmp_path / "a.zarr")["pixelwise"]["complete"] is False
    expected = pixels[0].copy()
    expected[:32, 32:64] = expected[32:, 32:64] = 0
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "a.zarr", mode="r")["0"][...], expected)
    assert [name for name, _ in zarr.open_group(tmp_path / "a.zarr", mode="r").members()] == ["0"]  # and no warning


def test_resume_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    pixels = RNG.integers(1, 5, (1, 50, 70)).astype(np.uint8)
    fill(make(tmp_path / "a.zarr"), pixels, 32, skip={1, 4})
    again = ZarrMask.resume(tmp_path / "a.zarr", DESCRIPTION)
    assert again.done == {0, 2, 3, 5}
    fill(again, pixels, 32, skip=again.done)
    again.finish()
    np.testing.assert_array_equal(again.levels[0][...], pixels[0])
    assert sorted(path.name for path in (tmp_path / "a.zarr" / "0").iterdir()) == ["c", "zarr.json"]
    finished = ZarrMask.resume(tmp_path / "a.zarr", DESCRIPTION)
    assert finished.complete
    finished.finish(lambda done, total: pytest.fail("nothing is left to do"))


@pytest.mark.parametrize(
    ("record", "done"),
    [
        (b"", set()),
        (b"0\n3\n", {0, 3}),
        (b"0\n12", {0}),
        (b"1", set()),
        (b"0\n\0\0\0\n5\n", {0, 5}),
        (b"\n-1\n2\n", {2}),
    ],
)
def test_a_torn_record_is_not_done(record: bytes, done: set[int], tmp_path: Path) -> None:
    make(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "0" / ".done").write_bytes(record)
    mask = ZarrMask.resume(tmp_path / "a.zarr", DESCRIPTION)
    assert mask.done == done
    mask.write(7, 0, Window.whole(5, 5), np.ones((5, 5), np.uint8))
    assert ZarrMask.resume(tmp_path / "a.zarr", DESCRIPTION).done == done | {7}


def test_another_description_is_refused_by_what_differs(tmp_path: Path) -> None:
    make(tmp_path / "a.zarr")
    other = {"image": {"path": "a.tif", "bytes": 18}, "weights": "abc", "engine": "torch"}
    with pytest.raises(
        RunError,
        match=r"a\.zarr: was started with another input or other settings: image\.bytes was 17 and is 18; "
        r"tile was 32 and is absent; engine was absent and is torch\. "
        r"Use the same again, or start over without --resume\.$",
    ):
        ZarrMask.resume(tmp_path / "a.zarr", other)


def test_nothing_to_resume(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "foreign", mode="w")
    for name in ("none", "foreign"):
        with pytest.raises(RunError, match=rf"{name}: contains no prediction to resume\. Start without"):
            ZarrMask.resume(tmp_path / name, DESCRIPTION)


def test_what_exists_is_replaced_only_when_told_and_ours(tmp_path: Path) -> None:
    mask = make(tmp_path / "a.zarr")
    mask.write(0, 0, Window.whole(50, 70), np.ones((50, 70), np.uint8))
    with pytest.raises(OutputError, match=r"a\.zarr: already exists\. Resume it, replace it, or choose another folder"):
        make(tmp_path / "a.zarr")
    assert mask.levels[0][...].all()
    fresh = make(tmp_path / "a.zarr", replace=True)
    assert fresh.done == set()
    assert not fresh.levels[0][...].any()
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_what_is_not_ours_is_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    zarr.create_array(tmp_path / "array", shape=(3, 3), dtype="uint8")
    zarr.open_group(tmp_path / "group", mode="w").attrs["pixelwise"] = {"complete": True}
    make(tmp_path / "target")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("file", "folder", "array", "group", "link"):
        with pytest.raises(OutputError, match=rf"{name}: is not a Zarr that pixelwise wrote, so it is left alone\."):
            make(tmp_path / name, replace=True)
        assert (tmp_path / name).exists()


def test_types_that_are_not_stored(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.zarr: masks are stored as uint8, uint16, float16, not as int64\."):
        make(tmp_path / "a.zarr", dtype="int64")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"a\.zarr: cannot be written \(.*\)\. Free some space or choose another"):
        make(tmp_path / "file" / "a.zarr")


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    from pixelwise.core.windows import blocks
    from pixelwise.data.files.sinks import MaskForm, ZarrMask
    path, moment = Path(sys.argv[1]), int(sys.argv[2])
    mask = ZarrMask.create(path, MaskForm(1, 200, 200, "uint8", 64), {}, replace=True)
    pixels = np.random.default_rng(0).integers(1, 200, (200, 200)).astype(np.uint8)
    calls, replace, write = 0, Path.replace, os.write

    def counted(self, target):
        global calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)  # the pixels lie under their temporary name
        return replace(self, target)

    Path.replace = counted
    for number, window in enumerate(blocks(200, 200, 50)):
        mask.write(number, 0, window, pixels[window.slices])
    mask.finish()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows kills in another way")
@pytest.mark.parametrize("moment", [2, 13])
def test_killed_within_a_write_and_resumed(moment: int, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(path), str(moment)], check=False)
    assert result.returncode == -signal.SIGKILL
    assert list(path.glob("**/*.partial"))
    pixels = np.random.default_rng(0).integers(1, 200, (200, 200)).astype(np.uint8)
    mask = ZarrMask.resume(path, {})
    left = set(range(16)) - mask.done
    assert left
    assert mask.done == set(range(16 - len(left)))
    for number, _, window in tiles(1, 200, 200, 50):
        if number in mask.done:
            np.testing.assert_array_equal(mask.levels[0][window.slices], pixels[window.slices])
    fill(mask, pixels[None], 50, skip=mask.done)
    mask.finish()
    np.testing.assert_array_equal(mask.levels[0][...], pixels)
    assert not list(path.glob("**/*.partial"))


FULL = """
    import resource, sys
    from pathlib import Path
    import numpy as np
    from pixelwise.core.errors import OutputError
    from pixelwise.core.windows import Window
    from pixelwise.data.files.sinks import MaskForm, ZarrMask
    path = Path(sys.argv[1])
    mask = ZarrMask.create(path, MaskForm(1, 512, 512, "uint8", 256), {})
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512)).astype(np.uint8)
    mask.write(0, 0, Window(0, 256, 0, 256), pixels[:256, :256])
    mask.write(1, 0, Window(0, 256, 256, 512), np.ones((256, 256), np.uint8))
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
    try:
        mask.write(2, 0, Window(256, 512, 0, 256), pixels[256:, :256])
    except OutputError as error:
        print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="the limit is one of POSIX")
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    command = [sys.executable, "-c", textwrap.dedent(FULL), str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"{path}: cannot be written (File too large). Free some space or choose another folder.\n"
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512)).astype(np.uint8)
    mask = ZarrMask.resume(path, {})
    assert mask.done == {0, 1}
    expected = np.zeros((512, 512), np.uint8)
    expected[:256, :256], expected[:256, 256:] = pixels[:256, :256], 1
    np.testing.assert_array_equal(mask.levels[0][...], expected)
    assert not list(path.glob("**/*.partial"))


def test_an_error_of_the_system_within_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = make(tmp_path / "a.zarr")

    def fail(*_: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise ValueError("chunk") from error

    monkeypatch.setattr(zarr.Array, "__setitem__", fail)
    with pytest.raises(OutputError, match=r"a\.zarr: cannot be written \(No space left on device\)"):
        mask.write(0, 0, Window.whole(5, 5), np.ones((5, 5), np.uint8))
    with pytest.raises(OutputError, match=r"b\.zarr: cannot be written \(No space left on device\)"):
        make(tmp_path / "b.zarr", 600, 600).finish()
    assert mask.done == set()
    assert ZarrMask.resume(tmp_path / "a.zarr", DESCRIPTION).done == set()


def test_a_damaged_chunk_of_the_mask(tmp_path: Path) -> None:
    mask = make(tmp_path / "a.zarr")
    mask.write(0, 0, Window.whole(32, 32), np.ones((32, 32), np.uint8))
    (tmp_path / "a.zarr" / "0" / "c" / "0" / "0").write_bytes(b"no chunk")
    message = r"a\.zarr: contains a damaged part \(.*\)\. Start over without --resume"
    with pytest.raises(RunError, match=message):
        mask.write(1, 0, Window(8, 13, 8, 13), np.ones((5, 5), np.uint8))
    assert mask.done == {0}


def test_probabilities_as_tiff(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (2, 3, 50, 70)).astype(np.uint8)
    mask = make(tmp_path / "a.zarr", pages=2, channels=3)
    fill(mask, pixels, 32)
    mask.finish()
    write_pyramid_tiff(tmp_path / "a.tif", mask, ClassMap(("a", "b")).palette)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.moveaxis(pixels, 1, -1))


@pytest.mark.parametrize(("pages", "dtype"), [(1, "uint8"), (2, "uint16"), (1, "uint16"), (2, "uint8")])
def test_a_tiff_with_its_pyramid(pages: int, dtype: str, tmp_path: Path) -> None:
    pixels = RNG.integers(0, 200, (pages, 1300, 700)).astype(dtype)
    mask = make(tmp_path / "a.zarr", 1300, 700, 512, pages=pages, dtype=dtype, pixel_size=0.25)
    fill(mask, pixels, 512)
    with pytest.raises(RunError, match=r"a\.zarr: is not complete, so it cannot be turned into a TIFF\. Resume the"):
        write_pyramid_tiff(tmp_path / "a.tif", mask)
    mask.finish()
    palette = ClassMap(("background", "cell")).palette
    write_pyramid_tiff(tmp_path / "a.tif", mask, palette)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), pixels)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff
        assert len(file.series) == 1
        assert [level.shape[-2:] for level in file.series[0].levels] == [(1300, 700), (650, 350), (325, 175)]
        for number, level in enumerate(file.series[0].levels):
            np.testing.assert_array_equal(
                level.asarray().reshape(pages, *level.shape[-2:]), pixels[:, :: 2**number, :: 2**number]
            )
        page = file.pages[0]
        assert page.is_tiled
        if dtype == "uint8":
            assert page.photometric == tifffile.PHOTOMETRIC.PALETTE
            np.testing.assert_array_equal(page.colormap.T.ravel() // 257, palette)
    with open_source(tmp_path / "a.tif") as source:
        assert source.streams
        assert source.facts.pixel_size == pytest.approx(0.25)


def test_a_tiff_without_a_pyramid(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 200, (1, 50, 70)).astype(np.uint8)
    mask = make(tmp_path / "a.zarr")
    fill(mask, pixels, 32)
    mask.finish()
    write_pyramid_tiff(tmp_path / "a.tif", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), pixels)


def test_a_tiff_is_whole_or_not_there(tmp_path: Path) -> None:
    mask = make(tmp_path / "a.zarr")
    mask.write(0, 0, Window.whole(50, 70), np.ones((50, 70), np.uint8))
    mask.finish()
    (tmp_path / "a.zarr" / "0" / "c" / "0" / "0").write_bytes(b"no chunk")
    with pytest.raises(RunError, match=r"a\.zarr: contains a damaged part"):
        write_pyramid_tiff(tmp_path / "a.tif", mask)
    with pytest.raises(OutputError, match=r"a\.tif: cannot be written"):
        write_pyramid_tiff(tmp_path / "a.zarr" / "zarr.json" / "a.tif", mask)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_memory_is_bounded(tmp_path: Path) -> None:
    side, tile = 4096, 512
    block = RNG.integers(0, 3, (tile, tile)).astype(np.uint8)
    tracemalloc.start()
    mask = make(tmp_path / "a.zarr", side, side, tile)
    for number, page, window in tiles(1, side, side, tile):
        mask.write(number, page, window, block)
    mask.finish()
    write_pyramid_tiff(tmp_path / "a.tif", mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < side * side / 2
    np.testing.assert_array_equal(mask.levels[0][-tile:, -tile:], block)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif")[1024:1536, :tile], block)
