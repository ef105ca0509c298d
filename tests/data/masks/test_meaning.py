"""What the values in masks mean: seen, said by the user, and refused where the two contradict each other."""

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from tests.label_cases import (
    BLACK,
    BLUE,
    RED,
    WHITE,
    areas,
    colored,
    face,
    found_in,
    problem_of,
    rule_of,
    scattered,
    squares,
    through_jpeg,
)
from tests.trainings import three_classes

from pixelwise.core.classes import IGNORE, ClassMap
from pixelwise.core.config import make_config
from pixelwise.core.errors import DataError
from pixelwise.data.masks.evidence import MAX_COLORS
from pixelwise.data.masks.labels import LabelRule
from pixelwise.data.masks.meaning import interpret
from pixelwise.data.sets.folder import Description

SIX = [squares([1, 2, 3, 4, 5, 6], seed) for seed in range(6)]
FACES = [face(seed) for seed in range(6)]
CLASSES_150 = [scattered([*range(seed, 150, 2), 255], size=60) for seed in range(4)]


# The guess


@pytest.mark.parametrize(
    ("masks", "kind", "values"),
    [
        ([scattered([0, 1])], "binary", (0, 1)),
        ([scattered([0, 255])], "binary", (0, 255)),
        ([scattered([0, 65535], np.uint16)], "binary", (0, 65535)),
        ([np.full((3, 3), 7), np.full((3, 3), 9)], "binary", (7, 9)),
        ([scattered([0, 1, 2])], "index", (0, 1, 2)),
        ([scattered([0, 1, 2, 255])], "index", (0, 1, 2)),
        ([scattered([1, 2, 255])], "index", (1, 2)),
        ([scattered([0, 1, 255])], "index", (0, 1)),
        ([scattered(list(range(20)))], "index", tuple(range(20))),
        ([areas([0, 128, 255])], "index", (0, 128, 255)),
        ([areas([0, 64, 128, 255])], "index", (0, 64, 128, 255)),
        ([scattered([0, 1000, 2000], np.uint16)], "index", (0, 1000, 2000)),
        ([areas([0, 1000, 2000, 40000], dtype=np.uint16)], "index", (0, 1000, 2000, 40000)),
        ([scattered([0, 1000, 70_000], np.int32)], "index", (0, 1000, 70_000)),
        ([scattered([0, 1, 2, 3, 4, 5, 100, 200, 201])], "index", (0, 1, 2, 3, 4, 5, 100, 200, 201)),
        ([scattered([1, 2, 3])], "index", (1, 2, 3)),
        ([scattered([0, 1]), scattered([0, 2]), scattered([0, 1, 2])], "index", (0, 1, 2)),
        ([scattered([0, 1]), scattered([0, 2])], "index", (0, 1, 2)),
        ([squares([1, 2, 3, 4], seed) for seed in range(5)], "index", (0, 1, 2, 3, 4)),  # too few in a mask to be sure
        ([squares([1, 2, 3, 4, 5, 6])], "index", (0, 1, 2, 3, 4, 5, 6)),  # too few at all
        (SIX, "instances", ()),
        ([squares([9, 8, 3, 4, 5, 6, 7], seed) for seed in range(3)], "instances", ()),
        ([squares(list(range(1, 31)), seed) * 300 for seed in range(4)], "instances", ()),
        (FACES, "index", tuple(range(10))),
        ([np.kron(face(seed), np.eye(4, dtype=np.uint8)) for seed in range(6)], "index", tuple(range(10))),
        ([squares([1, 3, 7, 9, 12, 15, 20, 30], seed) for seed in range(6)], "index", (0, 1, 3, 7, 9, 12, 15, 20, 30)),
        ([squares(list(range(1 + seed, 300, 5)), seed) for seed in range(5)] * 3, None, ()),
        ([colored(BLACK, RED)], "color", None),
        ([scattered([0, 255]), colored(BLACK, RED)], "color", None),
    ],
)
def test_the_kind_of_labels_is_seen(masks: list[np.ndarray], kind: str | None, values: tuple[int, ...] | None) -> None:
    if kind is None:
        assert problem_of(Description(), *masks).code == "antialiased"
        return
    rule = rule_of(Description(), *masks)
    assert rule.kind == kind
    assert values is None or rule.values == values


