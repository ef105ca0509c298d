"""The training loop, readable from top to bottom; it takes callbacks and knows no page and no terminal.

`train` prepares (data, plan, network: all that can be refused is refused before a folder is made), then runs
`Training`. Each batch is a pure function of its number and the seed, and everything else that changes is in the
checkpoint: a run that is killed anywhere and resumed ends with the same bits.
"""

import copy
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pixelwise.backbones import load_pretrained
from pixelwise.core.config import Config, Overrides
from pixelwise.core.errors import RunError, SettingError
from pixelwise.core.files import write_json, write_text
from pixelwise.data.sets.doctor import Survey
from pixelwise.data.sets.sampling import Batch, Prefetcher
from pixelwise.engines import EngineChoice
from pixelwise.evaluation.measure import Tally, read_truth
from pixelwise.metrics.confusion import mean_iou
from pixelwise.models import checkpoint
from pixelwise.models.checkpoint import MODEL_FILE
from pixelwise.prediction.predictor import Predictor
from pixelwise.training.plan import describe, pick_device
from pixelwise.training.prepare import check_folder, make_folder, prepare, resumed_config
from pixelwise.training.step import (
    WHOLE_RUN,
    Average,
    Clock,
    Criterion,
    Parts,
    make_optimizer,
    make_sampler,
    phase_at,
    pixel_counts,
    rate_factor,
    set_rate,
    set_up,
    training_step,
)

STATE_FILE = "last/state.safetensors"
VALIDATION_SHARE = 0.06  # of the time, when minutes count
"""With a budget of minutes, an epoch is validated only while validation has taken less than this share."""

Value = TypeVar("Value")


class Callbacks(Protocol):
    """What a page or a terminal may want to know; each method may do nothing."""

    def note(self, text: str) -> None:
        """Something for people to read."""

    def surveyed(self, done: int, total: int) -> None:
        """So many samples have been checked."""

    def stepped(self, report: "StepReport") -> None:
        """A step is done."""

    def validated(self, line: dict[str, Any]) -> None:
        """An epoch is over; `line` goes to history.jsonl."""


