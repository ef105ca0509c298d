"""Synthetic fluorescence micrographs of touching cells with known instances, for the demo and for tests.

A picture is made in the order of a microscope: cells settle on a slide and press against each other, a stain
binds to them, the lens blurs them and lights them unevenly, the camera counts photons and adds its own noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import cv2
import edt
import numpy as np
from PIL import Image

from pixelwise.core import files
from pixelwise.core.windows import Window

COUNTS: Mapping[str, int] = MappingProxyType({"train": 24, "val": 6, "test": 6})

ANGLES = 256  # at which an outline is tabulated
MEAN_RADIUS = 14.0  # pixels
ATTEMPTS = 60  # tries to place one cell before the slide counts as full


@dataclass(frozen=True)
class Outline:
    """A closed curve around a centre, given by a radius for each angle."""

    row: float
    column: float
    radii: np.ndarray  # ANGLES radii in pixels, from angle -pi upwards

    @cached_property
    def area(self) -> float:
        """The number of pixels inside."""
        return float(np.pi * np.mean(self.radii**2))

    def window(self, size: tuple[int, int]) -> Window:
        """The part of the image that can hold the outline."""
        reach = float(self.radii.max()) + 2
        ends = (self.row - reach, self.row + reach, self.column - reach, self.column + reach)
        return Window(*map(int, ends)).within(*size)

    def depth(self, window: Window) -> np.ndarray:
        """Distance from the centre, divided by the outline's radius there: below 1 is inside."""
        down = np.arange(window.y0, window.y1, dtype=np.float32)[:, None] - np.float32(self.row)
        across = np.arange(window.x0, window.x1, dtype=np.float32) - np.float32(self.column)
        turn = np.arctan2(down, across) * np.float32(ANGLES / (2 * np.pi)) + np.float32(ANGLES / 2)
        return np.asarray(np.hypot(down, across) / self.radii[turn.astype(np.int32) % ANGLES])


def make_cells(
    rng: np.random.Generator, size: tuple[int, int] = (256, 256), cells: int = 40
) -> tuple[np.ndarray, np.ndarray]:
    """Make a synthetic micrograph and its instances.

    Args:
        rng: source of all randomness; the same state gives the same picture.
        size: height and width in pixels.
        cells: how many cells to make; there are fewer if the slide is full before. 40 fill a third of 256 x 256.

    Returns:
        The image, H x W uint8, and the instances, H x W int32: 0 background, 1 to the number of cells. Each
        cell is one 4-connected region; many touch.

    >>> image, instances = make_cells(np.random.default_rng(0), (64, 64), cells=4)
    >>> image.shape, image.dtype.name, int(instances.max())
    ((64, 64), 'uint8', 4)
    """
    slide = Slide(size)
    for _ in range(cells):
        slide.settle(rng)
    instances = slide.connected()
    return _camera(rng, _lens(rng, _stain(rng, instances, slide.outlines))), instances


def write_cells(folder: Path, seed: int, counts: Mapping[str, int] = COUNTS, size: int = 256) -> None:
    """Write a data set of synthetic cells, ready for training.

    It contains `SPLIT/images/cell_000.png` (8 bits), `SPLIT/masks/cell_000.png` (instances, 16 bits) and
    `dataset.toml`; the numbers continue from split to split.

    Args:
        folder: where to write; it is made if it is missing.
        seed: the same seed gives the same bytes.
        counts: images of each split.
        size: height and width of an image in pixels.

    Raises:
        OutputError: a file cannot be written.
    """
    generators = iter(np.random.default_rng(seed).spawn(sum(counts.values())))
    number = 0
    for split, count in counts.items():
        for _ in range(count):
            rng = next(generators)
            cells = round(rng.integers(26, 48) * (size / 256) ** 2)
            image, instances = make_cells(rng, (size, size), cells)
            _write_png(folder / split / "images" / f"cell_{number:03}.png", image)
            _write_png(folder / split / "masks" / f"cell_{number:03}.png", instances.astype(np.uint16))
            number += 1
    files.write_text(folder / "dataset.toml", 'classes = ["background", "cell"]\nlabels = "instances"\n')


def _write_png(path: Path, array: np.ndarray) -> None:
    files.write_with(path, lambda temporary: Image.fromarray(array).save(temporary, format="PNG"))


