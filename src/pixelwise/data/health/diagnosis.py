"""What the doctor says about a data set."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from pixelwise.data.health.fix import Mended
from pixelwise.data.health.problems import Problem
from pixelwise.data.health.survey import Survey


@dataclass(frozen=True)
class Diagnosis:
    """A data set's state: what its labels were taken for, and what is wrong.

    Fields:
        data: the folder.
        problems: errors first, then warnings, then notes.
        images: pairs of an image and its labels.
        splits: pairs in each split.
        labels: their kind, or None if they have no meaning.
        classes: their names.
        told: what the labels were taken for, and by what.
        allow: codes that were allowed.
        mended: what the mended copy holds; None if none was asked for.
        remaining: errors of the mended copy.
        page: the HTML file, if one was asked for.
    """

    data: Path
    problems: tuple[Problem, ...]
    images: int
    splits: dict[str, int]
    labels: str | None
    classes: tuple[str, ...]
    told: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    mended: Mended | None = None
    remaining: tuple[Problem, ...] = ()
    page: Path | None = None

    @classmethod
    def of(cls, found: Survey, allow: Collection[str]) -> "Diagnosis":
        """The diagnosis of a survey of all splits."""
        splits = {name: len(samples) for name, samples in found.dataset.splits.items() if samples}
        meaning = found.meaning
        return cls(
            found.dataset.root,
            found.problems,
            sum(splits.values()),
            splits,
            None if meaning is None else str(meaning.kind),
            () if meaning is None else tuple(meaning.classes.names),
            found.told,
            tuple(allow),
        )

    @property
    def errors(self) -> Sequence[Problem]:
        """What keeps a training from this data set, or from its mended copy if there is one."""
        found = self.problems if self.mended is None else self.remaining
        return [problem for problem in found if problem.severity == "error" and problem.code not in self.allow]

    @property
    def ok(self) -> bool:
        """Whether a training can start."""
        return not self.errors

    @override
    def __repr__(self) -> str:
        counts = {rank: sum(one.severity == rank for one in self.problems) for rank in ("error", "warning", "note")}
        found = ", ".join(f"{count} {rank}{'s' * (count != 1)}" for rank, count in counts.items())
        return f"Diagnosis({str(self.data)!r}: {self.images} images, {self.labels or 'no'} labels, {found})"

    def as_json(self) -> dict[str, Any]:
        """For `doctor --json`."""
        value: dict[str, Any] = {
            "ok": self.ok,
            "images": self.images,
            "splits": self.splits,
            "labels": self.labels,
            "classes": list(self.classes),
            "told": list(self.told),
            "problems": [problem.as_json() for problem in self.problems],
        }
        if self.mended is not None:
            value["fixed"] = {
                "out": str(self.mended.out),
                "images": self.mended.samples,
                "changed": self.mended.changed,
                "left_out": [str(path) for path in self.mended.left_out],
                "problems": [problem.as_json() for problem in self.remaining],
            }
        return value | ({"page": str(self.page)} if self.page is not None else {})
