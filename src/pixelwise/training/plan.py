"""Data and machine -> every setting of a run.

The plan depends only on the data, the number of cores, the total memory, the device and the user's settings: never on
a timing, the free memory, or the name of anything.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import psutil
import torch

from pixelwise.core.config import MAX_CHANNELS, Config, Overrides, make_config
from pixelwise.core.errors import SettingError
from pixelwise.data.pixels.normalize import HIGH, LOW
from pixelwise.data.sets.doctor import ImageFacts, Survey
from pixelwise.losses import check_factors
from pixelwise.models import MODELS

UPRIGHT = 0.2  # share of pixels whose class would have to move for the top third to look like the bottom third
VARYING = 0.25  # spread of the images' contrast or level, relative to the mean contrast
STEPS = 4000  # of a run whose length nobody set
FEW_PIXELS = 200 * 256 * 256  # a smaller training set is learnt by heart within minutes
FEW_DROPOUT = 0.3
FEW_AVERAGE = 0.997
FEW_AUGMENTATION = {
    "scale": 0.35,
    "elastic": 6.0,
    "elastic_probability": 0.9,
    "brightness": 0.4,
    "contrast": 0.4,
    "noise": 0.3,
}
Value = TypeVar("Value")


@dataclass(frozen=True)
class Machine:
    """What the plan may know of a machine."""

    cores: int
    memory: int  # bytes, of the CPU
    device: str  # cpu, cuda or mps
    fast_bf16: bool  # the device computes in bfloat16 faster than in float32

    @classmethod
    def here(cls, device: str = "auto") -> "Machine":
        """This machine."""
        device = pick_device(device)
        if device == "cpu":
            abilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
            fast_bf16 = bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
        else:
            fast_bf16 = device == "cuda" and torch.cuda.is_bf16_supported()
        return cls(torch.get_num_threads(), psutil.virtual_memory().total, device, fast_bf16)


def pick_device(name: str) -> str:
    """The device to use: a named one if it is there, or the fastest for "auto".

    Raises:
        SettingError: the named device is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if there[device])
    if not there.get(name):
        present = ", ".join(device for device, is_there in there.items() if is_there)
        raise SettingError(f"device {name}: is not there; this machine has: {present}.")
    return name


def make_plan(
    survey: Survey,
    machine: Machine,
    overrides: Overrides | None = None,
    minutes: float | None = None,
    epochs: int | None = None,
    seed: int | None = None,
) -> Config:
    """Choose every setting that the user did not.

    Args:
        survey: of the data set's train split (at least).
        machine: from `Machine.here`.
        overrides: the user's settings, section -> key -> value.
        minutes, epochs, seed: the command line's own options; they win over `overrides`.

    Raises:
        SettingError: a value is of the wrong type or out of range, or two exclude each other.
        DataError: the train split is empty.
    """
    planner = _Planner(survey, machine, overrides or {})
    planner.plan_length(minutes, epochs)
    tree = planner.tree()
    if seed is not None:
        tree["seed"] = seed
    config = make_config(tree, "settings")
    _check(config)
    return config


