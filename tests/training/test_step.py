"""One step: the loss, the rate, the optimiser and the average, each against its formula written out."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn

from pixelwise.core.classes import IGNORE
from pixelwise.core.config import Config, PhaseSettings, make_config
from pixelwise.core.errors import SettingError
from pixelwise.data.sets.doctor import Survey, survey
from pixelwise.data.sets.folder import open_dataset
from pixelwise.data.sets.masks import MaskLabels
from pixelwise.data.sets.sampling import Batch
from pixelwise.losses import dual_task_loss, edge_loss, focal_loss
from pixelwise.models import UNet
from pixelwise.training.plan import Machine, make_plan
from pixelwise.training.step import (
    FINAL_RATE,
    Average,
    Criterion,
    Parts,
    WithOutputs,
    make_optimizer,
    make_sampler,
    phase_at,
    pixel_counts,
    rate_factor,
    set_rate,
    set_up,
    to_tensors,
    training_step,
)

SEEDS = st.integers(0, 2**32 - 1)
COUNTS = [700, 250, 50]


def make_settings(train: dict[str, Any] | None = None, loss: dict[str, Any] | None = None) -> Config:
    """A config of three classes."""
    return make_config(
        {
            "data": {
                "labels": "index", "classes": ["a", "b", "c"], "colors": [[0, 0, 0], [9, 9, 9], [8, 8, 8]],
                "values": [], "ignore": [], "channels": 1, "scale": 1.0, "normalization": "fixed",
                "mean": [0.0], "std": [1.0],
            },
            "model": {},
            "train": {"patch": [8, 8], "batch": 2, "epochs": 1, "steps_per_epoch": 2, "rate": 0.1, **(train or {})},
            "augment": {},
            "loss": loss or {},
        }
    )  # fmt: skip


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
    loss = Criterion(make_settings(loss=chosen), COUNTS)(logits_alone(logits), torch.from_numpy(labels))
    entropy = literal_entropy(logits, labels, literal_class_weights(COUNTS, power), None)
    assert loss.item() == pytest.approx(factors[0] * entropy + factors[1] * literal_dice(logits, labels), rel=1e-5)


@given(SEEDS, st.sampled_from([0.0, 1.0]))
@settings(deadline=None, max_examples=20)
def test_loss_with_the_papers_weight_map(seed: int, power: float) -> None:
    logits, labels, border = random_case(seed)
    criterion = Criterion(make_settings(loss={"dice": 0.0, "border": 10.0, "class_weight_power": power}), COUNTS)
    loss = criterion(logits_alone(logits), torch.from_numpy(labels), torch.from_numpy(border))
    expected = literal_entropy(logits, labels, literal_class_weights(COUNTS, power), border)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_border_weights_do_not_touch_the_dice_loss() -> None:
    logits, labels, border = random_case(1)
    criterion = Criterion(make_settings(loss={"border": 10.0}), COUNTS)
    loss = criterion(logits_alone(logits), torch.from_numpy(labels), torch.from_numpy(border))
    entropy = literal_entropy(logits, labels, literal_class_weights(COUNTS, 0.35), border)
    assert loss.item() == pytest.approx(entropy + literal_dice(logits, labels), rel=1e-5)


def test_the_criterion_takes_its_weights_along() -> None:
    criterion = Criterion(make_settings(loss={"border": 1.0}), COUNTS)
    assert criterion.has_border
    assert not Criterion(make_settings(), COUNTS).has_border
    assert dict(criterion.named_buffers())["class_weights"].tolist()[-1] == 0  # what an ignored pixel gets
    assert list(criterion.parameters()) == []


def test_the_focal_loss_keeps_the_class_weights_where_borders_weigh_the_cross_entropy() -> None:
    logits, labels, border = random_case(2)
    criterion = Criterion(make_settings(loss={"dice": 0.0, "focal": 2.0, "border": 10.0}), COUNTS)
    loss = criterion(logits_alone(logits), torch.from_numpy(labels), torch.from_numpy(border))
    weights = literal_class_weights(COUNTS, 0.35)
    focal = focal_loss(torch.from_numpy(logits), torch.from_numpy(labels), class_weights=torch.tensor(weights))
    entropy = literal_entropy(logits, labels, weights, border)
    assert loss.item() == pytest.approx(entropy + 2 * focal.item(), rel=1e-5)


@pytest.mark.parametrize("border", [0.0, 10.0])
def test_other_heads_have_losses_of_their_own(border: float) -> None:
    logits, numbers, weights = random_case(4)
    labels = torch.from_numpy(numbers)
    maps = torch.from_numpy(weights) if border else None
    rng = np.random.default_rng(4)
    other, edges = torch.from_numpy(rng.normal(size=logits.shape)), torch.from_numpy(rng.normal(0, 4, (2, 1, 4, 5)))
    outputs = {**logits_alone(logits), "auxiliary": other, "edges": edges}

    def loss(outputs: dict[str, Tensor], **factors: float) -> float:
        return Criterion(make_settings(loss={"border": border, **factors}), COUNTS)(outputs, labels, maps).item()

    plain, auxiliary = loss(logits_alone(logits)), loss({"logits": other})
    drawn, agreed = edge_loss(edges, labels).item(), dual_task_loss(outputs["logits"], edges, labels).item()
    assert min(auxiliary, drawn, agreed) > 0.1
    assert loss(outputs) == pytest.approx(plain + 0.4 * auxiliary + 2 * drawn + agreed)
    assert loss(outputs, auxiliary=2.0, edges=3.0, dual=0.5) == pytest.approx(
        plain + 2 * auxiliary + 3 * drawn + 0.5 * agreed
    )
    assert loss(outputs, auxiliary=0.0, edges=0.0, dual=0.0) == pytest.approx(plain)


@given(st.floats(0, 1.5), st.floats(0, 0.9))
@settings(deadline=None, max_examples=50)
def test_rate_factor(progress: float, warmup: float) -> None:
    if progress < warmup:
        expected = max(progress / warmup, FINAL_RATE)
    else:
        turn = math.pi * (min(progress, 1) - warmup) / (1 - warmup)
        expected = FINAL_RATE * math.sin(turn / 2) ** 2 + math.cos(turn / 2) ** 2
    assert rate_factor(progress, warmup) == pytest.approx(expected, abs=1e-12)


def test_rate_factor_is_the_cosine_schedule_of_torch() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=0.5 * FINAL_RATE)
    for step in range(41):
        assert 0.5 * rate_factor(step / 40, 0.0) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6, abs=1e-9)
        optimizer.step()
        schedule.step()


def test_rate_factor_has_no_jump() -> None:
    values = np.array([rate_factor(p, 0.1) for p in np.linspace(0, 1, 2001)])
    assert np.abs(np.diff(values)).max() < 0.006
    assert values.max() == pytest.approx(1.0)
    assert values[0] == values[-1] == FINAL_RATE
    assert (np.diff(values[:200]) >= 0).all()
    assert (np.diff(values[201:]) <= 0).all()


class Plain(nn.Sequential):
    """Layers whose only output is the logits."""

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self(images)}


def tiny_network() -> Plain:
    torch.manual_seed(0)
    return Plain(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_biases_and_normalisation_are_not_decayed(name: str, kind: type) -> None:
    network = tiny_network()
    frozen = network[3].bias
    frozen.requires_grad_(False)
    train = {"optimizer": name, "weight_decay": 0.25, "momentum": 0.8, "rate": 0.03}
    optimizer = make_optimizer(network, make_settings(train).train)
    assert type(optimizer) is kind
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = {id(p): 0.25 if p.ndim == 4 else 0.0 for p in network.parameters() if p is not frozen}
    assert decay == expected
    assert all(group["lr"] == 0.03 for group in optimizer.param_groups)
    if name == "sgd":
        assert all(group["momentum"] == 0.8 for group in optimizer.param_groups)
    set_rate(optimizer, 0.007)
    assert [group["lr"] for group in optimizer.param_groups] == [0.007, 0.007]


def test_a_batch_becomes_tensors() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    labels = rng.integers(0, 3, (2, 4, 5)).astype(np.uint8)
    weights = rng.random((2, 4, 5)).astype(np.float32)
    tensors = to_tensors(Batch(images, labels, weights), torch.device("cpu"))
    assert tensors[0].is_contiguous(memory_format=torch.channels_last)
    assert tensors[1].dtype == torch.int64
    for tensor, array in zip(tensors, (images, labels, weights), strict=True):
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), array)
    assert to_tensors(Batch(images, labels, None), torch.device("cpu"))[2] is None


def a_batch(border: bool = False, halves: bool = False) -> Batch:
    rng = np.random.default_rng(3)
    labels = rng.choice([0, 1, 2, IGNORE], (2, 8, 8)).astype(np.uint8)
    if halves:  # so that some pixels are at a boundary and some are not
        labels[:] = [0, 0, 0, 0, 1, 1, 1, 1]
    weights = rng.random((2, 8, 8)).astype(np.float32) if border else None
    return Batch(rng.normal(size=(2, 1, 8, 8)).astype(np.float32), labels, weights)


@pytest.mark.parametrize("clip", [0.0, 0.01])
@pytest.mark.parametrize("border", [False, True])
def test_a_step_is_gradient_clip_and_descent(clip: float, border: bool) -> None:
    config = make_settings(
        {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.5, "rate": 0.1}, {"border": 10.0 if border else 0.0}
    )
    network, batch, criterion = tiny_network(), a_batch(border), Criterion(config, COUNTS)
    twin = copy.deepcopy(network)
    loss = criterion(
        {"logits": twin(torch.from_numpy(batch.images))},
        torch.from_numpy(batch.labels.astype(np.int64)),
        None if batch.weights is None else torch.from_numpy(batch.weights),
    )
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    norm = math.sqrt(sum(float((gradient.double() ** 2).sum()) for gradient in gradients))
    factor = min(1.0, clip / norm) if clip else 1.0
    assert norm > 0.02  # so that the clipped case clips
    expected = [
        p.detach() - 0.1 * (factor * gradient + (0.5 * p.detach() if p.ndim > 1 else 0))
        for p, gradient in zip(twin.parameters(), gradients, strict=True)
    ]
    fabric = Fabric(accelerator="cpu", devices=1)
    wrapped, optimizer = set_up(fabric, network, make_optimizer(network, config.train))
    told = training_step(fabric, wrapped, optimizer, criterion, batch, clip)
    assert not told.requires_grad
    assert told.item() == pytest.approx(loss.item(), rel=1e-5)
    for parameter, value in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-4, atol=1e-5)


def test_gradients_of_one_step_do_not_reach_the_next() -> None:
    config = make_settings({"optimizer": "sgd", "momentum": 0.0, "rate": 1e-12, "weight_decay": 0.0})
    fabric = Fabric(accelerator="cpu", devices=1)
    network = tiny_network()
    wrapped, optimizer = set_up(fabric, network, make_optimizer(network, config.train))
    seen = []
    for _ in range(2):
        training_step(fabric, wrapped, optimizer, Criterion(config, COUNTS), a_batch(), clip=0.0)
        seen.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    for first, second in zip(*seen, strict=True):
        torch.testing.assert_close(first, second)


class TwoHeaded(nn.Module):
    """An encoder and a decoder with batch norm, an auxiliary head, and edges."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.mix = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head, self.auxiliary, self.draw = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 1, 1)
        self.fixed = nn.Parameter(torch.ones(1), requires_grad=False)

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        deep = self.deep(images)
        mixed = self.mix(deep)
        return {"logits": self.head(mixed) * self.fixed, "auxiliary": self.auxiliary(deep), "edges": self.draw(mixed)}

    def forward(self, images: Tensor) -> Tensor:
        return self.outputs(images)["logits"]

    def encoder(self) -> list[nn.Module]:
        return [self.deep]


