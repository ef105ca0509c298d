"""Commands that look at data before anything is trained."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixelwise.cli.base import BAD_INPUT, Allow, Data, Json, Quiet, app, guarded, print_result
from pixelwise.cli.terminal import Display

if TYPE_CHECKING:
    from pixelwise.data.health.diagnosis import Diagnosis


@app.command(epilog="Example: pixelwise doctor cells/ --fix mended/ --html cells.html")
@guarded
def doctor(
    data: Data,
    fix: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write a mended copy here; DATA itself is never touched.")
    ] = None,
    allow: Allow = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with samples and findings.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find what is wrong with a data set, what it would do to a training, and what can be done about it."""
    from pixelwise.health import doctor as examine

    with Display("checking", quiet) as display:
        found = examine(data, fix=fix, allow=allow or [], html=html, progress=display.count)
    print_result(as_json, quiet, found.as_json(), _lines(found))
    if not found.ok:
        if quiet and not as_json:
            print("\n".join(f"error: {problem}" for problem in found.errors), file=sys.stderr)
        raise typer.Exit(BAD_INPUT)


def _lines(found: "Diagnosis") -> list[str]:
    lines = [f"{found.images} images: {', '.join(f'{name} {count}' for name, count in found.splits.items())}"]
    lines += list(found.told)
    for problem in found.problems:
        lines += ["", f"{problem.severity}: {problem}"]
    lines.append("")
    if found.mended is not None:
        lines.append(
            f"mended copy: {found.mended.out}, {found.mended.samples} pairs, {found.mended.changed} masks changed, "
            f"{len(found.mended.left_out)} files left out"
        )
    if found.page is not None:
        lines.append(f"page: {found.page}")
    lines.append("sound: a training can start" if found.ok else "not sound: a training refuses this data set")
    return lines