def told(description: Description, *masks: Any) -> str:
    (line,) = interpret(description, found_in(*masks)).told
    return line


def test_people_are_told_what_the_guess_was_made_by() -> None:
    assert told(Description(), scattered([0, 128, 255])) == (
        "labels: index (value 0, value 128, value 255): the values 0, 128, 255 occur; 255 is a class, too; say "
        "ignore = 255 in dataset.toml if it means that nothing is labelled"
    )
    assert told(Description(), scattered([0, 1, 2, 255])).endswith(
        "255 counts nowhere, by custom; say ignore = [] in dataset.toml if it is a class"
    )
    assert told(Description(), *SIX) == (
        "labels: instances (background, object): 100% of the numbers form one connected part each, up to 6 in a mask"
    )
    assert "and each number lies at its own place in all masks, so numbers are no objects" in told(
        Description(), *FACES
    )
    assert "dataset.toml says so (labels)" in told(Description(labels="binary"), scattered([0, 1]))
    assert told(Description(), scattered(list(range(20)))).startswith(
        "labels: index (class 0, class 1, class 2, class 3, class 4, class 5, class 6, class 7 ... class 19): the "
    )


# The rule


def test_binary_labels_are_two_values_whatever_they_are() -> None:
    for values in ([0, 1], [0, 255], [7, 9], [0, 65535]):
        rule = rule_of(Description(), scattered(values, np.uint16))
        assert (rule.kind, rule.values, rule.classes.names) == ("binary", tuple(values), ("background", "object"))
        assert rule.to_indices(np.array([values, values[::-1]], np.uint16)).tolist() == [[0, 1], [1, 0]]
        assert rule.to_indices(np.array([values], np.uint16)).dtype == np.uint16


@pytest.mark.parametrize("labels", [None, "binary", "index"])
@pytest.mark.parametrize("classes", [None, ["a", "b"]])
def test_the_kind_is_guessed_without_ignored_values(labels: Any, classes: Any) -> None:
    rule = rule_of(Description(labels=labels, ignore=128, classes=classes), scattered([0, 128, 255]))
    assert (rule.kind, rule.values, rule.ignore) == (labels or "binary", (0, 255), (128,))
    assert rule.classes.names == tuple(classes or ("background", "object"))
    assert rule.to_indices(np.array([[0, 128, 255]], np.uint8)).tolist() == [[0, IGNORE, 1]]


def test_classes_are_named_by_their_values() -> None:
    assert rule_of(Description(), scattered([0, 1, 2])).classes.names == ("class 0", "class 1", "class 2")
    assert rule_of(Description(), scattered([1, 2, 3])).classes.names == ("value 1", "value 2", "value 3")
    rule = rule_of(Description(), scattered([0, 1000, 2000], np.uint16))
    assert rule.to_indices(np.array([[0, 2000, 1000]], np.uint16)).tolist() == [[0, 2, 1]]


def test_the_custom_gives_way_to_what_the_user_says() -> None:
    masks = scattered([0, 1, 2, 255])
    assert rule_of(Description(ignore=[]), masks).values == (0, 1, 2, 255)
    assert rule_of(Description(ignore=[]), masks).ignore == ()
    rule = rule_of(Description(classes=["a", "b", "c"]), masks)
    with pytest.raises(DataError, match=r"^holds the value 255, but the 3 classes have the values 0 to 2\. .*`ignore`"):
        rule.to_indices(np.array([[255]], np.uint8))


def test_many_numbered_classes_may_lack_a_few() -> None:
    rule = rule_of(Description(labels="index"), scattered([*range(7), *range(8, 40), 255], size=90))
    assert (len(rule.classes), rule.ignore) == (39, (255,))


def test_a_value_that_is_ignored_is_no_class_named_or_not() -> None:
    masks = scattered([0, 1, 2, 3])
    assert rule_of(Description(ignore=0), masks).values == (1, 2, 3)
    rule = rule_of(Description(ignore=0, classes=["none", "a", "b", "c"]), masks)
    assert (rule.values, rule.classes.names) == ((1, 2, 3), ("a", "b", "c"))
    rule = rule_of(Description(ignore=[0, -1], labels="index"), scattered([-1, 0, 1, 2], np.int16))
    assert rule.to_indices(np.array([[-1, 0, 1, 2]], np.int16)).tolist() == [[IGNORE, IGNORE, 0, 1]]


