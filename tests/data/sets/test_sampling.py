"""Samples: what is drawn depends on the seed and the number, and on nothing else."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from pixelwise.core.classes import IGNORE
from pixelwise.core.config import Config, make_config
from pixelwise.core.errors import DataError, ModelError
from pixelwise.data.pixels import targets
from pixelwise.data.sets.pairs import Sample
from pixelwise.data.sets.sampling import PIXELS_KEPT, PatchSampler, Store, open_pages

STILL: dict[str, Any] = {
    "flip_horizontal": False,
    "flip_vertical": False,
    "turns": False,
    "rotation": 0,
    "scale": 0,
    "aspect": 0,
    "elastic": 0,
}
PLAIN: dict[str, Any] = {"brightness": 0, "contrast": 0, "noise": 0, "blur": 0}
"""With these, intensities are the image's own."""


def config_of(
    *,
    seed: int = 0,
    labels: str = "index",
    classes: int = 3,
    channels: int = 1,
    resized: float = 1,
    ignore: Sequence[int] = (),
    balance: float = 0,
    border: float = 0,
    **augment: Any,
) -> Config:
    """A config whose images keep their numbers (integers over their type's largest)."""
    tree = {
        "seed": seed,
        "data": {
            "labels": labels,
            "classes": [f"class {index}" for index in range(classes)],
            "colors": [[index, 0, 0] for index in range(classes)],
            "values": [],
            "ignore": list(ignore),
            "channels": channels,
            "scale": resized,
            "normalization": "fixed",
            "mean": [0.0] * channels,
            "std": [1.0] * channels,
        },
        "model": {},
        "train": {"patch": [16, 16], "batch": 2, "steps_per_epoch": 5, "rate": 1e-3, "balance": balance},
        "augment": augment,
        "loss": {"border": border, "border_sigma": 3.0},
    }
    return make_config(tree)


def save(folder: Path, name: str, image: np.ndarray, mask: np.ndarray, **options: Any) -> Sample:
    sample = Sample(name, folder / f"{name}.tif", folder / f"{name}_mask.tif")
    tifffile.imwrite(sample.image, image, **({"photometric": "minisblack"} | options))
    tifffile.imwrite(
        sample.target, mask, photometric="minisblack", metadata={"axes": "YX" if mask.ndim == 2 else "ZYX"}
    )
    return sample


def channels_last(image: np.ndarray) -> dict[str, Any]:
    return {"metadata": {"axes": "YXC"}, "planarconfig": "contig"} if image.ndim == 3 else {}


def sampler_of(
    samples: Iterable[Sample], config: Config, size: tuple[int, int] = (16, 16), border: int = 0, budget: int = 1 << 30
) -> PatchSampler:
    """A sampler whose areas and owners come from the store itself."""
    pages = [(sample, 0) for sample in samples]
    entries = list(Store(pages, config))
    owners = {
        value: [index for index, entry in enumerate(entries) if (entry.labels == value).any()]
        for value in range(len(config.data.classes))
    }
    return PatchSampler(
        Store(pages, config, budget=budget), [entry.labels.size for entry in entries], owners, size, border
    )


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Three images of different sizes whose grey values equal their labels, as float."""
    made = []
    for number, size in enumerate([(40, 50), (33, 64), (70, 21)]):
        rows, columns = np.mgrid[: size[0], : size[1]]
        labels = ((rows // 9 + columns // 11 + number) % 3).astype(np.uint8)
        made.append(save(tmp_path, f"image{number}", labels.astype(np.float32), labels))
    return made


def same(one: tuple[np.ndarray | None, ...], two: tuple[np.ndarray | None, ...]) -> bool:
    return all(
        (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))
        for a, b in zip(one, two, strict=True)
    )


def draw(sampler: PatchSampler, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Image, labels and border weights of a sample."""
    image, found = sampler(number)
    assert found.keys() <= {"labels", "border"}
    return image, found["labels"], found.get("border")


# A pure function


