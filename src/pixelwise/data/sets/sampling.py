"""Training samples: each is a pure function of (seed, number), so that a resumed run draws what it would have drawn."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixelwise.core.classes import IGNORE
from pixelwise.core.config import Config
from pixelwise.core.errors import DataError, ModelError
from pixelwise.data.files.facts import Picture
from pixelwise.data.files.readers import read_picture
from pixelwise.data.health.kept import Memory
from pixelwise.data.masks.labels import LabelRule
from pixelwise.data.masks.stored import StoredMask, classes_of, ids_of, read_stored
from pixelwise.data.pixels import augment, targets
from pixelwise.data.pixels.normalize import Normalization, Numbers, filled, match_channels
from pixelwise.data.pixels.scaling import resize
from pixelwise.data.sets.pairs import Sample

PIXELS_KEPT = 256  # of each class and image, to centre patches on


@dataclass(frozen=True)
class Batch:
    """Samples of a training: images N x C x H x W float32, and what the loss compares outputs with, by name.

    A target is an array whose first axis is N, or a list of N arrays of unequal shapes.
    """

    images: np.ndarray
    targets: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One image as training uses it, after `data.scale`."""

    image: np.ndarray  # H x W x C, the file's type
    labels: np.ndarray  # H x W uint16, class indices or IGNORE
    gain: np.ndarray  # C float32: normalised = image * gain + offset
    offset: np.ndarray  # C float32
    weights: np.ndarray | None  # H x W float32 border weights, where the loss has them
    places: dict[int, np.ndarray]  # class -> some (y, x) of it


def open_pages(sample: Sample, channels: int, axes: str | None, picture: Picture | None = None) -> Picture:
    """P x H x W x C of a sample's image, with the network's number of channels, and what its file says.

    Args:
        sample: whose image it is.
        channels: of the network.
        axes: of the file, as in `read_picture`.
        picture: what the file holds, if it was read before.

    Raises:
        DataError: it cannot be read.
        ModelError: its channels do not fit.
    """
    picture = picture or read_picture(sample.image, axes)
    try:
        pages = np.stack([match_channels(page, channels) for page in picture.pixels])
    except ModelError as error:
        raise ModelError(f"{sample.image}: {error}") from error
    return Picture(pages, picture.facts)


