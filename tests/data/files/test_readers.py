"""One conformance suite for every kind of file, then what each kind has of its own."""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage.io
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pixelwise.core.errors import DataError, UnreadableError
from pixelwise.data.files.readers import IMAGE_SUFFIXES, image_info, read_image, read_mask

Shape = tuple[int, ...]
Write = Callable[[Path, np.ndarray], object]


@dataclass(frozen=True)
class Kind:
    """A kind of file: how to write one, from arrays of which shape and type, and what must come back."""

    suffix: str
    write: Write
    shape: Callable[[int, int], Shape]
    dtype: type
    expect: Callable[[np.ndarray], np.ndarray]  # array as written -> P x H x W x C
    smallest: int = 1  # side; the writers of ImageJ's and OME's files take narrow images for colours


def pillow(format_name: str, **options: Any) -> Write:
    return lambda path, array: Image.fromarray(array).save(path, format=format_name, **options)


def pillow_palette(path: Path, array: np.ndarray) -> None:
    image = Image.fromarray(array)
    image.putpalette(PALETTE.ravel().tolist())
    image.save(path, transparency=bytes(range(256)) if path.suffix == ".png" else None)


def opencv(path: Path, array: np.ndarray) -> None:
    path.write_bytes(cv2.imencode(path.suffix, array[..., ::-1])[1].tobytes())


def tiff(**options: Any) -> Write:
    return lambda path, array: tifffile.imwrite(path, array, **options)


def cut_out(path: Path, array: np.ndarray) -> None:
    """With an alpha channel that is either opaque or not, as a transparency is."""
    array = array.copy()
    array[..., 3] = np.where(array[..., 3] > 99, 255, 0)
    Image.fromarray(array).save(path, format="TIFF")


def resolved(array: np.ndarray) -> np.ndarray:
    return PALETTE[array][None]


PALETTE = np.random.default_rng(5).integers(0, 256, (256, 3), dtype=np.uint8)
GREY = {"shape": lambda h, w: (h, w), "expect": lambda array: array[None, ..., None]}
RGB = {"shape": lambda h, w: (h, w, 3), "expect": lambda array: array[None]}
RGBA = {"shape": lambda h, w: (h, w, 4), "expect": lambda array: array[None, ..., :3]}
STACK = {"shape": lambda h, w: (3, h, w), "expect": lambda array: array[..., None]}
CHANNELS_FIRST = {"shape": lambda h, w: (5, h, w), "expect": lambda array: np.moveaxis(array, 0, -1)[None]}
CHANNELS_LAST = {"shape": lambda h, w: (h, w, 5), "expect": lambda array: array[None]}
HYPERSTACK = {
    "shape": lambda h, w: (2, 3, 4, h, w),
    "expect": lambda array: np.moveaxis(array, 2, -1).reshape(6, *array.shape[3:], 4),
}
BLACK: dict[str, Any] = {"photometric": "minisblack"}

