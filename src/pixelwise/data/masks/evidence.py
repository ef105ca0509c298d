"""What the masks of a data set show together, and the kind of labels that it speaks for."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pixelwise.core.config import LabelKind
from pixelwise.data.masks.blends import blends, total
from pixelwise.data.masks.labels import some, unpacked, without_gaps
from pixelwise.data.masks.mask_facts import MaskFacts

MAX_INDEX = 255  # higher numbers are seldom those of classes
MAX_COLORS = 64  # more colours or values than this, unless named, come from anti-aliased edges or a photograph
_FEWEST_OBJECTS, _FEWEST_IDS = 10, 5  # objects in the set, and numbers in one mask, from which on they may be objects
_CONNECTED, _MOSTLY = 0.9, 0.75  # share of objects in one piece; and where numbers are too high for classes
_DENSE = 0.6  # share of the numbers up to the highest of each mask that occur, where objects are numbered
_FEWEST_MASKS = 4  # in which a number has to occur for its place to tell anything
_SAME_PLACE = 0.25  # of the variance of all places: that of a part's own places, at most
_RECURRING = 2.0  # files in which a palette's colour occurs on average, if colours are the labels
_HIGHEST = (254, 255, 65535)  # what masks of two values hold for white

Found = Sequence[tuple[Path, MaskFacts]]


@dataclass(frozen=True)
class Evidence:
    """What all masks show together; values that do not count are left out.

    Fields:
        found: each mask's path and facts.
        ignored: the values (colours: packed) that dataset.toml says do not count.
        values: of all masks that hold numbers, with their pixels.
        colors: of all masks, packed, with their pixels: a number counts as its grey, or as its palette's colour.
    """

    found: Found
    ignored: frozenset[int]
    values: dict[int, int]
    colors: dict[int, int]

    @classmethod
    def of(cls, found: Found, ignored: Collection[int] = ()) -> "Evidence":
        """Gather the values and colours of all masks."""
        values: Counter[int] = Counter()
        colors: Counter[int] = Counter()
        for _, facts in found:
            pixels = facts.counts.sum(0)
            if not facts.is_color:
                _add(values, facts.values, pixels)
            _add(colors, facts.colors, pixels)
        hidden = frozenset(ignored)
        return cls(found, hidden, _without(values, hidden), _without(colors, hidden))

    @property
    def in_color(self) -> list[Path]:
        """The masks with colours."""
        return [path for path, facts in self.found if facts.is_color]

    @property
    def files(self) -> tuple[Path, ...]:
        """All masks."""
        return tuple(path for path, _ in self.found)

    @property
    def in_jpeg(self) -> tuple[Path, ...]:
        """The masks that are JPEG files."""
        return tuple(path for path, facts in self.found if facts.format == "JPEG")

    def counted(self, facts: MaskFacts) -> frozenset[int]:
        """The values of one mask, without those that do not count."""
        return frozenset(facts.values.tolist()) - self.ignored

    def blended(self, colors: bool) -> frozenset[int]:
        """Values (or packed colours) that are no classes, but lie at the edges between those that are."""
        parts = [
            (facts.colors if colors else facts.values, facts.edges)
            for _, facts in self.found
            if facts.edges is not None and (colors or not facts.is_color) and _is_ascending(facts, colors)
        ]
        if not parts:
            return frozenset()
        values, edges = total([(found.astype(np.int64), edges) for found, edges in parts if edges is not None])
        kept = ~np.isin(values, list(self.ignored))
        values = values[kept]
        chosen = blends(unpacked(values) if colors else values, edges.of(kept), bool(self.in_jpeg))
        return frozenset(values[chosen].tolist())

    def objects(self) -> "Objects":
        """The numbers above 0 as objects."""
        count = whole = most = highest = occurrences = 0
        for _, facts in self.found:
            if facts.ids is None:
                continue
            kept = ~np.isin(facts.ids.values, list(self.ignored))
            count += int(facts.ids.pages[kept].sum())
            whole += int(facts.ids.connected[kept].sum())
            most = max(most, min(facts.ids.most, int(kept.sum())))
            highest += int(facts.ids.values[kept].max(initial=0))
            occurrences += int(kept.sum())
        recur = occurrences >= _RECURRING * len(self.values)
        numbered = max(self.values, default=0) <= max(MAX_INDEX, 2 * len(self.values))  # as classes would be
        return Objects(count, whole, most, are_parts(self), numbered and recur and occurrences < _DENSE * highest)


def _add(sums: Counter[int], values: np.ndarray, pixels: np.ndarray) -> None:
    for value, number in zip(values.tolist(), pixels.tolist(), strict=True):
        sums[value] += number


def _without(sums: Counter[int], hidden: frozenset[int]) -> dict[int, int]:
    return {value: sums[value] for value in sorted(sums) if value not in hidden}


def _is_ascending(facts: MaskFacts, colors: bool) -> bool:
    """Whether the colours of a mask are in the order of its values, as edges need it; a palette's need not be."""
    return not colors or not facts.has_palette


