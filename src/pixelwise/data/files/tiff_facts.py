"""What the tags of a TIFF say about its image: bits, missing pixels, place on the earth, kind of its alpha channel.

Error messages are the end of a sentence: `readers` begins it with the file's path.
"""

import math
from contextlib import suppress
from typing import Any

import numpy as np
import tifffile

from pixelwise.core.errors import truncated
from pixelwise.data.files.facts import NODATA_TAG, Alpha, GeoTags

_PHOTOMETRIC_TAG = 262
_SMAX_TAG = 341
_GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
_ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
_SAMPLED_SEGMENTS = 32  # of a page, to tell what its alpha channel holds
_SAMPLED_ROWS = 64
_SAMPLED_VALUES = 4096  # of each of them
_MOST_BYTES = 2**30  # of a segment that is decoded for this
_FEW_VALUES = 16  # a cut-out has fewer, but for its soft edges

Page = tifffile.TiffPage | tifffile.TiffFrame


def full_scale(page: tifffile.TiffPage, significant_bits: int | None = None) -> float | None:
    """The value of full intensity where the file states its bits, 2^bits - 1; None where the type has no more.

    Bits are those of a sample (1, 2, 4, 12, ...), or those that SMaxSampleValue needs, or OME's SignificantBits.
    """
    dtype = page.dtype
    if dtype is None or dtype.kind not in "buif":
        return None
    stored = page.bitspersample if dtype.kind in "bu" else 8 * dtype.itemsize - 1 if dtype.kind == "i" else math.inf
    bits = [stored, _bits_of_maximum(page), significant_bits or math.inf]
    fewest = min(bits)
    own = 1 if dtype.kind == "b" else 8 * dtype.itemsize - (dtype.kind == "i")
    if fewest == math.inf or (dtype.kind in "ui" and fewest >= own):
        return None
    return float(2**fewest - 1)


def _bits_of_maximum(page: tifffile.TiffPage) -> float:
    """Bits that the largest SMaxSampleValue needs; it may be a statistic of the image, so it is no scale itself."""
    with suppress(ValueError, TypeError):
        values = np.atleast_1d(np.asarray(page.tags.valueof(_SMAX_TAG, default=np.nan), np.float64))
        largest = float(values.max())
        if 0 < largest < 2**53:
            return math.ceil(math.log2(largest + 1))
    return math.inf


def nodata(page: tifffile.TiffPage, dtype: np.dtype) -> float | None:
    """The value of GDAL_NODATA, as the file's type holds it; None if the file does not say."""
    with suppress(ValueError, TypeError, AttributeError, OverflowError):
        value = float(str(page.tags.valueof(NODATA_TAG)).strip(" \t\n\r\0"))
        if dtype.kind != "f" or not math.isfinite(value):
            return value
        with np.errstate(over="ignore"):
            return float(dtype.type(value))
    return None


def has_photometric(page: tifffile.TiffPage) -> bool:
    """Whether the file says what its numbers stand for."""
    return page.tags.valueof(_PHOTOMETRIC_TAG) is not None


def geo_tags(page: tifffile.TiffPage) -> GeoTags | None:
    """The tags that place the image on the earth; None if there are none."""
    found: list[tuple[int, int, int, Any]] = []
    for code in _GEO_TAGS:
        tag = page.tags.get(code)
        if tag is not None and tag.value is not None:
            found.append((code, int(tag.dtype), int(tag.count), tag.value))
    return GeoTags(tuple(found)) if found else None


def palette(page: tifffile.TiffPage) -> np.ndarray:
    """Entries x 3 uint8. Colours have 16 bits, but some writers fill in 8."""
    colors = np.asarray(page.colormap).T
    return np.asarray(colors if colors.max(initial=0) < 256 else colors >> 8).astype(np.uint8)


def alpha_samples(page: tifffile.TiffPage) -> list[int]:
    """Indices of the samples of a pixel that are tagged as alpha."""
    count, extra = page.samplesperpixel, page.extrasamples
    return [count - len(extra) + index for index, kind in enumerate(extra) if kind in _ALPHA]


def alpha_kind(page: tifffile.TiffPage, sample: int) -> Alpha:
    """Whether an alpha channel is a transparency, or data under a wrong name, as GDAL tags a fourth band.

    A transparency has few values, or is opaque nearly everywhere but at soft edges. It is judged by a fixed sample of
    the file, so that no window of the image can be read differently from another.
    """
    values = np.concatenate(_sampled(page, sample))
    seen = values[values != 0]
    opaque = (2**page.bitspersample - 1) if values.dtype.kind in "ui" else seen.max(initial=0)
    is_data = len(np.unique(values)) > _FEW_VALUES and np.count_nonzero(seen == opaque) < seen.size / 2
    return "data" if is_data else "dropped"


def _sampled(page: tifffile.TiffPage, sample: int) -> list[np.ndarray]:
    """Some of the values of a sample, from rows or segments spread evenly over the page."""
    separate, _, height, width, samples = page.shaped
    plane, inner = (sample, 0) if separate > 1 else (0, sample)
    if page.is_final and page.dtype is not None:
        dtype = page.dtype.newbyteorder(page.parent.byteorder)
        row_bytes = width * samples * dtype.itemsize
        rows = [
            _read(page, page.dataoffsets[0] + (plane * height + int(row)) * row_bytes, row_bytes)
            for row in _spread(height, _SAMPLED_ROWS)
        ]
        return [_thinned(np.frombuffer(row, dtype).reshape(width, samples)[:, inner]) for row in rows]
    count = math.prod(page.chunked) // separate
    if math.prod(page.chunks) * page.bitspersample // 8 > _MOST_BYTES:
        return [np.zeros(1, page.dtype)]
    found = (decode_segment(page, page, plane * count + int(index)) for index in _spread(count, _SAMPLED_SEGMENTS))
    return [
        np.zeros(1, page.dtype) if pixels is None else _thinned(pixels.reshape(-1, samples)[:, inner])
        for pixels in found
    ]


def _spread(count: int, most: int) -> np.ndarray:
    """Up to `most` numbers below `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def _thinned(values: np.ndarray) -> np.ndarray:
    return values[:: -(-len(values) // _SAMPLED_VALUES)].copy()


def _read(page: Page, start: int, count: int) -> bytes:
    handle = page.parent.filehandle
    handle.seek(start)
    data: bytes = handle.read(count)
    if len(data) < count:
        raise truncated("is truncated: some pixels lie beyond the end of the file. Copy or export it again.")
    return data


def decode_segment(page: Page, keyframe: tifffile.TiffPage, index: int) -> np.ndarray | None:
    """A strip or tile of a page, depth x rows x columns x samples; None if it was never written.

    Raises:
        DataError: it lies beyond the end of the file.
    """
    start, count = page.dataoffsets[index], page.databytecounts[index]
    if not start or not count:
        return None
    handle = page.parent.filehandle
    handle.seek(start)
    data = handle.read(count)
    if len(data) < count:
        raise truncated("it lies beyond the end of the file")
    tables = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
    return page.decode(data, index, **tables)[0]