class _Planner:
    """One method a section; each fills in what the user left open, in the order in which things depend."""

    def __init__(self, survey: Survey, machine: Machine, overrides: Overrides) -> None:
        self.survey = survey
        self.machine = machine
        self.facts = survey.of("train")
        self.chosen = {section: dict(values) for section, values in overrides.items()}
        self.upright = is_upright(self.facts)
        self.few = sum(f.pages * f.height * f.width for f in self.facts) < FEW_PIXELS
        self.paper = self.chosen.get("train", {}).get("recipe") == "paper"
        self._plan_data()
        self._plan_model()
        self._plan_training()
        self._plan_augmentation()

    def default(self, section: str, key: str, value: Value) -> Value:
        """The user's value if there is one, else `value`, which becomes the setting."""
        return self.chosen.setdefault(section, {}).setdefault(key, value)

    def tree(self) -> dict[str, Any]:
        top = self.chosen.pop("", {})
        return {
            **top,
            **{section: self.chosen.get(section, {}) for section in ("data", "model", "train", "augment", "loss")},
        }

    def _plan_data(self) -> None:
        rule = self.survey.meaning
        self.default("data", "labels", rule.kind)
        self.default("data", "classes", list(rule.classes.names))
        self.default("data", "colors", [list(color) for color in rule.classes.colors])
        self.default("data", "values", list(rule.values))
        self.default("data", "ignore", list(rule.ignore))
        channels = self.default("data", "channels", self.survey.channels)
        self.default("data", "scale", self._scale())
        kind = self.default("data", "normalization", "percentile" if intensities_vary(self.facts) else "fixed")
        usable = int(channels) if isinstance(channels, int) and 1 <= channels <= MAX_CHANNELS else 1  # or refused below
        mean, std = intensity_figures(self.facts, kind == "percentile", usable)
        self.default("data", "mean", mean)
        self.default("data", "std", std)

    def _pixels(self) -> int:
        """Pixels of a patch: what a step on this machine can see at once."""
        return 512 * 512 if self.machine.device == "cuda" else 256 * 256

    def _typical_size(self) -> tuple[float, float]:
        return float(np.median([f.height for f in self.facts])), float(np.median([f.width for f in self.facts]))

    def _scale(self) -> float:
        """Full resolution, unless the labels depend on where in the picture they stand.

        Then a patch must see the whole scene: the scale is the largest 1/2^k at which an image fits a patch.
        """
        if not self.upright:
            return 1.0
        height, width = self._typical_size()
        return 0.5 ** max(0, math.ceil(math.log(height * width / self._pixels(), 4)))

    def _plan_model(self) -> None:
        name = self.default("model", "name", "unet")
        if name == "unet" and self.chosen["model"].get("backbone") is None:
            self._plan_unet()
        elif isinstance(name, str):
            for key, value in _preset(name, self.machine.device).items():
                self.default("model", key, value)

    def _plan_unet(self) -> None:
        padding = self.default("model", "padding", "valid" if self.paper else "same")
        small = min(self._typical_size()) < 64
        fold = self.machine.device != "cuda" and not small and padding == "same"
        self.default("model", "stem", 2 if fold else 1)
        self.default("model", "width", 64 if self.paper else 32)
        self.default("model", "depth", 4)
        self.default("model", "residual", padding == "same")
        self.default("model", "norm", "none" if self.paper else "batch")
        self.default("model", "dropout", 0.5 if self.paper else FEW_DROPOUT if self.few else 0.0)

    def _plan_training(self) -> None:
        patch = self.default("train", "patch", self._patch())
        batch = self.default("train", "batch", 1 if self.paper else 16 if self.machine.device == "cuda" else 8)
        self.default("train", "steps_per_epoch", self._steps_per_epoch(patch, batch))
        if self.paper:
            self._plan_paper_training()
        self.default("train", "rate", 2e-3)
        if self.few:
            self.default("train", "average", FEW_AVERAGE)
        self.default("train", "precision", self._precision())

    def _plan_paper_training(self) -> None:
        """Ronneberger et al. 2015, section 3; the rate, which they do not state, is ours."""
        self.default("train", "optimizer", "sgd")
        self.default("train", "momentum", 0.99)
        self.default("train", "rate", 1e-3)
        self.default("train", "weight_decay", 0.0)
        self.default("train", "average", 0.0)
        self.default("loss", "dice", 0.0)
        self.default("loss", "border", 10.0)
        self.default("loss", "class_weight_power", 1.0)

    def _patch(self) -> list[int]:
        """Near-square patches of the machine's size, no larger than an image; whole scenes where those count."""
        if self.paper:
            return [388, 388]
        scale = self.chosen["data"]["scale"]
        grid = 32
        if not (isinstance(scale, int | float) and 0 < scale < 1e6):
            scale = 1.0  # refused below, with the setting's name
        lengths = [max(length * scale, 1) for length in self._typical_size()]
        side = math.isqrt(self._pixels())
        if self.upright:
            return [max(grid, round(length / grid) * grid) for length in lengths]
        return [min(side, max(grid, math.ceil(length / grid) * grid)) for length in lengths]

    def _steps_per_epoch(self, patch: Any, batch: Any) -> int:
        """As many patches as cover the training images once, but no fewer than 50 and no more than 1,000 steps."""
        try:
            scale = float(self.chosen["data"]["scale"])
            pixels = sum(fact.pages * fact.height * fact.width for fact in self.facts) * scale**2
            steps = math.ceil(pixels / (int(patch[0]) * int(patch[1]) * int(batch)))
        except (TypeError, ValueError, LookupError, ArithmeticError):
            return 50  # one of them makes no sense, which the config's check says better
        return min(1000, max(50, steps))

    def _precision(self) -> str:
        if self.machine.fast_bf16:
            return "bf16-mixed"
        return "16-mixed" if self.machine.device == "cuda" else "32-true"

    def _plan_augmentation(self) -> None:
        if self.upright:  # up is up: a scene is mirrored sideways and hardly tilted
            self.default("augment", "flip_vertical", False)
            self.default("augment", "turns", False)
            self.default("augment", "rotation", 8.0)
            self.default("augment", "elastic", 0.0)
        if self.few:  # the same few patches come round and round: change them more
            for key, value in FEW_AUGMENTATION.items():
                self.default("augment", key, value)
        self.chosen.setdefault("augment", {})
        self.chosen.setdefault("loss", {})

    def plan_length(self, minutes: float | None, epochs: int | None) -> None:
        """Epochs or minutes: the command line's, else the settings', else a usual number of steps."""
        train = self.chosen["train"]
        if minutes is not None or epochs is not None:
            train["minutes"], train["epochs"] = minutes, epochs
        if train.get("minutes") is not None and train.get("epochs") is not None:
            raise SettingError("minutes and epochs exclude each other; set one of them.")
        if train.get("minutes") is None and train.get("epochs") is None:
            steps = train["steps_per_epoch"]
            train["epochs"] = max(1, round(STEPS / steps)) if isinstance(steps, int) and steps > 0 else 1