def test_a_sample_depends_on_seed_and_number_alone(samples: list[Sample]) -> None:
    config = config_of(balance=0.5, border=10)
    first = sampler_of(samples, config)
    drawn = {number: draw(first, number) for number in range(8)}
    again = sampler_of(samples, config, budget=0)  # nothing is kept in memory
    np.random.default_rng(0)
    for number in reversed(range(8)):
        assert same(draw(again, number), drawn[number])
        assert same(draw(first, number), drawn[number])
    assert not any(same(drawn[number], drawn[number + 1]) for number in range(7))
    other = sampler_of(samples, config_of(seed=1, balance=0.5, border=10))
    assert not any(same(draw(other, number), drawn[number]) for number in range(8))


def test_large_seeds_and_numbers_will_do(samples: list[Sample]) -> None:
    config = config_of(seed=2**63 - 1)
    assert same(draw(sampler_of(samples, config), 10**12), draw(sampler_of(samples, config), 10**12))


def test_a_batch_stacks_its_samples(samples: list[Sample]) -> None:
    sampler = sampler_of(samples, config_of(), (12, 20))
    batch = sampler.batch([7, 3, 5])
    assert (batch.images.shape, batch.images.dtype) == ((3, 1, 12, 20), np.float32)
    assert (batch.targets["labels"].shape, batch.targets["labels"].dtype) == ((3, 12, 20), np.uint16)
    assert batch.targets.keys() == {"labels"}
    for place, number in enumerate([7, 3, 5]):
        image, labels, _ = draw(sampler, number)
        assert np.array_equal(batch.images[place], image)
        assert np.array_equal(batch.targets["labels"][place], labels)
    weighted = sampler_of(samples, config_of(border=10), (12, 20)).batch([0, 1])
    border = weighted.targets["border"]
    assert (border.shape, border.dtype) == ((2, 12, 20), np.float32)


# Image, labels and weights together


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6))
def test_an_image_that_equals_its_labels_still_does(number: int) -> None:
    sampler = _CHECKED.sampler
    image, labels, _ = draw(sampler, number)
    known = labels != IGNORE
    assert set(np.unique(labels)) <= {0, 1, IGNORE}
    assert (labels[known & (image[0] < 0.2)] == 0).all()
    assert (labels[known & (image[0] > 0.8)] == 1).all()


