"""Is a data set sound, what do its labels mean, and what do its images look like?

`read_samples` looks at every image and its labels once. `understand` says what the labels mean and what would ruin a
training, before a minute is spent on it, and gathers the figures that the plan is made from.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pixelwise.core.errors import DataError
from pixelwise.core.progress import Progress
from pixelwise.data.files.facts import FileFacts
from pixelwise.data.health import checks
from pixelwise.data.health.alignment import Fit
from pixelwise.data.health.examine import Examined, ImageFacts, LabelReader, examine
from pixelwise.data.health.kept import Memory, Notebook
from pixelwise.data.health.problems import Interpretation, Problem, current, stop_at_errors
from pixelwise.data.sets.folder import DataSet, Description, without
from pixelwise.data.sets.pairs import Sample
from pixelwise.data.sets.splits import SPLITS

MISREAD = frozenset({"instances-as-classes", "classes-as-instances"})
"""Where these show, classes are not what was meant, and nothing is to be said about them."""


class Labels(LabelReader, Protocol):
    """What must be known about a task's labels."""

    @property
    def facts_types(self) -> tuple[type, ...]:
        """The dataclasses that what `look` returns is made of."""
        ...

    def interpret(
        self, description: Description, found: Sequence[tuple[Sample, Any]], allow: Collection[str]
    ) -> Interpretation:
        """What the labels of a data set mean, given what `look` returned for its samples.

        Raises:
            DataError: `dataset.toml` contradicts the labels.
        """
        ...

    def carried_over(
        self, meaning: Any, description: Description, found: Sequence[tuple[Sample, Any]]
    ) -> Interpretation:
        """What the labels of another data set mean to a run; what is `told` are notes.

        Args:
            meaning: that the run was trained with.
            description: what the data set's `dataset.toml` says.
            found: its samples with what `look` returned.

        Raises:
            DataError: the run cannot be measured on it.
        """
        ...

    def count(self, facts: Any, meaning: Any) -> Any:
        """What the labels of a sample hold under this meaning; `facts` come from `look`.

        Raises:
            DataError: some labels have no meaning.
        """
        ...

    def draw(self, loaded: Any, meaning: Any) -> np.ndarray:
        """A picture, H x W x 3 uint8, of the first page's labels."""
        ...

    def mender(
        self, description: Description, found: Sequence[tuple[Sample, Any]], codes: Collection[str]
    ) -> Callable[[Any, Any], Any | None]:
        """A function of a sample's target and its loaded labels, which returns them as they should be by these codes.

        It returns None where nothing is to change.
        """
        ...

    def vanishing(self, facts: Sequence[ImageFacts], meaning: Any, scale: float) -> list[Problem]:
        """What would be lost if the images were resized by `scale`."""
        ...

    def check(self, splits: Mapping[str, Sequence[ImageFacts]], meaning: Any) -> list[Problem]:
        """What is wrong with the labels of the splits together, now that they are counted."""
        ...


@dataclass(frozen=True)
class Reading:
    """Everything that was read of a data set."""

    dataset: DataSet
    labels: Labels
    examined: tuple[Examined, ...]
    memory: Memory | None = None  # the pixels of the train split, as far as they were read now and fit


@dataclass(frozen=True)
class Survey:
    """A data set, the meaning of its labels, its problems and its figures."""

    dataset: DataSet  # without the files that are left out
    meaning: Any  # of the labels: a `LabelRule` where they are masks; None: they have none
    facts: dict[Path, ImageFacts]  # by the image's path
    problems: tuple[Problem, ...]
    channels: int  # of the images as the network will see them
    told: tuple[str, ...] = ()  # what the labels were taken for, and by what
    reading: Reading | None = field(default=None, repr=False)

    def of(self, split: str) -> list[ImageFacts]:
        """The facts of a split's samples."""
        return [self.facts[sample.image] for sample in self.dataset.split(split)]

    def with_meaning(self, meaning: Any, allow: Collection[str] = ()) -> "Survey":
        """The survey under another meaning of the labels; no file is read again.

        Raises:
            DataError: some labels have no meaning then; the message lists the problems.
        """
        assert self.reading is not None
        return sound(understand(self.reading, meaning, allow), allow)

    @property
    def pixels(self) -> Memory | None:
        """Decoded pixels of the train split, if they were kept."""
        return self.reading.memory if self.reading else None


def survey(
    dataset: DataSet,
    labels: Labels,
    *,
    meaning: Any = None,
    allow: Collection[str] = (),
    splits: Sequence[str] = SPLITS,
    progress: Progress | None = None,
) -> Survey:
    """Read and check the samples of some splits.

    Args:
        dataset: from `folder.open_dataset`.
        labels: how labels are read and understood.
        meaning: of the labels, if it is known (that of a run); otherwise it is inferred.
        allow: codes of problems that are no reason to stop.
        splits: the splits to read.
        progress: is called with the number of samples read and of all.

    Raises:
        DataError: something is wrong with the data; the message lists the problems.
        SettingError: `allow` contains an unknown code.
    """
    allow = current(allow)
    return sound(understand(read_samples(dataset, labels, splits, progress), meaning, allow), allow)


