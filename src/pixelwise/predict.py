"""Image of any size in, mask out: whole where it is small, by tiles with their margin where it is large."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from torch import nn

from pixelwise.classes import ClassMap
from pixelwise.config import Config
from pixelwise.data.folder import list_images
from pixelwise.data.normalize import Normalization, match_channels, require_finite
from pixelwise.data.readers import read_image
from pixelwise.data.sampling import resize
from pixelwise.data.targets import objects
from pixelwise.data.writers import write_image, write_mask, write_probabilities
from pixelwise.engines import Engine, make_engine
from pixelwise.errors import DataError, ModelError, OutputError, SettingError
from pixelwise.geometry import Geometry
from pixelwise.pictures import overlay, to_display
from pixelwise.tiling import plan_tiles

WHOLE_PIXELS = 2048 * 2048  # larger images are predicted by tiles
AUTO_TILE = 1024
Tile = int | Literal["auto"] | None


def predict(
    network: nn.Module,
    array: np.ndarray,
    tile: Tile = "auto",
    engine: str = "auto",
    logits: bool = False,
    device: str = "cpu",
) -> np.ndarray:
    """Run a network over an image of any size.

    Args:
        network: takes N x C x H x W, returns logits N x K x H x W; one of `MODELS`, or, with `tile=None`, any module.
        array: H x W or H x W x C, float32 (float64 for a float64 network), already normalised.
        tile: side of the part that a tile owns, a multiple of the network's stride; "auto" takes tiles only where
            the image is large; None runs the whole image at once.
        engine: "auto" or the name of an engine.
        logits: return K x H x W logits instead of classes.
        device: where it runs.

    Returns:
        H x W classes (uint8, with more than 256 classes uint16), or K x H x W logits.

    Raises:
        DataError, ModelError, SettingError: the array, the network and the tile do not fit.

    >>> from pixelwise.models import UNet
    >>> predict(UNet(width=2, depth=1), np.zeros((5, 7), np.float32)).shape
    (5, 7)
    """
    image = array[..., None] if array.ndim == 2 else array
    if image.ndim != 3 or image.size == 0:
        raise DataError(
            f"the image has the shape {array.shape}; H x W or H x W x C with H, W of at least 1 is expected."
        )
    if not np.issubdtype(image.dtype, np.floating):
        raise DataError(f"the image is {image.dtype}; normalised floating-point values are expected.")
    out = run_tiles(make_engine(engine, network, device), network, image, tile)
    return out if logits else out.argmax(0).astype(np.min_scalar_type(len(out) - 1))


def run_tiles(engine: Engine, network: nn.Module, image: np.ndarray, tile: Tile) -> np.ndarray:
    """K x H x W logits of a normalised H x W x C image."""
    height, width = image.shape[:2]
    size = _tile_size(network, height, width, tile)
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    if getattr(network, "padding", "same") == "valid":
        return _run_valid(engine, network, planes, size)
    if size is None:
        return _checked(engine(planes[None])[0], height, width)
    return _run_same(engine, geometry_of(network), planes, size)


def geometry_of(network: nn.Module) -> Geometry:
    """The geometry that a network of the toolkit states.

    Raises:
        ModelError: it states none.
    """
    geometry = getattr(network, "geometry", None)
    if not isinstance(geometry, Geometry):
        raise ModelError(
            f"{type(network).__name__}: states no `geometry`, so its tiles cannot be planned; "
            "use tile=None to run the whole image at once."
        )
    return geometry


def _tile_size(network: nn.Module, height: int, width: int, tile: Tile) -> int | None:
    if tile is None or (tile == "auto" and height * width <= WHOLE_PIXELS):
        return None
    geometry = geometry_of(network)
    if not geometry.exact:
        if tile == "auto":
            return None
        raise ModelError(f"{type(network).__name__}: cannot be tiled exactly: {geometry.reason}. Use no tiles.")
    if tile == "auto":
        return -(-AUTO_TILE // geometry.stride) * geometry.stride
    if not isinstance(tile, int) or isinstance(tile, bool) or tile < 1:
        raise SettingError(f'tile = {tile!r}: must be a positive number of pixels, "auto" or None.')
    return tile


def _checked(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    if logits.ndim != 3 or logits.shape[1:] != (height, width):
        raise ModelError(
            f"the network returned {' x '.join(map(str, logits.shape))} logits for an image of {height} x {width}; "
            "it must return classes x height x width, of the image's size."
        )
    return logits


def _run_same(engine: Engine, geometry: Geometry, planes: np.ndarray, size: int) -> np.ndarray:
    height, width = planes.shape[1:]
    out: np.ndarray | None = None
    for tile in plan_tiles(height, width, size, geometry.stride, geometry.margin):
        read = planes[:, tile.read_y0 : tile.read_y1, tile.read_x0 : tile.read_x1]
        logits = _checked(engine(read[None])[0], *read.shape[1:])
        if out is None:
            out = np.empty((len(logits), height, width), logits.dtype)
        inside = logits[:, tile.y0 - tile.read_y0 :, tile.x0 - tile.read_x0 :]
        out[:, tile.y0 : tile.y1, tile.x0 : tile.x1] = inside[:, : tile.y1 - tile.y0, : tile.x1 - tile.x0]
    assert out is not None
    return out


def _run_valid(engine: Engine, network: nn.Module, planes: np.ndarray, size: int | None) -> np.ndarray:
    """Networks without padding lose a margin, so the image is mirrored beyond its border by as much."""
    height, width = planes.shape[1:]
    margin = geometry_of(network).margin
    sizes = (height, width) if size is None else (min(size, height), min(size, width))
    inputs = [network.valid_input_size(length) for length in sizes]  # type: ignore[operator]
    stride = geometry_of(network).stride
    if size is not None and size % stride:
        raise SettingError(f"tile = {size}: must be a multiple of the network's stride, {stride}.")
    reach = [length + margin + needed for length, needed in zip((height, width), inputs, strict=True)]
    padded = np.pad(planes, ((0, 0), (margin, reach[0] - height), (margin, reach[1] - width)), mode="reflect")
    out: np.ndarray | None = None
    for y in range(0, height, sizes[0]):
        for x in range(0, width, sizes[1]):
            logits = engine(padded[None, :, y : y + inputs[0], x : x + inputs[1]])[0]
            if out is None:
                out = np.empty((len(logits), height, width), logits.dtype)
            owned = out[:, y : y + sizes[0], x : x + sizes[1]]
            owned[:] = logits[:, : owned.shape[1], : owned.shape[2]]
    assert out is not None
    return out


class Predictor:
    """A trained network with its preprocessing: images as they come in, class indices of their size out."""

    def __init__(
        self,
        network: nn.Module,
        config: Config,
        device: str = "cpu",
        engine: str = "auto",
        tile: Tile = "auto",
    ) -> None:
        self.network = network
        self.config = config
        self.tile = tile
        self.classes = ClassMap(tuple(config.data.classes), tuple(config.data.colors))
        self._engine = make_engine(engine, network, device)
        self._normalization = Normalization.from_settings(config.data)
        if tile not in ("auto", None):
            _tile_size(network, 1, 1, tile)
            plan_tiles(1, 1, int(tile), geometry_of(network).stride, geometry_of(network).margin)

    def logits(self, image: np.ndarray) -> np.ndarray:
        """H x W x C image of any type -> K x H x W float32 logits.

        Images are scaled to the network by `data.scale`, their logits back, linearly.

        Raises:
            DataError: NaN pixels. ModelError: the channels do not fit.
        """
        fitted = match_channels(image, self.config.data.channels)
        require_finite(fitted)
        gain, offset = self._normalization.gain_and_offset(fitted)
        small = resize(fitted, self.config.data.scale).astype(np.float32) * gain + offset
        logits = run_tiles(self._engine, self.network, small, self.tile)
        if logits.shape[1:] == image.shape[:2]:
            return logits
        return np.stack(
            [cv2.resize(plane, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR) for plane in logits]
        )

    def labels(self, image: np.ndarray) -> np.ndarray:
        """H x W x C image -> H x W uint8 class indices."""
        return self.logits(image).argmax(0).astype(np.uint8)


@dataclass(frozen=True)
class Outputs:
    """What `predict_files` writes beside the masks, and how."""

    folder: Path
    format: Literal["png", "tiff"] = "png"
    probabilities: bool = False
    overlay: bool = False


@dataclass
class Summary:
    """What became of the inputs."""

    outputs: list[dict[str, str | int]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    pixels: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Job:
    source: Path
    name: Path  # below the output folder, without a suffix


def find_inputs(inputs: Sequence[str]) -> list[Path]:
    """Files, folders (with the folders inside) and glob patterns -> files, each once, in order.

    A path that does not exist is kept, to be reported as failed.

    Raises:
        DataError: a folder or a pattern without images.
    """
    found: dict[Path, None] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            inside = [image for folder in _folders(path) for image in list_images(folder)]
            if not inside:
                raise DataError(f"{path}: holds no images.")
        elif not path.exists() and any(sign in text for sign in "*?["):
            inside = [Path(match) for match in sorted(glob(text, recursive=True)) if Path(match).is_file()]  # noqa: PTH207 (absolute patterns)
            if not inside:
                raise DataError(f"{text}: no file matches this pattern.")
        else:
            inside = [path]
        found.update(dict.fromkeys(inside))
    return list(found)


def _folders(root: Path) -> Iterator[Path]:
    yield root
    for folder in sorted(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink()):
        if not any(part.startswith(".") for part in folder.relative_to(root).parts):
            yield folder


def _name_jobs(paths: Sequence[Path]) -> list[_Job]:
    """Stems; those that collide keep the folders below what they have in common, and then their extension."""
    names = {path: Path(path.stem) for path in paths}
    colliding = _colliding(names)
    if colliding:
        full = {path: Path(os.path.abspath(path)) for path in colliding}  # noqa: PTH100 (links keep their own names)
        common = Path(*_common_parts([path.parent.parts for path in full.values()]))
        names.update({path: full[path].relative_to(common).with_suffix("") for path in colliding})
    while same := [path for path in _colliding(names) if names[path].name != path.name]:
        names.update({path: names[path].with_name(path.name) for path in same})
    return [_Job(path, names[path]) for path in paths]


def _colliding(names: dict[Path, Path]) -> list[Path]:
    count: dict[str, int] = {}
    for name in names.values():
        count[str(name).casefold()] = count.get(str(name).casefold(), 0) + 1
    return [path for path, name in names.items() if count[str(name).casefold()] > 1]


def _common_parts(rows: Sequence[Sequence[str]]) -> list[str]:
    common = []
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return common


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str],
    outputs: Outputs,
    axes: str | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Summary:
    """Predict files and write their masks; one that fails does not stop the others.

    Args:
        predictor: the network and its preprocessing.
        inputs: files, folders, glob patterns.
        outputs: where to, and what.
        axes: of TIFF files whose metadata do not tell.
        progress: is called with (done, all, pixels done).

    Raises:
        DataError: there is nothing to predict. OutputError: the folder cannot be written, or is that of the images.
    """
    jobs = _name_jobs(find_inputs(inputs))
    summary = Summary()
    start = time.perf_counter()
    for done, job in enumerate(jobs, start=1):
        try:
            entry = _predict_file(predictor, job, outputs, axes)
            summary.outputs.append(entry)
            summary.pixels += int(entry["width"]) * int(entry["height"]) * int(entry.get("pages", 1))
        except (DataError, ModelError) as error:
            text = str(error)
            message = text if text.startswith(str(job.source)) else f"{job.source}: {text}"
            summary.failed.append({"input": str(job.source), "message": message})
        if progress:
            progress(done, len(jobs), summary.pixels)
    summary.seconds = time.perf_counter() - start
    return summary


def _predict_file(predictor: Predictor, job: _Job, outputs: Outputs, axes: str | None) -> dict[str, str | int]:
    pages = read_image(job.source, axes)
    logits = [predictor.logits(page) for page in pages]
    masks = np.stack([values.argmax(0).astype(np.uint8) for values in logits])
    suffix = ".png" if outputs.format == "png" and len(pages) == 1 else ".tif"
    target = _below(outputs.folder, job.name, suffix)
    if target.exists() and target.samefile(job.source):
        raise OutputError(f"{target}: is the image itself, which its mask would replace; choose another folder.")
    write_mask(target, _flat(masks), predictor.classes.palette)
    entry: dict[str, str | int] = {
        "input": str(job.source),
        "mask": str(target),
        "width": pages.shape[2],
        "height": pages.shape[1],
    }
    if len(pages) > 1:
        entry["pages"] = len(pages)
    if predictor.config.data.labels == "instances":
        entry["instances"] = str(_write_instances(outputs, job, masks, suffix))
    if outputs.probabilities:
        target = _below(outputs.folder / "probabilities", job.name, ".tif")
        write_probabilities(target, _flat(np.stack([softmax(values) for values in logits])))
        entry["probabilities"] = str(target)
    if outputs.overlay:
        target = _below(outputs.folder / "overlays", job.name, ".png")
        write_image(target, overlay(to_display(pages[0]), masks[0], predictor.classes))
        entry["overlay"] = str(target)
    return entry


def _below(folder: Path, name: Path, suffix: str) -> Path:
    return folder / name.parent / (name.name + suffix)


def _flat(pages: np.ndarray) -> np.ndarray:
    return pages[0] if len(pages) == 1 else pages


def _write_instances(outputs: Outputs, job: _Job, masks: np.ndarray, suffix: str) -> Path:
    """Objects are the connected components of the class; 16 bits, or 32 in a TIFF where they are too many."""
    ids = np.stack([objects(mask) for mask in masks])
    wide = int(ids.max(initial=0)) > np.iinfo(np.uint16).max
    target = _below(outputs.folder / "instances", job.name, ".tif" if wide else suffix)
    write_mask(target, _flat(ids.astype(np.uint32 if wide else np.uint16)))
    return target


def softmax(logits: np.ndarray) -> np.ndarray:
    """K x ... logits -> probabilities that sum to 1 over K.

    >>> softmax(np.zeros((2, 1, 1))).ravel().tolist()
    [0.5, 0.5]
    """
    shifted = np.exp(logits - logits.max(0, keepdims=True))
    return shifted / shifted.sum(0, keepdims=True)