def test_the_call_of_a_wrapped_network_gives_all_its_outputs() -> None:
    images = torch.randn(2, 1, 8, 8)
    network = TwoHeaded().eval()
    outputs = WithOutputs(network)(images)
    assert list(outputs) == ["logits", "auxiliary", "edges"]
    assert torch.equal(outputs["logits"], network(images))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_trains_every_head_in_the_chosen_precision(precision: Any) -> None:
    torch.manual_seed(0)
    network, seen = TwoHeaded(), []
    network.auxiliary.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    wrapped, optimizer = set_up(fabric, network, make_optimizer(network, make_settings().train))
    before = {name: tensor.clone() for name, tensor in network.named_parameters()}
    training_step(fabric, wrapped, optimizer, Criterion(make_settings(), COUNTS), a_batch(halves=True), clip=1.0)
    changed = {name for name, tensor in network.named_parameters() if not torch.equal(tensor, before[name])}
    assert changed == before.keys() - {"fixed"}
    assert seen == [torch.bfloat16 if precision == "bf16-mixed" else torch.float32]


@pytest.mark.parametrize("parts", ["encoder", "decoder", "all"])
def test_what_is_frozen_keeps_its_weights_and_statistics(parts: str) -> None:
    torch.manual_seed(0)
    network = TwoHeaded()
    fabric = Fabric(accelerator="cpu", devices=1)
    config = make_settings({"weight_decay": 0.1})
    wrapped, optimizer = set_up(fabric, network, make_optimizer(network, config.train))
    switch = Parts(network)
    for each in ("all", parts):
        switch.train(each)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        training_step(fabric, wrapped, optimizer, Criterion(config, COUNTS), a_batch(halves=True), clip=1.0)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    encoder = {name for name in before if name.startswith("deep.")}
    decoder = before.keys() - encoder - {"fixed"}
    assert changed == {"encoder": encoder, "decoder": decoder, "all": encoder | decoder}[parts]
    assert network.mix[2].training
    switch.train("all")
    assert all(module.training for module in network.modules())
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == ["fixed"]


