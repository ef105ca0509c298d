"""A mended copy of a data set: what `doctor --fix` writes. The original is never touched."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from pixelwise.core.config import read_toml
from pixelwise.core.errors import OutputError
from pixelwise.core.files import cannot_write, write_text
from pixelwise.core.progress import Progress
from pixelwise.data.files.facts import Picture
from pixelwise.data.files.readers import read_picture, turned
from pixelwise.data.files.writers import write_colors, write_mask
from pixelwise.data.health.alignment import fit_of
from pixelwise.data.health.examine import TURN_MASKS, ImageFacts
from pixelwise.data.health.problems import CODES
from pixelwise.data.health.survey import Survey, labels_of
from pixelwise.data.sets.folder import split_folders
from pixelwise.data.sets.pairs import Sample

DROPPED = ("duplicate-image", "split-leak")  # of which all files but the first are left out


@dataclass(frozen=True)
class Mended:
    """What a mended copy holds."""

    out: Path
    samples: int
    changed: int  # masks that were written anew
    left_out: tuple[Path, ...]


def write_mended(found: Survey, out: Path, progress: Progress | None = None) -> Mended:
    """Write a copy of a data set in which is mended what can be.

    Files that need no change are copied byte for byte. The copy appears under its name as a whole.

    Args:
        found: the survey, with its problems.
        out: the folder to make.
        progress: is called with the number of samples written and of all.

    Raises:
        OutputError: `out` exists and is not empty, lies within the data set or around it, or cannot be written.
    """
    root = found.dataset.root
    _check_place(root, out)
    assert found.reading is not None
    codes = {problem.code for problem in found.problems}
    mend = found.reading.labels.mender(found.dataset.description, labels_of(found.reading), codes)
    dropped = _dropped(found)
    samples = [
        (name, sample) for name, samples in _placed(found).items() for sample in samples if sample.image not in dropped
    ]
    draft = out.with_name(f".{out.name}.{os.getpid()}.part")
    changed = 0
    try:
        for done, (place, sample) in enumerate(samples, start=1):
            changed += _write_pair(found, mend, sample, draft / place)
            if progress:
                progress(done, len(samples))
        _copy_unlabelled(found, draft)
        _write_description(found, draft)
        if out.exists():
            out.rmdir()  # empty, as was seen
        draft.rename(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    unusable = {path for problem in found.problems if problem.leaves_out for path in problem.files}
    return Mended(out, len(samples), changed, tuple(sorted(dropped | unusable)))


def _check_place(root: Path, out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: exists already and is not empty. Choose another folder for the mended copy.")
    inner, outer = out.resolve(), root.resolve()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise OutputError(f"{out}: lies within {root}, or around it, which is left as it is. Choose another folder.")


def _placed(found: Survey) -> dict[str, list[Sample]]:
    """The samples by the folder that they go to: that of their split, or "" where folders do not tell the splits."""
    folders = split_folders(found.dataset.root)
    usable = {sample.image for sample in found.dataset.samples} | _turnable(found)
    return {
        name if folders else "": [sample for sample in pairs.samples if sample.image in usable]
        for name, pairs in found.dataset.found.items()
    }


def _turnable(found: Survey) -> set[Path]:
    """Images whose masks have another size only because one of both was turned."""
    return {path for problem in found.problems if problem.fix == TURN_MASKS for path in problem.files}


def _dropped(found: Survey) -> set[Path]:
    """Copies of images, but for the first: that of train before val before test."""
    order = {sample.image: number for number, sample in enumerate(found.dataset.samples)}
    dropped: set[Path] = set()
    for problem in found.problems:
        if problem.code in DROPPED:
            dropped.update(sorted(problem.files, key=lambda path: order.get(path, len(order)))[1:])
    return dropped


def _write_pair(found: Survey, mend: Callable[[Any, Any], Any | None], sample: Sample, folder: Path) -> bool:
    """Copy an image, and its mask as it should be; whether that was changed."""
    assert found.reading is not None
    labels, axes = found.reading.labels, found.dataset.description.axes
    _copy(sample.image, folder / "images" / sample.image.name)
    mended, is_changed = _turned_labels(found, sample, labels.load(sample, axes))
    better = mend(sample.target, mended)
    if better is None and not is_changed:
        _copy(sample.target, folder / "masks" / sample.target.name)
        return False
    pages = mended.pixels if better is None else better
    _write_labels(folder / "masks" / sample.image.stem, pages)
    return True


def _turned_labels(found: Survey, sample: Sample, loaded: Any) -> tuple[Any, bool]:
    """The labels turned as their image asks for, where they lie as it is stored."""
    fact = found.facts.get(sample.image)
    image = read_picture(sample.image, found.dataset.description.axes)
    turn = image.facts.orientation
    if turn in (1, loaded.orientation):
        return loaded, False
    other = turned(loaded.pixels, turn)
    fits = other.shape[:3] == image.pixels.shape[:3]
    if fits and (fact is None or _is_better(fact, image, other)):
        return replace(loaded, pixels=other), True
    return loaded, False


def _is_better(fact: ImageFacts, image: Picture, labels: np.ndarray) -> bool:
    fit = fit_of(image.pixels[0], labels[0] if labels.ndim == 3 else labels[0, ..., 0])
    return fit is not None and fact.fit is not None and fit.now > fact.fit.now


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write_labels(path: Path, pages: np.ndarray) -> None:
    """PNG where one page of up to 16 bits holds them, else TIFF."""
    flat = pages[0] if len(pages) == 1 else pages
    if pages.ndim == 4:
        write_colors(path.with_name(path.name + (".png" if len(pages) == 1 else ".tif")), flat)
        return
    is_png = len(pages) == 1 and flat.max(initial=0) < 2**16
    write_mask(path.with_name(path.name + (".png" if is_png else ".tif")), flat)


def _copy_unlabelled(found: Survey, draft: Path) -> None:
    for name, images in found.dataset.unlabelled.items():
        for image in images:
            _copy(image, draft / name / "images" / image.name)


def _write_description(found: Survey, draft: Path) -> None:
    """dataset.toml, with what was found out."""
    path = found.dataset.root / "dataset.toml"
    tree = read_toml(path) if path.exists() else {}
    sentinels = {fact.sentinel for fact in found.facts.values() if fact.sentinel is not None}
    if len(sentinels) == 1 and any(problem.code == "undeclared-nodata" for problem in found.problems):
        tree["nodata"] = sentinels.pop()
    if tree:
        write_text(draft / "dataset.toml", tomli_w.dumps(tree))


def fixable(code: str) -> bool:
    """Whether `write_mended` does something about a problem.

    >>> fixable("antialiased"), fixable("misaligned")
    (True, False)
    """
    return bool(CODES[code].fix)