def _preset(name: str, device: str) -> Mapping[str, Any]:
    """What a network itself says of this device; an unknown one is refused when it is built."""
    network = MODELS.get(name)
    if network is None:
        return {}
    return network.small if device == "cpu" else network.large


def _check(config: Config) -> None:
    """Combinations that no single setting shows."""
    for key in ("mean", "std"):
        if len(getattr(config.data, key)) != config.data.channels:
            raise SettingError(
                f"data.{key}: has {len(getattr(config.data, key))} figures for {config.data.channels} channels."
            )
    if config.data.labels == "binary" and len(set(config.data.values)) != 2:
        raise SettingError(
            f"data.values = {config.data.values}: binary labels have two values, of class 0 and class 1."
        )
    check_factors(config.loss)
    if config.model.auxiliary and not config.loss.auxiliary:
        raise SettingError(
            "model.auxiliary: loss.auxiliary = 0 would leave the auxiliary head untrained; "
            "set it above 0, or model.auxiliary to false."
        )
    if config.loss.border and config.loss.cross_entropy == 0:
        raise SettingError("loss.border: weights the cross entropy, which loss.cross_entropy = 0 switches off.")


def is_upright(facts: Sequence[ImageFacts]) -> bool:
    """Whether what is at the top of the pictures differs from what is at the bottom, as in a camera's scene.

    Measured by the total variation distance between the class frequencies of the images' top and bottom thirds.
    """
    rows = np.sum([fact.labels for fact in facts], axis=0).astype(np.float64)
    if not rows[0].sum() or not rows[2].sum():
        return False
    share = rows / np.maximum(rows.sum(1, keepdims=True), 1)
    return bool(np.abs(share[0] - share[2]).sum() / 2 > UPRIGHT)


def intensities_vary(facts: Sequence[ImageFacts]) -> bool:
    """Whether images differ so much in level or contrast (or are not 8-bit-like) that each needs its own stretch."""
    contrast = np.array([fact.high - fact.low for fact in facts])
    low = np.array([fact.low for fact in facts])
    mean = contrast.mean()
    if not all(fact.integer for fact in facts) or mean < 0.1:  # 12 bits in 16, or floats in units of their own
        return True
    return bool(max(contrast.std(), low.std()) > VARYING * mean)


def intensity_figures(facts: Sequence[ImageFacts], percentile: bool, channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation a channel, averaged over the images, after the stretch where it is used.

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
    """The plan's reasons in a few sentences, for people."""
    facts = survey.of("train")
    normalization = (
        f"images differ in brightness: each is stretched between its {LOW:.0f}st and {HIGH:.0f}th percentile"
        if config.data.normalization == "percentile"
        else "images are alike in brightness: the training set's mean and deviation serve all"
    )
    scene = (
        "classes depend on the height in the picture: a patch sees the whole scene, up stays up"
        if is_upright(facts)
        else "no direction is special: patches are turned and mirrored freely"
    )
    return [
        f"labels: {config.data.labels} ({', '.join(config.data.classes)}); {len(facts)} training images",
        normalization,
        scene,
        f"{config.model.title()}; {config.train.batch} patches of "
        f"{config.train.patch[0]} x {config.train.patch[1]} a step, at scale {config.data.scale:g}",
    ]
