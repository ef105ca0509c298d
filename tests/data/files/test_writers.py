"""What is written comes back through the readers, and through others' readers too."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import pixelwise.data.files.writers as writers
from pixelwise.core.classes import ClassMap
from pixelwise.core.errors import OutputError
from pixelwise.data.files.readers import image_info, read_image, read_mask
from pixelwise.data.files.writers import write_image, write_mask, write_probabilities

sizes = st.integers(1, 300)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def random_labels(shape: tuple[int, ...], dtype: Any, seed: int) -> np.ndarray:
    top = min(np.iinfo(dtype).max, 2**32 - 1)
    return np.random.default_rng(seed).integers(0, top, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("a.png", np.uint8),
        ("a.png", np.uint16),
        ("a.tif", np.uint8),
        ("a.tiff", np.uint16),
        ("A.TIF", np.uint32),
        ("a.tif", ">u2"),
    ],
)
@settings(deadline=None, max_examples=20)
@given(height=sizes, width=sizes, seed=seeds)
def test_labels_come_back(place: Path, name: str, dtype: Any, height: int, width: int, seed: int) -> None:
    labels = random_labels((height, width), np.dtype(dtype).newbyteorder("="), seed).astype(dtype)
    write_mask(place / name, labels)
    expected = labels[None].astype(labels.dtype.newbyteorder("="))
    np.testing.assert_array_equal(read_mask(place / name), expected, strict=True)
    theirs = cv2.imread(str(place / name), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(theirs, expected[0])
    assert [path.name for path in place.iterdir() if path.name.endswith(".part")] == []


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 255), seed=seeds)
def test_labels_with_a_palette_keep_their_indices(place: Path, name: str, count: int, seed: int) -> None:
    classes = ClassMap(tuple(f"class {index}" for index in range(count)))
    labels = np.random.default_rng(seed).integers(0, count, (13, 21), dtype=np.uint8)
    labels[0, 0] = 255
    write_mask(place / name, labels, classes.palette)
    np.testing.assert_array_equal(read_mask(place / name), labels[None], strict=True)
    colors = np.array(classes.palette, np.uint8).reshape(256, 3)
    np.testing.assert_array_equal(read_image(place / name), colors[labels][None], strict=True)
    np.testing.assert_array_equal(np.asarray(Image.open(place / name).convert("RGB")), colors[labels])


def test_a_short_palette_does_not_cut_labels(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 7, 255]], np.uint8)
    write_mask(tmp_path / "a.png", labels, [0, 0, 0, 255, 0, 0])
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png")[0], labels)


def test_a_palette_is_for_8_bits_only(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", np.full((3, 4), 300, np.uint16), ClassMap(("a",)).palette)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.full((1, 3, 4, 1), 300))


@settings(deadline=None, max_examples=20)
@given(pages=st.integers(1, 5), height=st.integers(1, 40), width=st.integers(1, 40), seed=seeds)
def test_stacks_come_back(place: Path, pages: int, height: int, width: int, seed: int) -> None:
    labels = random_labels((pages, height, width), np.uint16, seed)
    write_mask(place / "stack.tif", labels)
    np.testing.assert_array_equal(read_mask(place / "stack.tif"), labels, strict=True)


@pytest.mark.parametrize(("top", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (65536, np.uint32)])
@pytest.mark.parametrize("given_dtype", [np.int32, np.int64, np.uint64])
def test_other_integers_become_the_smallest_that_hold_them(
    top: int, dtype: type, given_dtype: type, tmp_path: Path
) -> None:
    labels = np.array([[0, top]], given_dtype)
    write_mask(tmp_path / "a.tif", labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), labels[None].astype(dtype), strict=True)


def test_true_and_false_are_1_and_0(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", np.array([[True, False]]))
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), np.array([[[1, 0]]], np.uint8), strict=True)


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("a.png", np.zeros((2, 3, 4), np.uint8), r"a PNG holds one page, but the labels have 2\. Write a TIFF"),
        (
            "a.png",
            np.zeros((3, 4), np.uint32),
            r"a PNG holds at most 16 bits, but the labels need 32\. Write a TIFF",
        ),
        ("a.png", np.full((3, 4), 70000), r"a PNG holds at most 16 bits, but the labels need 32\. Write a TIFF"),
        (
            "a.jpg",
            np.zeros((3, 4), np.uint8),
            r'files with the extension "\.jpg" cannot be written\. Choose \.png or \.tif',
        ),
        ("a.tif", np.array([[-1, 4]]), r"labels must lie between 0 and 2\^32 - 1, but these go from -1 to 4"),
        (
            "a.tif",
            np.array([[0, 2**32]]),
            r"labels must lie between 0 and 2\^32 - 1, but these go from 0 to 4294967296",
        ),
        ("a.tif", np.zeros((3, 4)), r"labels must be whole numbers, not float64"),
        (
            "a.tif",
            np.zeros((1, 2, 3, 4), np.uint8),
            r"labels must be H x W or P x H x W, but these have the shape \(1, 2, 3, 4\)",
        ),
    ],
)
def test_masks_that_cannot_be_written(name: str, labels: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=rf"{name}: {message}"):
        write_mask(tmp_path / name, labels)
    assert list(tmp_path.iterdir()) == []


def test_a_tiff_is_tiled_and_compressed(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.tif", np.zeros((600, 500), np.uint16))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        page = file.pages.first
        assert page.tile == (256, 256)
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert not file.is_bigtiff
        assert file.series[0].axes == "YX"


def test_a_large_tiff_is_a_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "_BIG_BYTES", 10)
    labels = random_labels((5, 6), np.uint8, 0)
    write_mask(tmp_path / "a.tif", labels)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif")[0], labels)


def test_the_pixel_size_is_kept(tmp_path: Path) -> None:
    labels = np.zeros((5, 6), np.uint8)
    write_mask(tmp_path / "a.tif", labels, pixel_size=0.25)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        page = file.pages.first
        assert page.tags["ResolutionUnit"].value == tifffile.RESUNIT.CENTIMETER
        pixels, centimetres = page.tags["XResolution"].value
        assert 10_000 / (pixels / centimetres) == pytest.approx(0.25, rel=1e-6)
    write_mask(tmp_path / "a.png", labels, pixel_size=0.25)
    with Image.open(tmp_path / "a.png") as image:
        assert 25_400 / image.info["dpi"][0] == pytest.approx(0.25, rel=1e-4)


@settings(deadline=None, max_examples=20)
@given(height=sizes, width=sizes, seed=seeds)
def test_pictures_come_back(place: Path, height: int, width: int, seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    write_image(place / "picture.png", picture)
    np.testing.assert_array_equal(read_image(place / "picture.png"), picture[None], strict=True)


@pytest.mark.parametrize("array", [np.zeros((3, 4), np.uint8), np.zeros((3, 4, 3))])
def test_what_is_no_picture(array: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.png: a picture must be H x W x 3 uint8, but this array is \(3, 4"):
        write_image(tmp_path / "a.png", array)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
@settings(deadline=None, max_examples=20)
@given(
    classes=st.integers(2, 5),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    pages=st.integers(0, 3),
    seed=seeds,
)
def test_probabilities_come_back(
    place: Path, dtype: Any, classes: int, height: int, width: int, pages: int, seed: int
) -> None:
    shape = (pages, classes, height, width) if pages else (classes, height, width)
    probabilities = (np.random.default_rng(seed).random(shape) * (255 if dtype == "uint8" else 1)).astype(dtype)
    path = place / "probabilities.tif"
    write_probabilities(path, probabilities)
    stored = tifffile.imread(path)
    np.testing.assert_array_equal(stored.reshape(shape), probabilities)
    assert stored.dtype == dtype
    assert image_info(path).channels == classes


def test_probabilities_of_another_type(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.tif: probabilities must be uint8, float16 or float32, not int64"):
        write_probabilities(tmp_path / "a.tif", np.zeros((2, 3, 4), np.int64))


def test_probabilities_are_tiff_only(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.png: probabilities can only be written as TIFF"):
        write_probabilities(tmp_path / "a.png", np.zeros((2, 3, 4), np.float32))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_failure_leaves_the_old_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / name
    write_mask(path, np.full((5, 6), 7, np.uint8))

    def full_disk(target: Any, *_: object, **__: object) -> None:
        Path(target).write_bytes(b"a part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", lambda _, target, **__: full_disk(target))
    monkeypatch.setattr(tifffile, "imwrite", full_disk)
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)"):
        write_mask(path, np.full((5, 6), 8, np.uint8))
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (read_mask(path) == 7).all()
