"""Images by window: the same pixels as the whole image, few bytes in memory, and errors that name the place."""

import json
import pickle
import shutil
import struct
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixelwise.core.errors import DataError
from pixelwise.core.windows import Window, blocks
from pixelwise.data.files.readers import read_image
from pixelwise.data.files.sources import is_zarr, open_source

RNG = np.random.default_rng(0)


def numbers(*shape: int, dtype: str = "uint8") -> np.ndarray:
    """Random pixels; of 8 bits or more."""
    if np.dtype(dtype).kind == "f":
        return RNG.normal(size=shape).astype(dtype)
    return RNG.integers(0, 250, shape).astype(dtype)


def check_windows(path: Path, expected: np.ndarray, axes: str | None = None, streams: bool = True) -> None:
    """Compare P x H x W x C with random windows, with a cache that holds little."""
    with open_source(path, axes, cache_bytes=3000) as source:
        assert (source.pages, source.height, source.width, source.channels) == expected.shape
        assert source.dtype == expected.dtype
        assert source.dtype.isnative
        assert source.streams is streams
        for _ in range(12):
            page = int(RNG.integers(source.pages))
            y0, x0 = int(RNG.integers(source.height)), int(RNG.integers(source.width))
            y1, x1 = int(RNG.integers(y0, source.height)) + 1, int(RNG.integers(x0, source.width)) + 1
            window = source.read(page, Window(y0, y1, x0, x1))
            assert window.dtype == expected.dtype
            np.testing.assert_array_equal(window, expected[page, y0:y1, x0:x1])
        for page in range(source.pages):
            np.testing.assert_array_equal(source.read(page, Window.whole(source.height, source.width)), expected[page])


