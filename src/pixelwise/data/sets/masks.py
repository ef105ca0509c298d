"""Masks: what they hold, and a guess of what their values mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from skimage.measure import label

from pixelwise.core.classes import IGNORE, MAX_CLASSES, ClassMap, Color, default_colors, numbered
from pixelwise.core.config import LabelKind
from pixelwise.core.errors import DataError
from pixelwise.data.files.readers import read_mask
from pixelwise.data.sets.folder import Description
from pixelwise.data.sets.pairs import Sample
from pixelwise.data.sets.labels import LabelRule, pack, unpack, unpacked

MAX_COLORS = 64  # more colours or values than this, unless named, come from anti-aliased edges or a photograph
_KEPT = 512  # values of a mask, both of the lowest and of the highest; more than there can be classes
_LOOKED_AT = 2048  # pixels; side of the middle part of a page in which objects are looked for


@dataclass(frozen=True)
class MaskFacts:
    """What one mask holds: V values and their numbers of pixels. A photograph has more values than are kept."""

    shape: tuple[int, int, int]  # pages, height, width
    is_color: bool
    values: np.ndarray  # V, ascending; colours packed
    counts: np.ndarray  # 3 x V pixels in the top, middle and bottom third
    others: np.ndarray  # 3 numbers of pixels whose values are not kept
    objects: int = 0  # (page, value > 0) pairs that may be objects
    connected: int = 0  # those of them that form a single connected component
    most_ids: int = 0  # most values > 0 on one page


class MaskLabels:
    """Masks as the labels of a data set: the target of a sample is the path of its mask."""

    def read(self, sample: Sample, axes: str | None) -> MaskFacts:
        """What a mask holds.

        Raises:
            DataError: the file cannot be read, or is not a mask.
        """
        return mask_facts(read_mask(sample.target, axes))

    def meaning(self, description: Description, facts: Sequence[MaskFacts]) -> LabelRule:
        """What the values mean, according to `dataset.toml` and to what the masks show.

        Raises:
            DataError: the two contradict each other, or the masks have no valid meaning.
        """
        return make_rule(description, Evidence.of(facts))

    def count(self, facts: MaskFacts, meaning: LabelRule) -> np.ndarray:
        """3 x K pixels of each class in the top, middle and bottom third.

        Raises:
            DataError: a value does not stand for a class.
        """
        values = unpacked(facts.values) if facts.is_color else facts.values
        indices = meaning.to_indices(values[None])[0]
        if facts.others.any() and meaning.kind != "instances":
            raise DataError(f"holds more than {len(values)} values, of which most are ignored. Is it a mask?")
        rows = [np.bincount(indices, row, IGNORE + 1)[: len(meaning.classes)] for row in facts.counts]
        counts = np.stack(rows).astype(np.int64)
        counts[:, -1] += facts.others  # in masks of instances, these are objects
        return counts


def mask_facts(mask: np.ndarray) -> MaskFacts:
    """What a mask, P x H x W or P x H x W x 3, holds."""
    is_color = mask.ndim == 4
    height = mask.shape[1]
    edges = [0, -(-height // 3), -(-2 * height // 3), height]
    thirds = [_histogram(mask[:, top:bottom], is_color) for top, bottom in pairwise(edges)]
    values = np.unique(np.concatenate([third[0] for third in thirds]))
    counts = np.zeros((3, len(values)), np.int64)
    for row, (found, pixels) in zip(counts, thirds, strict=True):
        row[np.searchsorted(values, found)] = pixels
    middle = slice(_KEPT, max(_KEPT, len(values) - _KEPT))
    kept = np.delete(values, middle), np.delete(counts, middle, axis=1), counts[:, middle].sum(1)
    # Colours are classes, and numbers too large for classes are objects; their shapes need not be looked at.
    evidence = (0, 0, 0) if is_color or values[-1] > MAX_CLASSES else _objects(mask)
    return MaskFacts(mask.shape[:3], is_color, *kept, *evidence)


def _histogram(mask: np.ndarray, is_color: bool) -> tuple[np.ndarray, np.ndarray]:
    """The values of a mask, ascending, and their numbers of pixels."""
    if is_color:
        mask = pack(mask)
    if mask.dtype in (np.uint8, np.uint16):  # far faster than sorting
        counts = np.bincount(mask.ravel())
        values = np.flatnonzero(counts)
        return values.astype(mask.dtype), counts[values]
    return np.unique(mask, return_counts=True)


def _objects(mask: np.ndarray) -> tuple[int, int, int]:
    """`MaskFacts.objects`, `connected` and `most_ids` of P x H x W values."""
    objects = connected = most_ids = 0
    for page in mask:
        values = page.clip(0).astype(np.uint8)
        ids = int(np.count_nonzero(np.bincount(values.ravel())[1:]))
        most_ids = max(most_ids, ids)
        if ids > 1:
            components = _components(values)
            objects += int(np.count_nonzero(components))
            connected += int(np.count_nonzero(components == 1))
    return objects, connected, most_ids


def _components(page: np.ndarray) -> np.ndarray:
    """The number of connected components of the values 1, 2, ... in the middle of a page."""
    rows, columns = (slice(max(0, length - _LOOKED_AT) // 2, (length + _LOOKED_AT) // 2) for length in page.shape)
    middle = page[rows, columns]
    labels, count = label(middle, connectivity=2, return_num=True)  # type: ignore[no-untyped-call]  # scikit-image's
    values = np.zeros(count + 1, page.dtype)
    values[labels] = middle  # all pixels of a component have the same one
    return np.bincount(values)[1:]


@dataclass(frozen=True)
class Evidence:
    """What the masks of a data set hold, to guess the kind of labels from."""

    values: frozenset[int] = frozenset()
    colors: frozenset[int] = frozenset()
    largest: int = 0
    objects: int = 0  # as in `MaskFacts`
    connected: int = 0
    most_ids: int = 0

    @classmethod
    def of(cls, facts: Sequence[MaskFacts]) -> "Evidence":
        """What all masks show together; values are gathered until there are too many for classes."""
        values: set[int] = set()
        colors: set[int] = set()
        for one in facts:
            found, enough = (colors, MAX_COLORS) if one.is_color else (values, 2 * MAX_CLASSES)
            if len(found) <= enough:
                found.update(one.values.tolist())
        return cls(
            frozenset(values),
            frozenset(colors),
            max((int(one.values[-1]) for one in facts if not one.is_color), default=0),
            sum(one.objects for one in facts),
            sum(one.connected for one in facts),
            max((one.most_ids for one in facts), default=0),
        )


def guess_kind(evidence: Evidence) -> LabelKind:
    """Guess what kind of labels the masks hold.

    Colour masks are "color"; two values in the whole set are "binary"; values that nearly always form one connected
    component each, with more than a few of them in a mask, are "instances"; the rest is "index".

    Raises:
        DataError: there is a single value everywhere, or too many for classes.
    """
    if evidence.colors:
        return "color"
    if len(evidence.values) < 2:
        raise DataError(
            f"masks: every pixel has the value {min(evidence.values, default=0)}; at least two classes are needed. "
            "Are these the right masks?"
        )
    if len(evidence.values) == 2:
        return "binary"
    mostly_connected = evidence.objects >= 10 and evidence.connected >= 0.9 * evidence.objects
    if evidence.largest > MAX_CLASSES or (mostly_connected and evidence.most_ids >= 5):
        return "instances"
    if len(evidence.values) > MAX_COLORS:
        raise DataError(
            f"masks: hold {len(evidence.values)} different values, as from smoothed (anti-aliased) or JPEG-compressed "
            "edges. Threshold the masks, or set `labels` in dataset.toml."
        )
    return "index"


def make_rule(description: Description, evidence: Evidence) -> LabelRule:
    """Combine what `dataset.toml` says with what the masks show.

    Raises:
        DataError: the two contradict each other, or the masks have no valid meaning.
    """
    kind = description.labels or ("color" if description.colors else guess_kind(evidence))
    if kind == "color":
        return _color_rule(description, evidence)
    if evidence.colors and not evidence.values:
        raise DataError(f'masks: hold colours, but dataset.toml says labels = "{kind}"; set labels = "color" there.')
    if kind == "instances":
        names = tuple(description.classes or ("background", "object"))
        _check_count(kind, names, 2)
        return LabelRule(kind, ClassMap(names), ignore=tuple(description.ignored))
    if kind == "binary":
        return _binary_rule(description, evidence)
    return _index_rule(description, evidence)


def _check_count(kind: str, names: Sequence[str], count: int) -> None:
    if len(names) != count:
        raise DataError(f'dataset.toml: labels = "{kind}" has {count} classes, but `classes` names {len(names)}.')


def _chosen_colors(description: Description, names: Sequence[str]) -> tuple[Color, ...]:
    colors = description.colors or {}
    defaults = default_colors(len(names))
    return tuple(colors.get(name, default) for name, default in zip(names, defaults, strict=True))


def _binary_rule(description: Description, evidence: Evidence) -> LabelRule:
    values = sorted(evidence.values - set(description.ignored))
    if len(values) != 2:
        shown = ", ".join(map(str, values[:8])) + (" ..." if len(values) > 8 else "")
        raise DataError(
            f"masks: binary labels have two values, but {len(values)} were found ({shown}). "
            "Threshold the masks (anti-aliased or JPEG-compressed edges do this), "
            "or set `labels` or `ignore` in dataset.toml."
        )
    names = tuple(description.classes or numbered(2))
    _check_count("binary", names, 2)
    return LabelRule(
        "binary",
        ClassMap(names, _chosen_colors(description, names)),
        tuple(values),
        tuple(description.ignored),
    )


def _index_rule(description: Description, evidence: Evidence) -> LabelRule:
    ignore = set(description.ignored)
    if description.ignore is None and description.classes is None and IGNORE in evidence.values:
        ignore.add(IGNORE)  # by custom, 255 means "not labelled"
    values = evidence.values - ignore
    names = tuple(description.classes or numbered(max(values, default=0) + 1))
    if len(names) < 2:
        raise DataError(
            "masks: at least two classes are needed, but only the value 0 occurs. Are these the right masks?"
        )
    return LabelRule("index", ClassMap(names, _chosen_colors(description, names)), ignore=tuple(sorted(ignore)))


def _color_rule(description: Description, evidence: Evidence) -> LabelRule:
    if description.colors:
        names = tuple(description.classes or description.colors)
        missing = [name for name in names if name not in description.colors]
        if missing:
            raise DataError(f"dataset.toml: [colors] has no colour for {', '.join(missing)}.")
        colors = tuple(description.colors[name] for name in names)
        twins = [name for name, color in zip(names, colors, strict=True) if colors.count(color) > 1]
        if twins:
            raise DataError(f"dataset.toml: [colors] gives the same colour to {', '.join(twins)}.")
        return LabelRule("color", ClassMap(names, colors), ignore=tuple(description.ignored))
    colors_found = sorted(evidence.colors - set(description.ignored))
    if len(colors_found) > MAX_COLORS:
        raise DataError(
            f"masks: hold more than {MAX_COLORS} colours, so they are photographs or have anti-aliased edges. "
            "Save them as PNG without smoothing, or list the classes' colours under [colors] in dataset.toml."
        )
    names = tuple(description.classes or ("#{:02x}{:02x}{:02x}".format(*unpack(value)) for value in colors_found))
    _check_count("color", names, len(colors_found))
    if len(names) < 2:
        raise DataError(
            "masks: every pixel has the same colour; at least two classes are needed. Are these the right masks?"
        )
    colors = tuple(unpack(value) for value in colors_found)
    return LabelRule("color", ClassMap(names, colors), ignore=tuple(description.ignored))
