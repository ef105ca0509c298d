"""A look inside a trained network: its first filters, and what its layers make of an image, in one picture.

C channels, H x W pixels, K filters. Matplotlib's own objects draw it, without any global state.
"""

import io
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from skimage.util import montage
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pixelwise.core.errors import SettingError, near
from pixelwise.core.windows import Window
from pixelwise.data.files.sources import Source, open_source
from pixelwise.data.pixels.pictures import STRETCH, to_display
from pixelwise.geometry.modes import evaluation_mode
from pixelwise.geometry.tracing import Layer, trace_layers
from pixelwise.prediction.page import Page
from pixelwise.prediction.predictor import Predictor

SIDE = 512  # pixels, after scaling, to which a larger image is cropped
COLUMNS = 8  # feature maps of a layer
FILTERS = 32  # at most, of the first convolution
ROWS, FEWEST = 9, 3  # most layers to choose; fewest resolutions for choosing one layer of each
SMALLEST = 8  # cells on each side; smaller maps are not chosen
MAGNIFIED = 64  # least pixels on each side of a map in the picture
GAP, FILTER_GAP = 0.03, 0.15  # between maps and between filters, relative to the longer side of one
SILENT = ("Identity", "Dropout", "Dropout2d")  # they return what they get

_WIDTH, _EDGE, _CAPTION, _TOP = 11.0, 0.25, 0.3, 2.6  # inches
_INK, _FAINT = "#1f2733", "#5b6675"


@dataclass(frozen=True)
class Features:
    """What one layer returned for the image."""

    name: str  # of the module
    kind: str  # its class
    maps: np.ndarray  # C x H x W


@dataclass(frozen=True)
class Crop:
    """The part of an image that the network sees."""

    picture: np.ndarray  # H x W x 3 uint8
    window: np.ndarray  # C x h x w float32, as the network takes it
    text: str  # which part it is


def draw_features(predictor: Predictor, path: Path, names: Sequence[str], title: str) -> tuple[bytes, list[Features]]:
    """Draw the filters of the first convolution, and feature maps of layers.

    Args:
        predictor: of a run; the image is read and normalised as for a prediction.
        path: the image; the first of several pages, the middle of a large one.
        names: of modules; if empty, the last layer at each resolution on the way through the network.
        title: heading of the picture.

    Returns:
        A PNG, and what each layer returned.

    Raises:
        DataError, ModelError: the image cannot be used.
        SettingError: a layer does not exist (the message names similar ones) or does not return a map.
    """
    network = predictor.network
    _check_names(network, names)
    with open_source(path) as source:
        crop = _crop(predictor, source)
    chosen = list(names) or choose_layers(_layers(predictor, crop))
    features = look(network, torch.from_numpy(crop.window)[None], chosen)
    return _draw(f"{title} on {path.name}", crop, _first_convolution(network), features), features


def _check_names(network: nn.Module, names: Sequence[str]) -> None:
    known = [name for name, _ in network.named_modules() if name]
    for name in names:
        if name not in known:
            raise SettingError(f"--layer {name}: there is no such layer in the network; {_some(near(name, known))}")


def _some(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[:most].rpartition(',')[0]}, ..."


