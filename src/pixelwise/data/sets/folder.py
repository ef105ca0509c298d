"""A data set on disk: which images have which masks, and which split they belong to.

A data set consists of `images/` and `masks/` with the same stems, or of any of `train/`, `val/`, `test/` with those two
in each. What cannot be seen from the files is written in an optional `dataset.toml`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pixelwise.core.config import LabelKind, Rgb, explain, read_toml
from pixelwise.core.errors import DataError, SettingError, near
from pixelwise.data.sets.pairs import Pairs, Sample, pair, part_of
from pixelwise.data.sets.splits import SPLITS, complete, fold_of

SPLIT_FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLIT_FOLDERS |= {"test": "test", "testing": "test"}
"""What people call the folder of a split, in lower case."""


class Description(BaseModel):
    """The content of `dataset.toml`; every key is optional."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: list[str] | None = None
    labels: LabelKind | None = None
    ignore: int | list[int | Rgb] | None = None  # mask values, or colours, that do not count
    group: str | None = None  # regular expression for the stem: images with the same captured text stay in one split
    colors: dict[str, Rgb] | None = None  # class name -> RGB
    pixel_size: float | None = None  # micrometres
    nodata: float | None = None  # the value of pixels without data in images whose files do not say, may be nan
    axes: str | None = None  # of TIFF stacks whose metadata do not say, for example "ZYX"

    @property
    def ignored(self) -> list[int | Rgb]:
        """The ignored values as a list."""
        return [] if self.ignore is None else [self.ignore] if isinstance(self.ignore, int) else self.ignore


@dataclass(frozen=True)
class DataSet:
    """The samples of each split, and what `dataset.toml` says."""

    root: Path
    splits: Mapping[str, tuple[Sample, ...]]
    description: Description
    found: Mapping[str, Pairs] = field(default_factory=dict)  # what lies in each split's folder, "" for the root
    unlabelled: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)  # images of splits without masks

    def split(self, name: str) -> tuple[Sample, ...]:
        """The samples of a split.

        Raises:
            DataError: the split is missing or empty.
        """
        samples = self.splits.get(name, ())
        if name in self.unlabelled and not samples:
            raise DataError(
                f"{self.root}: the split '{name}' has {len(self.unlabelled[name])} images but no masks, so there is "
                f"nothing to compare with. Add {name}/masks/, or choose another split."
            )
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
    folders = split_folders(root)
    found = {name: pair(folder, name != "train") for name, folder in folders.items()} or {"": pair(root)}
    unlabelled = {
        name: pairs.lonely_images for name, pairs in found.items() if name not in ("", "train") and not pairs.labelled
    }
    found = {name: pairs for name, pairs in found.items() if name not in unlabelled}
    if not found:
        raise DataError(f"{root}: no split has masks. Add a folder masks/ beside images/ in {'/, '.join(folders)}/.")
    for name, pairs in found.items():
        pairs.require(folders.get(name, root))
    splits = {name: pairs.samples for name, pairs in found.items()}
    splits = complete(root, splits, description.group)
    if folds:
        splits = fold_of(root, splits, description.group, folds, fold)
    return DataSet(root, splits, description, found, unlabelled)


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits that hold images, by the split's name.

    Raises:
        DataError: two folders stand for the same split.
    """
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        name = SPLIT_FOLDERS.get(path.name.casefold())
        if name is None or part_of(path, "images") is None:
            continue
        if name in found:
            raise DataError(
                f"{root}: {found[name].name}/ and {path.name}/ both stand for the split '{name}'. Rename or remove one."
            )
        found[name] = path
    return {name: found[name] for name in SPLITS if name in found}


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


def without(dataset: DataSet, paths: Iterable[Path]) -> DataSet:
    """The data set without the samples that have a file among `paths`."""
    bad = set(paths)
    splits = {
        name: tuple(sample for sample in samples if bad.isdisjoint(sample.files))
        for name, samples in dataset.splits.items()
    }
    return replace(dataset, splits=splits)
