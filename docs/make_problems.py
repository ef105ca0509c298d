"""Write docs/problems.md from the table of codes in pixelwise/data/health/problems.py: python docs/make_problems.py"""

from pathlib import Path

from pixelwise.data.health.problems import CODES, OLD_CODES, Kind

PAGE = Path(__file__).resolve().parent / "problems.md"

INTRODUCTION = """# What the doctor finds

`pixelwise doctor DATA` looks at every image and its labels, and names what is wrong by a code that never changes. Every
training asks the doctor first, about all splits; what was found out is kept until a file changes.

- An **error** stops a training. `--allow CODE` goes on: either the files are left out, or the set is taken as it is;
  the table says which.
- A **warning** and a **note** stop nothing.
- `pixelwise doctor DATA --fix OUT` writes a copy in which is mended what can be; DATA is left as it is.
- `pixelwise doctor DATA --html FILE` writes a page with samples, classes, sizes, intensities and all findings.
- `--json` prints the same for programs, `pw.doctor(DATA)` returns it in Python.
"""


def rows(severity: str) -> list[str]:
    """The table of one severity."""
    kinds = {code: kind for code, kind in CODES.items() if kind.severity == severity}
    columns = ["code", "what", "if nothing is done", *(["`--allow`"] if severity == "error" else []), "`--fix`"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + [row(code, kind, severity == "error") for code, kind in kinds.items()]


def row(code: str, kind: Kind, allowed: bool) -> str:
    """A line of a table."""
    cells = [f"`{code}`", kind.what, kind.effect, *([kind.allow or "–"] if allowed else []), kind.fix or "–"]  # noqa: RUF001
    return "| " + " | ".join(cells) + " |"


def page() -> str:
    """The whole page."""
    lines = [INTRODUCTION]
    for severity, title in (("error", "Errors"), ("warning", "Warnings"), ("note", "Notes")):
        lines += [f"## {title}", "", *rows(severity), ""]
    lines += ["## Older names", "", "`--allow` still takes them: "]
    lines[-1] += ", ".join(f"`{old}` is `{new}`" for old, new in OLD_CODES.items()) + "."
    lines[-1] += " `--allow unreadable` allows `truncated` and `unknown-format`, too."
    lines += ["", "Beside the codes, `--allow data-changed` lets `train --resume` go on with data that have changed."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
