"""What is kept of a mask: values, where they lie, and whether they look like objects."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import measure
from tests.label_cases import BLACK, BLUE, RED, WHITE

from pixelwise.core.classes import IGNORE, ClassMap
from pixelwise.core.errors import DataError
from pixelwise.data.masks.labels import LabelRule, pack
from pixelwise.data.masks.mask_facts import facts_of, mask_facts
from pixelwise.data.masks.masks import MaskLabels
from pixelwise.data.masks.stored import StoredMask

THREE = LabelRule("index", ClassMap(("a", "b", "c")), ignore=(255,))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([np.uint8, np.uint16, np.int32]))
def test_components_are_counted(seed: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    factor = 1 if dtype is np.uint8 else 1000
    mask = (factor * rng.integers(0, 9, rng.integers(1, 20, 2)) * (rng.random() < 0.9)).astype(dtype)
    facts = mask_facts(mask[None])
    values = [value for value in np.unique(mask) if value > 0]
    if not values or values == [1]:
        assert facts.ids is None
        return
    assert facts.ids is not None
    assert facts.ids.values.tolist() == values
    assert facts.ids.most == len(values)
    assert facts.ids.connected.tolist() == [measure.label(mask == v, connectivity=2).max() == 1 for v in values]
    assert facts.ids.places is not None
    for value, place in zip(values, facts.ids.places, strict=True):
        expected = (np.argwhere(mask == value).mean(0) + 0.5) / mask.shape
        np.testing.assert_allclose(place, expected)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 5))
def test_thirds_share_the_rows_out(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
    counts = MaskLabels().count(mask_facts(labels[None]), THREE)
    expected = np.zeros((3, 3), int)
    for row, column in np.ndindex(height, width):
        if labels[row, column] != 255:
            expected[3 * row // height, labels[row, column]] += 1
    assert counts.tolist() == expected.tolist()


def test_the_thirds_of_a_picture_are_alike_in_height() -> None:
    for height in range(3, 40):
        labels = np.zeros((height, 1), np.uint8)
        rows = MaskLabels().count(mask_facts(labels[None]), THREE)[:, 0]
        assert all(abs(one - other) <= 1 for one, other in pairwise(rows))
        assert rows.sum() == height


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.uint8, np.uint16, np.uint32, np.int32, np.int64]),
    st.integers(1, 3),
    st.sampled_from(["index", "instances", "color"]),
)
def test_counts_are_those_of_the_indices(seed: int, dtype: type, pages: int, kind: Any) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 3, (pages, *rng.integers(1, 20, 2))).astype(dtype)
    if kind == "color":
        mask = np.array([BLACK, RED, BLUE], np.uint8)[mask]
    names = ("a", "b") if kind == "instances" else ("a", "b", "c")
    rule = LabelRule(kind, ClassMap(names, (BLACK, RED, BLUE)[: len(names)]), ignore=(1,))
    indices = np.stack([rule.to_indices(page) for page in mask])
    facts = mask_facts(mask)
    assert facts.shape == indices.shape
    assert MaskLabels().count(facts, rule).sum(0).tolist() == [(indices == k).sum() for k in range(len(names))]


def test_grey_masks_count_as_colours_too() -> None:
    rule = LabelRule("color", ClassMap(("a", "b"), (BLACK, WHITE)))
    mask = np.array([[[0, 255, 255]]], np.uint8)
    assert MaskLabels().count(mask_facts(mask), rule).tolist() == [[1, 2], [0, 0], [0, 0]]


def test_the_colours_of_a_palette_are_kept() -> None:
    palette = np.array([BLACK, RED, BLACK], np.uint8)
    facts = mask_facts(np.array([[[0, 1, 2, 2]]], np.uint8), palette)
    assert facts.colors.tolist() == pack(palette).tolist()
    color = LabelRule("color", ClassMap(("a", "b"), (BLACK, RED)))
    assert MaskLabels().count(facts, color).sum(0).tolist() == [3, 1]
    short = mask_facts(np.array([[[0, 9]]], np.uint8), palette)  # whose palette lacks what the mask uses
    assert not short.has_palette


def test_pixels_without_data_count_nowhere() -> None:
    pixels = np.array([[[0, 1, 9]]], np.uint8)
    facts = facts_of(StoredMask(pixels, valid=pixels != 9))
    assert (facts.values.tolist(), facts.counts.sum()) == ([0, 1], 2)


def test_colours_count_for_no_other_kind() -> None:
    facts = mask_facts(np.array([[[BLACK, RED]]], np.uint8))
    with pytest.raises(
        DataError, match=r'^holds colours, but the labels are of the kind "index"; set labels = "color" in'
    ):
        MaskLabels().count(facts, THREE)


def test_a_photograph_is_refused_by_the_little_that_is_kept_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelwise.data.masks.mask_facts._KEPT", 512)
    photograph = np.random.default_rng(0).integers(0, 256, (1, 200, 200, 3)).astype(np.uint8)
    facts = mask_facts(photograph)
    assert len(facts.values) == 1024
    assert facts.counts.sum() + facts.others.sum() == 200 * 200
    rule = LabelRule("color", ClassMap(("a", "b"), (BLACK, RED)))
    with pytest.raises(DataError) as whole:
        rule.to_indices(photograph[0])
    with pytest.raises(DataError) as little:
        MaskLabels().count(facts, rule)
    assert str(little.value) == str(whole.value)


def test_values_that_are_not_kept_are_objects_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelwise.data.masks.mask_facts._KEPT", 2)
    facts = mask_facts(np.arange(9, dtype=np.uint16).reshape(1, 9, 1))
    assert facts.values.tolist() == [0, 1, 7, 8]
    assert facts.others.tolist() == [1, 3, 1]
    instances = LabelRule("instances", ClassMap(("a", "b")), ignore=(8,))
    assert MaskLabels().count(facts, instances).tolist() == [[1, 2], [0, 3], [0, 2]]
    index = LabelRule("index", ClassMap(tuple("abcdefghi")), ignore=(7, 8))
    with pytest.raises(DataError, match=r"^holds more than 4 values, of which most are ignored\. Is it a mask\?$"):
        MaskLabels().count(facts, index)


def test_objects_are_looked_for_in_the_middle_of_a_large_page(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((20, 24), np.uint8)
    mask[:2], mask[8:11, 9], mask[8:11, 14:16], mask[19] = 1, 2, 3, 3
    whole = mask_facts(mask[None]).ids
    assert whole is not None
    assert (whole.pages.tolist(), whole.connected.tolist()) == ([1, 1, 1], [1, 1, 0])
    monkeypatch.setattr("pixelwise.data.masks.mask_facts._LOOKED_AT", 10)
    middle = mask_facts(mask[None]).ids
    assert middle is not None
    assert (middle.pages.tolist(), middle.connected.tolist(), middle.most) == ([0, 1, 1], [0, 1, 1], 3)


def test_ignored_pixels_have_no_class() -> None:
    assert LabelRule("index", ClassMap(("a", "b")), ignore=(7,)).to_indices(np.array([[7]])).tolist() == [[IGNORE]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32])
@pytest.mark.parametrize("value", [99, 0])
def test_what_stands_where_there_is_no_data_is_not_looked_at(dtype: type, value: int) -> None:
    mask = np.array([[[1, 5, 5, 9], [value, value, 9, 9], [1, 1, 5, value]]], dtype)
    valid = np.ones(mask.shape, bool)
    valid[0, 1, :2] = valid[0, 2, 3] = False
    facts = facts_of(StoredMask(mask, valid=valid))
    assert facts.values.tolist() == [1, 5, 9]
    assert facts.counts.sum(0).tolist() == [3, 3, 3]
    assert facts.ids is not None
    assert facts.ids.values.tolist() == [1, 5, 9]


def test_a_mask_without_any_data_holds_nothing() -> None:
    mask = np.ones((1, 4, 4), np.uint8)
    for palette in (None, np.zeros((2, 3), np.uint8)):
        facts = facts_of(StoredMask(mask, palette, valid=np.zeros(mask.shape, bool)))
        assert (facts.values.tolist(), facts.ids, facts.edges) == ([], None, None)
