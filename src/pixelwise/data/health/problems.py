"""What can be wrong with a data set: a stable code for each kind, what it does to a training, and what can be done."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from typing_extensions import override

from pixelwise.core.errors import DataError, SettingError, near

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Kind:
    """One row of `CODES`: all that does not depend on the files."""

    severity: Severity  # error: a training refuses, unless the code is allowed
    what: str  # is wrong
    effect: str  # on a training, if nothing is done
    allow: str = ""  # what `--allow` does; empty: a training does not stop, so there is nothing to allow
    fix: str = ""  # what `--fix` does; empty: it cannot know what is right

    @property
    def leaves_out(self) -> bool:
        """Whether `--allow` leaves the files out; otherwise the set is taken as it is."""
        return self.allow == _LEAVES_OUT


_LEAVES_OUT = "leaves the files out"
_AS_IT_IS = "takes the set as it is"

CODES: dict[str, Kind] = {
    # errors
    "unpaired-image": Kind(
        "error", "an image has no mask of the same stem", "it could not be learnt from", _LEAVES_OUT, "leaves it out"
    ),
    "unpaired-mask": Kind(
        "error", "a mask has no image of the same stem", "it would not be used", _LEAVES_OUT, "leaves it out"
    ),
    "ambiguous-pair": Kind(
        "error",
        "two files of a folder differ only in their extension",
        "one of them would be taken by chance",
        "takes the first by name",
        "takes the first by name",
    ),
    "size-mismatch": Kind(
        "error",
        "an image and its mask differ in size",
        "labels would lie on other pixels than those they were drawn for",
        _LEAVES_OUT,
        "turns the mask where the image's EXIF turn explains the sizes; leaves the pair out otherwise",
    ),
    "unreadable": Kind(
        "error", "a file is damaged or cannot be opened", "it cannot be used", _LEAVES_OUT, "leaves it out"
    ),
    "truncated": Kind(
        "error", "a file ends before its pixels do", "a part of it is missing", _LEAVES_OUT, "leaves it out"
    ),
    "unknown-format": Kind(
        "error", "a file is in a format that cannot be read", "it cannot be used", _LEAVES_OUT, "leaves it out"
    ),
    "antialiased": Kind(
        "error",
        "masks hold rare values at the edges between frequent ones, as smoothing or resampling makes them",
        "the rare values would become classes of their own",
        _AS_IT_IS,
        "gives each such pixel the nearest frequent value",
    ),
    "jpeg-mask": Kind(
        "error",
        "masks were compressed as JPEG, which changes their values",
        "the changed values would become classes of their own",
        _AS_IT_IS,
        "gives each changed pixel the nearest frequent value",
    ),
    "unknown-value": Kind(
        "error",
        "a mask holds values that stand for no class",
        "these pixels have no meaning",
        _LEAVES_OUT,
        "leaves it out",
    ),
    "mixed-conventions": Kind(
        "error",
        "some masks say 1, others 255 (or another number) for the same thing",
        "the objects of one part of the files would count for nothing, or as another class",
        _AS_IT_IS,
        "writes all masks with 0 and 1",
    ),
    "palettes-differ": Kind(
        "error",
        "masks with a palette give the same number to different colours",
        "the same number would mean another class in each file",
        "takes the numbers as they are",
        "writes all masks with one palette",
    ),
    "empty-mask": Kind("error", "every pixel of all masks has the same value", "there is nothing to learn", _AS_IT_IS),
    "alpha-labels": Kind(
        "error",
        "masks are empty but for their alpha channel, which seems to hold the labels",
        "every pixel would have the same class",
        _AS_IT_IS,
        "writes the alpha channel as the mask",
    ),
    "float-labels": Kind(
        "error", "a mask holds fractions or NaN, but labels are whole numbers", "they have no meaning", _LEAVES_OUT
    ),
    "contradiction": Kind(
        "error", "dataset.toml says something that the labels contradict", "the labels have no meaning"
    ),
    "split-leak": Kind(
        "error",
        "the same image stands in two splits",
        "the figures would be better than the model is",
        _AS_IT_IS,
        "keeps it in the first of train, val, test",
    ),
    "non-finite": Kind("error", "an image holds NaN or infinite values", "the loss would become NaN", _LEAVES_OUT),
    "undeclared-nodata": Kind(
        "error",
        "an image holds a value such as -9999 that stands for missing pixels, but does not declare it",
        "the value would be taken for a measurement, and everything else would look alike beside it",
        _AS_IT_IS,
        "declares the value in dataset.toml",
    ),
    # warnings
    "misaligned": Kind(
        "warning", "a mask fits its image far better flipped, turned or shifted", "wrong labels are learnt"
    ),
    "duplicate-image": Kind(
        "warning", "two images show the same", "it counts twice; its labels may contradict", "", "keeps the first"
    ),
    "missing-class": Kind(
        "warning", "a class does not occur in a split", "it cannot be learnt, or not be measured, there"
    ),
    "instances-as-classes": Kind(
        "warning", "dataset.toml says index, but the masks look like numbered objects", "every object becomes a class"
    ),
    "classes-as-instances": Kind(
        "warning",
        "dataset.toml says instances, but the masks look like numbered classes",
        "all classes but 0 are merged into one",
    ),
    "disconnected-instance": Kind(
        "warning",
        "an object's number occurs in several separate parts",
        "the parts count as one object, which the network cannot know",
        "",
        "numbers the parts",
    ),
    "mixed-channels": Kind(
        "warning",
        "images differ in their number of channels",
        "grey images serve as RGB with three equal channels; other mixtures cannot be used (then it is an error)",
        _LEAVES_OUT,
    ),
    "mixed-bit-depth": Kind(
        "warning", "images differ in their number of bits", "the same intensity means something else in each"
    ),
    "constant-image": Kind("warning", "every pixel of an image has the same value", "there is nothing to see in it"),
    "class-imbalance": Kind("warning", "a class has hardly any pixels", "the network may never find it"),
    "tiny-objects": Kind("warning", "objects vanish at the scale that is planned", "they cannot be found"),
    "exif-rotation": Kind(
        "warning",
        "an image asks viewers to turn it, and its mask lies as the image is stored",
        "labels would lie on other pixels than those they were drawn for",
        "",
        "turns the image's pixels as its mask lies",
    ),
    # notes
    "values-0-255": Kind("note", "masks hold 0 and 255 for two classes", "none: they are read as two classes"),
    "color-coded": Kind("note", "the colours of the masks stand for classes", "none: their table is kept in the run"),
    "palette": Kind("note", "masks have a palette, whose numbers are the labels", "none"),
    "alpha-channel": Kind("note", "images have an alpha channel", "it is dropped, or kept where it holds data"),
    "huge-image": Kind("note", "an image is larger than 100 megapixels", "none, but it is slow to read"),
    "several-series": Kind("note", "a file holds several images", "the largest is used"),
    "nodata": Kind("note", "images declare pixels without data", "these count for nothing"),
    "no-photometric": Kind("note", "a TIFF does not say whether 0 is black or white", "0 is taken as black"),
    "unlabelled-split": Kind("note", "a split has images but no masks", "it is not used"),
    "left-out": Kind("note", "a folder holds files that are no images", "they are not used"),
}
"""All codes, by severity."""

OLD_CODES = {
    "image-without-mask": "unpaired-image",
    "mask-without-image": "unpaired-mask",
    "same-stem": "ambiguous-pair",
    "size-differs": "size-mismatch",
    "label-unknown": "unknown-value",
    "not-finite": "non-finite",
    "channels-differ": "mixed-channels",
}
"""Names that codes had; `--allow` still takes them."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with some files, and what to do about it."""

    code: str  # of `CODES`
    files: tuple[Path, ...]
    message: str  # continues the names of the files: "has no mask of the same stem."
    fix: str  # what to do, as a sentence
    raised: Severity | None = None  # where it is worse than usual

    @property
    def severity(self) -> Severity:
        """error, warning or note."""
        return self.raised or CODES[self.code].severity

    @property
    def leaves_out(self) -> bool:
        """Whether its files cannot be used, so that they are left out where it is allowed."""
        return self.severity == "error" and CODES[self.code].leaves_out

    @override
    def __str__(self) -> str:
        shown = ", ".join(map(str, self.files[:3])) + (
            f" and {len(self.files) - 3} more" if len(self.files) > 3 else ""
        )
        return " ".join(
            part for part in (f"{shown}:" if shown else "", self.message, self.fix, f"[{self.code}]") if part
        )

    def as_json(self) -> dict[str, Any]:
        """For `doctor --json`."""
        files = [str(path) for path in self.files]
        return {
            "code": self.code,
            "severity": self.severity,
            "files": files,
            "message": self.message,
            "fix": self.fix,
        }


