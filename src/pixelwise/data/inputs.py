"""What there is to predict: files, folders, patterns -> images, and the names of what is made of them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from pixelwise.data.folder import list_images
from pixelwise.errors import DataError


@dataclass(frozen=True)
class Job:
    """An image and what its outputs are called."""

    source: Path
    name: Path  # below the output folder, without a suffix


def find_inputs(inputs: Sequence[str]) -> list[Path]:
    """Files, folders (with the folders inside) and glob patterns -> files, each once, in order.

    A path that does not exist is kept, to be reported as failed.

    Raises:
        DataError: a folder or a pattern without images.
    """
    found: dict[Path, None] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            inside = [image for folder in _folders(path) for image in list_images(folder)]
            if not inside:
                raise DataError(f"{path}: holds no images.")
        elif not path.exists() and any(sign in text for sign in "*?["):
            inside = [Path(match) for match in sorted(glob(text, recursive=True)) if Path(match).is_file()]  # noqa: PTH207 (absolute patterns)
            if not inside:
                raise DataError(f"{text}: no file matches this pattern.")
        else:
            inside = [path]
        found.update(dict.fromkeys(inside))
    return list(found)


def _folders(root: Path) -> Iterator[Path]:
    yield root
    for folder in sorted(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink()):
        if not any(part.startswith(".") for part in folder.relative_to(root).parts):
            yield folder


def name_jobs(paths: Sequence[Path]) -> list[Job]:
    """Stems; those that collide keep the folders below what they have in common, and then their extension."""
    names = {path: Path(path.stem) for path in paths}
    colliding = _colliding(names)
    if colliding:
        full = {path: Path(os.path.abspath(path)) for path in colliding}  # noqa: PTH100 (links keep their own names)
        common = Path(*_common_parts([path.parent.parts for path in full.values()]))
        names.update({path: full[path].relative_to(common).with_suffix("") for path in colliding})
    while same := [path for path in _colliding(names) if names[path].name != path.name]:
        names.update({path: names[path].with_name(path.name) for path in same})
    return [Job(path, names[path]) for path in paths]


def _colliding(names: dict[Path, Path]) -> list[Path]:
    count: dict[str, int] = {}
    for name in names.values():
        count[str(name).casefold()] = count.get(str(name).casefold(), 0) + 1
    return [path for path, name in names.items() if count[str(name).casefold()] > 1]


def _common_parts(rows: Sequence[Sequence[str]]) -> list[str]:
    common = []
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return common