class Silent:
    """Callbacks that do nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def surveyed(self, done: int, total: int) -> None:
        """Nothing."""

    def stepped(self, report: "StepReport") -> None:
        """Nothing."""

    def validated(self, line: dict[str, Any]) -> None:
        """Nothing."""


@dataclass(frozen=True)
class StepReport:
    """Where a training stands."""

    epoch: int
    step: int
    progress: float  # 0 .. 1 of the whole run
    loss: float
    rate: float
    seconds: float  # spent so far, of all sittings


@dataclass
class State:
    """All that changes in a run besides tensors; it is saved with them."""

    step: int = 0
    epoch: int = 0  # epochs finished
    loss_sum: float = 0.0  # of the epoch under way
    loss_steps: int = 0
    seconds: float = 0.0  # wall clock of earlier sittings, whole command
    first_seconds: float | None = None  # of the first step: the schedule of a run with `minutes` starts there
    validation_seconds: float = 0.0
    best_epoch: int = 0
    best_mean_iou: float = -1.0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """What a training came to."""

    run: Path
    minutes: float
    epochs: int
    best_epoch: int
    best_mean_iou: float
    finished_before: bool = False  # --resume of a finished run


def train(
    data: Path,
    out: Path,
    overrides: Overrides | None = None,
    *,
    minutes: float | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    init: Path | None = None,
    resume: bool = False,
    force: bool = False,
    allow: Sequence[str] = (),
    device: str = "auto",
    callbacks: Callbacks | None = None,
    started: float | None = None,
) -> Result:
    """Train on a data set.

    Args:
        data: the folder of the data set.
        out: the run folder to make (or to resume).
        overrides: the user's settings.
        minutes, epochs: how long; `minutes` counts from `started`.
        seed: of everything random.
        init: a run whose weights to start from.
        resume: go on with the run in `out`; settings that are given must be the run's own.
        force: replace the run in `out`.
        allow: codes of problems whose files are left out.
        device: auto, cpu, cuda, mps.
        callbacks: who wants to hear about it.
        started: `time.monotonic()` at the command's start; now, if not given.

    Raises:
        PixelwiseError: bad data, settings or folders; nothing is left behind.
    """
    started = time.monotonic() if started is None else started
    callbacks = callbacks or Silent()
    check_folder(out, resume, force)
    if resume and (out / "complete").exists():
        return _finished(out)
    known = resumed_config(out, overrides or {}, minutes, epochs, seed) if resume else None
    config, surveyed = prepare(
        data, overrides, minutes=minutes, epochs=epochs, seed=seed, allow=allow, device=device,
        progress=callbacks.surveyed, known=known,
    )  # fmt: skip
    start_weights = checkpoint.load(init / MODEL_FILE)[0] if init and not resume else None
    begun = resume and (out / STATE_FILE).exists()
    network, told = start_network(config, fetch=config.model.pretrained and not init and not begun)
    fabric = launch(config, pick_device(device))
    if not resume and fabric.global_rank == 0:
        make_folder(out, config, force)
    fabric.barrier()
    problems = [f"{problem.severity}: {problem}" for problem in surveyed.problems]
    for line in problems + describe(config, surveyed) + told:
        callbacks.note(line)  # now that there is a folder for the log
    training = Training(fabric, config, network, surveyed, out, callbacks, started)
    if start_weights is not None:
        left = training.start_from(start_weights)
        callbacks.note(f"--init: {len(left)} of {len(training.network.state_dict())} tensors start afresh")
    if resume:
        training.restore()
    elif start_weights is not None or config.model.pretrained:
        training.save()  # so that a resume finds these weights, wherever the run stops
    return training.run()


def start_network(config: Config, fetch: bool) -> tuple[nn.Module, list[str]]:
    """The network with the weights of the seed or, with `fetch`, the published ones; and what there is to say of them.

    Raises:
        SettingError: the schedule has a phase in which nothing would train, or the published weights cannot be had.
    """
    torch.manual_seed(config.seed)
    network = checkpoint.build_network(config)
    Parts(network).check(config.train.schedule)
    return network, [load_pretrained(cast(Any, network).backbone)] if fetch else []


def _finished(out: Path) -> Result:
    facts = json.loads((out / "complete").read_text(encoding="utf-8"))
    return Result(out, facts["minutes"], facts["epochs"], facts["best_epoch"], facts["best_mean_iou"], True)


def launch(config: Config, device: str) -> Fabric:
    """Lightning Fabric as the settings ask for it, its processes started."""
    settings = config.train
    several = settings.devices * settings.nodes > 1
    # Where parts are frozen by turns, DDP must look which parameters a step has left out.
    strategy = "ddp_find_unused_parameters_true" if several and settings.schedule else settings.strategy
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # its greetings are no news to our users
    fabric = Fabric(
        accelerator=device,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=strategy,
        precision=settings.precision,
    )
    if several:
        fabric.launch()
    return fabric


class Training:
    """The state of a run and its loop."""

    def __init__(
        self,
        fabric: Fabric,
        config: Config,
        network: nn.Module,
        surveyed: Survey,
        out: Path,
        callbacks: Callbacks,
        started: float,
    ) -> None:
        self.fabric, self.config, self.out, self.callbacks = fabric, config, out, callbacks
        self.started = started
        self.state = State()
        self.network = network.to(memory_format=torch.channels_last)
        self.parts = Parts(self.network)
        self.schedule = config.train.schedule or WHOLE_RUN
        self.phase: int | None = None  # of the schedule; none before the first step of this sitting
        self.optimizer = make_optimizer(self.network, config.train)
        self.criterion = Criterion(config, pixel_counts(surveyed)).to(fabric.device)
        self.wrapped, self.wrapped_optimizer = set_up(fabric, self.network, self.optimizer)
        self.average = Average(self.network, copy.deepcopy(self.network), config.train.average)
        torch.manual_seed(config.seed + 1 + fabric.global_rank)  # dropout differs between processes
        self.sampler = make_sampler(config, surveyed, self.network)
        self.val, self.rule = surveyed.dataset.split("val"), surveyed.meaning
        self.axes = surveyed.dataset.description.axes
        self.clock = Clock(config, started, 0.0)
        self._saved = time.monotonic()

    def start_from(self, tensors: dict[str, Tensor]) -> list[str]:
        """Take over another run's weights where they fit; the names of the tensors that do not."""
        left = checkpoint.load_matching(self.network, tensors)
        self.average.network.load_state_dict(self.network.state_dict())
        return left

    def run(self) -> Result:
        """Train to the end."""
        prefetcher = Prefetcher(self.sampler)
        try:
            batches = prefetcher.batches(self._numbers())
            while not self._over():
                if self._train_epoch(batches):
                    self._end_epoch()
                    self._save_if_due()
        finally:
            prefetcher.close()
        return self._complete()

    def _numbers(self) -> Iterator[Sequence[int]]:
        """The numbers of the samples of each batch to come, for this process."""
        batch, world, rank = self.config.train.batch, self.fabric.world_size, self.fabric.global_rank
        step = self.state.step
        while True:
            first = (step * world + rank) * batch
            yield range(first, first + batch)
            step += 1

    def _over(self) -> bool:
        state, settings = self.state, self.config.train
        stale = settings.patience and state.epoch - max(state.best_epoch, 0) >= settings.patience
        return self._agreed(self.clock.progress(state.step) >= 1.0 or bool(stale))

    def _agreed(self, value: Value) -> Value:
        """The first process's value, in all of them (clocks differ)."""
        return self.fabric.broadcast(value) if self.fabric.world_size > 1 else value

    def _progress(self) -> float:
        """0 .. 1 of the run, the same in all processes."""
        progress = self.clock.progress(self.state.step)
        return progress if self.config.train.minutes is None else self._agreed(progress)

    def _train_epoch(self, batches: Iterator[Batch]) -> bool:
        """Steps up to the epoch's end, or the time's; whether any step was made."""
        state = self.state
        end = (state.epoch + 1) * self.config.train.steps_per_epoch
        while state.step < end:
            progress = self._progress()
            if progress >= 1.0:
                break
            self._step(next(batches), progress)
            if state.step < end:
                self._save_if_due()
        return state.loss_steps > 0

    def _step(self, batch: Batch, progress: float) -> None:
        settings, state = self.config.train, self.state
        phase, done = phase_at(self.schedule, progress)
        if phase != self.phase:
            self._begin_phase(phase)
        rate = settings.rate * self.schedule[phase].rate * rate_factor(done, settings.warmup)
        set_rate(self.optimizer, rate)
        loss = training_step(self.fabric, self.wrapped, self.wrapped_optimizer, self.criterion, batch, settings.clip)
        state.step += 1
        self.average.update(state.step)
        value = float(loss)
        if not np.isfinite(value):
            raise SettingError(
                f"train.rate = {settings.rate:g}: the loss became {value} at step {state.step}; the training diverged. "
                'Use a lower rate, or train.precision = "32-true".'
            )
        state.loss_sum += value
        state.loss_steps += 1
        self.callbacks.stepped(StepReport(state.epoch + 1, state.step, progress, value, rate, self.clock.seconds()))

    def _begin_phase(self, index: int) -> None:
        """Freeze and train what the phase says; a run without a schedule has one phase and says nothing of it."""
        phase, self.phase = self.schedule[index], index
        self.parts.train(phase.parts)
        if self.config.train.schedule:
            number = f"phase {index + 1} of {len(self.schedule)}"
            self.callbacks.note(f"{number}: parts {phase.parts}, {phase.rate:g} of the rate")

    def _end_epoch(self) -> None:
        state = self.state
        state.epoch += 1
        line: dict[str, Any] = {
            "epoch": state.epoch,
            "step": state.step,
            "seconds": round(self.clock.seconds(), 3),
            "loss": state.loss_sum / state.loss_steps,
            "rate": self.optimizer.param_groups[0]["lr"],
        }
        if self.config.train.schedule and self.phase is not None:
            line |= {"phase": self.phase + 1, "parts": self.schedule[self.phase].parts}
        state.history.append(line)
        state.loss_sum, state.loss_steps = 0.0, 0
        if self._agreed(self._should_validate()):
            self._validate_into(line)
        self._write_history()
        self.callbacks.validated(line)

    def _validate_into(self, line: dict[str, Any]) -> None:
        """Add the averaged weights' figures to a line of the history, and keep them if they are the best."""
        line.update(self._validate())
        if line["mean_iou"] > self.state.best_mean_iou:
            self.state.best_mean_iou, self.state.best_epoch = line["mean_iou"], self.state.epoch
            self._save_best()

    def _write_history(self) -> None:
        if self.fabric.global_rank == 0:
            write_text(self.out / "history.jsonl", "".join(json.dumps(row) + "\n" for row in self.state.history))

    def _should_validate(self) -> bool:
        state, settings = self.state, self.config.train
        last = self.clock.progress(state.step) >= 1.0
        if settings.minutes is None:
            return last or state.epoch % settings.validate_every == 0
        return last or state.validation_seconds <= VALIDATION_SHARE * self.clock.seconds()

    def _validate(self) -> dict[str, Any]:
        """Pooled figures of the averaged weights on the val split, which the processes share out among them."""
        begin = time.monotonic()
        self._agree_on_buffers()
        predictor = Predictor(self.average.network, self.config, EngineChoice("torch", str(self.fabric.device)))
        tally = Tally(self.rule, full=False)
        for sample in self.val[self.fabric.global_rank :: self.fabric.world_size]:
            for truth in read_truth(sample, self.rule, self.axes):
                tally.add(truth, predictor.labels(truth.image))
        confusion = torch.from_numpy(tally.confusion).to(self.fabric.device)
        if self.fabric.world_size > 1:
            self._reduce(confusion, "sum")
        matrix = confusion.cpu().numpy()
        seconds = time.monotonic() - begin
        self.state.validation_seconds += seconds
        self.clock.reserve = 1.2 * seconds + 1.0
        accuracy = float(np.trace(matrix) / max(matrix.sum(), 1))
        return {"mean_iou": mean_iou(matrix), "pixel_accuracy": accuracy}

    def _agree_on_buffers(self) -> None:
        """Batch-norm figures differ between processes, which saw other samples: take their mean."""
        if self.fabric.world_size > 1:
            for buffer in self.average.network.buffers():
                if buffer.is_floating_point():
                    self._reduce(buffer, "mean")

    def _reduce(self, tensor: Tensor, how: str) -> None:
        """Sum or mean over the processes, in place."""
        tensor.copy_(cast(Tensor, self.fabric.all_reduce(tensor, reduce_op=how)))

    def _save_best(self) -> None:
        if self.fabric.global_rank == 0:
            facts = {"epoch": self.state.best_epoch, "mean_iou": self.state.best_mean_iou}
            checkpoint.save_model(self.out / MODEL_FILE, self.average.network, self.config, facts)

    def _save_if_due(self) -> None:
        if self._agreed(time.monotonic() - self._saved >= self.config.train.checkpoint_seconds):
            self.save()

    def save(self) -> None:
        """Write all that a resume needs, as one file."""
        generators = self._generators()
        if self.fabric.global_rank == 0:
            tensors = {
                **checkpoint.flatten("network", self.network.state_dict()),
                **checkpoint.flatten("average", self.average.network.state_dict()),
                **checkpoint.flatten("optimizer", checkpoint.optimizer_tensors(self.optimizer)),
                **checkpoint.flatten("random", generators),
            }
            state = {**asdict(self.state), "seconds": self.clock.seconds(), "first_seconds": self.clock.first}
            metadata = {"state": state, "scaler": self._scaler_state(), "processes": self.fabric.world_size}
            checkpoint.save(self.out / STATE_FILE, tensors, metadata)
        self.fabric.barrier()
        self._saved = time.monotonic()

    def _generators(self) -> dict[str, Tensor]:
        """The states of torch's generators in every process; the samples' are functions of their numbers."""
        own = {"cpu": torch.get_rng_state()}
        if self.fabric.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        if self.fabric.world_size == 1:
            return {f"{name}/0": state for name, state in own.items()}
        gathered = {name: self.fabric.all_gather(state.to(self.fabric.device)) for name, state in own.items()}
        return {f"{name}/{rank}": row.cpu() for name, rows in gathered.items() for rank, row in enumerate(rows)}

    def _scaler_state(self) -> dict[str, Any]:
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        return dict(scaler.state_dict()) if scaler is not None else {}

    def restore(self) -> None:
        """Go back to the last checkpoint; a run that was killed before its first one starts again.

        Raises:
            RunError: the checkpoint cannot be used, or other processes wrote it.
        """
        path = self.out / STATE_FILE
        if self.fabric.global_rank == 0:
            for leftover in self.out.rglob(".*.part"):  # a file that a kill left half-written
                leftover.unlink()
        if not path.exists():
            return
        tensors, metadata = checkpoint.load(path)
        if metadata["processes"] != self.fabric.world_size:
            raise RunError(f"{path}: was written by {metadata['processes']} processes, not {self.fabric.world_size}.")
        checkpoint.load_weights(self.network, checkpoint.unflatten("network", tensors), path)
        checkpoint.load_weights(self.average.network, checkpoint.unflatten("average", tensors), path)
        checkpoint.restore_optimizer(self.optimizer, checkpoint.unflatten("optimizer", tensors))
        rank = self.fabric.global_rank
        torch.set_rng_state(tensors[f"random/cpu/{rank}"])
        if f"random/cuda/{rank}" in tensors and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(tensors[f"random/cuda/{rank}"], self.fabric.device)
        if metadata["scaler"]:
            cast(Any, self.fabric.strategy.precision).scaler.load_state_dict(metadata["scaler"])
        self.state = State(**metadata["state"])
        self.clock = Clock(self.config, self.started, self.state.seconds, self.state.first_seconds)
        self.callbacks.note(f"resumed at step {self.state.step}, epoch {self.state.epoch + 1}")

    def _complete(self) -> Result:
        """Measure the last weights if nobody has, and mark the run's end."""
        state = self.state
        last = state.history[-1] if state.history else {}
        if "mean_iou" not in last:
            self._validate_into(last)
            self._write_history()
        self.save()
        if self.fabric.global_rank == 0:
            facts = {
                "minutes": round(self.clock.seconds() / 60, 3),
                "epochs": state.epoch,
                "best_epoch": state.best_epoch,
                "best_mean_iou": state.best_mean_iou,
            }
            write_json(self.out / "complete", facts)
        self.fabric.barrier()
        return Result(self.out, round(self.clock.seconds() / 60, 3), state.epoch, state.best_epoch, state.best_mean_iou)