@dataclass(frozen=True)
class Interpretation:
    """What the labels of a data set mean."""

    meaning: Any | None  # None: an error that is not allowed stands in the way
    problems: tuple[Problem, ...] = ()  # of the labels of the whole set
    told: tuple[str, ...] = ()  # for people: what they were taken for, and by what the guess was made


def current(allow: Collection[str]) -> tuple[str, ...]:
    """The codes of `--allow`, old names replaced.

    Raises:
        SettingError: a code is unknown.

    >>> current(["same-stem", "unreadable"])
    ('ambiguous-pair', 'unreadable', 'truncated', 'unknown-format')
    """
    codes: list[str] = []
    for code in allow:
        if code not in CODES and code not in OLD_CODES and code not in ALLOWED_BESIDE:
            raise SettingError(f"--allow {code}: no problem has this code; {near(code, [*CODES, *ALLOWED_BESIDE])}")
        codes += BROKEN if code == "unreadable" else [OLD_CODES.get(code, code)]
    return tuple(codes)


BROKEN = ("unreadable", "truncated", "unknown-format")
"""What `--allow unreadable` allows; once it was one code."""

ALLOWED_BESIDE = ("data-changed",)
"""What `--allow` takes besides the codes of problems: a training is resumed on other data."""


def stop_at_errors(problems: Iterable[Problem], allow: Collection[str]) -> None:
    """Raise a DataError that lists the errors that are not allowed, if there are any."""
    errors = [problem for problem in problems if problem.severity == "error" and problem.code not in allow]
    if errors:
        shown = "\n".join(str(problem) for problem in errors[:20])
        rest = f"\n... and {len(errors) - 20} more problems" if len(errors) > 20 else ""
        raise DataError(shown + rest)