KINDS = {
    "png grey": Kind(".png", pillow("PNG"), dtype=np.uint8, **GREY),
    "png grey 16": Kind(".png", pillow("PNG"), dtype=np.uint16, **GREY),
    "png 1 bit": Kind(".png", pillow("PNG"), dtype=np.bool_, **GREY),
    "png grey + alpha": Kind(
        ".png", pillow("PNG"), lambda h, w: (h, w, 2), np.uint8, lambda array: array[None, ..., :1]
    ),
    "png RGB": Kind(".png", pillow("PNG"), dtype=np.uint8, **RGB),
    "png RGBA": Kind(".png", pillow("PNG"), dtype=np.uint8, **RGBA),
    "png RGB 16": Kind(".png", opencv, dtype=np.uint16, **RGB),
    "png palette": Kind(".png", pillow_palette, lambda h, w: (h, w), np.uint8, resolved),
    "bmp grey": Kind(".bmp", pillow("BMP"), dtype=np.uint8, **GREY),
    "bmp RGB": Kind(".bmp", pillow("BMP"), dtype=np.uint8, **RGB),
    "bmp palette": Kind(".bmp", pillow_palette, lambda h, w: (h, w), np.uint8, resolved),
    "gif": Kind(".gif", pillow_palette, lambda h, w: (h, w), np.uint8, resolved),
    "webp lossless": Kind(".webp", pillow("WEBP", lossless=True), dtype=np.uint8, **RGB),
    "pgm": Kind(".pgm", pillow("PPM"), dtype=np.uint8, **GREY),
    "pgm 16": Kind(".pgm", pillow("PPM"), dtype=np.uint16, **GREY),
    "ppm": Kind(".ppm", pillow("PPM"), dtype=np.uint8, **RGB),
    "tiff u8": Kind(".tif", tiff(**BLACK), dtype=np.uint8, **GREY),
    "tiff u16": Kind(".tif", tiff(byteorder=">", **BLACK), dtype=np.uint16, **GREY),
    "tiff u32": Kind(".tif", tiff(compression="zlib", tile=(16, 16)), dtype=np.uint32, **GREY),
    "tiff i16": Kind(".tif", tiff(**BLACK), dtype=np.int16, **GREY),
    "tiff f16": Kind(".tif", tiff(**BLACK), dtype=np.float16, **GREY),
    "tiff f32": Kind(".tif", tiff(byteorder=">", compression="lzw"), dtype=np.float32, **GREY),
    "tiff f64": Kind(".tif", tiff(bigtiff=True), dtype=np.float64, **GREY),
    "tiff 1 bit": Kind(".tif", pillow("TIFF", compression="group4"), dtype=np.bool_, **GREY),
    "tiff packbits": Kind(".tif", tiff(compression="packbits"), dtype=np.uint8, **GREY),
    "tiff RGB": Kind(".tif", tiff(compression="lzw", predictor=True, rowsperstrip=5), dtype=np.uint8, **RGB),
    "tiff RGBA": Kind(".tif", cut_out, dtype=np.uint8, **RGBA),
    "tiff palette": Kind(".tif", pillow_palette, lambda h, w: (h, w), np.uint8, resolved),
    "tiff 5 channels": Kind(".tif", tiff(planarconfig="contig", **BLACK), dtype=np.uint16, **CHANNELS_LAST),
    "tiff 5 planes": Kind(
        ".tif", tiff(planarconfig="separate", metadata=None, **BLACK), dtype=np.uint16, **CHANNELS_FIRST
    ),
    "tiff CYX": Kind(".tif", tiff(metadata={"axes": "CYX"}, **BLACK), dtype=np.float32, **CHANNELS_FIRST),
    "tiff pages": Kind(".tif", tiff(metadata=None, **BLACK), dtype=np.uint8, **STACK),
    "tiff ZYX": Kind(".tif", tiff(metadata={"axes": "ZYX"}, **BLACK), dtype=np.uint16, **STACK),
    "tiff ImageJ": Kind(".tif", tiff(imagej=True, metadata={"axes": "ZYX"}), dtype=np.uint16, smallest=5, **STACK),
    "tiff ImageJ TZCYX": Kind(
        ".tif", tiff(imagej=True, metadata={"axes": "TZCYX"}), dtype=np.uint8, smallest=5, **HYPERSTACK
    ),
    "tiff OME": Kind(".tif", tiff(ome=True, metadata={"axes": "TZCYX"}), dtype=np.uint16, smallest=5, **HYPERSTACK),
}


