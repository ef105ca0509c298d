"""Is a data set sound, what do its labels mean, and what do its images look like?

`survey` reads every image and its labels once: it finds what would ruin a training before a minute is spent on it, and
gathers the figures that the plan is made from.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from typing_extensions import override

from pixelwise.core.errors import DataError, SettingError, near
from pixelwise.core.progress import Progress
from pixelwise.core.windows import reader
from pixelwise.data.files.readers import read_picture, turn_text
from pixelwise.data.pixels.normalize import Numbers, percentile_range, require_finite, with_data
from pixelwise.data.sets.folder import DataSet, Description, Sample, without

CODES = {
    "image-without-mask": "an image has no mask with the same stem",
    "mask-without-image": "a mask has no image with the same stem",
    "same-stem": "two files differ only in their extension",
    "unreadable": "a file cannot be read",
    "size-differs": "an image and its mask differ in size",
    "label-unknown": "a mask holds values that do not stand for a class",
    "not-finite": "an image holds NaN or infinite values",
    "channels-differ": "images differ in their number of channels",
}
"""What can be wrong, by code; `--allow CODE` leaves the affected files out instead of stopping."""


class LabelFacts(Protocol):
    """What is kept of one sample's labels: figures, never pixels."""

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Pages, height and width of the image that they were made for; None if labels have no size."""
        ...


class Labels(Protocol):
    """What the doctor must know about a task's labels."""

    def read(self, sample: Sample, axes: str | None) -> LabelFacts:
        """Read the labels of one sample; many threads may call this at the same time.

        Raises:
            DataError: they cannot be read.
        """
        ...

    def meaning(self, description: Description, facts: Sequence[Any]) -> Any:
        """What the labels of a data set mean, given what `read` returned for its samples.

        Raises:
            DataError: the labels have no valid meaning, or contradict `dataset.toml`.
        """
        ...

    def count(self, facts: Any, meaning: Any) -> Any:
        """What the labels of a sample hold under this meaning; `facts` come from `read`.

        Raises:
            DataError: some labels have no meaning.
        """
        ...


@dataclass(frozen=True)
class Problem:
    """What is wrong with some files, and what to do about it."""

    code: str
    severity: Literal["error", "warning"]
    files: tuple[Path, ...]
    message: str
    fix: str

    @override
    def __str__(self) -> str:
        shown = ", ".join(map(str, self.files[:3])) + (
            f" and {len(self.files) - 3} more" if len(self.files) > 3 else ""
        )
        return f"{shown}: {self.message} {self.fix} [{self.code}]"


@dataclass(frozen=True)
class ImageFacts:
    """What one image and its labels look like. Intensities are in units of `normalize.unit_scale`."""

    sample: Sample
    pages: int
    height: int
    width: int
    channels: int
    integer: bool
    low: float  # 1st percentile over all channels
    high: float  # 99th
    mean: np.ndarray  # C
    variance: np.ndarray  # C
    labels: Any = None  # what `Labels.count` gave


@dataclass(frozen=True)
class Examined:
    """What was read of one sample, before the meaning of its labels is known."""

    sample: Sample
    labels: LabelFacts | None  # None: they cannot be read
    found: ImageFacts | Problem


@dataclass(frozen=True)
class Reading:
    """Everything that was read of a data set."""

    dataset: DataSet
    labels: Labels
    examined: tuple[Examined, ...]


@dataclass(frozen=True)
class Survey:
    """A sound data set, the meaning of its labels, and its figures."""

    dataset: DataSet
    meaning: Any  # of the labels: a `LabelRule` where they are masks
    facts: dict[Path, ImageFacts]  # by the image's path
    problems: tuple[Problem, ...]
    channels: int  # of the images as the network will see them
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
        return _understood(self.reading, meaning, allow)


