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
from pixelwise.terminal import Progress, TrainingProgress, megapixels

if TYPE_CHECKING:
    from pixelwise.config import Config
    from pixelwise.stream import Summary

DONE, OUR_FAILURE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

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
Model = Annotated[str | None, typer.Option(help="Architecture; `pixelwise models` lists them.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of everything random. Default 0.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="CODE", help="Leave out files with this problem instead of stopping."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Engine = Annotated[str, typer.Option(help="auto (the fastest that is there), torch, openvino or onnxruntime.")]
TileSide = Annotated[
    int | None, typer.Option(min=1, help="Side of a tile; default: the whole image, or large tiles of a large one.")
]
MaxRam = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory that the process may hold, as 2GiB; default: most of what is free."),
]
Axes = Annotated[str | None, typer.Option(help="Axes of TIFF stacks and Zarrs whose metadata do not tell: ZYX.")]


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
            print("interrupted (train and predict go on with --resume)", file=sys.stderr)
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


def _print(as_json: bool, quiet: bool, value: dict[str, Any], lines: list[str]) -> None:
    """The result: one JSON object, or a few lines for people."""
    if as_json:
        print(json.dumps(value))
    elif not quiet:
        print("\n".join(lines))


def _overrides(
    config: Path | None, assignments: list[str] | None, model: str | None = None
) -> dict[str, dict[str, Any]]:
    """What the user set; --model is one of the settings."""
    from pixelwise.config import parse_overrides

    overrides = parse_overrides(config, assignments or [])
    if model is not None:
        overrides.setdefault("model", {})["name"] = model
    return overrides


def _started() -> float:
    """The start of this process on the monotonic clock: `--minutes` counts from there."""
    import psutil

    return time.monotonic() - max(0.0, time.time() - psutil.Process().create_time())


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
    overrides = _overrides(config, assignments, model)
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
    overrides = _overrides(config, assignments, model)
    from pixelwise.pretrain import pretrain

    with Progress("pretraining", quiet) as progress:
        result = pretrain(
            data, out, task, overrides, minutes=minutes, epochs=epochs, seed=seed, force=force, allow=allow or [],
            device=device, callbacks=TrainingProgress(progress, out), started=_started(),
        )  # fmt: skip
    value = vars(result) | {"run": str(result.run)}
    lines = [
        f"{result.run}: encoder trained by {result.task} in {result.minutes:.1f} min, {result.steps} steps, last loss "
        f"{result.loss:.4f}; start from it with: pixelwise train {data} --init {result.run} --out NEW"
    ]
    _print(as_json, quiet, value, lines)


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
    overrides = _overrides(config, assignments, model)
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
    engine: Engine = "auto",
    device: Device = "auto",
    tile: TileSide = None,
    max_ram: MaxRam = None,
    file_format: Annotated[
        str, typer.Option("--format", help="png, tiff or zarr; auto takes PNG where a mask is small.")
    ] = "auto",
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write the classes' probabilities too.")
    ] = False,
    probability_type: Annotated[str, typer.Option(help="uint8 (255 times the probability) or float16.")] = "uint8",
    overlay: Annotated[bool, typer.Option("--overlay", help="Write pictures of the masks over the images.")] = False,
    tta: Annotated[str, typer.Option(help="Test-time augmentation: none, flips (4 runs) or turns (8 runs).")] = "none",
    amp: Annotated[bool, typer.Option("--amp", help="Half precision on a GPU: faster, and no longer exact.")] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="PyTorch's compiler: takes a minute first, pays for long work on a GPU.")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(help="Probability that class 1 of 2 must reach; default: the likelier class.")
    ] = None,
    fill_holes: Annotated[int, typer.Option(min=0, help="Fill holes of at most so many pixels.")] = 0,
    smallest_object: Annotated[int, typer.Option(min=0, help="Remove objects below so many pixels.")] = 0,
    inside: Annotated[
        Path | None, typer.Option(help="Predict where this mask is not 0; or a folder of masks named as the images.")
    ] = None,
    skip_background: Annotated[
        bool, typer.Option("--skip-background", help="Take tiles of empty background, as of a slide, for class 0.")
    ] = False,
    axes: Axes = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the prediction in --out.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Label images of any size: the mask of a/b.tif is OUT/b.png."""
    from pixelwise import stream
    from pixelwise.api import WORTH_PREPARING, load
    from pixelwise.canvas import Outputs
    from pixelwise.data.inputs import count_pixels, find_inputs
    from pixelwise.postprocess import PostProcess

    _check_choice("--format", file_format, "a format", ("auto", "png", "tiff", "zarr"))
    _check_choice("--probability-type", probability_type, "a type of probabilities", ("uint8", "float16"))
    clean = PostProcess(threshold, fill_holes, smallest_object)
    outputs = Outputs(
        out, file_format, probabilities, overlay, probability_type, clean, inside, skip_background, resume  # type: ignore[arg-type]
    )  # fmt: skip
    pixels = count_pixels(find_inputs(inputs), WORTH_PREPARING)
    predictor = load(run).predictor(device, engine, tile or "auto", tta, _bytes(max_ram), pixels, amp, compiled)
    with Progress("predicting", quiet) as progress:
        if predictor.runner.engine.note:
            progress.note(predictor.runner.engine.note)
        shown = stream.Progress(megapixels(progress), progress.note)
        summary = stream.predict_files(predictor, inputs, outputs, axes, shown)
    _tell_masks(summary, out, predictor.runner.engine.name, as_json, quiet)


def _tell_masks(summary: "Summary", out: Path, engine: str, as_json: bool, quiet: bool) -> None:
    """Print what became of the images; status 2 if one failed."""
    from pixelwise.memory import peak_ram_bytes

    rate = summary.pixels / 1e6 / max(summary.seconds, 1e-9)
    value = {
        "outputs": summary.outputs,
        "failed": summary.failed,
        "engine": engine,
        "megapixels_per_second": rate,
        "peak_ram_bytes": peak_ram_bytes(),
    }
    done = f"{len(summary.outputs)} masks in {out}, {rate:.2f} megapixels a second by {engine}"
    if summary.finished_before:
        done = f"{out}: was finished already, {len(summary.outputs)} masks"
    _print(as_json, quiet, value, [done])
    for failure in summary.failed:
        print(f"error: {failure['message']}", file=sys.stderr)
    if summary.failed:
        raise typer.Exit(BAD_INPUT)


def _check_choice(option: str, value: str, kind: str, choices: tuple[str, ...]) -> None:
    from pixelwise.errors import SettingError, near

    if value not in choices:
        raise SettingError(f"{option} {value}: is not {kind}; {near(value, choices)}")


def _bytes(size: str | None) -> int | None:
    from pixelwise.memory import parse_size

    return None if size is None else parse_size(size)


@app.command(name="verify-seams", epilog="Example: pixelwise verify-seams runs/cells slide.tif --tile 512")
@guarded
def verify_seams(
    run: RunFolder,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    tile: TileSide = None,
    engine: Engine = "auto",
    device: Device = "auto",
    max_ram: MaxRam = None,
    axes: Axes = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare an image predicted by tiles with one plain forward of the whole image."""
    from pixelwise import verify
    from pixelwise.api import load

    predictor = load(run).predictor(device, engine, tile or "auto", "none", _bytes(max_ram))
    found = verify.verify_seams(predictor, image, tile or "auto", axes)
    what = "the whole image" if found["whole"] else "the largest crop that fits the memory"
    lines = [
        f"{found['tiles']} tiles by {found['engine']}, against one forward of {what} "
        f"({found['height']} x {found['width']})",
        f"largest difference of the logits: {found['max_abs_difference']:.3g}, "
        f"{found['max_relative_difference']:.3g} of the largest logit",
        f"flipped pixels: {found['flipped_pixels']} (and {found['near_ties']} near-ties)",
        f"stride {found['stride']}, halo {found['halo']}, margin {found['margin']}, "
        + ("exact" if found["exact"] else f"not exact: {found['reason']}"),
    ]
    _print(as_json, quiet, found, lines)
    if found["exact"] and (found["flipped_pixels"] or found["max_relative_difference"] > found["tolerance"]):
        print("error: the tiles of a network that is exact differ; please report this.", file=sys.stderr)
        raise typer.Exit(OUR_FAILURE)


