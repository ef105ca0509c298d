"""What a person sees of a long command: a bar on a terminal, plain lines elsewhere, and the log of a training."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from pixelwise.core.run_folder import RunFolder
from pixelwise.training.callbacks import Callbacks, StepReport

if TYPE_CHECKING:
    from pixelwise.task import Figure

PLAIN_SECONDS = 5.0  # between progress lines where there is no terminal


class Speed:
    """How fast something goes since it was first looked at: what came before, such as starting up, does not count."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def of(self, amount: float) -> float | None:
        """What was done so far, per second; None while there is nothing to tell it by."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, amount
        begin, before = self._first
        return (amount - before) / (now - begin) if amount > before and now > begin else None


class Display:
    """A bar on a terminal; elsewhere a plain line every few seconds; nothing when quiet. All of it on stderr."""

    def __init__(self, title: str, quiet: bool) -> None:
        self._title = title
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._last = time.monotonic()
        self._speed, self._file_speed, self._byte_speed = Speed(), Speed(), Speed()
        if not quiet and sys.stderr.isatty():
            self._bar = _rich_bar()

    def __enter__(self) -> "Display":
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=1.0, text="")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: float, text: str) -> None:
        """Progress of 0 .. 1 and what to say about it."""
        speed = self._speed.of(done)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=text)
        elif not self._quiet and time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            left = f"  {_duration((1 - done) / speed)} left" if speed else ""
            _to_stderr(f"{self._title}: {100 * done:.0f}%  {text}{left}")

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self._quiet:
            (self._bar.console.print if self._bar is not None else _to_stderr)(text)

    def count(self, done: int, total: int) -> None:
        """Progress as a number of files."""
        rate = self._file_speed.of(done)
        self.show(done / max(total, 1), f"{done} of {total} files" + (f", {rate:.1f} a second" if rate else ""))

    def fetched(self, done: int, total: int) -> None:
        """Progress of a download, in bytes."""
        rate, share = self._byte_speed.of(done), done / max(total, 1)
        text = f"weights: {done / 1e6:.1f} of {total / 1e6:.1f} MB" + (f", {rate / 1e6:.1f} MB/s" if rate else "")
        if self._bar is not None:
            self._bar.update(self._task, completed=share, text=text)
        elif not self._quiet and (done >= total or time.monotonic() - self._last >= PLAIN_SECONDS):
            self._last = time.monotonic()
            _to_stderr(f"{text} ({100 * share:.0f}%)")


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _rich_bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    console = Console(stderr=True, highlight=False, markup=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[text]}"),
    )
    return Bar(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class TrainingDisplay(Callbacks):
    """Shows a training, and keeps what it said in the run's log."""

    def __init__(self, display: Display, out: Path, figure: "Figure") -> None:
        self._display, self._figure = display, figure
        self._log = RunFolder(out).log
        self._waiting: list[str] = []
        self._speed = Speed()

    @override
    def note(self, text: str) -> None:
        self._display.note(text)
        self._write(text)

    @override
    def surveyed(self, done: int, total: int) -> None:
        if done == total:
            self._display.note(f"checked {total} images and masks")

    @override
    def fetched(self, done: int, total: int) -> None:
        self._display.fetched(done, total)

    @override
    def stepped(self, report: StepReport) -> None:
        rate = self._speed.of(report.step)
        text = f"epoch {report.epoch}, step {report.step}, loss {report.loss:.3f}"
        self._display.show(min(report.progress, 1.0), text + (f", {rate:.1f} steps/s" if rate else ""))

    @override
    def validated(self, line: dict[str, Any]) -> None:
        value = line.get(self._figure.name)
        score = "" if value is None else f", {self._figure.title} {value:.4f}"
        self.note(f"epoch {line['epoch']}: loss {line['loss']:.4f}{score}, {line['seconds']:.0f} s")

    def _write(self, text: str) -> None:
        """Append to log.txt as soon as the run's folder is there."""
        self._waiting.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        if self._log.parent.is_dir():
            with self._log.open("a", encoding="utf-8") as file:
                file.writelines(self._waiting)
            self._waiting.clear()


def megapixels(display: Display) -> Callable[[float, int], None]:
    """Shows a share and a number of pixels with their rate."""
    speed = Speed()

    def show(share: float, pixels: int) -> None:
        rate = speed.of(pixels / 1e6)
        display.show(share, f"{pixels / 1e6:,.1f} megapixels" + (f", {rate:.2f} a second" if rate else ""))

    return show
