"""Train an encoder alone, as a source of weights: as a classifier of patches, or as an autoencoder.

Before segmenters were trained from end to end, their encoders came from elsewhere: from a classifier of the patch
around a pixel (Ciresan et al. 2012; Long et al. 2015, arXiv:1411.4038, section 4, who cast one to convolutions), or
from an autoencoder that rebuilds its input, as a whole or layer by layer (Vincent et al. 2010, JMLR 11). `pretrain`
does both on the images of a data set; `train --init` starts from what it writes, and `train.schedule` says which
parts then train. benchmarks/starts.py measures what that gives where labels are few.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelwise.core.config import Config, Overrides
from pixelwise.core.errors import SettingError, near
from pixelwise.core.files import write_json
from pixelwise.data.sets.doctor import Survey
from pixelwise.data.sets.sampling import Batch, Prefetcher
from pixelwise.geometry.modes import evaluation_mode
from pixelwise.layers import ConvNormAct, enlarge
from pixelwise.losses import cross_entropy
from pixelwise.models import checkpoint
from pixelwise.models.base import Segmenter
from pixelwise.models.checkpoint import MODEL_FILE
from pixelwise.training.loop import Callbacks, Silent, StepReport, launch
from pixelwise.training.plan import pick_device
from pixelwise.training.prepare import check_folder, make_folder, prepare
from pixelwise.training.step import Clock, make_optimizer, make_sampler, rate_factor, set_rate, training_step

Task = Literal["classify", "autoencode", "stacked"]
TASKS = ("classify", "autoencode", "stacked")
PATCH = 4  # strides a side of a patch that is classified: the two cells about its middle hardly see its border
NARROWEST = 8  # channels of an autoencoder's decoder


@dataclass(frozen=True)
class Pretrained:
    """What a pretraining came to."""

    run: Path
    task: str
    minutes: float
    steps: int
    loss: float  # mean of the last tenth of the steps


class PatchClassifier(nn.Module):
    """An encoder and one dense layer: the class of the pixel in the middle of a patch.

    Takes N x C x H x W patches, gives N x K x 1 x 1 logits, from the mean of the deepest features' four middle cells.
    """

    def __init__(self, network: Segmenter, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.network = network
        self.dense = nn.Conv2d(shapes[-1][0], network.num_classes, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """The logits of each patch."""
        features = self.network.features_on_grid(images)[-1]
        row, column = features.shape[-2] // 2, features.shape[-1] // 2
        middle = features[..., max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1]
        return self.dense(middle.mean((-2, -1), keepdim=True))

    @staticmethod
    def loss(logits: Tensor, labels: Tensor, border: Tensor | None = None) -> Tensor:
        """Cross entropy of the middle pixel's class; patches whose middle is ignored count nowhere."""
        middle = labels[:, labels.shape[1] // 2, labels.shape[2] // 2]
        return cross_entropy(logits, middle[:, None, None])


class Autoencoder(nn.Module):
    """An encoder level with a decoder that rebuilds what went in: the image, or the features of the level before.

    Args:
        network: whose encoder it is.
        shapes: channels and stride of each level's features, finest first.
        level: whose features are decoded; -1 for the deepest.
        target: what they rebuild: a level's number, or None for the image.
    """

    def __init__(
        self, network: Segmenter, shapes: Sequence[tuple[int, int]], level: int = -1, target: int | None = None
    ) -> None:
        super().__init__()
        self.network, self.level, self.target = network, level, target
        channels, stride = shapes[level]
        wanted, end = (network.in_channels, 1) if target is None else shapes[target]
        blocks: list[nn.Module] = []
        while stride > end:
            narrower = max(channels // 2, NARROWEST)
            blocks += [_Double(), ConvNormAct(channels, narrower)]
            channels, stride = narrower, stride // 2
        self.decoder = nn.Sequential(*blocks, nn.Conv2d(channels, wanted, kernel_size=1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder makes of the features, and what it should be, of one shape."""
        features = self.network.features_on_grid(images)
        target = images if self.target is None else features[self.target].detach()
        return self.decoder(features[self.level]), target

    @staticmethod
    def loss(rebuilt: tuple[Tensor, Tensor], labels: Tensor, border: Tensor | None = None) -> Tensor:
        """Mean squared error relative to the variance: 1 where nothing but the mean is known. No label is looked at."""
        values, target = (part.float() for part in rebuilt)
        return F.mse_loss(values, target) / target.var().clamp_min(1e-6)


class _Double(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return enlarge(features, 2, "nearest")


def pretrain(
    data: Path,
    out: Path,
    task: str = "classify",
    overrides: Overrides | None = None,
    *,
    minutes: float | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    force: bool = False,
    allow: Sequence[str] = (),
    device: str = "auto",
    callbacks: Callbacks | None = None,
    started: float | None = None,
) -> Pretrained:
    """Train the encoder of a network on the train split, and write its weights for `train --init`.

    Args:
        data: the folder of the data set.
        out: the folder to make, once all is done: `model.safetensors` with the encoder's tensors, under the network's
            names.
        task: "classify" the pixel in the middle of patches; "autoencode": rebuild the image from the deepest features;
            "stacked": level after level, each rebuilds the one before it, for an equal share of the time.
        overrides, minutes, epochs, seed, force, allow, device, callbacks, started: as of `train`.

    Raises:
        PixelwiseError: bad data, settings or folders, or a network without an encoder of that kind.
    """
    started = time.monotonic() if started is None else started
    callbacks = callbacks or Silent()
    if task not in TASKS:
        raise SettingError(f"task: {task!r} is no way to pretrain; {near(task, TASKS)}")
    check_folder(out, False, force)
    config, surveyed = prepare(
        data, overrides, minutes=minutes, epochs=epochs, seed=seed, allow=allow, device=device,
        progress=callbacks.surveyed,
    )  # fmt: skip
    if config.train.devices * config.train.nodes > 1:
        raise SettingError("train.devices: an encoder is trained alone by one process; leave train.devices at 1.")
    torch.manual_seed(config.seed)
    network = checkpoint.build_network(config)
    if config.model.padding == "valid" or not feature_shapes(network):
        raise SettingError(f"model: {config.model.name} in this form has no encoder that can be trained alone.")
    if task == "classify":
        side = PATCH * network.stride
        train = config.train.model_copy(update={"patch": (side, side), "balance": 1.0})
        config = config.model_copy(update={"train": train})
    stages = make_stages(network, task)
    fabric = launch(config, pick_device(device))
    callbacks.note(f"{task}: {len(stages)} stage(s) for the encoder of {config.model.name}")
    steps, loss = _Loop(fabric, config, surveyed, callbacks, started).run(network, stages)
    spent = (time.monotonic() - started) / 60

    def fill(draft: Path) -> None:
        facts = {"pretrained_by": task, "config": config.model_dump(mode="json")}
        checkpoint.save(draft / MODEL_FILE, encoder_tensors(network), facts)
        write_json(draft / "complete", {"task": task, "minutes": spent, "steps": steps, "loss": loss})

    make_folder(out, config, force, fill)
    callbacks.note(f"the encoder's weights are in {out}")
    return Pretrained(out, task, spent, steps, loss)


@dataclass(frozen=True)
class Stage:
    """What trains for a share of the time."""

    coder: PatchClassifier | Autoencoder
    parts: Sequence[nn.Module]  # of the encoder


def make_stages(network: Segmenter, task: str) -> list[Stage]:
    """The stages of a task, each for an equal share of the time.

    Raises:
        SettingError: the encoder has no levels that could be stacked.
    """
    shapes = feature_shapes(network)
    parts = network.encoder()
    if task == "classify":
        return [Stage(PatchClassifier(network, shapes), parts)]
    if task == "autoencode":
        return [Stage(Autoencoder(network, shapes), parts)]
    if len(parts) != len(shapes):
        raise SettingError(
            'task: "stacked" trains an encoder level by level, but this one is a single part; use "autoencode".'
        )
    return [
        Stage(Autoencoder(network, shapes, level, level - 1 if level else None), [part])
        for level, part in enumerate(parts)
    ]


def feature_shapes(network: Segmenter) -> list[tuple[int, int]]:
    """Channels and stride of each of the encoder's features, finest first."""
    side = 2 * network.stride
    with evaluation_mode(network), torch.no_grad():
        features = network.features_on_grid(torch.zeros(1, network.in_channels, side, side))
    return [(level.shape[1], side // level.shape[-1]) for level in features]


def encoder_tensors(network: Segmenter) -> dict[str, Tensor]:
    """The encoder's weights and buffers, under the names that they have in the network."""
    prefixes = tuple(
        f"{name}." for name, module in network.named_modules() if any(module is part for part in network.encoder())
    )
    return {name: tensor for name, tensor in network.state_dict().items() if name.startswith(prefixes)}


class _Loop:
    """Optimisation steps over the stages."""

    def __init__(self, fabric: Any, config: Config, surveyed: Survey, callbacks: Callbacks, started: float) -> None:
        self.fabric, self.config, self.surveyed, self.callbacks = fabric, config, surveyed, callbacks
        self.clock = Clock(config, started, 0.0)
        self.clock.reserve = 1.0
        self.losses: list[float] = []

    def run(self, network: Segmenter, stages: Sequence[Stage]) -> tuple[int, float]:
        """Train; the number of steps, and the mean loss of the last tenth of them."""
        batch = self.config.train.batch
        prefetcher = Prefetcher(make_sampler(self.config, self.surveyed, network))
        try:
            batches = prefetcher.batches(range(step * batch, (step + 1) * batch) for step in count())
            for number, stage in enumerate(stages):
                self._train(stage, batches, number / len(stages), (number + 1) / len(stages))
        finally:
            prefetcher.close()
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return len(self.losses), sum(last) / len(last)

    def _train(self, stage: Stage, batches: Iterator[Batch], begin: float, end: float) -> None:
        """One stage, from one progress of the whole to another; at least one step."""
        settings = self.config.train
        coder = _restricted(stage).to(memory_format=torch.channels_last).train()
        optimizer = make_optimizer(coder, settings)
        wrapped, wrapped_optimizer = self.fabric.setup(coder, optimizer)
        progress = begin
        while progress < end:
            rate = settings.rate * rate_factor((progress - begin) / (end - begin), settings.warmup)
            set_rate(optimizer, rate)
            batch = next(batches)
            loss = training_step(self.fabric, wrapped, wrapped_optimizer, stage.coder.loss, batch, settings.clip)
            self._report(float(loss), progress, rate)
            progress = self.clock.progress(len(self.losses))

    def _report(self, loss: float, progress: float, rate: float) -> None:
        self.losses.append(loss)
        if not torch.isfinite(torch.tensor(loss)):
            raise SettingError(
                f"train.rate = {self.config.train.rate:g}: the loss became {loss} at step {len(self.losses)}; the "
                "training diverged. Use a lower rate."
            )
        epoch = len(self.losses) // self.config.train.steps_per_epoch + 1
        self.callbacks.stepped(StepReport(epoch, len(self.losses), progress, loss, rate, self.clock.seconds()))


def _restricted(stage: Stage) -> nn.Module:
    """The coder with only the stage's parts of the encoder, and what the coder adds, to be trained."""
    for parameter in stage.coder.network.parameters():
        parameter.requires_grad_(False)
    for part in stage.parts:
        for parameter in part.parameters():
            parameter.requires_grad_(True)
    return stage.coder
