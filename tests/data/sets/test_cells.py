import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

from pixelwise.core.errors import OutputError
from pixelwise.data.sets.cells import make_cells, write_cells

SEEDS = range(6)


def pictures() -> list[tuple[np.ndarray, np.ndarray]]:
    return [make_cells(np.random.default_rng(seed)) for seed in SEEDS]


@pytest.fixture(scope="module")
def made() -> list[tuple[np.ndarray, np.ndarray]]:
    return pictures()


def intersection_over_union(truth: np.ndarray, predicted: np.ndarray) -> float:
    return float((truth & predicted).sum() / (truth | predicted).sum())


def touching_pairs(instances: np.ndarray) -> set[tuple[int, int]]:
    beside = [(instances[:, :-1], instances[:, 1:]), (instances[:-1], instances[1:])]
    first = np.concatenate([a.ravel() for a, _ in beside])
    second = np.concatenate([b.ravel() for _, b in beside])
    meet = (first != second) & (first > 0) & (second > 0)
    return {(min(a, b), max(a, b)) for a, b in zip(first[meet].tolist(), second[meet].tolist(), strict=True)}


def test_types_and_ranges(made: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for image, instances in made:
        assert (image.shape, image.dtype) == ((256, 256), np.uint8)
        assert (instances.shape, instances.dtype) == ((256, 256), np.int32)
        assert image.max() == 255
        assert 0.001 < np.mean(image == 255) < 0.01  # the brightest spots saturate, no more


def test_as_many_cells_as_asked_each_connected(made: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for _, instances in made:
        assert np.array_equal(np.unique(instances), np.arange(41))
        for cell in range(1, 41):
            assert ndimage.label(instances == cell)[1] == 1
            assert np.count_nonzero(instances == cell) >= 50


def test_many_cells_touch_and_background_is_left(made: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for _, instances in made:
        assert len(touching_pairs(instances)) >= 10
        assert 0.2 < np.mean(instances > 0) < 0.6


def test_otsu_cannot_solve_it_but_every_cell_is_visible(made: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for image, instances in made:
        foreground = instances > 0
        assert intersection_over_union(foreground, image > threshold_otsu(image)) < 0.8
        # Brighter than the background around it by more than the noise of a mean over its pixels.
        for cell in range(1, instances.max() + 1):
            own = instances == cell
            around = ndimage.binary_dilation(own, iterations=25) & ~ndimage.binary_dilation(foreground, iterations=2)
            assert image[own].mean() > 1.25 * image[around].mean() + 1


def test_same_seed_same_picture_another_seed_another(made: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for (image, instances), (again, instances_again) in zip(made[:2], pictures()[:2], strict=True):
        assert np.array_equal(image, again)
        assert np.array_equal(instances, instances_again)
    assert not np.array_equal(made[0][1], made[1][1])


@pytest.mark.parametrize("size", [(1, 1), (20, 33), (90, 40)])
def test_a_full_slide_takes_no_more_cells(size: tuple[int, int]) -> None:
    image, instances = make_cells(np.random.default_rng(0), size, cells=60)
    assert image.shape == instances.shape == size
    assert np.array_equal(np.unique(instances[instances > 0]), np.arange(1, instances.max() + 1))
    assert instances.max() < 60


def test_no_cells_at_all() -> None:
    image, instances = make_cells(np.random.default_rng(0), (40, 40), cells=0)
    assert not instances.any()
    assert image.std() > 0  # noise


def test_written_set_has_the_layout_and_the_pictures(tmp_path: Path) -> None:
    write_cells(tmp_path, seed=4, counts={"train": 2, "val": 1}, size=96)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    assert names == sorted(
        ["dataset.toml"]
        + [f"train/{kind}/cell_{number:03}.png" for kind in ("images", "masks") for number in (0, 1)]
        + [f"val/{kind}/cell_002.png" for kind in ("images", "masks")]
    )
    settings = tomllib.loads((tmp_path / "dataset.toml").read_text())
    assert settings == {"classes": ["background", "cell"], "labels": "instances"}
    with Image.open(tmp_path / "train" / "images" / "cell_000.png") as image:
        assert (image.mode, image.size) == ("L", (96, 96))
    with Image.open(tmp_path / "train" / "masks" / "cell_000.png") as opened:
        mask = np.asarray(opened)
    assert (mask.dtype, mask.shape) == (np.uint16, (96, 96))
    assert np.array_equal(np.unique(mask), np.arange(mask.max() + 1))
    assert mask.max() >= 3


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_cells(tmp_path / name, seed, {"train": 2}, size=64)
    written = {
        name: [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.png"))] for name in ("a", "b", "c")
    }
    assert written["a"] == written["b"]
    assert written["a"] != written["c"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"cell_000\.png: cannot be written \("):
        write_cells(tmp_path / "file", 0, {"train": 1}, size=32)
