"""Clean a mask after the network: apply a threshold, fill holes, remove small objects; with tiles or without.

A component of a mask may cross many tiles, so a single tile cannot tell its size. Here each tile is surveyed once:
components within it are decided at once, and of those that reach into other tiles only a few numbers are kept. These
are joined across the borders of the tiles, and a tile's parts are found again when the tile is written. That needs
memory for one tile, one row of pixels and the undecided components, however large the image is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pixelwise.core.classes import IGNORE
from pixelwise.core.errors import DataError, SettingError
from pixelwise.core.progress import Progress
from pixelwise.core.windows import Read, Window, blocks, reader

Write = Callable[[Window, np.ndarray], None]

TILE = 2048  # side of the tiles by which `clean` works, to save memory
_LEAVE = -1  # instead of a class: the component stays as it is
_NOTHING_YET = 1 << 16  # instead of the lowest class around a hole: none has been seen


@dataclass(frozen=True)
class PostProcess:
    """What to do to a mask, in this order; nothing by default.

    Raises:
        SettingError: a value is out of range.

    >>> PostProcess(smallest_object=20).changes_mask, PostProcess().changes_mask
    (True, False)
    """

    threshold: float | None = None  # least probability for which class 1 of 2 is chosen; None: the likeliest class
    fill_holes: int = 0  # pixels; holes of at most this size take the class around them
    smallest_object: int = 0  # pixels; objects below this size become background

    def __post_init__(self) -> None:
        value = self.threshold
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1):
            raise SettingError(
                f"threshold: must be a probability between 0 and 1 (both excluded), but it is {value!r}. "
                "With 0.5, the likelier class is chosen."
            )
        for name in ("fill_holes", "smallest_object"):
            _require_pixels(name, getattr(self, name))

    @property
    def changes_mask(self) -> bool:
        """Whether `clean` does anything; the threshold is applied earlier, when classes are chosen."""
        return self.fill_holes > 0 or self.smallest_object > 1

    def require_classes(self, num_classes: int) -> None:
        """Check that the threshold suits a network.

        Raises:
            SettingError: there is a threshold, but not two classes.
        """
        if self.threshold is not None and num_classes != 2:
            raise SettingError(
                f"threshold: needs a network with 2 classes (background and one other), but this has {num_classes}. "
                "Leave the threshold out to choose the likeliest class."
            )


def _require_pixels(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SettingError(
            f"{name}: must be a whole number of pixels, 0 or more, but it is {value!r}; 0 switches it off."
        )


def choose_classes(logits: Iterable[np.ndarray], options: PostProcess) -> np.ndarray:
    """Choose a class for each pixel: the likeliest one, or the one given by the threshold.

    With a threshold t, class 1 is chosen where its probability is at least t, that is where its logit exceeds the
    other by log(t / (1 - t)). Each pixel is decided on its own, so tiles make no difference.

    Args:
        logits: K x ... floats.
        options: only the threshold is used.

    Returns:
        Classes, without the first axis; uint8, or uint16 for more than 256 classes.

    Raises:
        SettingError: there is a threshold, but not two classes.

    >>> choose_classes(np.array([[0.0, 0.0, 0.0], [-1.0, 1.0, 3.0]]), PostProcess(threshold=0.9))
    array([0, 0, 1], dtype=uint8)
    """
    if options.threshold is None:
        return argmax(logits)
    first, second, *others = logits
    options.require_classes(2 + len(others))
    lead = np.log(options.threshold / (1 - options.threshold))
    return np.asarray(second - first >= lead, np.uint8)


def argmax(planes: Iterable[np.ndarray]) -> np.ndarray:
    """K planes of H x W logits -> H x W classes, the first of equals; uint8, or uint16 for more than 256 classes.

    One pass for each class is several times as fast as numpy, which strides over the classes pixel by pixel.

    >>> argmax(np.array([[[0.0, 2.0]], [[1.0, 2.0]]])).tolist()
    [[1, 0]]
    """
    best, classes = np.empty(0), np.zeros(0, np.uint8)
    for index, plane in enumerate(planes):
        if index == 0:
            best, classes = plane.copy(), np.zeros(plane.shape, np.uint8)
            continue
        if index == 256:
            classes = classes.astype(np.uint16)
        better = plane > best
        np.copyto(classes, index, where=better)
        np.copyto(best, plane, where=better)
    return classes


def clean(mask: np.ndarray, options: PostProcess) -> np.ndarray:
    """Fill the small holes of a mask, then remove its small objects.

    - A hole is a component of background (class 0) that does not touch the border of the image and is surrounded by
      one class only, among all eight neighbours of its pixels; it takes that class. Its pixels are joined by sides and
      corners (8-connectivity). The size of a hole does not include the objects inside.
    - An object is a component of another class, whose pixels are joined by their sides (4-connectivity, as in
      `data.pixels.targets.objects`), so that what closes a hole is one object. Objects that are removed become
      background, even within another class: holes are not filled again.
    - Holes come first, so that a ring counts together with the hole that it encloses: a thin cell with a pale middle is
      one cell, not a few pixels to be removed.
    - Pixels of `IGNORE` do not belong to objects and never change; a hole next to one stays open.

    Args:
        mask: H x W uint8 or uint16 classes.
        options: the sizes.

    Returns:
        A new mask of the same shape and type.

    Raises:
        DataError: the mask has another shape or type.

    >>> clean(np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 2]], np.uint8), PostProcess(None, 1, 2))
    array([[1, 1, 1, 0],
           [1, 1, 1, 0],
           [1, 1, 1, 0]], dtype=uint8)
    """
    if mask.ndim != 2:
        raise DataError(f"the mask has the shape {mask.shape}; H x W is expected.")
    cleaned = np.empty_like(mask)

    def write(window: Window, block: np.ndarray) -> None:
        cleaned[window.slices] = block

    clean_tiles(reader(mask), write, mask.shape, TILE, options)
    return cleaned


def clean_tiles(
    read: Read,
    write: Write,
    shape: tuple[int, int],
    tile: int,
    options: PostProcess,
    progress: Progress | None = None,
) -> None:
    """Do what `clean` does, to a mask that is too large for the memory; the result does not depend on the tile size.

    The mask is read tile by tile, row after row: once for each of the two steps that is switched on, and once more for
    writing. All passes but the last only read. The last one writes each tile right after reading it, so `read` and
    `write` may use the same store. But if the program ends in the middle, that store is half cleaned, and cleaning it
    again may give another result: better write to a second store, and rename it when it is complete.

    Args:
        read: returns a window of the mask, h x w, uint8 or uint16.
        write: stores the pixels of a window; the windows are those of `read`.
        shape: height and width of the mask in pixels.
        tile: side of a tile in pixels; multiples of the store's chunks are fast.
        options: the sizes.
        progress: is called with the number of pixels done and of all passes together.

    Raises:
        SettingError: the tile has no pixels. DataError: `read` returns something other than the window.
    """
    if tile < 1:
        raise SettingError(f"tile: must be at least 1 pixel, but it is {tile}.")
    steps = _steps(options)
    report = _Report(progress, shape[0] * shape[1] * (len(steps) + 1))
    current = _checked(read)
    for step in steps:
        components = _Components(step, shape)
        for window in blocks(*shape, tile):
            components.survey(current(window), window)
            report.add(window)
        components.settle()
        current = _changing(current, components)
    for window in blocks(*shape, tile):
        write(window, current(window))
        report.add(window)


class _Report:
    """Counts pixels for the caller's progress."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def add(self, window: Window) -> None:
        self._done += window.height * window.width
        if self._progress:
            self._progress(self._done, self._total)