TIFFS: dict[str, Callable[[Path], object]] = {
    "tiles": lambda path: tifffile.imwrite(path, numbers(70, 83), tile=(16, 32)),
    "tiles of zlib with a predictor": lambda path: tifffile.imwrite(
        path, numbers(70, 83, dtype="uint16"), tile=(16, 32), compression="zlib", predictor=True, byteorder=">"
    ),
    "BigTIFF": lambda path: tifffile.imwrite(path, numbers(70, 83), tile=(16, 32), compression="lzw", bigtiff=True),
    "strips": lambda path: tifffile.imwrite(path, numbers(70, 83), rowsperstrip=8, compression="zlib"),
    "strips of big-endian floats": lambda path: tifffile.imwrite(
        path, numbers(70, 83, dtype="float64"), rowsperstrip=8, compression="zlib", byteorder=">"
    ),
    "raw": lambda path: tifffile.imwrite(path, numbers(70, 83, dtype="uint16"), byteorder=">"),
    "raw float16": lambda path: tifffile.imwrite(path, numbers(70, 83, dtype="float16")),
    "raw pages": lambda path: tifffile.imwrite(
        path, numbers(5, 20, 31), photometric="minisblack", metadata={"axes": "ZYX"}
    ),
    "raw of ImageJ": lambda path: tifffile.imwrite(
        path, numbers(3, 2, 20, 31, dtype="uint16"), imagej=True, metadata={"axes": "ZCYX"}
    ),
    "RGB": lambda path: tifffile.imwrite(path, numbers(70, 83, 3), tile=(16, 32), photometric="rgb"),
    "raw RGB": lambda path: tifffile.imwrite(path, numbers(70, 83, 3), photometric="rgb"),
    "RGB in planes": lambda path: tifffile.imwrite(
        path, numbers(3, 70, 83), tile=(16, 32), photometric="rgb", planarconfig="separate"
    ),
    "raw RGB in planes": lambda path: tifffile.imwrite(
        path, numbers(3, 70, 83), photometric="rgb", planarconfig="separate"
    ),
    "alpha": lambda path: tifffile.imwrite(
        path, numbers(70, 83, 4), tile=(16, 32), photometric="rgb", extrasamples=["unassalpha"]
    ),
    "raw alpha in planes": lambda path: tifffile.imwrite(
        path, numbers(4, 70, 83), photometric="rgb", planarconfig="separate", extrasamples=["unassalpha"]
    ),
    "palette": lambda path: tifffile.imwrite(
        path,
        numbers(70, 83),
        tile=(16, 32),
        photometric="palette",
        colormap=RNG.integers(0, 2**16, (3, 256)).astype(np.uint16),
    ),
    "white is zero": lambda path: tifffile.imwrite(path, numbers(70, 83), tile=(16, 32), photometric="miniswhite"),
    "1 bit": lambda path: tifffile.imwrite(path, numbers(70, 83) > 100, tile=(16, 32), photometric="miniswhite"),
    "JPEG": lambda path: tifffile.imwrite(
        path, numbers(70, 83, 3), tile=(16, 32), photometric="rgb", compression="jpeg"
    ),
    "pages of one strip": lambda path: tifffile.imwrite(
        path, numbers(4, 20, 31), photometric="minisblack", compression="zlib", metadata={"axes": "ZYX"}
    ),
    "OME": lambda path: tifffile.imwrite(
        path,
        numbers(3, 2, 70, 83, dtype="uint16"),
        ome=True,
        tile=(16, 32),
        photometric="minisblack",
        metadata={"axes": "ZCYX"},
    ),
    "RGB pages of OME": lambda path: tifffile.imwrite(
        path, numbers(3, 70, 83, 3), ome=True, tile=(16, 32), photometric="rgb", metadata={"axes": "ZYXS"}
    ),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_tiff_by_window_is_the_whole_image(kind: str, tmp_path: Path) -> None:
    TIFFS[kind](tmp_path / "a.tif")
    check_windows(tmp_path / "a.tif", read_image(tmp_path / "a.tif"))


@settings(max_examples=40, deadline=None)
@given(
    pages=st.integers(1, 3),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    samples=st.sampled_from([1, 3]),
    tile=st.sampled_from([None, (16, 16), (32, 16)]),
    rows=st.integers(1, 80),
    compression=st.sampled_from([None, "zlib"]),
    order=st.sampled_from("<>"),
)
def test_any_tiff(
    tmp_path_factory: pytest.TempPathFactory,
    pages: int,
    height: int,
    width: int,
    samples: int,
    tile: tuple[int, int] | None,
    rows: int,
    compression: str | None,
    order: str,
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.tif"
    array = numbers(pages, height, width, samples, dtype="uint16")
    tifffile.imwrite(
        path,
        array,
        photometric="rgb" if samples == 3 else "minisblack",
        planarconfig="contig" if samples == 3 else None,
        tile=tile,
        rowsperstrip=None if tile else rows,
        compression=compression,
        byteorder=order,  # type: ignore[arg-type]
        metadata={"axes": "ZYXS"},
    )
    with open_source(path) as source:
        for page in range(pages):
            np.testing.assert_array_equal(source.read(page, Window.whole(height, width)), array[page])
            np.testing.assert_array_equal(
                source.read(page, Window(height - 1, height, width // 2, width)), array[page, -1:, width // 2 :]
            )


@pytest.mark.parametrize("axes", ["ZYX", "CYX", "TYX", "XYZ", "YXC", "YXZ", "CXY"])
def test_axes_that_the_user_names(axes: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", numbers(16, 16, 16), tile=(16, 16), photometric="minisblack")
    streams = axes.endswith("YX")
    check_windows(tmp_path / "a.tif", read_image(tmp_path / "a.tif", axes), axes, streams)


def test_channels_that_the_user_calls_pages(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", numbers(40, 50, 3), tile=(16, 16), photometric="rgb")
    check_windows(tmp_path / "a.tif", read_image(tmp_path / "a.tif", "YXZ"), "YXZ")


def test_the_full_resolution_of_a_pyramid(tmp_path: Path) -> None:
    large = numbers(64, 64)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(large, subifds=1, tile=(16, 16))
        writer.write(large[::2, ::2], subfiletype=1, tile=(16, 16))
    check_windows(tmp_path / "a.tif", large[None, ..., None])


def test_other_files_are_read_whole(tmp_path: Path) -> None:
    Image.fromarray(numbers(20, 30, 3)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "strip.tif", numbers(20, 30), compression="zlib")
    tifffile.imwrite(tmp_path / "turned.tif", numbers(20, 30), tile=(16, 16), extratags=[(274, 3, 1, 6, True)])
    for name in ("a.png", "strip.tif", "turned.tif"):
        check_windows(tmp_path / name, read_image(tmp_path / name), streams=False)
    with open_source(tmp_path / "a.png") as source:
        assert source.bytes_needed == 20 * 30 * 3
        assert source.facts.pixel_size is None


def test_a_tile_that_was_never_written_is_0(tmp_path: Path) -> None:
    tiles = [numbers(16, 16), None, numbers(16, 16), numbers(16, 16)]
    tifffile.imwrite(tmp_path / "a.tif", iter(tiles), shape=(32, 32), dtype="uint8", tile=(16, 16), compression="zlib")
    expected = read_image(tmp_path / "a.tif")
    assert not expected[0, :16, 16:].any()
    check_windows(tmp_path / "a.tif", expected)


def test_the_errors_of_opening_are_those_of_reading(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", numbers(5, 20, 20), photometric="minisblack")
    (tmp_path / "text.tif").write_text("no image")
    for name, axes, message in [
        ("a.tif", None, r"a\.tif: has the shape 5 x 20 x 20 with the axes QYX, whose meaning is unclear"),
        ("a.tif", "YX", r'a\.tif: has 3 dimensions, .* axes = "YX" names 2'),
        ("a.tif", "ZZ", r'a\.tif: axes = "ZZ" is not valid'),
        ("text.tif", None, r"text\.tif: is a text file, not an image"),
        ("none.tif", None, r"none\.tif: no such file"),
    ]:
        with pytest.raises(DataError, match=message), open_source(tmp_path / name, axes):
            pass


def test_a_tiled_file_cut_short_names_the_tile(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = numbers(64, 64)
    tifffile.imwrite(path, image, tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[6]
    path.write_bytes(path.read_bytes()[: offset + 5])
    with open_source(path) as source:
        np.testing.assert_array_equal(source.read(0, Window(0, 16, 0, 64))[..., 0], image[:16])
        message = r"a\.tif: rows 16 to 31, columns 32 to 47 of page 1 cannot be read \(it lies beyond .*\)\. The file"
        with pytest.raises(DataError, match=message):
            source.read(0, Window(10, 40, 10, 40))
        np.testing.assert_array_equal(source.read(0, Window(16, 32, 0, 32))[..., 0], image[16:32, :32])


def test_a_damaged_strip_of_a_page_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        numbers(2, 40, 50),
        photometric="minisblack",
        rowsperstrip=10,
        compression="zlib",
        metadata={"axes": "ZYX"},
    )
    with tifffile.TiffFile(path) as file:
        page = file.pages[1]
        offset, count = page.dataoffsets[3], page.databytecounts[3]
    content = bytearray(path.read_bytes())
    content[offset : offset + count] = bytes(count)
    path.write_bytes(content)
    with (
        open_source(path) as source,
        pytest.raises(DataError, match=r"rows 30 to 39, columns 0 to 49 of page 2 cannot be read \(.*\)\. The file"),
    ):
        source.read(1, Window(0, 40, 0, 50))


def test_a_raw_file_cut_short_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, numbers(40, 50))
    path.write_bytes(path.read_bytes()[: -10 * 50 + 3])
    with (
        pytest.raises(DataError, match=r"a\.tif: is truncated: the pixels from row 30 of page 1 on lie beyond the end"),
        open_source(path),
    ):
        pass


def test_a_raw_file_cut_while_open(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, numbers(40, 50))
    with open_source(path) as source:
        with path.open("rb+") as handle:
            handle.truncate(1000)
        with pytest.raises(
            DataError, match=r"a\.tif: rows 30 to 39, columns 3 to 6 of page 1 cannot be read \(the file ends"
        ):
            source.read(0, Window(30, 40, 3, 7))


def patch_tag(path: Path, code: int, value: int) -> None:
    """Set the value of a tag that is a single number, in a little-endian classic TIFF."""
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags[code]
        form = "<H" if tag.dtype == 3 else "<I"
        place = tag.valueoffset
    with path.open("rb+") as handle:
        handle.seek(place)
        handle.write(struct.pack(form, value))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_header_that_declares_too_much_allocates_nothing(compression: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, numbers(64, 64), tile=(16, 16), compression=compression)
    size = 2**15 - 16
    patch_tag(path, 257, size)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"a\.tif: is truncated: its list of tiles is cut short"), open_source(path):
        pass
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_tiles_larger_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", numbers(64, 64), tile=(32, 32), compression="zlib")
    zarr.create_array(tmp_path / "a.zarr", shape=(64, 64), chunks=(32, 32), dtype="uint8")
    monkeypatch.setattr("pixelwise.data.files.sources.psutil.virtual_memory", lambda: type("M", (), {"total": 1000}))
    for name in ("a.tif", "a.zarr"):
        refused(tmp_path / name, r"is stored in chunks of 0\.0 GiB, each of which .* smaller tiles")


def test_pages_in_missing_files(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", numbers(2, 32, 32), ome=True, tile=(16, 16), photometric="minisblack")
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content.replace(b'PlaneCount="2"', b'PlaneCount="1"'))
    with open_source(tmp_path / "a.tif", "ZYX") as source:
        source.read(0, Window(0, 16, 0, 16))
        with pytest.raises(
            DataError, match=r"a\.tif: belongs to a set of files, of which another is missing\. Put it next"
        ):
            source.read(1, Window(0, 16, 0, 16))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}, 0.25),
        ({"resolution": (40000, 20000), "resolutionunit": "CENTIMETER"}, None),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "um"}}, 0.25),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "\\u00B5m"}}, 0.25),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "pixel"}}, None),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}}, 0.25),
        ({"ome": True, "metadata": {"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25}}, 0.25),
        ({"ome": True, "metadata": {"PhysicalSizeX": 250, "PhysicalSizeXUnit": "furlong", "PhysicalSizeY": 1}}, None),
        ({"ome": True}, None),
        ({"description": "Aperio Image Library v10|AppMag = 40|MPP = 0.2500", "metadata": None}, 0.25),
        ({"description": "Aperio Image Library v10|MPP = 0.2.5", "metadata": None}, None),
        ({}, None),
    ],
)
def test_pixel_size_of_a_tiff(options: dict[str, Any], size: float | None, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", numbers(32, 32), **options)
    with open_source(tmp_path / "a.tif") as source:
        assert source.facts.pixel_size == (None if size is None else pytest.approx(size))


def write_ome(path: Path, array: np.ndarray, axes: str, version: str, unit: str = "micrometer", **options: Any) -> None:
    """An OME-Zarr image, written by zarr alone."""
    form = 3 if version == "0.5" else 2
    group = zarr.open_group(path, mode="w", zarr_format=form)  # type: ignore[arg-type]
    level = group.create_array("0", shape=array.shape, dtype=array.dtype, **({"chunks": (16,) * array.ndim} | options))
    level[...] = array
    kinds = {"c": "channel", "t": "time"}
    named = [{"name": a, "type": kinds.get(a, "space")} | ({"unit": unit} if a in "yx" else {}) for a in axes]
    scale = [0.5 if axis in "yx" else 1.0 for axis in axes]
    dataset = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
    ome = {"multiscales": [{"version": version, "axes": named, "datasets": [dataset]}]}
    group.attrs.update({"ome": {"version": "0.5", **ome}} if form == 3 else ome)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["yx", "cyx", "tczyx", "zyx", "yxc"])
def test_ome_zarr_by_window(version: str, axes: str, tmp_path: Path) -> None:
    sizes = {"t": 2, "c": 3, "z": 2, "y": 70, "x": 83}
    array = numbers(*[sizes[axis] for axis in axes], dtype=">u2" if version == "0.4" else "uint16")
    write_ome(tmp_path / "a.zarr", array, axes, version)
    order = sorted(range(len(axes)), key=lambda index: "tzyxc".index(axes[index]))
    moved = array.transpose(order)
    expected = moved if "c" in axes else moved[..., None]
    check_windows(tmp_path / "a.zarr", expected.reshape(-1, 70, 83, expected.shape[-1]).astype("uint16"))
    with open_source(tmp_path / "a.zarr") as source:
        assert source.facts.pixel_size == 0.5


@pytest.mark.parametrize(("unit", "size"), [("nanometer", 5e-4), ("millimeter", 500.0), ("parsec", None)])
def test_units_of_ome_zarr(unit: str, size: float | None, tmp_path: Path) -> None:
    write_ome(tmp_path / "a.zarr", numbers(20, 20), "yx", "0.5", unit)
    with open_source(tmp_path / "a.zarr") as source:
        assert source.facts.pixel_size == (None if size is None else pytest.approx(size))


@pytest.mark.parametrize(
    "options",
    [
        {"zarr_format": 2, "chunks": (16, 16), "compressors": None},
        {"zarr_format": 2, "chunks": (16, 16), "order": "F"},
        {"zarr_format": 3, "chunks": (16, 16), "shards": (32, 32)},
        {"zarr_format": 3, "chunks": (7, 83)},
        {"zarr_format": 3, "chunks": (16, 16), "compressors": [zarr.codecs.BloscCodec()]},
        {"zarr_format": 3, "chunks": (600, 600), "fill_value": 7},
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float64", "bool"])
def test_plain_zarr_arrays(options: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a", shape=(70, 83), dtype=dtype, **options)
    array[:40] = numbers(40, 83).astype(dtype)  # the rest are chunks that are missing
    types = {"float64": "float32", "bool": "uint8"}
    check_windows(tmp_path / "a", np.asarray(array[...])[None, ..., None].astype(types.get(dtype, dtype)))


def test_axes_of_a_plain_array(tmp_path: Path) -> None:
    pixels = numbers(3, 20, 31)
    for name, names in (("plain", None), ("named", ["c", "y", "x"]), ("strange", ["a", "b", "c"])):
        zarr.create_array(tmp_path / name, data=pixels, chunks=(1, 16, 16), dimension_names=names)
    check_windows(tmp_path / "plain", pixels[..., None], "ZYX")
    check_windows(tmp_path / "plain", np.moveaxis(pixels, 0, -1)[None], "CYX")
    check_windows(tmp_path / "named", np.moveaxis(pixels, 0, -1)[None])
    check_windows(tmp_path / "named", pixels[..., None], "ZYX")
    for name in ("plain", "strange"):
        refused(tmp_path / name, rf"{name}: has the shape 3 x 20 x 31 with unknown axes: name them .* --axes CYX")
    refused(tmp_path / "plain", r'plain: has 3 dimensions, 3 x 20 x 31, but axes = "YX" names 2', "YX")


def test_the_image_in_a_converted_slide(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.attrs["bioformats2raw.layout"] = 3
    pixels = numbers(20, 31)
    write_ome(tmp_path / "a.zarr" / "0", pixels, "yx", "0.4")
    check_windows(tmp_path / "a.zarr", pixels[None, ..., None])


def test_is_zarr(tmp_path: Path) -> None:
    assert not is_zarr(tmp_path)
    (tmp_path / "file").write_text("{}")
    assert not is_zarr(tmp_path / "file")
    for form in (2, 3):
        zarr.create_array(tmp_path / f"array{form}", shape=(2, 2), dtype="uint8", zarr_format=form)  # type: ignore[arg-type]
        zarr.open_group(tmp_path / f"group{form}", mode="w", zarr_format=form)  # type: ignore[arg-type]
        assert is_zarr(tmp_path / f"array{form}")
        assert is_zarr(tmp_path / f"group{form}")


def refused(path: Path, message: str, axes: str | None = None) -> None:
    with pytest.raises(DataError, match=message), open_source(path, axes) as source:
        source.read(0, Window(0, 1, 0, 1))


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_group_without_an_image(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "a", mode="w")
    refused(tmp_path / "a", r"a: is a Zarr group without an image: .* Give the path of an array in it")


def test_metadata_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    write_ome(tmp_path / "a", numbers(20, 20), "yx", "0.5")
    shutil.copytree(tmp_path / "a" / "0", tmp_path / "secret")
    for target in ("../secret", str(tmp_path / "secret")):
        datasets = [{"path": target}]
        change_json(
            tmp_path / "a" / "zarr.json",
            lambda content, found=datasets: content["attributes"]["ome"]["multiscales"][0].update(datasets=found),
        )
        refused(tmp_path / "a", r"a: names \".*secret\" as its image, which lies outside of its folder")


def test_metadata_that_lead_nowhere(tmp_path: Path) -> None:
    write_ome(tmp_path / "a", numbers(20, 20), "yx", "0.5")
    shutil.rmtree(tmp_path / "a" / "0")
    refused(tmp_path / "a", r"a: contains no array at 0, where its metadata say that one is")
    zarr.open_group(tmp_path / "a" / "0", mode="w")
    refused(tmp_path / "a", r"a: names a group as its full-resolution image")
    (tmp_path / "a" / "zarr.json").write_text("[]")
    refused(tmp_path / "a", r"a: contains invalid metadata in zarr\.json")
    (tmp_path / "a" / "zarr.json").write_text("{")
    refused(tmp_path / "a", r"a: cannot be read \(.*\)\. It may be truncated or damaged")


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("trap"),)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    array = zarr.create_array(tmp_path / "a", shape=(4, 4), dtype="uint8", zarr_format=2, compressors=None)
    array[...] = 1
    (tmp_path / "a" / "0.0").write_bytes(pickle.dumps(_Trap()))
    change_json(tmp_path / "a" / ".zarray", lambda content: content.update(filters=[{"id": "pickle"}]))
    refused(tmp_path / "a", r"a: is stored with the codec pickle, which cannot be read")
    change_json(tmp_path / "a" / ".zarray", lambda content: content.update(dtype="|O"))
    refused(tmp_path / "a", r"a: holds elements of the type \|O, but only whole and real numbers can be used")
    assert not (tmp_path / "trap").exists()


def test_codecs_within_shards_are_looked_at(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", shape=(32, 32), chunks=(8, 8), shards=(16, 16), dtype="uint8")
    change_json(
        tmp_path / "a" / "zarr.json",
        lambda content: content["codecs"][0]["configuration"]["codecs"].append({"name": "numcodecs.pickle"}),
    )
    refused(tmp_path / "a", r"is stored with the codec pickle")


def test_types_without_a_number(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", shape=(4, 4), dtype="complex64")
    refused(tmp_path / "a", r"a: holds complex64 pixels, but only whole and real numbers can be used")
    zarr.create_array(tmp_path / "empty", shape=(4, 0), chunks=(1, 1), dtype="uint8")
    refused(tmp_path / "empty", r"empty: contains no pixels: its size is 1 x 4 x 0 x 1")


@pytest.mark.parametrize("damage", [b"", b"no chunk", b"\0" * 300])
def test_a_broken_chunk_is_named(damage: bytes, tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a", shape=(1200, 1200), chunks=(600, 600), dtype="uint8")
    pixels = numbers(1200, 1200)
    array[...] = pixels
    (tmp_path / "a" / "c" / "0" / "1").write_bytes(damage)
    with open_source(tmp_path / "a") as source:
        with pytest.raises(
            DataError, match=r"a: rows 0 to 599, columns 600 to 1199 of page 1 cannot be read \(.*\)\. The file may"
        ):
            source.read(0, Window(0, 10, 590, 610))
        np.testing.assert_array_equal(source.read(0, Window(590, 700, 0, 600))[..., 0], pixels[590:700, :600])


def test_another_thread_may_read(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", numbers(64, 64), tile=(16, 16), compression="zlib")
    zarr.create_array(tmp_path / "a.zarr", data=numbers(64, 64), chunks=(16, 16))
    corner = Window.whole(64, 64)
    for name in ("a.tif", "a.zarr"):
        with open_source(tmp_path / name) as source:
            seen: list[np.ndarray] = []
            thread = threading.Thread(target=lambda source=source, seen=seen: seen.append(source.read(0, corner)))
            thread.start()
            thread.join()
            np.testing.assert_array_equal(seen[0], source.read(0, corner))


@pytest.mark.parametrize("kind", ["tiles", "strips", "raw", "zarr"])
def test_memory_is_bounded(kind: str, tmp_path: Path) -> None:
    side, tile, cache = 4096, 512, 3 * 2**20
    image = np.zeros((side, side), np.uint8)
    image[::7, ::5] = 200
    path = tmp_path / "a"
    if kind == "zarr":
        zarr.create_array(path, data=image, chunks=(256, 256))
    else:
        options = {"tiles": {"tile": (256, 256)}, "strips": {"rowsperstrip": 64}, "raw": {}}[kind]
        tifffile.imwrite(path, image, compression=None if kind == "raw" else "zlib", **options)
    with open_source(path, cache_bytes=cache) as source:
        tracemalloc.start()
        total = 0
        for window in blocks(side, side, tile):
            total += int(source.read(0, window).sum())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == int(image.sum())
        assert peak < source.bytes_needed + 2 * tile * tile
        assert source.bytes_needed < side * side / 3
