"""Write docs/operators.md from the docstrings of the operators: python docs/make_operators.py"""

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pixelwise import layers, models
from pixelwise.geometry import reach
from pixelwise.layers import context, conv, gates, transposed, unpool, upsample
from pixelwise.models.base import Segmenter
from pixelwise.models.segmentation import patch

PAGE = Path(__file__).resolve().parent / "operators.md"
PAPER = re.compile(r"arXiv:(\d{4}\.\d{4,5})|https://doi\.org/([^\s),]+[\w/])")
HEAD = """# Operators

What networks are made of. Each line names the paper; the docstrings, which `help` shows, tell shapes and errors.

    >>> import torch
    >>> from torch import nn
    >>> from pixelwise.geometry.reach import *
    >>> from pixelwise.layers import *
    >>> from pixelwise.models import convolutionalize, slide
"""
SECTIONS = {
    "Convolutions": (layers, conv),
    "Context": (layers, context),
    "Gates": (layers, gates),
    "Upsampling": (layers, upsample),
    "Pooling and unpooling": (layers, unpool),
    "Transposed convolutions, written out": (layers, transposed),
    "From a classifier to a fully convolutional network": (models, patch),
    "Arithmetic of sizes, weights and reach": (reach, reach),
}
"""Of each section: the package that has the operators' names, and the module that has the operators."""


def operators(package: Any, module: Any) -> Iterator[Callable[..., Any]]:
    """The public functions and layers of a module, in its order."""
    for name, value in vars(module).items():
        is_public = name in package.__all__ if hasattr(package, "__all__") else not name.startswith("_")
        is_operator = inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, Segmenter))
        if is_public and is_operator and value.__module__ == module.__name__:
            yield value


def papers(text: str) -> list[str]:
    """Links to the papers that a docstring names, each once."""
    found = {match[0]: f"https://arxiv.org/abs/{match[1]}" if match[1] else match[0] for match in PAPER.finditer(text)}
    return [f"[{name.removeprefix('https://')}]({link})" for name, link in found.items()]


def entry(operator: Callable[..., Any], module: Any) -> list[str]:
    """The lines of an operator."""
    text = inspect.getdoc(operator) or ""
    sources = papers(text) or papers(module.__doc__)
    example = text[text.index(">>>") :].splitlines()
    end = example.index("") if "" in example else len(example)
    shown = [f"    {line}" for line in example[:end] if line != ">>> import torch"]
    return ["", " ".join([f"**{operator.__name__}**:", text.splitlines()[0], *sources]), "", *shown]


def page() -> str:
    """The whole page."""
    lines = HEAD.splitlines()
    for title, (package, module) in SECTIONS.items():
        lines += ["", f"## {title}"]
        for operator in operators(package, module):
            lines += entry(operator, module)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
