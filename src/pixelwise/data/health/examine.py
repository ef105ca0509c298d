"""One sample looked at: what its image and its labels are like, as figures that are small enough to keep."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import cv2
import numpy as np
from skimage.measure import label

from pixelwise.core.errors import DataError
from pixelwise.data.files.facts import FileFacts, Picture, sentinel_of, valid_pixels
from pixelwise.data.files.readers import read_picture
from pixelwise.data.health.alignment import Fit, fit_of
from pixelwise.data.health.problems import Problem
from pixelwise.data.pixels.intensities import intensities
from pixelwise.data.pixels.normalize import require_finite, unit_scale, with_data
from pixelwise.data.sets.pairs import Sample

LARGE_PIXELS = 256 * 256  # smaller images are trained on at full size
VANISHING = (8, 32, 128)  # pixels of an object of which hardly two are left at the scales 1/2, 1/4 and 1/8
MOST_VALUES = 256  # of labels, whose objects are looked at; numbers of objects are taken together
LOOK_SIDE = 24  # pixels of the thumbnail by which images are recognised again


TURN_MASKS = (
    "Turn the masks likewise (never resize them): `pixelwise doctor DATA --fix OUT` does. Or leave the pair out with "
    "--allow size-mismatch."
)
"""What to do where one of image and mask was turned."""


class LabelFacts(Protocol):
    """What is kept of one sample's labels: figures, never pixels."""

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """Pages, height and width of the image that they were made for; None if labels have no size."""
        ...


class LabelReader(Protocol):
    """How the labels of a sample are read."""

    def load(self, sample: Sample, axes: str | None) -> Any:
        """The labels of one sample; many threads may call this at the same time.

        Raises:
            DataError: they cannot be read.
        """
        ...

    def look(self, sample: Sample, loaded: Any, valid: np.ndarray | None) -> LabelFacts:
        """The figures of what `load` returned, where P x H x W pixels of the image are `valid`; None: all are."""
        ...

    def grid(self, loaded: Any) -> np.ndarray | None:
        """P x H x W integers that should follow what is seen in the image; None if labels have no place in it."""
        ...


@dataclass(frozen=True)
class ImageFacts:
    """What one image and its labels look like. Intensities are in units of `normalize.unit_scale`."""

    sample: Sample
    pages: int
    height: int
    width: int
    channels: int
    integer: bool
    low: float  # 1st percentile over all channels
    high: float  # 99th
    mean: np.ndarray  # C
    variance: np.ndarray  # C
    labels: Any = None  # what `Labels.count` gave
    depth: str = ""  # the type of its numbers, with the bits that the file states
    is_constant: bool = False
    digest: str = ""  # of its pixels
    label_digest: str = ""  # of its labels
    look: np.ndarray | None = None  # of `LOOK_SIDE` squared numbers of int8; None: there is nothing to see
    file: FileFacts | None = None
    label_orientation: int = 1  # of the labels' file
    missing: float = 0.0  # share of the pixels without data
    sentinel: float | None = None  # a value that seems to stand for missing data, but is not declared
    fit: Fit | None = None  # how well the labels fit the image
    areas: np.ndarray | None = None  # of large images, see `object_areas`


@dataclass(frozen=True)
class Examined:
    """What was read of one sample, before the meaning of its labels is known."""

    sample: Sample
    labels: LabelFacts | None  # None: they cannot be read
    found: ImageFacts | Problem


@dataclass(frozen=True)
class Pixels:
    """The pixels of a sample, decoded."""

    image: Picture
    labels: Any  # what `LabelReader.load` gave


def examine(
    sample: Sample, labels: LabelReader, axes: str | None = None, nodata: float | None = None
) -> tuple[Examined, Pixels | None]:
    """Read one image and its labels: their figures, or what is wrong with them; and the pixels if nothing is."""
    try:
        loaded = labels.load(sample, axes)
    except DataError as error:
        return Examined(sample, None, _unreadable(sample.files[-1], error)), None
    try:
        picture = read_picture(sample.image, axes)
    except DataError as error:
        return Examined(sample, labels.look(sample, loaded, None), _unreadable(sample.image, error)), None
    if picture.facts.nodata is None:
        picture = replace(picture, facts=replace(picture.facts, nodata=nodata))
    valid = valid_pixels(picture.pixels, picture.facts)
    facts = labels.look(sample, loaded, valid)
    wrong = _size_problem(sample, picture, facts, loaded) or _number_problem(sample, picture)
    if wrong:
        return Examined(sample, facts, wrong), None
    found = image_facts(sample, picture)
    grid = labels.grid(loaded)
    fit = None if grid is None or found.missing else fit_of(picture.pixels[0], grid[0])
    if grid is not None and found.height * found.width > LARGE_PIXELS:
        found = replace(found, areas=object_areas(grid[0]))
    found = replace(found, fit=fit, label_orientation=_orientation(loaded), label_digest=_label_digest(loaded))
    return Examined(sample, facts, found), Pixels(picture, loaded)


def _orientation(loaded: Any) -> int:
    """The turn that the labels' file asks for, if they lie in an image file."""
    return int(getattr(loaded, "orientation", 1))


def _label_digest(loaded: Any) -> str:
    pixels = getattr(loaded, "pixels", None)
    return digest_of(pixels if isinstance(pixels, np.ndarray) else np.array(repr(loaded)))