# The slide: where the cells lie, and their shapes.


class Slide:
    """Cells that lie side by side; where two would overlap, a pixel goes to the one where it lies deeper."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.outlines: list[Outline] = []
        self.instances = np.zeros(size, dtype=np.int32)
        self.areas = np.zeros(1, dtype=np.int64)  # pixels left to each cell, by id
        self.depth = np.ones(size, dtype=np.float32)  # of each pixel in its own cell

    def settle(self, rng: np.random.Generator) -> None:
        """Add one cell where there is room, if a place for it is found."""
        for _ in range(ATTEMPTS):
            if self._press(_outline(rng, self._place(rng), MEAN_RADIUS * rng.lognormal(0, 0.25))):
                return

    def _place(self, rng: np.random.Generator) -> tuple[float, float]:
        """A centre, usually next to an existing cell, because cells divide and stick together."""
        if not self.outlines or rng.random() < 0.3:
            return rng.uniform(0, self.size[0]), rng.uniform(0, self.size[1])
        other = self.outlines[rng.integers(len(self.outlines))]
        angle, distance = rng.uniform(-np.pi, np.pi), MEAN_RADIUS * rng.uniform(1.4, 2.2)
        return other.row + distance * np.sin(angle), other.column + distance * np.cos(angle)

    def _press(self, outline: Outline) -> bool:
        """Add the cell, unless it, or one that it presses on, would lose too much of its area."""
        window = outline.window(self.size)
        depth = outline.depth(window)
        place = window.slices
        won = depth < self.depth[place]
        lost = np.bincount(self.instances[place][won], minlength=len(self.areas))
        left = self.areas - lost
        areas = np.array([other.area for other in self.outlines])
        if np.count_nonzero(won) < 0.7 * outline.area or np.any(left[1:] < 0.65 * areas):
            return False
        self.outlines.append(outline)
        self.areas = np.append(left, np.count_nonzero(won))
        self.instances[place][won] = len(self.outlines)
        self.depth[place][won] = depth[won]
        return True

    def connected(self) -> np.ndarray:
        """The instances, with only the largest connected part of each cell."""
        result = np.zeros_like(self.instances)
        for number, outline in enumerate(self.outlines, start=1):
            place = outline.window(self.size).slices
            own = (self.instances[place] == number).astype(np.uint8)
            _, parts, statistics, _ = cv2.connectedComponentsWithStats(own, connectivity=4)
            largest = 1 + np.argmax(statistics[1:, cv2.CC_STAT_AREA])
            result[place][parts == largest] = number
        return result


def _outline(rng: np.random.Generator, centre: tuple[float, float], radius: float, bumps: float = 0.07) -> Outline:
    """A random ellipse with a few smooth bumps; finer ones are flatter."""
    angles = np.linspace(-np.pi, np.pi, ANGLES, endpoint=False)
    stretch, turn = rng.uniform(1.0, 1.6), rng.uniform(0, np.pi)
    radii = radius / np.hypot(np.cos(angles - turn) / stretch**0.5, np.sin(angles - turn) * stretch**0.5)
    for wave in range(2, 8):
        radii *= 1 + rng.normal(0, 2 * bumps / wave) * np.cos(wave * angles + rng.uniform(0, 2 * np.pi))
    return Outline(*centre, radii.astype(np.float32))


# The stain: how much light each pixel would send to a perfect lens; a cell of average brightness sends about 1.


def _stain(rng: np.random.Generator, instances: np.ndarray, outlines: list[Outline]) -> np.ndarray:
    """Cells of very different brightness: thin at the rim, mottled, with a nucleus and granules."""
    brightness = np.concatenate([[0], np.clip(rng.lognormal(-0.2, 0.5, len(outlines)), 0.3, 2.5)])
    rim = edt.edt(instances, parallel=1)
    thickness = 0.2 + 0.8 * (1 - np.exp(-rim / rng.uniform(2.5, 4.5)))
    mottled = np.exp(0.22 * _smooth_noise(rng, instances.shape, 1.6) + 0.22 * _smooth_noise(rng, instances.shape, 5))
    light = thickness * mottled * _nuclei(rng, instances, outlines)
    light += _granules(rng, instances)
    return np.asarray(light * brightness.astype(np.float32)[instances], np.float32)


def _nuclei(rng: np.random.Generator, instances: np.ndarray, outlines: list[Outline]) -> np.ndarray:
    """A factor for the light: nuclei take up less of the stain than the rest of the cell, nucleoli more."""
    factor = np.ones(instances.shape, dtype=np.float32)
    uptake = rng.uniform(0.4, 0.7)
    for number, outline in enumerate(outlines, start=1):
        radius = float(outline.radii.mean())
        centre = _near(rng, (outline.row, outline.column), 0.12 * radius)
        nucleus = _outline(rng, centre, radius * rng.uniform(0.36, 0.48), bumps=0.03)
        _paint(factor, instances, number, nucleus, uptake * rng.uniform(0.85, 1.15))
        for _ in range(rng.integers(1, 4)):
            nucleolus = _outline(rng, _near(rng, centre, 0.16 * radius), 0.09 * radius)
            _paint(factor, instances, number, nucleolus, uptake * 1.7)
    return factor


def _near(rng: np.random.Generator, centre: tuple[float, float], sigma: float) -> tuple[float, float]:
    return centre[0] + rng.normal(0, sigma), centre[1] + rng.normal(0, sigma)


def _paint(target: np.ndarray, instances: np.ndarray, number: int, outline: Outline, value: float) -> None:
    window = outline.window(instances.shape)
    inside = (outline.depth(window) < 1) & (instances[window.slices] == number)
    target[window.slices][inside] = value


def _granules(rng: np.random.Generator, instances: np.ndarray) -> np.ndarray:
    """Bright points inside the cells, far more in some regions than in others."""
    density = 0.035 * np.exp(1.2 * _smooth_noise(rng, instances.shape, 8))
    return (rng.random(instances.shape) < density) * rng.gamma(2, 0.6, instances.shape)


def _smooth_noise(rng: np.random.Generator, size: tuple[int, ...], sigma: float) -> np.ndarray:
    """Gaussian noise of mean 0 and variance about 1, smooth over `sigma` pixels."""
    noise = rng.standard_normal(size, dtype=np.float32)
    averaged = min(2 * np.pi**0.5 * sigma, np.prod(size) ** 0.5)  # square root of the number of pixels in a mean
    return cv2.GaussianBlur(noise, (0, 0), sigma) * np.float32(averaged)


# The lens and the camera.


def _lens(rng: np.random.Generator, light: np.ndarray) -> np.ndarray:
    """Blur that varies from place to place, haze, specks of dirt, and light that falls off to one side."""
    sharp, soft = (cv2.GaussianBlur(light, (0, 0), sigma) for sigma in (0.8, rng.uniform(1.6, 2.4)))
    defocus = 1 / (1 + np.exp(-1.5 * _smooth_noise(rng, light.shape, 40)))
    haze = 0.12 * cv2.GaussianBlur(light, (0, 0), 12)
    medium = 0.12 * np.exp(0.25 * _smooth_noise(rng, light.shape, 30))
    seen = sharp + defocus * (soft - sharp) + haze + medium + _specks(rng, light.shape)
    return np.asarray(seen * _illumination(rng, light.shape))


def _specks(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Debris, out of focus: faint blobs that are not cells."""
    dirt = (rng.random(size) < 3e-4) * rng.gamma(1.5, 2.0, size)
    return cv2.GaussianBlur(dirt, (0, 0), rng.uniform(1.5, 2.5))


def _illumination(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Share of the light: bright near the middle, far less in the corners."""
    rows, columns = np.ogrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    down, across = rng.uniform(-0.5, 0.5, 2)
    return np.asarray(np.exp(-rng.uniform(0.15, 0.35) * ((rows - down) ** 2 + (columns - across) ** 2)))


def _camera(rng: np.random.Generator, light: np.ndarray) -> np.ndarray:
    """Count photons, add the camera's noise, and convert to 8 bits; the brightest spots saturate."""
    photons = rng.uniform(60, 140)
    counts = rng.poisson(light * photons) + rng.normal(0, 2.5, light.shape)
    offset, white = 8.0, np.quantile(counts, 0.997)
    return np.clip(offset + counts * ((250 - offset) / white), 0, 255).astype(np.uint8)
