"""A run against a split: every image predicted once, its figures and the cases worth a look."""

import heapq
import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pixelwise.core.config import Config
from pixelwise.core.errors import DataError, ModelError
from pixelwise.core.progress import Progress
from pixelwise.data.pixels.pictures import shrink
from pixelwise.data.sets.pairs import Sample
from pixelwise.task import Record, Task

WORST, BEST = 4, 2  # cases that are kept, beside one of the middle
PICTURE_SIDE = 960  # pixels; longer sides are shrunk


@dataclass(frozen=True)
class Case:
    """One image of an evaluation, drawn."""

    name: str
    score: float  # of this image alone, of which less is worse; NaN if nothing counts
    pictures: dict[str, np.ndarray]  # H x W x 3 uint8, by caption


@dataclass
class Gallery:
    """The cases to look at: the worst, a middle one, the best. Each is drawn when it comes, if it is one of them.

    The middle one is about the median: its score was nearest to that of all scores when it came.
    """

    scores: list[float] = field(default_factory=list)  # sorted, without NaN
    _cases: dict[int, Case] = field(default_factory=dict)  # by number
    _worst: list[tuple[float, int]] = field(default_factory=list)  # heap of (-score, -number)
    _best: list[tuple[float, int]] = field(default_factory=list)  # heap of (score, number)
    _middle: tuple[float, int] | None = None
    _count: int = 0

    def wants(self, score: float) -> bool:
        """Whether a case of this score would be shown; asks once for each image, and remembers its place."""
        number, self._count = self._count, self._count + 1
        known = math.inf if math.isnan(score) else score  # where nothing counts nothing is wrong
        insort(self.scores, known)
        _push(self._worst, (-known, -number), WORST)
        _push(self._best, (known, number), BEST)
        median = self.scores[len(self.scores) // 2]
        if self._middle is None or abs(known - median) < abs(self._middle[0] - median):
            self._middle = known, number
        return number in self._shown()

    def add(self, case: Case) -> None:
        """Keep the case that was asked for last, and let go those that are no longer shown."""
        self._cases[self._count - 1] = case
        self._cases = {number: self._cases[number] for number in self._shown() if number in self._cases}

    def cases(self) -> list[Case]:
        """What is shown, worst first."""
        return sorted(self._cases.values(), key=lambda case: (np.nan_to_num(case.score, nan=math.inf), case.name))

    def _shown(self) -> set[int]:
        middle = set() if self._middle is None else {self._middle[1]}
        return {-number for _, number in self._worst} | {number for _, number in self._best} | middle


def _push(heap: list[tuple[float, int]], item: tuple[float, int], size: int) -> None:
    """Keep the largest items."""
    (heapq.heappush if len(heap) < size else heapq.heappushpop)(heap, item)


def evaluate(
    task: Task,
    predictor: Any,
    config: Config,
    samples: Sequence[Sample],
    axes: str | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], list[Case]]:
    """Measure a predictor on labelled samples; each file is read and predicted once.

    Returns:
        The content of metrics.json, and the cases worth a look, worst first.

    Raises:
        DataError, ModelError: an image or its labels cannot be used; the message names the file.
    """
    tally, gallery = task.tally(config, full=True), Gallery()
    for done, sample in enumerate(samples, start=1):
        for record in task.records(sample, config, axes):
            prediction = _predict(task, predictor, sample, record)
            score = tally.add(record, prediction)
            if gallery.wants(score):
                drawn = task.draw(record, prediction, config)
                small = {caption: shrink(picture, PICTURE_SIDE) for caption, picture in drawn.items()}
                gallery.add(Case(record.name, score, small))
        if progress:
            progress(done, len(samples))
    figures = tally.figures()
    head = {"task": task.name, "metric": task.figure.name, "value": figures[task.figure.name]}
    return {**head, **figures}, gallery.cases()


def _predict(task: Task, predictor: Any, sample: Sample, record: Record) -> Any:
    try:
        return task.predict(predictor, record.image, record.facts)
    except (DataError, ModelError) as error:
        raise type(error)(f"{sample.image}: {error}") from error
