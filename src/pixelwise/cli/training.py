"""Commands that train, and the plan of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixelwise.cli.base import (
    Allow,
    ConfigFile,
    Data,
    Device,
    Epochs,
    Json,
    Minutes,
    Model,
    Quiet,
    Seed,
    Settings,
    app,
    guarded,
    print_result,
    process_start,
    read_overrides,
)
from pixelwise.cli.terminal import Progress, TrainingProgress

if TYPE_CHECKING:
    from pixelwise.core.config import Config


@app.command(epilog="Example: pixelwise train cells/ --out runs/cells --minutes 10")
@guarded
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    model: Model = None,
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
    overrides = read_overrides(config, assignments, model)
    from pixelwise.training.loop import train
    from pixelwise.training.prepare import is_child

    silent = quiet or is_child()
    with Progress("training", silent) as progress:
        result = train(
            data, out, overrides, minutes=minutes, epochs=epochs, seed=seed, init=init, resume=resume, force=force,
            allow=allow or [], device=device, callbacks=TrainingProgress(progress, out), started=process_start(),
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
        print_result(as_json, quiet, value, lines)


@app.command(epilog="Example: pixelwise pretrain cells/ --out runs/encoder --task autoencode --minutes 5")
@guarded
def pretrain(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder to make; `train --init` starts from it.")],
    task: Annotated[str, typer.Option(help="classify (the pixel in a patch's middle), autoencode or stacked.")] = (
        "classify"
    ),
    model: Model = None,
    minutes: Minutes = None,
    epochs: Epochs = None,
    config: ConfigFile = None,
    assignments: Settings = None,
    seed: Seed = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in --out.")] = False,
    allow: Allow = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train an encoder alone, as a start for train --init."""
    overrides = read_overrides(config, assignments, model)
    from pixelwise.tasks.pretrain import pretrain

    with Progress("pretraining", quiet) as progress:
        result = pretrain(
            data, out, task, overrides, minutes=minutes, epochs=epochs, seed=seed, force=force, allow=allow or [],
            device=device, callbacks=TrainingProgress(progress, out), started=process_start(),
        )  # fmt: skip
    value = vars(result) | {"run": str(result.run)}
    lines = [
        f"{result.run}: encoder trained by {result.task} in {result.minutes:.1f} min, {result.steps} steps, last loss "
        f"{result.loss:.4f}; start from it with: pixelwise train {data} --init {result.run} --out NEW"
    ]
    print_result(as_json, quiet, value, lines)


@app.command(epilog="Example: pixelwise plan cells/ --set train.batch=4")
@guarded
def plan(
    data: Data,
    model: Model = None,
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
    overrides = read_overrides(config, assignments, model)
    from pixelwise.training.forecast import forecast
    from pixelwise.training.prepare import prepare

    with Progress("checking", quiet) as progress:
        planned, surveyed = prepare(
            data, overrides, minutes=minutes, epochs=epochs, seed=seed, allow=allow or [], device=device,
            progress=progress.count,
        )  # fmt: skip
        expected = forecast(planned, surveyed, device)
    value = {"config": planned.model_dump(mode="json"), "forecast": expected}
    print_result(as_json, quiet, value, [planned.to_toml(), *_forecast_lines(planned, expected)])


def _forecast_lines(planned: "Config", expected: dict[str, float]) -> list[str]:
    return [
        f"# forecast: {expected['minutes']:.1f} minutes at {expected['steps_per_second']:.2f} steps a second, "
        f"{expected['peak_memory_bytes'] / 2**30:.1f} GiB at most",
        f"# {planned.train.steps_per_epoch} steps an epoch",
    ]


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
    print_result(as_json, quiet, value, lines)
