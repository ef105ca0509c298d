"""A file is whole or not there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pixelwise.core.errors import OutputError
from pixelwise.core.files import cannot_write, whole, write_json, write_text, write_with


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_text_is_written_as_it_is_in_folders_that_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "note.txt"
    write_text(path, "Größe\nµm\n")
    assert path.read_bytes() == "Größe\nµm\n".encode()  # no carriage return, on Windows too
    assert names(path.parent) == ["note.txt"]


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    write_text(path, "a long first text")
    write_text(path, "short")
    assert path.read_text() == "short"
    assert names(tmp_path) == ["note.txt"]


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None], "name": "µ"}
    write_json(tmp_path / "value.json", value)
    text = (tmp_path / "value.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert text.endswith("}\n")
    assert '\n  "a": [\n' in text


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")
    with whole(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_with(path, write)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["note.txt"]


def test_write_with_gives_the_file_its_name_at_the_end(tmp_path: Path) -> None:
    write_with(tmp_path / "out" / "x.bin", lambda temporary: temporary.write_bytes(b"123"))
    assert (tmp_path / "out" / "x.bin").read_bytes() == b"123"
    assert names(tmp_path / "out") == ["x.bin"]


def test_the_data_reach_the_disk_before_the_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, replace = os.fsync, Path.replace

    def noted_sync(descriptor: int) -> None:
        events.append(f"sync {os.fstat(descriptor).st_size}")
        sync(descriptor)

    def noted_replace(path: Path, target: Any) -> Path:
        events.append(f"rename to {Path(target).name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_text(tmp_path / "note.txt", "12345")
    assert events == ["sync 5", "rename to note.txt"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = r"file.note\.txt: cannot be written \(.+\)\. Free some space or choose another folder\.$"
    with pytest.raises(OutputError, match=message):
        write_text(tmp_path / "file" / "note.txt", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=r"folder: cannot be written \("):
        write_text(tmp_path / "folder", "text")
    assert names(tmp_path) == ["file", "folder"]


def test_a_name_that_is_too_long_is_an_error_of_the_place(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written \("):
        write_text(tmp_path / ("x" * 400), "text")
    assert names(tmp_path) == []


def test_the_reason_is_the_systems_own() -> None:
    assert str(cannot_write(Path("a"), OSError(28, "No space left on device"))) == (
        "a: cannot be written (No space left on device). Free some space or choose another folder."
    )
    assert "(odd)" in str(cannot_write(Path("a"), OSError("odd")))


FULL_DISK = """
import resource, sys
from pathlib import Path
from pixelwise.core.errors import OutputError
from pixelwise.core.files import write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_text(Path(sys.argv[1]), "x" * 5000)
except OutputError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    pytest.importorskip("resource", reason="the limit of a file's size is a thing of Unix")
    path = tmp_path / "note.txt"
    path.write_text("old")
    result = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.stdout.startswith(f"{path}: cannot be written (")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["note.txt"]
