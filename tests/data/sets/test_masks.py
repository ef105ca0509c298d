"""What the values in masks mean: inferred, said by the user, and refused where the two contradict each other."""

from itertools import pairwise
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
from pixelwise.data.sets.labels import LabelRule, pack
from pixelwise.data.sets.masks import MAX_COLORS, Evidence, MaskLabels, guess_kind, make_rule, mask_facts


def gathered(*masks: Any) -> Evidence:
    return Evidence.of([mask_facts(mask[None]) for mask in masks])


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
    assert (evidence.most_ids, evidence.largest) == (len(ids), mask.max())


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


@pytest.mark.parametrize("kind", ["index", "binary", "instances"])
def test_colours_where_there_should_be_numbers_are_refused(kind: Any) -> None:
    message = rf'^masks: hold colours, but dataset\.toml says labels = "{kind}"; set labels = "color" there\.$'
    with pytest.raises(DataError, match=message):
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
            r"^masks: at least two classes are needed, but only the value 0 occurs\. Are these the right masks\?$",
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
            r"^masks: every pixel has the same colour; at least two classes are needed\. Are these the right masks\?$",
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


# What is kept of a mask

THREE = LabelRule("index", ClassMap(("a", "b", "c")), ignore=(IGNORE,))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 5))
def test_thirds_share_the_rows_out(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 1, 2, IGNORE], np.uint8), (height, width))
    counts = MaskLabels().count(mask_facts(labels[None]), THREE)
    expected = np.zeros((3, 3), int)
    for row, column in np.ndindex(height, width):
        if labels[row, column] != IGNORE:
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


def test_a_photograph_is_refused_by_the_little_that_is_kept_of_it() -> None:
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
    with pytest.raises(DataError, match=rf"^masks: hold more than {MAX_COLORS} colours, so they are photographs"):
        make_rule(Description(), Evidence.of([facts]))


def test_values_that_are_not_kept_are_objects_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelwise.data.sets.masks._KEPT", 2)
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
    assert (mask_facts(mask[None]).objects, mask_facts(mask[None]).connected) == (3, 2)
    monkeypatch.setattr("pixelwise.data.sets.masks._LOOKED_AT", 10)
    facts = mask_facts(mask[None])
    assert (facts.objects, facts.connected, facts.most_ids) == (2, 2, 3)
