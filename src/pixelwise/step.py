"""One optimisation step: batch -> loss -> gradients -> weights. Training runs it; the plan's forecast measures it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from pixelwise.classes import IGNORE
from pixelwise.config import Config, TrainSettings
from pixelwise.data.doctor import Survey
from pixelwise.data.sampling import Batch, PatchSampler, Store
from pixelwise.losses import SegmentationLoss, class_weights
from pixelwise.models import UNet

FINAL_RATE = 1e-3  # of the highest; the cosine ends here


class Criterion(nn.Module):
    """The loss that a config describes.

    With border weights the paper's sum w(x) = w_c(x) + w_0 exp(...) (Ronneberger et al. 2015, eq. 2) is formed here
    and handed to the cross entropy as one weight a pixel; without them the class weights act alone.
    """

    class_weights: Tensor

    def __init__(self, config: Config, pixel_counts: Sequence[int]) -> None:
        super().__init__()
        weights = class_weights(pixel_counts, config.loss.class_weight_power)
        self.has_border = config.loss.border > 0
        self.register_buffer("class_weights", torch.from_numpy(np.append(weights, 0).astype(np.float32)))
        chosen = None if self.has_border else weights.tolist()
        self.loss = SegmentationLoss(config.loss.cross_entropy, config.loss.dice, chosen)

    def forward(self, logits: Tensor, labels: Tensor, border: Tensor | None = None) -> Tensor:
        """N x K x H x W logits, N x H x W int64 labels, N x H x W border weights -> scalar."""
        if border is None:
            return self.loss(logits, labels)
        index = labels.where(labels != IGNORE, torch.tensor(len(self.class_weights) - 1, device=labels.device))
        return self.loss(logits, labels, self.class_weights[index] + border)


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
    criterion: Criterion,
    batch: Batch,
    clip: float,
) -> Tensor:
    """Forward, backward, clip, step; the loss, detached, still on the device."""
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
    return [int(count) for count in np.sum([fact.class_counts for fact in surveyed.of("train")], axis=0)]


def make_sampler(config: Config, surveyed: Survey, network: nn.Module) -> PatchSampler:
    """The sampler of the train split; a network without padding gets patches with its margin around them."""
    facts = surveyed.of("train")
    pages = [(fact.sample, page) for fact in facts for page in range(fact.pages)]
    areas = [fact.height * fact.width for fact in facts for _ in range(fact.pages)]
    counts = [fact.class_counts for fact in facts for _ in range(fact.pages)]
    owners = {
        value: [index for index, row in enumerate(counts) if row[value]] for value in range(len(config.data.classes))
    }
    border, (height, width) = 0, config.train.patch
    if isinstance(network, UNet) and network.padding == "valid":
        border = network.geometry.margin
        height, width = (network.valid_input_size(length) - 2 * border for length in (height, width))
    budget = psutil.virtual_memory().total // 4
    store = Store(pages, config, surveyed.dataset.description.axes, budget)
    return PatchSampler(store, areas, owners, (height, width), border)