def survey(
    dataset: DataSet,
    labels: Labels,
    *,
    meaning: Any = None,
    allow: Collection[str] = (),
    splits: Sequence[str] = ("train", "val", "test"),
    progress: Progress | None = None,
) -> Survey:
    """Read and check the samples of some splits.

    Args:
        dataset: from `folder.open_dataset`.
        labels: how labels are read and understood.
        meaning: of the labels, if it is known (that of a run); otherwise it is inferred.
        allow: codes of `CODES` whose files are left out instead of being an error.
        splits: the splits to read.
        progress: is called with the number of samples read and of all.

    Raises:
        DataError: something is wrong with the data; the message lists the problems.
        SettingError: `allow` contains an unknown code.
    """
    for code in allow:
        if code not in CODES:
            raise SettingError(f"--allow {code}: no problem has this code; {near(code, CODES)}")
    samples = [sample for split in splits for sample in dataset.splits.get(split, ())]
    if not samples and meaning is None:
        _stop_at_errors(_unpaired(dataset), allow)
        dataset.split(splits[0])  # says that it is empty
    reading = Reading(dataset, labels, tuple(_examine_all(samples, labels, dataset.description, progress)))
    if meaning is None:
        meaning = _inferred(reading, allow)
    return _understood(reading, meaning, allow)


def _inferred(reading: Reading, allow: Collection[str]) -> Any:
    """The meaning of the labels; if they have none, other problems are reported first."""
    facts = [one.labels for one in reading.examined if one.labels is not None]
    try:
        return reading.labels.meaning(reading.dataset.description, facts)
    except DataError as error:
        _stop_at_errors(_problems(reading.dataset, (one.found for one in reading.examined)), allow)
        raise DataError(f"{reading.dataset.root}: {error}") from error


def _understood(reading: Reading, meaning: Any, allow: Collection[str]) -> Survey:
    """The survey under a meaning of the labels."""
    found = [_counted(one, reading.labels, meaning) for one in reading.examined]
    facts = [one for one in found if isinstance(one, ImageFacts)]
    channels, odd = _common_channels(facts)
    problems = [*_problems(reading.dataset, found), *odd]
    _stop_at_errors(problems, allow)
    left_out = {path for problem in problems if problem.severity == "error" for path in problem.files}
    kept = {fact.sample.image: fact for fact in facts if fact.sample.image not in left_out}
    return Survey(without(reading.dataset, left_out), meaning, kept, tuple(problems), channels, reading)


def _counted(examined: Examined, labels: Labels, meaning: Any) -> ImageFacts | Problem:
    """The figures together with what the labels hold under a meaning, or what is wrong."""
    if isinstance(examined.found, Problem):
        return examined.found
    try:
        return replace(examined.found, labels=labels.count(examined.labels, meaning))
    except DataError as error:
        return _error("label-unknown", examined.sample.files[-1], str(error), "Or use")


def _problems(dataset: DataSet, found: Iterable[ImageFacts | Problem]) -> list[Problem]:
    return [*_unpaired(dataset), *(one for one in found if isinstance(one, Problem))]


def _unpaired(dataset: DataSet) -> list[Problem]:
    rows = (
        (
            "image-without-mask",
            dataset.images_without_mask,
            "has no mask with the same stem in masks/.",
            "Add the mask or",
        ),
        (
            "mask-without-image",
            dataset.masks_without_image,
            "has no image with the same stem in images/.",
            "Add it or",
        ),
        ("same-stem", dataset.same_stem, "has the same stem as another file next to it.", "Rename one or"),
    )
    return [
        Problem(code, "error", paths, message, f"{fix} remove the file, or leave it out with --allow {code}.")
        for code, paths, message, fix in rows
        if paths
    ]


def _stop_at_errors(problems: Iterable[Problem], allow: Collection[str]) -> None:
    errors = [problem for problem in problems if problem.severity == "error" and problem.code not in allow]
    if errors:
        shown = "\n".join(str(problem) for problem in errors[:20])
        rest = f"\n... and {len(errors) - 20} more problems" if len(errors) > 20 else ""
        raise DataError(shown + rest)


