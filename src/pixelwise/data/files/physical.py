"""The physical size of pixels, in micrometres, as given by the metadata of TIFF and OME."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import tifffile

_MICROMETRES = {
    "angstrom": 1e-4,
    "å": 1e-4,
    "nanometer": 1e-3,
    "nanometre": 1e-3,
    "nm": 1e-3,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "um": 1.0,
    "\u00b5m": 1.0,  # the micro sign
    "\u03bcm": 1.0,  # the Greek letter
    "\\u00b5m": 1.0,  # as ImageJ writes it
    "millimeter": 1e3,
    "millimetre": 1e3,
    "mm": 1e3,
    "centimeter": 1e4,
    "centimetre": 1e4,
    "cm": 1e4,
    "meter": 1e6,
    "metre": 1e6,
    "m": 1e6,
}
_RESOLUTION_TAGS = (282, 283)  # pixels per unit, along X and Y
_CENTIMETRE = 3


def square_pixel(x: float, y: float, unit_x: str, unit_y: str) -> float | None:
    """Side of a pixel in micrometres; None if the unit is unknown or the sides differ by more than 1%.

    >>> square_pixel(250, 0.25, "nanometer", "micrometer")
    0.25
    """
    factor_x, factor_y = (_MICROMETRES.get(unit.strip().lower()) for unit in (unit_x, unit_y))
    if factor_x is None or factor_y is None:
        return None
    width, height = x * factor_x, y * factor_y
    is_square = 0 < width < float("inf") and abs(width - height) <= 0.01 * width
    return width if is_square else None


def tiff_pixel_size(file: tifffile.TiffFile) -> float | None:
    """Side of a pixel in the first image of an open TIFF, in micrometres; None if the file does not say.

    Uses the metadata of OME, ImageJ and Aperio slides, and the resolution in centimetres. A resolution in inches says
    how to print an image, not what was photographed.
    """
    with suppress(ValueError, TypeError, ZeroDivisionError, AttributeError):  # the metadata may be invalid
        if file.ome_metadata:
            return _ome(file.ome_metadata)
        page = file.series[0].keyframe
        if file.is_imagej:
            return _resolution(page, str((file.imagej_metadata or {}).get("unit", "")))
        if page.is_svs and (found := re.search(r"\bMPP\s*=\s*([\d.]+)", page.description)):
            return square_pixel(float(found[1]), float(found[1]), "um", "um")
        if page.tags.valueof(296) == _CENTIMETRE:
            return _resolution(page, "cm")
    return None


def _ome(text: str) -> float | None:
    """The size in the first image; lengths without a unit are in micrometres."""
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", text)
    found = dict(re.findall(r'\b(PhysicalSize[XY](?:Unit)?)\s*=\s*"([^"]*)"', pixels[0])) if pixels else {}
    if not {"PhysicalSizeX", "PhysicalSizeY"} <= found.keys():
        return None
    units = [found.get(f"PhysicalSize{axis}Unit", "um") for axis in "XY"]
    return square_pixel(float(found["PhysicalSizeX"]), float(found["PhysicalSizeY"]), *units)


def _resolution(page: tifffile.TiffPage, unit: str) -> float | None:
    across, down = (page.tags.valueof(code) for code in _RESOLUTION_TAGS)
    return square_pixel(across[1] / across[0], down[1] / down[0], unit, unit)


def zarr_pixel_size(multiscale: Mapping[str, Any]) -> float | None:
    """Side of a pixel of the first level of an OME-Zarr image, from its scale and units."""
    with suppress(ValueError, TypeError, KeyError, IndexError, AttributeError):
        names = [axis["name"] for axis in multiscale["axes"]]
        units = [axis.get("unit", "") for axis in multiscale["axes"]]
        scales = [1.0] * len(names)
        for holder in (multiscale["datasets"][0], multiscale):
            for transformation in holder.get("coordinateTransformations", ()):
                if transformation["type"] == "scale":
                    scales = [old * float(new) for old, new in zip(scales, transformation["scale"], strict=True)]
        x, y = names.index("x"), names.index("y")
        return square_pixel(scales[x], scales[y], units[x], units[y])
    return None
