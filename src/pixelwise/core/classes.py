"""The classes of a data set: their names and colours, and the value that means "not labelled"."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pixelwise.core.config import DataSettings
from pixelwise.core.errors import DataError

IGNORE = 65535
"""Class index of a pixel that counts nowhere: neither in a loss nor in a metric. Class maps of truth are uint16."""

MAX_CLASSES = 65534

VOID = 255
"""The value that masks of few, numbered classes hold by custom where nothing is labelled."""

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
    def palette(self) -> list[int] | None:
        """Flat RGB palette of 256 entries for an index image; None where there are more classes."""
        if len(self) > 256:
            return None
        flat = [value for color in self.colors for value in color]
        return flat + [0] * (3 * 256 - len(flat))

    @property
    def mask_type(self) -> Literal["uint8", "uint16"]:
        """The type of a mask of class indices."""
        return "uint8" if len(self) <= 256 else "uint16"


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


def name_of_color(color: Color) -> str:
    """The name of a class that nobody named, by its colour.

    >>> name_of_color((255, 0, 16))
    '#ff0010'
    """
    return "#{:02x}{:02x}{:02x}".format(*color)


def numbered(values: Sequence[int]) -> tuple[str, ...]:
    """Names for classes that nobody named, by the values that stand for them; two are background and object.

    >>> numbered([0, 1, 2])[2], numbered([0, 128, 255])[2]
    ('class 2', 'value 255')
    """
    if len(values) == 2:
        return ("background", "object")
    word = "class" if list(values) == list(range(len(values))) else "value"
    return tuple(f"{word} {value}" for value in values)
