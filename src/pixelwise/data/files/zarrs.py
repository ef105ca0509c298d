"""Zarr arrays and OME-Zarr images, versions 2 and 3: which array holds the image, and what its dimensions mean.

A Zarr may come from anyone. Its metadata are checked here first, so that they can neither lead out of its folder
nor name a codec that runs code (pickle). Error messages are the end of a sentence that begins with the path.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zarr
from zarr.storage import LocalStore

from pixelwise.core.errors import UnreadableError
from pixelwise.data.files.physical import PhysicalSize, zarr_size
from pixelwise.data.files.tiff import check_series, product_text

_MARKS = ("zarr.json", ".zarray", ".zgroup")
_KNOWN_AXES = frozenset("YXCZT")
# Codecs that do nothing but turn bytes into numbers; in version 3 their names may begin with "numcodecs.".
_SAFE_CODECS = frozenset({"blosc", "zstd", "gzip", "zlib", "lz4", "bz2", "lzma", "shuffle", "delta", "quantize"})
_SAFE_CODECS |= {"fixedscaleoffset", "bitround", "packbits", "bytes", "endian", "transpose", "sharding_indexed"}
_SAFE_CODECS |= {"crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3"}
_NUMBERS_V2 = re.compile(r"[<>|=]?[biufc]\d+")
_NUMBERS_V3 = re.compile(r"bool|(u?int|float|complex)\d+")


@dataclass(frozen=True)
class ZarrImage:
    """An open array, with the meaning of its dimensions."""

    array: zarr.Array[Any]
    axes: str  # one of Z, T, I (pages), C, S (channels), Y, X for each dimension
    size: PhysicalSize
    images: int = 1  # in the folder; this is one of them


@dataclass(frozen=True)
class _Node:
    """A folder of a Zarr: an array or a group."""

    folder: Path
    version: int
    is_array: bool
    metadata: Mapping[str, Any]
    attributes: Mapping[str, Any]


def is_zarr(path: Path) -> bool:
    """Whether `path` is the folder of a Zarr array or group, and thus a single image.

    >>> is_zarr(Path("no such folder"))
    False
    """
    return path.is_dir() and any((path / mark).is_file() for mark in _MARKS)


def open_zarr(path: Path, axes: str | None, series: int | None = None) -> ZarrImage:
    """Find and open the array of an image, without reading its chunks.

    Args:
        path: the folder of an array, or of an OME-Zarr image (0.1 to 0.5), whose full resolution is taken.
        axes: names of the array's dimensions in its order, which override its metadata.
        series: number of the image, from 0, in a folder that holds several; by default the first.

    Raises:
        DataError: there is no image in the group, a path leads out of the folder, the axes are unknown, or the
            elements are not numbers.
    """
    node = _node(path)
    multiscale = None if node.is_array else _multiscale(node)
    is_list = not node.is_array and multiscale is None and "bioformats2raw.layout" in _ome(node.attributes)
    if is_list and (path / "0").is_dir():
        images = sum(1 for folder in path.iterdir() if folder.name.isdecimal() and folder.is_dir())
        check_series(series, images)
        return replace(open_zarr(path / str(series or 0), axes), images=images)
    check_series(series, 1)
    if node.is_array:
        return ZarrImage(_open_array(node), axes_of(node.metadata, axes), PhysicalSize())
    if multiscale is None:
        raise UnreadableError(
            "is a Zarr group without an image: its attributes contain no multiscales. Give the path of an array in it."
        )
    node = _node(_inside(path, str(multiscale["datasets"][0]["path"])))
    if not node.is_array:
        raise UnreadableError("names a group as its full-resolution image. Give the path of an array in it.")
    names = [axis["name"] if isinstance(axis, Mapping) else axis for axis in multiscale.get("axes", "tczyx")]
    found = axes_of({**node.metadata, "dimension_names": names}, axes)
    return ZarrImage(_open_array(node), found, zarr_size(multiscale))


def axes_of(metadata: Mapping[str, Any], axes: str | None) -> str:
    """Letters for an array's dimensions: the user's, or those of its names, or YX if there are two.

    >>> axes_of({"shape": [3, 8, 9], "dimension_names": ["c", "y", "x"]}, None)
    'CYX'
    """
    shape = metadata["shape"]
    if axes is not None:
        if len(axes) != len(shape):
            raise UnreadableError(
                f'has {len(shape)} dimensions, {product_text(shape)}, but axes = "{axes}" names {len(axes)}. '
                "Name each of them, in this order."
            )
        return axes
    names = [str(name).upper() for name in metadata.get("dimension_names") or ()]
    if len(names) == len(shape) == len(set(names)) and {"Y", "X"} <= set(names) <= _KNOWN_AXES:
        return "".join(names)
    if len(shape) == 2 and not any(name in ("Y", "X") for name in names):
        return "YX"
    raise UnreadableError(
        f"has the shape {product_text(shape)} with unknown axes: name them in this order (Z, T: pages; C: channels; "
        "Y, X: rows, columns), e.g. --axes CYX."
    )


def _node(folder: Path) -> _Node:
    if (folder / "zarr.json").is_file():
        metadata = _json(folder / "zarr.json")
        return _Node(folder, 3, metadata["node_type"] == "array", metadata, metadata.get("attributes", {}))
    attributes = _json(folder / ".zattrs") if (folder / ".zattrs").is_file() else {}
    if (folder / ".zarray").is_file():
        return _Node(folder, 2, True, _json(folder / ".zarray"), attributes)
    if (folder / ".zgroup").is_file():
        return _Node(folder, 2, False, {}, attributes)
    raise UnreadableError(
        f"contains no array at {folder.name}, where its metadata say that one is. Copy or export it again."
    )


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise UnreadableError(f"contains invalid metadata in {path.name}. Copy or export it again.")
    return content


def _ome(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """OME's metadata, which are found under "ome" since version 0.5."""
    ome: Mapping[str, Any] = attributes.get("ome", attributes)
    return ome


