"""The protocol of a task: what is learnt from images and their labels, and what becomes of a network's outputs.

The doctor, the plan, the loop, the checkpoint, evaluate, predict and the report's frame know this alone; the tasks
themselves, one file each, stand in `pixelwise.tasks`. H x W pixels, C channels; a picture is H x W x 3 uint8.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor, nn

from pixelwise.core.config import Config
from pixelwise.core.draft import Draft
from pixelwise.data.files.facts import FileFacts
from pixelwise.data.health.survey import Labels, Survey
from pixelwise.data.sets.pairs import Sample
from pixelwise.data.sets.sampling import Batch
from pixelwise.engines import EngineChoice
from pixelwise.engines.machine import Machine

Criterion = Callable[[dict[str, Tensor], dict[str, Any]], dict[str, Tensor]]
"""A loss: (outputs, targets) -> its parts by name, scalars whose sum is minimised."""


@dataclass(frozen=True)
class Figure:
    """The figure that tells which epoch is best: a key of metrics.json and of the history.

    >>> Figure("squared_error", "squared error", rises=False).is_better(0.1, best=0.2)
    True
    """

    name: str
    title: str  # for people
    rises: bool = True  # larger is better

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether a value beats the best so far; any number beats None, and NaN beats nothing."""
        if best is None:
            return not math.isnan(value)
        return value > best if self.rises else value < best


@dataclass(frozen=True)
class Record:
    """One page of a sample with its truth, in the form that the task gives it."""

    name: str
    image: np.ndarray  # H x W x C, as the file has it
    truth: Any
    facts: FileFacts | None = None  # what the image's file says besides


class Sampler(Protocol):
    """Draws the samples of a training; each is a pure function of the seed and its number."""

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The samples of these numbers, stacked."""
        ...


class Tally(Protocol):
    """What a metric has counted so far."""

    def add(self, record: Record, prediction: Any) -> float:
        """Take one record in; its own score, of which less is worse, or NaN where nothing counts."""
        ...

    def merge(self, other: Any) -> None:
        """Take in what another process counted."""
        ...

    def figures(self) -> dict[str, Any]:
        """The content of metrics.json, the task's `figure` in it."""
        ...


class Task(Protocol):
    """What a task says; everything else is the house's. Its methods change nothing."""

    @property
    def name(self) -> str:
        """What `--task` calls it, or `--kind` of a pretraining."""
        ...

    @property
    def figure(self) -> Figure:
        """What names the best epoch."""
        ...

    @property
    def labels(self) -> Labels:
        """How its labels are read and checked, once."""
        ...

    def meaning(self, config: Config) -> Any:
        """What the labels mean in a run, as `labels.meaning` finds it in a data set."""
        ...

    def with_meaning(self, config: Config, meaning: Any) -> Config:
        """The settings with another meaning of the labels: to measure a run on data labelled in another way."""
        ...

    def fill(self, draft: Draft, survey: Survey, machine: Machine) -> None:
        """Choose the settings that are the task's own, where the user left them open."""
        ...

    def check(self, config: Config) -> None:
        """Refuse settings that contradict each other, with a SettingError."""
        ...

    def reasons(self, config: Config, survey: Survey) -> list[str]:
        """What it took the labels for and why it chose as it did, a sentence each."""
        ...

    def network(self, config: Config) -> nn.Module:
        """The network, freshly initialised from torch's random state.

        It has `outputs(images)`: all that the criterion compares, by name; `parts()`: modules by the name under which
        a phase trains them; `stride`, `input_size(n)` and `output_size(n)`: which images it takes.
        """
        ...

    def sampler(self, config: Config, survey: Survey, network: nn.Module) -> Sampler:
        """The samples of the train split; geometry moves images and targets together."""
        ...

    def criterion(self, config: Config, survey: Survey) -> Criterion:
        """The loss; a module where it holds tensors."""
        ...

    def records(self, sample: Sample, config: Config, axes: str | None) -> Iterator[Record]:
        """Read the pages of a sample with their truth."""
        ...

    def tally(self, config: Config, full: bool) -> Tally:
        """The metric; without `full`, only what the figure needs, as fast as it can be."""
        ...

    def predictor(
        self,
        network: nn.Module,
        config: Config,
        engine: EngineChoice,
        tile: int | Literal["auto"] | None = "auto",
        views: str = "none",
        limit: int | None = None,
    ) -> Any:
        """The network with its preprocessing, ready for images; arguments as of `prediction.predictor.Predictor`."""
        ...

    def predict(self, predictor: Any, image: np.ndarray, facts: FileFacts | None = None) -> Any:
        """The task's own result for an image, H x W x C as it comes; `facts` are those of its file."""
        ...

    def draw(self, record: Record, prediction: Any, config: Config) -> dict[str, np.ndarray]:
        """Pictures of a case for the report, by caption."""
        ...

    def predict_files(
        self, predictor: Any, inputs: Sequence[str], options: Any, axes: str | None, listener: Any
    ) -> Any:
        """Predict files and write what the task makes of them: as `prediction.stream.predict_files`."""
        ...
