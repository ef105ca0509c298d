"""From the values in a mask file to class indices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixelwise.core.classes import IGNORE, ClassMap, Color
from pixelwise.core.config import DataSettings, LabelKind
from pixelwise.core.errors import DataError

COLOR_BASE = 256
_UNKNOWN = IGNORE - 1  # in a table of classes: the value stands for none
_SHOWN = 12  # values or colours of a list in a message


@dataclass(frozen=True)
class LabelRule:
    """How the values of a mask become class indices 0 .. K - 1, and `IGNORE`.

    Colours are one number each, made by `pack`.

    Fields:
        kind: binary, index, instances or color.
        classes: names and colours.
        values: those that stand for classes. Left out, index has 0 .. K - 1, color has the classes' colours; instances
            have none: every number above 0 is an object.
        ignore: values that do not count.
        targets: the class of each value (of instances: of 0, and of all above). Left out, it is the value's place.
    """

    kind: LabelKind
    classes: ClassMap
    values: tuple[int, ...] = ()
    ignore: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind == "instances":
            return
        if not self.values:
            in_order = tuple(range(len(self.classes)))
            values = tuple(map(pack_color, self.classes.colors)) if self.kind == "color" else in_order
            object.__setattr__(self, "values", values)
        if not self.targets and len(self.values) != len(self.classes):
            raise DataError(
                f"data.values: there are {len(self.values)} values for {len(self.classes)} classes "
                f"({some(self.classes.names)}). Give one for each class."
            )

    @classmethod
    def from_settings(cls, settings: DataSettings) -> "LabelRule":
        """The rule that a run was trained with; of runs from before colours could be ignored as such, too."""
        ignore = tuple(value if isinstance(value, int) else pack_color(value) for value in settings.ignore)
        values = tuple(settings.values)
        return cls(settings.labels, ClassMap.of(settings), values, ignore, tuple(settings.targets))

    def settings(self) -> dict[str, Any]:
        """What a run keeps of it, in section `data`."""
        colors = self.kind == "color"
        return {
            "labels": self.kind,
            "classes": list(self.classes.names),
            "colors": list(self.classes.colors),
            "values": [] if colors and not self.targets else list(self.values),
            "ignore": [unpack(value) if colors else value for value in self.ignore],
            "targets": list(self.targets),
        }

    def known_values(self) -> dict[int, int]:
        """Mask value -> class index, for all kinds but instances, whose ids may be any numbers."""
        targets = self.targets or range(len(self.values))
        return {value: index for value, index in zip(self.values, targets, strict=True) if value not in self.ignore}

    def to_indices(self, mask: np.ndarray, palette: np.ndarray | None = None) -> np.ndarray:
        """Map a mask to class indices.

        Args:
            mask: H x W integers, or H x W x 3 RGB for colour labels.
            palette: entries x 3 uint8, the colours of a mask's numbers; only colour labels look at them.

        Returns:
            H x W uint16, class indices or `IGNORE`.

        Raises:
            DataError: a value does not stand for a class; up to five such values are named.
        """
        if self.kind == "color":
            return self.look_up(packed(mask, palette))
        if mask.ndim == 3:
            raise DataError(
                f'holds colours, but the labels are of the kind "{self.kind}"; set labels = "color" in dataset.toml.'
            )
        return self.look_up(mask)

    def to_values(self, classes: np.ndarray) -> np.ndarray:
        """What masks of the training hold for these classes; of instances, whose ids say nothing, the classes.

        Args:
            classes: ... of 0 to K - 1.

        Returns:
            ... of the values' smallest type, or ... x 3 uint8 RGB for colour labels.
        """
        if self.kind == "instances":
            return classes
        if self.kind == "color":
            return np.asarray(np.array(self.classes.colors, np.uint8)[classes])
        smallest = np.result_type(*(np.min_scalar_type(value) for value in self.values))
        return np.asarray(np.array(self.values, smallest)[classes])

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """Class indices of values (of colours: packed), as `to_indices`."""
        if self.kind == "instances":
            below, above = self.targets or (0, 1)
            indices = np.where(values > 0, np.uint16(above), np.uint16(below))
            for value in self.ignore:
                indices[values == value] = IGNORE
            return indices
        known = {**self.known_values(), **dict.fromkeys(self.ignore, IGNORE)}
        if values.dtype in (np.uint8, np.uint16):  # the common case, in which a look-up in a table is enough
            table = np.full(np.iinfo(values.dtype).max + 1, _UNKNOWN, np.uint16)
            inside = {value: index for value, index in known.items() if 0 <= value < len(table)}
            table[list(inside)] = list(inside.values())
            indices = table[values]
        else:
            order = np.array(sorted(known), dtype=np.int64)
            place = np.searchsorted(order, values).clip(max=len(order) - 1)
            classes = np.array([known[int(value)] for value in order], dtype=np.uint16)
            indices = np.where(order[place] == values, classes[place], np.uint16(_UNKNOWN))
        self._refuse_unknown(values, indices)
        return indices

    def _refuse_unknown(self, values: np.ndarray, indices: np.ndarray) -> None:
        strange = indices == _UNKNOWN
        if not strange.any():
            return
        found = [self._shown(int(value)) for value in np.unique(values[strange])[:6]]
        raise DataError(
            f"holds the value{'s' if len(found) > 1 else ''} {', '.join(found[:5])}{' ...' if len(found) > 5 else ''}, "
            f"but the {len(self.classes)} classes have {self._range()}. "
            "Correct the mask, name all classes, or set `ignore` in dataset.toml."
        )

    def _shown(self, value: int) -> str:
        return str(unpack(value)) if self.kind == "color" else str(value)

    def _range(self) -> str:
        values = list(self.known_values())
        if self.kind == "index" and without_gaps(values):
            return f"the values {values[0]} to {values[-1]}"
        return f"the values {', '.join(self._shown(value) for value in values[:_SHOWN])}"


def pack(colors: np.ndarray) -> np.ndarray:
    """... x 3 RGB -> ... int64, one number for each colour."""
    wide = colors.astype(np.int64)
    return (wide[..., 0] * COLOR_BASE + wide[..., 1]) * COLOR_BASE + wide[..., 2]


def pack_color(color: Sequence[int]) -> int:
    """The number of one colour.

    >>> pack_color((0, 1, 2))
    258
    """
    return int(pack(np.array(color)))


def unpack(value: int) -> Color:
    """The colour of a packed number."""
    return value // COLOR_BASE**2, value // COLOR_BASE % COLOR_BASE, value % COLOR_BASE


def unpacked(values: np.ndarray) -> np.ndarray:
    """... packed numbers -> ... x 3 RGB."""
    return values[..., None] // (COLOR_BASE**2, COLOR_BASE, 1) % COLOR_BASE


def packed(mask: np.ndarray, palette: np.ndarray | None = None) -> np.ndarray:
    """The colours of a mask as numbers: of H x W x 3 RGB, of H x W indices of a palette, or of H x W grey values.

    Raises:
        DataError: an index lies beyond the palette.

    >>> packed(np.array([[0, 1]]), np.array([[0, 0, 0], [0, 1, 2]])).tolist()
    [[0, 258]]
    """
    if mask.ndim == 3:
        return pack(eight_bit_range(mask))
    if palette is None:
        return eight_bit_range(mask).astype(np.int64) * (COLOR_BASE**2 + COLOR_BASE + 1)
    if mask.size and int(mask.max()) >= len(palette):
        raise DataError(f"holds the number {mask.max()}, but its palette has {len(palette)} colours. Save it again.")
    return np.asarray(pack(palette)[mask])


def eight_bit_range(colors: np.ndarray) -> np.ndarray:
    """Colours of 0 to 255: of 16 bits, which files hold as 257 or 256 times as much, the upper eight."""
    return colors >> 8 if colors.dtype.itemsize > 1 and colors.size and int(colors.max()) > 255 else colors


def without_gaps(values: Sequence[int], starts: Sequence[int] = (0, 1)) -> bool:
    """Whether ascending values follow one another without a gap, from one of the starts.

    >>> without_gaps([1, 2, 3]), without_gaps([0, 2]), without_gaps([5, 6])
    (True, False, False)
    """
    return bool(values) and values[0] in starts and values[-1] - values[0] == len(values) - 1


def some(values: Sequence[Any]) -> str:
    """A list for people, shortened where it is long.

    >>> some(range(3)), some(range(20))
    ('0, 1, 2', '0, 1, 2, 3, 4, 5, 6, 7 ... 19')
    """
    texts = [str(value) for value in values]
    return ", ".join(texts) if len(texts) <= _SHOWN else f"{', '.join(texts[:8])} ... {texts[-1]}"
