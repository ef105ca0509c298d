"""From the values in a mask file to class indices."""

from dataclasses import dataclass, field

import numpy as np

from pixelwise.core.classes import IGNORE, ClassMap, Color
from pixelwise.core.config import DataSettings, LabelKind
from pixelwise.core.errors import DataError

COLOR_BASE = 256


@dataclass(frozen=True)
class LabelRule:
    """How the values of a mask become class indices 0 .. K - 1, and `IGNORE`.

    Fields:
        kind: binary, index, instances or color.
        classes: names and colours.
        values: binary only, the values of class 0 and class 1.
        ignore: values (for color: packed by `pack`) that do not count.
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
        """Mask value -> class index, for all kinds but instances, whose ids may be any numbers."""
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
            DataError: a value does not stand for a class; up to five such values are named.
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
        indices: np.ndarray
        if values.dtype == np.uint8:  # the common case, in which a look-up in a table is enough
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
    """... x 3 RGB -> ... int64, one number for each colour."""
    wide = colors.astype(np.int64)
    return (wide[..., 0] * COLOR_BASE + wide[..., 1]) * COLOR_BASE + wide[..., 2]


def unpack(value: int) -> Color:
    """The colour of a packed number."""
    return value // COLOR_BASE**2, value // COLOR_BASE % COLOR_BASE, value % COLOR_BASE


def unpacked(values: np.ndarray) -> np.ndarray:
    """... packed numbers -> ... x 3 RGB."""
    return values[..., None] // (COLOR_BASE**2, COLOR_BASE, 1) % COLOR_BASE
