"""The training loop, readable from top to bottom; it knows tasks by their protocol alone, and prints nothing.

`train` prepares (data, plan, network: all that can be refused is refused before a folder is made), then runs
`Training`. Each batch is a pure function of its number and the seed, and everything else that changes is in the
checkpoint: a run that is killed anywhere and resumed ends with the same bits.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from lightning_fabric import Fabric
from typing_extensions import override

from pixelwise.core.config import Config, Overrides
from pixelwise.core.errors import RunError
from pixelwise.core.files import write_json, write_text
from pixelwise.core.run_folder import RunFolder
from pixelwise.data.health.survey import Survey
from pixelwise.data.sets.sampling import Batch
from pixelwise.engines.machine import pick_device
from pixelwise.models import checkpoint
from pixelwise.task import Figure, Task
from pixelwise.training.callbacks import Callbacks, StepReport
from pixelwise.training.data_state import check_unchanged
from pixelwise.training.plan import describe
from pixelwise.training.prefetch import Prefetcher
from pixelwise.training.prepare import Start, check_folder, make_folder, prepare, resumed_config, starting_weights
from pixelwise.training.state import State, restore_state, save_state
from pixelwise.training.step import Clock, Learner
from pixelwise.training.validation import Validation

VALIDATION_SHARE = 0.06  # of the time, when minutes count
"""With a budget of minutes, an epoch is validated only while validation has taken less than this share."""

LAST_SHARE, FEWEST_MEASURED, RISING = 2 / 3, 4, 0.003  # of `trend_text`

Value = TypeVar("Value")


@dataclass(frozen=True)
class Best:
    """The best epoch, and the task's figure there."""

    epoch: int
    metric: str
    value: float


@dataclass(frozen=True)
class Result:
    """What a training came to.

    >>> Result(Path("runs/cells"), 9.9, 12, Best(11, "mean_iou", 0.91234))
    runs/cells: 12 epochs in 9.9 minutes, best mean_iou 0.9123 (epoch 11)
    """

    run: Path
    minutes: float
    epochs: int
    best: Best
    finished_before: bool = False  # --resume of a finished run

    @override
    def __repr__(self) -> str:
        best = f"best {self.best.metric} {self.best.value:.4f} (epoch {self.best.epoch})"
        return f"{self.run}: {self.epochs} epochs in {self.minutes:.1f} minutes, {best}"


def train(
    task: Task,
    data: Path,
    out: Path,
    overrides: Overrides | None = None,
    start: Start | None = None,
    callbacks: Callbacks | None = None,
) -> Result:
    """Train on a data set.

    Args:
        task: what is learnt.
        data: the folder of the data set.
        out: the run folder to make (or to resume).
        overrides: the user's settings, `minutes`, `epochs` and `seed` among them.
        start: how to start.
        callbacks: who wants to hear about it.

    Raises:
        PixelwiseError: bad data, settings or folders; nothing is left behind.
    """
    start = start or Start()
    if start.began is None:
        start = replace(start, began=time.monotonic())
    callbacks, folder = callbacks or Callbacks(), RunFolder(out)
    check_folder(folder, start)
    if start.resume and folder.complete.exists():
        return _finished(folder)
    known = resumed_config(folder, overrides or {}) if start.resume else None
    config, surveyed = prepare(task, data, overrides, start, callbacks.surveyed, known)
    changes = check_unchanged(folder.data, surveyed, start.allow) if start.resume else []
    told = [f"changed since the run began: {change}" for change in changes]
    initial = checkpoint.load(RunFolder(start.init).model)[0] if start.init and not start.resume else None
    torch.manual_seed(config.seed)
    network = task.network(config)
    starts = initial is None and not (start.resume and folder.state.exists())
    loaded = starting_weights(config, network, callbacks.fetched) if starts else None
    if loaded is not None:
        told.append(str(loaded))
    if initial is not None:
        afresh = checkpoint.load_matching(network, initial)
        told.append(f"--init {start.init}: {checkpoint.describe_matching(network, afresh)}")
    fabric = launch(config, pick_device(start.device))
    if not start.resume and fabric.global_rank == 0:
        make_folder(folder, config, surveyed, start.force, loaded)
    fabric.barrier()
    problems = [f"{problem.severity}: {problem}" for problem in surveyed.problems]
    for line in problems + list(surveyed.told) + describe(config, surveyed) + task.reasons(config, surveyed) + told:
        callbacks.note(line)  # now that there is a folder for the log
    learner = Learner(fabric, config, network, task.criterion(config, surveyed))
    training = Training(task, config, learner, surveyed, folder, callbacks)
    training.begin(cast(float, start.began), start.resume, saves=initial is not None or config.model.pretrained)
    return training.run()


