"""What the values in masks mean: inferred, said by the user, and refused where the two contradict each other."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import measure

from pixelwise.core.classes import IGNORE, ClassMap
from pixelwise.core.config import DataSettings
from pixelwise.core.errors import DataError
from pixelwise.data.sets.folder import Description
from pixelwise.data.sets.labels import MAX_COLORS, Evidence, LabelRule, guess_kind, make_rule, pack, unpack


def gathered(*masks: Any) -> Evidence:
    evidence = Evidence()
    for mask in masks:
        evidence.add(np.asarray(mask))
    return evidence


def scattered(values: list[int], dtype: type = np.uint8, size: int = 40) -> np.ndarray:
    """Noise of these values: none of them forms a single component."""
    return np.random.default_rng(0).choice(np.array(values, dtype), (size, size))


def squares(ids: list[int], dtype: type = np.uint16) -> np.ndarray:
    """One 4 x 4 square for each id, apart from each other."""
    mask = np.zeros((6, 6 * len(ids)), dtype)
    for place, value in enumerate(ids):
        mask[1:5, 6 * place + 1 : 6 * place + 5] = value
    return mask


def colored(*colors: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.array(colors, np.uint8), 30, axis=0)).reshape(-1, 10, 3)


BLACK, RED, BLUE, WHITE = (0, 0, 0), (200, 30, 30), (30, 30, 200), (255, 255, 255)


# The guess


@pytest.mark.parametrize(
    ("masks", "kind"),
    [
        ([scattered([0, 1])], "binary"),
        ([scattered([0, 255])], "binary"),
        ([scattered([0, 65535], np.uint16)], "binary"),
        ([np.full((3, 3), 7), np.full((3, 3), 9)], "binary"),
        ([scattered([0, 1, 2])], "index"),
        ([scattered([0, 1, 2, 255])], "index"),
        ([scattered([0, 1, 255])], "index"),
        ([scattered(list(range(20)))], "index"),
        ([squares([1, 2, 3, 4])] * 5, "index"),  # connected, but too few in a mask to be sure
        ([squares([1, 2, 3, 4, 5, 6])], "index"),  # too few at all
        ([squares([1, 2, 3, 4, 5, 6])] * 2, "instances"),
        ([squares([9, 8, 3, 4, 5, 60])] * 2, "instances"),
        ([scattered([0, 1, 300], np.uint16)], "instances"),
        ([colored(BLACK, RED)], "color"),
        ([scattered([0, 255]), colored(BLACK, RED)], "color"),
    ],
)
def test_the_kind_of_labels_is_seen(masks: list[np.ndarray], kind: str) -> None:
    assert guess_kind(gathered(*masks)) == kind


def test_a_single_value_is_refused() -> None:
    message = r"^masks: every pixel has the value 3; at least two classes are needed\. Are these the right masks\?$"
    with pytest.raises(DataError, match=message):
        guess_kind(gathered(np.full((4, 4), 3), np.full((2, 4), 3)))
    with pytest.raises(DataError, match=r"^masks: every pixel has the value 0; "):
        guess_kind(Evidence())


def test_edges_that_were_smoothed_are_no_classes() -> None:
    smooth = np.linspace(0, 255, 1600).astype(np.uint8)
    mask = np.random.default_rng(0).permutation(smooth).reshape(40, 40)
    with pytest.raises(DataError, match=r"^masks: hold 256 different values, .*smooth.*set `labels`"):
        make_rule(Description(), gathered(mask))
    assert len(make_rule(Description(labels="index", ignore=[]), gathered(mask // 2)).classes) == 128


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_the_evidence_counts_components(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = (rng.integers(0, 9, rng.integers(1, 20, 2)) * (rng.random() < 0.9)).astype(np.uint16)
    evidence = gathered(mask)
    ids = [value for value in np.unique(mask) if value > 0]
    expected = [measure.label(mask == value, connectivity=2).max() == 1 for value in ids] if len(ids) > 1 else []
    assert (evidence.objects, evidence.connected) == (len(expected), sum(expected))
    assert evidence.values == set(np.unique(mask).tolist())
    assert (evidence.masks, evidence.most_ids, evidence.largest) == (1, len(ids), mask.max())


# The rule


def test_binary_labels_are_two_values_whatever_they_are() -> None:
    for values in ([0, 1], [0, 255], [7, 9], [0, 65535]):
        rule = make_rule(Description(), gathered(scattered(values, np.uint16)))
        assert (rule.kind, rule.values, rule.classes.names) == ("binary", tuple(values), ("background", "object"))
        assert rule.to_indices(np.array([values, values[::-1]], np.uint16)).tolist() == [[0, 1], [1, 0]]
        assert rule.to_indices(np.array([values], np.uint16)).dtype == np.uint8


def test_binary_labels_may_have_an_ignored_third_value() -> None:
    rule = make_rule(Description(labels="binary", ignore=128), gathered(scattered([0, 128, 255])))
    assert rule.to_indices(np.array([[0, 128, 255]], np.uint8)).tolist() == [[0, IGNORE, 1]]


def test_index_labels_are_their_values_and_255_is_ignored_by_custom() -> None:
    rule = make_rule(Description(), gathered(scattered([0, 1, 2, 255])))
    assert rule.classes.names == ("class 0", "class 1", "class 2")
    assert rule.ignore == (255,)
    assert rule.to_indices(np.array([[0, 2, 255, 1]], np.uint8)).tolist() == [[0, 2, IGNORE, 1]]


def test_the_custom_gives_way_to_what_the_user_says() -> None:
    evidence = gathered(scattered([0, 1, 2, 255]))
    assert make_rule(Description(ignore=2, classes=["a", "b", "c"]), evidence).ignore == (2,)
    rule = make_rule(Description(classes=["a", "b", "c"]), evidence)
    with pytest.raises(DataError, match=r"^holds the value 255, but the 3 classes have the values 0 to 2\."):
        rule.to_indices(np.array([[255]], np.uint8))


def test_an_ignored_value_may_lie_among_the_classes_or_below_zero() -> None:
    rule = make_rule(Description(labels="index", ignore=[0, -1]), gathered(scattered([-1, 0, 1, 2], np.int16)))
    assert len(rule.classes) == 3
    assert rule.to_indices(np.array([[-1, 0, 1, 2]], np.int16)).tolist() == [[IGNORE, IGNORE, 1, 2]]


def test_instances_are_objects_whatever_their_ids() -> None:
    rule = make_rule(Description(), gathered(squares([1, 2, 3, 4, 5, 600]), squares([7, 2, 3, 4, 5, 6])))
    assert (rule.kind, rule.classes.names) == ("instances", ("background", "object"))
    assert rule.to_indices(np.array([[0, 5, 70_000]], np.uint32)).tolist() == [[0, 1, 1]]
    described = Description(labels="instances", classes=["slide", "nucleus"], ignore=65535)
    rule = make_rule(described, gathered(scattered([0, 1])))
    assert rule.classes.names == ("slide", "nucleus")
    assert rule.to_indices(np.array([[0, 5, 65535]], np.uint16)).tolist() == [[0, 1, IGNORE]]


def test_colour_labels_have_one_colour_a_class() -> None:
    rule = make_rule(Description(), gathered(colored(RED, BLACK), colored(BLUE, RED)))
    assert rule.kind == "color"
    assert rule.classes.names == ("#000000", "#1e1ec8", "#c81e1e")
    assert rule.classes.colors == (BLACK, BLUE, RED)
    assert rule.to_indices(np.array([[BLACK, RED, BLUE]], np.uint8)).tolist() == [[0, 2, 1]]
    assert rule.to_indices(np.zeros((1, 2), np.uint8)).tolist() == [[0, 0]]  # a mask of grey colours alone


def test_colours_may_be_named_in_any_order() -> None:
    colors = {"wall": RED, "floor": BLACK, "door": BLUE}
    rule = make_rule(Description(colors=colors), gathered(colored(RED, BLACK)))
    assert rule.classes == ClassMap(("wall", "floor", "door"), (RED, BLACK, BLUE))
    rule = make_rule(Description(colors=colors, classes=["floor", "wall"]), gathered(colored(RED, BLACK)))
    assert rule.classes == ClassMap(("floor", "wall"), (BLACK, RED))
    assert rule.to_indices(np.array([[BLACK, RED]], np.uint8)).tolist() == [[0, 1]]
    unnamed = make_rule(Description(labels="color", classes=["floor", "wall"]), gathered(colored(RED, BLACK)))
    assert unnamed.classes == rule.classes  # names in the order of the colours' numbers


def test_an_ignored_colour_is_given_as_a_number() -> None:
    void = int(pack(np.array(BLUE)))
    rule = make_rule(Description(ignore=void), gathered(colored(RED, BLACK, BLUE)))
    assert len(rule.classes) == 2
    assert rule.to_indices(np.array([[BLACK, BLUE, RED]], np.uint8)).tolist() == [[0, IGNORE, 1]]


def test_other_kinds_take_colours_to_show_their_classes() -> None:
    index = make_rule(Description(labels="index", colors={"class 1": RED}), gathered(scattered([0, 1, 2])))
    assert index.classes.colors[1] == RED
    assert index.classes.colors[2] == ClassMap(("a", "b", "c")).colors[2]
    binary = make_rule(Description(labels="binary", colors={"object": BLUE}), gathered(scattered([0, 1])))
    assert binary.classes.colors == (BLACK, BLUE)


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
        assert rule.to_indices(mask).dtype == np.uint8


def test_a_run_maps_values_as_its_config_says() -> None:
    for description, mask in (
        (Description(), scattered([0, 255])),
        (Description(), scattered([0, 1, 2, 255])),
        (Description(labels="instances"), squares([1, 2, 3])),
        (Description(), colored(BLACK, RED, BLUE)),
    ):
        rule = make_rule(description, gathered(mask))
        settings = DataSettings(
            labels=rule.kind,
            classes=list(rule.classes.names),
            colors=list(rule.classes.colors),
            values=list(rule.values),
            ignore=list(rule.ignore),
            channels=1,
            scale=1,
            normalization="fixed",
            mean=[0],
            std=[1],
        )
        again = LabelRule.from_settings(settings)
        assert again == rule
        assert np.array_equal(again.to_indices(mask), rule.to_indices(mask))


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_a_packed_colour_comes_back(color: tuple[int, int, int]) -> None:
    assert unpack(int(pack(np.array(color, np.uint8)))) == color


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
        rule.to_indices(colored(BLACK, RED))
    said = rf'^masks: hold colours, but dataset\.toml says labels = "{kind}"; set labels = "color" there\.$'
    with pytest.raises(DataError, match=said):
        make_rule(Description(labels=kind), gathered(colored(BLACK, RED)))


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
            Description(labels="binary"),
            [scattered(list(range(12)))],
            r"but 12 were found \(0, 1, 2, 3, 4, 5, 6, 7 \.\.\.\)\.",
        ),
        (Description(labels="binary"), [scattered([0])], r"but 1 were found \(0\)\."),
        (Description(labels="binary", ignore=1), [scattered([0, 1])], r"but 1 were found \(0\)\."),
        (
            Description(classes=["a", "b", "c"]),
            [scattered([0, 255])],
            r'^dataset\.toml: labels = "binary" has 2 classes, but `classes` names 3\.$',
        ),
        (
            Description(labels="instances", classes=["a"]),
            [squares([1, 2])],
            r'^dataset\.toml: labels = "instances" has 2 classes, but `classes` names 1\.$',
        ),
        (
            Description(labels="index"),
            [scattered([0])],
            r"^masks: at least two classes are needed, and only the value 0 occurs\.$",
        ),
        (Description(labels="index", classes=["a"]), [scattered([0, 1])], r"^masks: at least two classes are needed"),
        (Description(labels="index", ignore=300), [scattered([0, 255])], r"^classes: between 1 and 255 are possible"),
        (
            Description(classes=["a", "b", "c"]),
            [colored(BLACK, RED)],
            r'^dataset\.toml: labels = "color" has 2 classes, but `classes` names 3\.$',
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
            Description(ignore=int(pack(np.array(RED)))),
            [colored(BLACK, RED)],
            r"^masks: a single colour everywhere; at least two classes are needed\.$",
        ),
        (
            Description(),
            [np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)],
            rf"^masks: hold more than {MAX_COLORS} colours, so they are photographs or have anti-aliased edges\. ",
        ),
    ],
)
def test_contradictions_are_refused(description: Description, masks: list[np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_rule(description, gathered(*masks))


def test_white_alone_with_black_is_no_colour_mask() -> None:
    # What the reader makes of a black and white RGB file: one channel.
    rule = make_rule(Description(colors={"cell": WHITE, "rest": BLACK}), gathered(scattered([0, 255])))
    assert rule.to_indices(np.array([[0, 255]], np.uint8)).tolist() == [[1, 0]]
