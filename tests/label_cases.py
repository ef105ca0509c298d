"""Masks made for tests: areas of some values, objects, parts, and what files make of them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixelwise.data.health.problems import Problem
from pixelwise.data.masks.evidence import Evidence, Found
from pixelwise.data.masks.labels import LabelRule
from pixelwise.data.masks.mask_facts import mask_facts
from pixelwise.data.masks.meaning import interpret
from pixelwise.data.sets.folder import Description

BLACK, RED, BLUE, WHITE = (0, 0, 0), (200, 30, 30), (30, 30, 200), (255, 255, 255)


def found_in(*masks: Any, palettes: Any = None, form: str = "PNG") -> Found:
    """Masks as the files 0.png, 1.png, ..., looked at; each may have a palette."""
    shown = palettes or [None] * len(masks)
    return [
        (Path(f"{number}.png"), mask_facts(mask[None], palette, form))
        for number, (mask, palette) in enumerate(zip(masks, shown, strict=True))
    ]


def gathered(*masks: Any) -> Evidence:
    return Evidence.of(found_in(*masks))


def rule_of(description: Description, *masks: Any, allow: Any = ()) -> LabelRule:
    """The rule of masks that nothing is wrong with."""
    found = interpret(description, found_in(*masks), allow)
    assert isinstance(found.meaning, LabelRule), found.problems
    return found.meaning


def problem_of(description: Description, *masks: Any, **options: Any) -> Problem:
    """The one error of masks that cannot be read."""
    found = interpret(description, found_in(*masks, **options))
    assert found.meaning is None
    (problem,) = (one for one in found.problems if one.severity == "error")
    return problem


def scattered(values: list[int], dtype: type | None = None, size: int = 40) -> np.ndarray:
    """Noise of these values: none of them forms a single component."""
    dtype = dtype or (np.uint8 if max(values) < 256 else np.uint16)
    return np.random.default_rng(0).choice(np.array(values, dtype), (size, size))


def squares(ids: list[int], seed: int = 0, dtype: type = np.uint16) -> np.ndarray:
    """One 4 x 4 square for each id, apart from each other, in an order that the seed chooses."""
    mask = np.zeros((12, 6 * len(ids)), dtype)
    rng = np.random.default_rng(seed)
    for place, value in enumerate(rng.permutation(ids)):
        top = int(rng.integers(0, 8))
        mask[top : top + 4, 6 * place + 1 : 6 * place + 5] = value
    return mask


def areas(values: list[int], seed: int = 0, size: int = 72, dtype: type = np.uint8) -> np.ndarray:
    """Discs and rectangles of these values, the first of which is the ground."""
    rng = np.random.default_rng(seed)
    mask = np.full((size, size), values[0], dtype)
    rows, columns = np.ogrid[:size, :size]
    for number, value in enumerate(np.repeat(values[1:], 3)):
        y, x, radius = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(4, size / 6)
        if number % 2:
            mask[max(0, int(y - radius)) : int(y + radius), max(0, int(x - radius)) : int(x + radius)] = value
        else:
            mask[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = value
    return mask


def face(seed: int, parts: int = 9) -> np.ndarray:
    """A mask of parts: each number has its place, a little moved."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((72, 72), np.uint8)
    for number in range(parts):
        y, x = (4 + 24 * place + int(rng.integers(-3, 4)) for place in divmod(number, 3))
        mask[max(0, y) : y + 12, max(0, x) : x + 12] = number + 1
    return mask


def colored(*colors: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.array(colors, np.uint8), 30, axis=0)).reshape(-1, 10, 3)


def through_jpeg(mask: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))
