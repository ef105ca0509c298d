"""What is wrong with a data set as a whole: its folders, and its images beside one another."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from pixelwise.data.files.facts import FileFacts
from pixelwise.data.files.readers import IMAGE_SUFFIXES
from pixelwise.data.health.examine import ImageFacts
from pixelwise.data.health.problems import CODES, Problem
from pixelwise.data.sets.folder import DataSet

Splits = Mapping[str, Sequence[ImageFacts]]

SAME_LOOK = 0.9995  # correlation of two thumbnails from which on they show the same
SAME_ASPECT = 0.02  # how far the ratios of height to width of the same picture may differ
HUGE_PIXELS = 100_000_000
USUAL_FIT = 0.7  # of the set's median of best fits; what would fit less even if it were moved shows nothing
_BLOCK = 1024  # thumbnails that are compared with all others at once


def gathered(problems: Iterable[Problem]) -> list[Problem]:
    """Problems by severity and code; those that say the same of several files become one."""
    order = {code: number for number, code in enumerate(CODES)}
    ranks = {"error": 0, "warning": 1, "note": 2}
    same: dict[tuple[str, ...], list[Problem]] = defaultdict(list)
    for problem in problems:
        same[problem.severity, problem.code, problem.message, problem.fix].append(problem)
    merged = [
        Problem(
            group[0].code, tuple(dict.fromkeys(chain(*(one.files for one in group)))), message, fix, group[0].raised
        )
        for (_, _, message, fix), group in same.items()
    ]
    return sorted(merged, key=lambda problem: (ranks[problem.severity], order[problem.code]))


# Folders


def of_folders(dataset: DataSet) -> list[Problem]:
    """Files without their partner, with the same stem, or that are no images; splits without labels."""
    pairs = list(dataset.found.values())
    hint = " ".join(dict.fromkeys(one.hint for one in pairs if one.hint))
    names = ("lonely_images", "lonely_masks", "same_stem")
    lonely, alone, twins = ([getattr(one, name) for one in pairs] for name in names)
    rows = (
        ("unpaired-image", lonely, "has no mask with the same stem in masks/.", "Add the mask or"),
        ("unpaired-mask", alone, "has no image with the same stem in images/.", "Add it or"),
        ("ambiguous-pair", twins, "has the same stem as another file next to it.", "Rename one or"),
    )
    problems = []
    for code, found, message, fix in rows:
        if paths := tuple(chain(*found)):
            beside = f" {hint}" if hint and code != "ambiguous-pair" else ""
            problems.append(
                Problem(code, paths, message + beside, f"{fix} remove the file, or leave it out with --allow {code}.")
            )
    for name, images in dataset.unlabelled.items():
        message = f"the split '{name}' has {len(images)} images but no masks, so it is not used."
        problems.append(Problem("unlabelled-split", images, message, f"To measure on it, add {name}/masks/."))
    problems += _strangers(tuple(chain(*(one.left_out for one in pairs))))
    return problems


def _strangers(paths: Sequence[Path]) -> Iterator[Problem]:
    folders = tuple(path for path in paths if path.is_dir())
    files = tuple(path for path in paths if path not in set(folders))
    if folders:
        yield Problem("left-out", folders, "is a folder, which is not looked into.", "Move the images one folder up.")
    if files:
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        message = "is left out: its extension is not that of an image."
        yield Problem("left-out", files, message, f"If it is an image, convert it; known extensions: {known}.")


# Images


def common_channels(facts: Sequence[ImageFacts]) -> tuple[int, list[Problem]]:
    """The usual number of channels; grey and RGB may be mixed (grey is repeated), others may not."""
    counts = Counter(fact.channels for fact in facts)
    if len(counts) <= 1:
        return next(iter(counts), 1), []
    if set(counts) == {1, 3}:
        grey = tuple(fact.sample.image for fact in facts if fact.channels == 1)
        message = f"is grey while {counts[3]} other images are RGB."
        return 3, [Problem("mixed-channels", grey, message, "It is used as RGB with three equal channels.")]
    usual = counts.most_common(1)[0][0]
    odd = tuple(fact.sample.image for fact in facts if fact.channels != usual)
    message = f"has another number of channels than most images, which have {usual}."
    fix = "Convert it, or leave it out with --allow mixed-channels."
    return usual, [Problem("mixed-channels", odd, message, fix, "error")]


def of_images(splits: Splits) -> list[Problem]:
    """What the images show together."""
    facts = list(chain(*splits.values()))
    return [
        *_copies(splits),
        *_mixed_depth(facts),
        *_misaligned(facts),
        *_turned(facts),
        *_undeclared(facts),
        *_remarks(facts),
    ]


def _copies(splits: Splits) -> Iterator[Problem]:
    """The same image in two splits is a leak; within a split, or nearly the same, it is a duplicate."""
    places = [(name, fact) for name, facts in splits.items() for fact in facts]
    by_digest: dict[str, list[int]] = defaultdict(list)
    for number, (_, fact) in enumerate(places):
        by_digest[fact.digest].append(number)
    same = [group for group in by_digest.values() if len(group) > 1 and not places[group[0]][1].is_constant]
    known = {number: key for key, group in enumerate(same) for number in group}
    copied = _copied_splits(splits)
    for group in same:
        found = sorted({places[number][0] for number in group}, key=list(splits).index)
        files = tuple(places[number][1].sample.image for number in group)
        fix = "Keep one: `pixelwise doctor DATA --fix OUT` keeps the first."
        if len(found) == 1:
            message = f"are the same image, pixel by pixel, in the split {found[0]}."
            yield Problem("duplicate-image", files, message, fix)
            continue
        where = " and ".join(found)
        message = f"are the same image, pixel by pixel, in the splits {where}: what is measured there was learnt."
        if set(found) <= copied:
            message = f"the splits {where} hold the same images as a whole, so what is measured there was learnt."
            fix = "If that is not meant, put other images there; if it is, remember what the figures are worth."
        else:
            fix += " With --allow split-leak the set is taken as it is."
        yield Problem("split-leak", files, message, fix, "warning" if set(found) <= copied else None)
    for first, second in _lookalikes([fact for _, fact in places]):
        if known.get(first, -1) != known.get(second, -2):
            (one, fact), (other, twin) = places[first], places[second]
            where = f"in the split {one}" if one == other else f"in the splits {one} and {other}"
            message = f"show nearly the same, {where}, as copies that were compressed, resized or brightened do."
            yield Problem(
                "duplicate-image",
                (fact.sample.image, twin.sample.image),
                message,
                "Keep one, or put both in the same split.",
            )


def _copied_splits(splits: Splits) -> set[str]:
    """Splits that are copies of each other as a whole, which nobody does by accident: they try whether it learns."""
    held = {name: frozenset(fact.digest for fact in facts) for name, facts in splits.items() if len(facts) > 1}
    return {one for one, own in held.items() for other, others in held.items() if one != other and own == others}


def _lookalikes(facts: Sequence[ImageFacts]) -> Iterator[tuple[int, int]]:
    """Pairs of images whose thumbnails hardly differ; each image with the first of its kind alone."""
    chosen = [number for number, fact in enumerate(facts) if fact.look is not None]
    if len(chosen) < 2:
        return
    looks = np.array([facts[number].look for number in chosen], np.float32)
    looks /= np.linalg.norm(looks, axis=1, keepdims=True)
    aspect = np.array([facts[number].height / facts[number].width for number in chosen])
    done: set[int] = set()
    for start in range(0, len(chosen), _BLOCK):
        alike = looks[start : start + _BLOCK] @ looks[start:].T > SAME_LOOK
        for one in range(start, start + len(alike)):
            if one in done:  # a thousand copies of an image are compared with the first alone
                continue
            for other in (start + np.flatnonzero(alike[one - start])).tolist():
                if one < other and other not in done and abs(aspect[one] / aspect[other] - 1) < SAME_ASPECT:
                    done.add(other)
                    yield chosen[one], chosen[other]


def _mixed_depth(facts: Sequence[ImageFacts]) -> Iterator[Problem]:
    counts = Counter(fact.depth for fact in facts)
    if len(counts) > 1:
        usual, _ = counts.most_common(1)[0]
        odd = tuple(fact.sample.image for fact in facts if fact.depth != usual)
        others = ", ".join(sorted(depth for depth in counts if depth != usual))
        message = f"holds numbers of another type ({others}) than most images ({usual})."
        fix = "Save all images with the same number of bits, if the same intensity should look the same."
        yield Problem("mixed-bit-depth", odd, message, fix)


def _misaligned(facts: Sequence[ImageFacts]) -> Iterator[Problem]:
    fits = [(fact, fact.fit) for fact in facts if fact.fit is not None]
    if not fits:
        return
    usual = float(np.median([fit.best for _, fit in fits]))
    for fact, fit in fits:
        if fit.is_clear and fit.best > USUAL_FIT * usual:
            message = (
                f"does not lie on {fact.sample.image.name} as it should: {fit.way}, its classes would explain "
                f"{fit.best:.0%} of the image's contrast, as it is {fit.now:.0%}."
            )
            yield Problem(
                "misaligned", (fact.sample.files[-1],), message, "Look at the pair, and export the mask again."
            )


def _turned(facts: Sequence[ImageFacts]) -> Iterator[Problem]:
    """Images that ask to be turned: where both ways fit the mask's size, somebody has to look."""
    for fact in facts:
        turn = fact.file.orientation if fact.file else 1
        if turn in (1, fact.label_orientation) or (turn > 4 and fact.height != fact.width):
            continue
        message = (
            f"asks viewers to turn or mirror it (EXIF orientation {turn}), which was done here, while its mask does "
            "not: if the mask was drawn on the image as it is stored, it lies wrongly."
        )
        fix = (
            "Look at the pair; where it lies wrongly, `pixelwise doctor DATA --fix OUT` writes both as they should be."
        )
        yield Problem("exif-rotation", (fact.sample.image,), message, fix)