def test_names_belong_to_numbers_or_to_the_values_in_their_order() -> None:
    names = ["a", "b", "c"]
    assert rule_of(Description(classes=names), scattered([0, 1, 2])).values == (0, 1, 2)
    assert rule_of(Description(classes=names), scattered([0, 1])).values == (0, 1, 2)  # the third may come later
    rule = rule_of(Description(classes=names), scattered([0, 128, 255]))
    assert (rule.values, rule.classes.names) == ((0, 128, 255), ("a", "b", "c"))
    line = told(Description(classes=names), scattered([0, 128, 255]))
    assert "names go to the values in ascending order: 0 = a, 128 = b, 255 = c" in line


def test_more_than_two_names_rule_out_instances() -> None:
    assert rule_of(Description(classes=list("abcdefg")), *SIX).kind == "index"
    assert rule_of(Description(classes=["slide", "nucleus"]), *SIX).kind == "instances"


def test_instances_are_objects_whatever_their_ids() -> None:
    rule = rule_of(Description(), *SIX)
    assert rule.to_indices(np.array([[0, 5, 70_000]], np.uint32)).tolist() == [[0, 1, 1]]
    described = Description(labels="instances", classes=["slide", "nucleus"], ignore=65535)
    rule = rule_of(described, scattered([0, 1]))
    assert rule.classes.names == ("slide", "nucleus")
    assert rule.to_indices(np.array([[0, 5, 65535]], np.uint16)).tolist() == [[0, 1, IGNORE]]


def test_more_than_255_classes_are_possible() -> None:
    rule = rule_of(Description(labels="index"), np.arange(1024, dtype=np.uint16).reshape(32, 32))
    assert len(rule.classes) == 1024
    assert rule.to_indices(np.array([[0, 300, 1023]], np.uint16)).tolist() == [[0, 300, 1023]]


# Colours


def test_colour_labels_have_one_colour_a_class() -> None:
    rule = rule_of(Description(), colored(RED, BLACK), colored(BLUE, RED))
    assert rule.kind == "color"
    assert rule.classes.names == ("#000000", "#1e1ec8", "#c81e1e")
    assert rule.classes.colors == (BLACK, BLUE, RED)
    assert rule.to_indices(np.array([[BLACK, RED, BLUE]], np.uint8)).tolist() == [[0, 2, 1]]
    assert rule.to_indices(np.zeros((1, 2), np.uint8)).tolist() == [[0, 0]]  # a mask of grey colours alone


