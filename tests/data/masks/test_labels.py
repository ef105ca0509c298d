"""From the values in masks to class indices, and what is refused on the way."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelwise.core.classes import IGNORE, ClassMap
from pixelwise.core.errors import DataError
from pixelwise.data.masks.labels import LabelRule, pack, unpack, unpacked

BLACK, RED, BLUE = (0, 0, 0), (200, 30, 30), (30, 30, 200)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([np.uint8, np.uint16, np.int32, np.uint32, np.int64]))
def test_indices_are_the_rule_pixel_by_pixel(seed: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    low, high = sorted(rng.choice(256, 2, replace=False).tolist())
    ignored = int(rng.choice([value for value in range(256) if value not in (low, high)]))
    count = int(rng.integers(2, 100))
    rules = [
        (LabelRule("binary", ClassMap(("a", "b")), (low, high), (ignored,)), {low: 0, high: 1, ignored: IGNORE}),
        (
            LabelRule("index", ClassMap(tuple(map(str, range(count)))), ignore=(count, 200)),
            {**{value: value for value in range(count)}, count: IGNORE, 200: IGNORE},
        ),
    ]
    for rule, table in rules:
        mask = rng.choice(np.array(list(table)), (5, 7)).astype(dtype)
        expected = [[table[int(value)] for value in row] for row in mask]
        assert rule.to_indices(mask).tolist() == expected
        assert rule.to_indices(mask).dtype == np.uint16


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_a_packed_colour_comes_back(color: tuple[int, int, int]) -> None:
    value = pack(np.array(color, np.uint8))
    assert unpack(int(value)) == color
    assert unpacked(value).tolist() == list(color)


# What a mask must not hold


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_values_of_no_class_are_named_five_of_them(dtype: type) -> None:
    rule = LabelRule("index", ClassMap(("a", "b", "c")), ignore=(255,))
    message = (
        r"^holds the value 7, but the 3 classes have the values 0 to 2\. "
        r"Correct the mask, name all classes, or set `ignore` in dataset\.toml\.$"
    )
    with pytest.raises(DataError, match=message):
        rule.to_indices(np.array([[0, 7, 2, 255]], dtype))
    with pytest.raises(DataError, match=r"^holds the values 3, 4, 5, 6, 7 \.\.\., but "):
        rule.to_indices(np.arange(10, dtype=dtype)[None])
    with pytest.raises(DataError, match=r"^holds the values 3, 4, but "):
        rule.to_indices(np.array([[3, 4, 0]], dtype))


def test_a_value_of_no_class_names_what_there_is() -> None:
    binary = LabelRule("binary", ClassMap(("a", "b")), (0, 255))
    with pytest.raises(DataError, match=r"^holds the value 1, but the 2 classes have the values 0, 255\."):
        binary.to_indices(np.array([[0, 1]], np.uint8))
    color = LabelRule("color", ClassMap(("a", "b"), (BLACK, RED)))
    message = r"^holds the value \(30, 30, 200\), but the 2 classes have the values \(0, 0, 0\), \(200, 30, 30\)\."
    with pytest.raises(DataError, match=message):
        color.to_indices(np.array([[BLACK, BLUE]], np.uint8))


def test_negative_values_are_not_taken_from_the_end_of_a_table() -> None:
    rule = LabelRule("binary", ClassMap(("a", "b")), (-1, 1))
    assert rule.to_indices(np.array([[-1, 1]], np.int8)).tolist() == [[0, 1]]
    with pytest.raises(DataError, match=r"^holds the value 255, but "):
        rule.to_indices(np.array([[1, 255]], np.uint8))


@pytest.mark.parametrize("kind", ["index", "binary", "instances"])
def test_colours_where_there_should_be_numbers_are_refused(kind: Any) -> None:
    rule = LabelRule(kind, ClassMap(("a", "b")), (0, 1) if kind == "binary" else ())
    message = rf'^holds colours, but the labels are of the kind "{kind}"; set labels = "color" in dataset\.toml\.$'
    with pytest.raises(DataError, match=message):
        rule.to_indices(np.array([[BLACK, RED]], np.uint8))