def _multiscale(node: _Node) -> Mapping[str, Any] | None:
    found = _ome(node.attributes).get("multiscales")
    return found[0] if found else None


def _inside(root: Path, path: str) -> Path:
    folder = (root / path).resolve()
    if not folder.is_relative_to(root.resolve()):
        raise UnreadableError(
            f'names "{path}" as its image, which lies outside of its folder and is therefore not opened.'
        )
    return folder


def _open_array(node: _Node) -> zarr.Array[Any]:
    _check_numbers(node)
    unsafe = sorted(set(_codecs(node)) - _SAFE_CODECS)
    if unsafe:
        names = ", ".join(unsafe)
        raise UnreadableError(f"is stored with the codec {names}, which cannot be read. Save it with zstd or blosc.")
    store = LocalStore(node.folder, read_only=True)
    return zarr.open_array(store=store, mode="r", zarr_format=node.version)  # type: ignore[arg-type]


def _check_numbers(node: _Node) -> None:
    kind = node.metadata["dtype" if node.version == 2 else "data_type"]
    pattern = _NUMBERS_V2 if node.version == 2 else _NUMBERS_V3
    if not isinstance(kind, str) or not pattern.fullmatch(kind):
        raise UnreadableError(f"holds elements of the type {kind}, but only whole and real numbers can be used.")


def _codecs(node: _Node) -> Iterator[str]:
    """Names of all codecs, including those within a sharding codec."""
    if node.version == 2:
        found = [node.metadata.get("compressor"), *(node.metadata.get("filters") or ())]
        yield from (str(codec["id"]) for codec in found if codec is not None)
        return
    waiting = list(node.metadata["codecs"])
    while waiting:
        codec = waiting.pop()
        name = codec if isinstance(codec, str) else str(codec["name"])
        yield name.removeprefix("numcodecs.")
        settings = {} if isinstance(codec, str) else codec.get("configuration") or {}
        waiting += [*settings.get("codecs", ()), *settings.get("index_codecs", ())]