def _undeclared(facts: Sequence[ImageFacts]) -> Iterator[Problem]:
    for fact in facts:
        if fact.sentinel is not None:
            value = f"{fact.sentinel:g}"
            message = (
                f"holds the value {value} many times, far from all others: it seems to stand for pixels without data."
            )
            fix = (
                f"If so, write `nodata = {value}` into dataset.toml; if it is a measurement, use --allow "
                "undeclared-nodata."
            )
            yield Problem("undeclared-nodata", (fact.sample.image,), message, fix)


_REMARKS: dict[str, tuple[str, Callable[[ImageFacts, FileFacts], bool]]] = {
    "shows nothing: every pixel has the same value.": ("constant-image", lambda fact, file: fact.is_constant),
    "has more than 100 megapixels.": (
        "huge-image",
        lambda fact, file: fact.pages * fact.height * fact.width > HUGE_PIXELS,
    ),
    "holds several images, of which the largest is used.": ("several-series", lambda fact, file: file.series > 1),
    "does not say whether 0 is black or white; 0 is read as black.": (
        "no-photometric",
        lambda fact, file: not file.photometric,
    ),
    "has an alpha channel, which is kept as a channel of data, because it holds many values.": (
        "alpha-channel",
        lambda fact, file: file.alpha == "data",
    ),
    "has an alpha channel, which says where there are data.": (
        "alpha-channel",
        lambda fact, file: file.alpha == "masks",
    ),
    "has an alpha channel, which is left out.": ("alpha-channel", lambda fact, file: file.alpha == "dropped"),
}


def _remarks(facts: Sequence[ImageFacts]) -> Iterator[Problem]:
    """Facts of single files that a person may not know."""
    for message, (code, applies) in _REMARKS.items():
        if files := tuple(fact.sample.image for fact in facts if fact.file is not None and applies(fact, fact.file)):
            yield Problem(code, files, message, "")
    missing = [fact for fact in facts if fact.missing > 0]
    if missing:
        share = np.mean([fact.missing for fact in missing])
        message = f"have pixels without data (nodata), {share:.1%} of them on average; these count for nothing."
        yield Problem("nodata", tuple(fact.sample.image for fact in missing), message, "")