class _Checked:
    """A sampler over a chessboard, made once for all examples of a test."""

    def __init__(self) -> None:
        self._made: PatchSampler | None = None

    @property
    def sampler(self) -> PatchSampler:
        if self._made is None:
            import tempfile

            with tempfile.TemporaryDirectory() as folder:
                rows, columns = np.mgrid[:90, :80]
                labels = ((rows // 10 + columns // 12) % 2).astype(np.uint8)
                sample = save(Path(folder), "board", labels.astype(np.float32), labels)
                self._made = sampler_of([sample], config_of(classes=2, **PLAIN), (40, 48))
                self._made(0)  # read, and kept
        return self._made


_CHECKED = _Checked()


def test_border_weights_are_warped_along(tmp_path: Path) -> None:
    """An image that equals its border weights still does, wherever the image is."""
    mask = np.zeros((60, 60), np.uint16)
    for number, (row, column) in enumerate([(5, 5), (5, 22), (24, 8), (30, 30), (12, 40)], start=1):
        mask[row : row + 14, column : column + 14] = number
    weights = targets.border_weights(mask, 10, 3)
    sample = save(tmp_path, "cells", weights, mask)
    sampler = sampler_of([sample], config_of(labels="instances", classes=2, border=10, **PLAIN), (32, 32))
    assert np.array_equal(sampler.store[0].weights, weights)
    for number in range(20):
        image, labels, warped = draw(sampler, number)
        assert warped is not None
        known = ndimage.binary_erosion(labels != IGNORE)  # beyond the border the two are continued differently
        np.testing.assert_allclose(warped[known], image[0][known], atol=1e-4)
        assert labels[labels != IGNORE].max() <= 1


def test_border_weights_of_classes_are_those_of_their_connected_parts(samples: list[Sample]) -> None:
    entry = Store([(samples[0], 0)], config_of(border=10))[0]
    assert entry.weights is not None
    np.testing.assert_array_equal(entry.weights, targets.border_weights(targets.objects(entry.labels), 10, 3))
    assert Store([(samples[0], 0)], config_of())[0].weights is None


def test_border_weights_of_scaled_instances_keep_large_ids(tmp_path: Path) -> None:
    mask = np.zeros((40, 40), np.uint32)
    mask[4:16, 4:36] = 70_001
    mask[20:36, 4:36] = 70_002
    sample = save(tmp_path, "cells", np.zeros((40, 40), np.uint8), mask)
    entry = Store([(sample, 0)], config_of(labels="instances", classes=2, border=10, resized=0.5))[0]
    assert entry.weights is not None
    np.testing.assert_array_equal(entry.weights, targets.border_weights(mask[1::2, 1::2].astype(np.int32), 10, 3))
    assert entry.weights.max() > 0.5


# Where patches lie


def test_balance_draws_rare_classes(tmp_path: Path) -> None:
    labels = np.zeros((300, 300), np.uint8)
    labels[:150] = 1
    labels[200:204, 80:84] = 2
    others = np.zeros((300, 300), np.uint8)
    made = [save(tmp_path, name, mask, mask) for name, mask in (("rare", labels), ("plain", others))]

    def shares(balance: float) -> np.ndarray:
        sampler = sampler_of(made, config_of(balance=balance, **STILL), (32, 32))
        drawn = [draw(sampler, number)[1] for number in range(150)]
        return np.array([np.mean([(patch == value).any() for patch in drawn]) for value in range(3)])

    rare_alone, rare_drawn = shares(0)[2], shares(1)[2]
    assert rare_alone < 0.1
    assert 0.25 < rare_drawn < 0.45  # one in three is centred near it
    assert rare_alone < shares(0.5)[2] < rare_drawn
    assert shares(1)[1] > 0.25


def test_a_drawn_pixel_lies_in_its_patch(tmp_path: Path) -> None:
    """Without rotation every patch that is drawn for a class shows it, at the border of an image too."""
    labels = np.zeros((50, 60), np.uint8)
    labels[0, 0] = labels[49, 59] = labels[20, 30] = 1
    sample = save(tmp_path, "corners", labels, labels)
    config = config_of(classes=2, balance=1, **STILL)
    entries = PatchSampler(Store([(sample, 0)], config), [3000], {0: [], 1: [0]}, (16, 16))
    assert all((draw(entries, number)[1] == 1).any() for number in range(60))


def test_a_class_that_is_lost_in_the_scaling_does_no_harm(tmp_path: Path) -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[4, 4] = 2
    sample = save(tmp_path, "thin", labels, labels)
    config = config_of(balance=1, resized=0.25)
    sampler = PatchSampler(Store([(sample, 0)], config), [4096], {0: [0], 1: [], 2: [0]}, (8, 8))
    assert 2 not in sampler.store[0].places
    assert all(draw(sampler, number)[1].shape == (8, 8) for number in range(20))


def test_images_are_drawn_by_the_square_root_of_their_area(tmp_path: Path) -> None:
    made = []
    for value, side in ((10, 20), (20, 40), (30, 80)):
        mask = np.zeros((side, side), np.uint8)
        mask[0, 0] = 1
        made.append(save(tmp_path, f"flat{value}", np.full((side, side), value, np.uint8), mask))
    sampler = sampler_of(made, config_of(classes=2, **PLAIN, **STILL), (4, 4))
    means = [round(float(draw(sampler, number)[0].mean()) * 255) for number in range(700)]
    counts = np.array([means.count(value) for value in (10, 20, 30)])
    assert counts.sum() == 700
    np.testing.assert_allclose(counts / 700, np.array([1, 2, 4]) / 7, atol=0.06)


def test_patches_cover_the_whole_image_evenly(tmp_path: Path) -> None:
    coordinates = np.mgrid[:60, :90].transpose(1, 2, 0).astype(np.float32)
    sample = save(tmp_path, "grid", coordinates, np.zeros((60, 90), np.uint8), **channels_last(coordinates))
    sampler = sampler_of([sample], config_of(classes=2, channels=2, **PLAIN, **STILL), (16, 16))
    centres = np.array([draw(sampler, number)[0][:, 7:9, 7:9].mean((1, 2)) for number in range(400)])
    assert centres.min(axis=0) == pytest.approx([6, 6], abs=1.5)  # a fifth of a half may hang over
    assert centres.max(axis=0) == pytest.approx([53, 83], abs=1.5)
    assert centres.mean(axis=0) == pytest.approx([29.5, 44.5], abs=3)
    assert all((draw(sampler, number)[1] != IGNORE).mean() > 0.7 for number in range(100))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (20, 33), (31, 23)])