def save_tiff(path: Path, array: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(path, array, **({"photometric": "minisblack"} | options))
    return path


sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def random_array(kind: Kind, height: int, width: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    shape = kind.shape(height, width)
    if np.issubdtype(kind.dtype, np.floating):
        return (generator.random(shape) * 1000 - 500).astype(kind.dtype)
    if kind.dtype is np.bool_:
        return generator.random(shape) < 0.5
    limits = np.iinfo(kind.dtype)
    return generator.integers(limits.min, limits.max, shape, dtype=kind.dtype, endpoint=True)


def given_type(array: np.ndarray) -> np.dtype:
    if array.dtype == bool:
        return np.dtype(np.uint8)
    return np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


# ---- what every kind must do


@every_kind
@settings(deadline=None, max_examples=10)
@given(height=sizes, width=sizes, seed=seeds)
def test_pixels_come_back(kind: Kind, place: Path, height: int, width: int, seed: int) -> None:
    array = random_array(kind, max(height, kind.smallest), max(width, kind.smallest), seed)
    path = place / f"image{kind.suffix}"
    kind.write(path, array)
    pixels = read_image(path)
    expected = kind.expect(array).astype(given_type(array))
    np.testing.assert_array_equal(pixels, expected, strict=True)
    assert pixels.dtype.isnative
    assert pixels.flags.c_contiguous
    info = image_info(path)
    assert (info.pages, info.height, info.width, info.channels) == pixels.shape
    assert info.dtype == pixels.dtype


@every_kind
def test_content_counts_not_the_suffix(kind: Kind, tmp_path: Path) -> None:
    array = random_array(kind, 9, 14, 0)
    path = tmp_path / f"image{kind.suffix}"
    kind.write(path, array)
    other = tmp_path / f"image.{'png' if kind.suffix == '.tif' else 'tif'}"
    path.rename(other)
    np.testing.assert_array_equal(read_image(other), kind.expect(array).astype(given_type(array)))
    assert kind.suffix in IMAGE_SUFFIXES


@every_kind
@settings(deadline=None, max_examples=10)
@given(seed=seeds, kept=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused_or_whole(kind: Kind, place: Path, seed: int, kept: float) -> None:
    path = place / f"image{kind.suffix}"
    array = random_array(kind, 12, 17, seed)
    kind.write(path, array)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    outcome = read_or_error(path)
    if isinstance(outcome, np.ndarray):  # the cut took nothing but what follows the pixels
        np.testing.assert_array_equal(outcome, kind.expect(array))
    else:
        assert outcome.startswith(f"{path}: ")


@every_kind
@settings(deadline=None, max_examples=10)
@given(
    seed=seeds,
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    only_header=st.booleans(),
)
def test_a_damaged_file_is_read_or_refused(
    kind: Kind, place: Path, seed: int, changes: list[tuple[float, int]], only_header: bool
) -> None:
    path = place / f"image{kind.suffix}"
    kind.write(path, random_array(kind, 12, 17, seed))
    data = bytearray(path.read_bytes())
    for position, value in changes:
        data[int(position * min(len(data), 200 if only_header else len(data)))] = value
    path.write_bytes(bytes(data))
    for read in (read_image, read_mask, image_info):
        outcome = read_or_error(path, read)
        assert not isinstance(outcome, str) or outcome.startswith(f"{path}: ")


def read_or_error(path: Path, read: Callable[[Path], Any] = read_image) -> Any:
    try:
        return read(path)
    except DataError as error:
        return str(error)


# ---- against independent readers


@pytest.mark.parametrize("name", ["png grey", "png grey 16", "bmp grey", "tiff u8", "tiff u16", "pgm 16"])
@settings(deadline=None, max_examples=10)
@given(height=sizes, width=sizes, seed=seeds)
def test_grey_as_opencv_reads_it(place: Path, name: str, height: int, width: int, seed: int) -> None:
    kind = KINDS[name]
    path = place / f"cv{kind.suffix}"
    kind.write(path, random_array(kind, height, width, seed))
    theirs = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(read_image(path)[0, ..., 0], theirs, strict=True)


@pytest.mark.parametrize("name", ["png RGB", "png RGB 16", "png palette", "bmp RGB", "webp lossless", "ppm"])
@settings(deadline=None, max_examples=10)
@given(height=sizes, width=sizes, seed=seeds)
def test_colours_as_opencv_reads_them(place: Path, name: str, height: int, width: int, seed: int) -> None:
    kind = KINDS[name]
    path = place / f"cv{kind.suffix}"
    kind.write(path, random_array(kind, height, width, seed))
    theirs = cv2.imread(str(path), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(read_image(path)[0], theirs, strict=True)


@pytest.mark.parametrize("name", ["png grey 16", "png RGB", "gif", "tiff RGB", "tiff u32", "tiff 5 channels"])
def test_as_scikit_image_reads_it(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = tmp_path / f"image{kind.suffix}"
    kind.write(path, random_array(kind, 23, 31, 4))
    np.testing.assert_array_equal(read_image(path).squeeze(), np.squeeze(skimage.io.imread(path)))


def test_lossy_webp_and_jpeg_inside_a_tiff(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:64, :80]
    smooth = np.stack([rows, columns, 250 - rows], axis=-1).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.webp", quality=95)
    tifffile.imwrite(tmp_path / "a.tif", smooth, tile=(16, 16), compression="jpeg", photometric="rgb")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].photometric == tifffile.PHOTOMETRIC.YCBCR
    for name in ("a.webp", "a.tif"):
        np.testing.assert_allclose(read_image(tmp_path / name)[0].astype(int), smooth, atol=8)


# ---- rotation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_rotation_is_applied(name: str, orientation: int, tmp_path: Path) -> None:
    array = np.random.default_rng(orientation).integers(0, 256, (7, 11, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "a.webp" else {}
    Image.fromarray(array).save(tmp_path / name, exif=exif, **options)
    with Image.open(tmp_path / name) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_image(tmp_path / name)[0], expected)
    np.testing.assert_array_equal(read_mask(tmp_path / name)[0], expected)
    info = image_info(tmp_path / name)
    assert (info.height, info.width) == expected.shape[:2]


def test_rotation_of_a_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20), (200, 30, 40)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (1, 30, 20, 3)
    assert image_info(tmp_path / "a.jpg").height == 30


def test_damaged_exif_turns_nothing_and_warns_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (30, 20)).save(path, exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x09\x00\x12\x01")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).shape == (1, 20, 30, 3)


# ---- masks


@pytest.mark.parametrize("name", ["png grey", "png palette", "png grey 16", "bmp palette", "tiff u32", "tiff palette"])
@settings(deadline=None, max_examples=10)
@given(height=sizes, width=sizes, seed=seeds)
def test_labels_are_the_stored_numbers(place: Path, name: str, height: int, width: int, seed: int) -> None:
    kind = KINDS[name]
    labels = random_array(kind, height, width, seed)
    path = place / f"mask{kind.suffix}"
    kind.write(path, labels)
    np.testing.assert_array_equal(read_mask(path), labels[None], strict=True)


@pytest.mark.parametrize("name", ["png 1 bit", "tiff 1 bit"])
def test_labels_of_1_bit(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    labels = random_array(kind, 12, 17, 0)
    path = tmp_path / f"mask{kind.suffix}"
    kind.write(path, labels)
    np.testing.assert_array_equal(read_mask(path), labels[None].astype(np.uint8), strict=True)


def test_colour_masks_and_grey_that_looks_like_colour(tmp_path: Path) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    Image.fromarray(colors).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), colors[None])
    Image.fromarray(colors[..., :1].repeat(3, axis=2)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), colors[None, ..., 0])


def test_a_mask_of_five_channels(tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", np.ones((5, 12, 9), np.uint8), metadata={"axes": "CYX"})
    with pytest.raises(DataError, match=r"a\.tif: has 5 channels, but a mask has one \(labels\) or three"):
        read_mask(path)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([0, 200], np.uint8), ([0, 300], np.uint16), ([0, 70000], np.uint32), ([-1, 9], np.int8)],
)
@pytest.mark.parametrize("stored", [np.float32, np.float64])
def test_whole_numbers_in_floating_point(values: list[int], dtype: type, stored: type, tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", np.array([values, values], stored))
    np.testing.assert_array_equal(read_mask(path), np.array([[values, values]], dtype), strict=True)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (0.5, "fractions, but labels are whole numbers"),
        (np.nan, "NaN or infinite values at 1 of its pixels, but labels are whole numbers"),
        (np.inf, "NaN or infinite values at 1 of its pixels, but labels are whole numbers"),
    ],
)
def test_numbers_in_a_mask_that_are_not_whole(value: float, what: str, tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", np.array([[0, value]], np.float32))
    with pytest.raises(UnreadableError, match=rf"a\.tif: holds {what}") as caught:
        read_mask(path)
    assert caught.value.code == "float-labels"


def test_labels_beyond_31_bits(tmp_path: Path) -> None:
    path = save_tiff(tmp_path / "a.tif", np.array([[0, 1e20]], np.float64))
    with pytest.raises(DataError, match=r"holds labels from 0 to 1000+, but they must fit into 31 bits"):
        read_mask(path)


# ---- files that are no images


def test_no_such_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(DataError, match="no such file"):
            read_image(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty: it holds 0 bytes"),
        ("Bäume, Wiesen\n".encode() * 90, "is a text file, not an image. Readable formats: TIFF, PNG, JPEG"),
        (b"\x00\x01\x02\xff" * 50, "is not an image in a known format. Readable formats: TIFF, PNG, JPEG"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}", "is not an image in a known format"),
    ],
)
def test_files_that_are_no_images(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(DataError) as raised:
        read_image(path)
    assert str(raised.value).startswith(f"{path}: {message}")


def test_a_file_that_may_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"a\.png: cannot be opened \(Permission denied\)"):
        read_image(path)