@dataclass(frozen=True)
class Objects:
    """Numbers above 0 as objects.

    Fields:
        count: pairs of a page and a number on it.
        connected: those that form a single connected component.
        most: most numbers on one page.
        are_parts: the same number lies at the same place in every mask, as those of a face's parts do.
        are_chosen: masks hold some of the same numbers, not 1, 2, 3, ... each, as masks of classes do.
    """

    count: int
    connected: int
    most: int
    are_parts: bool
    are_chosen: bool = False

    @property
    def share(self) -> float:
        """Of the numbers that are in one piece."""
        return self.connected / max(1, self.count)

    @property
    def are_enough(self) -> bool:
        """Whether there are enough of them to tell anything."""
        return self.count >= _FEWEST_OBJECTS and self.most >= _FEWEST_IDS

    @property
    def look_like_objects(self) -> bool:
        """Whether the numbers, which may as well be classes, are objects."""
        return self.are_enough and self.share >= _CONNECTED and not self.are_parts and not self.are_chosen

    @property
    def are_single(self) -> bool:
        """Whether numbers that are too many and too high for classes are objects, one or a few in each mask."""
        return self.count >= _FEWEST_OBJECTS and self.share >= _MOSTLY and not self.are_chosen

    def explain(self) -> str:
        """What was seen, for people."""
        return f"{self.share:.0%} of the numbers form one connected part each, up to {self.most} in a mask"


def are_parts(evidence: Evidence) -> bool:
    """Whether the same numbers lie at the same places in all masks.

    Measured by the variance of a number's own places relative to that of all places, in rows and in columns: numbers
    that were given from top to bottom share rows with those of other masks, but not columns.
    """
    places: dict[int, list[np.ndarray]] = {}
    for _, facts in evidence.found:
        if facts.ids is not None and facts.ids.places is not None:
            for value, place in zip(facts.ids.values.tolist(), facts.ids.places, strict=True):
                if value not in evidence.ignored and np.isfinite(place).all():
                    places.setdefault(value, []).append(place)
    often = [np.array(own) for own in places.values() if len(own) >= _FEWEST_MASKS]
    if len(often) < 3:
        return False
    every = np.concatenate(often)
    own = sum(((part - part.mean(0)) ** 2).sum(0) for part in often) / len(every)
    return bool((own <= _SAME_PLACE * every.var(0)).all())