def _unreadable(path: Any, error: DataError) -> Problem:
    code = getattr(error, "code", "unreadable")
    text = str(error).removeprefix(f"{path}: ")
    return Problem(code, (path,), text, f"Replace the file, or leave it out with --allow {code}.")


def _size_problem(sample: Sample, picture: Picture, facts: LabelFacts, loaded: Any) -> Problem | None:
    shape = picture.pixels.shape[:3]
    if facts.shape is None or shape == facts.shape:
        return None
    message = f"is {_size(shape)}, but its mask {sample.target} is {_size(facts.shape)}."
    fix = "Make both the same size, or leave the pair out with --allow size-mismatch."
    turned = picture.facts.orientation
    if turned != _orientation(loaded) and shape[1:] == facts.shape[:0:-1]:
        message += (
            f" The image's EXIF data ask viewers to turn it (orientation {turned}), which was done here, while the "
            "mask lies as the image is stored."
        )
        fix = TURN_MASKS
    return Problem("size-mismatch", (sample.image,), message, fix)


def _size(shape: Sequence[int]) -> str:
    pages = f"{shape[0]} pages of " if shape[0] > 1 else ""
    return f"{pages}{shape[2]} x {shape[1]}"


def _number_problem(sample: Sample, picture: Picture) -> Problem | None:
    try:
        require_finite(with_data(picture.pixels, picture.facts.nodata))
    except DataError as error:
        return Problem("non-finite", (sample.image,), str(error), "Or leave the file out with --allow non-finite.")
    return None


def image_facts(sample: Sample, picture: Picture) -> ImageFacts:
    """The figures of an image alone."""
    pixels, facts = picture.pixels, picture.facts
    pages, height, width, channels = pixels.shape
    found = intensities(pixels, facts)
    bits = "" if facts.full_scale is None else f" up to {facts.full_scale:g}"
    return ImageFacts(
        sample,
        pages,
        height,
        width,
        channels,
        bool(np.issubdtype(pixels.dtype, np.integer)),
        found.low,
        found.high,
        found.mean,
        found.variance,
        depth=f"{pixels.dtype}{bits}",
        is_constant=found.is_constant,
        digest=digest_of(pixels),
        look=look_of(_shown(picture, found.mean)),
        file=replace(facts, palette=None, geo=None),
        missing=found.missing,
        sentinel=None if facts.nodata is not None else sentinel_of(pixels),
    )


def _shown(picture: Picture, mean: np.ndarray) -> np.ndarray:
    """The first page; what is missing in it has the mean, since it shows nothing."""
    pixels, facts = picture.pixels, picture.facts
    valid = valid_pixels(pixels[:1], facts)
    if valid is None:
        return np.asarray(pixels[0])
    middle = (mean / unit_scale(pixels.dtype, facts.full_scale)).astype(pixels.dtype)
    return np.asarray(np.where(valid[0, ..., None], pixels[0], middle))


def object_areas(page: np.ndarray) -> np.ndarray:
    """The objects (connected components) of H x W labels: for each value above 0 how many there are, and how small.

    Returns:
        V x 9 int64: the value; the number of its objects, and of those that are smaller than each of `VANISHING`; the
        pixels of all, and of those. More than `MOST_VALUES` values are numbers of objects, so each is one, and all
        count for the value 1.
    """
    values, ranks = np.unique(page, return_inverse=True)
    ranks = ranks.reshape(page.shape)
    if len(values) > MOST_VALUES:
        areas, owners = np.bincount(ranks.ravel())[values > 0], np.zeros(int((values > 0).sum()), np.int64)
        kept = np.array([1])
    else:
        kept = values[values > 0]
        objects, count = label(ranks, background=int(np.searchsorted(values, 0)), connectivity=2, return_num=True)  # type: ignore[no-untyped-call]  # scikit-image's
        areas = np.bincount(objects.ravel(), minlength=count + 1)[1:]
        of_object = np.zeros(count + 1, np.int64)
        of_object[objects] = ranks
        owners = of_object[1:] - (len(values) - len(kept))
    chosen = [np.ones(len(areas), bool), *(areas < limit for limit in VANISHING)]
    numbers = [np.bincount(owners[some], minlength=len(kept)) for some in chosen]
    pixels = [np.bincount(owners[some], areas[some], len(kept)) for some in chosen]
    return np.stack([kept, *numbers, *pixels], axis=1).astype(np.int64)


def digest_of(array: np.ndarray) -> str:
    """A hash of an array's shape, type and content."""
    found = hashlib.blake2b(f"{array.shape} {array.dtype}".encode(), digest_size=16)
    found.update(np.ascontiguousarray(array).view(np.uint8).data)
    return found.hexdigest()


def look_of(image: np.ndarray) -> np.ndarray | None:
    """A thumbnail of H x W x C in grey, its contrast normalised: int8, of length `LOOK_SIDE` squared.

    Copies of an image that were compressed or resized have nearly the same one.
    """
    pixels = image if image.dtype in (np.uint8, np.uint16) else image.astype(np.float32, copy=False)
    small = cv2.resize(pixels, (LOOK_SIDE, LOOK_SIDE), interpolation=cv2.INTER_AREA)
    grey = small.reshape(LOOK_SIDE, LOOK_SIDE, -1).astype(np.float32).mean(2)
    deviation = float(grey.std())
    if not deviation > 1e-3 * max(float(np.abs(grey).max()), 1e-30):
        return None
    return np.asarray(np.rint((grey - grey.mean()) / deviation * 24).clip(-127, 127).astype(np.int8).ravel())
