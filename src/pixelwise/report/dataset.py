"""A page about a data set: samples with their masks, shares of the classes, sizes, intensities, findings."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pixelwise.core.errors import DataError
from pixelwise.core.files import write_text
from pixelwise.data.files.readers import read_image
from pixelwise.data.health.diagnosis import Diagnosis
from pixelwise.data.health.examine import ImageFacts
from pixelwise.data.health.survey import Survey
from pixelwise.data.masks.labels import LabelRule
from pixelwise.data.pixels import pictures
from pixelwise.report.figures import DARK_INK, INK, png_of, style
from pixelwise.report.html import data_uri, page_environment

SAMPLES = 12  # that are shown
SIDE = 320  # pixels of a picture
LISTED_FILES = 12  # of a finding


def write_dataset_page(path: Path, found: Survey, diagnosis: Diagnosis) -> None:
    """Write one self-contained HTML file about a data set.

    Args:
        path: the file.
        found: the survey.
        diagnosis: what is told of it.

    Raises:
        OutputError: the file cannot be written.
    """
    splits = {
        name: [found.facts[one.image] for one in samples if one.image in found.facts]
        for name, samples in found.dataset.splits.items()
    }
    facts = [fact for rows in splits.values() for fact in rows]
    values = {
        "title": f"Data set {found.dataset.root.resolve().name}",
        "diagnosis": diagnosis,
        "tiles": _tiles(diagnosis, facts),
        "findings": [_finding(problem) for problem in diagnosis.problems],
        "classes": _shares(splits, found.meaning),
        "split_names": [name for name, rows in splits.items() if rows],
        "samples": _samples(found, splits),
        "figures": _figures(facts),
    }
    write_text(path, page_environment().get_template("dataset.html").render(values))


def _tiles(diagnosis: Diagnosis, facts: Sequence[ImageFacts]) -> dict[str, str]:
    sizes = Counter((fact.width, fact.height) for fact in facts)
    tiles = {f"{name}": f"{count:,}" for name, count in diagnosis.splits.items()}
    tiles["labels"] = diagnosis.labels or "unclear"
    if diagnosis.classes:
        tiles["classes"] = str(len(diagnosis.classes))
    if sizes:
        (width, height), count = sizes.most_common(1)[0]
        tiles["usual size"] = f"{width} x {height}" + ("" if count == len(facts) else f" ({count / len(facts):.0%})")
    if channels := Counter(fact.channels for fact in facts):
        tiles["channels"] = " or ".join(map(str, sorted(channels)))
    return tiles


def _finding(problem: Any) -> dict[str, Any]:
    names = [path.name for path in problem.files[:LISTED_FILES]]
    return {
        "severity": problem.severity,
        "code": problem.code,
        "message": problem.message,
        "fix": problem.fix,
        "files": names,
        "more": max(0, len(problem.files) - LISTED_FILES),
    }


def _shares(splits: dict[str, list[ImageFacts]], meaning: Any) -> list[dict[str, Any]]:
    """Of each class: its name, colour and share of the labelled pixels of each split."""
    if not isinstance(meaning, LabelRule):
        return []
    counts = {name: np.sum([fact.labels.sum(0) for fact in rows], axis=0) for name, rows in splits.items() if rows}
    shares = {name: found / max(1, found.sum()) for name, found in counts.items()}
    return [
        {"name": name, "color": color, "shares": [float(found[index]) for found in shares.values()]}
        for index, (name, color) in enumerate(zip(meaning.classes.names, meaning.classes.colors, strict=True))
    ]


def _samples(found: Survey, splits: dict[str, list[ImageFacts]]) -> list[dict[str, Any]]:
    """Images with their masks, taken evenly from each split."""
    shown = []
    total = sum(map(len, splits.values()))
    for split, facts in splits.items():
        count = min(len(facts), max(1, round(SAMPLES * len(facts) / max(1, total)))) if facts else 0
        for fact in facts[:: max(1, len(facts) // max(1, count))][:count]:
            caption = f"{fact.sample.name} ({split}, {fact.width} x {fact.height})"
            drawn = _drawn(found, fact)
            if drawn:
                shown.append({"caption": caption, "pictures": drawn})
    return shown[:SAMPLES]


def _drawn(found: Survey, fact: ImageFacts) -> list[str]:
    """The first page of an image and its labels, as two data URIs; none if they cannot be read any more."""
    assert found.reading is not None
    labels, axes = found.reading.labels, found.dataset.description.axes
    try:
        image = read_image(fact.sample.image, axes)[0]
        drawn = labels.draw(labels.load(fact.sample, axes), found.meaning)
    except DataError:
        return []
    return [data_uri(pictures.png_bytes(pictures.shrink(one, SIDE))) for one in (pictures.to_display(image), drawn)]


def _figures(facts: Sequence[ImageFacts]) -> list[dict[str, str]]:
    if not facts:
        return []
    drawings = {"Sizes": _draw_sizes, "Intensities": _draw_levels}
    return [
        {"title": title, "light": data_uri(draw(facts, INK)), "dark": data_uri(draw(facts, DARK_INK))}
        for title, draw in drawings.items()
    ]


def _draw_sizes(facts: Sequence[ImageFacts], ink: str) -> bytes:
    """Width and height of each image; a larger dot stands for more images."""
    counts = Counter((fact.width, fact.height) for fact in facts)
    figure, axes = _axes("Sizes", "width, pixels", "height, pixels", ink)
    widths, heights = zip(*counts, strict=True)
    axes.scatter(widths, heights, s=[20 + 30 * np.log2(count + 1) for count in counts.values()], alpha=0.6)
    axes.set_xlim(0, 1.1 * max(widths))
    axes.set_ylim(0, 1.1 * max(heights))
    return png_of(figure)


def _draw_levels(facts: Sequence[ImageFacts], ink: str) -> bytes:
    """What each image uses of its range: a line from its 1st to its 99th percentile, by the middle of both."""
    ordered = sorted(facts, key=lambda fact: fact.low + fact.high)
    figure, axes = _axes("Intensities, 1st to 99th percentile", "images, dark to bright", "share of the range", ink)
    places = np.arange(len(ordered))
    axes.vlines(places, [fact.low for fact in ordered], [fact.high for fact in ordered], linewidth=1.2, alpha=0.35)
    axes.scatter(places, [float(fact.mean.mean()) for fact in ordered], s=5, zorder=3, color=ink)
    return png_of(figure)


def _axes(title: str, below: str, beside: str, ink: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.2, 3.1), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, color=ink, fontsize=11, loc="left")
    axes.set_xlabel(below, color=ink)
    axes.set_ylabel(beside, color=ink)
    style(axes, ink)
    return figure, axes
