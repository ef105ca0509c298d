"""A run's classes in another data set: by name where it has names, else by the values of the training."""

from typing import Any

import numpy as np
import pytest
from tests.label_cases import BLACK, BLUE, RED, colored, found_in, scattered, squares

from pixelwise.core.classes import IGNORE, ClassMap
from pixelwise.core.errors import DataError
from pixelwise.data.masks.labels import LabelRule
from pixelwise.data.masks.mapping import carried_over
from pixelwise.data.sets.folder import Description

NAMES = ("sky", "road", "car")
RUN = LabelRule("index", ClassMap(NAMES), (0, 1, 2), (255,))
GAPS = LabelRule("index", ClassMap(NAMES), (0, 128, 255))
BINARY = LabelRule("binary", ClassMap(("rest", "cell")), (0, 255))
INSTANCES = LabelRule("instances", ClassMap(("rest", "cell")))
COLOR = LabelRule("color", ClassMap(NAMES, (BLACK, RED, BLUE)))
UNNAMED = LabelRule("binary", ClassMap(("background", "object")), (0, 1))
TURNED = {"classes": ["car", "sky", "road"]}


@pytest.mark.parametrize(
    ("run", "description", "masks", "table"),
    [
        # nothing is named: as in training
        (RUN, {}, [scattered([0, 1, 2])], {0: 0, 1: 1, 2: 2, 255: IGNORE}),
        (BINARY, {}, [np.full((3, 3), 255, np.uint8)], {0: 0, 255: 1}),
        # its own ignored values count, beside those of the run
        (RUN, {"ignore": 7}, [scattered([0, 1, 7])], {0: 0, 2: 2, 7: IGNORE, 255: IGNORE}),
        (RUN, {"ignore": 1}, [scattered([0, 1])], {0: 0, 1: IGNORE}),
        (BINARY, {"ignore": 128}, [scattered([0, 128, 255])], {0: 0, 128: IGNORE, 255: 1}),
        # names in another order
        (RUN, TURNED, [scattered([0, 1, 2])], {0: 2, 1: 0, 2: 1, 255: IGNORE}),
        (GAPS, TURNED, [scattered([0, 128, 255])], {0: 2, 128: 0, 255: 1}),
        (GAPS, TURNED, [scattered([0, 255])], {0: 2, 255: 1}),
        (RUN, TURNED, [scattered([10, 20, 30])], {10: 2, 20: 0, 30: 1}),
        (BINARY, {"classes": ["cell", "rest"]}, [scattered([0, 255])], {0: 1, 255: 0}),
        (BINARY, {"classes": ["cell", "rest"]}, [scattered([0, 1])], {0: 1, 1: 0}),
        (INSTANCES, {"classes": ["rest", "cell"]}, [squares([1, 2, 3])], {0: 0, 3: 1, 99: 1}),
        (INSTANCES, {"classes": ["cell", "rest"]}, [squares([1, 2, 3])], {0: 1, 3: 0}),
        # fewer or more classes, as long as they are not needed
        (RUN, {"classes": ["car", "sky"]}, [scattered([0, 1])], {0: 2, 1: 0}),
        (RUN, {"classes": [*TURNED["classes"], "tree"]}, [scattered([0, 1, 2])], {0: 2, 1: 0, 2: 1}),
        (RUN, {"classes": ["none", *NAMES], "ignore": 0}, [scattered([0, 1, 2, 3])], {0: IGNORE, 1: 0, 3: 2}),
        # nobody named the run's classes, so their values are known
        (UNNAMED, {"classes": ["rest", "cell"]}, [scattered([0, 1])], {0: 0, 1: 1}),
    ],
)
def test_values_become_the_runs_classes(
    run: LabelRule, description: dict[str, Any], masks: list[np.ndarray], table: dict[int, int]
) -> None:
    found = carried_over(run, Description(**description), found_in(*masks))
    rule = found.meaning
    assert rule.classes == run.classes
    values = np.array([list(table)], np.int32)
    assert rule.to_indices(values).tolist() == [list(table.values())]


def test_colours_stand_for_the_same_names() -> None:
    colors = {"car": BLACK, "road": BLUE, "sky": RED}
    rule = carried_over(RUN, Description(colors=colors), found_in(colored(BLACK, RED))).meaning
    assert rule.to_indices(np.array([[BLACK, RED, BLUE]], np.uint8)).tolist() == [[2, 0, 1]]
    rule = carried_over(COLOR, Description(colors=colors, ignore=[(1, 2, 3)]), found_in(colored(BLACK, RED))).meaning
    assert rule.to_indices(np.array([[BLACK, RED, (1, 2, 3)]], np.uint8)).tolist() == [[2, 0, IGNORE]]
    numbers = carried_over(COLOR, Description(**TURNED), found_in(scattered([0, 1, 2]))).meaning
    assert numbers.to_indices(np.array([[0, 1, 2]], np.uint8)).tolist() == [[2, 0, 1]]
    settings = LabelRule("color", COLOR.classes, COLOR.values[:2], (), (2, 0)).settings()
    assert (settings["targets"], len(settings["values"])) == ([2, 0], 2)


def test_lists_that_differ_are_shown() -> None:
    same = carried_over(RUN, Description(classes=list(NAMES)), found_in(scattered([0, 1, 2])))
    assert same.told == ()
    turned = carried_over(RUN, Description(**TURNED), found_in(scattered([0, 1, 2])))
    assert turned.told == (
        "classes are compared by name: the run's classes are sky, road, car; those of the data are car, sky, road",
    )


@pytest.mark.parametrize(
    ("run", "description", "masks", "message"),
    [
        (
            RUN,
            {"classes": ["sky", "road", "lorry"]},
            [scattered([0, 1, 2])],
            r"^dataset\.toml: the run does not have the class lorry, which occurs; the run's classes are sky, road, "
            r"car; those of the data are sky, road, lorry\. Give the same names to the same classes, or let the ",
        ),
        (RUN, {"classes": ["sky", "road"]}, [scattered([0, 10, 20])], r"\(sky, road\), but the masks hold 0, 10, 20\."),
        (INSTANCES, {"labels": "instances", "classes": ["rest"]}, [squares([1])], r"\(rest\), but instances have two"),
        (RUN, {"classes": ["sky"], "colors": {"road": BLACK}}, [colored(BLACK, RED)], r"\] has no colour for sky\.$"),
        (RUN, {"ignore": [BLUE]}, [scattered([0, 1])], r"\[\[30, 30, 200\]\]: names colours, but"),
        (COLOR, {"ignore": 3}, [colored(BLACK, RED)], r"ignore = 3: the labels are colours"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(
    run: LabelRule, description: dict[str, Any], masks: list[np.ndarray], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        carried_over(run, Description(**description), found_in(*masks))


def test_palettes_that_contradict_each_other_are_refused() -> None:
    palettes = [np.array([BLACK, RED], np.uint8), np.array([RED, BLACK], np.uint8)]
    found = found_in(scattered([0, 1]), scattered([0, 1]), palettes=palettes)
    with pytest.raises(
        DataError, match=r"^0\.png: its palette and those of 1 other masks give the same number to diff"
    ):
        carried_over(UNNAMED, Description(), found)
    assert carried_over(COLOR, Description(), found).meaning == COLOR
