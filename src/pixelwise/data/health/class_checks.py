"""What is wrong with the classes of a data set: those that are missing, rare, or too small to be found.

K classes; the labels of an image are counted as a 3 x K array, the pixels of each class in its thirds.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pixelwise.data.health.examine import VANISHING, ImageFacts
from pixelwise.data.health.problems import Problem
from pixelwise.data.masks.labels import LabelRule

TINY, TINY_PIXELS = 0.5, 0.1  # shares of a class's objects, and of their pixels, from which on it counts
RARE = 0.001  # share of the labelled pixels below which a class is hardly there


def tiny_objects(facts: Sequence[ImageFacts], rule: LabelRule, scale: float) -> list[Problem]:
    """Classes most of whose objects vanish when the images are made smaller by `scale`."""
    level = round(-math.log2(scale)) if scale < 1 else 0
    known = [fact.areas for fact in facts if fact.areas is not None and len(fact.areas)]
    if not 1 <= level <= len(VANISHING) or not known:
        return []
    rows = np.concatenate(known)
    if rule.kind == "instances":
        rows[:, 0] = 1
    else:
        rows = rows[np.isin(rows[:, 0], list(rule.known_values()))]
    indices = rule.look_up(rows[:, 0])
    problems = []
    for index, name in enumerate(rule.classes.names):
        own = rows[indices == index]
        count, small = int(own[:, 1].sum()), int(own[:, 1 + level].sum())
        pixels, lost = int(own[:, 5].sum()), int(own[:, 5 + level].sum())
        if small > TINY * count and lost > TINY_PIXELS * pixels:  # specks of a class that is large otherwise are noise
            message = (
                f"{small} of {count} objects of the class '{name}' have fewer than {VANISHING[level - 1]} pixels, of "
                f"which hardly two are left at the planned scale {scale:g}."
            )
            fix = "Set data.scale=1 to keep them (a step then takes longer), or leave them if they do not matter."
            problems.append(Problem("tiny-objects", (), message, fix))
    return problems


def class_checks(splits: Mapping[str, Sequence[ImageFacts]], names: Sequence[str]) -> list[Problem]:
    """Classes that a split lacks, and classes with hardly any pixels."""
    counts: dict[str, np.ndarray] = {
        name: np.stack([fact.labels.sum(0) for fact in facts]).sum(0, dtype=np.int64)
        for name, facts in splits.items()
        if facts
    }
    if not counts:
        return []
    return [*_missing(counts, names), *_rare(counts, names)]


def _missing(counts: Mapping[str, np.ndarray], names: Sequence[str]) -> Iterator[Problem]:
    """A class that no split has is named once."""
    absent = {name for name, rows in zip(names, zip(*counts.values(), strict=True), strict=True) if not any(rows)}
    if absent:
        message = f"no mask of any split holds the class{_list(absent, names)}."
        fix = "It is predicted nowhere and stands outside of the mean; take it out of dataset.toml if it is not needed."
        yield Problem("missing-class", (), message, fix)
    for split, found in counts.items():
        lacking = {name for name, count in zip(names, found, strict=True) if not count} - absent
        if lacking and found.any():
            does = "cannot be learnt" if split == "train" else "is not measured there"
            message = f"the split '{split}' lacks the class{_list(lacking, names)}, which {does}."
            yield Problem("missing-class", (), message, "Divide the images in another way, or label more.")


def _list(chosen: set[str], names: Sequence[str]) -> str:
    ordered = [f"'{name}'" for name in names if name in chosen]
    return f"es {', '.join(ordered)}" if len(ordered) > 1 else f" {ordered[0]}"


def _rare(counts: Mapping[str, np.ndarray], names: Sequence[str]) -> Iterator[Problem]:
    if "train" not in counts or not counts["train"].sum():
        return
    shares = counts["train"] / counts["train"].sum()
    for name, share in zip(names, shares, strict=True):
        if 0 < share < RARE:
            message = f"the class '{name}' has only {share:.3%} of the labelled pixels of train."
            fix = "Label more of it, or raise train.balance, which centres patches on classes equally often."
            yield Problem("class-imbalance", (), message, fix)
