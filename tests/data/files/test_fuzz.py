"""Some hundred damaged files, always the same ones; `benchmarks/fuzz.py` reads thousands."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "fuzz.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FUZZ = load()


@pytest.mark.parametrize("kind", FUZZ.KINDS)
def test_damaged_files_raise_errors_of_our_own(kind: str) -> None:
    row = FUZZ.fuzz(kind, 80, seed=7)
    assert row["faults"] == []
    assert row["strange"] == 0
    assert row["refused"] > 0
    assert row["read"] > 0
    assert row["slowest_seconds"] < FUZZ.LONGEST
    assert row["memory_bytes"] < FUZZ.MOST_MEMORY


def test_a_sound_file_of_each_kind_is_read(tmp_path: Path) -> None:
    for name, make in FUZZ.KINDS.values():
        make(tmp_path / name)
        FUZZ.read_windows(tmp_path / name)
