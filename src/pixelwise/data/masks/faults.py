"""What is wrong with the values of a set's masks, in the words of the table of problems."""

from pathlib import Path

from pixelwise.core.classes import VOID
from pixelwise.data.health.problems import Problem
from pixelwise.data.masks.evidence import MAX_COLORS, Evidence, Objects, two_conventions
from pixelwise.data.masks.labels import LabelRule, pack_color, some, unpack, without_gaps
from pixelwise.data.sets.folder import Description

_FIX = "`pixelwise doctor DATA --fix OUT`"
_LOW_GREYS = range(1, 31)  # no class is shown in a grey as dark as this, so it is a number
_PIECES = 0.5  # share of numbers in one piece, below which they are no objects


def problems_of_numbers(description: Description, evidence: Evidence) -> list[Problem]:
    """What stands in the way of reading masks of numbers.

    Args:
        description: what `dataset.toml` says; its `labels` may rule a suspicion out.
        evidence: of the masks, without the values that do not count.
    """
    if len(evidence.values) < 2:
        return [_empty(evidence)]
    problems = _smoothed(description, evidence)
    kind, names = description.labels, len(description.classes or ())
    named = names > 2 and names == len(evidence.values)
    groups = None if kind == "instances" or named else two_conventions(evidence)
    return problems + ([_two_conventions(evidence, *groups)] if groups else [])


def _empty(evidence: Evidence) -> Problem:
    hidden = tuple(path for path, facts in evidence.found if len(facts.alpha) > 1)
    value = min(evidence.values, default=0)
    if hidden:
        return Problem(
            "alpha-labels",
            hidden,
            f"hold the value {value} in every pixel, but their alpha channel (transparency) has other values, which "
            "seem to be the labels.",
            f"{_FIX} writes the alpha channel as the mask; or save it as a mask of its own.",
        )
    beside = f" beside what dataset.toml ignores ({some(sorted(evidence.ignored))})" if evidence.ignored else ""
    return Problem(
        "empty-mask",
        evidence.files,
        f"hold the value {value} in every pixel{beside}; at least two classes are needed.",
        "Are these the right masks? With --allow empty-mask they are taken as they are.",
    )


def _smoothed(description: Description, evidence: Evidence) -> list[Problem]:
    """Values that no class can have, unless dataset.toml says that they are classes."""
    kind, names, count = description.labels, len(description.classes or ()), len(evidence.values)
    if kind == "instances":
        return [blended_values(evidence, count)] if evidence.in_jpeg and count > 2 else []
    small = [value for value in evidence.values if value != VOID]
    if count <= MAX_COLORS and without_gaps(small):
        return []  # classes are numbered like this, edges are not
    blended = evidence.blended(colors=False)
    if not blended:
        return []
    said = kind == "index" or (names > 2 and names == count)
    problem = blended_values(evidence, count, blended=blended)
    return [Problem(problem.code, problem.files, problem.message, _SAID, raised="warning") if said else problem]


_SAID = "They are read as classes, because dataset.toml says so; look at a few masks to be sure."


def blended_values(
    evidence: Evidence, count: int, what: str = "values", blended: frozenset[int] = frozenset()
) -> Problem:
    """Masks with more values than there can be classes, or with `blended` values at the edges of others.

    Args:
        evidence: of the masks.
        count: different values, or colours, that they hold.
        what: "values" or "colours".
        blended: those of them that are no classes, if it is known.
    """
    colors = what == "colours"
    code = "jpeg-mask" if evidence.in_jpeg else "antialiased"
    rest = ""
    if blended:
        solid = [value for value in (evidence.colors if colors else evidence.values) if value not in blended]
        shown = some([unpack(value) if colors else value for value in solid])
        rest = f", of which {len(blended)} are rare and lie at the edges of the others ({shown})"
    files = tuple(
        path
        for path, facts in evidence.found
        if not blended or not blended.isdisjoint((facts.colors if colors else facts.values).tolist())
    )
    declare = (
        "list the classes' colours under [colors] in dataset.toml if they are few"
        if colors
        else 'say labels = "index" in dataset.toml if each value is a class, labels = "instances" if each is an object'
    )
    return Problem(
        code,
        evidence.in_jpeg or files,
        f"hold {count} different {what}{rest}, as smoothed (anti-aliased), resampled or JPEG-compressed edges have.",
        f"Threshold the masks and save them as PNG, or {declare}. {_FIX} gives each such pixel the nearest frequent "
        f"value; --allow {code} takes every value as a class.",
    )


def _two_conventions(evidence: Evidence, low: tuple[Path, ...], high: tuple[Path, ...]) -> Problem:
    values = list(evidence.values)
    smaller = some([value for value in values if any(_holds(evidence, path, value) for path in low)])
    larger = some([value for value in values if any(_holds(evidence, path, value) for path in high)])
    return Problem(
        "mixed-conventions",
        (*low[:2], *high[:1], *low[2:], *high[1:]),
        f"do not mean the same by their numbers: {len(low)} masks (such as {low[0].name}) hold {smaller}, {len(high)} "
        f"others (such as {high[0].name}) hold {larger}, and none holds both.",
        f"{_FIX} writes all masks with the same numbers. If they are different classes, name all of them in "
        "dataset.toml (`classes`), or use --allow mixed-conventions.",
    )


