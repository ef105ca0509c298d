"""A data set on disk: which images have which masks, and which split they belong to.

A data set consists of `images/` and `masks/` with the same stems, or of any of `train/`, `val/`, `test/` with those two
in each. What cannot be seen from the files is written in an optional `dataset.toml`.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pixelwise.core.config import Byte, LabelKind, explain, read_toml
from pixelwise.core.errors import DataError, SettingError, near
from pixelwise.data.files.readers import IMAGE_SUFFIXES

SPLITS = ("train", "val", "test")
TRAIN_PART, VAL_PART = 0.70, 0.15  # the rest is for test


class Description(BaseModel):
    """The content of `dataset.toml`; every key is optional."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: list[str] | None = None
    labels: LabelKind | None = None
    ignore: int | list[int] | None = None  # mask values that do not count
    group: str | None = None  # regular expression for the stem: images with the same captured text stay in one split
    colors: dict[str, tuple[Byte, Byte, Byte]] | None = None  # class name -> RGB
    pixel_size: float | None = None  # micrometres
    nodata: float | None = None  # the value of pixels without data in images whose files do not say, may be nan
    axes: str | None = None  # of TIFF stacks whose metadata do not say, for example "ZYX"

    @property
    def ignored(self) -> list[int]:
        """The ignored values as a list."""
        return [] if self.ignore is None else [self.ignore] if isinstance(self.ignore, int) else self.ignore


@dataclass(frozen=True)
class Sample:
    """One image, and where a task finds the truth about it. `name` is the image's stem."""

    name: str
    image: Path
    target: Any  # the path of a mask, if masks are the truth

    @property
    def files(self) -> tuple[Path, ...]:
        """The image, and the file of its target if it has one of its own."""
        return (self.image, self.target) if isinstance(self.target, Path) else (self.image,)


@dataclass(frozen=True)
class DataSet:
    """The samples of each split, and what `dataset.toml` says."""

    root: Path
    splits: Mapping[str, tuple[Sample, ...]]
    description: Description
    images_without_mask: tuple[Path, ...] = ()
    masks_without_image: tuple[Path, ...] = ()
    same_stem: tuple[Path, ...] = field(default=())  # files that share their stem with another one

    def split(self, name: str) -> tuple[Sample, ...]:
        """The samples of a split.

        Raises:
            DataError: the split is missing or empty.
        """
        samples = self.splits.get(name, ())
        if not samples:
            present = ", ".join(key for key, value in self.splits.items() if value) or "none"
            raise DataError(f"{self.root}: the split '{name}' is empty or missing; splits with images: {present}.")
        return samples

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All samples, split by split."""
        return tuple(sample for name in SPLITS for sample in self.splits.get(name, ()))


def open_dataset(root: Path, folds: int = 0, fold: int = 0) -> DataSet:
    """List a data set's samples and split them; no pixel is read.

    Args:
        root: the folder.
        folds: if 2 or more, train and val are pooled and split into this many equal parts by hash.
        fold: the part that is val, counted from 0.

    Raises:
        DataError: the folder, its images or its masks are missing, or there are too few to split.
        SettingError: `dataset.toml` or the folds are invalid.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Give a folder that contains images/ and masks/.")
    description = read_description(root / "dataset.toml")
    ready = {name: root / name for name in SPLITS if (root / name / "images").is_dir()}
    found = {name: _pair(folder, description) for name, folder in ready.items()} or {"": _pair(root, description)}
    splits = {name: pairs.samples for name, pairs in found.items()}
    splits = _complete_splits(root, splits, description)
    if folds:
        splits = _fold(root, splits, description, folds, fold)
    return DataSet(
        root,
        splits,
        description,
        tuple(path for pairs in found.values() for path in pairs.lonely_images),
        tuple(path for pairs in found.values() for path in pairs.lonely_masks),
        tuple(path for pairs in found.values() for path in pairs.same_stem),
    )


def read_description(path: Path) -> Description:
    """Read `dataset.toml`; without that file, the description is empty."""
    if not path.exists():
        return Description()
    tree = read_toml(path)
    for key in tree:
        if key not in Description.model_fields:
            raise SettingError(f"{path}: {key} is not a key of dataset.toml; {near(key, Description.model_fields)}")
    try:
        description = Description.model_validate(tree)
        re.compile(description.group or "")
    except ValidationError as error:
        raise SettingError(f"{path}: {explain(error)}") from error
    except re.error as error:
        raise SettingError(f"{path}: group is not a valid regular expression: {error}.") from error
    return description


