"""The classes of a data set: their names and colours, and the value that means "not labelled"."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

from pixelwise.core.config import DataSettings
from pixelwise.core.errors import DataError

IGNORE = 255
"""Class index of a pixel that counts nowhere: neither in a loss nor in a metric."""

MAX_CLASSES = 255

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassMap:
    """What the indices 0 to K - 1 of a label map mean.

    >>> ClassMap(("background", "cell")).colors[0]
    (0, 0, 0)
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...] = ()  # one RGB triple of 0..255 a class; chosen when empty

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= MAX_CLASSES:
            raise DataError(f"classes: between 1 and {MAX_CLASSES} are possible, {len(self.names)} were given.")
        if len(set(self.names)) != len(self.names):
            raise DataError(f"classes: names must differ, but these were given: {', '.join(self.names)}.")
        if not self.colors:
            object.__setattr__(self, "colors", default_colors(len(self.names)))
        if len(self.colors) != len(self.names):
            raise DataError(f"classes: {len(self.names)} names but {len(self.colors)} colours.")

    @classmethod
    def of(cls, settings: DataSettings) -> "ClassMap":
        """The classes of a run, from section `data` of its settings."""
        return cls(tuple(settings.classes), tuple(settings.colors))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def palette(self) -> list[int]:
        """Flat RGB palette of 256 entries for an index image; `IGNORE` is white."""
        flat = [value for color in self.colors for value in color]
        flat += [0] * (3 * 256 - len(flat))
        flat[3 * IGNORE : 3 * IGNORE + 3] = [255, 255, 255]
        return flat


def default_colors(count: int) -> tuple[Color, ...]:
    """Choose `count` colours that differ: black first, then hues by the golden angle, bright and dark in turn.

    >>> default_colors(3)[1] != default_colors(3)[2]
    True
    """
    return ((0, 0, 0), *(_hue(index) for index in range(count - 1)))


def _hue(index: int) -> Color:
    hue = (0.11 + index * 0.6180339887) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, (1.0, 0.75, 0.55)[index % 3])
    return round(red * 255), round(green * 255), round(blue * 255)


def numbered(count: int) -> Sequence[str]:
    """Names for classes that nobody named: "class 0", "class 1", ...; two are background and object."""
    return ("background", "object") if count == 2 else tuple(f"class {index}" for index in range(count))
