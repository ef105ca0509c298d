"""The command that looks at networks: their figures, layers, filters and feature maps, and how they enlarge."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pixelwise.cli.base import (
    Json,
    Quiet,
    Settings,
    app,
    guarded,
    print_result,
    read_overrides,
)

LARGEST_STAMP = 64  # pixels of a kernel or stride whose coverage is drawn; FCN-32s has kernels of 64
DRAWN_PIXELS = 12  # of the output's side, at least


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
    checkerboard: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="KERNEL STRIDE", help="Draw how evenly a transposed convolution covers its output."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Picture to write; default RUN/features-IMAGE.png or checkerboard-K-S.png.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the architectures with their size, cost and geometry, or the layers of one of them."""
    _check_pictures(name, features, checkerboard, layer, out)
    settings = _model_settings(name, assignments, features is not None)
    from pixelwise.models import summary

    if checkerboard is not None:
        _draw_checkerboard(*checkerboard, out, as_json, quiet)
    elif features is not None:
        assert name is not None
        _draw_features(name, *features, layer or [], out, as_json, quiet)
    elif name is None:
        found = summary.summarize_all(channels, classes, size)
        print_result(as_json, quiet, {"models": [one.totals() for one in found]}, summary.describe_all(found))
    else:
        one = summary.summarize(name, settings, channels, classes, size)
        print_result(as_json, quiet, one.to_json(), summary.describe(one))


def _check_pictures(name: str | None, features: object, checkerboard: object, layer: object, out: Path | None) -> None:
    """Refuse options of a picture that need another one, or exclude it."""
    from pixelwise.core.errors import SettingError

    if checkerboard and (name or features):
        raise SettingError("--checkerboard: draws an operator, not a network; leave out NAME and --features beside it.")
    if layer and not features:
        raise SettingError("--layer: belongs to --features RUN IMAGE.")
    if out and not (features or checkerboard):
        raise SettingError("--out: is where a picture goes; it belongs to --features or --checkerboard.")


def _model_settings(name: str | None, assignments: list[str] | None, draws: bool) -> dict[str, Any]:
    """The settings of section `model`; where they mean nothing they are refused."""
    from pixelwise.core.errors import SettingError

    overrides = read_overrides(None, assignments)
    if name is None and (draws or overrides):
        raise SettingError(f"{'--features' if draws else '--set'}: name the network, as in `pixelwise models unet`.")
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
    from pixelwise.core.errors import SettingError
    from pixelwise.core.files import write_with
    from pixelwise.engines import EngineChoice
    from pixelwise.report.features import draw_features

    loaded = load(run)
    if loaded.config.model.name != name:
        raise SettingError(f"{run}: is a run of {loaded.config.model.name}, not of {name}; name that one.")
    predictor = loaded.predictor(EngineChoice("torch"))
    picture, drawn = draw_features(predictor, image, layers, f"{name}: {run.resolve().name}")
    path = out or run / f"features-{image.stem}.png"
    write_with(path, lambda temporary: temporary.write_bytes(picture))
    rows = [{"name": one.name, "kind": one.kind, "shape": list(one.maps.shape)} for one in drawn]
    print_result(as_json, quiet, {"features": str(path), "layers": rows}, [str(path)])


def _draw_checkerboard(kernel: int, stride: int, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Write the picture of the output away from its border, and tell how even it is."""
    from pixelwise.core.errors import SettingError
    from pixelwise.core.files import write_with
    from pixelwise.layers import coverage
    from pixelwise.report.figures import checkerboard

    for what, pixels in (("kernel", kernel), ("stride", stride)):
        if not 1 <= pixels <= LARGEST_STAMP:
            raise SettingError(
                f"--checkerboard: the {what} must be between 1 and {LARGEST_STAMP} pixels, not {pixels}."
            )
    crop = max(kernel - stride, 0)  # the border, where stamps are missing
    side = max(DRAWN_PIXELS, 2 * stride)  # the pattern repeats with the stride
    size = 1 + -(-(side + 2 * crop - kernel) // stride)
    picture, counts = checkerboard(size, kernel, stride, crop), coverage(size, kernel, stride, crop)
    path = out or Path(f"checkerboard-{kernel}-{stride}.png")
    write_with(path, lambda temporary: temporary.write_bytes(picture))
    fewest, most = int(counts.min()), int(counts.max())
    value = {"checkerboard": str(path), "kernel": kernel, "stride": stride, "fewest": fewest, "most": most}
    found = f"evenly: {most}" if fewest == most else f"unevenly: {fewest} to {most}"
    line = f"{path}: a {kernel} x {kernel} kernel at stride {stride} covers its output {found} stamp(s) on each pixel"
    print_result(as_json, quiet, value, [line])
