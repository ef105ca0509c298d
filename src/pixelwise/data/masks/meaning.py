"""What the values of a data set's masks mean: what `dataset.toml` says, together with what the masks show."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pixelwise.core.classes import VOID, ClassMap, Color, default_colors, name_of_color, numbered
from pixelwise.core.config import LabelKind
from pixelwise.core.errors import DataError
from pixelwise.data.health.problems import Interpretation, Problem
from pixelwise.data.masks.evidence import (
    Evidence,
    Found,
    colors_recur,
    guess_kind,
    palette_conflicts,
)
from pixelwise.data.masks.faults import blended_values, problems_of_colors, problems_of_numbers, remarks
from pixelwise.data.masks.labels import LabelRule, pack_color, some, unpack
from pixelwise.data.sets.folder import Description

_DENSE = 0.9  # share of the numbers up to the highest that occur, where classes are numbered: a few may be missing


def interpret(description: Description, found: Found, allow: Collection[str] = ()) -> Interpretation:
    """What the masks of a data set mean.

    Args:
        description: what `dataset.toml` says.
        found: the masks' paths with what they hold.
        allow: codes of problems that do not stand in the way.

    Raises:
        DataError: `dataset.toml` contradicts itself, or the masks.
    """
    reading = _reading(description, found)
    evidence = Evidence.of(found, ignored_values(description, reading.kind == "color"))
    if reading.kind == "color":
        problems = [*reading.problems, *problems_of_colors(description, evidence)]
        why = reading.why
    else:
        reading = replace(reading, evidence=evidence)
        reading = _with_kind(description, reading)
        problems, why = [*reading.problems], reading.why
    if any(problem.severity == "error" and problem.code not in allow for problem in problems):
        return Interpretation(None, tuple(problems))
    rule, notes = _rule(description, evidence, reading.kind or "index")
    problems += remarks(rule, description, evidence)
    head = f"labels: {rule.kind} ({some(rule.classes.names)}): {'; '.join([why, *notes])}"
    return Interpretation(rule, tuple(problems), (head,))


@dataclass(frozen=True)
class _Reading:
    """How the masks are to be read, as far as it is known."""

    kind: LabelKind | None
    why: str
    problems: tuple[Problem, ...] = ()
    evidence: Evidence | None = None


def _reading(description: Description, found: Found) -> _Reading:
    """The kind of labels that dataset.toml or colours tell; None where the numbers have to."""
    if description.labels is not None or description.colors:
        # Classes of numbers may have colours, too, to be shown in; then the kind is named.
        said = description.labels or "color"
        key = "labels" if description.labels else "[colors]"
        conflicts = palette_conflicts(found) if said in ("index", "binary") else ()
        problems = (_differing_palettes(conflicts, f'dataset.toml says labels = "{said}"'),) if conflicts else ()
        return _Reading(said, f"dataset.toml says so ({key})", problems)
    if any(facts.is_color for _, facts in found):
        return _Reading("color", "masks hold colours")
    conflicts = palette_conflicts(found)
    if not conflicts:
        return _Reading(None, "")
    if colors_recur(Evidence.of(found)):
        problem = _differing_palettes(conflicts, "")
        return _Reading(
            "color", "the same numbers have other colours in other masks, so colours are labels", (problem,)
        )
    return _Reading(None, "", (_differing_palettes(conflicts, "their colours are too many to be the labels"),))


def _differing_palettes(files: tuple[Path, ...], because: str) -> Problem:
    message = "have palettes that give the same number to different colours, or a colour to different numbers"
    if not because:
        fix = 'Their colours are taken as the labels; if the numbers are, say labels = "index" in dataset.toml.'
        return Problem("palettes-differ", files, f"{message}.", fix, raised="warning")
    fix = (
        'If the colours are the labels, say labels = "color" in dataset.toml; `pixelwise doctor DATA --fix OUT` writes '
        "all masks with one palette. If the numbers are right, use --allow palettes-differ."
    )
    return Problem("palettes-differ", files, f"{message}, and {because}.", fix)


def ignored_values(description: Description, colors: bool) -> tuple[int, ...]:
    """The values that do not count, packed where the labels are colours.

    Raises:
        DataError: numbers are given where colours are the labels, or the other way round.
    """
    given = description.ignored
    if colors:
        numbers = [value for value in given if isinstance(value, int)]
        if numbers:
            shown = str(numbers) if len(numbers) > 1 else str(numbers[0])
            guess = numbers if len(numbers) == 3 else [224, 224, 192]
            raise DataError(
                f"dataset.toml: ignore = {shown}: the labels are colours, so name the colours that do not count, each "
                f"by its red, green and blue, as in ignore = [{guess}]."
            )
        return tuple(pack_color(value) for value in given if not isinstance(value, int))
    colors_given = [list(value) for value in given if not isinstance(value, int)]
    if colors_given:
        raise DataError(
            f"dataset.toml: ignore = {colors_given}: names colours, but the labels are numbers. Name the numbers that "
            'do not count, or say labels = "color".'
        )
    return tuple(value for value in given if isinstance(value, int))


def _with_kind(description: Description, reading: _Reading) -> _Reading:
    """The kind of labels of masks that hold numbers, and what is wrong with these."""
    evidence = reading.evidence
    assert evidence is not None
    if evidence.in_color and reading.kind is not None:
        raise DataError(
            f'masks: hold colours ({evidence.in_color[0]}), but dataset.toml says labels = "{reading.kind}"; '
            'set labels = "color" there.'
        )
    problems = [*reading.problems, *problems_of_numbers(description, evidence)]
    if reading.kind is None and len(evidence.values) >= 2:
        kind, why = guess_kind(evidence, len(description.classes or ()))
        if kind is None and not problems:
            problems.append(blended_values(evidence, len(evidence.values)))
        reading = replace(reading, kind=kind, why=why)
    return replace(reading, why=reading.why or "there is nothing else", problems=tuple(problems))


# The rule


def _rule(description: Description, evidence: Evidence, kind: LabelKind) -> tuple[LabelRule, list[str]]:
    """The rule of a kind, and what else is to be told."""
    if kind == "color":
        return _color_rule(description, evidence), []
    if kind == "instances":
        names = tuple(description.classes or ("background", "object"))
        if len(names) != 2:
            raise DataError(
                f'dataset.toml: labels = "instances" has 2 classes, but `classes` names {len(names)} ({some(names)}). '
                'Name the background and the objects, or say labels = "index" if the numbers are classes.'
            )
        classes = ClassMap(names, chosen_colors(description, names))
        return LabelRule(kind, classes, ignore=tuple(sorted(evidence.ignored))), []
    return _binary_rule(description, evidence) if kind == "binary" else _index_rule(description, evidence)


def chosen_colors(description: Description, names: Sequence[str]) -> tuple[Color, ...]:
    """The colours that dataset.toml gives to classes, and others for the rest."""
    colors = description.colors or {}
    return tuple(colors.get(name, default) for name, default in zip(names, default_colors(len(names)), strict=True))


def _binary_rule(description: Description, evidence: Evidence) -> tuple[LabelRule, list[str]]:
    values = list(evidence.values)
    if len(values) == 1:  # allowed to be empty
        values = sorted({values[0], values[0] + 1})
    if len(values) != 2:
        raise DataError(
            f"masks: binary labels have two values, but {len(values)} were found ({some(values)}). "
            "Threshold the masks (anti-aliased or JPEG-compressed edges do this), "
            "or set `labels` or `ignore` in dataset.toml."
        )
    names = tuple(description.classes or numbered(values))
    if len(names) != 2:
        raise DataError(
            f"masks: hold two values ({some(values)}), but dataset.toml names {len(names)} classes ({some(names)}). "
            'Name two, or say labels = "index" if further classes may occur.'
        )
    classes = ClassMap(names, chosen_colors(description, names))
    return LabelRule("binary", classes, tuple(values), tuple(sorted(evidence.ignored))), []


def _index_rule(description: Description, evidence: Evidence) -> tuple[LabelRule, list[str]]:
    ignore, values, notes = set(evidence.ignored), list(evidence.values), []
    if description.ignore is None and description.classes is None and VOID in values:
        ignored, note = _custom([value for value in values if value != VOID])
        notes.append(note)
        ignore |= {VOID} if ignored else set()
    values = [value for value in values if value not in ignore]
    if not values:
        raise DataError("masks: no value is left that stands for a class; `ignore` in dataset.toml names all of them.")
    names, values, note = _named(description, values, ignore)
    notes += [note] if note else []
    if len(values) < 2:
        values, names = [values[0], values[0] + 1], (*names, "other") if len(names) == 1 else names
    classes = ClassMap(names, chosen_colors(description, names))
    return LabelRule("index", classes, tuple(values), tuple(sorted(ignore))), notes


def _custom(others: Sequence[int]) -> tuple[bool, str]:
    """Whether 255 means "not labelled" beside these values, and a sentence that says so."""
    few_gaps = len(others) > 1 and others[0] in (0, 1) and len(others) >= _DENSE * (others[-1] - others[0] + 1)
    if few_gaps and others[-1] < VOID - 1:
        return True, f"{VOID} counts nowhere, by custom; say ignore = [] in dataset.toml if it is a class"
    return False, f"{VOID} is a class, too; say ignore = {VOID} in dataset.toml if it means that nothing is labelled"


def _named(
    description: Description, values: Sequence[int], ignore: Collection[int]
) -> tuple[tuple[str, ...], list[int], str]:
    """The classes' names and values, and what else is to be told.

    Names belong to the values 0, 1, 2, ... where these hold all that occur, else to the values that occur, in ascending
    order.
    """
    if description.classes is None:
        return numbered(values), list(values), ""
    names = tuple(description.classes)
    places = [place for place in range(len(names)) if place not in ignore]
    inside = [value for value in values if value in places]
    if len(inside) == len(values):
        return tuple(names[place] for place in places), places, ""
    if len(names) == len(values):
        pairs = ", ".join(f"{value} = {name}" for value, name in list(zip(values, names, strict=True))[:8])
        return names, list(values), f"names go to the values in ascending order: {pairs}"
    if len(inside) >= 2:  # most likely a few masks are wrong, which are named one by one
        return tuple(names[place] for place in places), places, ""
    raise DataError(
        f"masks: hold {len(values)} values ({some(values)}), but dataset.toml names {len(names)} classes "
        f"({some(names)}). Name one for each value, in ascending order, or say which do not count (`ignore`)."
    )


def _color_rule(description: Description, evidence: Evidence) -> LabelRule:
    ignore = tuple(sorted(evidence.ignored))
    if description.colors:
        names = tuple(description.classes or description.colors)
        missing = [name for name in names if name not in description.colors]
        if missing:
            raise DataError(f"dataset.toml: [colors] has no colour for {', '.join(missing)}.")
        colors = tuple(description.colors[name] for name in names)
        twins = [name for name, color in zip(names, colors, strict=True) if colors.count(color) > 1]
        if twins:
            raise DataError(f"dataset.toml: [colors] gives the same colour to {', '.join(twins)}.")
        kept = [place for place, color in enumerate(colors) if pack_color(color) not in evidence.ignored]
        classes = ClassMap(tuple(names[place] for place in kept), tuple(colors[place] for place in kept))
        return LabelRule("color", classes, ignore=ignore)
    colors = tuple(unpack(value) for value in evidence.colors)
    names = tuple(description.classes or map(name_of_color, colors))
    if len(names) != len(colors):
        raise DataError(
            f"masks: hold {len(colors)} colours ({some(colors)}), but dataset.toml names {len(names)} classes "
            f"({some(names)}). List the classes' colours under [colors] there."
        )
    return LabelRule("color", ClassMap(names, colors), ignore=ignore)
