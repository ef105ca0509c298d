"""The report: values for the templates in `templates/`, and the page written whole.

This file says what is shown; the templates say how. A new part of the report is a template of its own that
`templates/report.html` includes, and a value that `write_report` hands it.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from pixelwise.core.classes import Color
from pixelwise.core.files import write_text
from pixelwise.data.pixels import pictures
from pixelwise.evaluation.measure import Case
from pixelwise.report import figures
from pixelwise.task import Figure

PICTURE_SIDE = 480  # pixels, at most, of a case's pictures
FULL_SIZE_CASES = 6  # with more cases than this the pictures become smaller, so that the file stays small
MATRIX_CLASSES = 30  # a larger confusion matrix cannot be read; its largest confusions are listed anyway
LISTED_CONFUSIONS = 8


@dataclass(frozen=True)
class Report:
    """What a report shows.

    Fields:
        title: of the page.
        figure: the task's main figure.
        metrics: the content of metrics.json; parts of the page that it has nothing for are left out.
        cases: images to show, in any order: the page sorts them, worst first.
        colors: of `metrics["classes"]`, in their order, where there are any.
        history: the lines of history.jsonl, of which any key may miss.
        facts: shown at the end as they are.
    """

    title: str
    figure: Figure
    metrics: Mapping[str, Any]
    cases: Sequence[Case] = ()
    colors: Sequence[Color] = ()
    history: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def write_report(path: Path, report: Report) -> None:
    """Write one self-contained HTML file: scores, images with their errors, training curves, facts.

    The page loads nothing from elsewhere.

    Raises:
        OutputError: the file cannot be written.
    """
    metrics, page = report.metrics, page_environment().get_template("report.html")
    values = {
        "title": report.title,
        "figure": report.figure,
        "metrics": metrics,
        "tiles": _tiles(metrics),
        "classes": _class_rows(metrics, report.colors),
        "matrix": _matrix(metrics),
        "confusions": _largest_confusions(metrics),
        "cases": _case_views(report.cases),
        "training": _training(report.history, report.figure),
        "facts": report.facts,
    }
    write_text(path, page.render(values))


def page_environment() -> Environment:
    """The templates, and how they show numbers."""
    environment = Environment(
        loader=PackageLoader("pixelwise", "report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(score=_score, percent=_percent, count=_count, color=_color)
    return environment


def _score(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"  # noqa: RUF001, the dash is meant


def _percent(value: float) -> str:
    """A share of 0 to 1 in whole per cent, but never "0" or "100" for what is only nearly so."""
    if 0 < value < 0.01:
        return "<1"
    return "99" if 0.99 < value < 1 else f"{value:.0%}".removesuffix("%")


def _count(value: int) -> str:
    return f"{value:,}"


def _color(rgb: tuple[int, int, int]) -> str:
    return "rgb({}, {}, {})".format(*rgb)


def _tiles(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The scores beside the main one: the first tolerance and threshold stand for the others."""
    titles = {"pixel_accuracy": "Pixel accuracy", "mean_dice": "Mean Dice"}
    tiles = {title: _score(metrics[key]) for key, title in titles.items() if key in metrics}
    for tolerance, value in list(metrics.get("boundary_f", {}).items())[:1]:
        tiles[f"Boundary F, {tolerance} px"] = _score(value)
    for threshold, scores in list(metrics.get("instances", {}).items())[:1]:
        tiles[f"Object AP at IoU {threshold}"] = _score(scores["ap"])
    if "images" in metrics:
        tiles["Images"] = _count(metrics["images"])
    return tiles


def _class_rows(metrics: Mapping[str, Any], colors: Sequence[Color]) -> list[dict[str, Any]]:
    return [{**scores, "color": color} for scores, color in zip(metrics.get("classes", ()), colors, strict=True)]


def _matrix(metrics: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """The cells of a confusion matrix that can be read: pixels, and their share of the row (the truth)."""
    confusion = metrics.get("confusion", [])
    if len(confusion) > MATRIX_CLASSES:
        return []
    return [[{"pixels": pixels, "share": pixels / sum(row) if pixels else 0.0} for pixels in row] for row in confusion]


def _largest_confusions(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The wrong pairs of classes with most pixels."""
    if "confusion" not in metrics:
        return []
    confusion = np.array(metrics["confusion"])
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    names = [scores["name"] for scores in metrics["classes"]]
    order = np.argsort(-wrong, axis=None, kind="stable")[:LISTED_CONFUSIONS]
    pairs = [divmod(int(position), len(names)) for position in order]
    return [
        {
            "truth": names[true],
            "prediction": names[predicted],
            "pixels": int(wrong[true, predicted]),
            "share": float(wrong[true, predicted] / confusion[true].sum()),
        }
        for true, predicted in pairs
        if wrong[true, predicted]
    ]


def _case_views(cases: Sequence[Case]) -> list[dict[str, Any]]:
    ordered = sorted(cases, key=lambda case: math.inf if math.isnan(case.score) else case.score)
    ranks = _ranks(sum(not math.isnan(case.score) for case in ordered))
    limit = round(PICTURE_SIDE * min(1.0, math.sqrt(FULL_SIZE_CASES / max(1, len(ordered)))))
    return [
        {"name": case.name, "score": case.score, "rank": ranks.get(index, ""), "pictures": _pictures(case, limit)}
        for index, case in enumerate(ordered)
    ]


def _ranks(count: int) -> dict[int, str]:
    """What to call the cases that stand out among `count`, worst first."""
    if count < 2:
        return {}
    middle = {count // 2: "middle"} if count > 2 else {}
    return {0: "worst", count - 1: "best", **middle}


def _pictures(case: Case, limit: int) -> list[dict[str, str]]:
    return [
        {"caption": caption, "source": data_uri(pictures.png_bytes(pictures.shrink(picture, limit)))}
        for caption, picture in case.pictures.items()
    ]


def data_uri(png: bytes) -> str:
    """A picture that stands in the page itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _training(history: Sequence[Mapping[str, Any]], figure: Figure) -> dict[str, Any] | None:
    light, dark = figures.curves(history, figure), figures.curves(history, figure, dark=True)
    if not light:
        return None
    epochs, scores = figures.series(history, figure.name)
    choose = max if figure.rises else min
    best = choose(range(len(scores)), key=scores.__getitem__, default=None)
    return {
        "curves": [{"title": title, "light": data_uri(light[title]), "dark": data_uri(dark[title])} for title in light],
        "epochs": len(history),
        "best": None if best is None else {"epoch": int(epochs[best]), "value": scores[best]},
    }
