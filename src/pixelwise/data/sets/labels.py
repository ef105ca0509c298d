"""From the values in a mask file to class indices, and the guess of what the values mean."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from pixelwise.core.classes import IGNORE, MAX_CLASSES, ClassMap, Color, default_colors, numbered
from pixelwise.core.config import DataSettings, LabelKind
from pixelwise.core.errors import DataError
from pixelwise.data.sets.folder import Description

MAX_COLORS = 64  # more colours or values than this, unless named, are anti-aliased edges or a photograph
COLOR_BASE = 256


@dataclass(frozen=True)
class LabelRule:
    """How the values of a mask become class indices 0 .. K - 1, and `IGNORE`.

    Fields:
        kind: binary, index, instances or color.
        classes: names and colours.
        values: binary only, the values of class 0 and class 1.
        ignore: values (color: packed by `pack`) that count nowhere.
    """

    kind: LabelKind
    classes: ClassMap
    values: tuple[int, ...] = ()
    ignore: tuple[int, ...] = ()
    _packed: tuple[int, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        if self.kind == "color":
            packed = tuple(int(value) for value in pack(np.array(self.classes.colors)))
            object.__setattr__(self, "_packed", packed)

    @classmethod
    def from_settings(cls, settings: DataSettings) -> "LabelRule":
        """The rule that a run was trained with."""
        classes = ClassMap(tuple(settings.classes), tuple(settings.colors))
        return cls(settings.labels, classes, tuple(settings.values), tuple(settings.ignore))

    def known_values(self) -> dict[int, int]:
        """Mask value -> class index, for all kinds but instances (whose ids are open-ended)."""
        if self.kind == "binary":
            return {self.values[0]: 0, self.values[1]: 1}
        if self.kind == "color":
            return {value: index for index, value in enumerate(self._packed)}
        return {index: index for index in range(len(self.classes)) if index not in self.ignore}

    def to_indices(self, mask: np.ndarray) -> np.ndarray:
        """Map a mask to class indices.

        Args:
            mask: H x W integers, or H x W x 3 RGB for colour labels.

        Returns:
            H x W uint8, class indices or `IGNORE`.

        Raises:
            DataError: a value stands for no class; up to five such values are named.
        """
        values = self._single(mask)
        indices = (values > 0).astype(np.uint8) if self.kind == "instances" else self._look_up(values)
        for value in self.ignore:
            indices[values == value] = IGNORE
        return indices

    def _single(self, mask: np.ndarray) -> np.ndarray:
        if self.kind == "color":
            return pack(mask if mask.ndim == 3 else np.repeat(mask[..., None], 3, axis=2))
        if mask.ndim == 3:
            raise DataError(
                f'holds colours, but the labels are of the kind "{self.kind}"; set labels = "color" in dataset.toml.'
            )
        return mask

    def _look_up(self, values: np.ndarray) -> np.ndarray:
        known = self.known_values()
        if values.dtype == np.uint8:  # one table look-up; the common case
            table = np.full(256, IGNORE, np.uint8)
            table[[v for v in known if 0 <= v < 256]] = [k for v, k in known.items() if 0 <= v < 256]
            indices = table[values]
        else:
            order = np.array(sorted(known), dtype=np.int64)
            place = np.searchsorted(order, values).clip(max=len(order) - 1)
            classes = np.array([known[int(value)] for value in order], dtype=np.uint8)
            indices = np.where(order[place] == values, classes[place], IGNORE).astype(np.uint8)
        self._refuse_unknown(values, indices)
        return indices

    def _refuse_unknown(self, values: np.ndarray, indices: np.ndarray) -> None:
        strange = indices == IGNORE
        if not strange.any():
            return
        found = [int(v) for v in np.unique(values[strange]) if int(v) not in self.ignore]
        if found:
            names = [str(unpack(value)) if self.kind == "color" else str(value) for value in found[:5]]
            raise DataError(
                f"holds the value{'s' if len(found) > 1 else ''} {', '.join(names)}{' ...' if len(found) > 5 else ''}, "
                f"but the {len(self.classes)} classes have {self._range()}. "
                "Correct the mask, name all classes, or set `ignore` in dataset.toml."
            )

    def _range(self) -> str:
        if self.kind == "index":
            return f"the values 0 to {len(self.classes) - 1}"
        known = [unpack(value) if self.kind == "color" else value for value in list(self.known_values())[:12]]
        return f"the values {', '.join(map(str, known))}"


def pack(colors: np.ndarray) -> np.ndarray:
    """... x 3 RGB -> ... int64, one number a colour."""
    wide = colors.astype(np.int64)
    return (wide[..., 0] * COLOR_BASE + wide[..., 1]) * COLOR_BASE + wide[..., 2]


def unpack(value: int) -> Color:
    """The colour of a packed number."""
    return value // COLOR_BASE**2, value // COLOR_BASE % COLOR_BASE, value % COLOR_BASE


@dataclass
class Evidence:
    """What the masks of a data set hold, gathered mask by mask, to guess the kind of labels from."""

    values: set[int] = field(default_factory=set)
    colors: set[int] = field(default_factory=set)
    largest: int = 0
    masks: int = 0
    objects: int = 0  # (mask, value > 0) pairs looked at
    connected: int = 0  # those of them that form a single connected component
    most_ids: int = 0  # most values > 0 in one mask

    def add(self, mask: np.ndarray) -> None:
        """Take one mask, H x W or H x W x 3, into account."""
        self.masks += 1
        if mask.ndim == 3:
            if len(self.colors) <= MAX_COLORS:
                self.colors |= {int(value) for value in np.unique(pack(mask))}
            return
        present = np.unique(mask)
        self.largest = max(self.largest, int(present[-1]))
        if len(self.values) <= 2 * MAX_CLASSES:
            self.values |= {int(value) for value in present}
        self._count_objects(mask, present[present > 0])

    def _count_objects(self, mask: np.ndarray, ids: np.ndarray) -> None:
        self.most_ids = max(self.most_ids, len(ids))
        if len(ids) < 2 or self.objects > 400:  # enough evidence; the rest would only cost time
            return
        boxes = ndimage.find_objects(mask.astype(np.int32), max_label=int(min(ids[-1], 2**16)))
        for value in ids[:50]:
            box = boxes[value - 1] if value <= len(boxes) else None
            if box is not None:
                self.objects += 1
                self.connected += int(ndimage.label(mask[box] == value, np.ones((3, 3)))[1] == 1)


def guess_kind(evidence: Evidence) -> LabelKind:
    """Infer what kind of labels the masks hold.

    Colour masks are "color"; two values in the whole set are "binary"; values that nearly always form one connected
    component each, with more than a few of them in a mask, are "instances"; the rest is "index".

    Raises:
        DataError: a single value everywhere, or so many that they are no classes.
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
            f"masks: hold {len(evidence.values)} different values, as smoothed (anti-aliased) or JPEG-compressed edges "
            "give. Threshold the masks, or set `labels` in dataset.toml."
        )
    return "index"


def make_rule(description: Description, evidence: Evidence) -> LabelRule:
    """Combine what `dataset.toml` says with what the masks show.

    Raises:
        DataError: the two contradict each other, or the masks make no sense.
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
        ignore.add(IGNORE)  # the field's custom: 255 is "not labelled"
    values = evidence.values - ignore
    names = tuple(description.classes or numbered(max(values, default=0) + 1))
    if len(names) < 2:
        raise DataError("masks: at least two classes are needed, and only the value 0 occurs.")
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
        raise DataError("masks: a single colour everywhere; at least two classes are needed.")
    colors = tuple(unpack(value) for value in colors_found)
    return LabelRule("color", ClassMap(names, colors), ignore=tuple(description.ignored))