@pytest.mark.parametrize("labels", [None, "color"])
def test_a_colour_that_only_grey_files_hold_is_a_class(labels: Any) -> None:
    black_and_white = scattered([0, 255])
    rule = rule_of(Description(labels=labels), colored(RED, BLACK), black_and_white)
    assert rule.classes.colors == (BLACK, RED, WHITE)
    assert rule.to_indices(black_and_white)[0, :3].tolist() == (black_and_white[0, :3] // 255 * 2).tolist()
    named = rule_of(Description(classes=["rest", "roof", "road"]), colored(RED, BLACK), black_and_white)
    assert named.classes.names == ("rest", "roof", "road")


def test_colours_of_16_bits_are_those_of_8() -> None:
    mask = colored(RED, BLACK).astype(np.uint16) * 257
    assert rule_of(Description(), mask).classes.colors == (BLACK, RED)
    assert rule_of(Description(colors={"a": BLACK, "b": RED}), mask).to_indices(mask).max() == 1


def test_colours_may_be_named_in_any_order() -> None:
    colors = {"wall": RED, "floor": BLACK, "door": BLUE}
    rule = rule_of(Description(colors=colors), colored(RED, BLACK))
    assert rule.classes == ClassMap(("wall", "floor", "door"), (RED, BLACK, BLUE))
    rule = rule_of(Description(colors=colors, classes=["floor", "wall"]), colored(RED, BLACK))
    assert rule.classes == ClassMap(("floor", "wall"), (BLACK, RED))
    assert rule.to_indices(np.array([[BLACK, RED]], np.uint8)).tolist() == [[0, 1]]
    unnamed = rule_of(Description(labels="color", classes=["floor", "wall"]), colored(RED, BLACK))
    assert unnamed.classes == rule.classes  # names in the order of the colours' numbers


@pytest.mark.parametrize("colors", [None, {"a": BLACK, "b": RED}, {"a": BLACK, "b": RED, "void": BLUE}])
def test_a_colour_can_be_ignored(colors: Any) -> None:
    rule = rule_of(Description(ignore=[BLUE], colors=colors), colored(RED, BLACK, BLUE))
    assert len(rule.classes) == 2
    assert rule.to_indices(np.array([[BLACK, BLUE, RED]], np.uint8)).tolist() == [[0, IGNORE, 1]]


@pytest.mark.parametrize(
    ("ignore", "message"),
    [
        (255, r"^dataset\.toml: ignore = 255: the labels are colours, so name the colours that do not count, each by "
              r"its red, green and blue, as in ignore = \[\[224, 224, 192\]\]\.$"),
        ([1, 2, 3], r"ignore = \[1, 2, 3\]: the labels are colours, .* as in ignore = \[\[1, 2, 3\]\]\.$"),
        ([BLUE, 7], r"ignore = 7: the labels are colours"),
    ],
)  # fmt: skip
def test_numbers_are_no_colours_to_ignore(ignore: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        interpret(Description(ignore=ignore), found_in(colored(BLACK, RED, BLUE)))


def test_colours_are_no_numbers_to_ignore() -> None:
    message = (
        r"^dataset\.toml: ignore = \[\[30, 30, 200\]\]: names colours, but the labels are numbers\. Name the numbers"
    )
    with pytest.raises(DataError, match=message):
        interpret(Description(ignore=[BLUE]), found_in(scattered([0, 1])))


def test_other_kinds_take_colours_to_show_their_classes() -> None:
    index = rule_of(Description(labels="index", colors={"class 1": RED}), scattered([0, 1, 2]))
    assert index.classes.colors[1] == RED
    assert index.classes.colors[2] == ClassMap(("a", "b", "c")).colors[2]
    binary = rule_of(Description(labels="binary", colors={"object": BLUE}), scattered([0, 1]))
    assert binary.classes.colors == (BLACK, BLUE)


# Palettes

THREE = np.array([BLACK, RED, BLUE], np.uint8)
TURNED = THREE[[2, 0, 1]]


def in_color(seed: int, palette: np.ndarray) -> np.ndarray:
    """Indices into a palette, of a mask that shows the same colours with any of them."""
    order = [int(np.flatnonzero((palette == color).all(1))[0]) for color in THREE]
    return np.array(order, np.uint8)[areas([0, 1, 2], seed)]


def test_where_palettes_differ_colours_are_the_labels() -> None:
    palettes = [THREE, TURNED, THREE, TURNED]
    found = found_in(*(in_color(seed, palette) for seed, palette in enumerate(palettes)), palettes=palettes)
    read = interpret(Description(), found)
    assert read.meaning.kind == "color"
    assert [(one.code, one.severity, len(one.files)) for one in read.problems] == [
        ("palettes-differ", "warning", 4),
        ("color-coded", "note", 4),
    ]
    for seed, palette in enumerate(palettes):
        again = read.meaning.to_indices(in_color(seed, palette), palette)
        assert np.array_equal(THREE[[0, 2, 1]][again], THREE[areas([0, 1, 2], seed)])


def test_palettes_that_hold_the_used_colours_alone_differ_too() -> None:
    two = areas([0, 1])
    palettes = [THREE[[0, 1]], THREE[[0, 2]]] * 2
    read = interpret(Description(), found_in(two, two, two, two, palettes=palettes))
    assert (read.meaning.kind, len(read.meaning.classes)) == ("color", 3)


def test_equal_palettes_leave_numbers_the_labels() -> None:
    masks = [areas([0, 1, 2], seed) for seed in range(4)]
    longer = np.concatenate([THREE, [(9, 9, 9)]]).astype(np.uint8)
    read = interpret(Description(), found_in(*masks, palettes=[THREE, longer, THREE, longer]))
    assert (read.meaning.kind, [one.code for one in read.problems]) == ("index", ["palette"])


@pytest.mark.parametrize("labels", ["index", "binary"])
def test_differing_palettes_contradict_numbers(labels: Any) -> None:
    masks = [areas([0, 1], seed) for seed in range(4)]
    found = found_in(*masks, palettes=[THREE, TURNED] * 2)
    read = interpret(Description(labels=labels), found)
    assert read.meaning is None
    (problem,) = read.problems
    assert (problem.code, problem.severity) == ("palettes-differ", "error")
    assert f'and dataset.toml says labels = "{labels}".' in problem.message
    assert "--allow palettes-differ" in problem.fix
    assert "--fix OUT" in problem.fix
    assert interpret(Description(labels=labels), found, ["palettes-differ"]).meaning.kind == labels


def test_palettes_of_chance_are_refused() -> None:
    rng = np.random.default_rng(0)
    palettes = [rng.integers(0, 256, (3, 3)).astype(np.uint8) for _ in range(4)]
    read = interpret(Description(), found_in(*[areas([0, 1, 2])] * 4, palettes=palettes))
    assert read.meaning is None
    assert "their colours are too many to be the labels" in read.problems[0].message


# What a run keeps


def test_a_run_maps_values_as_its_config_says() -> None:
    for description, mask in (
        (Description(), scattered([0, 255])),
        (Description(), scattered([0, 1, 2, 255])),
        (Description(), scattered([0, 128, 255])),
        (Description(labels="instances"), squares([1, 2, 3])),
        (Description(), colored(BLACK, RED, BLUE)),
        (Description(ignore=[BLUE]), colored(BLACK, RED, BLUE)),
    ):
        rule = rule_of(description, mask)
        config = three_classes(data=rule.settings())
        again = LabelRule.from_settings(make_config(config.model_dump(mode="json", exclude_none=True)).data)
        assert again == rule
        assert np.array_equal(again.to_indices(mask), rule.to_indices(mask))


def test_runs_of_earlier_versions_mean_what_they_meant() -> None:
    index = LabelRule.from_settings(three_classes(data={"ignore": [255]}).data)
    assert (index.values, index.ignore) == ((0, 1, 2), (255,))
    packed = {"labels": "color", "colors": [BLACK, RED, BLUE], "ignore": [0xFFFFFF]}
    color = LabelRule.from_settings(three_classes(data=packed).data)
    assert color.to_indices(np.array([[WHITE, BLUE]], np.uint8)).tolist() == [[IGNORE, 2]]


# What the user says against what is there


@pytest.mark.parametrize(
    ("description", "masks", "message"),
    [
        (
            Description(labels="binary"),
            [scattered([0, 1, 2])],
            r"^masks: binary labels have two values, but 3 were found \(0, 1, 2\)\. Threshold the masks ",
        ),
        (
            Description(classes=["a", "b", "c"]),
            [scattered([0, 255])],
            r"^masks: hold 2 values \(0, 255\), but dataset\.toml names 3 classes \(a, b, c\)\. Name one for each",
        ),
        (
            Description(labels="binary", classes=["a", "b", "c"]),
            [scattered([0, 255])],
            r"^masks: hold two values \(0, 255\), but dataset\.toml names 3 classes \(a, b, c\)\. Name two",
        ),
        (
            Description(classes=["a", "b"]),
            [scattered([0, 128, 255])],
            r"^masks: hold 3 values \(0, 128, 255\), but dataset\.toml names 2 classes \(a, b\)\. .*`ignore`",
        ),
        (
            Description(labels="instances", classes=["a"]),
            [squares([1, 2])],
            r'^dataset\.toml: labels = "instances" has 2 classes, but `classes` names 1 \(a\)\. Name the background ',
        ),
        (
            Description(classes=["a", "b", "c"]),
            [colored(BLACK, RED)],
            r"^masks: hold 2 colours \(\(0, 0, 0\), \(200, 30, 30\)\), but dataset\.toml names 3 classes \(a, b, c\)\.",
        ),
        (
            Description(classes=["a", "b", "c"], colors={"a": BLACK, "c": RED}),
            [colored(BLACK, RED)],
            r"^dataset\.toml: \[colors\] has no colour for b\.$",
        ),
        (
            Description(colors={"a": BLACK, "b": RED, "c": RED}),
            [colored(BLACK, RED)],
            r"^dataset\.toml: \[colors\] gives the same colour to b, c\.$",
        ),
        (
            Description(labels="index"),
            [colored(BLACK, RED)],
            r'^masks: hold colours \(0\.png\), but dataset\.toml says labels = "index"; set labels = "color" there\.$',
        ),
    ],
)
def test_contradictions_are_refused(description: Description, masks: list[np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        interpret(description, found_in(*masks))


# What stands in the way


@pytest.mark.parametrize(
    ("description", "mask"),
    [
        (Description(), np.full((4, 4), 3)),
        (Description(labels="index"), np.zeros((4, 4), np.uint8)),
        (Description(labels="binary", ignore=1), scattered([0, 1])),
        (Description(ignore=[RED]), colored(BLACK, RED)),
    ],
)
def test_a_single_value_is_refused(description: Description, mask: np.ndarray) -> None:
    problem = problem_of(description, mask)
    assert problem.code == "empty-mask"
    assert "at least two classes are needed. Are these the right masks?" in str(problem)


def test_smoothed_edges_are_no_classes() -> None:
    smooth = cv2.GaussianBlur(areas([0, 255]), (9, 9), 2)
    assert len(np.unique(smooth)) > MAX_COLORS
    for description in (Description(), Description(labels="binary"), Description(classes=["a", "b"])):
        problem = problem_of(description, smooth)
        assert (problem.code, "different values" in problem.message) == ("antialiased", True)
    assert 'labels = "index"' in problem.fix
    assert "--fix OUT" in problem.fix
    assert "--allow antialiased" in problem.fix
    assert len(rule_of(Description(labels="index"), smooth).classes) == len(np.unique(smooth))
    assert rule_of(Description(), smooth, allow=["antialiased"]).kind == "index"


@pytest.mark.parametrize("description", [Description(), Description(labels="binary"), Description(classes=["a", "b"])])
def test_few_values_at_edges_are_no_classes_either(description: Description) -> None:
    half = [cv2.resize(areas([0, 255], seed), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for seed in range(4)]
    problem = problem_of(description, *half)
    assert str(problem).startswith(
        "0.png, 1.png, 2.png and 1 more: hold 5 different values, of which 3 are rare and lie at the edges of the "
        "others (0, 255), as smoothed (anti-aliased), resampled or JPEG-compressed edges have. Threshold the masks"
    )
    read = interpret(Description(labels="index"), found_in(*half))
    assert len(read.meaning.classes) == 5
    assert [(one.code, one.severity) for one in read.problems] == [("antialiased", "warning")]


@pytest.mark.parametrize("quality", [75, 95, 98])
@pytest.mark.parametrize("levels", [[0, 255], [0, 100, 200]])
def test_jpeg_masks_are_refused(levels: list[int], quality: int) -> None:
    masks = [through_jpeg(areas(levels, seed), quality) for seed in range(4)]
    assert problem_of(Description(), *masks, form="JPEG").code == "jpeg-mask"
    assert problem_of(Description(), *masks, form="PNG").code == "antialiased"


def test_jpeg_does_no_harm_where_two_values_are_left() -> None:
    assert interpret(Description(), found_in(scattered([0, 255]), form="JPEG")).meaning.kind == "binary"


def test_jpeg_harms_instances() -> None:
    assert problem_of(Description(labels="instances"), squares([1, 2, 3]), form="JPEG").code == "jpeg-mask"


@pytest.mark.parametrize("colors", [None, {"a": BLACK, "b": RED}])
def test_mixed_colours_are_refused(colors: Any) -> None:
    masks = [np.array([BLACK, RED], np.uint8)[areas([0, 1], seed)] for seed in range(4)]
    half = [cv2.resize(mask, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for mask in masks]
    problem = problem_of(Description(colors=colors), *half)
    assert (problem.code, "colours, of which 3 are rare" in problem.message) == ("antialiased", True)
    compressed = [through_jpeg(mask, 95) for mask in masks]
    assert problem_of(Description(colors=colors), *compressed, form="JPEG").code == "jpeg-mask"
    photograph = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    assert "[colors]" in problem_of(Description(), photograph).fix


def test_150_classes_are_told_how_to_be_declared() -> None:
    assert (
        'say labels = "index" in dataset.toml if each value is a class' in problem_of(Description(), *CLASSES_150).fix
    )
    rule = rule_of(Description(labels="index"), *CLASSES_150)
    assert (len(rule.classes), rule.ignore) == (150, (255,))
    assert len(rule_of(Description(classes=[f"c{n}" for n in range(150)], ignore=255), *CLASSES_150).classes) == 150


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([0, 1], [0, 255]),
        ([0, 1], [255]),
        ([0, 1], [0, 128]),
        ([0, 1], [0, 65535]),
        ([0, 255], [0, 65535]),
        ([0, 128], [0, 255]),
        ([0, 1, 2], [0, 127, 254]),
    ],
)
@pytest.mark.parametrize("labels", [None, "index", "binary"])
def test_two_conventions_are_refused(first: list[int], second: list[int], labels: Any) -> None:
    if labels == "binary" and len(first) > 2:
        return
    masks = [scattered(first, np.uint16), scattered(second, np.uint16), scattered(first, np.uint16)]
    problem = problem_of(Description(labels=labels), *masks)
    assert (problem.code, len(problem.files)) == ("mixed-conventions", 3)
    assert "2 masks (such as 0.png)" in problem.message
    assert "1 others (such as 1.png)" in problem.message
    assert "--fix OUT" in problem.fix
    assert "--allow mixed-conventions" in problem.fix


@pytest.mark.parametrize(
    ("description", "masks"),
    [
        (Description(), [scattered([0, 1]), scattered([0, 255]), scattered([0, 1, 255])]),
        (Description(), [scattered([0, 1]), scattered([0, 2]), scattered([0, 1, 2])]),
        (Description(), [scattered([0, 1, 2, 3]), scattered([0, 255]), scattered([0, 1])]),
        (Description(ignore=255), [scattered([0, 1]), scattered([0, 255])]),
        (Description(classes=["a", "b", "c"]), [scattered([0, 1]), scattered([0, 255])]),
        (Description(labels="instances"), [scattered([0, 1]), scattered([0, 255])]),
        (Description(), [scattered([0, 1000]), scattered([0, 2000]), scattered([0, 1000, 2000])]),
    ],
)
def test_files_that_lack_classes_are_no_second_convention(description: Description, masks: list[np.ndarray]) -> None:
    assert interpret(description, found_in(*masks)).meaning is not None


def test_numbers_beside_colours_are_refused() -> None:
    problem = problem_of(Description(), colored(BLACK, RED), scattered([0, 1, 2]))
    assert problem.code == "mixed-conventions"
    assert "1 masks (such as 1.png) hold numbers, 1 others (such as 0.png) hold colours." in problem.message


def test_labels_in_the_alpha_channel_are_found() -> None:
    (path, facts), *_ = found_in(np.zeros((4, 4), np.uint8))
    read = interpret(Description(), [(path, replace(facts, alpha=(0, 255)))])
    (problem,) = read.problems
    assert (read.meaning, problem.code) == (None, "alpha-labels")
    assert "hold the value 0 in every pixel, but their alpha channel (transparency) has other values" in problem.message


# What is only remarked


@pytest.mark.parametrize(
    ("description", "masks", "code"),
    [
        (Description(), [scattered([0, 255])], "values-0-255"),
        (Description(), [colored(BLACK, RED)], "color-coded"),
        (Description(labels="index"), SIX, "instances-as-classes"),
        (Description(labels="instances"), FACES, "classes-as-instances"),
        (Description(labels="instances"), [scattered([0, 1, 2, 3, 4, 5])] * 3, "classes-as-instances"),
        (Description(labels="instances"), [*SIX, np.array([[2, 0, 2]])], "disconnected-instance"),
    ],
)
def test_remarks(description: Description, masks: list[np.ndarray], code: str) -> None:
    read = interpret(description, found_in(*masks))
    assert read.meaning is not None
    assert [one.code for one in read.problems] == [code]
    if code == "disconnected-instance":
        assert [path.name for path in read.problems[0].files] == ["6.png"]


@pytest.mark.parametrize("masks", [[scattered([0, 1])], SIX, FACES, [scattered([0, 1, 2, 255])]])
def test_nothing_is_remarked_of_sound_masks(masks: list[np.ndarray]) -> None:
    assert interpret(Description(), found_in(*masks)).problems == ()
