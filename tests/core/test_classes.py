"""Classes, their colours, and the tail of an error message."""

import inspect

import pytest

from pixelwise.core import errors
from pixelwise.core.classes import IGNORE, MAX_CLASSES, ClassMap, default_colors, numbered
from pixelwise.core.errors import DataError, PixelwiseError, near


def test_a_map_chooses_colours_where_none_are_given() -> None:
    classes = ClassMap(("background", "cell", "wall"))
    assert len(classes) == 3
    assert classes.colors == default_colors(3)
    assert ClassMap(("a", "b"), ((1, 2, 3), (4, 5, 6))).colors == ((1, 2, 3), (4, 5, 6))


@pytest.mark.parametrize("count", [1, 2, 3, MAX_CLASSES])
def test_default_colours_differ_are_bytes_and_begin_with_black(count: int) -> None:
    colors = default_colors(count)
    assert len(colors) == len(set(colors)) == count
    assert colors[0] == (0, 0, 0)
    assert all(type(value) is int and 0 <= value <= 255 for color in colors for value in color)
    assert (255, 255, 255) not in colors  # which means "ignored"
    assert default_colors(MAX_CLASSES)[:count] == colors  # a class keeps its colour when others are added


@pytest.mark.parametrize("count", [1, 2, MAX_CLASSES])
def test_a_palette_has_the_classes_first_and_white_for_what_is_ignored(count: int) -> None:
    classes = ClassMap(tuple(numbered(count)) if count > 1 else ("all",))
    palette = classes.palette
    assert len(palette) == 3 * 256
    entries = [tuple(palette[3 * index : 3 * index + 3]) for index in range(256)]
    assert entries[:count] == list(classes.colors)
    assert entries[IGNORE] == (255, 255, 255)
    assert all(entry == (0, 0, 0) for entry in entries[count:IGNORE])


@pytest.mark.parametrize("count", [0, MAX_CLASSES + 1])
def test_the_number_of_classes_has_limits(count: int) -> None:
    with pytest.raises(DataError, match=rf"^classes: between 1 and 255 are possible, {count} were given\.$"):
        ClassMap(tuple(f"class {index}" for index in range(count)))


def test_names_must_differ() -> None:
    with pytest.raises(DataError, match=r"^classes: names must differ, but these were given: a, b, a\.$"):
        ClassMap(("a", "b", "a"))


def test_each_class_needs_a_colour() -> None:
    with pytest.raises(DataError, match=r"^classes: 2 names but 1 colours\.$"):
        ClassMap(("a", "b"), ((0, 0, 0),))


def test_classes_that_nobody_named() -> None:
    assert list(numbered(1)) == ["class 0"]
    assert list(numbered(2)) == ["background", "object"]
    assert list(numbered(3)) == ["class 0", "class 1", "class 2"]


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
    assert len(kinds) == 6
    for kind in kinds:
        assert issubclass(kind, PixelwiseError)
        assert kind.__doc__
        assert kind.__name__ in (errors.__doc__ or "")
