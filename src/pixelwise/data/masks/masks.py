"""Masks as the labels of a data set."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pixelwise.core.classes import IGNORE, ClassMap
from pixelwise.core.errors import DataError
from pixelwise.data.health.class_checks import class_checks, tiny_objects
from pixelwise.data.health.examine import ImageFacts
from pixelwise.data.health.problems import Interpretation, Problem
from pixelwise.data.masks.blends import Edges
from pixelwise.data.masks.labels import LabelRule, packed
from pixelwise.data.masks.mapping import carried_over
from pixelwise.data.masks.mask_facts import Ids, MaskFacts, facts_of
from pixelwise.data.masks.meaning import interpret
from pixelwise.data.masks.mending import Mend, mender
from pixelwise.data.masks.stored import StoredMask, classes_of, read_stored, values_of_alpha
from pixelwise.data.pixels import pictures
from pixelwise.data.sets.folder import Description
from pixelwise.data.sets.pairs import Sample


class MaskLabels:
    """Masks as the labels of a data set: the target of a sample is the path of its mask."""

    facts_types: tuple[type, ...] = (MaskFacts, Edges, Ids)

    def load(self, sample: Sample, axes: str | None) -> StoredMask:
        """The mask of a sample.

        Raises:
            DataError: the file cannot be read, or is not a mask.
        """
        return read_stored(sample.target, axes)

    def look(self, sample: Sample, loaded: StoredMask, valid: np.ndarray | None = None) -> MaskFacts:
        """What a mask holds where the image has data."""
        if valid is not None and valid.shape == loaded.pixels.shape[:3]:
            both = valid if loaded.valid is None else valid & loaded.valid
            loaded = replace(loaded, valid=None if both.all() else both)
        facts = facts_of(loaded)
        return replace(facts, alpha=values_of_alpha(sample.target)) if len(facts.values) < 2 else facts

    def grid(self, loaded: StoredMask) -> np.ndarray:
        """P x H x W numbers, one for each value or colour."""
        return packed_pages(loaded) if loaded.pixels.ndim == 4 else loaded.pixels

    def interpret(
        self, description: Description, found: Sequence[tuple[Sample, MaskFacts]], allow: Collection[str] = ()
    ) -> Interpretation:
        """What the values mean, according to `dataset.toml` and to what the masks show.

        Args:
            description: what `dataset.toml` says.
            found: the samples with what `read` returned for them.
            allow: codes of problems that do not stand in the way.

        Raises:
            DataError: the two contradict each other.
        """
        return interpret(description, [(sample.target, facts) for sample, facts in found], allow)

    def carried_over(
        self, meaning: LabelRule, description: Description, found: Sequence[tuple[Sample, MaskFacts]]
    ) -> Interpretation:
        """What the values of another data set mean in the classes of a run: by name, where `dataset.toml` has names.

        Raises:
            DataError: a class occurs that the run does not have; the message lists those of both.
        """
        return carried_over(meaning, description, [(sample.target, facts) for sample, facts in found])

    def count(self, facts: MaskFacts, meaning: LabelRule) -> np.ndarray:
        """3 x K pixels of each class in the top, middle and bottom third.

        Raises:
            DataError: a value does not stand for a class.
        """
        if facts.is_color and meaning.kind != "color":
            meaning.to_indices(np.zeros((1, 1, 3), np.uint8))  # says that colours are no numbers
        indices = meaning.look_up(facts.colors if meaning.kind == "color" else facts.values)
        if facts.others.any() and meaning.kind != "instances":
            raise DataError(f"holds more than {len(facts.values)} values, of which most are ignored. Is it a mask?")
        counts = np.zeros((3, len(meaning.classes)), np.int64)
        kept = indices != IGNORE
        for row, pixels in zip(counts, facts.counts, strict=True):
            np.add.at(row, indices[kept], pixels[kept])
        counts[:, -1] += facts.others  # in masks of instances, these are objects
        return counts

    def check(self, splits: Mapping[str, Sequence[ImageFacts]], meaning: LabelRule) -> list[Problem]:
        """Classes that are missing or rare."""
        return class_checks(splits, meaning.classes.names)

    def vanishing(self, facts: Sequence[ImageFacts], meaning: LabelRule, scale: float) -> list[Problem]:
        """Classes whose objects would mostly vanish."""
        return tiny_objects(facts, meaning, scale)

    def draw(self, loaded: StoredMask, meaning: LabelRule | None) -> np.ndarray:
        """The first page in the classes' colours; without a meaning, its numbers as greys."""
        page = loaded.pixels[0]
        if meaning is None:
            return pictures.to_display(page if page.ndim == 3 else page[..., None])
        return pictures.colorize(
            classes_of(loaded, 0, meaning), ClassMap(meaning.classes.names, meaning.classes.colors)
        )

    def mender(
        self, description: Description, found: Sequence[tuple[Sample, MaskFacts]], codes: Collection[str]
    ) -> Mend:
        """What makes the labels of a sample without what is wrong with the set by these codes; see `mending.mender`."""
        return mender(description, [(sample.target, facts) for sample, facts in found], codes)


def packed_pages(loaded: StoredMask) -> np.ndarray:
    """P x H x W numbers of the colours of a mask."""
    return np.stack([packed(page) for page in loaded.pixels])