def _finished(folder: RunFolder) -> Result:
    """What a run that is resumed after its end had come to.

    Raises:
        RunError: nothing says so.
    """
    try:
        facts = json.loads(folder.complete.read_text(encoding="utf-8"))
        older = {"epoch": facts.get("best_epoch"), "metric": "mean_iou", "value": facts.get("best_mean_iou")}
        return Result(folder.path, facts["minutes"], facts["epochs"], Best(**facts.get("best", older)), True)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{folder.complete}: cannot be read. Delete it to train on from the last checkpoint.") from error


def launch(config: Config, device: str) -> Fabric:
    """Lightning Fabric as the settings ask for it, its processes started."""
    settings = config.train
    several = settings.devices * settings.nodes > 1
    # Where parts are frozen by turns, DDP must look which parameters a step has left out.
    strategy = "ddp_find_unused_parameters_true" if several and settings.schedule else settings.strategy
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # our users need not read its greetings
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
    """A run under way: epochs of steps, validations, checkpoints."""

    def __init__(
        self, task: Task, config: Config, learner: Learner, surveyed: Survey, folder: RunFolder, callbacks: Callbacks
    ) -> None:
        self.task, self.config, self.learner = task, config, learner
        self.folder, self.callbacks = folder, callbacks
        self.fabric = learner.fabric
        self.state = State()
        torch.manual_seed(config.seed + 1 + self.fabric.global_rank)  # dropout differs between processes
        self.sampler = task.sampler(config, surveyed, learner.network)
        self.validation = Validation(task, config, learner, surveyed.dataset)
        self._saved = time.monotonic()

    def begin(self, began: float, resume: bool, saves: bool) -> None:
        """Start the clock; go on from the last checkpoint, or write one where a resume could not start alike.

        Raises:
            RunError: the checkpoint cannot be used.
        """
        if resume and self.fabric.global_rank == 0:
            for leftover in self.folder.path.rglob(".*.part"):  # a file that a kill left half-written
                leftover.unlink()
        if resume and self.folder.state.exists():  # a run that was killed before its first checkpoint starts again
            self.state = restore_state(self.folder.state, self.learner)
            self.callbacks.note(f"resumed at step {self.state.step}, epoch {self.state.epoch + 1}")
        self.clock = Clock(self.config, began, self.state.seconds, self.state.first_seconds)
        if saves and not resume:
            self.save()

    def run(self) -> Result:
        """Train to the end."""
        prefetcher = Prefetcher(self.sampler)
        try:
            batches = prefetcher.batches(_numbers(self.state.step, self.config.train.batch, self.fabric))
            while not self._over():
                if self._train_epoch(batches):
                    self._end_epoch()
                    self._save_if_due()
        finally:
            prefetcher.close()
        return self._complete()

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
        state, learner = self.state, self.learner
        if learner.begin(progress) and self.config.train.schedule:
            phase, count = cast(int, learner.phase), len(learner.schedule)
            parts, rate = learner.schedule[phase].parts, learner.schedule[phase].rate
            self.callbacks.note(f"phase {phase + 1} of {count}: parts {parts}, {rate:g} of the rate")
        losses = learner.step(batch, state.step + 1)
        state.step += 1
        state.loss_steps += 1
        state.losses = {name: state.losses.get(name, 0.0) + value for name, value in losses.items()}
        loss, seconds = sum(losses.values()), self.clock.seconds()
        self.callbacks.stepped(StepReport(state.epoch + 1, state.step, progress, loss, learner.rate, seconds))

    def _end_epoch(self) -> None:
        state, learner = self.state, self.learner
        state.epoch += 1
        line = _epoch_line(state, learner, round(self.clock.seconds(), 3))
        state.history.append(line)
        state.losses, state.loss_steps = {}, 0
        if self._agreed(self._should_validate()):
            self._validate_into(line)
        self._write_history()
        self.callbacks.validated(line)

    def _should_validate(self) -> bool:
        state, settings = self.state, self.config.train
        last = self.clock.progress(state.step) >= 1.0
        if settings.minutes is None:
            return last or state.epoch % settings.validate_every == 0
        return last or state.validation_seconds <= VALIDATION_SHARE * self.clock.seconds()

    def _validate_into(self, line: dict[str, Any]) -> None:
        """Add the averaged weights' figures to a line of the history, and keep them if they are the best."""
        state, figure = self.state, self.task.figure
        begin = time.monotonic()
        line.update(self.validation.figures())
        seconds = time.monotonic() - begin
        state.validation_seconds += seconds
        self.clock.reserve = 1.2 * seconds + 1.0
        value = line[figure.name]
        if value is not None and figure.is_better(value, state.best_value):
            state.best_value, state.best_epoch = value, state.epoch
            if self.fabric.global_rank == 0:
                facts = {"epoch": state.best_epoch, "metric": figure.name, "value": state.best_value}
                checkpoint.save_model(self.folder.model, self.learner.average.network, self.config, facts)

    def _write_history(self) -> None:
        if self.fabric.global_rank == 0:
            write_text(self.folder.history, "".join(json.dumps(row) + "\n" for row in self.state.history))

    def _save_if_due(self) -> None:
        if self._agreed(time.monotonic() - self._saved >= self.config.train.checkpoint_seconds):
            self.save()

    def save(self) -> None:
        """Write all that a resume needs."""
        saved = replace(self.state, seconds=self.clock.seconds(), first_seconds=self.clock.first)
        save_state(self.folder.state, self.learner, saved)
        self._saved = time.monotonic()

    def _complete(self) -> Result:
        """Measure the last weights if nobody has, and mark the run's end."""
        state, metric = self.state, self.task.figure.name
        last = state.history[-1] if state.history else {}
        if metric not in last:
            self._validate_into(last)
            self._write_history()
        self.save()
        if trend := trend_text(state.history, self.task.figure):
            self.callbacks.note(trend)
        minutes = round(self.clock.seconds() / 60, 3)
        value = state.best_value if state.best_value is not None else float("nan")
        best = Best(state.best_epoch, metric, value)
        if self.fabric.global_rank == 0:
            write_json(self.folder.complete, {"minutes": minutes, "epochs": state.epoch, "best": vars(best)})
        self.fabric.barrier()
        return Result(self.folder.path, minutes, state.epoch, best)