def guess_kind(evidence: Evidence, names: int = 0) -> tuple[LabelKind | None, str]:
    """What kind of labels masks of numbers hold, and what says so; None if there are too many values for classes.

    Two values in the whole set are "binary"; numbers that nearly always form one connected component each, with more
    than a few of them in a mask, are "instances", unless each has its own place; the rest is "index".

    Args:
        evidence: of at least two values.
        names: of classes in dataset.toml; more than two rule out two kinds.
    """
    values, seen = list(evidence.values), evidence.objects()
    if len(values) == 2 and names in (0, 2):
        return "binary", f"the values {values[0]} and {values[1]} occur"
    occur = f"the values {some(values)} occur"
    if names > 2:
        return "index", f"{occur}, and dataset.toml names {names} classes"
    if seen.look_like_objects or (values[-1] > MAX_INDEX and len(values) > MAX_COLORS and seen.are_single):
        return "instances", seen.explain()
    if len(values) > MAX_COLORS:
        return None, occur
    if seen.are_enough and seen.share >= _CONNECTED:
        why = "lies at its own place in all masks" if seen.are_parts else "recurs in other masks, with gaps between"
        return "index", f"{occur}, and each number {why}, so numbers are no objects"
    return "index", occur


def palette_conflicts(found: Found) -> tuple[Path, ...]:
    """The masks whose palettes contradict each other in what they use; empty if none do.

    A number contradicts if it has two colours in the set; a colour, if it has two numbers in different files, but one
    in each.
    """
    shown = [(path, facts) for path, facts in found if facts.has_palette]
    colors: dict[int, set[int]] = {}
    numbers: dict[int, set[int]] = {}
    for value, color, is_only in _used(shown):
        colors.setdefault(value, set()).add(color)
        if is_only:
            numbers.setdefault(color, set()).add(value)
    odd_values = {value for value, own in colors.items() if len(own) > 1}
    odd_colors = {color for color, own in numbers.items() if len(own) > 1}
    if not odd_values and not odd_colors:
        return ()
    return tuple(
        path
        for path, facts in shown
        if not odd_values.isdisjoint(facts.values.tolist()) or not odd_colors.isdisjoint(facts.colors.tolist())
    )


def _used(shown: Found) -> Iterator[tuple[int, int, bool]]:
    """Each number that a palette's mask uses, its colour, and whether no other number of the mask has that colour."""
    for _, facts in shown:
        often = Counter(facts.colors.tolist())
        for value, color in zip(facts.values.tolist(), facts.colors.tolist(), strict=True):
            yield value, color, often[color] == 1


def colors_recur(evidence: Evidence) -> bool:
    """Whether the colours of a set's palettes may be its labels: few, each in several files."""
    uses = sum(len(set(facts.colors.tolist())) for _, facts in evidence.found)
    return 2 <= len(evidence.colors) <= MAX_COLORS and uses >= _RECURRING * len(evidence.colors)


def two_conventions(evidence: Evidence) -> tuple[tuple[Path, ...], tuple[Path, ...]] | None:
    """Masks that number classes 1, 2, ... and masks that spread them up to 255 or so, if no mask does both.

    Returns the two groups of files. What lacks classes alone is no second convention: the high values have to be as
    many as the low ones, far from them, and to occur in other files only.
    """
    held = [(path, evidence.counted(facts) - {0}) for path, facts in evidence.found if not facts.is_color]
    values = sorted(frozenset().union(*(own for _, own in held)))
    low = [value for value in values if value <= len(values)]
    high = [value for value in values if value > len(values)]
    if not low and len(high) == 2 and high[0] >= _far(high[:1]) and high[1] in _HIGHEST:  # as 0/128 beside 0/255
        low, high = high[:1], high[1:]
    elif not low or len(low) != len(high) or not without_gaps(low, (1,)) or high[0] < _far(high):
        return None
    groups = [tuple(path for path, own in held if own & set(part)) for part in (low, high)]
    mixed = any(own & set(low) and own & set(high) for _, own in held)
    return None if mixed else (groups[0], groups[1])


def _far(high: Sequence[int]) -> int:
    """What the lowest of spread values is at least: 255, 127, 85 or so for one, two, three of them, with some play."""
    return max(16, 100 // len(high))
