"""The curves of a training and the checkerboard of an up-convolution, drawn with Matplotlib's own objects.

No global state is touched.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pixelwise.layers import coverage
from pixelwise.task import Figure as TaskFigure

Line = tuple[list[float], list[float]]  # epochs and values

READABLE = 24  # pixels a side that have room for a number each
INK, DARK_INK = "#3a4452", "#c9d1dc"  # on a light and on a dark page


def curves(history: Sequence[Mapping[str, Any]], figure: TaskFigure, dark: bool = False) -> dict[str, bytes]:
    """Draw the loss and the task's figure over the epochs of a training.

    `history` has a mapping for each epoch with any of `epoch`, `loss` and the figure. `dark` chooses colours for a dark
    page; the ground is transparent. Returns PNGs by title, none where nothing is known.
    """
    title = figure.title[0].upper() + figure.title[1:]
    panels = {
        "Loss": {"training": series(history, "loss")},
        f"{title} in validation": {figure.title: series(history, figure.name)},
    }
    return {
        title: _panel(title, lines, dark)
        for title, lines in panels.items()
        if any(epochs for epochs, _ in lines.values())
    }


def series(history: Sequence[Mapping[str, Any]], key: str) -> Line:
    """Epochs and values of one key of the history, where it is there and finite.

    >>> series([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": None}, {"epoch": 3, "loss": 0.4}], "loss")
    ([1.0, 3.0], [0.5, 0.4])
    """
    pairs = [(line.get("epoch", number), line.get(key)) for number, line in enumerate(history, start=1)]
    known = [(float(epoch), float(value)) for epoch, value in pairs if value is not None and np.isfinite(value)]
    return [epoch for epoch, _ in known], [value for _, value in known]


def checkerboard(size: int, kernel: int, stride: int, crop: int = 0, dark: bool = False) -> bytes:
    """Draw how often a transposed convolution covers each pixel of its output, and write the counts in where they fit.

    Args:
        size: input pixels a side; a few show the pattern.
        kernel: pixels a side.
        stride: pixels from one stamp to the next.
        crop: pixels trimmed on each side.
        dark: colours for a dark page; the ground is transparent.

    Returns:
        A PNG.

    Raises:
        SettingError: the stride is below 1, or the crop is negative.
        ModelError: the crop leaves nothing.
    """
    counts = coverage(size, kernel, stride, crop).numpy()
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts, cmap="Blues", vmin=0)
    for (row, column), count in np.ndenumerate(counts if len(counts) <= READABLE else counts[:0]):
        color = "white" if count > counts.max() / 2 else "black"  # whichever stands out from the square below
        axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    amount = " to ".join(map(str, sorted({counts.min(), counts.max()})))  # told where single numbers have no room
    title = f"{kernel} x {kernel} kernel, stride {stride}: {amount} stamp(s) on each pixel"
    axes.set_title(title, color=DARK_INK if dark else INK, fontsize=10, loc="left")
    axes.set_axis_off()
    return png_of(figure)


def _panel(title: str, lines: dict[str, Line], dark: bool) -> bytes:
    ink, line_colors = (DARK_INK, ("#6ea8fe", "#ffb35c")) if dark else (INK, ("#2257c4", "#c2570c"))
    figure = Figure(figsize=(5.2, 3.1), layout="constrained")
    axes = figure.subplots()
    for (name, (epochs, values)), color in zip(lines.items(), line_colors, strict=False):
        if epochs:
            axes.plot(epochs, values, color=color, label=name, linewidth=1.8, marker="o", markersize=2.5)
    axes.set_title(title, color=ink, fontsize=11, loc="left")
    axes.set_xlabel("epoch", color=ink)
    if len(lines) > 1:
        axes.legend(frameon=False, labelcolor=ink)
    style(axes, ink)
    return png_of(figure)


def png_of(figure: Figure) -> bytes:
    """A drawing as PNG, its ground transparent."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, transparent=True)
    return buffer.getvalue()


def style(axes: Axes, ink: str) -> None:
    """Whole numbers below, a faint grid, and a frame on two sides."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(colors=ink)
    axes.grid(color=ink, alpha=0.2, linewidth=0.7)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(ink)