def trend_text(history: Sequence[dict[str, Any]], figure: Figure) -> str:
    """Whether the figure on val was still improving when the run ended; "" if it was measured too rarely to say.

    Compared are the best of the last third of the run and the best before it.

    >>> rows = [{"step": step, "mean_iou": 0.1 * step} for step in range(1, 7)]
    >>> trend_text(rows, Figure("mean_iou", "mean IoU"))
    'mean IoU on val was still improving at the end, from 0.4000 to 0.6000 in the last third: more steps would help'
    """
    known = [(row["step"], row[figure.name]) for row in history if row.get(figure.name) is not None]
    last = [value for step, value in known if step > LAST_SHARE * known[-1][0]]
    before = [value for step, value in known if step <= LAST_SHARE * known[-1][0]]
    if not before or len(known) < FEWEST_MEASURED:
        return ""
    best_of = max if figure.rises else min
    earlier, best = best_of(before), best_of(last)
    if figure.is_better(best, earlier) and abs(best - earlier) > RISING:
        change = f"from {earlier:.4f} to {best:.4f} in the last third"
        return f"{figure.title} on val was still improving at the end, {change}: more steps would help"
    return f"{figure.title} on val no longer improved in the last third of the run"


def _numbers(step: int, batch: int, fabric: Fabric) -> Iterator[Sequence[int]]:
    """The numbers of the samples of each batch from a step on, for this process."""
    while True:
        first = (step * fabric.world_size + fabric.global_rank) * batch
        yield range(first, first + batch)
        step += 1


def _epoch_line(state: State, learner: Learner, seconds: float) -> dict[str, Any]:
    """What the history says of the epoch that has just ended."""
    losses = {name: value / state.loss_steps for name, value in state.losses.items()}
    line: dict[str, Any] = {"epoch": state.epoch, "step": state.step, "seconds": seconds, "loss": sum(losses.values())}
    line |= {"losses": losses, "rate": learner.rate}
    if learner.settings.schedule and learner.phase is not None:
        line |= {"phase": learner.phase + 1, "parts": learner.schedule[learner.phase].parts}
    return line