def _holds(evidence: Evidence, path: Path, value: int) -> bool:
    return any(value in evidence.counted(facts) for other, facts in evidence.found if other == path)


def problems_of_colors(description: Description, evidence: Evidence) -> list[Problem]:
    """What stands in the way of reading masks of colours.

    Args:
        description: what `dataset.toml` says; colours that it lists are classes.
        evidence: of the masks, without the colours that do not count.
    """
    known = {pack_color(color) for color in (description.colors or {}).values()}
    if len(evidence.colors) < 2 and not known:
        return [_empty_colors(evidence)]
    problems = _numbers_among_colors(evidence, known)
    blended = evidence.blended(colors=True) - known
    many = len(evidence.colors) > MAX_COLORS and not known and len(description.classes or ()) != len(evidence.colors)
    if blended or many:
        problems.append(blended_values(evidence, len(evidence.colors), "colours", blended))
    return problems


def _empty_colors(evidence: Evidence) -> Problem:
    return Problem(
        "empty-mask",
        evidence.files,
        "hold the same colour in every pixel that counts; at least two classes are needed.",
        "Are these the right masks?",
    )


def _numbers_among_colors(evidence: Evidence, known: set[int]) -> list[Problem]:
    """Masks of numbers (1, 2, 3: almost black) beside masks of colours."""
    colored = set(known).union(*(facts.colors.tolist() for _, facts in evidence.found if facts.is_color))
    odd = {value for value in _LOW_GREYS if pack_color((value, value, value)) not in colored}
    low = tuple(
        path
        for path, facts in evidence.found
        if not facts.is_color and not facts.has_palette and not odd.isdisjoint(facts.values.tolist())
    )
    high = tuple(evidence.in_color)
    if not low or not high:
        return []
    message = (
        f"do not mean the same: {len(low)} masks (such as {low[0].name}) hold numbers, {len(high)} others (such as "
        f"{high[0].name}) hold colours."
    )
    fix = (
        "Save all masks in the same way; with --allow mixed-conventions, each number is one more colour, almost black."
    )
    return [Problem("mixed-conventions", (*low[:2], *high[:1], *low[2:], *high[1:]), message, fix)]


# What does not stop a training


def remarks(rule: LabelRule, description: Description, evidence: Evidence) -> list[Problem]:
    """What is worth knowing of masks that can be read."""
    found = [*_doubts(rule, description, evidence)]
    if rule.kind == "color":
        message = "hold colours, which are taken as the classes; their table is kept in the run."
        found.append(Problem("color-coded", evidence.files, message, ""))
    elif palettes := tuple(path for path, facts in evidence.found if facts.has_palette):
        found.append(Problem("palette", palettes, "have a palette; its numbers are the labels, not its colours.", ""))
    if rule.kind == "binary" and rule.values == (0, VOID):
        message = "hold 0 and 255, which are read as two classes."
        found.append(Problem("values-0-255", evidence.files, message, ""))
    return found


def _doubts(rule: LabelRule, description: Description, evidence: Evidence) -> list[Problem]:
    """Numbers that look like objects where they are read as classes, and the other way round."""
    if rule.kind == "index" and description.labels == "index" and len(description.classes or ()) <= 2:
        seen = evidence.objects()
        if seen.look_like_objects:
            fix = 'Every number becomes a class. If they are objects, say labels = "instances" in dataset.toml.'
            message = f"look like numbered objects ({seen.explain()}), but dataset.toml says index."
            return [Problem("instances-as-classes", evidence.files, message, fix)]
    return _doubts_of_objects(evidence) if rule.kind == "instances" else []


def _doubts_of_objects(evidence: Evidence) -> list[Problem]:
    seen = evidence.objects()
    if seen.are_parts or (seen.count >= 10 and seen.share < _PIECES):
        return [_classes_as_instances(seen, evidence)]
    parted = tuple(
        path
        for path, facts in evidence.found
        if facts.ids is not None and (facts.ids.connected < facts.ids.pages).any()
    )
    if not parted:
        return []
    message = "hold numbers whose pixels form several separate parts, each of which counts as a part of one object."
    fix = f"If they are several objects, {_FIX} numbers the parts."
    return [Problem("disconnected-instance", parted, message, fix)]


def _classes_as_instances(seen: Objects, evidence: Evidence) -> Problem:
    why = "each number lies at its own place in all masks" if seen.are_parts else seen.explain()
    fix = 'All numbers above 0 are merged into one class. If they are classes, say labels = "index" in dataset.toml.'
    return Problem("classes-as-instances", evidence.files, f"look like numbered classes ({why}).", fix)
