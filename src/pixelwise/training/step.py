"""One optimisation step: batch -> loss -> gradients -> weights. Training runs it; the plan's forecast measures it."""

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pixelwise.core.classes import IGNORE
from pixelwise.core.config import Config, PhaseSettings, TrainSettings
from pixelwise.core.errors import SettingError
from pixelwise.data.sets.doctor import Survey
from pixelwise.data.sets.sampling import Batch, PatchSampler, Store
from pixelwise.losses import SegmentationLoss, class_weights, dual_task_loss, edge_loss
from pixelwise.models import UNet

FINAL_RATE = 1e-3  # of the highest; the cosine ends here
WHOLE_RUN = (PhaseSettings(parts="all", share=1.0, rate=1.0),)  # the schedule of a run that sets none


class Criterion(nn.Module):
    """The loss that a config describes, of all outputs that a network has.

    The sum of: the loss of the logits; that of the auxiliary logits, times `loss.auxiliary` (Zhao et al. 2017,
    arXiv:1612.01105, section 4); that of the edges, times `loss.edges`, and what classes and edges disagree about,
    times `loss.dual` (Takikawa et al. 2019, arXiv:1907.05740, equations 3 and 7).

    With border weights the paper's sum w(x) = w_c(x) + w_0 exp(...) (Ronneberger et al. 2015, eq. 2) is formed here
    and handed to the cross entropy as one weight a pixel; without them the class weights act alone.
    """

    class_weights: Tensor

    def __init__(self, config: Config, pixel_counts: Sequence[int]) -> None:
        super().__init__()
        weights = class_weights(pixel_counts, config.loss.class_weight_power)
        self.settings = config.loss
        self.has_border = config.loss.border > 0
        self.register_buffer("class_weights", torch.from_numpy(np.append(weights, 0).astype(np.float32)))
        self.loss = SegmentationLoss(config.loss, weights.tolist())

    def forward(self, outputs: Mapping[str, Tensor], labels: Tensor, border: Tensor | None = None) -> Tensor:
        """Outputs by name, N x H x W int64 labels, N x H x W border weights -> scalar."""
        weights = None
        if border is not None:
            index = labels.where(labels != IGNORE, torch.tensor(len(self.class_weights) - 1, device=labels.device))
            weights = self.class_weights[index] + border
        settings, logits, edges = self.settings, outputs["logits"], outputs.get("edges")
        total = self.loss(logits, labels, weights)
        if "auxiliary" in outputs and settings.auxiliary:
            total = total + settings.auxiliary * self.loss(outputs["auxiliary"], labels, weights)
        if edges is not None and settings.edges:
            total = total + settings.edges * edge_loss(edges, labels)
        if edges is not None and settings.dual:
            total = total + settings.dual * dual_task_loss(logits, edges, labels)
        return total


class WithOutputs(nn.Module):
    """A network whose call gives all of its outputs, so that precision and the other processes see each of them."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """N x C x H x W images -> outputs by name."""
        outputs: dict[str, Tensor] = self.network.outputs(images)
        return outputs


def set_up(fabric: Any, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
    """The network and the optimiser as Lightning Fabric runs them, ready for `training_step`."""
    wrapped, wrapped_optimizer = fabric.setup(WithOutputs(network), optimizer)
    return wrapped, wrapped_optimizer


class Parts:
    """The parts of a network that train: gradients, and the statistics of batch norm, are turned on and off by part.

    The encoder is what `network.encoder()` lists, the decoder everything else. A parameter that did not train when this
    was made never does.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
        listed: list[nn.Module] = getattr(network, "encoder", list)()
        self._encoder = {id(module) for part in listed for module in part.modules()}
        self._encoder |= {id(parameter) for part in listed for parameter in part.parameters()}

    def train(self, parts: str) -> None:
        """Put the network in training mode, and freeze what is not in `parts`: "encoder", "decoder" or "all"."""
        self.network.train()
        for parameter in self.trainable:
            parameter.requires_grad_(self._is_in(parameter, parts))
        for module in self.network.modules():
            if isinstance(module, _BatchNorm) and not self._is_in(module, parts):
                module.eval()

    def check(self, schedule: Sequence[PhaseSettings]) -> None:
        """Refuse a phase in which nothing would train.

        Raises:
            SettingError: there is one.
        """
        for phase in schedule:
            if not any(self._is_in(parameter, phase.parts) for parameter in self.trainable):
                raise SettingError(
                    f'train.schedule: parts = "{phase.parts}": this network has no {phase.parts} that could train; '
                    'use "all".'
                )

    def _is_in(self, thing: nn.Module | nn.Parameter, parts: str) -> bool:
        return parts == "all" or (id(thing) in self._encoder) == (parts == "encoder")


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


def make_optimizer(network: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """SGD or AdamW; biases and normalisation are not decayed (they do not grow without bound)."""
    decayed = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    free = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.rate, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.rate)


def rate_factor(progress: float, warmup: float) -> float:
    """The learning rate's factor at a progress of 0 .. 1: a linear rise, then half a cosine (Loshchilov & Hutter 2017).

    >>> [round(rate_factor(p, 0.1), 3) for p in (0.05, 0.1, 1.0)]
    [0.5, 1.0, 0.001]
    """
    if progress < warmup:
        return max(progress / warmup, FINAL_RATE)
    rest = (min(progress, 1.0) - warmup) / (1 - warmup)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * rest))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def to_tensors(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Images in channels_last, labels as int64, border weights or None, on the device."""
    images = torch.from_numpy(batch.images).to(device, memory_format=torch.channels_last)
    labels = torch.from_numpy(batch.labels).to(device).long()
    border = None if batch.weights is None else torch.from_numpy(batch.weights).to(device)
    return images, labels, border


def training_step(
    fabric: Any,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: Callable[..., Tensor],
    batch: Batch,
    clip: float,
) -> Tensor:
    """Forward, backward, clip, step; the loss, detached, still on the device.

    What the network (as `set_up` gives it) returns goes to the criterion with the labels and the border weights.
    """
    images, labels, border = to_tensors(batch, fabric.device)
    loss = criterion(network(images), labels, border)
    optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    if clip:
        fabric.clip_gradients(network, optimizer, max_norm=clip, error_if_nonfinite=False)
    optimizer.step()
    return loss.detach()


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


def pixel_counts(surveyed: Survey) -> list[int]:
    """K pixels of each class in the train split."""
    return [int(count) for count in np.sum([fact.labels.sum(0) for fact in surveyed.of("train")], axis=0)]


def make_sampler(config: Config, surveyed: Survey, network: nn.Module) -> PatchSampler:
    """The sampler of the train split; a network without padding gets patches with its margin around them."""
    facts = surveyed.of("train")
    pages = [(fact.sample, page) for fact in facts for page in range(fact.pages)]
    areas = [fact.height * fact.width for fact in facts for _ in range(fact.pages)]
    counts = [fact.labels.sum(0) for fact in facts for _ in range(fact.pages)]
    owners = {
        value: [index for index, row in enumerate(counts) if row[value]] for value in range(len(config.data.classes))
    }
    border, (height, width) = 0, config.train.patch
    if isinstance(network, UNet) and network.padding == "valid":
        border = network.geometry.margin
        height, width = (network.input_size(length) - 2 * border for length in (height, width))
    budget = psutil.virtual_memory().total // 4
    store = Store(pages, config, surveyed.dataset.description.axes, budget)
    return PatchSampler(store, areas, owners, (height, width), border)
