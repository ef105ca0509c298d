"""One step: the loss, the rate, the optimiser and the average, each against its formula written out."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric
from torch import Tensor, nn

from pixelwise.core.classes import IGNORE
from pixelwise.core.config import PhaseSettings
from pixelwise.core.errors import SettingError
from pixelwise.data.sets.sampling import Batch
from pixelwise.losses import cross_entropy
from pixelwise.training.step import (
    FINAL_RATE,
    Average,
    Learner,
    Parts,
    make_optimizer,
    phase_at,
    rate_factor,
    to_tensors,
)
from trainings import three_classes


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


class Tiny(nn.Sequential):
    """A network of one part."""

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self(images)}

    def parts(self) -> dict[str, list[nn.Module]]:
        return {"encoder": []}


def tiny_network() -> Tiny:
    torch.manual_seed(0)
    return Tiny(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_biases_and_normalisation_are_not_decayed(name: str, kind: type) -> None:
    network = tiny_network()
    frozen = network[3].bias
    frozen.requires_grad_(False)
    train = {"optimizer": name, "weight_decay": 0.25, "momentum": 0.8, "rate": 0.03}
    optimizer = make_optimizer(network, three_classes(train).train)
    assert type(optimizer) is kind
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = {id(p): 0.25 if p.ndim == 4 else 0.0 for p in network.parameters() if p is not frozen}
    assert decay == expected
    assert all(group["lr"] == 0.03 for group in optimizer.param_groups)
    if name == "sgd":
        assert all(group["momentum"] == 0.8 for group in optimizer.param_groups)


def test_a_batch_becomes_tensors() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    targets = {
        "labels": rng.integers(0, 3, (2, 4, 5)).astype(np.uint16),
        "border": rng.random((2, 4, 5)).astype(np.float32),
        "boxes": [rng.random((count, 4)).astype(np.float32) for count in (3, 1)],
    }
    batch, tensors = to_tensors(Batch(images, targets), torch.device("cpu"))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(batch.numpy(), images)
    assert (tensors["labels"].dtype, tensors["border"].dtype) == (torch.int64, torch.float32)
    for name in ("labels", "border"):
        np.testing.assert_array_equal(tensors[name].numpy(), targets[name])
    for tensor, array in zip(tensors["boxes"], targets["boxes"], strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)


def a_batch(halves: bool = False) -> Batch:
    rng = np.random.default_rng(3)
    labels = rng.choice([0, 1, 2, IGNORE], (2, 8, 8)).astype(np.uint16)
    if halves:  # so that some pixels are at a boundary and some are not
        labels[:] = [0, 0, 0, 0, 1, 1, 1, 1]
    return Batch(rng.normal(size=(2, 1, 8, 8)).astype(np.float32), {"labels": labels})


def entropy_and_size(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """A loss of two parts."""
    entropies = [cross_entropy(outputs[name], targets["labels"]) for name in outputs if name != "edges"]
    drawn = [outputs["edges"].square().mean()] if "edges" in outputs else []
    return {"entropy": sum(entropies, torch.zeros(())), "size": sum(drawn, 0.1 * outputs["logits"].square().mean())}


def make_learner(network: nn.Module, train: dict[str, Any] | None = None, precision: Any = "32-true") -> Learner:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    return Learner(fabric, three_classes(train), network, entropy_and_size)


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_a_step_is_gradient_clip_and_descent(clip: float) -> None:
    train = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.5, "rate": 0.1, "clip": clip}
    network, batch = tiny_network(), a_batch()
    twin = copy.deepcopy(network)
    labels = torch.from_numpy(batch.targets["labels"].astype(np.int64))
    parts = entropy_and_size({"logits": twin(torch.from_numpy(batch.images))}, {"labels": labels})
    gradients = torch.autograd.grad(parts["entropy"] + parts["size"], list(twin.parameters()))
    norm = math.sqrt(sum(float((gradient.double() ** 2).sum()) for gradient in gradients))
    factor = min(1.0, clip / norm) if clip else 1.0
    assert norm > 0.02  # so that the clipped case clips
    expected = [
        p.detach() - 0.1 * (factor * gradient + (0.5 * p.detach() if p.ndim > 1 else 0))
        for p, gradient in zip(twin.parameters(), gradients, strict=True)
    ]
    told = make_learner(network, train).descend(batch)
    assert not any(part.requires_grad for part in told.values())
    assert {name: part.item() for name, part in told.items()} == pytest.approx(
        {name: part.item() for name, part in parts.items()}, rel=1e-5
    )
    for parameter, value in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-4, atol=1e-5)


def test_gradients_of_one_step_do_not_reach_the_next() -> None:
    network = tiny_network()
    train = {"optimizer": "sgd", "momentum": 0.0, "rate": 1e-12, "weight_decay": 0.0, "clip": 0.0}
    learner, seen = make_learner(network, train), []
    for _ in range(2):
        learner.descend(a_batch())
        seen.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    for first, second in zip(*seen, strict=True):
        torch.testing.assert_close(first, second)


def test_a_step_averages_and_tells_the_parts_of_the_loss() -> None:
    learner = make_learner(tiny_network(), {"average": 0.5})
    start = copy.deepcopy(learner.average.network).state_dict()
    learner.begin(0.5)
    losses = learner.step(a_batch(), number=100)
    assert losses.keys() == {"entropy", "size"}
    assert all(isinstance(value, float) and value > 0 for value in losses.values())
    for name, tensor in learner.average.network.state_dict().items():
        if tensor.is_floating_point():
            mean = 0.5 * start[name] + 0.5 * learner.network.state_dict()[name]
            torch.testing.assert_close(tensor, mean)


def test_the_rate_and_the_parts_follow_the_schedule() -> None:
    schedule = [{"parts": "decoder", "share": 1, "rate": 1.0}, {"parts": "all", "share": 1, "rate": 0.5}]
    learner = make_learner(TwoHeaded(), {"schedule": schedule, "rate": 0.1, "warmup": 0.0})
    assert [learner.begin(progress) for progress in (0.0, 0.25, 0.5, 0.75)] == [True, False, True, False]
    assert learner.phase == 1
    assert learner.rate == pytest.approx(0.05 * rate_factor(0.5, 0.0))
    assert {group["lr"] for group in learner.optimizer.param_groups} == {learner.rate}


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

    def parts(self) -> dict[str, list[nn.Module]]:
        return {"encoder": [self.deep]}


def test_the_encoder_has_a_rate_of_its_own() -> None:
    network = TwoHeaded()
    learner = make_learner(network, {"rate": 0.1, "encoder_rate": 0.25, "warmup": 0.0})
    learner.begin(0.0)
    rates = {id(p): group["lr"] for group in learner.optimizer.param_groups for p in group["params"]}
    encoder = {id(parameter) for parameter in network.deep.parameters()}
    assert rates.keys() == {id(p) for p in network.parameters() if p is not network.fixed}
    for key, rate in rates.items():
        assert rate == pytest.approx(0.025 if key in encoder else 0.1)


def test_the_encoders_statistics_can_be_kept() -> None:
    network = TwoHeaded()
    learner = make_learner(network, {"encoder_norm": "kept"})
    learner.begin(0.0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    learner.descend(a_batch(halves=True))
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    kept = {name for name in before if name.startswith("deep.1.") and ("running" in name or "batches" in name)}
    assert changed == before.keys() - kept - {"fixed"}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_trains_every_head_in_the_chosen_precision(precision: Any) -> None:
    torch.manual_seed(0)
    network, seen = TwoHeaded(), []
    network.auxiliary.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    learner = make_learner(network, precision=precision)
    before = {name: tensor.clone() for name, tensor in network.named_parameters()}
    learner.descend(a_batch(halves=True))
    changed = {name for name, tensor in network.named_parameters() if not torch.equal(tensor, before[name])}
    assert changed == before.keys() - {"fixed"}
    assert seen == [torch.bfloat16 if precision == "bf16-mixed" else torch.float32]


@pytest.mark.parametrize("parts", ["encoder", "decoder", "all"])
def test_what_is_frozen_keeps_its_weights_and_statistics(parts: str) -> None:
    torch.manual_seed(0)
    network = TwoHeaded()
    learner = make_learner(network, {"weight_decay": 0.1})
    for each in ("all", parts):
        learner.parts.train(each)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        learner.descend(a_batch(halves=True))
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    encoder = {name for name in before if name.startswith("deep.")}
    decoder = before.keys() - encoder - {"fixed"}
    assert changed == {"encoder": encoder, "decoder": decoder, "all": encoder | decoder}[parts]
    assert network.mix[2].training
    learner.parts.train("all")
    assert all(module.training for module in network.modules())
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == ["fixed"]


def phases(*rows: tuple[str, float, float]) -> list[PhaseSettings]:
    return [PhaseSettings(parts=parts, share=share, rate=rate) for parts, share, rate in rows]


@pytest.mark.parametrize(
    ("network", "parts", "message"),
    [
        (tiny_network, "encoder", 'parts = "encoder": this network has no encoder that could train; use "all"'),
        (lambda: TwoHeaded().requires_grad_(False), "all", 'parts = "all": this network has no all'),
        (TwoHeaded, "decodr", "unknown parts 'decodr'; did you mean decoder"),
    ],
)
def test_a_phase_that_makes_no_sense_is_refused(network: Any, parts: str, message: str) -> None:
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