class Store:
    """The images of a split, read when first needed and kept while they fit a budget of bytes."""

    def __init__(
        self,
        samples: Sequence[tuple[Sample, int]],
        config: Config,
        axes: str | None = None,
        budget: int = 4 << 30,
        memory: Memory | None = None,
    ) -> None:
        self.samples = samples  # (sample, page)
        self.config = config
        self.axes = axes
        self.budget = budget
        self._memory = memory  # pixels that were decoded before
        self._rule = LabelRule.from_settings(config.data)
        self._normalization = Normalization.from_settings(config.data)
        self._kept: dict[int, Entry] = {}
        self._bytes = 0
        self._lock = threading.Lock()
        self._reading: dict[int, threading.Lock] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Entry:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        with self._lock:
            reading = self._reading.setdefault(index, threading.Lock())
        with reading:  # two threads that want the same image do not both decode it
            return self._kept.get(index) or self._read_and_keep(index)

    def _read_and_keep(self, index: int) -> Entry:
        entry = self._read(*self.samples[index])
        size = entry.image.nbytes + entry.labels.nbytes + (entry.weights.nbytes if entry.weights is not None else 0)
        with self._lock:
            if index not in self._kept and self._bytes + size <= self.budget:
                self._kept[index] = entry
                self._bytes += size
        return entry

    def _read(self, sample: Sample, page: int) -> Entry:
        settings = self.config.data
        picture, stored = self._pixels(sample)
        full = picture.pixels[page]
        numbers = Numbers.of(full.dtype, picture.facts, settings.nodata)
        valid = numbers.valid(full)
        try:
            labels = resize(classes_of(stored, page, self._rule, valid), settings.scale, nearest=True)
        except DataError as error:
            raise DataError(f"{sample.target}: {error}") from error
        gain, offset = self._normalization.gain_and_offset(full, numbers)
        weights = self._border(ids_of(stored, page, valid), labels) if self.config.loss.border else None
        full = filled(full, numbers.nodata)
        return Entry(resize(full, settings.scale), labels, gain, offset, weights, _places(labels))

    def _pixels(self, sample: Sample) -> tuple[Picture, StoredMask]:
        """The pixels of a sample and its mask: as the survey left them in memory, or read now."""
        known = self._memory.take(sample) if self._memory else None
        picture = open_pages(sample, self.config.data.channels, self.axes, known.image if known else None)
        return picture, known.labels if known else read_stored(sample.target, self.axes)

    def _border(self, mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Border weights from the instances, or from connected components where the labels are classes."""
        loss = self.config.loss
        if self._rule.kind == "instances":
            instances = resize(mask.astype(np.float32), self.config.data.scale, nearest=True).astype(np.int32)
        else:
            instances = targets.objects(labels)
        return targets.border_weights(instances, loss.border, loss.border_sigma)


def _places(labels: np.ndarray) -> dict[int, np.ndarray]:
    places = {}
    for value in np.flatnonzero(np.bincount(labels.ravel())).tolist():
        if value != IGNORE:
            flat = np.flatnonzero(labels == value)
            chosen = flat[:: max(1, len(flat) // PIXELS_KEPT)][:PIXELS_KEPT]
            places[value] = np.stack(np.unravel_index(chosen, labels.shape), axis=1)
    return places


class PatchSampler:
    """Draws augmented patches.

    An image is drawn with a probability that grows with the square root of its area: large images hold more, but
    what they hold is alike. With probability `train.balance` a class is drawn evenly instead, then an image that has
    it, and the patch is centred near a pixel of it.

    Args:
        store: the images.
        areas: pixels of each of them.
        owners: class -> indices of the images that have it.
        size: H, W of the labelled part.
        border: extra pixels of image on each side of it, for networks without padding.
    """

    def __init__(
        self,
        store: Store,
        areas: Sequence[int],
        owners: dict[int, list[int]],
        size: tuple[int, int],
        border: int = 0,
    ) -> None:
        self.store = store
        self.config = store.config
        self.size = size
        self.border = border
        self._cumulative = np.cumsum(np.sqrt(np.asarray(areas, dtype=np.float64)))
        self._owners = [owners[value] for value in sorted(owners) if owners[value]]
        self._classes = [value for value in sorted(owners) if owners[value]]

    def __call__(self, number: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Sample `number`: C x h x w float32; "labels", H x W uint16, and "border" weights where the loss has them."""
        rng = np.random.default_rng((self.config.seed, number))
        settings = self.config.augment
        pose = augment.draw_pose(rng, settings)
        entry, near = self._choose(rng)
        extent = pose.extent(self.size)
        centre = tuple(
            _position(rng, length, half, None if near is None else near[axis])
            for axis, (length, half) in enumerate(zip(entry.labels.shape, extent, strict=True))
        )
        height, width = (length + 2 * self.border for length in self.size)
        maps = augment.draw_map(rng, settings, pose, (centre[0], centre[1]), (height, width))
        image = augment.warp_image(entry.image, maps).astype(np.float32) * entry.gain + entry.offset
        image = augment.change_intensities(rng, settings, image)
        inner = slice(self.border, height - self.border), slice(self.border, width - self.border)
        inner_maps = (np.ascontiguousarray(maps[0][inner]), np.ascontiguousarray(maps[1][inner]))
        targets = {"labels": augment.warp_labels(entry.labels, inner_maps)}
        if entry.weights is not None:
            targets["border"] = augment.warp_weights(entry.weights, inner_maps)
        return np.ascontiguousarray(image.transpose(2, 0, 1)), targets

    def _choose(self, rng: np.random.Generator) -> tuple[Entry, np.ndarray | None]:
        if self._owners and rng.random() < self.config.train.balance:
            chosen = int(rng.integers(len(self._owners)))
            owners = self._owners[chosen]
            entry = self.store[owners[int(rng.integers(len(owners)))]]
            places = entry.places.get(self._classes[chosen])
            if places is not None and len(places):  # a thin class may vanish under `data.scale`
                return entry, places[int(rng.integers(len(places)))]
            return entry, None
        index = int(np.searchsorted(self._cumulative, rng.random() * self._cumulative[-1], side="right"))
        return self.store[min(index, len(self._cumulative) - 1)], None

    def batch(self, numbers: Sequence[int]) -> Batch:
        """The samples of these numbers, stacked."""
        images, targets = zip(*(self(number) for number in numbers), strict=True)
        return Batch(np.stack(images), {name: np.stack([target[name] for target in targets]) for name in targets[0]})


def _position(rng: np.random.Generator, length: int, half: float, near: float | None) -> float:
    """Centre of a patch along one axis: inside the image as far as it fits, else about its middle."""
    middle = (length - 1) / 2
    room = max(length / 2 - 0.8 * half, 0.0)  # a fifth of a half may hang over the border
    slack = room if room > 0 else 0.3 * abs(half - length / 2)
    wanted = rng.uniform(-1, 1)
    if near is None:
        return middle + wanted * slack
    return float(np.clip(near + 0.6 * wanted * half, middle - room, middle + room))
