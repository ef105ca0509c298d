"""Which split an image belongs to, where no folders say so: by a hash that never moves."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from pixelwise.core.errors import DataError, SettingError
from pixelwise.data.sets.pairs import Sample

SPLITS = ("train", "val", "test")
TRAIN_PART, VAL_PART = 0.70, 0.15  # the rest is for test

Splits = dict[str, tuple[Sample, ...]]


def complete(root: Path, splits: Splits, pattern: str | None) -> Splits:
    """Split what no folder splits: everything (whose name is ""), or train where there is no val.

    Args:
        root: of the data set, for messages.
        splits: the samples of each folder.
        pattern: regular expression; images whose stems give the same text (see `group_of`) stay together.

    Raises:
        DataError: there are too few images or groups.
    """
    if "" in splits:
        return _split_by_hash(root, splits[""], pattern, SPLITS)
    if "train" in splits and "val" not in splits:
        parts = _split_by_hash(root, splits["train"], pattern, ("train", "val"))
        return {**splits, **parts}
    return splits


def hash_of(name: str) -> float:
    """A number in [0, 1) that depends on the text alone: the same on every machine, forever.

    >>> round(hash_of("cell_000"), 6) == round(hash_of("cell_000"), 6) < 1
    True
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()  # a file's name need not be valid text
    return int.from_bytes(digest[:8], "big") / 2**64


def group_of(stem: str, pattern: str | None) -> str:
    r"""What must stay in one split: the first group (or whole match) of a regular expression, else the stem.

    >>> group_of("patient3_left", r"(patient\d+)_")
    'patient3'
    """
    match = re.search(pattern, stem) if pattern else None
    if match is None:
        return stem
    return (match.group(1) if match.groups() else match.group(0)) or stem


def _split_by_hash(root: Path, samples: Sequence[Sample], pattern: str | None, names: Sequence[str]) -> Splits:
    """Split by the hash of each sample's group; `train` and `val` never end up empty."""
    groups = {sample.name: group_of(sample.name, pattern) for sample in samples}
    places = {group: _place(hash_of(group), names) for group in groups.values()}
    _fill(root, places)
    return {name: tuple(s for s in samples if places[groups[s.name]] == name) for name in names}


def _place(value: float, names: Sequence[str]) -> str:
    if TRAIN_PART <= value < TRAIN_PART + VAL_PART:
        return "val"
    return "test" if value >= TRAIN_PART + VAL_PART and "test" in names else "train"


def _fill(root: Path, places: dict[str, str]) -> None:
    """If train or val is empty, move the group there whose hash is nearest to the border of the two."""
    if not places:
        return
    if len(places) < 2:
        raise DataError(
            f"{root}: contains a single image or group, which cannot serve for both training and validation. "
            "Add images, or make train/ and val/ yourself."
        )
    for empty, other in (("train", "val"), ("val", "train")):
        if empty not in places.values():
            candidates = [group for group, place in places.items() if place == other]
            if len(candidates) < 2:  # or the other would become empty
                candidates = [group for group, place in places.items() if place == "test"]
            places[min(candidates, key=lambda group: abs(hash_of(group) - TRAIN_PART))] = empty


def fold_of(root: Path, splits: Splits, pattern: str | None, folds: int, fold: int) -> Splits:
    """Pool train and val, and let one of `folds` equal parts be val: number `fold`, counted from 0.

    Raises:
        SettingError: there is no such fold, or there are fewer images or groups than folds.
    """
    pool = (*splits.get("train", ()), *splits.get("val", ()))
    groups = sorted({group_of(sample.name, pattern) for sample in pool}, key=hash_of)
    if not 2 <= folds <= len(groups):
        raise SettingError(f"data.folds = {folds}: {root} can be split into 2 to {len(groups)} folds.")
    if not 0 <= fold < folds:
        raise SettingError(f"data.fold = {fold}: must lie between 0 and {folds - 1}.")
    held_out = set(groups[fold::folds])
    val = tuple(sample for sample in pool if group_of(sample.name, pattern) in held_out)
    train = tuple(sample for sample in pool if group_of(sample.name, pattern) not in held_out)
    return {**splits, "train": train, "val": val}
