"""The physical size of pixels, in micrometres, as given by the metadata of TIFF and OME."""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import tifffile

from pixelwise.data.files.ome import OmePixels

_METRES = {
    "picometer": 1e-12, "pm": 1e-12, "angstrom": 1e-10, "\u00e5": 1e-10, "\u212b": 1e-10, "\u00e5ngstr\u00f6m": 1e-10,
    "nanometer": 1e-9, "nm": 1e-9, "micrometer": 1e-6, "micron": 1e-6, "microns": 1e-6, "um": 1e-6,
    "\u00b5m": 1e-6,  # the micro sign
    "\u03bcm": 1e-6,  # the Greek letter
    "\\u00b5m": 1e-6,  # as ImageJ writes it
    "millimeter": 1e-3, "mm": 1e-3, "centimeter": 1e-2, "cm": 1e-2, "decimeter": 0.1, "dm": 0.1,
    "meter": 1.0, "m": 1.0, "hectometer": 100.0, "hm": 100.0, "kilometer": 1e3, "km": 1e3,
    "thou": 2.54e-5, "mil": 2.54e-5, "inch": 0.0254, "inches": 0.0254, "in": 0.0254, "\"": 0.0254,
    "li": 0.0254 / 12, "line": 0.0254 / 12, "foot": 0.3048, "feet": 0.3048, "ft": 0.3048, "yard": 0.9144, "yd": 0.9144,
    "femtometer": 1e-15, "fm": 1e-15,
}  # fmt: skip
_LARGE = {"Mm": 1e6, "Gm": 1e9, "Tm": 1e12, "Pm": 1e15}  # differ from others only in the case of a letter
_PLURAL = re.compile(r"(?<=metre|meter)s$")
_RESOLUTION_TAGS = (282, 283)  # pixels per unit, along X and Y
_CENTIMETRE = 3
_MOST_PER_METRE = 2**31 - 1  # of a PNG


class PhysicalSize(NamedTuple):
    """Sizes in micrometres; None where they are unknown."""

    pixel: float | None = None  # side of a square pixel
    z: float | None = None  # distance of the pages of a stack


def micrometres(length: float, unit: str) -> float | None:
    """A length in micrometres; None if the unit is unknown, or the length is no positive number.

    >>> micrometres(250, "nanometers"), micrometres(0.5, "m"), micrometres(2, "pixel")
    (0.25, 500000.0, None)
    """
    name = unit.strip()
    name = name if name in _LARGE else _PLURAL.sub("", name.lower()).replace("metre", "meter")
    metres = (_METRES | _LARGE).get(name)
    if metres is None:
        return None
    found = length * (metres / 1e-6)
    return _rounded(found) if 0 < found < float("inf") else None


def _rounded(value: float) -> float:
    """Without what the change of units leaves behind the 12th digit."""
    return float(f"{value:.12g}")


def square_pixel(x: float, y: float, unit_x: str, unit_y: str) -> float | None:
    """Side of a pixel in micrometres; None if the unit is unknown or the sides differ by more than 1%.

    >>> square_pixel(250, 0.25, "nanometer", "micrometer")
    0.25
    """
    width, height = micrometres(x, unit_x), micrometres(y, unit_y)
    if width is None or height is None:
        return None
    return width if abs(width - height) <= 0.01 * width else None


def png_per_metre(pixel_size: float) -> int | None:
    """Pixels per metre, the whole number that a PNG keeps; None if that would be more than 1% off, or too large.

    >>> png_per_metre(0.25), png_per_metre(1e7), png_per_metre(1e-4)
    (4000000, None, None)
    """
    exact = 1e6 / pixel_size
    if not 0.5 <= exact <= _MOST_PER_METRE:
        return None
    number = round(exact)
    return number if abs(number - exact) <= 0.01 * exact else None


def tiff_size(file: tifffile.TiffFile, page: tifffile.TiffPage, ome: OmePixels | None = None) -> PhysicalSize:
    """The size of a pixel in an image of an open TIFF.

    Uses the metadata of OME, ImageJ, Aperio slides and of our own files, and the resolution in centimetres. A
    resolution in inches says how to print an image, not what was photographed.

    Args:
        file: the open file.
        page: the first of the image.
        ome: what the file's OME-XML says about the image.
    """
    with suppress(ValueError, TypeError, ZeroDivisionError, AttributeError, OverflowError):  # it may be invalid
        if ome is not None:
            return _ome(ome)
        if file.is_imagej:
            return _imagej(page, file.imagej_metadata or {})
        if page.is_svs and (found := re.search(r"\bMPP\s*=\s*([\d.]+)", page.description)):
            return PhysicalSize(square_pixel(float(found[1]), float(found[1]), "um", "um"))
        if page.tags.valueof(296) == _CENTIMETRE:
            return PhysicalSize(_resolution(page, "cm"))
    return PhysicalSize()


def _ome(found: OmePixels) -> PhysicalSize:
    x, y, z = (found.length(axis) for axis in "XYZ")
    pixel = square_pixel(x[0], y[0], x[1], y[1]) if x and y else None
    return PhysicalSize(pixel, micrometres(*z) if z else None)


def _imagej(page: tifffile.TiffPage, metadata: Mapping[str, Any]) -> PhysicalSize:
    unit = str(metadata.get("unit", ""))
    depth_unit = str(metadata.get("zunit", unit))
    spacing = float(metadata.get("spacing", math.nan))
    z = micrometres(abs(spacing), depth_unit)
    try:
        return PhysicalSize(_resolution(page, unit), z)
    except (TypeError, ZeroDivisionError):
        return PhysicalSize(None, z)


def _resolution(page: tifffile.TiffPage, unit: str) -> float | None:
    across, down = (page.tags.valueof(code) for code in _RESOLUTION_TAGS)
    return square_pixel(across[1] / across[0], down[1] / down[0], unit, unit)


def zarr_size(multiscale: Mapping[str, Any]) -> PhysicalSize:
    """The size of a pixel of the first level of an OME-Zarr image, from its scale and units."""
    with suppress(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
        names = [axis["name"] for axis in multiscale["axes"]]
        units = [str(axis.get("unit", "")) for axis in multiscale["axes"]]
        scales = [1.0] * len(names)
        for holder in (multiscale["datasets"][0], multiscale):
            for transformation in holder.get("coordinateTransformations", ()):
                if transformation["type"] == "scale":
                    scales = [old * float(new) for old, new in zip(scales, transformation["scale"], strict=True)]
        x, y = names.index("x"), names.index("y")
        z = micrometres(scales[names.index("z")], units[names.index("z")]) if "z" in names else None
        return PhysicalSize(square_pixel(scales[x], scales[y], units[x], units[y]), z)
    return PhysicalSize()
