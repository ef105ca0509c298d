"""What the training as a user runs it costs beside two bare loops, interleaved; few_minutes.py runs these rows.

- step: beside forward, backward and optimizer step of the same network on one batch that is kept: same memory format,
  precision and loss, a plain AdamW; no sampler, no clipping, no averaging. The bar: at most 1.05 times its time.
- samples: beside smp's U-Net on the encoder with published weights, in its usual loop: float32, PyTorch's default
  layout, AdamW, cross entropy plus Dice, on as many patches of the same size, of one batch that is kept, too. The bar:
  at least 1.8 times its samples a second.

Ours is a real training, `train` with its default settings. Between blocks of its steps it waits while the bare loop
does as many; as many batches are made ahead at the end of a block as at its beginning. Medians of the blocks.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from typing_extensions import override

from pixelwise.core.config import Config
from pixelwise.data.health.survey import Survey
from pixelwise.tasks import TASKS
from pixelwise.training.callbacks import Callbacks, StepReport
from pixelwise.training.loop import train
from pixelwise.training.prepare import prepare
from pixelwise.training.step import to_tensors

BLOCK, ROUNDS = 8, 7
BARS = {"step": "at most 1.05 times the time", "samples": "at least 1.8 times the samples"}
ROWS = tuple(BARS)
TASK = TASKS["segment"]
Step = Callable[[], object]


class Interleaved(Callbacks):
    """Between blocks of a training's steps, as many steps of another loop; the first block of both is a warm-up."""

    def __init__(self, other: Step) -> None:
        self.other = other
        self.pairs: list[tuple[float, float]] = []
        self.began = time.perf_counter()

    @override
    def stepped(self, report: StepReport) -> None:
        if report.step % BLOCK == 0:
            ours = time.perf_counter() - self.began
            begin = time.perf_counter()
            for _ in range(BLOCK):
                self.other()
            self.pairs.append((ours / BLOCK, (time.perf_counter() - begin) / BLOCK))
            self.began = time.perf_counter()


def measure(row: str, data: Path, rounds: int) -> dict:
    """Train, the other loop between its steps; seconds a step of both."""
    steps = BLOCK * (1 + rounds)
    length = {"epochs": 1, "steps_per_epoch": steps, "checkpoint_seconds": 1e9}
    config, surveyed = prepare(TASK, data, {"train": length})
    other = {"step": bare_step, "samples": peer_step}[row](config, surveyed)
    interleaved = Interleaved(other)
    with tempfile.TemporaryDirectory() as folder:
        train(TASK, data, Path(folder) / "run", {"train": length}, callbacks=interleaved)
    pairs = interleaved.pairs[1:]
    return {
        "set": data.name,
        "network": config.model.title(),
        "batch": config.train.batch,
        "patch": list(config.train.patch),
        "precision": config.train.precision,
        "ours_seconds": median(ours for ours, _ in pairs),
        "other_seconds": median(theirs for _, theirs in pairs),
        "times": median(ours / theirs for ours, theirs in pairs),
    }


def bare_step(config: Config, surveyed: Survey) -> Step:
    """Forward, backward and optimizer step of our network on one batch."""
    network = TASK.network(config).to(memory_format=torch.channels_last).train()
    criterion = TASK.criterion(config, surveyed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.train.rate)
    sampler = TASK.sampler(config, surveyed, network)
    images, targets = to_tensors(sampler.batch(range(config.train.batch)), torch.device("cpu"))
    in_bf16 = config.train.precision == "bf16-mixed"

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            outputs = network.outputs(images)
        loss = sum(criterion(outputs, targets).values())
        loss.backward()
        optimizer.step()

    return step


def peer_step(config: Config, surveyed: Survey) -> Step:
    """The same of smp's U-Net, in its usual loop."""
    from peer import RATE, make_loss, make_network

    network, loss = make_network(len(config.data.classes)).train(), make_loss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    images = torch.randn(config.train.batch, 3, *config.train.patch)
    labels = torch.randint(len(config.data.classes), (config.train.batch, *config.train.patch))

    def step() -> None:
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        optimizer.step()

    return step


def table(records: list[dict]) -> str:
    """A Markdown table of recorded rows."""
    lines = ["| row | set | network | batch | ours, s a step | other, s a step | ratio | bar |", "|---" * 8 + "|"]
    for record in records:
        row = record["row"].split("-")[0]
        ratio = record["times"] if row == "step" else 1 / record["times"]
        batch = f"{record['batch']} x {record['patch'][0]} x {record['patch'][1]}, {record['precision']}"
        lines.append(
            f"| {row} | {record['set']} | {record['network']} | {batch} | {record['ours_seconds']:.3f} "
            f"| {record['other_seconds']:.3f} | {ratio:.2f} | {BARS[row]} |"
        )
    return "\n".join(lines) if records else ""
