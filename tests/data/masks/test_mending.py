"""Masks without what is wrong with them."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from tests.label_cases import BLACK, BLUE, RED, areas, found_in, scattered, squares, through_jpeg

from pixelwise.data.masks.mending import mender, parted
from pixelwise.data.masks.stored import StoredMask
from pixelwise.data.sets.folder import Description


def mended(masks: list[np.ndarray], code: str, description: Any = None, palettes: Any = None) -> list[Any]:
    found = found_in(*masks, palettes=palettes)
    mend = mender(description or Description(), found, [code])
    shown = palettes or [None] * len(masks)
    return [
        mend(path, StoredMask(mask[None], palette))
        for (path, _), mask, palette in zip(found, masks, shown, strict=True)
    ]


@pytest.mark.parametrize("levels", [[0, 255], [0, 100, 200]])
def test_blends_become_the_nearest_class(levels: list[int]) -> None:
    sharp = [areas(levels, seed) for seed in range(4)]
    half = [cv2.resize(mask, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for mask in sharp]
    for after in mended(half, "antialiased"):
        assert set(np.unique(after)) <= set(levels)
        assert after.dtype == np.uint8
    compressed = [through_jpeg(mask, 90) for mask in sharp]
    for mask, after in zip(sharp, mended(compressed, "jpeg-mask"), strict=True):
        assert (after[0] != mask).mean() < 0.02


def test_mixed_colours_become_the_nearest_class() -> None:
    sharp = [np.array([BLACK, RED, BLUE], np.uint8)[areas([0, 1, 2], seed)] for seed in range(4)]
    half = [cv2.resize(mask, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for mask in sharp]
    after = np.stack(mended(half, "antialiased"))
    assert {tuple(color) for color in after.reshape(-1, 3).tolist()} <= {BLACK, RED, BLUE}


def test_sharp_masks_are_left_alone() -> None:
    sharp, soft = areas([0, 255]), cv2.GaussianBlur(areas([0, 255], 1), (9, 9), 2)
    first, second = mended([sharp, soft], "antialiased")
    assert first is None
    assert set(np.unique(second)) == {0, 255}
    assert mended([soft], "antialiased", Description(labels="index")) == [None]


def test_two_conventions_become_one() -> None:
    low, high = scattered([0, 1, 2]), scattered([0, 127, 254])
    first, second = mended([low, high], "mixed-conventions")
    assert first is None
    assert np.array_equal(second[0], low)


def test_palettes_become_colours() -> None:
    one, other = np.array([BLACK, RED], np.uint8), np.array([RED, BLACK], np.uint8)
    mask = areas([0, 1])
    first, second = mended([mask, 1 - mask], "palettes-differ", palettes=[one, other])
    assert np.array_equal(first, second)
    assert np.array_equal(first[0], one[mask])


def test_the_alpha_channel_becomes_the_mask(tmp_path: Path) -> None:
    alpha = scattered([0, 255])
    path = tmp_path / "a.png"
    Image.merge("LA", (Image.fromarray(alpha * 0), Image.fromarray(alpha))).save(path)
    mend = mender(Description(), found_in(alpha * 0), ["alpha-labels"])
    assert np.array_equal(mend(path, StoredMask(alpha[None] * 0)), alpha[None])


def test_separate_parts_are_numbered() -> None:
    mask = np.zeros((1, 8, 8), np.uint8)
    mask[0, :3, :3], mask[0, 6:, 6:], mask[0, 0, 7] = 5, 5, 255
    after = parted(mask)
    assert after is not None
    assert (after[0, 0, 0], after[0, 7, 7], after[0, 0, 7], after.dtype) == (5, 256, 255, np.uint16)
    assert parted(squares([1, 2, 3])[None]) is None
    assert mended([mask[0]], "disconnected-instance")[0].max() == 256


def test_other_problems_change_no_mask() -> None:
    assert mended([scattered([0, 1])], "class-imbalance") == [None]
