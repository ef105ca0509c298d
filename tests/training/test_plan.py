"""The plan: from data and machine to every setting, and from nothing else."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelwise.core.classes import IGNORE, ClassMap
from pixelwise.core.config import SECTIONS, Config, Overrides, PhaseSettings
from pixelwise.core.errors import DataError, PixelwiseError, SettingError
from pixelwise.data.files.readers import read_image
from pixelwise.data.health.examine import ImageFacts
from pixelwise.data.health.survey import Survey, survey
from pixelwise.data.masks.labels import LabelRule
from pixelwise.data.pixels.normalize import Normalization, match_channels
from pixelwise.data.sets.folder import DataSet, Description, Sample, open_dataset
from pixelwise.data.sets.scenes import is_upright
from pixelwise.engines.machine import Machine
from pixelwise.models import MODELS
from pixelwise.models.checkpoint import settings_of
from pixelwise.tasks import TASKS
from pixelwise.tasks.segment import PUBLISHED
from pixelwise.training import plan
from pixelwise.training.plan import describe, intensities_vary, intensity_figures

MakeDataset = Callable[..., Path]
TASK = TASKS["segment"]
CPU = Machine(cores=2, memory=8 << 30, device="cpu", fast_bf16=False)
GPU = Machine(cores=16, memory=64 << 30, device="cuda", fast_bf16=True)


def make_plan(
    survey: Survey,
    machine: Machine,
    overrides: Overrides | None = None,
) -> Config:
    return plan.make_plan(TASK, survey, machine, overrides)


EVEN = ((50, 50), (50, 50), (50, 50))
SCENE = ((90, 10), (50, 50), (20, 80))
"""Pixels of two classes in the top, middle and bottom third."""


def facts_of(
    name: str = "a",
    size: tuple[int, int] = (300, 400),
    channels: int = 1,
    low: float = 0.1,
    high: float = 0.7,
    integer: bool = True,
    rows: Sequence[Sequence[int]] = EVEN,
    pages: int = 1,
) -> ImageFacts:
    sample = Sample(name, Path(f"{name}.png"), Path(f"{name}_mask.png"))
    mean, variance = np.full(channels, (low + high) / 2), np.full(channels, 0.01)
    return ImageFacts(sample, pages, *size, channels, integer, low, high, mean, variance, np.array(rows))


def surveyed(*facts: ImageFacts, kind: Any = "index", channels: int | None = None) -> Survey:
    rule = LabelRule(kind, ClassMap(("rest", "cell")), (0, 255) if kind == "binary" else (), (7,))
    samples = tuple(fact.sample for fact in facts)
    dataset = DataSet(Path("data"), {"train": samples}, Description())
    return Survey(dataset, rule, {fact.sample.image: fact for fact in facts}, (), channels or facts[0].channels)


USUAL = surveyed(facts_of("a"), facts_of("b"), facts_of("c"))
STREET = surveyed(*(facts_of(name, (360, 480), 3, rows=SCENE) for name in "abc"))


# What it depends on


def test_the_plan_is_the_same_every_time_and_looks_at_nothing_but_its_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = [make_plan(survey, machine) for survey in (USUAL, STREET) for machine in (CPU, GPU)]

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the plan looked at a clock, at the machine, or at chance")

    for module, names in (
        (time, ("time", "monotonic", "perf_counter", "process_time")),
        (psutil, ("virtual_memory", "cpu_count")),
        (os, ("cpu_count", "getenv", "urandom")),
        (torch, ("get_num_threads",)),
        (torch.cuda, ("is_available",)),
        (np.random, ("default_rng",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, forbidden)
    again = [make_plan(survey, machine) for survey in (USUAL, STREET) for machine in (CPU, GPU)]
    monkeypatch.undo()
    assert again == first
    assert len({config.to_toml() for config in first}) == 4


def test_the_plan_knows_no_names() -> None:
    renamed = surveyed(*(facts_of(f"camvid/{name}", (360, 480), 3, rows=SCENE) for name in "xyz"))
    assert make_plan(renamed, CPU) == make_plan(STREET, CPU)


def test_only_the_train_split_counts() -> None:
    other = facts_of("odd", (10, 10), low=0.0, high=0.01, rows=SCENE)
    facts = {**USUAL.facts, other.sample.image: other}
    splits = {**USUAL.dataset.splits, "val": (other.sample,)}
    more = Survey(DataSet(Path("data"), splits, Description()), USUAL.meaning, facts, (), 1)
    assert make_plan(more, CPU) == make_plan(USUAL, CPU)


def test_overrides_are_not_changed_by_the_plan() -> None:
    overrides: Overrides = {"": {"seed": 4}, "train": {"batch": 3}}
    make_plan(USUAL, CPU, overrides)
    assert overrides == {"": {"seed": 4}, "train": {"batch": 3}}


def test_an_empty_train_split_is_refused() -> None:
    empty = Survey(DataSet(Path("data"), {"train": ()}, Description()), USUAL.meaning, {}, (), 1)
    with pytest.raises(DataError, match=r"the split 'train' is empty or missing"):
        make_plan(empty, CPU)


# Data


@pytest.mark.parametrize("kind", ["binary", "index", "instances"])
def test_the_labels_are_those_of_the_survey(kind: str) -> None:
    found = surveyed(facts_of(), kind=kind)
    data = make_plan(found, CPU).data
    assert (data.labels, data.classes, data.ignore) == (kind, ["rest", "cell"], [7])
    assert data.values == {"binary": [0, 255], "index": [0, 1], "instances": []}[kind]
    assert LabelRule.from_settings(data) == found.meaning


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ([facts_of(low=0.1, high=0.7), facts_of(low=0.12, high=0.75)], "fixed"),
        ([facts_of(low=0.1, high=0.3), facts_of(low=0.1, high=0.9)], "percentile"),  # contrast varies
        ([facts_of(low=0.0, high=0.3), facts_of(low=0.6, high=0.9)], "percentile"),  # level varies
        ([facts_of(low=0.0, high=0.06)], "percentile"),  # 12 bits in 16
        ([facts_of(low=0.1, high=0.19)], "percentile"),
        ([facts_of(low=0.1, high=0.7, integer=False)], "percentile"),  # numbers in units of their own
        ([facts_of(), facts_of("b", low=0.1, high=700.0, integer=False)], "percentile"),
    ],
)
def test_images_that_vary_or_fill_little_of_their_range_are_stretched(facts: list[ImageFacts], kind: str) -> None:
    assert intensities_vary(facts) == (kind == "percentile")
    named = [
        facts_of(f"{number}", low=fact.low, high=fact.high, integer=fact.integer) for number, fact in enumerate(facts)
    ]
    assert make_plan(surveyed(*named), CPU).data.normalization == kind


def literal_figures(images: list[np.ndarray], percentile: bool, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """From the pixels themselves: normalised with mean 0 and deviation 1, then averaged over the images."""
    plain = Normalization(percentile, (0.0,) * channels, (1.0,) * channels)
    normalised = [plain(match_channels(image, channels)).astype(np.float64) for image in images]
    mean = np.mean([image.mean((0, 1)) for image in normalised], axis=0)
    return mean, np.sqrt(np.mean([image.var((0, 1)) for image in normalised], axis=0))


@pytest.mark.parametrize("percentile", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_deviation_are_those_of_the_normalised_images(
    tmp_path: Path, make_dataset: MakeDataset, percentile: bool, channels: int
) -> None:
    root = make_dataset(tmp_path, count=5, channels=channels, split=("train",))
    found = survey(open_dataset(root), TASK.labels, splits=("train", "val"))
    images = [read_image(sample.image)[0] for sample in found.dataset.split("train")]
    mean, std = literal_figures(images, percentile, channels)
    assert intensity_figures(found.of("train"), percentile, channels) == (
        pytest.approx(mean, abs=2e-6),
        pytest.approx(std, abs=2e-6),
    )
    data = make_plan(found, CPU, {"data": {"normalization": "percentile" if percentile else "fixed"}}).data
    assert (data.mean, data.std) == (pytest.approx(mean, abs=2e-6), pytest.approx(std, abs=2e-6))
    if channels == 1:  # grey images used as RGB
        wide = literal_figures(images, percentile, 3)
        # Three times the values lie a little differently between the percentiles.
        assert intensity_figures(found.of("train"), percentile, 3)[0] == pytest.approx(wide[0], abs=1e-3)


def test_a_flat_training_set_has_a_deviation_above_0() -> None:
    flat = facts_of(low=0.2, high=0.2 + 1e-300)
    object.__setattr__(flat, "variance", np.zeros(1))
    assert all(value > 0 for value in intensity_figures([flat], True, 1)[1])
    assert make_plan(surveyed(flat), CPU).data.std == [1e-6]


# Scenes


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_upright_is_a_distance_between_top_and_bottom(seed: int) -> None:
    rng = np.random.default_rng(seed)
    facts = [facts_of(rows=rng.integers(0, 100, (3, 4))) for _ in range(3)]
    top, bottom = (sum(fact.labels[third] for fact in facts) for third in (0, 2))
    distance = sum(abs(a / top.sum() - b / bottom.sum()) for a, b in zip(top, bottom, strict=True)) / 2
    assert is_upright(facts) == (distance > 0.2)


def test_images_without_labels_at_the_top_are_not_upright() -> None:
    assert not is_upright([facts_of(rows=((0, 0), (5, 5), (90, 10)))])
    assert not is_upright([facts_of(rows=((90, 10), (5, 5), (0, 0)))])
    assert is_upright([facts_of(rows=((90, 10), (0, 0), (10, 90)))])


def test_upright_data_are_not_turned_over() -> None:
    augment = make_plan(STREET, CPU).augment
    assert (augment.flip_horizontal, augment.flip_vertical, augment.turns) == (True, False, False)
    assert augment.rotation <= 10
    assert augment.elastic == 0
    free = make_plan(USUAL, CPU).augment
    assert (free.flip_horizontal, free.flip_vertical, free.turns, free.rotation) == (True, True, True, 180)
    assert free.elastic > 0


@pytest.mark.parametrize("size", [(360, 480), (64, 64), (720, 960), (1000, 2000), (300, 300)])
@pytest.mark.parametrize("machine", [CPU, GPU])
def test_an_upright_scene_fits_a_patch(size: tuple[int, int], machine: Machine) -> None:
    config = make_plan(surveyed(facts_of(size=size, rows=SCENE)), machine)
    pixels = 256**2 if machine is CPU else 512**2
    area = size[0] * size[1]
    assert area * config.data.scale**2 <= pixels
    assert config.data.scale == 1 or area * (2 * config.data.scale) ** 2 > pixels  # no smaller than it must be
    assert np.log2(config.data.scale) % 1 == 0
    for side, length in zip(config.train.patch, size, strict=True):
        assert side % 32 == 0
        assert abs(side - length * config.data.scale) <= 16 or side == 32


@pytest.mark.parametrize(
    ("size", "patch"), [((300, 400), (256, 256)), ((100, 400), (128, 256)), ((7, 65), (32, 96)), ((1, 1), (32, 32))]
)
def test_a_patch_is_no_larger_than_it_need_be(size: tuple[int, int], patch: tuple[int, int]) -> None:
    config = make_plan(surveyed(facts_of(size=size)), CPU)
    assert config.train.patch == patch
    assert config.data.scale == 1


@pytest.mark.parametrize(
    ("count", "pages", "batch", "steps"),
    [(3, 1, 8, 50), (1000, 1, 8, 229), (100, 10, 8, 229), (1000, 1, 4, 458), (100_000, 1, 8, 1000)],
)
def test_an_epoch_sees_every_pixel_about_once(count: int, pages: int, batch: int, steps: int) -> None:
    facts = [facts_of(f"{number}", pages=pages) for number in range(min(count, 1000))]
    if count > 1000:
        facts = [facts_of(f"{number}", pages=count // 1000) for number in range(1000)]
    config = make_plan(surveyed(*facts), CPU, {"train": {"batch": batch}})
    # 300 x 400 pixels an image, 256 x 256 a patch.
    assert config.train.steps_per_epoch == steps
    assert steps in (50, 1000) or steps == int(np.ceil(count * pages * 120_000 / (65_536 * batch)))


# Machine


def test_a_gpu_gets_more_work_and_its_precision() -> None:
    cpu, gpu = make_plan(USUAL, CPU), make_plan(surveyed(facts_of(size=(2000, 2000))), GPU)
    assert (cpu.train.batch, cpu.train.patch, cpu.model.stem, cpu.train.precision) == (8, (256, 256), 2, "32-true")
    assert (gpu.train.batch, gpu.train.patch, gpu.model.stem, gpu.train.precision) == (16, (512, 512), 1, "bf16-mixed")
    old = Machine(16, 64 << 30, "cuda", fast_bf16=False)
    assert make_plan(USUAL, old).train.precision == "16-mixed"
    assert make_plan(USUAL, Machine(2, 8 << 30, "cpu", fast_bf16=True)).train.precision == "bf16-mixed"
    assert make_plan(USUAL, Machine(8, 8 << 30, "mps", fast_bf16=False)).train.precision == "32-true"


def test_small_images_are_not_folded() -> None:
    assert make_plan(surveyed(facts_of(size=(63, 400))), CPU).model.stem == 1
    assert make_plan(surveyed(facts_of(size=(64, 400))), CPU).model.stem == 2


# Published weights

EQUIPPED = Machine(cores=2, memory=8 << 30, device="cpu", fast_bf16=False, encoders=(PUBLISHED,))


def test_a_cpu_starts_from_the_installed_weights() -> None:
    planned = make_plan(USUAL, EQUIPPED)
    assert (planned.model.name, planned.model.backbone, planned.model.pretrained) == ("unet", PUBLISHED, True)
    assert planned.model.stem is None
    assert planned.train.encoder_rate < 1
    assert make_plan(USUAL, CPU).model.backbone is None


@pytest.mark.parametrize(
    "overrides",
    [
        {"model": {"pretrained": False}},
        {"model": {"backbone": "resnet18"}},
        {"model": {"stem": 2}},
        {"model": {"padding": "valid"}},
        {"model": {"norm": "group"}},
        {"model": {"name": "segnet"}},
        {"train": {"recipe": "paper"}},
    ],
)
def test_a_network_that_the_user_describes_is_left_alone(overrides: Overrides) -> None:
    planned = make_plan(USUAL, EQUIPPED, overrides)
    assert planned.model.backbone == overrides.get("model", {}).get("backbone")
    assert not planned.model.pretrained
    assert planned.train.encoder_rate == 1


def test_where_published_weights_were_not_measured_they_are_taken_if_asked_for() -> None:
    small, gpu = surveyed(facts_of(size=(63, 400))), Machine(16, 64 << 30, "cuda", True, (PUBLISHED,))
    for found, machine in ((small, EQUIPPED), (USUAL, gpu), (USUAL, CPU)):
        assert make_plan(found, machine).model.backbone is None
        asked = make_plan(found, machine, {"model": {"pretrained": True}}).model
        assert (asked.backbone, asked.pretrained) == (PUBLISHED, True)


# Length


def test_a_run_has_either_minutes_or_epochs() -> None:
    def length(**train: Any) -> tuple[float | None, int | None]:
        planned = make_plan(USUAL, CPU, {"train": train}).train
        return planned.minutes, planned.epochs

    assert length() == (None, 80)  # 4,000 steps, 50 an epoch
    assert length(steps_per_epoch=1000) == (None, 4)
    assert length(steps_per_epoch=100_000) == (None, 1)
    assert length(minutes=2.5) == (2.5, None)
    assert length(epochs=3) == (None, 3)


def test_minutes_and_epochs_exclude_each_other() -> None:
    with pytest.raises(SettingError, match=r"^minutes and epochs exclude each other; set one of them\.$"):
        make_plan(USUAL, CPU, {"train": {"minutes": 1.0, "epochs": 1}})


def test_the_seed_and_the_task_are_kept() -> None:
    assert make_plan(USUAL, CPU).seed == 0
    assert make_plan(USUAL, CPU).task == "segment"
    assert make_plan(USUAL, CPU, {"": {"seed": 4}}).seed == 4
    with pytest.raises(SettingError, match=r"^settings: seed = -1: "):
        make_plan(USUAL, CPU, {"": {"seed": -1}})


# Settings


CHOICES = {
    "data.classes": ["x", "y"],
    "data.colors": [(1, 2, 3), (4, 5, 6)],
    "data.values": [1, 2],
    "data.ignore": [9],
    "data.channels": 3,
    "data.scale": 0.3,
    "data.normalization": "percentile",
    "data.mean": [0.25],
    "data.std": [0.125],
    "model.name": "patch",
    "model.width": 7,
    "model.depth": 2,
    "model.padding": "valid",
    "model.norm": "group",
    "model.dropout": 0.25,
    "model.stem": 4,
    "model.residual": False,
    "train.patch": (40, 50),
    "train.batch": 3,
    "train.steps_per_epoch": 11,
    "train.optimizer": "sgd",
    "train.rate": 0.5,
    "train.momentum": 0.25,
    "train.weight_decay": 0.5,
    "train.precision": "bf16-mixed",
    "train.average": 0.5,
    "augment.flip_vertical": True,
    "augment.turns": True,
    "augment.rotation": 77.0,
    "augment.elastic": 1.5,
    "augment.brightness": 0.0,
    "loss.dice": 0.25,
    "loss.border": 3.0,
    "loss.class_weight_power": 0.75,
    "loss.focal": 0.5,
    "loss.auxiliary": 1.5,
    "model.backbone": "resnet18",
    "model.output_stride": 16,
    "train.schedule": [PhaseSettings(parts="decoder", share=2.0, rate=0.5)],
}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("recipe", ["default", "paper"])
@pytest.mark.parametrize("found", [USUAL, STREET])
def test_what_the_user_sets_stays(name: str, recipe: str, found: Survey) -> None:
    section, key = name.split(".")
    if found is STREET and key in ("mean", "std"):
        pytest.skip("one figure for three channels")
    overrides: Overrides = {"train": {"recipe": recipe}}
    overrides.setdefault(section, {})[key] = CHOICES[name]
    config = make_plan(found, CPU, overrides)
    assert getattr(getattr(config, section), key) == CHOICES[name]
    assert len(config.data.mean) == len(config.data.std) == config.data.channels


JUNK: list[Any] = ["junk", "", -1, 0, 10**30, 1e300, float("nan"), float("inf"), True, [], [1], ["a", {}], {}, {"a": 1}]


@pytest.mark.parametrize(
    "name", [f"{section}.{key}" for section, kind in SECTIONS.items() for key in kind.model_fields]
)
@pytest.mark.parametrize("found", [USUAL, STREET])
def test_whatever_the_user_sets_the_plan_stands_or_names_the_setting(name: str, found: Survey) -> None:
    section, key = name.split(".")
    for recipe in ("default", "paper"):
        for value in JUNK:
            overrides: Overrides = {"train": {"recipe": recipe}}
            overrides.setdefault(section, {})[key] = value
            try:
                config = make_plan(found, CPU, overrides)
            except SettingError as error:
                assert name in str(error)  # noqa: PT017
            else:
                assert isinstance(config, Config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data": {"mean": [0.1, 0.2]}}, r"^data\.mean: has 2 figures for 1 channels\.$"),
        ({"data": {"std": [0.1, 0.2, 0.3]}}, r"^data\.std: has 3 figures for 1 channels\.$"),
        (
            {"loss": {"tversky": 1, "tversky_alpha": 0, "tversky_beta": 0}},
            r"^loss\.tversky_alpha, loss\.tversky_beta: both are 0, so errors cost nothing\. Set one of them",
        ),
        (
            {"loss": {"cross_entropy": 0, "dice": 0}},
            r"^loss\.cross_entropy, loss\.dice, loss\.focal, .*: all are 0, so there is nothing to minimise\. Set at ",
        ),
        (
            {"model": {"auxiliary": True}, "loss": {"auxiliary": 0}},
            r"^model\.auxiliary: loss\.auxiliary = 0 would leave the auxiliary head untrained; set it above 0, or ",
        ),
        (
            {"loss": {"cross_entropy": 0, "border": 5}},
            r"^loss\.border: weights the cross entropy, which loss\.cross_entropy = 0 switches off\.$",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides: Overrides, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_plan(USUAL, CPU, overrides)


@pytest.mark.parametrize("name", ["focal", "tversky", "lovasz"])
def test_any_loss_of_classes_is_enough(name: str) -> None:
    config = make_plan(USUAL, CPU, {"loss": {"cross_entropy": 0, "dice": 0, name: 1}})
    assert getattr(config.loss, name) == 1


def test_without_padding_there_is_neither_stem_nor_shortcut() -> None:
    model = make_plan(USUAL, CPU, {"model": {"padding": "valid"}}).model
    assert (model.stem, model.residual, model.norm) == (1, False, "batch")


def test_a_small_training_set_is_guarded_against_learning_it_by_heart() -> None:
    many = make_plan(surveyed(*(facts_of(str(number)) for number in range(1000))), CPU)
    few = make_plan(USUAL, CPU)
    assert many.augment == SECTIONS["augment"]()
    assert many.model.dropout == 0 < few.model.dropout < 0.5
    for key in ("scale", "elastic", "elastic_probability", "brightness", "contrast", "noise"):
        assert getattr(few.augment, key) > getattr(many.augment, key)
    assert make_plan(STREET, CPU).augment.elastic == 0


@pytest.mark.parametrize("name", [name for name in MODELS if name != "unet"])
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_another_network_is_made_small_and_keeps_its_other_defaults(name: str, machine: Machine) -> None:
    sizes = MODELS[name].small if machine is CPU else MODELS[name].large
    model = make_plan(USUAL, machine, {"model": {"name": name}}).model
    assert model.model_dump() == SECTIONS["model"](name=name, **sizes).model_dump()
    assert set(sizes) <= set(settings_of(name))
    chosen = make_plan(USUAL, machine, {"model": {"name": name, "width": 7}}).model
    assert chosen.width == 7


def test_a_unet_on_a_backbone_has_the_levels_of_the_backbone() -> None:
    model = make_plan(USUAL, CPU, {"model": {"backbone": "resnet18"}}).model
    assert (model.name, model.width, model.depth, model.stem, model.residual) == ("unet", 32, None, None, None)


def test_the_papers_recipe() -> None:
    """Ronneberger et al. 2015, sections 2 and 3."""
    for found, machine in ((USUAL, CPU), (STREET, CPU), (USUAL, GPU)):
        config = make_plan(found, machine, {"train": {"recipe": "paper"}})
        model, train, loss = config.model, config.train, config.loss
        assert (model.name, model.width, model.depth, model.padding) == ("unet", 64, 4, "valid")
        assert (model.norm, model.dropout, model.stem, model.residual) == ("none", 0.5, 1, False)
        assert (train.patch, train.batch) == ((388, 388), 1)  # of a tile of 572 x 572
        assert (train.optimizer, train.momentum, train.weight_decay, train.average) == ("sgd", 0.99, 0, 0)
        assert (loss.cross_entropy, loss.dice, loss.border, loss.border_sigma) == (1, 0, 10, 5)
        assert loss.class_weight_power == 1
        assert train.recipe == "paper"
    assert make_plan(USUAL, CPU).train.recipe == "default"


# Words


def test_the_reasons_are_told() -> None:
    planned = make_plan(USUAL, CPU)
    lines = describe(planned, USUAL)
    assert lines[0] == "task: segment; 3 training images"
    assert "alike in brightness" in lines[1]
    assert lines[2] == "unet, width 32, depth 4; 8 patches of 256 x 256 a step, at scale 1"
    labels, scene = TASK.reasons(planned, USUAL)
    assert labels == "labels: index (rest, cell)"
    assert "turned and mirrored freely" in scene
    dark = surveyed(*(facts_of(str(high), (360, 480), 3, low=0, high=high, rows=SCENE) for high in (0.2, 0.9)))
    planned = make_plan(dark, CPU)
    assert "each is stretched between its 1st and 99th percentile" in describe(planned, dark)[1]
    assert "up stays up" in TASK.reasons(planned, dark)[1]
    assert describe(planned, dark)[2].endswith("at scale 0.5")


def test_a_real_survey_gives_a_plan_that_can_be_kept(tmp_path: Path, make_dataset: MakeDataset) -> None:
    found = survey(open_dataset(make_dataset(tmp_path, count=8, kind="color", channels=3)), TASK.labels)
    config = make_plan(found, CPU)
    assert (config.data.labels, config.data.channels, len(config.data.classes)) == ("color", 3, 3)
    assert LabelRule.from_settings(config.data) == found.meaning
    assert IGNORE not in range(len(config.data.classes))
    assert issubclass(SettingError, PixelwiseError)
