"""The pages that are built from the code are what the code says now."""

import doctest
import importlib.util
from pathlib import Path

import pytest

from pixelwise import layers

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", ["make_settings", "make_operators", "make_problems"])
def test_a_page_is_current(name: str) -> None:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), f"run: python docs/{name}.py"


def test_the_examples_of_the_operators_run() -> None:
    results = doctest.testfile(str(ROOT / "docs" / "operators.md"), module_relative=False)
    assert results.attempted > 25
    assert not results.failed


def test_every_operator_is_on_the_page() -> None:
    page = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    assert [name for name in layers.__all__ if not name.isupper() and f"**{name}**" not in page] == []


def test_every_setting_is_on_the_page() -> None:
    from pixelwise.core.config import SECTIONS

    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    missing = [
        f"{name}.{key}"
        for name, model in SECTIONS.items()
        for key in model.model_fields
        if f"`{name}.{key}`" not in page
    ]
    assert missing == []