def phases(*rows: tuple[str, float, float]) -> list[PhaseSettings]:
    return [PhaseSettings(parts=parts, share=share, rate=rate) for parts, share, rate in rows]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("network", "parts", "message"),
    [
        (tiny_network, "encoder", 'parts = "encoder": this network has no encoder that could train; use "all"'),
        (lambda: TwoHeaded().requires_grad_(False), "all", 'parts = "all": this network has no all'),
    ],
)
def test_a_phase_in_which_nothing_trains_is_refused(network: Any, parts: str, message: str) -> None:
    Parts(TwoHeaded()).check(phases(("encoder", 1, 1), ("decoder", 1, 1), ("all", 1, 1)))
    with pytest.raises(SettingError, match=rf"^train\.schedule: {message}"):
        Parts(network()).check(phases((parts, 1.0, 1.0)))


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=5), st.floats(0, 1))
@settings(deadline=None, max_examples=50)
def test_phases_follow_one_another_by_their_shares(shares: list[float], progress: float) -> None:
    schedule = phases(*(("all", share, 1.0) for share in shares))
    index, done = phase_at(schedule, progress)
    assert 0 <= done <= 1
    assert (sum(shares[:index]) + done * shares[index]) / sum(shares) == pytest.approx(progress, abs=1e-9)
    assert phase_at(schedule, 0.0) == (0, 0.0)
    assert phase_at(schedule, 1.5) == (len(shares) - 1, 1.0)