def _checked(read: Read) -> Read:
    def checked(window: Window) -> np.ndarray:
        block = read(window)
        if block.shape != (window.height, window.width) or block.dtype not in (np.uint8, np.uint16):
            y0, y1, x0, x1 = window
            raise DataError(
                f"the mask at rows {y0} to {y1}, columns {x0} to {x1} is {' x '.join(map(str, block.shape))} of "
                f"{block.dtype}; {window.height} x {window.width} of uint8 or uint16 is expected."
            )
        return block

    return checked


def _changing(read: Read, components: "_Components") -> Read:
    return lambda window: components.apply(read(window), window)


@dataclass(frozen=True)
class _Step:
    """One of the two steps: which components it looks at, and which of these change."""

    holes: bool  # components of background, which take the class around them; or objects, which become class 0
    limit: int  # the most pixels of a component that changes

    @property
    def connectivity(self) -> int:
        return 8 if self.holes else 4


def _steps(options: PostProcess) -> list[_Step]:
    steps = []
    if options.fill_holes > 0:
        steps.append(_Step(holes=True, limit=options.fill_holes))
    if options.smallest_object > 1:
        steps.append(_Step(holes=False, limit=options.smallest_object - 1))
    return steps


@dataclass(frozen=True)
class _Parts:
    """The parts of components within one tile, numbered from 1; index 0 of each array stands for other pixels."""

    labels: np.ndarray  # h x w int32
    areas: np.ndarray  # pixels
    low: np.ndarray  # the lowest and highest class that the component may take: those around a hole
    high: np.ndarray
    crosses: np.ndarray  # bool: touches a side of the tile beyond which the image continues
    may_change: np.ndarray  # bool: nothing in this tile rules it out


