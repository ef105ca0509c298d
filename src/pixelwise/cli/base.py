"""What the commands share: the application, options, exit statuses, the way results are printed."""

import functools
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixelwise.core.errors import PixelwiseError

if TYPE_CHECKING:
    from pixelwise.core.config import Overrides

DONE, OUR_FAILURE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="pixelwise",
    help="Label every pixel: turn a folder of images and masks into a trained, measured model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Data = Annotated[Path, typer.Argument(help="Folder with images/ and masks/, or with train/, val/, test/ of them.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show neither progress nor notes.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file of settings.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=v", help="One setting; repeatable.")]
Minutes = Annotated[float | None, typer.Option(min=0.05, help="How long the whole command may take.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="How many epochs to train, instead of minutes.")]
Model = Annotated[str | None, typer.Option(help="The network; `pixelwise models` lists them.")]
TaskName = Annotated[
    str | None, typer.Option("--task", help="What to learn, where the labels could serve several tasks: segment.")
]
Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="Start from published weights of the network's encoder (its backbone).")
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Start the encoder from the weights in this file: .safetensors, .pth, .pt, .bin."
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of every random choice; default 0.")]
Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="CODE", help="Leave out the files that have this problem, instead of stopping."),
]
Device = Annotated[str, typer.Option(help="Where to compute: auto (the fastest), cpu, cuda or mps.")]
Engine = Annotated[str, typer.Option(help="auto (the fastest one installed), torch, openvino or onnxruntime.")]
TileSide = Annotated[
    int | None, typer.Option(min=1, help="Side of a tile in pixels; by default a large image is cut into large tiles.")
]
MaxRam = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Memory that the process may use, such as 2GiB; by default most of what is free."
    ),
]
Axes = Annotated[str | None, typer.Option(help="Axes of TIFFs and Zarrs whose metadata leave them out, such as ZYX.")]


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
                "This is a bug in pixelwise, not a mistake of yours. Please report it with the lines above.",
                file=sys.stderr,
            )
            raise typer.Exit(OUR_FAILURE) from None

    return run


def print_result(as_json: bool, quiet: bool, value: dict[str, Any], lines: list[str]) -> None:
    """The result: one JSON object, or a few lines for people."""
    if as_json:
        print(json.dumps(value))
    elif not quiet:
        print("\n".join(lines))


def read_overrides(
    config: Path | None,
    assignments: list[str] | None,
    model: str | None = None,
    length: tuple[float | None, int | None] = (None, None),
    top: dict[str, Any] | None = None,
) -> "Overrides":
    """What the user set; the options --model, --minutes, --epochs, --seed and --task are settings too, and win."""
    from pixelwise.core.config import parse_overrides

    overrides = parse_overrides(config, assignments or [])
    if model is not None:
        overrides.setdefault("model", {})["name"] = model
    if any(value is not None for value in length):
        others = {key: value for key, value in overrides.get("train", {}).items() if key not in ("minutes", "epochs")}
        given = dict(zip(("minutes", "epochs"), length, strict=True))
        overrides["train"] = others | {key: value for key, value in given.items() if value is not None}
    for key, value in (top or {}).items():
        if value is not None:
            overrides.setdefault("", {})[key] = value
    return overrides


def add_start(overrides: "Overrides", pretrained: bool, weights: str | None) -> None:
    """Add the options that say where an encoder's training starts; they are settings, too."""
    if pretrained:
        overrides.setdefault("model", {})["pretrained"] = True
    if weights is not None:
        overrides.setdefault("model", {})["weights"] = weights


def process_start() -> float:
    """The start of this process on the monotonic clock: `--minutes` counts from there."""
    import psutil

    return time.monotonic() - max(0.0, time.time() - float(psutil.Process().create_time()))
