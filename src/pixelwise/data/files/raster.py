"""Files of one page: PNG, JPEG, BMP, GIF, WebP and portable maps, read by Pillow.

Error messages are the end of a sentence: `readers` begins it with the file's path.
"""

import math
import re
import struct
import threading
import warnings
import zlib
from contextlib import suppress
from dataclasses import replace
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    WebPImagePlugin,
)

from pixelwise.core.errors import UnreadableError, truncated
from pixelwise.data.files.facts import FileFacts, Picture

# Name -> how a file begins, and Pillow's reader. The reader is called directly, because Image.open refuses
# large images by a limit that applies to the whole process.
RASTER_FORMATS: dict[str, tuple[re.Pattern[bytes], Any]] = {
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    "JPEG": (re.compile(rb"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    "BMP": (re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
    "GIF": (re.compile(rb"GIF8[79]a"), GifImagePlugin.GifImageFile),
    "WebP": (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImagePlugin.WebPImageFile),
    "PNM": (re.compile(rb"P[1-6]\s"), PpmImagePlugin.PpmImageFile),
}

# Pillow's mode of a file -> the mode that its image is read as: without palette, alpha and print colours.
_MODES = {mode: mode for mode in ("1", "L", "RGB", "I", "I;16", "I;16B")} | {
    "LA": "L",
    "P": "RGB",
    "RGBA": "RGB",
    "RGBX": "RGB",
    "CMYK": "RGB",
    "YCbCr": "RGB",
}
_DEEP_CHANNELS = {2: 3, 4: 1, 6: 3}  # colour type of a PNG (RGB, grey + alpha, RGBA) -> channels but alpha
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type of a PNG -> samples of a pixel
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
_ORIENTATION_TAG = 0x0112

# Warning filters belong to the whole process: two threads must not swap them at the same time.
_WARNINGS_LOCK = threading.Lock()


class RasterSource:
    """The single page of an open file, not yet decoded."""

    def __init__(self, handle: BinaryIO, name: str, plugin: Any) -> None:
        self._handle, self._name = handle, name
        self._is_png = name == "PNG"
        chunks = _png_chunks(handle) if self._is_png else {}
        if b"acTL" in chunks:
            raise _animation()
        self._image, self.orientation = _header(handle, plugin, chunks.get(b"eXIf"))
        _check_kind(self._image, name)
        self._depth, self._color_type = chunks[b"IHDR"][8:10] if self._is_png else (8, 0)
        self._is_interlaced = self._is_png and chunks[b"IHDR"][12] == 1
        self._is_deep_color = self._depth == 16 and self._color_type in _DEEP_CHANNELS
        self._is_plain = self._is_png and self._depth == 8 and self._color_type in (0, 2) and b"tRNS" not in chunks
        self.shape, self.dtype = self._shape_and_dtype()
        self.bytes_needed = math.prod(self.shape) * self.dtype.itemsize
        self.is_bounded = name != "WebP"
        self._significant = chunks.get(b"sBIT", b"")
        has_alpha = self._image.mode in ("LA", "RGBA") or self._color_type in (4, 6) or b"tRNS" in chunks
        self.facts = FileFacts(
            name,
            self.orientation,
            full_scale=1.0 if self._image.mode == "1" else None,
            alpha="dropped" if has_alpha else "none",
            palette=self._palette(),
        )

    def _palette(self) -> np.ndarray | None:
        """Entries x 3 uint8."""
        if self._image.mode != "P":
            return None
        colors = np.array(self._image.getpalette("RGB") or [], np.uint8)
        return colors[: len(colors) // 3 * 3].reshape(-1, 3)

    def _shape_and_dtype(self) -> tuple[tuple[int, int, int, int], np.dtype]:
        width, height = self._image.size
        mode = _MODES[self._image.mode]
        if self._is_deep_color:
            return (1, height, width, _DEEP_CHANNELS[self._color_type]), np.dtype(np.uint16)
        dtype = np.dtype(np.uint16 if mode.startswith("I") else np.uint8)
        return (1, height, width, 3 if mode == "RGB" else 1), dtype

    def image(self) -> Picture:
        """P x H x W x C, colours resolved."""
        pixels = self._pixels()
        return Picture(pixels, replace(self.facts, full_scale=self.facts.full_scale or self._scale_of(pixels)))

    def _pixels(self) -> np.ndarray:
        if self._is_deep_color:  # Pillow would keep only the upper eight bits
            self._handle.seek(0)
            return self._shaped(imagecodecs.png_decode(self._handle.read()))
        if self._is_plain:
            self._handle.seek(0)
            with suppress(imagecodecs.PngError):  # Pillow says what is wrong
                return self._shaped(imagecodecs.png_decode(self._handle.read()))  # twice as fast
        image = self._loaded()
        mode = _MODES[image.mode]
        image.info.pop("transparency", None)  # dropping it by `convert` raises a warning
        return self._shaped(np.asarray(image if mode == image.mode else image.convert(mode)))

    def labels(self) -> Picture:
        """P x H x W x C, the numbers that are stored: for a palette, its indices."""
        return Picture(self._stored_numbers(), self.facts)

    def _stored_numbers(self) -> np.ndarray:
        if self._image.mode == "P":
            return self._shaped(np.asarray(self._loaded()))
        if self._depth in (2, 4) and self._color_type == 0:  # which Pillow stretches to 255
            return np.asarray(self._pixels() // (255 // (2**self._depth - 1)))
        return self._pixels()

    def _scale_of(self, pixels: np.ndarray) -> float | None:
        """Full intensity by the chunk sBIT, where a file of 16 bits holds numbers of fewer as they are.

        A PNG should stretch them to 16 bits; then the lower bits repeat the upper ones, and full intensity is the
        type's own.
        """
        bits = max(self._significant[: 3 if self._color_type in (2, 6) else 1], default=16)
        if pixels.dtype != np.uint16 or not 0 < bits < 16 or pixels.max(initial=0) >= 2**bits:
            return None
        unused = 2 ** (16 - bits) - 1
        return float(2**bits - 1) if (pixels & unused).any() else None

    def _shaped(self, pixels: np.ndarray) -> np.ndarray:
        _, height, width, channels = self.shape
        pixels = pixels.reshape(1, height, width, -1)
        return pixels[..., :channels].astype(self.dtype, copy=False)

    def _loaded(self) -> Any:
        width, height = self._image.size
        if self._is_png:  # Pillow decodes without checking the checksums
            self._handle.seek(0)
            PngImagePlugin.PngImageFile(self._handle).verify()
        self._image.load()
        if self._is_png and (self._is_interlaced or self._image.crop((0, height - 1, width, height)).getbbox() is None):
            self._check_rows()  # Pillow leaves black what is missing
        return self._image

    def _check_rows(self) -> None:
        """A PNG must hold as many bytes as its header declares rows."""
        needed = _png_bytes(self._image.size, self._depth * _SAMPLES[self._color_type], self._is_interlaced)
        if _inflated_bytes(self._handle, needed) < needed:
            raise truncated("is truncated: the PNG holds fewer rows than its header declares. Copy or export it again.")


def _header(handle: BinaryIO, plugin: Any, png_exif: bytes | None) -> tuple[Any, int]:
    """Pillow's image, not yet decoded, and its orientation."""
    handle.seek(0)
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about damaged EXIF; the image is then not rotated
        image = plugin(handle)
        if png_exif is not None:  # it may come after the pixels, where Pillow finds it too late
            image.info["exif"] = b"Exif\x00\x00" + png_exif
        orientation: Any = None
        with suppress(Exception):
            # That of a PNG itself would decode all pixels first.
            orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG)
    return image, orientation if orientation in range(1, 9) else 1


def _check_kind(image: Any, name: str) -> None:
    if getattr(image, "is_animated", False):
        raise _animation()
    if name == "PNM" and image.tile[0][0] != "raw":
        # Pillow would stretch the values to 255, which changes labels.
        raise UnreadableError(
            "is a portable map as text or with an odd maximum, which cannot be read. Convert it to PNG."
        )
    if image.mode not in _MODES:
        raise UnreadableError(f"has the colour mode {image.mode}, which cannot be read. Convert it to RGB.")


def _animation() -> UnreadableError:
    return UnreadableError("is an animation, whose frames are not read as pages. Save them as a TIFF stack.")


def _png_chunks(handle: BinaryIO) -> dict[bytes, bytes]:
    """The types of all chunks of a PNG, with the data of those that are needed here."""
    chunks: dict[bytes, bytes] = {}
    handle.seek(8)
    while b"IEND" not in chunks:
        header = handle.read(8)
        if len(header) < 8:
            raise truncated("is truncated: the PNG stops before its end marker. Copy or export it again.")
        length, kind = struct.unpack(">I4s", header)
        start = handle.tell()
        chunks[kind] = handle.read(min(length, 2**16)) if kind in (b"IHDR", b"eXIf", b"sBIT") else b""
        handle.seek(start + length + 4)
    if len(chunks.get(b"IHDR", b"")) != 13:
        raise UnreadableError("is damaged: the PNG has no header. Copy or export it again.")
    return chunks


def _png_bytes(size: tuple[int, int], bits: int, is_interlaced: bool) -> int:
    """Bytes of a PNG's rows before compression, `bits` a pixel, with the byte before each that names its filter.

    >>> _png_bytes((3, 2), 4, False)
    6
    """
    width, height = size
    total = 0
    for top, left, down, right in _ADAM7 if is_interlaced else ((0, 0, 1, 1),):
        rows, columns = -(-(height - top) // down), -(-(width - left) // right)
        if rows > 0 and columns > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def _inflated_bytes(handle: BinaryIO, enough: int) -> int:
    """Bytes that the pixels of a PNG have when they are decompressed, counted up to `enough`."""
    inflate, count = zlib.decompressobj(), 0
    handle.seek(8)
    while count < enough and len(header := handle.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        data = handle.read(length) if kind == b"IDAT" else b""
        handle.seek(4 if data else length + 4, 1)
        while data and count < enough:
            count += len(inflate.decompress(data, 2**20))
            data = inflate.unconsumed_tail
    return count