def _find_parts(block: np.ndarray, window: Window, shape: tuple[int, int], step: _Step) -> _Parts:
    """Find the parts of a tile. Their order depends on the tile alone, so it is the same every time."""
    labels, count = _label(block, step)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    crosses, at_border = np.zeros(count + 1, bool), np.zeros(count + 1, bool)
    for side, image_ends in (
        (labels[0], window.y0 == 0),
        (labels[-1], window.y1 == shape[0]),
        (labels[:, 0], window.x0 == 0),
        (labels[:, -1], window.x1 == shape[1]),
    ):
        (at_border if image_ends else crosses)[side] = True
    may_change = areas <= step.limit
    may_change[0] = False
    low = high = np.zeros(count + 1, np.int32)
    if step.holes:
        may_change &= ~at_border
        low, high = _classes_around(block, labels, may_change)
        may_change &= (low >= high) & (high != IGNORE)
    return _Parts(labels, areas, low, high, crosses, may_change)


def _label(block: np.ndarray, step: _Step) -> tuple[np.ndarray, int]:
    """Labels of the parts, from 1 on, class after class, and their number."""
    labels, count = np.zeros(block.shape, np.int32), 0
    for value in [0] if step.holes else _classes_of_objects(block):
        chosen = (block == value).astype(np.uint8)
        number, parts = cv2.connectedComponents(chosen, connectivity=step.connectivity)
        labels = np.add(parts, count, out=labels, where=parts > 0) if count else parts
        count += number - 1  # the first is "not this value"
    return labels, count


def _classes_of_objects(block: np.ndarray) -> list[int]:
    """The classes in a block that can form objects."""
    values = int(np.iinfo(block.dtype).max) + 1
    counts = cv2.calcHist([np.ascontiguousarray(block)], [0], None, [values], [0, values])
    return [int(value) for value in np.flatnonzero(counts) if value not in (0, IGNORE)]


