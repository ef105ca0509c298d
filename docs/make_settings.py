"""Write docs/settings.md from the comments of pixelwise/core/config.py: python docs/make_settings.py"""

import inspect
import re
from pathlib import Path

from pixelwise.core import config

PAGE = Path(__file__).resolve().parent / "settings.md"
FIELD = re.compile(r"^    (\w+): (.+?)(?: = ([^=]+?))?(?:  # (.*))?$")
WORDS = {
    "Count": "whole number from 1",
    "Channels": "whole number from 1",
    "Byte": "0 to 255",
    "Unit": "0 to 1",
    "Positive": "above 0",
    "NotNegative": "at least 0",
    "LabelKind": "binary, index, instances, color",
    "PhaseSettings": "phase",
    "str": "text",
    "Levels": "four numbers",
    "AnyFloat": "any number",
    "FilePath": "path",
    "Patch": "two whole numbers from 1, or one",
    "gt=": "above ",
    "ge=": "from ",
    "le=": "to ",
    "lt=": "below ",
}


def row(section: str, line: str) -> str | None:
    """The table row of a line of source, if it declares a setting."""
    match = FIELD.match(line)
    if not match:
        return None
    name, kind, default, comment = match.groups()
    bounds = re.match(r"Annotated\[(\w+), Field\((.*)\)\]", kind)
    shown = f"{bounds[1]}, {bounds[2]}" if bounds else kind
    for word, meaning in WORDS.items():
        shown = re.sub(rf"\b{word}\b" if word.isalpha() else word, meaning, shown)
    shown = re.sub(r"Literal\[(.*)\]", r"\1", shown).replace("|", "or")
    missing = "planned" if section in config.SECTIONS else "none: give one"
    return f"| `{section}.{name}` | {shown} | {default or missing} | {comment or ''} |"


def page() -> str:
    """The whole page."""
    lines = [
        "# Settings",
        "",
        '`--set section.key=value`, or sections of a TOML file given to `--config`. "planned" means',
    ]
    lines += [
        "that the plan always chooses; it may also choose another value where a default stands. "
        "`pixelwise plan DATA` shows all."
    ]
    for section, model in {**config.SECTIONS, "train.schedule": config.PhaseSettings}.items():
        lines += [
            "",
            f"## {section}",
            "",
            inspect.cleandoc(model.__doc__ or ""),
            "",
            "| setting | values | default | meaning |",
            "|---|---|---|---|",
        ]
        rows = (row(section, line) for line in inspect.getsource(model).splitlines())
        lines += [text for text in rows if text and "model_config" not in text]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
