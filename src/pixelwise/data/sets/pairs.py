"""Which image belongs to which mask: the files of `images/` and `masks/`, by their stems."""

import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from pixelwise.core.errors import DataError
from pixelwise.data.files.readers import IMAGE_SUFFIXES

JUNK = frozenset({"thumbs.db", "desktop.ini"})  # files that systems leave in folders, of which nobody needs to hear
SPLIT_ORDER = ("train", "val", "test", "valid", "validation", "training")  # folders that some put below images/


@dataclass(frozen=True)
class Sample:
    """One image, and where a task finds the truth about it. `name` is the image's stem, its accents composed (NFC)."""

    name: str
    image: Path
    target: Any  # the path of a mask, if masks are the truth

    @property
    def files(self) -> tuple[Path, ...]:
        """The image, and the file of its target if it has one of its own."""
        return (self.image, self.target) if isinstance(self.target, Path) else (self.image,)


@dataclass(frozen=True)
class Pairs:
    """What lies in `images/` and `masks/` of one folder."""

    samples: tuple[Sample, ...] = ()
    lonely_images: tuple[Path, ...] = ()  # without a mask
    lonely_masks: tuple[Path, ...] = ()  # without an image
    same_stem: tuple[Path, ...] = ()  # files whose stem another one has, too, which is taken
    left_out: tuple[Path, ...] = ()  # files and folders that are no images
    hint: str = ""  # why nothing pairs, where that can be seen
    labelled: bool = field(default=True)  # there are masks

    def require(self, folder: Path) -> None:
        """Raise a DataError if there is no image, or no mask."""
        if not self.labelled:
            raise DataError(f"{folder / 'masks'}: contains no masks. Add a mask with the same stem for each image.")
        if not (self.samples or self.lonely_images):
            raise DataError(
                f"{folder / 'images'}: contains no images (known extensions: {', '.join(sorted(IMAGE_SUFFIXES))})."
            )


def part_of(folder: Path, name: str) -> Path | None:
    """The folder `images` or `masks` of a data set, whatever its letters' case; None if there is none."""
    if (folder / name).is_dir():
        return folder / name
    if not folder.is_dir():
        return None
    found = sorted(path for path in folder.iterdir() if path.name.casefold() == name and path.is_dir())
    return found[0] if found else None


def pair(folder: Path, may_lack_masks: bool = False) -> Pairs:
    """Pair the images and masks of a folder; no pixel is read.

    Raises:
        DataError: it has no images/, or no masks/ though it may not lack them.
    """
    images_folder, masks_folder = part_of(folder, "images"), part_of(folder, "masks")
    if images_folder is None:
        raise _missing(folder, "images")
    images, double_images = _by_stem(list_images(images_folder))
    if not images:
        _refuse_splits_inside(folder, images_folder)
    if masks_folder is None:
        if may_lack_masks:
            return Pairs(lonely_images=tuple(images.values()), labelled=False)
        raise _missing(folder, "masks")
    masks, double_masks = _by_stem(list_images(masks_folder))
    both = sorted(images.keys() & masks.keys())
    return Pairs(
        tuple(Sample(stem, images[stem], masks[stem]) for stem in both),
        tuple(images[stem] for stem in sorted(images.keys() - masks.keys())),
        tuple(masks[stem] for stem in sorted(masks.keys() - images.keys())),
        tuple(double_images + double_masks),
        (*_left_out(images_folder), *_left_out(masks_folder)),
        "" if both else pairing_hint(images, masks),
        bool(masks),
    )


def _missing(folder: Path, part: str) -> DataError:
    others = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    seen = f" It holds the folders {', '.join(others[:8])}." if others else ""
    return DataError(
        f"{folder}: has no folder '{part}'.{seen} A data set consists of images/ and masks/ with the same stems, "
        "or of train/, val/ and test/ with those two in each."
    )


def _refuse_splits_inside(folder: Path, images: Path) -> None:
    """images/train, masks/train: the right names in the other order."""
    inside = sorted(path.name for path in images.iterdir() if path.is_dir() and path.name.casefold() in SPLIT_ORDER)
    if inside:
        raise DataError(
            f"{images}: holds the folders {', '.join(inside)} but no images. Here a split comes first: move "
            f"images/{inside[0]} to {folder / inside[0] / 'images'}, and its masks to {folder / inside[0] / 'masks'}."
        )


def list_images(folder: Path) -> list[Path]:
    """The files of a folder with an image's extension, sorted, without hidden ones."""
    return sorted(path for path in _shown(folder) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _left_out(folder: Path) -> list[Path]:
    """What `list_images` passes over, hidden files and those of the system apart."""
    listed = set(list_images(folder))
    return sorted(path for path in _shown(folder) if path not in listed and path.name.lower() not in JUNK)


def _shown(folder: Path) -> Iterable[Path]:
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def stem_of(path: Path) -> str:
    """The stem, with accents as one letter each (NFC): macOS stores them as two, and both look the same.

    >>> stem_of(Path("Mu\\u0308ller.png")) == "M\\u00fcller"
    True
    """
    return unicodedata.normalize("NFC", path.stem)


def _by_stem(paths: Sequence[Path]) -> tuple[dict[str, Path], list[Path]]:
    known: dict[str, Path] = {}
    double = [path for path in paths if known.setdefault(stem_of(path), path) != path]
    return known, double


def pairing_hint(images: Collection[str], masks: Collection[str]) -> str:
    """Why no stem of the images is one of the masks', as a sentence; empty if nothing explains it.

    >>> pairing_hint(["a1", "b2"], ["a1_mask", "b2_mask"])
    'The masks\\' names end in "_mask", which the images\\' do not: remove it.'
    """
    if not images or not masks:
        return ""
    if {name.casefold() for name in images} & {name.casefold() for name in masks}:
        return "The names differ in upper and lower case: rename one side."
    for who, other, longer, shorter in (("masks", "images", masks, images), ("images", "masks", images, masks)):
        for verb, text in _added(longer, shorter):
            return f"The {who}' names {verb} \"{text}\", which the {other}' do not: remove it."
    for verb, common, remove in (
        ("end in", _common_end, str.removesuffix),
        ("begin with", _common_start, str.removeprefix),
    ):
        one, two = common(images), common(masks)
        bare = [{remove(name, text) for name in names} for names, text in ((images, one), (masks, two))]
        if one and two and 2 * len(bare[0] & bare[1]) >= min(map(len, bare)):
            return f'The images\' names {verb} "{one}" and the masks\' {verb.split()[-1]} "{two}": remove both.'
    return ""


def _added(longer: Collection[str], shorter: Collection[str]) -> Iterator[tuple[str, str]]:
    """What most names of one side have before or after those of the other."""
    known, first = set(shorter), min(longer)
    for cut in range(1, len(first)):
        for verb, text in (("end in", first[cut:]), ("begin with", first[:cut])):
            remove = str.removesuffix if verb == "end in" else str.removeprefix
            if remove(first, text) in known and 2 * sum(remove(name, text) in known for name in longer) > len(longer):
                yield verb, text


def _common_end(names: Collection[str]) -> str:
    """What all names end in, without the digits that a numbering adds."""
    return _shared_start([name[::-1] for name in names])[::-1].lstrip("0123456789")


def _common_start(names: Collection[str]) -> str:
    """What all names begin with, without such digits."""
    return _shared_start(names).rstrip("0123456789")


def _shared_start(names: Collection[str]) -> str:
    first, last = min(names), max(names)  # in this order, those between begin alike
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(letter for letter, _ in pairs)
