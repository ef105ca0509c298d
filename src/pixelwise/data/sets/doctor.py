"""Is a data set sound, what kind of labels does it have, and what do its images look like?

`survey` reads every image and mask once: it finds what would ruin a training before a minute is spent on it, and
gathers the figures that the plan is made from.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from pixelwise.core.classes import IGNORE
from pixelwise.core.errors import DataError, SettingError, near
from pixelwise.core.progress import Progress
from pixelwise.core.windows import reader
from pixelwise.data.files.readers import read_image, read_mask
from pixelwise.data.pixels.normalize import percentile_range, require_finite, unit_scale
from pixelwise.data.sets.folder import DataSet, Sample, without
from pixelwise.data.sets.labels import Evidence, LabelRule, make_rule

CODES = {
    "image-without-mask": "an image has no mask of the same stem",
    "mask-without-image": "a mask has no image of the same stem",
    "same-stem": "two files differ only in their extension",
    "unreadable": "a file cannot be read",
    "size-differs": "an image and its mask differ in size",
    "label-unknown": "a mask holds values that stand for no class",
    "not-finite": "an image holds NaN or infinite values",
    "channels-differ": "images differ in their number of channels",
}
"""What can be wrong, by code; `--allow CODE` leaves the files concerned out instead of stopping."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with some files, why it matters, and what to do."""

    code: str
    severity: Literal["error", "warning"]
    files: tuple[Path, ...]
    message: str
    fix: str

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.files[:3])) + (
            f" and {len(self.files) - 3} more" if len(self.files) > 3 else ""
        )
        return f"{shown}: {self.message} {self.fix} [{self.code}]"


@dataclass(frozen=True)
class ImageFacts:
    """What one image and its mask look like. Intensities are in units of `normalize.unit_scale`."""

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
    row_counts: np.ndarray  # 3 x K pixels of each class in the top, middle and bottom third

    @property
    def class_counts(self) -> np.ndarray:
        """K pixels of each class."""
        return self.row_counts.sum(0)


@dataclass(frozen=True)
class Survey:
    """A sound data set, the meaning of its labels, and its figures."""

    dataset: DataSet
    rule: LabelRule
    facts: dict[Path, ImageFacts]  # by the image's path
    problems: tuple[Problem, ...]
    channels: int  # of the images as the network will see them

    def of(self, split: str) -> list[ImageFacts]:
        """The facts of a split's samples."""
        return [self.facts[sample.image] for sample in self.dataset.split(split)]


def survey(
    dataset: DataSet,
    rule: LabelRule | None = None,
    allow: Collection[str] = (),
    splits: Sequence[str] = ("train", "val", "test"),
    progress: Progress | None = None,
) -> Survey:
    """Read and check the samples of some splits.

    Args:
        dataset: from `folder.open_dataset`.
        rule: the meaning of the labels, where it is known (a run's); otherwise it is inferred.
        allow: codes of `CODES` whose files are left out instead of being an error.
        splits: the splits to read.
        progress: is called with (done, all).

    Raises:
        DataError: something is wrong with the data; the message lists the problems.
        SettingError: `allow` holds an unknown code.
    """
    for code in allow:
        if code not in CODES:
            raise SettingError(f"--allow {code}: is not a code of a problem; {near(code, CODES)}")
    samples = [sample for split in splits for sample in dataset.splits.get(split, ())]
    problems = _unpaired(dataset)
    if rule is None:
        evidence, unreadable = _gather(samples, dataset.description.axes)
        problems += unreadable
        bad = {path for problem in unreadable for path in problem.files}
        _stop_at_errors(problems, allow)
        if not samples:
            dataset.split(splits[0])  # says that it is empty
        try:
            rule = make_rule(dataset.description, evidence)
        except DataError as error:
            raise DataError(f"{dataset.root}: {error}") from error
    else:
        bad = set()
    readable = [sample for sample in samples if sample.mask not in bad]
    facts, found = _examine_all(readable, rule, dataset.description.axes, progress)
    channels, odd = _common_channels(facts)
    problems += [*found, *odd]
    _stop_at_errors(problems, allow)
    left_out = {path for problem in problems if problem.severity == "error" for path in problem.files}
    return Survey(
        without(dataset, left_out),
        rule,
        {fact.sample.image: fact for fact in facts if fact.sample.image not in left_out},
        tuple(problems),
        channels,
    )


