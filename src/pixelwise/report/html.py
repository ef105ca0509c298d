"""The report: values for the templates in `templates/`, and the page written whole.

This file says what is shown; the templates say how. A new part of the report is a template of its own that
`templates/report.html` includes, and a value that `write_report` hands it.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from pixelwise.core.classes import IGNORE, ClassMap
from pixelwise.core.files import write_text
from pixelwise.data.pixels import pictures
from pixelwise.report import figures

PICTURE_SIDE = 480  # pixels, at most, of a case's pictures
FULL_SIZE_CASES = 6  # with more cases than this the pictures become smaller, so that the file stays small
MATRIX_CLASSES = 30  # a larger confusion matrix cannot be read; its largest confusions are listed anyway
LISTED_CONFUSIONS = 8


@dataclass(frozen=True)
class Case:
    """One image of the evaluation that the report shows."""

    name: str
    image: np.ndarray  # H x W x 3 uint8, see pictures.to_display
    truth: np.ndarray  # H x W uint8, 0 to K - 1 or IGNORE
    prediction: np.ndarray  # H x W uint8, 0 to K - 1
    mean_iou: float  # of this image alone; NaN if it has no counted pixel


def write_report(
    path: Path,
    title: str,
    metrics: Mapping[str, Any],
    classes: ClassMap,
    cases: Sequence[Case],
    history: Sequence[Mapping[str, Any]],
    facts: Mapping[str, str],
) -> None:
    """Write one self-contained HTML file: scores, images with their errors, training curves, facts.

    `metrics` is the content of metrics.json and `classes` its classes in the same order. `cases` are the
    images to show, in any order: the page sorts them, worst first. `history` holds the lines of
    history.jsonl, of which any key may miss; `facts` are shown at the end as they are. The page loads
    nothing from elsewhere.

    Raises:
        OutputError: the file cannot be written.
    """
    page = _environment().get_template("report.html")
    write_text(
        path,
        page.render(
            title=title,
            metrics=metrics,
            tiles=_tiles(metrics),
            classes=_class_rows(metrics, classes),
            matrix=_matrix(metrics) if len(classes) <= MATRIX_CLASSES else [],
            confusions=_largest_confusions(metrics),
            cases=_case_views(cases, classes),
            training=_training(history),
            facts=facts,
        ),
    )


def _environment() -> Environment:
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
    tiles = {
        "Pixel accuracy": _score(metrics["pixel_accuracy"]),
        "Mean Dice": _score(metrics["mean_dice"]),
    }
    for tolerance, value in list(metrics.get("boundary_f", {}).items())[:1]:
        tiles[f"Boundary F, {tolerance} px"] = _score(value)
    for threshold, scores in list(metrics.get("instances", {}).items())[:1]:
        tiles[f"Object AP at IoU {threshold}"] = _score(scores["ap"])
    if "images" in metrics:
        tiles["Images"] = _count(metrics["images"])
    return tiles


def _class_rows(metrics: Mapping[str, Any], classes: ClassMap) -> list[dict[str, Any]]:
    return [{**scores, "color": color} for scores, color in zip(metrics["classes"], classes.colors, strict=True)]


def _matrix(metrics: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """The cells of the confusion matrix: pixels, and their share of the row (the truth)."""
    return [
        [{"pixels": pixels, "share": pixels / sum(row) if pixels else 0.0} for pixels in row]
        for row in metrics["confusion"]
    ]


def _largest_confusions(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The wrong pairs of classes with most pixels."""
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


def _case_views(cases: Sequence[Case], classes: ClassMap) -> list[dict[str, Any]]:
    ordered = sorted(cases, key=lambda case: math.inf if math.isnan(case.mean_iou) else case.mean_iou)
    ranks = _ranks(sum(not math.isnan(case.mean_iou) for case in ordered))
    limit = round(PICTURE_SIDE * min(1.0, math.sqrt(FULL_SIZE_CASES / max(1, len(ordered)))))
    return [
        {
            "name": case.name,
            "mean_iou": case.mean_iou,
            "rank": ranks.get(index, ""),
            "pictures": _pictures(case, classes, limit),
        }
        for index, case in enumerate(ordered)
    ]


def _ranks(count: int) -> dict[int, str]:
    """What to call the cases that stand out among `count`, worst first."""
    if count < 2:
        return {}
    middle = {count // 2: "middle"} if count > 2 else {}
    return {0: "worst", count - 1: "best", **middle}


def _pictures(case: Case, classes: ClassMap, limit: int) -> list[dict[str, str]]:
    # Far larger than shown: thin out first, so that no coloured copy of a huge image is made.
    step = max(1, max(case.truth.shape) // (8 * limit))
    image, truth, prediction = (array[::step, ::step] for array in (case.image, case.truth, case.prediction))
    panels = {
        "Image": image,
        "Truth": pictures.colorize(truth, classes),
        "Prediction": pictures.colorize(prediction, classes),
        _error_caption(case): pictures.error_picture(image, truth, prediction),
    }
    return [
        {"caption": caption, "source": _data_uri(pictures.png_bytes(pictures.shrink(picture, limit)))}
        for caption, picture in panels.items()
    ]


def _error_caption(case: Case) -> str:
    counted = case.truth != IGNORE
    wrong = int(np.count_nonzero((case.truth != case.prediction) & counted))
    return f"Errors: {wrong / max(1, int(np.count_nonzero(counted))):.1%} of pixels"


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _training(history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    light, dark = figures.curves(history), figures.curves(history, dark=True)
    if not light:
        return None
    epochs, scores = figures.series(history, "mean_iou")
    best = max(range(len(scores)), key=scores.__getitem__, default=None)
    return {
        "curves": [
            {"title": title, "light": _data_uri(light[title]), "dark": _data_uri(dark[title])} for title in light
        ],
        "epochs": len(history),
        "best": None if best is None else {"epoch": int(epochs[best]), "mean_iou": scores[best]},
    }