def test_one_phase_is_the_whole_run() -> None:
    for progress in np.linspace(0, 1, 50):
        assert phase_at(phases(("all", 1.0, 1.0)), float(progress)) == (0, float(progress))


def drift(network: nn.Module) -> None:
    """Change everything that training changes."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.add_(1 if not tensor.is_floating_point() else torch.randn_like(tensor))


def test_average_is_a_ramped_exponential_mean_of_weights_and_buffers() -> None:
    network = tiny_network()
    average = Average(network, copy.deepcopy(network), decay=0.6)
    expected = {name: tensor.double() for name, tensor in network.state_dict().items()}
    for step in range(1, 31):
        drift(network)
        average.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
            else:
                expected[name] = tensor.double()
    assert any(name.endswith("running_var") for name in expected)
    for name, tensor in average.network.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-5)


def test_average_without_decay_is_a_copy() -> None:
    network = tiny_network()
    average = Average(network, copy.deepcopy(network), decay=0.0)
    drift(network)
    average.update(1000)
    for name, tensor in average.network.state_dict().items():
        torch.testing.assert_close(tensor, network.state_dict()[name])
    assert all(a is not b for a, b in zip(average.network.parameters(), network.parameters(), strict=True))


@pytest.fixture
def surveyed(make_dataset: Callable[..., Path], tmp_path: Path) -> Survey:
    root = make_dataset(tmp_path / "data", count=3, size=(60, 50), kind="index", split=("train", "val"))
    return survey(open_dataset(root), MaskLabels())


def test_pixels_of_the_train_split_are_counted(surveyed: Survey) -> None:
    masks = [np.array(Image.open(sample.target)) for sample in surveyed.dataset.split("train")]
    assert pixel_counts(surveyed) == [sum(int((mask == value).sum()) for mask in masks) for value in range(3)]


def plan(surveyed: Survey, **model: Any) -> Config:
    overrides = {"model": {"width": 2, "depth": 2, "stem": 1, "residual": False, **model}, "train": {"patch": [21, 30]}}
    return make_plan(surveyed, Machine(2, 2**33, "cpu", False), overrides, epochs=1)


def test_patches_of_a_network_with_padding(surveyed: Survey) -> None:
    config = plan(surveyed)
    sampler = make_sampler(config, surveyed, UNet(1, 3, width=2, depth=2))
    batch = sampler.batch(range(3))
    assert batch.images.shape == (3, 1, 21, 30)
    assert batch.labels.shape == (3, 21, 30)


def test_patches_of_a_network_without_padding_have_its_margin(surveyed: Survey) -> None:
    config = plan(surveyed, padding="valid", norm="none")
    network = UNet(1, 3, width=2, depth=2, padding="valid")
    batch = make_sampler(config, surveyed, network).batch(range(3))
    logits: Tensor = network(torch.from_numpy(batch.images))
    assert tuple(logits.shape[-2:]) == batch.labels.shape[-2:]
    assert all(0 <= have - wanted < 4 for have, wanted in zip(batch.labels.shape[1:], (21, 30), strict=True))


def test_a_sampler_draws_from_every_page_and_knows_who_has_a_class(surveyed: Survey) -> None:
    sampler = make_sampler(plan(surveyed), surveyed, UNet(1, 3, width=2, depth=2))
    facts = surveyed.of("train")
    assert [sample for sample, _ in sampler.store.samples] == [fact.sample for fact in facts]
    owners = [[index for index, fact in enumerate(facts) if fact.labels[:, value].any()] for value in range(3)]
    assert sampler._owners == [row for row in owners if row]
