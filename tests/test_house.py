"""The house rules: public names, what an import may cost, and examples that run."""

import doctest
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import pixelwise as pw

SOURCE = Path(pw.__file__).parent
MODULES = ["pixelwise", *(found.name for found in pkgutil.walk_packages([str(SOURCE)], "pixelwise."))]


def source_of(module: str) -> str:
    path = SOURCE.joinpath(*module.split(".")[1:])
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


def test_the_public_names_are_these() -> None:
    assert pw.__all__ == ["Run", "__version__", "doctor", "load", "models", "predict", "train"]
    for name in pw.__all__:
        assert getattr(pw, name) is not None
    assert pw.__version__ == version("pixelwise")


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^No pixelwise attribute fit$"):
        pw.fit  # noqa: B018


def run(code: str) -> str:
    """What a fresh Python prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("module", ["pixelwise", "pixelwise.cli", "pixelwise.core.config", "pixelwise.geometry.reach"])
def test_what_answers_help_does_not_import_torch(module: str) -> None:
    loaded = json.loads(run(f"import {module}, json, sys; print(json.dumps(sorted(sys.modules)))"))
    assert module in loaded
    assert not {"torch", "cv2", "scipy", "matplotlib", "lightning_fabric"} & set(loaded)


def test_no_module_shares_its_name_with_a_public_function() -> None:
    functions = {name for name in pw.__all__ if inspect.isfunction(getattr(pw, name))}
    assert functions == {"doctor", "load", "predict", "train"}
    assert not functions & {module.rpartition(".")[2] for module in MODULES}


@pytest.mark.parametrize("module", [name for name in MODULES if "\n    >>> " in "\n    " + source_of(name)])
def test_the_examples_of_a_module_do_what_they_say(module: str) -> None:
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0
    assert results.failed == 0


def test_every_module_is_there_and_is_explained() -> None:
    assert {"pixelwise.cli", "pixelwise.data.sets.folder", "pixelwise.models.segmentation.unet"} <= set(MODULES)
    assert len(MODULES) == len(list(SOURCE.rglob("*.py")))
    for module in MODULES:
        assert source_of(module).startswith('"""'), module
