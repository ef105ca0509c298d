"""A run's meaning of labels, carried over to another data set by the classes' names."""

from collections.abc import Sequence
from dataclasses import replace

from pixelwise.core.classes import ClassMap, name_of_color, numbered
from pixelwise.core.config import LabelKind
from pixelwise.core.errors import DataError
from pixelwise.data.health.problems import Interpretation
from pixelwise.data.masks.evidence import Evidence, Found, palette_conflicts
from pixelwise.data.masks.labels import LabelRule, pack_color, some, unpack
from pixelwise.data.masks.meaning import ignored_values
from pixelwise.data.sets.folder import Description

_LEFT_OUT = -1  # instead of a class: the value does not occur


def carried_over(run: LabelRule, description: Description, found: Found) -> Interpretation:
    """What the masks of a data set mean in the classes of a run.

    Where `dataset.toml` names classes, they are the run's by name; where it names ignored values, these count nowhere.
    Whatever it leaves open is as it was in training.

    Args:
        run: the meaning that the run was trained with.
        description: what the data set's `dataset.toml` says.
        found: its masks with what they hold.

    Raises:
        DataError: a class occurs that the run does not have; the message lists those of both. Or the masks contradict
            each other, or `dataset.toml`.
    """
    names = tuple(description.classes or description.colors or ())
    kind = _kind(run, description, found) if names else run.kind
    if kind != "color" and (conflicts := palette_conflicts(found)):
        raise DataError(
            f"{conflicts[0]}: its palette and those of {len(conflicts) - 1} other masks give the same number to "
            'different colours. Name the colours in dataset.toml (labels = "color" and [colors]).'
        )
    own = ignored_values(description, kind == "color")
    if not names:
        return Interpretation(replace(run, ignore=tuple(sorted({*run.ignore, *own}))))
    evidence = Evidence.of(found, own)
    values = _values(run, description, names, kind, evidence)
    return _by_name(run, kind, dict(zip(names, values, strict=True)), evidence)


def _kind(run: LabelRule, description: Description, found: Found) -> LabelKind:
    if description.labels is not None:
        return description.labels
    if description.colors or any(facts.is_color for _, facts in found):
        return "color"
    two = len(description.classes or ()) == 2
    if run.kind == "color" or (run.kind == "instances" and not two):
        return "index"
    return run.kind if two else "index"


def _values(
    run: LabelRule, description: Description, names: Sequence[str], kind: LabelKind, evidence: Evidence
) -> Sequence[int]:
    """The value of each named class; of instances, 0 and 1."""
    occurring = list(evidence.colors if kind == "color" else evidence.values)
    if kind == "instances":
        _check(names, [0, 1], "instances have two")
        return [0, 1]
    if kind == "color" and description.colors:
        missing = [name for name in names if name not in description.colors]
        if missing:
            raise DataError(f"dataset.toml: [colors] has no colour for {', '.join(missing)}.")
        return [pack_color(description.colors[name]) for name in names]
    if len(names) == len(run.values) and kind == run.kind and set(occurring) <= set(run.values):
        return sorted(run.values)
    inside = [value for value in occurring if 0 <= value < len(names)]
    few_are_wrong = len(inside) >= 2 and len(names) != len(occurring)  # which are named one by one
    if kind != "color" and (len(inside) == len(occurring) or few_are_wrong):
        return range(len(names))
    shown = [unpack(value) if kind == "color" else value for value in occurring]
    _check(names, occurring, f"the masks hold {some(shown)}")
    return occurring


def _check(names: Sequence[str], values: Sequence[int], why: str) -> None:
    if len(names) != len(values):
        raise DataError(
            f"dataset.toml: names {len(names)} classes ({some(names)}), but {why}. Name one for each value, in "
            "ascending order, or say which values do not count (`ignore`)."
        )


def _by_name(run: LabelRule, kind: LabelKind, values: dict[str, int], evidence: Evidence) -> Interpretation:
    """The values of named classes as the run's classes."""
    own = {name: index for index, name in enumerate(run.classes.names)}
    if kind == run.kind and own.keys().isdisjoint(values) and _is_unnamed(run):  # its classes are known by their values
        by_value = run.known_values() if kind != "instances" else {0: 0, 1: 1}
        own = {name: by_value[value] for name, value in values.items() if value in by_value}
    occurs = evidence.colors if kind == "color" else evidence.values
    lists = f"the run's classes are {some(run.classes.names)}; those of the data are {some(list(values))}"
    strange = [name for name, value in values.items() if name not in own]
    there = strange if kind == "instances" else [name for name in strange if values[name] in occurs]
    if there:
        raise DataError(
            f"dataset.toml: the run does not have the class {', '.join(there)}, which occurs; {lists}. Give the same "
            "names to the same classes, or let the values of the others not count (`ignore`)."
        )
    targets = {value: own.get(name, _LEFT_OUT) for name, value in values.items()}
    kept = {value: index for value, index in targets.items() if index != _LEFT_OUT}
    ignore = set(evidence.ignored)
    if kind == run.kind:  # what did not count in training has no class here either
        ignore |= {value for value in run.ignore if value not in values.values()}
    rule = LabelRule(
        kind,
        ClassMap(run.classes.names, run.classes.colors),
        () if kind == "instances" else tuple(kept),
        tuple(sorted(ignore)),
        tuple(kept.values()),
    )
    differ = tuple(values) != run.classes.names
    return Interpretation(rule, told=(f"classes are compared by name: {lists}",) if differ else ())


def _is_unnamed(run: LabelRule) -> bool:
    """Whether nobody named the classes of a run."""
    hexadecimal = tuple(name_of_color(color) for color in run.classes.colors)
    names = hexadecimal if run.kind == "color" else numbered(run.values or (0, 1))
    return run.classes.names == names
