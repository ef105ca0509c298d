"""What to predict: files, folders and patterns become images and the names of their outputs."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from pixelwise.core.errors import DataError
from pixelwise.data.files.readers import image_info, stack_files
from pixelwise.data.files.zarrs import is_zarr
from pixelwise.data.sets.pairs import list_images


@dataclass(frozen=True)
class Input:
    """An image file and the name of its outputs."""

    source: Path
    name: Path  # below the output folder, without a suffix


@dataclass(frozen=True)
class Found:
    """What inputs stand for."""

    images: list[Path]  # files and Zarrs, each once, in order
    failed: dict[str, str]  # an input that yields no image -> what is wrong


def find_inputs(inputs: Sequence[str], outputs: Path | None = None) -> Found:
    """Files, Zarrs, folders (including those inside) and glob patterns -> files and Zarrs, each once, in order.

    A path that does not exist is kept, so that it can be reported. If `outputs` is a folder inside one of the input
    folders, its files were made by an earlier prediction and are left out. Of the files of a stack that lies in several
    of them (a set of OME-TIFFs), the one that it begins in stands for all.

    Raises:
        DataError: no folder or pattern yields an image; the message tells of the first.
    """
    found: dict[Path, Path] = {}
    failed: dict[str, str] = {}
    for text in inputs:
        inside, problem = _inside(text, outputs)
        if problem:
            failed[text] = f"{text}: {problem} Give another file, folder or pattern."
        for image in inside:
            found.setdefault(_absolute(image), image)
    if not found and failed:
        raise DataError(next(iter(failed.values())))
    return Found(_once_a_stack(found), failed)


def _inside(text: str, outputs: Path | None) -> tuple[list[Path], str]:
    """The images of one input, and what is wrong if there are none."""
    path = Path(text)
    if path.is_dir() and not is_zarr(path):
        inside = [image for image in _images(path) if not _is_output(image, path, outputs)]
        return inside, "" if inside else "contains no images."
    if not path.exists() and any(sign in text for sign in "*?["):
        inside = [Path(match) for match in sorted(glob(text, recursive=True)) if _is_image(Path(match))]  # noqa: PTH207 (absolute patterns)
        return inside, "" if inside else "no image matches this pattern."
    return [path], ""


def _once_a_stack(found: dict[Path, Path]) -> list[Path]:
    """The images without the files whose pixels belong to a stack that begins in another of them."""
    if len(found) < 2:
        return list(found.values())
    stacks = {place: stack_files(image) for place, image in found.items()}
    begun = {name for names in stacks.values() if names and names.begins for name in names.files}
    return [
        image
        for place, image in found.items()
        if (names := stacks[place]) is None or names.begins or place not in begun
    ]


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
