"""PNG, JPEG and their relatives: what each has of its own."""

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import pixelwise.data.files.raster as raster
from pixelwise.core.errors import DataError
from pixelwise.data.files.readers import image_info, read_image, read_mask


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, depth: int, color_type: int, rows: bytes, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG by the letter of its specification; `rows` each begin with their filter byte."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + after + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_grey_of_few_bits(depth: int, tmp_path: Path) -> None:
    values = np.random.default_rng(depth).integers(0, 2**depth, (6, 16))
    bits = (values[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = np.packbits(bits.reshape(6, -1), axis=1)
    path = tmp_path / "a.png"
    path.write_bytes(png(16, 6, depth, 0, b"".join(b"\0" + row.tobytes() for row in rows)))
    np.testing.assert_array_equal(read_mask(path)[0], values)
    shown = values if depth == 1 else values * 255 // (2**depth - 1)
    np.testing.assert_array_equal(read_image(path)[0, ..., 0], shown)


def test_grey_and_alpha_of_16_bits(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 2**16, (6, 5, 2)).astype(">u2")
    path = tmp_path / "a.png"
    path.write_bytes(png(5, 6, 16, 4, b"".join(b"\0" + row.tobytes() for row in array)))
    np.testing.assert_array_equal(read_image(path), array[None, ..., :1].astype(np.uint16), strict=True)
    assert image_info(path).channels == 1


def test_a_flipped_bit_in_a_png_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    rows = np.random.default_rng(0).integers(0, 256, 60 * 61, dtype=np.uint8)
    rows[::61] = 0
    data = bytearray(png(60, 60, 8, 0, rows.tobytes()))
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"a\.png: cannot be read .*damaged"):
        read_image(path)


def test_a_png_without_end_or_header(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(4, 4, 8, 0, bytes(20))[:-12])
    with pytest.raises(DataError, match=r"a\.png: is truncated: the PNG stops before its end marker"):
        image_info(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""))
    with pytest.raises(DataError, match=r"a\.png: is damaged: the PNG has no header"):
        image_info(path)


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.webp"])
def test_animations_are_refused(name: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (value, 0, 9)) for value in (0, 90, 200)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"is an animation, whose frames are not read as pages\. Save them as a TIFF"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("data", [b"P5 2 1 3\n\x01\x02", b"P2 2 1 255\n1 2\n", b"P6 1 1 65535\n" + bytes(6)])
def test_portable_maps_that_would_be_stretched(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.pgm: is a portable map as text or with an odd maximum"):
        read_image(path)


def test_colours_that_pillow_knows_and_we_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(4, 4, 8, 0, bytes(20)))
    monkeypatch.delitem(raster._MODES, "L")
    with pytest.raises(DataError, match=r"a\.png: has the colour mode L, which cannot be read"):
        read_image(path)


def test_a_large_png_passes_pillows_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    side = 13_500  # 182 million pixels: more than Pillow opens of itself; the header alone is read here
    path.write_bytes(png(side, side, 1, 0, bytes(10)))
    assert image_info(path).width == side


def test_rotation_that_stands_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    path.write_bytes(png(5, 4, 8, 0, bytes(6 * 4), after=chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))))
    assert image_info(path).height == 5
    assert read_image(path).shape == (1, 5, 4, 1)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg(mode: str, options: dict[str, Any], tmp_path: Path) -> None:
    rows, columns = np.mgrid[:150, :211]
    smooth = np.stack([rows, columns, 250 - rows], axis=-1).astype(np.uint8)
    path = tmp_path / "image.jpg"
    Image.fromarray(smooth).convert(mode).save(path, quality=95, **options)
    pixels = read_image(path)
    flag = cv2.IMREAD_GRAYSCALE if mode == "L" else cv2.IMREAD_COLOR
    theirs = cv2.imread(str(path), flag).reshape(150, 211, -1)[..., ::-1]
    assert pixels.shape == (1, 150, 211, 1 if mode == "L" else 3)
    np.testing.assert_allclose(pixels[0].astype(int), theirs.astype(int), atol=3)
    data = path.read_bytes()
    for kept in (0.2, 0.5, 0.8, 0.99):
        path.write_bytes(data[: int(kept * len(data))])
        with pytest.raises(DataError, match=r"image\.jpg: cannot be read .*truncated or damaged"):
            read_image(path)


def test_more_pixels_than_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(2**30, 2**20, 8, 0, bytes(10)))
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match=r"is too large: its header declares .* GiB of memory"):
            read(path)


def test_a_side_of_zero(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(0, 4, 8, 0, b""))
    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        image_info(path)
