"""The XML of OME-TIFF files: what it says about the size and the bits of each image, and which files belong to it."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring


@dataclass(frozen=True)
class OmePixels:
    """The attributes of one `Pixels` element, and the names of the files that hold its planes."""

    attributes: Mapping[str, str]
    files: frozenset[str] = frozenset()

    def length(self, axis: str) -> tuple[float, str] | None:
        """Physical size along "X", "Y" or "Z" and its unit, which is the micrometre where none is given."""
        with suppress(ValueError, KeyError):
            unit = self.attributes.get(f"PhysicalSize{axis}Unit", "\u00b5m")
            return float(self.attributes[f"PhysicalSize{axis}"]), unit
        return None

    @property
    def significant_bits(self) -> int | None:
        """The bits of a sample that are in use."""
        with suppress(ValueError, KeyError):
            bits = int(self.attributes["SignificantBits"])
            return bits if 1 <= bits <= 64 else None
        return None


def ome_pixels(xml: str) -> list[OmePixels]:
    """The images of an OME-XML in their order; none if it is not valid, or unsafe (entities, external parts)."""
    root = _root(xml)
    if root is None:
        return []
    images = (element for element in root.iter() if _name(element) == "Image")
    return [_pixels(found) for image in images for found in image if _name(found) == "Pixels"]


def ome_description(xml: str) -> str | None:
    """The description of the first image; None if there is none."""
    root = _root(xml)
    images = (element for element in root.iter() if _name(element) == "Image") if root is not None else ()
    found = (child for image in images for child in image if _name(child) == "Description")
    return next((child.text for child in found), None)


def ome_metadata(axes: str, pixel_size: float | None, z_spacing: float | None, description: str) -> dict[str, Any]:
    """What tifffile writes into the OME-XML of an image, sizes in micrometres."""
    sizes = {"X": pixel_size, "Y": pixel_size, "Z": z_spacing}
    known = {axis: size for axis, size in sizes.items() if size is not None and axis in axes}
    return {
        "axes": axes,
        "Creator": "pixelwise",
        "UUID": str(uuid4()),  # tifffile's would hold the address of the machine
        "Description": description,
        **{f"PhysicalSize{axis}": size for axis, size in known.items()},
        **{f"PhysicalSize{axis}Unit": "\u00b5m" for axis in known},
    }


def _root(xml: str) -> Element | None:
    try:
        root: Element = fromstring(xml.encode("utf-8", "replace").lstrip(), forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError):
        return None
    return root


def _pixels(element: Element) -> OmePixels:
    files = (other.get("FileName") for other in element.iter() if _name(other) == "UUID")
    attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    return OmePixels(attributes, frozenset(name for name in files if name))


def _name(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]
