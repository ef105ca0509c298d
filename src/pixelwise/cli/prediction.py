"""Commands that use a trained run: measure it, predict, prove its tiles."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixelwise.cli.base import (
    BAD_INPUT,
    OUR_FAILURE,
    Allow,
    Axes,
    Data,
    Device,
    Engine,
    Json,
    MaxRam,
    Quiet,
    RunPath,
    TileSide,
    app,
    guarded,
    print_result,
)
from pixelwise.cli.terminal import Display, megapixels

Compiled = Annotated[
    bool,
    typer.Option("--compile", help="Use PyTorch's compiler: slow to start, pays off for long jobs on a GPU."),
]
Threshold = Annotated[
    float | None,
    typer.Option(help="Of two classes, the probability that class 1 must reach; default: the likelier class."),
]

if TYPE_CHECKING:
    from pixelwise.prediction.stream import Outcome


@app.command(epilog="Example: pixelwise evaluate runs/cells cells/ --split val")
@guarded
def evaluate(
    run: RunPath,
    data: Data,
    split: Annotated[str | None, typer.Option(help="train, val or test; default test, else val.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default RUN/evaluation-SPLIT.")] = None,
    allow: Allow = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a run on labelled images, and write metrics.json and report.html."""
    from pixelwise.api import load
    from pixelwise.core.run_folder import RunFolder

    with Display("evaluating", quiet) as display:
        loaded = replace(load(run), tell=display.note)
        metrics = loaded.evaluate(data, split, out, device=device, allow=allow or [], progress=display.count)
        for text in metrics.get("notes", ()):
            display.note(text)
    folder = out or RunFolder(run).evaluation(metrics["split"])
    rows = [
        f"  {row['name']:<20} {figure(row['iou'])}{'' if row.get('trained', True) else '  (not in the training set)'}"
        for row in metrics.get("classes", ())
        if "iou" in row
    ]
    head = f"{metrics['images']} images of {metrics['split']}: {loaded.task.figure.title} {figure(metrics['value'])}"
    print_result(as_json, quiet, metrics, [head, *rows, f"report: {folder / 'report.html'}"])


def figure(value: float | None) -> str:
    """A figure for people to read; None means that the class occurs nowhere."""
    return "absent" if value is None else f"{value:.4f}"