def _unpaired(dataset: DataSet) -> list[Problem]:
    rows = (
        (
            "image-without-mask",
            dataset.images_without_mask,
            "has no mask of the same stem in masks/.",
            "Add the mask or",
        ),
        (
            "mask-without-image",
            dataset.masks_without_image,
            "has no image of the same stem in images/.",
            "Add it or",
        ),
        ("same-stem", dataset.same_stem, "has the same stem as another file beside it.", "Rename one or"),
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


def _threads() -> int:
    return min(8, os.cpu_count() or 1)


def _gather(samples: Sequence[Sample], axes: str | None) -> tuple[Evidence, list[Problem]]:
    evidence, problems = Evidence(), []

    def read(sample: Sample) -> np.ndarray | DataError:
        try:
            return read_mask(sample.mask, axes)
        except DataError as error:
            return error

    with ThreadPoolExecutor(_threads()) as pool:
        for sample, mask in zip(samples, pool.map(read, samples), strict=True):
            if isinstance(mask, DataError):
                problems.append(_unreadable(sample.mask, mask))
            else:
                for page in mask:
                    evidence.add(page)
    return evidence, problems


def _unreadable(path: Path, error: DataError) -> Problem:
    text = str(error).removeprefix(f"{path}: ")
    return Problem("unreadable", "error", (path,), text, "Replace the file, or leave it out with --allow unreadable.")


def _examine_all(
    samples: Sequence[Sample], rule: LabelRule, axes: str | None, progress: Progress | None
) -> tuple[list[ImageFacts], list[Problem]]:
    facts: list[ImageFacts] = []
    problems: list[Problem] = []
    with ThreadPoolExecutor(_threads()) as pool:
        for done, result in enumerate(pool.map(lambda sample: examine(sample, rule, axes), samples), start=1):
            if isinstance(result, ImageFacts):
                facts.append(result)
            else:
                problems.append(result)
            if progress:
                progress(done, len(samples))
    return facts, problems


def examine(sample: Sample, rule: LabelRule, axes: str | None = None) -> ImageFacts | Problem:
    """Read one image and its mask: their figures, or what is wrong with them."""
    try:
        image = read_image(sample.image, axes)
    except DataError as error:
        return _unreadable(sample.image, error)
    try:
        mask = read_mask(sample.mask, axes)
    except DataError as error:
        return _unreadable(sample.mask, error)
    if image.shape[:3] != mask.shape[:3]:
        return Problem(
            "size-differs",
            "error",
            (sample.image,),
            f"is {_size(image)}, but its mask {sample.mask} is {_size(mask)}.",
            "Make both the same size, or leave the pair out with --allow size-differs.",
        )
    try:
        require_finite(image)
    except DataError as error:
        return Problem("not-finite", "error", (sample.image,), str(error), "Or use --allow not-finite.")
    try:
        labels = np.stack([rule.to_indices(page) for page in mask])
    except DataError as error:
        return Problem("label-unknown", "error", (sample.mask,), str(error), "Or use --allow label-unknown.")
    return _facts(sample, image, labels, len(rule.classes))


def _size(array: np.ndarray) -> str:
    pages = f"{array.shape[0]} pages of " if array.shape[0] > 1 else ""
    return f"{pages}{array.shape[2]} x {array.shape[1]}"


def _facts(sample: Sample, image: np.ndarray, labels: np.ndarray, num_classes: int) -> ImageFacts:
    pages, height, width, channels = image.shape
    scale = unit_scale(image.dtype)
    flat = image.reshape(-1, channels)
    tall = image.reshape(-1, width, channels)
    low, high = percentile_range(reader(tall), *tall.shape)
    edges = [0, -(-height // 3), -(-2 * height // 3), height]
    rows = [_count(labels[:, top:bottom], num_classes) for top, bottom in pairwise(edges)]
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
        np.stack(rows),
    )


def _count(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.bincount(labels.ravel(), minlength=IGNORE + 1)[:num_classes]


def _common_channels(facts: Sequence[ImageFacts]) -> tuple[int, list[Problem]]:
    """Grey and RGB mix (grey is repeated); other mixtures are an error."""
    counts = Counter(fact.channels for fact in facts)
    if len(counts) <= 1:
        return next(iter(counts), 1), []
    if set(counts) == {1, 3}:
        grey = tuple(fact.sample.image for fact in facts if fact.channels == 1)
        message = f"is grey while {counts[3]} other images are RGB."
        return 3, [Problem("channels-differ", "warning", grey, message, "It is used as RGB with three equal channels.")]
    usual = counts.most_common(1)[0][0]
    odd = tuple(fact.sample.image for fact in facts if fact.channels != usual)
    message = f"has another number of channels than the {usual} of most images."
    fix = "Convert it, or leave it out with --allow channels-differ."
    return usual, [Problem("channels-differ", "error", odd, message, fix)]