@pytest.mark.parametrize("balance", [0, 1])
def test_images_smaller_than_a_patch_work(tmp_path: Path, size: tuple[int, int], balance: float) -> None:
    labels = np.full(size, 1, np.uint8)
    sample = save(tmp_path, "small", np.full(size, 51, np.uint8), labels)
    sampler = sampler_of([sample], config_of(balance=balance, **PLAIN), (32, 24), border=6)
    known = 0
    for number in range(30):
        image, found, _ = draw(sampler, number)
        assert image.shape == (1, 44, 36)
        assert found.shape == (32, 24)
        np.testing.assert_allclose(image, 0.2, atol=1e-6)  # the mirrored image, nowhere a border
        assert set(np.unique(found)) <= {1, IGNORE}
        known += np.count_nonzero(found == 1)
    assert known / 30 > 0.4 * size[0] * size[1]


def test_an_image_as_large_as_the_patch_is_nearly_all_there(tmp_path: Path) -> None:
    sample = save(tmp_path, "same", np.zeros((32, 24), np.uint8), np.ones((32, 24), np.uint8))
    sampler = sampler_of([sample], config_of(**STILL), (32, 24))
    assert all((draw(sampler, number)[1] == 1).mean() > 0.8 for number in range(30))


@pytest.mark.parametrize("border", [1, 20, 92])
def test_a_border_adds_image_around_the_labels(samples: list[Sample], border: int) -> None:
    chosen = PLAIN | {"elastic": 0}
    plain = sampler_of(samples, config_of(border=10, **chosen), (24, 20))
    wide = sampler_of(samples, config_of(border=10, **chosen), (24, 20), border)
    for number in range(6):
        image, labels, weights = draw(wide, number)
        assert image.shape == (1, 24 + 2 * border, 20 + 2 * border)
        assert np.isfinite(image).all()
        assert same((image[:, border:-border, border:-border], labels, weights), draw(plain, number))


def test_a_border_is_deformed_with_its_labels(samples: list[Sample]) -> None:
    sampler = sampler_of(samples, config_of(**PLAIN, elastic_probability=1), (24, 20), 30)
    for number in range(10):
        image, labels, _ = draw(sampler, number)
        inner, known = image[0, 30:-30, 30:-30], labels != IGNORE
        low, high = ndimage.minimum_filter(inner, 3), ndimage.maximum_filter(inner, 3)
        flat = known & (high - low < 1e-3)  # inside one class
        assert flat.mean() > 0.1
        np.testing.assert_allclose(labels[flat], inner[flat], atol=1e-2)


# The store


@pytest.mark.parametrize(
    ("dtype", "unit"), [(np.uint8, 255), (np.uint16, 65535), (np.int16, 32767), (np.uint32, 2**32 - 1), (np.float32, 1)]
)
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("scale", [1, 0.5, 2])
def test_every_type_and_number_of_channels(
    tmp_path: Path, dtype: type, unit: float, channels: int, scale: float
) -> None:
    image = np.full((20, 22, channels), 0.5 * unit).astype(dtype)
    image[..., 0] = np.array(0.25 * unit).astype(dtype)
    stored = image if channels > 1 else image[..., 0]
    sample = save(tmp_path, "image", stored, np.ones((20, 22), np.uint8), **channels_last(stored))
    config = config_of(channels=channels, resized=scale, **PLAIN)
    drawn, labels, _ = draw(sampler_of([sample], config), 0)
    assert drawn.shape == (channels, 16, 16)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn.mean((1, 2)), image[0, 0] / unit, rtol=1e-4)
    assert set(np.unique(labels)) <= {1, IGNORE}


