"""Predictions -> metrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pixelwise.core.errors import DataError, ModelError
from pixelwise.data.files.readers import read_image, read_mask
from pixelwise.data.pixels.targets import objects
from pixelwise.data.sets.folder import Sample
from pixelwise.data.sets.labels import LabelRule
from pixelwise.metrics.boundary import boundary_counts, boundary_f
from pixelwise.metrics.confusion import confusion_matrix, mean_iou, summary
from pixelwise.metrics.instances import instance_scores, match_counts, sum_counts
from pixelwise.prediction.predictor import Predictor


@dataclass(frozen=True)
class Truth:
    """One page of a sample: the image, its class indices, and its instance ids where the labels have them."""

    name: str
    image: np.ndarray  # H x W x C
    labels: np.ndarray  # H x W uint8
    instances: np.ndarray | None  # H x W


def read_truth(sample: Sample, rule: LabelRule, axes: str | None) -> list[Truth]:
    """The pages of a sample.

    Raises:
        DataError: a file cannot be read, or a mask holds values that the run does not know.
    """
    images, masks = read_image(sample.image, axes), read_mask(sample.target, axes)
    if images.shape[:3] != masks.shape[:3]:
        raise DataError(f"{sample.image}: is {images.shape[1:3]}, but its mask {sample.target} is {masks.shape[1:3]}.")
    pages = []
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        try:
            labels = rule.to_indices(mask)
        except DataError as error:
            raise DataError(f"{sample.target}: {error}") from error
        name = sample.name if len(images) == 1 else f"{sample.name} page {number}"
        pages.append(Truth(name, image, labels, mask if rule.kind == "instances" else None))
    return pages


@dataclass(frozen=True)
class Score:
    """How well one image went."""

    name: str
    mean_iou: float
    sample: Sample
    page: int


@dataclass
class Tally:
    """Counts that add up over images; `metrics` turns them into figures."""

    rule: LabelRule
    full: bool = True  # also boundaries and instances, which take longer
    confusion: np.ndarray = field(init=False)
    images: int = 0
    _boundary: Any = 0
    _matches: list[dict[float, tuple[int, int, int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.rule.classes)
        self.confusion = np.zeros((count, count), np.int64)

    def add(self, truth: Truth, prediction: np.ndarray) -> float:
        """Take one image in; its own mean IoU."""
        count = len(self.rule.classes)
        confusion = confusion_matrix(truth.labels, prediction, count)
        self.confusion += confusion
        self.images += 1
        if self.full:
            self._boundary = self._boundary + boundary_counts(truth.labels, prediction, count)
            if truth.instances is not None:
                self._add_instances(truth.instances, prediction)
        return mean_iou(confusion)

    def _add_instances(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        self._matches.append(match_counts(truth, objects(prediction)))

    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json."""
        figures = {**summary(self.confusion, self.rule.classes.names), "images": self.images}
        if self.full and self.images:
            boundary = boundary_f(self._boundary)
            if boundary:  # one class everywhere has no boundary
                figures["boundary_f"] = boundary
        if self._matches:
            figures["instances"] = instance_scores(sum_counts(self._matches))
        return figures


def evaluate(
    predictor: Predictor,
    samples: Sequence[Sample],
    rule: LabelRule,
    axes: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], list[Score]]:
    """Measure a predictor on labelled samples.

    Returns:
        The content of metrics.json, and each image's score, worst first.

    Raises:
        DataError, ModelError: an image or mask cannot be used; the message names it.
    """
    tally, scores = Tally(rule), []
    for done, sample in enumerate(samples, start=1):
        for page, truth in enumerate(read_truth(sample, rule, axes)):
            scores.append(Score(truth.name, tally.add(truth, _labels(predictor, sample, truth)), sample, page))
        if progress:
            progress(done, len(samples))
    return tally.metrics(), sorted(scores, key=lambda score: (np.nan_to_num(score.mean_iou, nan=1.0), score.name))


def _labels(predictor: Predictor, sample: Sample, truth: Truth) -> np.ndarray:
    try:
        return predictor.labels(truth.image)
    except (DataError, ModelError) as error:
        raise type(error)(f"{sample.image}: {error}") from error


def chosen_scores(scores: Sequence[Score], worst: int = 4, best: int = 2) -> list[Score]:
    """The worst, a middle one and the best, without repeating any."""
    if len(scores) <= worst + best + 1:
        return list(scores)
    return [*scores[:worst], scores[len(scores) // 2], *scores[-best:]]


def output_folder(run: Path, split: str) -> Path:
    """Where an evaluation of a run goes if nobody says."""
    return run / f"evaluation-{split}"