def sound(found: Survey, allow: Collection[str]) -> Survey:
    """The survey itself, if nothing is wrong with the data that is not allowed.

    Raises:
        DataError: something is; the message lists the problems.
    """
    stop_at_errors(found.problems, allow)
    return found


def read_samples(
    dataset: DataSet,
    labels: Labels,
    splits: Sequence[str] = SPLITS,
    progress: Progress | None = None,
    memory: Memory | None = None,
) -> Reading:
    """Look at the samples of some splits; what is known of files that have not changed is taken from the notebook.

    Args:
        dataset: from `folder.open_dataset`.
        labels: how labels are read.
        splits: the splits to read.
        progress: is called with the number of samples read and of all.
        memory: takes the pixels of the train split that had to be read.
    """
    samples = [(split, sample) for split in splits for sample in dataset.splits.get(split, ())]
    description = dataset.description
    question = f"{type(labels).__name__} {description.axes} {description.nodata}"
    parts = (Examined, ImageFacts, Problem, Sample, FileFacts, Fit, *labels.facts_types)
    notebook = Notebook(dataset.root, question, parts)

    def look(place: tuple[str, Sample]) -> Examined:
        split, sample = place
        known: Examined | None = notebook.read(sample)
        if known is not None:
            return _for(sample, known)
        examined, pixels = examine(sample, labels, description.axes, description.nodata)
        notebook.write(sample, examined)
        if memory is not None and pixels is not None and split == "train":
            memory.keep(sample, pixels)
        return examined

    examined = tuple(_in_order(look, samples, progress))
    notebook.save()
    return Reading(dataset, labels, examined, memory)


def _for(sample: Sample, known: Examined) -> Examined:
    """What was noted, of the sample as it is called now."""
    found = known.found
    return replace(
        known, sample=sample, found=replace(found, sample=sample) if isinstance(found, ImageFacts) else found
    )


def _in_order(look: Any, samples: Sequence[tuple[str, Sample]], progress: Progress | None) -> Iterator[Examined]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, examined in enumerate(pool.map(look, samples), start=1):
            yield examined
            if progress:
                progress(done, len(samples))


def understand(reading: Reading, meaning: Any = None, allow: Collection[str] = ()) -> Survey:
    """What a data set is like and what is wrong with it; it may be anything.

    Args:
        reading: from `read_samples`.
        meaning: of the labels, if it is known, or what finds it, given the description and the samples with the facts
            of their labels (as `Labels.carried_over`); otherwise it is inferred.
        allow: codes of problems that are no reason to stop.
    """
    dataset, labels = reading.dataset, reading.labels
    problems = [*checks.of_folders(dataset), *(one.found for one in reading.examined if isinstance(one.found, Problem))]
    told: tuple[str, ...] = ()
    if callable(meaning):
        try:
            carried = meaning(dataset.description, labels_of(reading))
        except DataError as error:
            raise DataError(f"{dataset.root}: {error}") from error
        meaning, told = carried.meaning, carried.told
        problems += carried.problems
    if meaning is None:
        interpretation = _interpreted(reading, allow)
        meaning, told = interpretation.meaning, interpretation.told
        problems += interpretation.problems
    counted: list[ImageFacts] = []
    for one in reading.examined:
        if isinstance(one.found, ImageFacts):
            found = _counted(one.found, one.labels, labels, meaning) if meaning is not None else one.found
            (counted if isinstance(found, ImageFacts) else problems).append(found)  # type: ignore[arg-type]
    channels, odd = checks.common_channels(counted)
    problems += odd
    left_out = {path for problem in problems if problem.leaves_out for path in problem.files}
    facts = {fact.sample.image: fact for fact in counted if fact.sample.image not in left_out}
    kept = without(dataset, left_out)
    read = {sample.image for sample in (one.sample for one in reading.examined)}
    splits = {
        name: [facts[sample.image] for sample in samples if sample.image in facts]
        for name, samples in kept.splits.items()
        if any(sample.image in read for sample in samples)
    }
    problems += checks.of_images(splits)
    if meaning is not None and not {problem.code for problem in problems} & MISREAD:
        problems += labels.check(splits, meaning)
    return Survey(kept, meaning, facts, tuple(checks.gathered(problems)), channels, told, reading)


def _interpreted(reading: Reading, allow: Collection[str]) -> Interpretation:
    """The meaning of the labels; what dataset.toml contradicts is a problem like others."""
    description, root = reading.dataset.description, reading.dataset.root
    found = labels_of(reading)
    if not found:
        return Interpretation(None, ())
    try:
        return reading.labels.interpret(description, found, allow)
    except DataError as error:
        return Interpretation(None, (Problem("contradiction", (root,), str(error), ""),))


def labels_of(reading: Reading) -> list[tuple[Sample, Any]]:
    """The samples whose labels could be read, with what these hold."""
    return [(one.sample, one.labels) for one in reading.examined if one.labels is not None]


def _counted(found: ImageFacts, facts: Any, labels: Labels, meaning: Any) -> ImageFacts | Problem:
    """The figures together with what the labels hold under a meaning, or what is wrong."""
    try:
        return replace(found, labels=labels.count(facts, meaning))
    except DataError as error:
        return Problem(
            "unknown-value", (found.sample.files[-1],), str(error), "Or leave the file out with --allow unknown-value."
        )