@app.command(epilog="Example: pixelwise models unet --set model.width=16")
@guarded
def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One architecture; default: all.")] = None,
    assignments: Settings = None,
    channels: Annotated[int, typer.Option(min=1, help="Channels of the image.")] = 3,
    classes: Annotated[int, typer.Option(min=1, help="Number of classes.")] = 2,
    size: Annotated[int, typer.Option(min=1, help="Side of the image that is counted for, in pixels.")] = 512,
    features: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="RUN IMAGE", help="Draw filters and feature maps of a run of NAME for an image."),
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(metavar="LAYER", help="A layer to draw; may be repeated; default: some.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Picture to write; default RUN/features-IMAGE.png.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the architectures with their size, cost and geometry, or the layers of one of them."""
    settings = _model_settings(name, assignments, features is not None, layer or out)
    from pixelwise.models import summary

    if features is not None:
        assert name is not None
        _draw_features(name, *features, layer or [], out, as_json, quiet)
    elif name is None:
        found = summary.summarize_all(channels, classes, size)
        _print(as_json, quiet, {"models": [one.totals() for one in found]}, summary.describe_all(found))
    else:
        one = summary.summarize(name, settings, channels, classes, size)
        _print(as_json, quiet, one.to_json(), summary.describe(one))


def _model_settings(name: str | None, assignments: list[str] | None, draws: bool, drawn: object) -> dict[str, Any]:
    """The settings of section `model`; options that need another one are refused."""
    from pixelwise.errors import SettingError

    overrides = _overrides(None, assignments)
    if name is None and (draws or overrides):
        raise SettingError(f"{'--features' if draws else '--set'}: name the network, as in `pixelwise models unet`.")
    if drawn and not draws:
        raise SettingError("--layer and --out belong to --features RUN IMAGE.")
    if draws and overrides:
        raise SettingError("--set: a run has its settings; leave it out beside --features.")
    if set(overrides) - {"model"}:
        raise SettingError("--set: only settings of the network, model.*, count here.")
    return overrides.get("model", {})


def _draw_features(
    name: str, run: Path, image: Path, layers: list[str], out: Path | None, as_json: bool, quiet: bool
) -> None:
    """Write the picture, and tell where."""
    from pixelwise.api import load
    from pixelwise.errors import SettingError
    from pixelwise.files import write_with
    from pixelwise.report.features import draw_features

    loaded = load(run)
    if loaded.config.model.name != name:
        raise SettingError(f"{run}: is a run of {loaded.config.model.name}, not of {name}; name that one.")
    predictor = loaded.predictor("cpu", "torch")
    picture, drawn = draw_features(predictor, image, layers, f"{name}: {run.resolve().name}")
    path = out or run / f"features-{image.stem}.png"
    write_with(path, lambda temporary: temporary.write_bytes(picture))
    rows = [{"name": one.name, "kind": one.kind, "shape": list(one.maps.shape)} for one in drawn]
    _print(as_json, quiet, {"features": str(path), "layers": rows}, [str(path)])


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