def _examine_all(
    samples: Sequence[Sample], labels: Labels, description: Description, progress: Progress | None
) -> Iterator[Examined]:
    """Each sample in order."""
    axes, nodata = description.axes, description.nodata
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, examined in enumerate(
            pool.map(lambda sample: examine(sample, labels, axes, nodata), samples), start=1
        ):
            yield examined
            if progress:
                progress(done, len(samples))


def examine(sample: Sample, labels: Labels, axes: str | None = None, nodata: float | None = None) -> Examined:
    """Read one image and its labels: their figures, or what is wrong with them."""
    try:
        facts = labels.read(sample, axes)
    except DataError as error:
        return Examined(sample, None, _unreadable(sample.files[-1], error))
    return Examined(sample, facts, _examine_image(sample, facts.shape, axes, nodata))


def _examine_image(
    sample: Sample, shape: tuple[int, int, int] | None, axes: str | None, nodata: float | None
) -> ImageFacts | Problem:
    """The figures of an image whose labels have pages, height and width of `shape`."""
    try:
        picture = read_picture(sample.image, axes)
    except DataError as error:
        return _unreadable(sample.image, error)
    image, numbers = picture.pixels, Numbers.of(picture.pixels.dtype, picture.facts, nodata)
    if shape is not None and image.shape[:3] != shape:
        turn = turn_text(image.shape, shape, picture.facts)
        message = f"is {_size(image.shape)}, but its mask {sample.target} is {_size(shape)}.{turn}"
        return _error("size-differs", sample.image, message, "Make both the same size, or leave the pair out with")
    try:
        require_finite(with_data(image, numbers.nodata))
    except DataError as error:
        return _error("not-finite", sample.image, str(error), "Or use")
    return _facts(sample, image, numbers)


def _unreadable(path: Path, error: DataError) -> Problem:
    text = str(error).removeprefix(f"{path}: ")
    return _error("unreadable", path, text, "Replace the file, or leave it out with")


def _error(code: str, path: Path, message: str, fix: str) -> Problem:
    """A problem with a file; `fix` is continued by the option that allows it."""
    return Problem(code, "error", (path,), message, f"{fix} --allow {code}.")


def _size(shape: Sequence[int]) -> str:
    pages = f"{shape[0]} pages of " if shape[0] > 1 else ""
    return f"{pages}{shape[2]} x {shape[1]}"


def _facts(sample: Sample, image: np.ndarray, numbers: Numbers | None = None) -> ImageFacts:
    numbers = numbers or Numbers(image.dtype)
    pages, height, width, channels = image.shape
    scale = numbers.unit
    flat = with_data(image, numbers.nodata)
    if not flat.size:
        flat = np.zeros((1, channels), image.dtype)
    tall = image.reshape(-1, width, channels)
    low, high = percentile_range(reader(tall), tall.shape[0], width, channels, numbers.nodata)
    return ImageFacts(
        sample,
        pages,
        height,
        width,
        channels,
        bool(np.issubdtype(image.dtype, np.integer)),
        low * scale,
        high * scale,
        flat.mean(0, dtype=np.float64) * scale,
        flat.var(0, dtype=np.float64) * scale**2,
    )


def _common_channels(facts: Sequence[ImageFacts]) -> tuple[int, list[Problem]]:
    """The usual number of channels; grey and RGB may be mixed (grey is repeated), others may not."""
    counts = Counter(fact.channels for fact in facts)
    if len(counts) <= 1:
        return next(iter(counts), 1), []
    if set(counts) == {1, 3}:
        grey = tuple(fact.sample.image for fact in facts if fact.channels == 1)
        message = f"is grey while {counts[3]} other images are RGB."
        return 3, [Problem("channels-differ", "warning", grey, message, "It is used as RGB with three equal channels.")]
    usual = counts.most_common(1)[0][0]
    odd = tuple(fact.sample.image for fact in facts if fact.channels != usual)
    message = f"has another number of channels than most images, which have {usual}."
    fix = "Convert it, or leave it out with --allow channels-differ."
    return usual, [Problem("channels-differ", "error", odd, message, fix)]
