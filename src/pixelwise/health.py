"""The doctor: what is wrong with a data set. PyTorch is not needed to tell, so it is not imported."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pixelwise.core.progress import Progress
from pixelwise.data.health.diagnosis import Diagnosis
from pixelwise.data.health.examine import LARGE_PIXELS
from pixelwise.data.health.fix import write_mended
from pixelwise.data.health.problems import current
from pixelwise.data.health.survey import Survey, read_samples, understand
from pixelwise.data.masks.masks import MaskLabels
from pixelwise.data.sets.folder import open_dataset
from pixelwise.data.sets.scenes import is_upright, scene_scale


def doctor(
    data: str | Path,
    *,
    fix: str | Path | None = None,
    allow: Sequence[str] = (),
    html: str | Path | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Find what is wrong with a data set, as every training does before it starts.

    Args:
        data: the folder of the data set.
        fix: folder for a mended copy; the original is never touched.
        allow: codes of problems that are no reason for a training to stop.
        html: a page to write about the set: samples with their masks, classes, sizes, intensities, findings.
        progress: is called with (done, all).

    Returns:
        The diagnosis: `ok`, `problems` (each with `code`, `severity`, `files`, `message`, `fix`), `labels`, `classes`.

    Raises:
        DataError: the folder is no data set. OutputError: the copy or the page cannot be written.
    """
    allowed = current(allow)
    found = _surveyed(Path(data), allowed, progress)
    diagnosis = Diagnosis.of(found, allowed)
    if fix is not None:
        mended = write_mended(found, Path(fix), progress)
        remaining = _surveyed(mended.out, allowed, None).problems if mended.samples else found.problems
        diagnosis = replace(diagnosis, mended=mended, remaining=remaining)
    if html is not None:
        from pixelwise.report import write_dataset_page  # Matplotlib and PyTorch take seconds to import

        write_dataset_page(Path(html), found, diagnosis)
        diagnosis = replace(diagnosis, page=Path(html))
    return diagnosis


def _surveyed(data: Path, allow: Sequence[str], progress: Progress | None) -> Survey:
    """A data set of masks, whatever is wrong with it."""
    found = understand(read_samples(open_dataset(data), MaskLabels(), progress=progress), allow=allow)
    facts = [found.facts[one.image] for one in found.dataset.splits.get("train", ()) if one.image in found.facts]
    if not facts or found.meaning is None or not is_upright(facts):
        return found
    tiny = MaskLabels().vanishing(facts, found.meaning, scene_scale(facts, LARGE_PIXELS))
    return replace(found, problems=(*found.problems, *tiny))
