"""What a run was trained on: kept beside it, so that a resumed training notices that its data have changed."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pixelwise.core.errors import DataError, RunError
from pixelwise.data.health.survey import Survey

SPLITS = ("train", "val")  # test takes no part in a training
NAMED = 3  # files in a message
State = dict[str, Any]


def state_of(surveyed: Survey) -> State:
    """The names, sizes and contents of the images and labels of each split, and dataset.toml, for JSON."""
    description = surveyed.dataset.root / "dataset.toml"
    text = description.read_bytes() if description.is_file() else b""
    splits = {name: surveyed.of(name) for name in SPLITS if surveyed.dataset.splits.get(name)}
    return {
        "dataset.toml": hashlib.sha256(text).hexdigest()[:16],
        **{
            name: {
                fact.sample.name: [fact.pages, fact.height, fact.width, fact.channels, fact.digest, fact.label_digest]
                for fact in facts
            }
            for name, facts in splits.items()
        },
    }


def check_unchanged(path: Path, surveyed: Survey, allow: Collection[str]) -> list[str]:
    """Compare the data with those that a run began with.

    Args:
        path: where `state_of` was kept; a run without it was made before it was kept, and is believed.
        surveyed: of the data now.
        allow: "data-changed" in it turns an error into what is returned.

    Returns:
        What has changed, a sentence each.

    Raises:
        DataError: something has, and is not allowed to. RunError: the file cannot be read.
    """
    if not path.is_file():
        return []
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        changes = list(_changes(before, json.loads(json.dumps(state_of(surveyed)))))
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise RunError(f"{path}: cannot be read. Delete it to resume without comparing the data.") from error
    if changes and "data-changed" not in allow:
        raise DataError(
            f"{surveyed.dataset.root}: has changed since this run began: {'; '.join(changes)}. Bring the data back as "
            "they were, start a new run (with --init for its weights), or go on with --allow data-changed."
        )
    return changes


def _changes(before: State, now: State) -> Iterator[str]:
    if before["dataset.toml"] != now["dataset.toml"]:
        yield "dataset.toml differs"
    for split in SPLITS:
        old, new = before.get(split, {}), now.get(split, {})
        both = sorted(old.keys() & new.keys())
        yield from _named(split, "no longer there", sorted(old.keys() - new.keys()))
        yield from _named(split, "new", sorted(new.keys() - old.keys()))
        yield from _named(split, "of another size", [name for name in both if old[name][:4] != new[name][:4]])
        same_size = [name for name in both if old[name][:4] == new[name][:4]]
        yield from _named(split, "with other pixels", _differ(old, new, same_size, 4))
        yield from _named(split, "with other labels", _differ(old, new, same_size, 5))


def _differ(old: Mapping[str, Any], new: Mapping[str, Any], names: list[str], place: int) -> list[str]:
    return [name for name in names if old[name][place] != new[name][place]]


def _named(split: str, what: str, names: list[str]) -> Iterator[str]:
    if names:
        shown = ", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")
        yield f"{len(names)} image{'s' * (len(names) > 1)} of {split} {what} ({shown})"
