"""Classes, their colours, and the tail of an error message."""

import inspect

import pytest

from pixelwise.core import errors
from pixelwise.core.classes import MAX_CLASSES, ClassMap, default_colors, numbered
from pixelwise.core.errors import DataError, PixelwiseError, near


def test_a_map_chooses_colours_where_none_are_given() -> None:
    classes = ClassMap(("background", "cell", "wall"))
    assert len(classes) == 3
    assert classes.colors == default_colors(3)
    assert ClassMap(("a", "b"), ((1, 2, 3), (4, 5, 6))).colors == ((1, 2, 3), (4, 5, 6))


@pytest.mark.parametrize("count", [1, 2, 3, 255])
def test_default_colours_differ_are_bytes_and_begin_with_black(count: int) -> None:
    colors = default_colors(count)
    assert len(colors) == len(set(colors)) == count
    assert colors[0] == (0, 0, 0)
    assert all(type(value) is int and 0 <= value <= 255 for color in colors for value in color)
    assert (255, 255, 255) not in colors  # which means "ignored"
    assert default_colors(300)[:count] == colors  # a class keeps its colour when others are added


@pytest.mark.parametrize("count", [1, 2, 256])
def test_a_palette_has_the_classes_first_and_black_for_the_rest(count: int) -> None:
    classes = ClassMap(numbered(range(count)))
    palette = classes.palette
    assert palette is not None
    assert len(palette) == 3 * 256
    entries = [tuple(palette[3 * index : 3 * index + 3]) for index in range(256)]
    assert entries[:count] == list(classes.colors)
    assert all(entry == (0, 0, 0) for entry in entries[count:])


def test_masks_are_as_small_as_their_classes_let_them_be() -> None:
    small, large = ClassMap(numbered(range(256))), ClassMap(numbered(range(257)))
    assert (small.mask_type, large.mask_type, large.palette) == ("uint8", "uint16", None)


@pytest.mark.parametrize("count", [0, MAX_CLASSES + 1])
def test_the_number_of_classes_has_limits(count: int) -> None:
    with pytest.raises(DataError, match=rf"^classes: between 1 and 65534 are possible, {count} were given\.$"):
        ClassMap(tuple(f"class {index}" for index in range(count)))


def test_names_must_differ() -> None:
    with pytest.raises(DataError, match=r"^classes: names must differ, but these were given: a, b, a\.$"):
        ClassMap(("a", "b", "a"))


def test_each_class_needs_a_colour() -> None:
    with pytest.raises(DataError, match=r"^classes: 2 names but 1 colours\.$"):
        ClassMap(("a", "b"), ((0, 0, 0),))


def test_classes_that_nobody_named() -> None:
    assert numbered([0]) == ("class 0",)
    assert numbered([0, 1]) == numbered([0, 255]) == ("background", "object")
    assert numbered([0, 1, 2]) == ("class 0", "class 1", "class 2")
    assert numbered([1, 2, 3]) == ("value 1", "value 2", "value 3")


@pytest.mark.parametrize(
    ("name", "choices", "tail"),
    [
        ("unett", ["unet", "segnet", "pspnet"], "did you mean unet?"),
        ("widht", ["width", "depth"], "did you mean width?"),
        ("batch", ["batch"], "did you mean batch?"),
        ("abcd", ["abcx", "abcy", "abcz", "abcw"], "did you mean abcz or abcy or abcx?"),
        ("q", ["same", "valid"], "choose from: same, valid."),
        ("", ["same", "valid"], "choose from: same, valid."),
    ],
)
def test_near_names_what_looks_alike_or_all(name: str, choices: list[str], tail: str) -> None:
    assert near(name, iter(choices)) == tail


def test_every_error_of_the_house_is_one_for_users_and_is_explained() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
    assert len(kinds) == 7
    for kind in kinds:
        assert issubclass(kind, PixelwiseError)
        assert kind.__doc__
        assert kind.__name__ in (errors.__doc__ or "")
