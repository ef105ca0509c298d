"""Commands that train, and the plan of it."""

import math
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
    Pretrained,
    Quiet,
    Seed,
    Settings,
    TaskName,
    Weights,
    add_start,
    app,
    guarded,
    print_result,
    process_start,
    read_overrides,
)
from pixelwise.cli.terminal import Display, TrainingDisplay

if TYPE_CHECKING:
    from pixelwise.core.config import Config, Overrides
    from pixelwise.task import Task
    from pixelwise.training.prepare import Start


@app.command(epilog="Example: pixelwise train cells/ --out runs/cells --minutes 10")
@guarded
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder to create for the run.")],
    task: TaskName = None,
    model: Model = None,
    minutes: Minutes = None,
    epochs: Epochs = None,
    config: ConfigFile = None,
    assignments: Settings = None,
    seed: Seed = None,
    init: Annotated[Path | None, typer.Option(help="Start from the weights of this run.")] = None,
    pretrained: Pretrained = False,
    weights: Weights = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run in --out.")] = False,
    allow: Allow = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a network on a folder of images and their labels."""
    overrides = read_overrides(config, assignments, model, (minutes, epochs), {"seed": seed, "task": task})
    add_start(overrides, pretrained, weights)
    from pixelwise.tasks import choose_task
    from pixelwise.training.prepare import Start

    chosen = choose_task(overrides.get("", {}).get("task"), out if resume else None)
    start = Start(init, resume, force, tuple(allow or ()), device, process_start())
    hint = f"pixelwise evaluate {out} {data}"
    _run(chosen, (data, out), overrides, start, hint, as_json, quiet)


@app.command(epilog="Example: pixelwise pretrain cells/ --out runs/encoder --kind rebuild --minutes 5")
@guarded
def pretrain(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder to create for the run; `train --init` starts from it.")],
    kind: Annotated[
        str | None,
        typer.Option(
            help="patches (default: classify the pixel in a patch's middle), rebuild (an autoencoder of the image) or "
            "stacked (an autoencoder level by level)."
        ),
    ] = None,
    model: Model = None,
    minutes: Minutes = None,
    epochs: Epochs = None,
    config: ConfigFile = None,
    assignments: Settings = None,
    seed: Seed = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run in --out.")] = False,
    allow: Allow = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train only the encoder of a network, as a starting point for train --init."""
    overrides = read_overrides(config, assignments, model, (minutes, epochs), {"seed": seed})
    from pixelwise.tasks import choose_pretraining
    from pixelwise.training.prepare import Start

    chosen = choose_pretraining(kind, out if resume else None)
    start = Start(None, resume, force, tuple(allow or ()), device, process_start())
    hint = f"pixelwise train {data} --init {out} --out NEW"
    _run(chosen, (data, out), overrides, start, hint, as_json, quiet)


def _run(
    task: "Task",
    places: tuple[Path, Path],
    overrides: "Overrides",
    start: "Start",
    hint: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train with progress on the terminal, and tell what came of it; of several processes the first one speaks."""
    from pixelwise.training.loop import train as train_run
    from pixelwise.training.prepare import is_child

    (data, out), silent = places, quiet or is_child()
    with Display("training", silent) as display:
        result = train_run(task, data, out, overrides, start, TrainingDisplay(display, out, task.figure))
    best = vars(result.best)
    if result.best.metric == "mean_iou":
        best = {**best, "mean_iou": result.best.value}
    value = {"run": str(result.run), "minutes": result.minutes, "epochs": result.epochs, "best": best}
    how = "was finished already" if result.finished_before else "done"
    figure = f"best {task.figure.title} on val {result.best.value:.4f} (epoch {result.best.epoch})"
    lines = [f"{out}: {how}, {result.epochs} epochs in {result.minutes:.1f} minutes; {figure}", f"next: {hint}"]
    if not is_child():
        print_result(as_json, quiet, value, lines)


@app.command(epilog="Example: pixelwise plan cells/ --set train.batch=4")
@guarded
def plan(
    data: Data,
    task: TaskName = None,
    model: Model = None,
    minutes: Minutes = None,
    epochs: Epochs = None,
    config: ConfigFile = None,
    assignments: Settings = None,
    seed: Seed = None,
    pretrained: Pretrained = False,
    weights: Weights = None,
    allow: Allow = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print the settings that train would use, and estimate its time and memory from a few real steps."""
    overrides = read_overrides(config, assignments, model, (minutes, epochs), {"seed": seed, "task": task})
    add_start(overrides, pretrained, weights)
    from pixelwise.tasks import choose_task
    from pixelwise.training.forecast import forecast
    from pixelwise.training.prepare import Start, prepare, starting_weights

    chosen = choose_task(overrides.get("", {}).get("task"))
    with Display("checking", quiet) as display:
        start = Start(allow=tuple(allow or ()), device=device)
        planned, surveyed = prepare(chosen, data, overrides, start, display.count)
        for text in (*(f"{problem.severity}: {problem}" for problem in surveyed.problems), *surveyed.told):
            display.note(text)
        if planned.model.weights is not None:  # published ones are not fetched for a plan
            display.note(str(starting_weights(planned, chosen.network(planned))))
        expected = forecast(chosen, planned, surveyed, device)
    value = {"config": planned.model_dump(mode="json"), "forecast": expected}
    print_result(as_json, quiet, value, [planned.to_toml(), *_forecast_lines(planned, expected)])


FEW_STEPS = 1000  # with fewer, most networks have not learnt what they could
FEW_MINUTES = 10  # a suggested length is a multiple of it


def _forecast_lines(planned: "Config", expected: dict[str, float]) -> list[str]:
    return [
        f"# forecast: {expected['minutes']:.1f} minutes at {expected['steps_per_second']:.2f} steps a second, "
        f"{expected['peak_memory_bytes'] / 2**30:.1f} GiB at most",
        f"# {_steps_text(expected['steps'], expected['steps_per_second'])}; "
        f"{planned.train.steps_per_epoch} steps an epoch",
    ]


def _steps_text(steps: float, steps_per_second: float) -> str:
    """How many steps there will be, and where they are few, how long more would take.

    >>> _steps_text(400, 0.7)
    'about 400 steps: few for a network; --minutes 30 gives about 1,145'
    >>> _steps_text(4000, 0.7)
    'about 4,000 steps'
    """
    from pixelwise.training.forecast import steps_in

    text = f"about {steps:,.0f} steps"
    if steps >= FEW_STEPS:
        return text
    minutes = FEW_MINUTES * math.ceil(FEW_STEPS / max(steps_in(FEW_MINUTES, steps_per_second), 1))
    return f"{text}: few for a network; --minutes {minutes} gives about {steps_in(minutes, steps_per_second):,}"


@app.command(epilog="Example: pixelwise demo --out demo")
@guarded
def demo(
    out: Annotated[Path, typer.Option(help="Folder to create.")] = Path("demo"),
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier demo.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Create a small set of cell images, train on it, evaluate, predict and write a report, in under 3 minutes."""
    from pixelwise.demo import run_demo
    from pixelwise.tasks import TASKS

    with Display("training", quiet) as display:
        value = run_demo(out, force, TrainingDisplay(display, out / "run", TASKS["segment"].figure), display.note)
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
