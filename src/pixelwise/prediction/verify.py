"""Proof of seamless prediction on a user's own image: its tiles against one plain forward pass of the whole image."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from pixelwise.core.errors import DataError
from pixelwise.core.memory import held_bytes, size_text
from pixelwise.data.files.sources import open_source
from pixelwise.engines import EngineChoice, depends_on_rounding
from pixelwise.prediction.page import Page
from pixelwise.prediction.postprocess import argmax
from pixelwise.prediction.predictor import Predictor
from pixelwise.prediction.runner import Runner, assembled, logits_of, make_runner
from pixelwise.prediction.tiler import TileSize
from pixelwise.prediction.tiling import Shape, Tiling

TOLERANCE = 1e-4  # of the largest logit: how far float32 may differ


def verify_seams(predictor: Predictor, path: Path, tile: TileSize = "auto", axes: str | None = None) -> dict[str, Any]:
    """Predict an image by tiles, and compare with one forward pass of the whole image in plain PyTorch.

    The tiles go through the predictor's own engine, so that this proves what `predict` does.

    Args:
        predictor: of a run.
        path: the image; of several pages the first.
        tile: side of a tile; "auto" takes one that cuts the image into several.
        axes: as in `read_image`.

    Returns:
        The largest differences of the logits (absolute, and relative to the largest logit), the pixels whose class
        flipped although the two best logits differ by more than `tolerance` times the largest, the network's
        geometry, and whether the whole image was compared or the largest crop that fits the memory (`whole`). A network
        that places values where maxima were is only `exact` with torch.

    Raises:
        DataError, ModelError, SettingError: the image cannot be used, or the tile does not suit the network.
    """
    with open_source(path, axes) as source:
        settings, runner = predictor.config.data, predictor.runner
        page = Page.of_source(source, 0, settings)
        eager = EngineChoice("torch", predictor.engine.device)
        plain = make_runner(predictor.network, settings.channels, eager, predictor.views, settings.scale)
        shape = _crop(plain, page, predictor.memory.limit)
        tiling = runner.tiler.choose(shape, _several(runner, shape) if tile == "auto" else tile, predictor.memory)
        whole = _logits(plain, page, plain.tiler.cut(shape, None))
        tiled = _logits(runner, page, tiling)
    name, geometry = runner.engine.name, runner.sizes.geometry
    reason = geometry.reason
    if name != "torch" and depends_on_rounding(predictor.network):
        reason = reason or f"it places values where maxima were, and {name} rounds differently from torch; use torch"
    return {
        **_differences(whole, tiled),
        "tolerance": TOLERANCE,
        "halo": geometry.halo,
        "margin": geometry.margin,
        "stride": geometry.stride,
        "exact": not reason,
        "reason": reason,
        "whole": shape == page.shape,
        "height": shape[0],
        "width": shape[1],
        "tiles": len(tiling.tiles),
        "window": list(tiling.window_shape),
        "engine": name,
    }


def _logits(runner: Runner, page: Page, tiling: Tiling) -> np.ndarray:
    """K x H x W."""
    parts = runner.run(lambda tile: page.window(tiling, tile), tiling)
    return assembled(((tile.owned, logits_of(outputs)) for tile, outputs in parts), tiling.height, tiling.width)


def _crop(plain: Runner, page: Page, limit: int) -> Shape:
    """Height and width of the image, or of the part of it for which one forward pass fits into the memory."""
    pixels = math.prod(page.shape)
    if pixels <= 512 * 512:
        return page.shape
    room = (limit - held_bytes()) / (plain.costs.bytes_per_pixel * plain.costs.scale**2)
    if pixels <= room:
        return page.shape
    stride = plain.sizes.geometry.stride
    side = int(math.sqrt(max(room, 0))) // stride * stride
    if side == 0:
        raise DataError(f"{size_text(limit)} of memory is not enough for a forward pass of any part of the image.")
    height = min(page.shape[0], side)
    return height, min(page.shape[1], int(room / height))


def _several(runner: Runner, shape: Shape) -> int:
    """A tile that cuts the image at least twice along its longer side, if the stride lets it."""
    stride, longest = runner.sizes.geometry.stride, int(max(shape) * runner.costs.scale)
    return max(stride, min(512, longest // 3) // stride * stride)


def _differences(whole: np.ndarray, tiled: np.ndarray) -> dict[str, Any]:
    """Of K x H x W logits."""
    largest = float(np.abs(whole).max())
    difference = float(np.abs(whole - tiled).max())
    flipped = argmax(whole) != argmax(tiled)
    best = np.sort(whole[:, flipped], axis=0)
    clear = best[-1] - best[-2] > TOLERANCE * largest if len(whole) > 1 else np.zeros(flipped.sum(), bool)
    return {
        "max_abs_difference": difference,
        "max_relative_difference": difference / max(largest, 1e-30),
        "flipped_pixels": int(clear.sum()),
        "near_ties": int((~clear).sum()),
    }