def _classes_around(block: np.ndarray, labels: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest class next to each wanted part of background, as far as this tile shows."""
    low = np.full(len(wanted), _NOTHING_YET, np.int32)
    high = np.zeros(len(wanted), np.int32)
    if not wanted.any():
        return low, high
    square = np.ones((3, 3), np.uint8)
    highest = cv2.dilate(block, square)
    without_background = np.where(block == 0, np.iinfo(block.dtype).max, block).astype(block.dtype)
    lowest = cv2.erode(without_background, square)
    rim = (block == 0) & (highest > 0)
    parts = labels[rim]
    np.minimum.at(low, parts, lowest[rim])
    np.maximum.at(high, parts, highest[rim])
    return low, high


class _Line(NamedTuple):
    """Pixels along a side of a tile."""

    values: np.ndarray  # classes
    nodes: np.ndarray  # the node of each pixel's component, or -1 if the step does not look at its class

    def part(self, start: int, end: int) -> "_Line":
        return _Line(self.values[start:end], self.nodes[start:end])


class _Components:
    """The components that one step looks at, over all tiles of a mask.

    Call `survey` for each tile, row after row, then `settle`, then `apply` for any tile. A part that may still change
    but crosses the border of its tile becomes a node, with its area and the classes around it. All parts that are known
    to stay share node 0, so that a large component costs nothing, however many tiles it crosses.
    """

    def __init__(self, step: _Step, shape: tuple[int, int]) -> None:
        self._step = step
        self._shape = shape
        self._first: dict[tuple[int, int], int] = {}  # first node of each tile
        self._count = 1
        self._areas = [np.zeros(1, np.int64)]
        self._low = [np.zeros(1, np.int32)]
        self._high = [np.zeros(1, np.int32)]
        self._edges = [np.zeros((0, 2), np.int32)]  # pairs of nodes that are one component
        self._contacts = [np.zeros((0, 2), np.int32)]  # a node and a class next to it, across a border of tiles
        self._above = self._below = self._empty_row()
        self._left: _Line | None = None
        self._new = np.zeros(0, np.int32)

    def survey(self, block: np.ndarray, window: Window) -> None:
        """Add a tile, and join it with those above and to the left."""
        parts = _find_parts(block, window, self._shape, self._step)
        self._first[window.y0, window.x0] = self._count
        waiting = np.flatnonzero(parts.may_change & parts.crosses)
        nodes = np.zeros(len(parts.areas), np.int32)
        nodes[0] = -1
        nodes[waiting] = self._count + np.arange(len(waiting))
        self._count += len(waiting)
        self._areas.append(parts.areas[waiting])
        self._low.append(parts.low[waiting])
        self._high.append(parts.high[waiting])
        self._join(block, nodes, parts.labels, window)

    def _join(self, block: np.ndarray, nodes: np.ndarray, labels: np.ndarray, window: Window) -> None:
        y0, _, x0, x1 = window
        if x0 == 0:
            self._above, self._below = self._below, self._empty_row()
            self._left = None
        top = _Line(block[0], nodes[labels[0]])
        side = _Line(block[:, 0], nodes[labels[:, 0]])
        touching = []
        for shift in (-1, 0, 1) if self._step.connectivity == 8 else (0,):
            if y0 > 0:
                touching.append((top, self._above.part(x0 + 1 + shift, x1 + 1 + shift)))
            if self._left is not None:
                own, other = max(0, -shift), max(0, shift)
                length = len(block) - abs(shift)
                touching.append((side.part(own, own + length), self._left.part(other, other + length)))
        self._note(touching)
        self._left = _Line(block[:, -1].copy(), nodes[labels[:, -1]])
        self._below.values[x0 + 1 : x1 + 1] = block[-1]
        self._below.nodes[x0 + 1 : x1 + 1] = nodes[labels[-1]]

    def _empty_row(self) -> _Line:
        """A row of the image with one more pixel at each end, which is background and stays so."""
        width = self._shape[1] + 2
        return _Line(np.zeros(width, np.uint16), np.zeros(width, np.int32))

    def _note(self, touching: list[tuple[_Line, _Line]]) -> None:
        """Keep what lines of neighbouring pixels show about each other's nodes."""
        edges, contacts = [], []
        for own, other in touching:
            same = (own.nodes >= 0) & (other.nodes >= 0) & (own.values == other.values) & (own.nodes != other.nodes)
            edges.append(np.stack([own.nodes[same], other.nodes[same]]))
            for hole, around in ((own, other), (other, own)):
                touch = (hole.nodes > 0) & (around.nodes < 0)
                contacts.append(np.stack([hole.nodes[touch], around.values[touch]]))
        _append_pairs(self._edges, edges)
        if self._step.holes:
            _append_pairs(self._contacts, contacts)

    def settle(self) -> None:
        """Join the nodes into components and decide for each which class it takes, or that it stays."""
        edges, contacts = np.concatenate(self._edges), np.concatenate(self._contacts)
        low, high = np.concatenate(self._low), np.concatenate(self._high)
        np.minimum.at(low, contacts[:, 0], contacts[:, 1])
        np.maximum.at(high, contacts[:, 0], contacts[:, 1])
        ones = np.ones(len(edges), np.int8)
        graph = coo_array((ones, (edges[:, 0], edges[:, 1])), shape=(self._count, self._count))
        number, component = connected_components(graph, directed=False)
        areas = np.bincount(component, weights=np.concatenate(self._areas), minlength=number)
        lowest, highest = np.full(number, _NOTHING_YET, np.int32), np.zeros(number, np.int32)
        np.minimum.at(lowest, component, low)
        np.maximum.at(highest, component, high)
        changes = (areas <= self._step.limit) & (lowest == highest) & (highest != IGNORE)
        changes[component[0]] = False
        self._new = np.where(changes, highest, _LEAVE)[component].astype(np.int32)
        for notes in (self._areas, self._low, self._high, self._edges, self._contacts):
            notes.clear()

    def apply(self, block: np.ndarray, window: Window) -> np.ndarray:
        """The tile with its components changed; `block` itself if none of them changes."""
        parts = _find_parts(block, window, self._shape, self._step)
        new = np.where(parts.may_change, parts.high, _LEAVE)
        waiting = np.flatnonzero(parts.may_change & parts.crosses)
        first = self._first[window.y0, window.x0]
        new[waiting] = self._new[first : first + len(waiting)]
        if not (new != _LEAVE).any():
            return block
        changed = block.copy()
        pixels = (new != _LEAVE)[parts.labels]
        changed[pixels] = new[parts.labels[pixels]]
        return changed


def _append_pairs(kept: list[np.ndarray], found: list[np.ndarray]) -> None:
    """Keep each pair that was found, in arrays of 2 x N, once, as N x 2."""
    if any(pairs.size for pairs in found):
        kept.append(np.unique(np.concatenate(found, axis=1).astype(np.int32).T, axis=0))