@app.command(epilog="Example: pixelwise predict runs/cells new/*.tif --out masks --overlay")
@guarded
def predict(
    run: RunPath,
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Image files, folders, glob patterns.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")],
    engine: Engine = "auto",
    device: Device = "auto",
    tile: TileSide = None,
    max_ram: MaxRam = None,
    file_format: Annotated[
        str, typer.Option("--format", help="png, tiff or zarr; auto writes small masks as PNG.")
    ] = "auto",
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write the probability of each class.")
    ] = False,
    probability_type: Annotated[str, typer.Option(help="uint8 (255 times the probability) or float16.")] = "uint8",
    overlay: Annotated[bool, typer.Option("--overlay", help="Also draw the masks over the images.")] = False,
    tta: Annotated[str, typer.Option(help="Test-time augmentation: none, flips (4 runs) or turns (8 runs).")] = "none",
    amp: Annotated[bool, typer.Option("--amp", help="Use half precision on a GPU: faster, but not exact.")] = False,
    compiled: Compiled = False,
    threshold: Threshold = None,
    fill_holes: Annotated[int, typer.Option(min=0, help="Fill holes of up to this many pixels.")] = 0,
    smallest_object: Annotated[int, typer.Option(min=0, help="Remove objects smaller than this many pixels.")] = 0,
    label_values: Annotated[
        bool,
        typer.Option("--label-values", help="Write the values (or colours) of the training masks, not class numbers."),
    ] = False,
    inside: Annotated[
        Path | None,
        typer.Option(help="Predict only where this mask is not 0; or a folder with a mask for each image."),
    ] = None,
    skip_background: Annotated[
        bool,
        typer.Option("--skip-background", help="Label tiles of empty background, as on a slide, as class 0."),
    ] = False,
    axes: Axes = None,
    series: Annotated[
        int | None,
        typer.Option(min=0, help="Number of the image, from 0, in files that hold several; default: the largest."),
    ] = None,
    normalize: Annotated[
        str,
        typer.Option(help="run, or percentile: stretch each image by its own percentiles to the training's level."),
    ] = "run",
    nodata: Annotated[
        float | None,
        typer.Option(metavar="VALUE", help="Value of pixels without data, where the files do not say; may be nan."),
    ] = None,
    nodata_label: Annotated[
        int | None,
        typer.Option(min=0, max=255, help="Label of pixels without data; default: they are background, 0."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the prediction in --out.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict masks for images of any size: the mask of a/b.tif is OUT/b.png."""
    from pixelwise.api import WORTH_PREPARING, Reading, load
    from pixelwise.engines import EngineChoice
    from pixelwise.prediction import stream
    from pixelwise.prediction.inputs import count_pixels, find_inputs
    from pixelwise.prediction.postprocess import PostProcess
    from pixelwise.prediction.requests import OutputOptions

    kind = _chosen("--format", file_format, "format", ("auto", "png", "tiff", "zarr"))
    stored = _chosen("--probability-type", probability_type, "type of probabilities", ("uint8", "float16"))
    clean = PostProcess(threshold, fill_holes, smallest_object)
    beside: dict[str, Any] = {
        "skip_background": skip_background,
        "resume": resume,
        "label_values": label_values,
        "series": series,
        "nodata_label": nodata_label,
    }
    options = OutputOptions(out, kind, probabilities, overlay, stored, clean, inside, **beside)
    pixels = count_pixels(find_inputs(inputs).images, WORTH_PREPARING)
    with Display("predicting", quiet) as display:
        loaded = replace(load(run), tell=display.note)
        predictor = loaded.predictor(
            EngineChoice(engine, device, amp, compiled),
            tile or "auto",
            tta,
            _bytes(max_ram),
            pixels,
            Reading(normalize, nodata),
        )
        shown = stream.Listener(megapixels(display), display.note)
        outcome = loaded.task.predict_files(predictor, inputs, options, axes, shown)
    _tell_masks(outcome, out, as_json, quiet)


def _tell_masks(outcome: "Outcome", out: Path, as_json: bool, quiet: bool) -> None:
    """Print what became of the images; status 2 if one failed."""
    from pixelwise.core.memory import peak_ram_bytes

    rate = outcome.pixels / 1e6 / max(outcome.seconds, 1e-9)
    value = {
        "outputs": outcome.outputs,
        "failed": outcome.failed,
        "engine": outcome.engine,
        "megapixels_per_second": rate,
        "peak_ram_bytes": peak_ram_bytes(),
    }
    done = f"{len(outcome.outputs)} masks in {out}, {rate:.2f} megapixels a second by {outcome.engine}"
    if outcome.finished_before:
        done = f"{out}: was finished already, {len(outcome.outputs)} masks"
    print_result(as_json, quiet, value, [done])
    for failure in outcome.failed:
        print(f"error: {failure['message']}", file=sys.stderr)
    if outcome.failed:
        raise typer.Exit(BAD_INPUT)


def _chosen(option: str, value: str, what: str, choices: tuple[str, ...]) -> Any:
    """The value of an option, one of its choices."""
    from pixelwise.core.errors import SettingError, near

    if value not in choices:
        raise SettingError(f"{option} {value}: unknown {what}; {near(value, choices)}")
    return value


def _bytes(size: str | None) -> int | None:
    from pixelwise.core.memory import parse_size

    return None if size is None else parse_size(size)


@app.command(name="verify-seams", epilog="Example: pixelwise verify-seams runs/cells slide.tif --tile 512")
@guarded
def verify_seams(
    run: RunPath,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    tile: TileSide = None,
    engine: Engine = "auto",
    device: Device = "auto",
    max_ram: MaxRam = None,
    axes: Axes = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check that tiles leave no seams: compare them with one plain pass over the whole image."""
    from pixelwise.api import load
    from pixelwise.engines import EngineChoice
    from pixelwise.prediction import verify

    predictor = load(run).predictor(EngineChoice(engine, device), tile or "auto", limit=_bytes(max_ram))
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
    print_result(as_json, quiet, found, lines)
    if found["exact"] and (found["flipped_pixels"] or found["max_relative_difference"] > found["tolerance"]):
        print("error: the tiles differ, although the network is exact. Please report this.", file=sys.stderr)
        raise typer.Exit(OUR_FAILURE)
