"""The command line: parse, call, print. PyTorch is imported inside the commands, so that --help stays fast."""

import functools
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixelwise.errors import PixelwiseError

if TYPE_CHECKING:
    from pixelwise.config import Config
    from pixelwise.train import StepReport

DONE, OUR_FAILURE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
PLAIN_SECONDS = 5.0  # between progress lines where there is no terminal

app = typer.Typer(
    name="pixelwise",
    help="Labels every pixel: a folder of images and masks becomes a trained, measured segmenter.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Data = Annotated[Path, typer.Argument(help="Folder with images/ and masks/, or with train/, val/, test/ of them.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no notes.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=v", help="One setting; may be repeated.")]
Minutes = Annotated[float | None, typer.Option(min=0.05, help="Wall clock of the whole command.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Number of epochs.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of everything random. Default 0.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="CODE", help="Leave out files with this problem instead of stopping."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def main() -> None:
    """Run the command line with the exit statuses of the contract."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a command raises into a message and an exit status."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except PixelwiseError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(BAD_INPUT) from None
        except KeyboardInterrupt:
            print("interrupted (a training goes on with --resume)", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise typer.Exit(DONE) from None
        except typer.Exit:
            raise
        except Exception:
            traceback.print_exc()
            print(
                "This is a failure of pixelwise, not of yours; please report it with the lines above.",
                file=sys.stderr,
            )
            raise typer.Exit(OUR_FAILURE) from None

    return run


class Progress:
    """A bar on a terminal; elsewhere a plain line every few seconds; nothing when quiet. All of it on stderr."""

    def __init__(self, title: str, quiet: bool) -> None:
        self._title = title
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._last = time.monotonic()
        self._first = self._last
        if not quiet and sys.stderr.isatty():
            self._bar = _rich_bar()

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=1.0, text="")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: float, text: str) -> None:
        """Progress of 0 .. 1 and what to say about it."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=text)
        elif not self._quiet and time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            left = (self._last - self._first) * (1 - done) / max(done, 1e-6)
            print(
                f"{self._title}: {100 * done:.0f}%  {text}  {_duration(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self._quiet:
            (self._bar.console.print if self._bar is not None else _to_stderr)(text)

    def count(self, done: int, total: int) -> None:
        """Progress as a number of files."""
        rate = done / max(time.monotonic() - self._first, 1e-6)
        self.show(done / max(total, 1), f"{done} of {total} files, {rate:.1f} a second")


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


class TrainingProgress:
    """Shows a training, and keeps what it said in the run's log."""

    def __init__(self, progress: Progress, out: Path) -> None:
        self._progress = progress
        self._log = out / "log.txt"
        self._waiting: list[str] = []
        self._begin = time.monotonic()
        self._first_step: int | None = None

    def note(self, text: str) -> None:
        """A line for people and for the log."""
        self._progress.note(text)
        self._write(text)

    def surveyed(self, done: int, total: int) -> None:
        """So many samples were checked."""
        if done == total:
            self._progress.note(f"checked {total} images and masks")

    def stepped(self, report: "StepReport") -> None:
        """A step is done."""
        if self._first_step is None:
            self._first_step, self._begin = report.step - 1, time.monotonic()
        rate = (report.step - self._first_step) / max(time.monotonic() - self._begin, 1e-6)
        text = f"epoch {report.epoch}, step {report.step}, loss {report.loss:.3f}, {rate:.1f} steps/s"
        self._progress.show(min(report.progress, 1.0), text)

    def validated(self, line: dict[str, Any]) -> None:
        """An epoch is over."""
        score = f", mean IoU {line['mean_iou']:.4f}" if "mean_iou" in line else ""
        self.note(f"epoch {line['epoch']}: loss {line['loss']:.4f}{score}, {line['seconds']:.0f} s")

    def _write(self, text: str) -> None:
        """Append to log.txt as soon as the run's folder is there."""
        self._waiting.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        if self._log.parent.is_dir():
            with self._log.open("a", encoding="utf-8") as file:
                file.writelines(self._waiting)
            self._waiting.clear()


def _print(as_json: bool, quiet: bool, value: dict[str, Any], lines: list[str]) -> None:
    """The result: one JSON object, or a few lines for people."""
    if as_json:
        print(json.dumps(value))
    elif not quiet:
        print("\n".join(lines))


def _overrides(config: Path | None, assignments: list[str] | None) -> dict[str, dict[str, Any]]:
    from pixelwise.config import parse_overrides

    return parse_overrides(config, assignments or [])


def _started() -> float:
    """The start of this process on the monotonic clock: `--minutes` counts from there."""
    import psutil

    return time.monotonic() - max(0.0, time.time() - psutil.Process().create_time())


@app.command(epilog="Example: pixelwise train cells/ --out runs/cells --minutes 10")
@guarded
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    model: Annotated[str | None, typer.Option(help="Architecture.")] = None,
    minutes: Minutes = None,
    epochs: Epochs = None,
    config: ConfigFile = None,
    assignments: Settings = None,
    seed: Seed = None,
    init: Annotated[Path | None, typer.Option(help="Start from this run's weights.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run in --out.")] = False,
    allow: Allow = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a network on a folder of images and masks."""
    overrides = _overrides(config, assignments)
    if model is not None:
        overrides.setdefault("model", {})["name"] = model
    from pixelwise.prepare import is_child
    from pixelwise.train import train

    silent = quiet or is_child()
    with Progress("training", silent) as progress:
        result = train(
            data, out, overrides, minutes=minutes, epochs=epochs, seed=seed, init=init, resume=resume, force=force,
            allow=allow or [], device=device, callbacks=TrainingProgress(progress, out), started=_started(),
        )  # fmt: skip
    value = {
        "run": str(result.run),
        "minutes": result.minutes,
        "epochs": result.epochs,
        "best": {"epoch": result.best_epoch, "mean_iou": result.best_mean_iou},
    }
    lines = [
        f"{result.run}: {'was finished already' if result.finished_before else 'done'}, {result.epochs} epochs in "
        f"{result.minutes:.1f} minutes; best mean IoU on val {result.best_mean_iou:.4f} (epoch {result.best_epoch})",
        f"next: pixelwise evaluate {result.run} {data}",
    ]
    if not is_child():
        _print(as_json, quiet, value, lines)


@app.command(epilog="Example: pixelwise plan cells/ --set train.batch=4")
@guarded
def plan(
    data: Data,
    model: Annotated[str | None, typer.Option(help="Architecture.")] = None,
    minutes: Minutes = None,
    epochs: Epochs = None,
    config: ConfigFile = None,
    assignments: Settings = None,
    seed: Seed = None,
    allow: Allow = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print the settings that train would use, and a forecast of its time and memory from a few measured steps."""
    overrides = _overrides(config, assignments)
    if model is not None:
        overrides.setdefault("model", {})["name"] = model
    from pixelwise.forecast import forecast
    from pixelwise.prepare import prepare

    with Progress("checking", quiet) as progress:
        planned, surveyed = prepare(
            data, overrides, minutes=minutes, epochs=epochs, seed=seed, allow=allow or [], device=device,
            progress=progress.count,
        )  # fmt: skip
        expected = forecast(planned, surveyed, device)
    value = {"config": planned.model_dump(mode="json"), "forecast": expected}
    _print(as_json, quiet, value, [planned.to_toml(), *_forecast_lines(planned, expected)])


def _forecast_lines(planned: "Config", expected: dict[str, float]) -> list[str]:
    return [
        f"# forecast: {expected['minutes']:.1f} minutes at {expected['steps_per_second']:.2f} steps a second, "
        f"{expected['peak_memory_bytes'] / 2**30:.1f} GiB at most",
        f"# {planned.train.steps_per_epoch} steps an epoch",
    ]


@app.command(epilog="Example: pixelwise evaluate runs/cells cells/ --split val")
@guarded
def evaluate(
    run: RunFolder,
    data: Data,
    split: Annotated[str | None, typer.Option(help="train, val or test; default test, else val.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; default RUN/evaluation-SPLIT.")] = None,
    allow: Allow = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a run on labelled images: metrics.json and report.html."""
    from pixelwise.api import load
    from pixelwise.evaluate import output_folder

    loaded = load(run)
    with Progress("evaluating", quiet) as progress:
        metrics = loaded.evaluate(data, split, out, device=device, allow=allow or [], progress=progress.count)
    folder = out or output_folder(run, metrics["split"])
    rows = [f"  {row['name']:<20} {_figure(row['iou'])}" for row in metrics["classes"]]
    head = f"{metrics['images']} images of {metrics['split']}: mean IoU {_figure(metrics['mean_iou'])}"
    _print(as_json, quiet, metrics, [head, *rows, f"report: {folder / 'report.html'}"])


def _figure(value: float | None) -> str:
    return "absent" if value is None else f"{value:.4f}"


@app.command(epilog="Example: pixelwise predict runs/cells new/*.tif --out masks --overlay")
@guarded
def predict(
    run: RunFolder,
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Image files, folders, glob patterns.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")],
    engine: Annotated[str, typer.Option(help="auto or torch.")] = "auto",
    device: Device = "auto",
    tile: Annotated[
        int | None, typer.Option(min=1, help="Side of a tile; default: tiles only for large images.")
    ] = None,
    file_format: Annotated[str, typer.Option("--format", help="png or tiff.")] = "png",
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write the classes' probabilities too.")
    ] = False,
    overlay: Annotated[bool, typer.Option("--overlay", help="Write pictures of the masks over the images.")] = False,
    axes: Annotated[str | None, typer.Option(help="Axes of TIFF stacks whose metadata do not tell: ZYX.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Label images: the mask of a/b.tif is OUT/b.png."""
    from pixelwise.api import load
    from pixelwise.errors import SettingError, near
    from pixelwise.memory import peak_ram_bytes
    from pixelwise.predict import Outputs, predict_files

    if file_format not in ("png", "tiff"):
        raise SettingError(f"--format {file_format}: is not a format; {near(file_format, ('png', 'tiff'))}")
    predictor = load(run).predictor(device, engine, tile or "auto")
    with Progress("predicting", quiet) as progress:
        summary = predict_files(
            predictor,
            inputs,
            Outputs(out, file_format, probabilities, overlay),  # type: ignore[arg-type]
            axes,
            lambda done, total, pixels: progress.count(done, total),
        )
    value = {
        "outputs": summary.outputs,
        "failed": summary.failed,
        "megapixels_per_second": summary.pixels / 1e6 / max(summary.seconds, 1e-9),
        "peak_ram_bytes": peak_ram_bytes(),
    }
    done = f"{len(summary.outputs)} masks in {out}, {value['megapixels_per_second']:.2f} megapixels a second"
    _print(as_json, quiet, value, [done])
    for failure in summary.failed:
        print(f"error: {failure['message']}", file=sys.stderr)
    if summary.failed:
        raise typer.Exit(BAD_INPUT)


@app.command(epilog="Example: pixelwise demo --out demo")
@guarded
def demo(
    out: Annotated[Path, typer.Option(help="Folder to make.")] = Path("demo"),
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier demo.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a small set of cell images, train on it, measure, predict, and write a report: under 3 minutes."""
    from pixelwise.demo import run_demo

    with Progress("training", quiet) as progress:
        value = run_demo(out, force, TrainingProgress(progress, out / "run"), progress.note)
    lines = [
        f"made     {value['data']}  (images and masks)",
        f"trained  {value['run']}  (mean IoU {value['mean_iou']:.3f} on images it has not seen)",
        f"report   {value['report']}  (open it in a browser)",
        f"masks    {value['masks']}  (overlays are inside)",
        "",
        "Try next, with your own folder of images/ and masks/:",
        "  pixelwise plan DATA",
        "  pixelwise train DATA --out runs/first --minutes 10",
        "  pixelwise evaluate runs/first DATA",
        "  pixelwise predict runs/first IMAGES --out masks --overlay",
    ]
    _print(as_json, quiet, value, lines)


if __name__ == "__main__":
    main()
