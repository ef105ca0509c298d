"""Masks as the labels of a data set."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from pixelwise.core.classes import IGNORE
from pixelwise.core.errors import DataError
from pixelwise.data.sets.folder import Description, Sample
from pixelwise.data.sets.labels import Interpretation, LabelRule
from pixelwise.data.sets.mask_facts import MaskFacts, facts_of
from pixelwise.data.sets.mapping import carried_over
from pixelwise.data.sets.meaning import interpret
from pixelwise.data.sets.stored import read_stored, values_of_alpha


class MaskLabels:
    """Masks as the labels of a data set: the target of a sample is the path of its mask."""

    def read(self, sample: Sample, axes: str | None) -> MaskFacts:
        """What a mask holds.

        Raises:
            DataError: the file cannot be read, or is not a mask.
        """
        facts = facts_of(read_stored(sample.target, axes))
        return replace(facts, alpha=values_of_alpha(sample.target)) if len(facts.values) < 2 else facts

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
