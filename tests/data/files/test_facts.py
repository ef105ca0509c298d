"""What files say besides their pixels: bits, missing pixels, transparency, the images in a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from pixelwise.core.errors import DataError, UnreadableError
from pixelwise.core.windows import Window
from pixelwise.data.files.facts import FileFacts, sentinel_of, valid_labels, valid_pixels
from pixelwise.data.files.readers import IMAGE_SUFFIXES, image_info, read_image, read_labels, read_picture
from pixelwise.data.files.sources import open_source

RNG = np.random.default_rng(0)
BLACK: dict[str, Any] = {"photometric": "minisblack"}
SEVERAL = (
    "holds 2 images; one is read, by default the largest (choose another with --series)",
    "has an alpha channel of many values, which is kept as a channel of data",
    "does not say whether 0 is black or white (no photometric tag); 0 is read as black",
)


def without_tag(path: Path, code: int) -> None:
    """Take a tag out of the only page of a little-endian TIFF: give it an unknown number."""
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        offset = page.tags[code].offset
    data[offset : offset + 2] = (65000).to_bytes(2, "little")
    path.write_bytes(data)


def by_window(path: Path, **keywords: Any) -> np.ndarray:
    """The first page, in four windows."""
    with open_source(path, **keywords) as source:
        height, width = source.height, source.width
        edges = [(0, height // 2), (height // 2, height)], [(0, width // 3), (width // 3, width)]
        rows = [[source.read(0, Window(*y, *x)) for x in edges[1]] for y in edges[0]]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def test_notes_are_sentences_about_a_file() -> None:
    facts = FileFacts("TIFF", series=2, alpha="data", photometric=False)
    assert facts.notes() == list(SEVERAL)
    assert FileFacts("TIFF", alpha="dropped").notes() == ["has an alpha channel (transparency), which is left out"]
    assert FileFacts("PNG").notes() == []


# Missing pixels


@pytest.mark.parametrize("value", ["-9999", "nan", "-3.4e38", "-3.4028234663852886e+38", " 0 "])
def test_nodata_of_floats_and_masks(tmp_path: Path, value: str) -> None:
    image = RNG.random((8, 9, 2), np.float32) + 1
    labels = np.float32(RNG.integers(0, 3, (8, 9)) + 1)
    stored = np.float32(max(float(value), -3.4028234663852886e38) if value != "nan" else np.nan)
    image[2, 3, 1] = labels[2, 3] = stored
    tag = [(42113, "s", 0, value, True)]
    tifffile.imwrite(tmp_path / "a.tif", image, extratags=tag, planarconfig="contig", **BLACK)
    tifffile.imwrite(tmp_path / "b.tif", labels, extratags=tag, **BLACK)
    found = read_picture(tmp_path / "a.tif")
    expected = np.ones((1, 8, 9), bool)
    expected[0, 2, 3] = False
    np.testing.assert_array_equal(valid_pixels(found.pixels, found.facts), expected)
    masks = read_labels(tmp_path / "b.tif")
    np.testing.assert_array_equal(valid_labels(masks.pixels, masks.facts), expected)
    np.testing.assert_array_equal(masks.pixels[expected], labels[None][expected])


def test_nodata_of_whole_numbers_is_that_of_all_bands(tmp_path: Path) -> None:
    array = np.zeros((4, 4, 3), np.uint8)
    array[0, 0] = 1, 0, 0
    tifffile.imwrite(tmp_path / "a.tif", array, extratags=[(42113, "s", 0, "0", True)])
    found = read_picture(tmp_path / "a.tif")
    assert np.flatnonzero(valid_pixels(found.pixels, found.facts)).tolist() == [0]
    assert valid_pixels(array, 300.0) is not None
    assert valid_pixels(array, -9999).all()  # type: ignore[union-attr]
    assert valid_pixels(array, 0.5).all()  # type: ignore[union-attr]
    assert valid_pixels(array, None) is None
    assert valid_pixels(array, FileFacts("PNG")) is None


def test_a_nodata_value_is_turned_with_white_is_zero_and_means_nothing_for_colors(tmp_path: Path) -> None:
    array = RNG.integers(1, 255, (6, 7), dtype=np.uint8)
    array[0] = 0
    tag = [(42113, "s", 0, "0", True)]
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite", extratags=tag)
    found = read_picture(tmp_path / "a.tif")
    assert found.facts.nodata == 255
    assert not valid_pixels(found.pixels, found.facts)[0, 0].any()  # type: ignore[index]
    colors = RNG.integers(0, 65536, (3, 256), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "b.tif", array, photometric="palette", colormap=colors, extratags=tag)
    assert read_picture(tmp_path / "b.tif").facts.nodata is None
    assert read_labels(tmp_path / "b.tif").facts.nodata == 0


@pytest.mark.parametrize("text", ["", "none", "1e", "\0"])
def test_a_nodata_tag_without_a_number_says_nothing(tmp_path: Path, text: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((4, 4), np.uint8), extratags=[(42113, "s", 0, text + " ", True)])
    assert read_picture(tmp_path / "a.tif").facts.nodata is None


@pytest.mark.parametrize("value", [-9999, -32768, -3.4028235e38, 1e20, 99999, -999, 9.96921e36, 1e35])
def test_sentinels_are_seen(value: float) -> None:
    image = np.float32(RNG.normal(200, 60, (60, 60, 1)))
    assert sentinel_of(image) is None
    image[:10] = value
    assert sentinel_of(image) == np.float32(value)


@pytest.mark.parametrize(
    "image",
    [
        np.float32(RNG.random((50, 50)) > 0.5),  # two values
        np.float32(RNG.normal(0, 1, (50, 50)).clip(0)),  # cut off below
        np.float32(np.minimum(RNG.gamma(1, 8000, (50, 50)), 65535)),  # cut off above
        np.float32(np.where(RNG.random((50, 50)) > 0.9, 255, 0)),
        np.full((5, 5), -9999, np.float32),  # there is nothing else
        np.full((5, 5), np.nan, np.float32),
        RNG.integers(0, 9, (5, 5)),
        np.float32([-9999, *range(5000)]),  # once
    ],
)
def test_usual_values_are_no_sentinels(image: np.ndarray) -> None:
    assert sentinel_of(image) is None


# Bits


@pytest.mark.parametrize("bits", [1, 2, 4, 10, 12, 14])
def test_full_scale_of_packed_bits(tmp_path: Path, bits: int) -> None:
    array = RNG.integers(0, 2**bits, (16, 24)).astype(bool if bits == 1 else np.uint8 if bits < 8 else np.uint16)
    path = tmp_path / "a.tif"
    if bits == 1:
        tifffile.imwrite(path, array, **BLACK)
    else:
        write_packed(path, array, bits)
    found = read_picture(path)
    np.testing.assert_array_equal(found.pixels[0, ..., 0], array)
    np.testing.assert_array_equal(by_window(path)[..., 0], array)
    np.testing.assert_array_equal(read_labels(path).pixels[0], array)
    assert found.facts.full_scale == 2**bits - 1


def write_packed(path: Path, array: np.ndarray, bits: int) -> None:
    """An uncompressed TIFF of `bits` a sample, most significant bit first, as the format has it."""
    rows = (array[..., None].astype(np.int64) >> np.arange(bits)[::-1]) & 1
    data = np.packbits(rows.reshape(len(array), -1).astype(np.uint8), axis=1)
    tifffile.imwrite(path, np.zeros(array.shape, array.dtype), **BLACK, metadata=None)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tags = file.pages.first.tags
        start = file.pages.first.dataoffsets[0]
        for code, value in ((258, bits), (279, data.size)):
            place = tags[code].valueoffset
            content[place : place + 2] = value.to_bytes(2, "little")
    content[start : start + data.size] = data.tobytes()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("dtype", "maximum", "expected"),
    [(np.uint16, 4095, 4095), (np.uint16, 4000, 4095), (np.uint16, 65535, None), (np.float32, 255.0, 255),
     (np.float32, 0.8, 1), (np.int16, 2047, 2047), (np.uint8, 255, None), (np.uint16, 0, None)],
)  # fmt: skip
def test_full_scale_of_a_stated_maximum(tmp_path: Path, dtype: Any, maximum: float, expected: float | None) -> None:
    kind = "f" if dtype is np.float32 else "H"
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 8), dtype), extratags=[(341, kind, 1, maximum, True)], **BLACK)
    assert read_picture(tmp_path / "a.tif").facts.full_scale == expected


def test_full_scale_of_ome_significant_bits(tmp_path: Path) -> None:
    metadata = {"axes": "YX", "SignificantBits": 12}
    tifffile.imwrite(tmp_path / "a.ome.tif", np.ones((32, 32), np.uint16), metadata=metadata, **BLACK)
    assert read_picture(tmp_path / "a.ome.tif").facts.full_scale == 4095


@pytest.mark.parametrize(
    ("values", "bits", "expected"),
    [(np.arange(4096), 12, 4095), (np.arange(4096) << 4, 12, None), (np.arange(200) << 4, 12, None),
     (np.arange(4096), 16, None), (np.arange(1024), 10, 1023)],
)  # fmt: skip
def test_full_scale_of_a_png_with_significant_bits(
    tmp_path: Path, values: np.ndarray, bits: int, expected: float | None
) -> None:
    info = PngImagePlugin.PngInfo()
    info.add(b"sBIT", bytes([bits]))
    Image.fromarray(values.astype(np.uint16).reshape(8, -1)).save(tmp_path / "a.png", pnginfo=info)
    assert read_picture(tmp_path / "a.png").facts.full_scale == expected


def test_full_scale_of_one_bit(tmp_path: Path) -> None:
    Image.fromarray(RNG.random((9, 9)) > 0.5).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").facts.full_scale == 1
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "b.png")
    assert read_picture(tmp_path / "b.png").facts.full_scale is None


def test_a_palette_of_one_bit_and_one_of_eight_bit_colors(tmp_path: Path) -> None:
    array = RNG.random((9, 12)) > 0.5
    colors = np.uint16([[1, 2], [3, 4], [5, 6]])
    palette = np.array([[1, 3, 5], [2, 4, 6]], np.uint8)
    image = Image.fromarray(array.astype(np.uint8))
    image.putpalette(palette.ravel().tolist())
    image.save(tmp_path / "b.png", bits=1)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png")[0], palette[array.astype(int)])
    np.testing.assert_array_equal(read_labels(tmp_path / "b.png").pixels[0], array)
    write_one_bit_palette(tmp_path / "c.tif", array, colors)
    found = read_picture(tmp_path / "c.tif")
    np.testing.assert_array_equal(found.pixels[0], palette[array.astype(int)])
    np.testing.assert_array_equal(found.facts.palette, palette)
    np.testing.assert_array_equal(by_window(tmp_path / "c.tif"), palette[array.astype(int)])
    np.testing.assert_array_equal(read_labels(tmp_path / "c.tif").pixels[0], array)


def write_one_bit_palette(path: Path, array: np.ndarray, colors: np.ndarray) -> None:
    """A 1-bit TIFF whose two colours are given, 3 x 2 uint16."""
    tag = [(320, "H", colors.size, tuple(colors.ravel().tolist()), True)]
    tifffile.imwrite(path, array, photometric="minisblack", extratags=tag, metadata=None)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        place = file.pages.first.tags[262].valueoffset
    content[place] = 3
    path.write_bytes(content)


# Transparency


def rgba(alpha: np.ndarray) -> np.ndarray:
    return np.dstack([RNG.integers(0, 256, (*alpha.shape, 3)), alpha]).astype(np.uint8)


SIDE = 96
SOFT = np.clip((np.hypot(*np.mgrid[-48:48, -48:48]) - 30) * 80, 0, 255)
ALPHAS = {
    "infrared": (RNG.integers(20, 200, (SIDE, SIDE)), "data"),
    "infrared beside missing pixels": (
        np.where(np.arange(SIDE) < 60, 0, RNG.integers(20, 256, (SIDE, SIDE))),
        "data",
    ),
    "opaque": (np.full((SIDE, SIDE), 255), "dropped"),
    "cut out": (np.where(SOFT > 100, 255, 0), "dropped"),
    "cut out softly": (255 - SOFT, "dropped"),
    "half": (np.full((SIDE, SIDE), 128), "dropped"),
}
WAYS: dict[str, dict[str, Any]] = {
    "one strip": {},
    "strips": {"rowsperstrip": 7, "compression": "zlib"},
    "tiles": {"tile": (32, 32), "compression": "zlib"},
    "planes": {"planarconfig": "separate", "metadata": None},
    "planes in tiles": {"planarconfig": "separate", "tile": (32, 32), "compression": "zlib", "metadata": None},
    "big endian": {"byteorder": ">"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ALPHAS)
def test_an_alpha_channel_of_many_values_is_data(tmp_path: Path, name: str, way: str) -> None:
    alpha, expected = ALPHAS[name]
    image, path = rgba(alpha), tmp_path / "a.tif"
    stored = np.moveaxis(image, -1, 0) if way.startswith("planes") else image
    tifffile.imwrite(path, stored, photometric="rgb", extrasamples=["unassalpha"], **WAYS[way])
    channels = 4 if expected == "data" else 3
    found = read_picture(path)
    assert found.facts.alpha == expected
    np.testing.assert_array_equal(found.pixels[0], image[..., :channels])
    np.testing.assert_array_equal(by_window(path), image[..., :channels])
    assert image_info(path).channels == channels
    with open_source(path) as source:
        assert source.facts.alpha == expected


def test_alpha_of_sixteen_bits_and_of_floats(tmp_path: Path) -> None:
    infrared = RNG.integers(100, 3000, (40, 40, 4))
    for dtype in (np.uint16, np.float32):
        tifffile.imwrite(tmp_path / "a.tif", infrared.astype(dtype), photometric="rgb", extrasamples=["unassalpha"])
        assert read_picture(tmp_path / "a.tif").facts.alpha == "data"
        opaque = infrared.astype(dtype)
        opaque[..., 3] = 65535 if dtype is np.uint16 else 1
        tifffile.imwrite(tmp_path / "b.tif", opaque, photometric="rgb", extrasamples=["unassalpha"])
        assert read_picture(tmp_path / "b.tif").facts.alpha == "dropped"


def test_labels_never_take_alpha(tmp_path: Path) -> None:
    image = rgba(ALPHAS["infrared"][0])
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif").pixels[0], image[..., :3])


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_transparency_of_photographs_is_dropped(tmp_path: Path, suffix: str) -> None:
    image = rgba(ALPHAS["infrared"][0])
    Image.fromarray(image).save(tmp_path / f"a{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    found = read_picture(tmp_path / f"a{suffix}")
    assert (found.facts.alpha, found.pixels.shape[3]) == ("dropped", 3)
    Image.fromarray(image[..., :3]).save(tmp_path / f"b{suffix}")
    assert read_picture(tmp_path / f"b{suffix}").facts.alpha == "none"


# Several images in a file


def write_series(path: Path) -> tuple[np.ndarray, np.ndarray]:
    small, large = RNG.integers(0, 256, (30, 40), dtype=np.uint8), RNG.integers(0, 256, (90, 80), dtype=np.uint8)
    with tifffile.TiffWriter(path) as writer:
        for page in (small, large):
            writer.write(page, metadata=None, tile=(16, 16), **BLACK)
    return small, large


def test_the_largest_image_of_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    small, large = write_series(path)
    found = read_picture(path)
    assert found.facts.series == 2
    np.testing.assert_array_equal(found.pixels[0, ..., 0], large)
    np.testing.assert_array_equal(by_window(path)[..., 0], large)
    np.testing.assert_array_equal(by_window(path, series=0)[..., 0], small)
    np.testing.assert_array_equal(read_image(path, series=0)[0, ..., 0], small)
    assert (image_info(path).height, image_info(path, series=0).height) == (90, 30)


def test_an_image_that_a_file_does_not_hold(tmp_path: Path) -> None:
    write_series(tmp_path / "a.tif")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    message = r"a\.tif: holds 2 images, numbered from 0 to 1, but --series asks for number 2\. Choose one of these\."
    with pytest.raises(DataError, match=message):
        read_image(tmp_path / "a.tif", series=2)
    with pytest.raises(DataError, match=r"a\.png: holds one image, number 0, but --series asks for number 1\."):
        read_image(tmp_path / "a.png", series=1)
    assert read_image(tmp_path / "a.png", series=0).shape == (1, 4, 4, 1)


def test_without_the_photometric_tag_zero_is_black(tmp_path: Path) -> None:
    array = RNG.integers(0, 99, (20, 30), dtype=np.uint8)
    for name, options in (("a.tif", {"tile": (16, 16)}), ("b.tif", {})):
        tifffile.imwrite(tmp_path / name, array, photometric="miniswhite", metadata=None, **options)
        assert read_picture(tmp_path / name).facts.photometric
        np.testing.assert_array_equal(read_image(tmp_path / name)[0, ..., 0], 255 - array)
        without_tag(tmp_path / name, 262)
        found = read_picture(tmp_path / name)
        assert not found.facts.photometric
        np.testing.assert_array_equal(found.pixels[0, ..., 0], array)
        np.testing.assert_array_equal(by_window(tmp_path / name)[..., 0], array)


# Errors by their codes


def broken(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def png_bytes(path: Path) -> bytes:
    Image.fromarray(RNG.integers(0, 256, (40, 40), dtype=np.uint8)).save(path, format="PNG")
    return path.read_bytes()


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (broken(b""), "truncated"),
        (broken(b"hello"), "unknown-format"),
        (broken(bytes(range(256))), "unknown-format"),
        (lambda path: path.write_bytes(png_bytes(path)[:-30]), "truncated"),
        (lambda path: tifffile.imwrite(path, np.float32(RNG.random((8, 8)))), "float-labels"),
        (lambda path: tifffile.imwrite(path, np.full((8, 8), 1e12)), "float-labels"),
        (lambda path: path.write_bytes(png_bytes(path)[:60] + bytes(40) + png_bytes(path)[100:]), "unreadable"),
        (lambda path: path.mkdir(), "unreadable"),
    ],
)
def test_errors_say_in_which_way_a_file_cannot_be_used(
    tmp_path: Path, make: Callable[[Path], object], code: str
) -> None:
    make(tmp_path / "a")
    with pytest.raises(UnreadableError) as caught:
        read_labels(tmp_path / "a")
    assert caught.value.code == code
    assert str(caught.value).startswith(str(tmp_path / "a"))


def test_a_cut_off_jpeg_and_tiff_are_truncated(tmp_path: Path) -> None:
    image = RNG.integers(0, 256, (60, 60), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.jpg")
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(16, 16), compression="zlib")
    for name in ("a.jpg", "a.tif"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UnreadableError) as caught:
            read_picture(path)
        assert caught.value.code == "truncated", str(caught.value)


def test_extensions_of_microscopes_and_slide_scanners() -> None:
    assert {".svs", ".stk", ".lsm", ".ndpi", ".scn", ".qptiff", ".btf"} <= IMAGE_SUFFIXES
