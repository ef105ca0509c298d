"""Data and machine -> every setting of a run.

The plan depends only on the data, the number of cores, the total memory, the device and the user's settings: never on
a timing, the free memory, or the name of anything. A task fills in what is its own first (`Task.fill`), here comes
what all tasks share.
"""

import math
from collections.abc import Sequence

import numpy as np

from pixelwise.core.config import Config, Overrides
from pixelwise.core.draft import Draft
from pixelwise.core.errors import SettingError
from pixelwise.data.health.examine import LARGE_PIXELS, ImageFacts
from pixelwise.data.health.survey import Survey
from pixelwise.data.pixels.normalize import HIGH, LOW
from pixelwise.data.sets.scenes import typical_size
from pixelwise.engines.machine import Machine
from pixelwise.task import Task

VARYING = 0.25  # spread of the images' contrast or level, relative to the mean contrast
STEPS = 4000  # of a run whose length nobody set
FEW_PIXELS = 200 * 256 * 256  # a smaller training set is learnt by heart within minutes
FEW_AVERAGE = 0.997
FEW_AUGMENTATION = {
    "scale": 0.35,
    "elastic": 6.0,
    "elastic_probability": 0.9,
    "brightness": 0.4,
    "contrast": 0.4,
    "noise": 0.3,
}
GRID = 32  # pixels; sides of a patch are multiples of it
FEWEST_STEPS, MOST_STEPS = 50, 1000  # of an epoch


def make_plan(task: Task, survey: Survey, machine: Machine, overrides: Overrides | None = None) -> Config:
    """Choose every setting that the user left open.

    Args:
        task: what is learnt.
        survey: of the data set's train split (at least).
        machine: from `Machine.here`.
        overrides: the user's settings, section -> key -> value.

    Raises:
        SettingError: a value has the wrong type or is out of range, or two exclude each other.
        DataError: the train split is empty.
    """
    facts = survey.of("train")
    draft = Draft(overrides or {})
    draft.fill("", task=task.name)
    task.fill(draft, survey, machine)
    if survey.dataset.description.nodata is not None:
        draft.fill("data", nodata=survey.dataset.description.nodata)
    _fill_data(draft, facts, survey.channels)
    _fill_training(draft, facts, machine)
    if holds_little(facts):  # the same few patches come round and round: change them more
        draft.fill("augment", **FEW_AUGMENTATION)
    config = draft.config()
    _check_figures(config)
    task.check(config)
    return config


def _fill_data(draft: Draft, facts: Sequence[ImageFacts], channels: int) -> None:
    draft.fill("data", channels=channels, scale=1.0)
    draft.fill("data", normalization="percentile" if intensities_vary(facts) else "fixed")
    stretched = draft["data.normalization"] == "percentile"
    mean, std = intensity_figures(facts, stretched, draft["data.channels"])
    draft.fill("data", mean=mean, std=std, levels=levels(facts))


def _fill_training(draft: Draft, facts: Sequence[ImageFacts], machine: Machine) -> None:
    draft.fill("train", patch=_patch(facts, draft["data.scale"], patch_pixels(machine)))
    draft.fill("train", batch=16 if machine.device == "cuda" else 8)
    pixels = sum(fact.pages * fact.height * fact.width for fact in facts) * draft["data.scale"] ** 2
    draft.fill("train", steps_per_epoch=_steps_per_epoch(pixels, draft["train.patch"], draft["train.batch"]))
    draft.fill("train", rate=2e-3, precision=_precision(machine))
    if holds_little(facts):
        draft.fill("train", average=FEW_AVERAGE)
    if draft["train.minutes"] is None and draft["train.epochs"] is None:
        draft.fill("train", epochs=max(1, round(STEPS / draft["train.steps_per_epoch"])))


def holds_little(facts: Sequence[ImageFacts]) -> bool:
    """Whether the training set is so small that it would be learnt by heart."""
    return sum(fact.pages * fact.height * fact.width for fact in facts) < FEW_PIXELS


def patch_pixels(machine: Machine) -> int:
    """Pixels of a patch: what a step on this machine can see at once."""
    return 512 * 512 if machine.device == "cuda" else LARGE_PIXELS


def _patch(facts: Sequence[ImageFacts], scale: float, pixels: int) -> tuple[int, ...]:
    """A square patch of the machine's size; along an axis where the images are smaller, of theirs."""
    lengths = (max(length * scale, 1) for length in typical_size(facts))
    return tuple(min(math.isqrt(pixels), max(GRID, math.ceil(length / GRID) * GRID)) for length in lengths)


def _steps_per_epoch(pixels: float, patch: tuple[int, int], batch: int) -> int:
    """As many patches as cover the training images once, within limits."""
    steps = pixels / (math.prod(patch) * batch)
    return min(MOST_STEPS, max(FEWEST_STEPS, math.ceil(steps)))


def _precision(machine: Machine) -> str:
    if machine.fast_bf16:
        return "bf16-mixed"
    return "16-mixed" if machine.device == "cuda" else "32-true"


def _check_figures(config: Config) -> None:
    for key in ("mean", "std"):
        count = len(getattr(config.data, key))
        if count != config.data.channels:
            raise SettingError(f"data.{key}: has {count} figures for {config.data.channels} channels.")


def intensities_vary(facts: Sequence[ImageFacts]) -> bool:
    """Whether images differ so much in level or contrast (or are not 8-bit-like) that each needs its own stretch."""
    contrast = np.array([fact.high - fact.low for fact in facts])
    low = np.array([fact.low for fact in facts])
    mean = contrast.mean()
    if not all(fact.integer for fact in facts) or mean < 0.1:  # 12 bits in 16, or floats in units of their own
        return True
    return bool(max(contrast.std(), low.std()) > VARYING * mean)


def levels(facts: Sequence[ImageFacts]) -> list[float]:
    """`data.levels` of the training images, by which a prediction sees that an image is of another kind."""
    low, high = [fact.low for fact in facts], [fact.high for fact in facts]
    figures = [np.median(low), np.median(high), np.percentile(high, 5), np.percentile(high, 95)]
    return [float(f"{figure:.6g}") for figure in figures]


def intensity_figures(facts: Sequence[ImageFacts], percentile: bool, channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, averaged over the images, after the stretch where it is used.

    Means and variances are averaged image by image, so that a large image counts as much as a small one.
    """
    means, variances = [], []
    for fact in facts:
        gain = 2 / max(fact.high - fact.low, 1e-12) if percentile else 1.0
        shift = -1 - fact.low * gain if percentile else 0.0
        means.append(_fit(fact.mean * gain + shift, channels))
        variances.append(_fit(fact.variance * gain**2, channels))
    std = np.sqrt(np.mean(variances, axis=0))
    return np.mean(means, axis=0).round(6).tolist(), np.maximum(std, 1e-6).round(6).tolist()


def _fit(values: np.ndarray, channels: int) -> np.ndarray:
    return np.resize(values, channels) if len(values) != channels else values


def describe(config: Config, survey: Survey) -> list[str]:
    """What the plan chose for the images, in sentences for people; a task adds its own reasons."""
    normalization = (
        f"images differ in brightness: each is stretched between its {LOW:.0f}st and {HIGH:.0f}th percentile"
        if config.data.normalization == "percentile"
        else "images are alike in brightness: the training set's mean and deviation serve all"
    )
    height, width = config.train.patch
    return [
        f"task: {config.task}; {len(survey.of('train'))} training images",
        normalization,
        f"{config.model.title()}; {config.train.batch} patches of {height} x {width} a step, "
        f"at scale {config.data.scale:g}",
    ]