def list_images(folder: Path) -> list[Path]:
    """The files of a folder with an image's extension, sorted, without hidden ones."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


@dataclass(frozen=True)
class _Pairs:
    samples: tuple[Sample, ...]
    lonely_images: tuple[Path, ...]
    lonely_masks: tuple[Path, ...]
    same_stem: tuple[Path, ...]


def _pair(folder: Path, description: Description) -> _Pairs:
    for part in ("images", "masks"):
        if not (folder / part).is_dir():
            raise DataError(
                f"{folder}: has no folder '{part}'. A data set consists of images/ and masks/ with the same stems, "
                "or of train/, val/ and test/ with those two in each."
            )
    images, double_images = _by_stem(list_images(folder / "images"))
    masks, double_masks = _by_stem(list_images(folder / "masks"))
    if not images:
        raise DataError(
            f"{folder / 'images'}: contains no images (known extensions: {', '.join(sorted(IMAGE_SUFFIXES))})."
        )
    if not masks:
        raise DataError(f"{folder / 'masks'}: contains no masks. Add a mask with the same stem for each image.")
    both = sorted(images.keys() & masks.keys())
    return _Pairs(
        tuple(Sample(stem, images[stem], masks[stem]) for stem in both),
        tuple(images[stem] for stem in sorted(images.keys() - masks.keys())),
        tuple(masks[stem] for stem in sorted(masks.keys() - images.keys())),
        tuple(double_images + double_masks),
    )


def _by_stem(paths: Sequence[Path]) -> tuple[dict[str, Path], list[Path]]:
    known: dict[str, Path] = {}
    double = [path for path in paths if known.setdefault(path.stem, path) != path]
    return known, double


Splits = dict[str, tuple[Sample, ...]]


def _complete_splits(root: Path, splits: Splits, description: Description) -> Splits:
    if "" in splits:
        return _split_by_hash(root, splits[""], description, SPLITS)
    if "train" in splits and "val" not in splits:
        parts = _split_by_hash(root, splits["train"], description, ("train", "val"))
        return {**splits, **parts}
    return splits


def hash_of(name: str) -> float:
    """A number in [0, 1) that depends on the text alone: the same on every machine, forever.

    >>> round(hash_of("cell_000"), 6) == round(hash_of("cell_000"), 6) < 1
    True
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()  # a file's name need not be valid text
    return int.from_bytes(digest[:8], "big") / 2**64


def group_of(stem: str, description: Description) -> str:
    """What must stay in one split: the first group (or whole match) of the regular expression, else the stem."""
    match = re.search(description.group, stem) if description.group else None
    if match is None:
        return stem
    return (match.group(1) if match.groups() else match.group(0)) or stem


def _split_by_hash(root: Path, samples: Sequence[Sample], description: Description, names: Sequence[str]) -> Splits:
    """Split by the hash of each sample's group; `train` and `val` never end up empty."""
    groups = {sample.name: group_of(sample.name, description) for sample in samples}
    places = {group: _place(hash_of(group), names) for group in groups.values()}
    _fill(root, places)
    return {name: tuple(s for s in samples if places[groups[s.name]] == name) for name in names}


def _place(value: float, names: Sequence[str]) -> str:
    if TRAIN_PART <= value < TRAIN_PART + VAL_PART:
        return "val"
    return "test" if value >= TRAIN_PART + VAL_PART and "test" in names else "train"


def _fill(root: Path, places: dict[str, Literal["train", "val", "test"] | str]) -> None:
    """If train or val is empty, move the group there whose hash is nearest to the border of the two."""
    if not places:
        return
    if len(places) < 2:
        raise DataError(
            f"{root}: contains a single image or group, which cannot serve for both training and validation. "
            "Add images, or make train/ and val/ yourself."
        )
    for empty, other in (("train", "val"), ("val", "train")):
        if empty not in places.values():
            candidates = [group for group, place in places.items() if place == other]
            if len(candidates) < 2:  # or the other would become empty
                candidates = [group for group, place in places.items() if place == "test"]
            places[min(candidates, key=lambda group: abs(hash_of(group) - TRAIN_PART))] = empty


def _fold(root: Path, splits: Splits, description: Description, folds: int, fold: int) -> Splits:
    pool = (*splits.get("train", ()), *splits.get("val", ()))
    groups = sorted({group_of(sample.name, description) for sample in pool}, key=hash_of)
    if not 2 <= folds <= len(groups):
        raise SettingError(f"data.folds = {folds}: {root} can be split into 2 to {len(groups)} folds.")
    if not 0 <= fold < folds:
        raise SettingError(f"data.fold = {fold}: must lie between 0 and {folds - 1}.")
    held_out = set(groups[fold::folds])
    val = tuple(sample for sample in pool if group_of(sample.name, description) in held_out)
    train = tuple(sample for sample in pool if group_of(sample.name, description) not in held_out)
    return {**splits, "train": train, "val": val}


def without(dataset: DataSet, paths: Iterable[Path]) -> DataSet:
    """The data set without the samples that have a file among `paths`."""
    bad = set(paths)
    splits = {
        name: tuple(sample for sample in samples if bad.isdisjoint(sample.files))
        for name, samples in dataset.splits.items()
    }
    return replace(dataset, splits=splits)
