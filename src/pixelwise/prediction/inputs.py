"""What to predict: files, folders and patterns become images and the names of their outputs."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from pixelwise.core.errors import DataError
from pixelwise.data.files.readers import image_info
from pixelwise.data.files.zarrs import is_zarr
from pixelwise.data.sets.pairs import list_images


@dataclass(frozen=True)
class Input:
    """An image file and the name of its outputs."""

    source: Path
    name: Path  # below the output folder, without a suffix


def find_inputs(inputs: Sequence[str], outputs: Path | None = None) -> list[Path]:
    """Files, Zarrs, folders (including those inside) and glob patterns -> files and Zarrs, each once, in order.

    A path that does not exist is kept, so that it can be reported. If `outputs` is a folder inside one of the input
    folders, its files were made by an earlier prediction and are left out.

    Raises:
        DataError: a folder or a pattern yields no images.
    """
    found: dict[Path, Path] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir() and not is_zarr(path):
            inside = [image for image in _images(path) if not _is_output(image, path, outputs)]
            if not inside:
                raise DataError(f"{path}: contains no images. Give another file, folder or pattern.")
        elif not path.exists() and any(sign in text for sign in "*?["):
            inside = [Path(match) for match in sorted(glob(text, recursive=True)) if _is_image(Path(match))]  # noqa: PTH207 (absolute patterns)
            if not inside:
                raise DataError(f"{text}: no image matches this pattern. Give another file, folder or pattern.")
        else:
            inside = [path]
        for image in inside:
            found.setdefault(_absolute(image), image)
    return list(found.values())


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 (links keep their own names)


def _is_output(image: Path, folder: Path, outputs: Path | None) -> bool:
    if outputs is None:
        return False
    made = _absolute(outputs)
    return (
        made != _absolute(folder) and made.is_relative_to(_absolute(folder)) and _absolute(image).is_relative_to(made)
    )


def _is_image(path: Path) -> bool:
    return path.is_file() or is_zarr(path)


def count_pixels(paths: Sequence[Path], enough: int) -> int:
    """The number of pixels of these images by their headers, counted up to `enough`; unreadable files are skipped."""
    total = 0
    for path in paths:
        with suppress(DataError):
            info = image_info(path)
            total += info.pages * info.height * info.width
        if path.is_dir():  # a Zarr is made for images that are large
            total = enough
        if total >= enough:
            break
    return total


def _images(folder: Path) -> Iterator[Path]:
    """Images and Zarrs of a folder, then those of the folders inside; hidden folders and links are left out."""
    yield from list_images(folder)
    shown = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    children = [path for path in shown if not path.is_symlink()]
    yield from (path for path in children if is_zarr(path))
    for path in children:
        if not is_zarr(path):
            yield from _images(path)


def name_inputs(paths: Sequence[Path]) -> list[Input]:
    """Name images by their stems; those that collide keep the folders that differ, and then their extension."""
    names = {path: Path(path.stem) for path in paths}
    if colliding := _colliding(names):
        full = {path: _absolute(path) for path in colliding}
        common = _common_folder(list(full.values()))
        names.update({path: full[path].relative_to(common or full[path].anchor).with_suffix("") for path in colliding})
    while same := [path for path in _colliding(names) if names[path].name != path.name]:
        names.update({path: names[path].with_name(path.name) for path in same})
    return [Input(path, names[path]) for path in paths]


def _colliding(names: dict[Path, Path]) -> list[Path]:
    count: dict[str, int] = {}
    for name in names.values():
        count[str(name).casefold()] = count.get(str(name).casefold(), 0) + 1
    return [path for path, name in names.items() if count[str(name).casefold()] > 1]


def _common_folder(paths: Sequence[Path]) -> str | None:
    """The folder that holds all of these absolute paths; None if they lie on several drives."""
    with suppress(ValueError):
        return os.path.commonpath([path.parent for path in paths])
    return None