def _crop(predictor: Predictor, source: Source) -> Crop:
    """The middle of an image, prepared as for a prediction."""
    page = Page.of_source(source, 0, predictor.config.data)
    rows, columns = page.shape
    side = round(SIDE / predictor.config.data.scale)
    height, width = min(side, rows), min(side, columns)
    crop = page.crop(Window.whole(height, width).moved((rows - height) // 2, (columns - width) // 2))
    tiling = predictor.runner.tiler.cut(crop.shape, None)
    text = f"{height} x {width} pixels"
    if crop.shape != page.shape:
        text = f"the middle {height} x {width} of {rows} x {columns} pixels"
    picture = to_display(crop.read(Window.whole(height, width)))
    return Crop(picture, crop.window(tiling, tiling.tiles[0]), text)


def _layers(predictor: Predictor, crop: Crop) -> list[Layer]:
    channels, height, width = crop.window.shape
    stride = predictor.runner.sizes.geometry.stride
    return trace_layers(predictor.network, channels, height, width, stride, nested=True)


def choose_layers(layers: Sequence[Layer]) -> list[str]:
    """The last layer at each resolution, in order; if there are many, some of them, spread over the depth.

    If there are fewer than three resolutions, all layers are candidates.

    >>> strides = [1, 1, 2, 2, 1]
    >>> choose_layers([Layer(str(place), "ReLU", (8, 64, 64), 0, 0, 1, step) for place, step in enumerate(strides)])
    ['1', '3', '4']
    """
    maps = [
        layer
        for layer in layers
        if layer.name and len(layer.shape) == 3 and min(layer.shape[1:]) >= SMALLEST and layer.kind not in SILENT
    ]
    runs = itertools.groupby(maps or layers, key=lambda layer: layer.stride or layer.shape[1:])
    last = [list(run)[-1].name for _, run in runs]
    if len(last) < FEWEST:
        last = [layer.name for layer in maps or layers]
    places = np.linspace(0, len(last) - 1, min(ROWS, len(last))).round().astype(int)
    return list(dict.fromkeys(last[place] for place in places))


def look(network: nn.Module, images: Tensor, names: Sequence[str]) -> list[Features]:
    """What layers return for one image, in the order of the names; the first time, if a layer runs more than once.

    Raises:
        SettingError: a layer does not run, or does not return a C x H x W map.
    """
    modules = dict(network.named_modules())
    found: dict[str, Tensor] = {}
    with _listening(modules, names, found), evaluation_mode(network), torch.inference_mode():
        network(images)
    for name in names:
        if name not in found or found[name].ndim != 4:
            what = f"returns values of {' x '.join(map(str, found[name].shape))}" if name in found else "does not run"
            raise SettingError(f"--layer {name}: {what}; choose a layer that returns a map of the image.")
    return [Features(name, type(modules[name]).__name__, found[name][0].float().numpy()) for name in names]


@contextmanager
def _listening(modules: dict[str, nn.Module], names: Sequence[str], found: dict[str, Tensor]) -> Iterator[None]:
    """Keep copies of what the named modules return, since later layers may write into it."""

    def hook(name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if tensors and name not in found:
                found[name] = tensors[0].detach().cpu().clone()

        return keep

    handles = [modules[name].register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_convolution(network: nn.Module) -> tuple[str, np.ndarray] | None:
    """Its name and its weights, K x C x H x W."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module.weight.detach().cpu().float().numpy()
    return None


# The picture


def _draw(title: str, crop: Crop, filters: tuple[str, np.ndarray] | None, features: Sequence[Features]) -> bytes:
    rows = [(_caption(layer), mosaic([_stretched(one) for one in strongest(layer.maps)])) for layer in features]
    inner = _WIDTH - 2 * _EDGE
    heights = [inner * picture.shape[0] / picture.shape[1] for _, picture in rows]
    total = 2 * _EDGE + _CAPTION + _TOP + sum(heights) + _CAPTION * (len(rows) + 1) + 0.1 * len(rows)
    figure = Figure(figsize=(_WIDTH, total), facecolor="white")
    figure.text(_EDGE / _WIDTH, 1 - _EDGE / total, title, fontsize=13, weight="bold", color=_INK, va="top")
    below = total - _EDGE - _CAPTION
    below = _draw_top(figure, below, crop, filters)
    for (caption, picture), height in zip(rows, heights, strict=True):
        axes = _place(figure, _EDGE, below - _CAPTION - height, inner, height)
        axes.imshow(picture, aspect="auto", interpolation="antialiased")
        _write(axes, *caption)
        below -= _CAPTION + height + 0.1
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _draw_top(figure: Figure, below: float, crop: Crop, filters: tuple[str, np.ndarray] | None) -> float:
    """Draw the image and the first filters, side by side; returns where they end."""
    height, width = crop.picture.shape[:2]
    high, bottom = _TOP, below - _CAPTION - _TOP
    wide = min(high * width / height, 0.5 * _WIDTH)
    axes = _place(figure, _EDGE, bottom, wide, min(high, wide * height / width))
    axes.imshow(crop.picture, aspect="auto")
    _write(axes, "image", crop.text)
    if filters is not None:
        name, weights = filters
        left = _EDGE + wide + 0.3
        picture = mosaic(list(_filter_pictures(weights[:FILTERS])), FILTER_GAP)
        scale = min((_WIDTH - _EDGE - left) / picture.shape[1], _TOP / picture.shape[0])
        size = picture.shape[1] * scale, picture.shape[0] * scale
        axes = _place(figure, left, bottom + _TOP - size[1], *size)
        axes.imshow(picture, aspect="auto", interpolation="nearest")
        _write(axes, name, _filter_text(weights))
    return bottom


def _place(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches."""
    total_width, total_height = figure.get_size_inches()
    axes = figure.add_axes((left / total_width, bottom / total_height, width / total_width, height / total_height))
    axes.set_axis_off()
    return axes


def _write(axes: Axes, name: str, text: str) -> None:
    """Write a caption above the axes."""
    label = axes.annotate(
        name, (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=9.5, weight="bold",
        color=_INK, va="baseline",
    )  # fmt: skip
    axes.annotate(
        text, (1, 1), (8, 5), xycoords=(label, "axes fraction"), textcoords="offset points", fontsize=9, color=_FAINT,
        va="baseline",
    )  # fmt: skip


def _caption(layer: Features) -> tuple[str, str]:
    channels, height, width = layer.maps.shape
    which = "" if channels <= COLUMNS else f", the {COLUMNS} that vary most"
    kind = "" if layer.kind == "Sequential" else f"{layer.kind}, "
    return layer.name, f"{kind}{channels} channels of {height} x {width}{which}"


def strongest(maps: np.ndarray, count: int = COLUMNS) -> np.ndarray:
    """The `count` maps of C x H x W whose values vary most, in their own order.

    >>> strongest(np.array([[[0, 1]], [[0, 9]], [[5, 5]], [[0, 3]]]), count=2)[:, 0].tolist()
    [[0, 9], [0, 3]]
    """
    spread = np.nan_to_num(maps.std(axis=(1, 2)))
    return maps[np.sort(np.argsort(-spread, kind="stable")[:count])]


def _stretched(values: np.ndarray) -> np.ndarray:
    """A map as a picture, H x W x 3 uint8, from its darkest to its brightest."""
    low, high = np.percentile(values, STRETCH)
    return _bytes(colormaps["viridis"]((values - low) / max(high - low, 1e-12)))


def _filter_pictures(weights: np.ndarray) -> Iterator[np.ndarray]:
    """Filters as pictures: in colour if they take three channels, otherwise their mean over the channels."""
    largest = max(float(np.abs(weights).max()), 1e-12)
    for one in weights:
        if len(one) == 3:
            yield _bytes(0.5 + 0.5 * one.transpose(1, 2, 0) / largest)
        else:
            mean = one.mean(axis=0)
            yield _bytes(colormaps["RdBu_r"](0.5 + 0.5 * mean / max(float(np.abs(weights.mean(axis=1)).max()), 1e-12)))


def _filter_text(weights: np.ndarray) -> str:
    count, channels, height, width = weights.shape
    shown = f"the first {FILTERS} of {count}" if count > FILTERS else str(count)
    how = "" if channels in (1, 3) else f", mean over their {channels} channels"
    return f"{shown} filters of {height} x {width}{how}"


def _bytes(colors: np.ndarray) -> np.ndarray:
    return (colors[..., :3].clip(0, 1) * 255).round().astype(np.uint8)


def mosaic(pictures: Sequence[np.ndarray], gap_share: float = GAP) -> np.ndarray:
    """Put pictures of one size, H x W x 3 uint8, in rows of 8, with white gaps between them; small ones are magnified.

    >>> mosaic([np.zeros((100, 100, 3), np.uint8)] * 9).shape
    (203, 821, 3)
    """
    times = -(-MAGNIFIED // max(pictures[0].shape[:2]))
    stack = np.stack(pictures).repeat(times, axis=1).repeat(times, axis=2)
    gap = round(gap_share * max(stack.shape[1:3]))
    grid = -(-len(stack) // COLUMNS), COLUMNS
    sheet = montage(stack, fill=[255] * 3, grid_shape=grid, padding_width=gap, channel_axis=-1)
    return np.asarray(sheet[gap:-gap, gap:-gap])  # without the border around it all
