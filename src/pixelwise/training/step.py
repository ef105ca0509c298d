"""One optimisation step: batch -> loss -> gradients -> weights. The loop runs it; the plan's forecast measures it."""

import copy
import math
import time
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from pixelwise.core.config import Config, PhaseSettings, TrainSettings
from pixelwise.core.errors import SettingError, near
from pixelwise.data.sets.sampling import Batch
from pixelwise.task import Criterion

FINAL_RATE = 1e-3  # of the highest; the cosine ends here
WHOLE_RUN = (PhaseSettings(parts="all", share=1.0, rate=1.0),)  # the schedule of a run that sets none


class WithOutputs(nn.Module):
    """A network whose call gives all of its outputs, so that precision and the other processes see each of them."""

    network: Any

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @override
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """N x C x H x W images -> outputs by name."""
        outputs: dict[str, Tensor] = self.network.outputs(images)
        return outputs


class Learner:
    """A network with all that it takes to train it, a step at a time.

    Args:
        fabric: its device, precision and other processes.
        config: of the run.
        network: to be trained; it moves to the device.
        criterion: (outputs, targets) -> the parts of the loss by name.

    Attributes:
        average: the averaged network, which is measured and kept.
        phase: number of the schedule's phase under way; None before the first step.
        rate: the learning rate.
    """

    def __init__(self, fabric: Fabric, config: Config, network: nn.Module, criterion: Criterion) -> None:
        self.fabric, self.settings = fabric, config.train
        self.network = network.to(memory_format=torch.channels_last)
        self.parts = Parts(self.network)
        self.schedule = self.settings.schedule or WHOLE_RUN
        self.phase: int | None = None
        self.rate = 0.0
        self.optimizer = make_optimizer(self.network, self.settings, fabric.device)
        self.criterion = criterion.to(fabric.device) if isinstance(criterion, nn.Module) else criterion
        self._wrapped, self._wrapped_optimizer = fabric.setup(WithOutputs(self.network), self.optimizer)
        self.average = Average(self.network, copy.deepcopy(self.network), self.settings.average)

    def begin(self, progress: float) -> bool:
        """Set the rate, and freeze and train what the schedule says at a progress of 0 .. 1; whether a phase begins."""
        phase, done = phase_at(self.schedule, progress)
        is_new = phase != self.phase
        if is_new:
            self.phase = phase
            self.parts.train(self.schedule[phase].parts)
            if self.settings.encoder_norm == "kept":
                self.parts.keep_norms("encoder")
        self.rate = self.settings.rate * self.schedule[phase].rate * rate_factor(done, self.settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["factor"]
        return is_new

    def step(self, batch: Batch, number: int) -> dict[str, float]:
        """Forward, backward, clip, descend, average; the parts of the loss. Steps are numbered from 1.

        Raises:
            SettingError: the training diverged.
        """
        parts = self.descend(batch)
        self.average.update(number)
        values = dict(zip(parts, torch.stack(list(parts.values())).tolist(), strict=True))
        total = sum(values.values())
        if not np.isfinite(total):
            raise SettingError(
                f"train.rate = {self.settings.rate:g}: the loss became {total} at step {number}; the training "
                'diverged. Use a lower rate, or train.precision = "32-true".'
            )
        return values

    def descend(self, batch: Batch) -> dict[str, Tensor]:
        """One step of gradient descent; the parts of the loss, detached, still on the device."""
        images, targets = to_tensors(batch, self.fabric.device)
        parts = self.criterion(self._wrapped(images), targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(sum_of(parts))
        if self.settings.clip:
            self.fabric.clip_gradients(
                self._wrapped, self._wrapped_optimizer, max_norm=self.settings.clip, error_if_nonfinite=False
            )
        self._wrapped_optimizer.step()
        return {name: part.detach().float() for name, part in parts.items()}


def sum_of(parts: dict[str, Tensor]) -> Tensor:
    """What is minimised: the sum of the loss's parts.

    >>> sum_of({"one": torch.tensor(1.0), "two": torch.tensor(2.0)})
    tensor(3.)
    """
    return torch.stack(list(parts.values())).sum()


class Parts:
    """The parts of a network that train: gradients, and the statistics of batch norm, are turned on and off by part.

    A part is what `network.parts()` lists under its name; the decoder is everything that it does not list. A parameter
    that did not train when this was made never does.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self.trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._owners = {
            id(thing): name
            for name, modules in network.parts().items()
            for module in modules
            for thing in (*module.modules(), *module.parameters())
        }

    def train(self, parts: str) -> None:
        """Put the network in training mode, and freeze what is not in `parts`; "all" freezes nothing."""
        self.network.train()
        for parameter in self.trainable:
            parameter.requires_grad_(self._is_in(parameter, parts))
        for module in self.network.modules():
            if isinstance(module, _BatchNorm) and not self._is_in(module, parts):
                module.eval()

    def keep_norms(self, part: str) -> None:
        """Let the batch norms of a part use the statistics that they have, and keep them."""
        for module in self.network.modules():
            if isinstance(module, _BatchNorm) and self._is_in(module, part):
                module.eval()

    def check(self, schedule: Sequence[PhaseSettings]) -> None:
        """Refuse a phase in which nothing would train.

        Raises:
            SettingError: there is one.
        """
        known = ("all", *dict.fromkeys(self._owners.values()), "decoder")
        for phase in schedule:
            if phase.parts not in (*known, "encoder"):
                raise SettingError(f"train.schedule: unknown parts {phase.parts!r}; {near(phase.parts, known)}")
            if not any(self._is_in(parameter, phase.parts) for parameter in self.trainable):
                raise SettingError(
                    f'train.schedule: parts = "{phase.parts}": this network has no {phase.parts} that could train; '
                    'use "all".'
                )

    def _is_in(self, thing: nn.Module | nn.Parameter, parts: str) -> bool:
        return parts in ("all", self._owners.get(id(thing), "decoder"))


class Clock:
    """The time that a run has spent, over all its sittings, and how far it is."""

    def __init__(self, config: Config, started: float, spent: float, first: float | None = None) -> None:
        self._minutes = config.train.minutes
        self._total_steps = (config.train.epochs or 0) * config.train.steps_per_epoch
        self._started = started
        self.spent_before = spent
        self.first = self.seconds() if first is None else first
        self.reserve = 0.05 * 60 * (self._minutes or 0)  # for the last validation, until one was measured

    def seconds(self) -> float:
        """Wall clock of the whole command so far."""
        return self.spent_before + time.monotonic() - self._started

    def progress(self, step: int) -> float:
        """0 at the first step, 1 at the end."""
        if self._minutes is None:
            return step / self._total_steps
        end = 60 * self._minutes - self.reserve
        return max(0.0, (self.seconds() - self.first) / max(end - self.first, 1e-9))


def phase_at(schedule: Sequence[PhaseSettings], progress: float) -> tuple[int, float]:
    """Which phase is under way at a progress of 0 .. 1 of the run, and how far it is, 0 .. 1.

    >>> halves = [PhaseSettings(parts="decoder", share=1, rate=1.0), PhaseSettings(parts="all", share=1, rate=0.1)]
    >>> phase_at(halves, 0.25), phase_at(halves, 0.5), phase_at(halves, 1.0)
    ((0, 0.5), (1, 0.0), (1, 1.0))
    """
    ends = list(accumulate(phase.share for phase in schedule))
    place = progress * ends[-1]
    index = min(bisect_right(ends, place), len(ends) - 1)
    begin = ends[index - 1] if index else 0.0
    return index, min(1.0, (place - begin) / schedule[index].share)


def make_optimizer(network: Any, settings: TrainSettings, device: torch.device | None = None) -> torch.optim.Optimizer:
    """SGD or AdamW; biases and normalisation are not decayed (they do not grow without bound).

    Each group of parameters has a "factor" of the rate, `train.encoder_rate` for the encoder.
    """
    encoder = {id(parameter) for module in network.parts().get("encoder", []) for parameter in module.parameters()}
    groups: list[dict[str, Any]] = []
    for is_encoder, factor in ((False, 1.0), (True, settings.encoder_rate)):
        own = [p for p in network.parameters() if p.requires_grad and (id(p) in encoder) == is_encoder]
        for is_decayed, decay in ((True, settings.weight_decay), (False, 0.0)):
            chosen = [parameter for parameter in own if (parameter.ndim > 1) == is_decayed]
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "factor": factor})
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.rate, momentum=settings.momentum)
    # On a GPU the fused step cannot be combined with clipping in half precision.
    return torch.optim.AdamW(groups, lr=settings.rate, fused=device is not None and device.type == "cpu")


def rate_factor(progress: float, warmup: float) -> float:
    """The learning rate's factor at a progress of 0 .. 1: a linear rise, then half a cosine (Loshchilov & Hutter 2017).

    >>> [round(rate_factor(p, 0.1), 3) for p in (0.05, 0.1, 1.0)]
    [0.5, 1.0, 0.001]
    """
    if progress < warmup:
        return max(progress / warmup, FINAL_RATE)
    rest = (min(progress, 1.0) - warmup) / (1 - warmup)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * rest))


def to_tensors(batch: Batch, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
    """Images in channels_last and the targets by name, on the device; integers become int64."""
    images = torch.from_numpy(batch.images).to(device, memory_format=torch.channels_last)
    return images, {name: _to_tensor(target, device) for name, target in batch.targets.items()}


def _to_tensor(target: Any, device: torch.device) -> Any:
    if isinstance(target, list):
        return [_to_tensor(part, device) for part in target]
    tensor = torch.from_numpy(target).to(device)
    return tensor if tensor.is_floating_point() else tensor.long()


class Average:
    """An exponential moving average of a network's weights and batch-norm buffers (Polyak & Juditsky 1992).

    The decay ramps up as (1 + t) / (10 + t), so that the first steps, far from the end, are soon forgotten.
    """

    def __init__(self, network: nn.Module, target: nn.Module, decay: float) -> None:
        self.network = target  # the averaged one
        self.decay = decay
        self._source = network

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps; a decay of 0 copies them."""
        decay = min(self.decay, (1 + step) / (10 + step))
        # Looked up anew each time: moving a module to a device or memory format may replace its tensors.
        pairs = list(zip(self.network.state_dict().values(), self._source.state_dict().values(), strict=True))
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([a for a, _ in averaged], [b for _, b in averaged], 1 - decay)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)