def test_each_page_of_a_stack_is_an_image(tmp_path: Path) -> None:
    pages, masks = np.zeros((3, 8, 9), np.uint8), np.zeros((3, 8, 9), np.uint8)
    for page in range(3):
        pages[page], masks[page] = 10 * page, page
    sample = save(tmp_path, "stack", pages, masks, metadata={"axes": "ZYX"})
    store = Store([(sample, page) for page in (2, 0, 1)], config_of())
    assert len(store) == 3
    assert [int(store[index].image[0, 0, 0]) for index in range(3)] == [20, 0, 10]
    assert [int(store[index].labels[0, 0]) for index in range(3)] == [2, 0, 1]


def test_axes_reach_the_reader(tmp_path: Path) -> None:
    sample = Sample("x", tmp_path / "x.tif", tmp_path / "y.tif")
    array = np.random.default_rng(0).integers(0, 2, (2, 9, 11), np.uint8)
    for path in (sample.image, sample.target):
        tifffile.imwrite(path, array, photometric="minisblack", metadata=None)
    store = Store([(sample, 1)], config_of(classes=2), axes="ZYX")
    assert np.array_equal(store[0].image[..., 0], array[1])
    assert np.array_equal(store[0].labels, array[1])


def test_images_are_kept_while_they_fit_the_budget(samples: list[Sample]) -> None:
    pages = [(sample, 0) for sample in samples]
    sizes = [entry.image.nbytes + entry.labels.nbytes for entry in Store(pages, config_of())]
    store = Store(pages, config_of(), budget=sizes[0] + sizes[1])
    first = [store[index] for index in range(3)]
    assert [store[index] is first[index] for index in range(3)] == [True, True, False]
    assert [Store(pages, config_of(), budget=0)[0] is first[0] for _ in range(2)] == [False, False]


def test_places_are_some_pixels_of_each_class(tmp_path: Path) -> None:
    labels = np.full((60, 70), 255, np.uint8)
    labels[:30] = 0
    labels[40:42, 5:8] = 2
    sample = save(tmp_path, "x", labels, labels)
    places = Store([(sample, 0)], config_of(ignore=[255]))[0].places
    assert set(places) == {0, 2}
    assert places[2].tolist() == np.argwhere(labels == 2).tolist()
    assert len(places[0]) == PIXELS_KEPT
    assert all(labels[y, x] == 0 for y, x in places[0])
    assert places[0][:, 0].max() > 25  # spread over all of it


def test_grey_and_rgb_files_mix(tmp_path: Path) -> None:
    mask = np.ones((20, 20), np.uint8)
    grey = save(tmp_path, "grey", np.full((20, 20), 51, np.uint8), mask)
    color = save(tmp_path, "color", np.full((20, 20, 3), (51, 51, 51), np.uint8), mask, photometric="rgb")
    assert open_pages(grey, 3, None).pixels.shape == open_pages(color, 3, None).pixels.shape == (1, 20, 20, 3)
    assert open_pages(color, 1, None).pixels.shape == (1, 20, 20, 1)
    sampler = sampler_of([grey, color], config_of(channels=3, **PLAIN))
    for number in range(6):
        np.testing.assert_allclose(draw(sampler, number)[0], 0.2, atol=1e-6)


def test_images_and_masks_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[0, 0, 1] = 9
    sample = save(tmp_path, "color", image, np.full((8, 8), 7, np.uint8), photometric="rgb")
    with pytest.raises(ModelError, match=r"color\.tif: is a colour image, but the network was trained on grey ones"):
        open_pages(sample, 1, None)
    with pytest.raises(ModelError, match=r"color\.tif: has 3 channels, but the network takes 4\.$"):
        open_pages(sample, 4, None)
    with pytest.raises(DataError, match=r"color_mask\.tif: holds the value 7, but the 3 classes have"):
        Store([(sample, 0)], config_of(channels=3))[0]
    sample.target.unlink()
    with pytest.raises(DataError, match=r"color_mask\.tif: no such file"):
        Store([(sample, 0)], config_of(channels=3))[0]


def test_png_images_are_read_as_well(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (20, 21, 3), np.uint8), rng.integers(0, 2, (20, 21), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "b.png")
    entry = Store([(Sample("a", tmp_path / "a.png", tmp_path / "b.png"), 0)], config_of(channels=3))[0]
    assert np.array_equal(entry.image, image)
    assert np.array_equal(entry.labels, mask)
    assert entry.gain.tolist() == [np.float32(1 / 255)] * 3
