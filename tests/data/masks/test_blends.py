"""Values at edges are told from classes: of what resampling and JPEG make, and of thin and rare classes."""

from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from tests.label_cases import BLACK, BLUE, RED, areas, through_jpeg

from pixelwise.data.masks.blends import Edges, blends, color_edges_of, edges_of, total
from pixelwise.data.masks.labels import pack, unpacked

LEVELS = ([0, 255], [0, 100, 200], [0, 128, 255])
COLORS = np.array([BLACK, RED, BLUE, (30, 200, 30)], np.uint8)


def looked_at(mask: np.ndarray) -> tuple[np.ndarray, Edges]:
    numbers = pack(mask) if mask.ndim == 3 else mask
    values, ranks = np.unique(numbers, return_inverse=True)
    ranks = ranks.reshape(numbers.shape).astype(np.uint16)
    if mask.ndim == 3:
        return values, color_edges_of(mask, ranks, len(values))
    return values, edges_of(ranks, len(values))


def kept(masks: list[np.ndarray], is_jpeg: bool = False) -> list[int]:
    """The values that may be classes."""
    values, edges = total([looked_at(mask) for mask in masks])
    found = blends(unpacked(values) if masks[0].ndim == 3 else values, edges, is_jpeg)
    return [int(value) for value in values[~found]]


def some_masks(levels: list[int]) -> list[np.ndarray]:
    return [areas(levels, seed) for seed in range(6)]


def shrunk(mask: np.ndarray, factor: float, way: Any) -> np.ndarray:
    if isinstance(way, int):
        return cv2.resize(mask, None, fx=factor, fy=factor, interpolation=way)
    size = round(mask.shape[1] * factor), round(mask.shape[0] * factor)
    return np.asarray(Image.fromarray(mask).resize(size, way))


WAYS = [
    *(pytest.param(way, id=f"cv2 {name}") for name, way in (
        ("area", cv2.INTER_AREA), ("linear", cv2.INTER_LINEAR), ("cubic", cv2.INTER_CUBIC))),
    *(pytest.param(way, id=f"pillow {way.name}") for way in (
        Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BOX)),
]  # fmt: skip
EXACT = [cv2.INTER_AREA, Image.Resampling.BOX]  # which repeat pixels where they enlarge


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("factor", [0.5, 0.7, 2.0])
@pytest.mark.parametrize("way", WAYS)
def test_what_resampling_makes_is_no_class(levels: list[int], factor: float, way: Any) -> None:
    resampled = [shrunk(mask, factor, way) for mask in some_masks(levels)]
    if factor > 1 and way in EXACT:
        assert kept(resampled) == levels
    else:
        assert len(np.unique(resampled)) > len(levels)
        assert len(set(kept(resampled)) - set(levels)) <= 2


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("quality", [75, 90, 95, 98])
@pytest.mark.parametrize("is_jpeg", [True, False])  # False: saved as PNG afterwards
def test_what_jpeg_makes_is_no_class(levels: list[int], quality: int, is_jpeg: bool) -> None:
    compressed = [through_jpeg(mask, quality) for mask in some_masks(levels)]
    assert len(set(kept(compressed, is_jpeg)) - set(levels)) <= 2
    assert len(kept(compressed, is_jpeg)) < len(np.unique(compressed))


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_colours_are_mixed_by_resampling(count: int, factor: float) -> None:
    masks = [COLORS[areas(list(range(count)), seed)] for seed in range(6)]
    assert len(kept(masks)) == count
    assert len(kept([shrunk(mask, factor, cv2.INTER_LINEAR) for mask in masks])) <= count + 2


# What must not be taken for blends


def line(mask: np.ndarray, value: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    start, end = (tuple(int(place) for place in rng.integers(0, len(mask), 2)) for _ in range(2))
    return cv2.line(mask.copy(), start, end, value, width)


def outlined(mask: np.ndarray, value: int) -> np.ndarray:
    """A border of one pixel about every area."""
    new = mask.copy()
    new[cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0] = value
    return new


TRUE = {
    "values with gaps": [areas([0, 1, 2, 3, 4, 5, 100, 200, 201], seed) for seed in range(6)],
    "a line of one pixel between two classes": [outlined(mask, 128) for mask in some_masks([0, 255])],
    "a thin class that crosses everything": [line(areas([0, 50, 250], seed), 150, 1, seed) for seed in range(6)],
    "two thin classes": [line(line(areas([0, 250], seed), 60, 1, seed), 160, 1, seed + 9) for seed in range(6)],
    "rare objects of 3 x 3 pixels": [
        np.pad(np.full((3, 3), 40 + 80 * (seed % 2), np.uint8), ((30 + seed, 39 - seed), (20, 49))) + 0
        for seed in range(6)
    ]
    + some_masks([0, 255]),
    "numbered classes": some_masks([0, 1, 2, 3, 4]),
}


@pytest.mark.parametrize("masks", TRUE.values(), ids=TRUE)
def test_classes_are_no_blends(masks: list[np.ndarray]) -> None:
    assert kept(masks) == sorted({int(value) for mask in masks for value in np.unique(mask)})


def test_thin_colours_are_classes() -> None:
    masks = [COLORS[line(line(areas([0, 1], seed), 2, 1, seed), 3, 2, seed + 9)] for seed in range(6)]
    assert len(kept(masks)) == 4


def test_edges_are_counted() -> None:
    page = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 2]], np.uint8)
    edges = edges_of(page, 3)
    assert edges.pixels.tolist() == [13, 2, 1]
    assert edges.inside.tolist() == [8, 0, 0]
    assert edges.between.tolist() == [0, 2, 0]
