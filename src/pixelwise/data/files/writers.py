"""Write masks, pictures and probabilities, each file whole or not at all.

P pages, K classes, H height, W width. PNG holds what a viewer shows; TIFF holds everything, with its axes.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, PngImagePlugin

from pixelwise.core.errors import OutputError
from pixelwise.core.files import whole
from pixelwise.data.files.facts import Placement
from pixelwise.data.files.ome import ome_description, ome_metadata
from pixelwise.data.files.physical import png_per_metre

_TILE = (256, 256)
TIFF_BUFFER = 2**24  # bytes that are compressed at a time; tifffile would take half a gigabyte
_RECORD = "pixelwise"  # the key of a record in a file's metadata
# Half of what a classic TIFF can address, since compressed tiles may be a little larger than raw ones.
_BIG_BYTES = 2**31
_FEWEST_PER_CM, _MOST_PER_CM = 1e-6, 2**32 - 1  # what the tags of a TIFF hold, as ratios of 32 bits


def write_mask(
    path: Path,
    labels: np.ndarray,
    palette: Sequence[int] | None = None,
    pixel_size: float | None = None,
    record: str | None = None,
    placement: Placement | None = None,
) -> None:
    """Write labels as PNG or TIFF, depending on the extension of `path`.

    `labels` is H x W, or P x H x W for a TIFF stack: integers from 0 on, stored in the smallest of uint8, uint16
    and uint32 that holds their type, or their largest value if the type is signed or 64 bits wide.
    `palette` is flat RGB of up to 256 colours, like `ClassMap.palette`; 8-bit labels are then stored as its
    indices. `pixel_size` is in micrometres. `record` tells what the mask was made of; it is kept in the file's
    metadata for `record_of`. `placement` is kept in a TIFF. A PNG keeps a pixel size that it can hold, see
    `png_per_metre`, and leaves out any other.

    Raises:
        OutputError: the extension, shape or type does not fit, or the file cannot be written.

    >>> import tempfile
    >>> from pixelwise.data.files.readers import read_mask
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_mask(Path(folder) / "mask.png", np.array([[0, 1], [1, 300]]))
    ...     read_mask(Path(folder) / "mask.png").tolist()
    [[[0, 1], [1, 300]]]
    """
    if labels.ndim not in (2, 3):
        raise OutputError(f"{path}: labels must be H x W or P x H x W, but these have the shape {labels.shape}.")
    labels = _compact(path, labels)
    is_tiff = _is_tiff(path)
    if not is_tiff and labels.ndim != 2:
        raise OutputError(f"{path}: a PNG holds one page, but the labels have {len(labels)}. Write a TIFF (.tif).")
    if not is_tiff and labels.dtype == np.uint32:
        raise OutputError(f"{path}: a PNG holds at most 16 bits, but the labels need 32. Write a TIFF (.tif).")
    colors = None if palette is None or labels.dtype != np.uint8 else _full_palette(palette)
    if is_tiff:
        options = _tiff_options(colors, pixel_size, placement or Placement())
        options["metadata"] = _metadata("YX" if labels.ndim == 2 else "ZYX", pixel_size, record, placement)
        _write_tiff(path, labels, options)
    else:
        _write_png(path, labels, colors, pixel_size, record)


def write_colors(
    path: Path,
    colors: np.ndarray,
    pixel_size: float | None = None,
    record: str | None = None,
    placement: Placement | None = None,
) -> None:
    """Write labels that are colours, H x W x 3 or, for a TIFF stack, P x H x W x 3 uint8; else as `write_mask`.

    Raises:
        OutputError: the extension, shape or type does not fit, or the file cannot be written.
    """
    if colors.dtype != np.uint8 or colors.ndim not in (3, 4) or colors.shape[-1] != 3:
        raise OutputError(
            f"{path}: colours must be H x W x 3 or P x H x W x 3 uint8, but these are {colors.shape} {colors.dtype}."
        )
    if _is_tiff(path):
        options = {**_tiff_options(None, pixel_size, placement or Placement()), "photometric": "rgb"}
        options["metadata"] = _metadata("YXS" if colors.ndim == 3 else "ZYXS", pixel_size, record, placement)
        _write_tiff(path, colors, options)
    elif colors.ndim == 3:
        _write_png(path, colors, None, pixel_size, record)
    else:
        raise OutputError(f"{path}: a PNG holds one page, but the labels have {len(colors)}. Write a TIFF (.tif).")


def record_of(path: Path) -> str | None:
    """The `record` that `write_mask` was given; None if there was none, or if something else wrote the file."""
    with suppress(Exception):  # anything may be in a file that `write_mask` did not write
        if path.suffix == ".png":
            with Image.open(path) as image:
                return image.info.get(_RECORD)
        with tifffile.TiffFile(path) as file:
            if file.ome_metadata:
                return ome_description(file.ome_metadata)
            return (file.shaped_metadata or [{}])[0].get(_RECORD)
    return None


def write_image(path: Path, array: np.ndarray) -> None:
    """Write a picture, H x W x 3 uint8, as PNG.

    Raises:
        OutputError: the array is not a picture, or the file cannot be written.
    """
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise OutputError(f"{path}: a picture must be H x W x 3 uint8, but this array is {array.shape} {array.dtype}.")
    _write_png(path, array, None, None)


def write_probabilities(path: Path, probabilities: np.ndarray) -> None:
    """Write probabilities, K x H x W or P x K x H x W, as TIFF with the classes as channels.

    uint8 holds 255 times the probability, which every viewer can show; float16 and float32 hold the probability.

    Raises:
        OutputError: the type or the extension does not fit, or the file cannot be written.
    """
    if not _is_tiff(path):
        raise OutputError(f"{path}: probabilities can only be written as TIFF. Give the file the extension .tif.")
    if probabilities.dtype not in (np.uint8, np.float16, np.float32):
        raise OutputError(f"{path}: probabilities must be uint8, float16 or float32, not {probabilities.dtype}.")
    axes = "CYX" if probabilities.ndim == 3 else "ZCYX"
    _write_tiff(path, probabilities, {"photometric": "minisblack", "metadata": {"axes": axes}})


def _is_tiff(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix not in (".png", ".tif", ".tiff"):
        raise OutputError(f'{path}: files with the extension "{path.suffix}" cannot be written. Choose .png or .tif.')
    return suffix != ".png"


def _compact(path: Path, labels: np.ndarray) -> np.ndarray:
    """Labels as uint8, uint16 or uint32."""
    if labels.dtype in (np.uint8, np.uint16, np.uint32):
        return labels.astype(labels.dtype.newbyteorder("="), copy=False)
    if labels.dtype.kind not in "biu":
        raise OutputError(f"{path}: labels must be whole numbers, not {labels.dtype}.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= 2**32:
        raise OutputError(f"{path}: labels must lie between 0 and 2^32 - 1, but these go from {low} to {high}.")
    return labels.astype(np.min_scalar_type(high))


def _full_palette(palette: Sequence[int]) -> list[int]:
    """All 256 colours: with fewer, Pillow would store fewer bits and cut the labels."""
    return [*palette, *[0] * (3 * 256 - len(palette))]


def _write_png(
    path: Path, array: np.ndarray, palette: list[int] | None, pixel_size: float | None, record: str | None = None
) -> None:
    image = Image.fromarray(array)
    if palette is not None:
        image.putpalette(palette)
    options: dict[str, Any] = {}
    per_metre = None if pixel_size is None else png_per_metre(pixel_size)
    if per_metre is not None:
        options["dpi"] = (per_metre * 0.0254,) * 2
    if record is not None:
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text(_RECORD, record)
    with whole(path) as temporary:
        image.save(temporary, format="PNG", **options)


def _tiff_options(palette: list[int] | None, pixel_size: float | None, placement: Placement) -> dict[str, Any]:
    options: dict[str, Any] = {"photometric": "minisblack", "extratags": placement.extra_tags}
    if palette is not None:
        options |= {"photometric": "palette", "colormap": np.array(palette, np.uint16).reshape(256, 3).T * 257}
    return options | resolution(pixel_size)


def resolution(pixel_size: float | None) -> dict[str, Any]:
    """The tags of a TIFF for a pixel size in micrometres; none if they cannot hold it."""
    if pixel_size is None or not _FEWEST_PER_CM <= 10000 / pixel_size <= _MOST_PER_CM:
        return {}
    return {"resolution": (10000 / pixel_size,) * 2, "resolutionunit": "CENTIMETER"}


def _metadata(axes: str, pixel_size: float | None, record: str | None, placement: Placement | None) -> dict[str, Any]:
    """Those of tifffile, or of OME where pages have a distance, which only OME can tell."""
    if placement is not None and placement.z_spacing is not None and "Z" in axes:
        return ome_metadata(axes, pixel_size, placement.z_spacing, record or "")
    return {"axes": axes} if record is None else {"axes": axes, _RECORD: record}


def _write_tiff(path: Path, array: np.ndarray, options: dict[str, Any]) -> None:
    with whole(path) as temporary:
        tifffile.imwrite(
            temporary,
            array,
            bigtiff=array.nbytes > _BIG_BYTES,
            ome="Creator" in options["metadata"],
            tile=_TILE,
            compression="zlib",
            buffersize=TIFF_BUFFER,
            software=False,
            **options,
        )
