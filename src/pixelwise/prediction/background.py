"""Find the tiles that need not be predicted: those of a slide's empty background, and those outside of a region.

Both change the result, so they are off by default. Outside of a region nothing is predicted. A tile of empty
background becomes class 0 without a look by the network: if the network would have found something there (a false
alarm on bare glass, or an object fainter than the noise), the mask differs from that of a full prediction. All other
tiles stay the same.

The test decides once for an image, from statistics gathered in one streamed pass, so it does not depend on the order
of the tiles. It is meant for images with a background: bright glass, dark fluorescence, an empty conveyor belt.
A clear sky looks the same to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pixelwise.core.errors import DataError
from pixelwise.core.windows import Read, Window

GRAIN = 8  # pixels; side of the squares whose means are compared, to average out the noise of single pixels
_READ_SIDE = 1024  # pixels; approximate side of the windows that a thumbnail is made from
_SAMPLE = 2000  # cells; enough to fit a surface to
_ROUNDS = 6  # of a repeated fit, after which it no longer moves
_FEWEST_CELLS = 16  # of background, to determine its level
_SMALLEST_SHARE = 0.05  # of all cells; less background is not worth the risk
_DEVIATIONS = 6  # robust standard deviations beyond the median that background may reach


@dataclass(frozen=True)
class Thumbnail:
    """An image reduced to a coarse grid of cells, which does not lose sight of small things in a cell."""

    low: np.ndarray  # h x w x C float32: the lowest mean of a grain (`GRAIN` x `GRAIN` pixels) in the cell
    high: np.ndarray  # h x w x C float32: the highest
    noise: np.ndarray  # h x w x C float32: standard deviation of the pixels within a grain
    cell: int  # pixels; side of a cell, a multiple of `GRAIN`
    step: float  # the smallest difference between two pixels: 1 for whole numbers, else 0


def thumbnail(read: Read, height: int, width: int, side: int = 512) -> Thumbnail:
    """Reduce an image of any size to at most about `side` x `side` cells, window by window.

    Args:
        read: returns a window of the image, h x w or h x w x C, of any number type.
        height: pixels, at least 1.
        width: pixels, at least 1.
        side: the most cells along an axis; a cell is at least 2 x 2 grains. The thumbnail takes 12 C side^2 bytes.

    Raises:
        DataError: the image has no pixels, or `read` returns something other than the window.

    >>> thumbnail(lambda window: np.full((window.height, window.width), 7), 100, 40).low[..., 0].shape
    (7, 3)
    """
    if height < 1 or width < 1:
        raise DataError(f"an image of {height} x {width} pixels cannot contain any background.")
    cell = max(2, -(-max(height, width) // (side * GRAIN))) * GRAIN
    stride = max(1, _READ_SIDE // cell) * cell
    rows = []
    for y0 in range(0, height, stride):
        row = []
        for x0 in range(0, width, stride):
            window = Window(y0, y0 + stride, x0, x0 + stride).within(height, width)
            block = _require_shape(read(window), window, "image")
            row.append(_reduce(block, cell))
        rows.append(np.concatenate(row, axis=2))
    low, high, noise = np.concatenate(rows, axis=1)
    return Thumbnail(low, high, noise, cell, float(np.issubdtype(block.dtype, np.integer)))


def _require_shape(block: np.ndarray, window: Window, what: str) -> np.ndarray:
    if block.ndim not in (2, 3) or block.shape[:2] != (window.height, window.width):
        raise DataError(
            f"a window of the {what} has the shape {block.shape}; {window.height} x {window.width} pixels are expected."
        )
    return block


def _reduce(block: np.ndarray, cell: int) -> np.ndarray:
    """H x W (x C) pixels -> 3 x h x w x C: low, high and noise of each cell.

    A grain at the edge of the image is completed by mirroring, so that its mean is not noisier than others.
    """
    pixels = block.reshape(*block.shape[:2], -1).astype(np.float32)
    pixels = np.pad(pixels, (*((0, -size % GRAIN) for size in pixels.shape[:2]), (0, 0)), mode="symmetric")
    height, width, channels = pixels.shape
    grains = pixels.reshape(height // GRAIN, GRAIN, width // GRAIN, GRAIN, channels)
    means = grains.mean((1, 3))
    variances = grains.var((1, 3))
    starts = [np.arange(0, size, cell // GRAIN) for size in means.shape[:2]]
    count = _over_cells(np.add, np.ones(means.shape, np.float32), starts)
    return np.stack(
        [
            _over_cells(np.minimum, means, starts),
            _over_cells(np.maximum, means, starts),
            np.sqrt(_over_cells(np.add, variances, starts) / count),
        ]
    )


def _over_cells(function: np.ufunc, grains: np.ndarray, starts: list[np.ndarray]) -> np.ndarray:
    reduced: np.ndarray = function.reduceat(function.reduceat(grains, starts[0], axis=0), starts[1], axis=1)
    return reduced


def empty_tiles(image: Thumbnail, windows: Sequence[Window]) -> np.ndarray:
    """Tell which windows hold nothing but background: all cells that they touch are background, and their neighbours.

    The neighbours count because the rim of an object may reach into a window by a pixel, or fade out there.

    Args:
        image: the thumbnail of the image.
        windows: what the tiles read, including their margins. Parts outside of the image do not count.

    Returns:
        A bool for each window. In an empty image, all but a stray one are True; in an image without background, or too
        small to tell (below 16 cells), all are False.
    """
    busy = cv2.dilate((~background_cells(image)).astype(np.uint8), np.ones((3, 3), np.uint8))
    summed = np.pad(busy.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    corners = np.array(windows, np.int64).reshape(-1, 4)
    limits = np.repeat(busy.shape, 2)
    y0, _, x0, _ = np.clip(corners // image.cell, 0, limits).T
    _, y1, _, x1 = np.clip(-(-corners // image.cell), 0, limits).T
    return np.asarray(summed[y1, x1] - summed[y0, x1] - summed[y1, x0] + summed[y0, x0] == 0)


def background_cells(image: Thumbnail) -> np.ndarray:
    """Find the cells of a thumbnail that show nothing but background.

    1. Candidates are the flat cells: Otsu's threshold on the logarithm of the contrast between the grains of a cell.
    2. The level of the background, which uneven lighting bends, is a surface through the candidates (least absolute
       deviations). A cell is background if all of its grains, in every channel, are closer to the surface than the
       median of the background's cells plus six of their robust deviations. Surface and background are found in
       turns, like sky levels in astronomy (sigma clipping): first a surface of second order, too stiff to bend into
       large objects, then one of fourth order, which follows the light to within the noise.
    3. This counts as a background only if it is as even as noise or far more even than the image, if at least 1 cell in
       20 belongs to it, and if nearly all the rest is on one side of it: darker than glass, or brighter than the dark.
       Otherwise, none of the cells is background.

    Returns:
        h x w bool.

    Otsu 1979, "A threshold selection method from gray-level histograms"; Stetson 1987, "DAOPHOT".
    """
    middle = (image.low + image.high) / 2
    known = np.isfinite(image.low).all(2) & np.isfinite(image.high).all(2)
    background: np.ndarray = known & _flat_cells(np.where(known, (image.high - image.low).max(2), np.inf), image.step)
    for order in [2] * _ROUNDS + [4] * _ROUNDS:
        if background.sum() < max(_FEWEST_CELLS, _SMALLEST_SHARE * background.size):
            return np.zeros_like(background)
        surface = _fit_surface(middle, background, order)
        distance = np.maximum(image.high - surface, surface - image.low).max(2)
        background = known & (distance <= _tolerance(image, surface, distance[background]))
    side = np.sign((middle - surface).mean(2))[known & ~background]
    if _is_even(image, distance, background) and _is_one_sided(side, background.size):
        return background
    return np.zeros_like(background)


def _flat_cells(contrast: np.ndarray, step: float) -> np.ndarray:
    """Otsu's threshold on the logarithm, in 256 levels; differences that come from rounding do not count."""
    finite: np.ndarray = np.isfinite(contrast)
    positive = contrast[finite & (contrast > 0)]
    if not len(positive):
        return finite
    logarithm = np.log(np.where(finite, contrast, positive.max()) + max(step, 0.01 * np.median(positive)))
    lowest, highest = logarithm.min(), logarithm.max()
    if highest == lowest:
        return finite
    grey = ((logarithm - lowest) * (255 / (highest - lowest))).astype(np.uint8)
    threshold, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return np.asarray(finite & (grey <= threshold))


def _fit_surface(level: np.ndarray, chosen: np.ndarray, order: int) -> np.ndarray:
    """The polynomial of rows and columns with the least sum of absolute distances to the chosen cells.

    It is found by least squares with weights that are renewed from the distances.
    """
    y, x = (np.linspace(-1, 1, size) for size in chosen.shape)
    down, right = (axis.ravel() for axis in np.meshgrid(y, x, indexing="ij"))
    powers = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]
    terms = np.stack([down**i * right**j for i, j in powers], axis=1)
    sample = np.flatnonzero(chosen)
    sample = sample[:: -(-len(sample) // _SAMPLE)]
    surfaces = []
    for values in level.reshape(-1, level.shape[2]).T.astype(np.float64):
        weights = np.ones(len(sample))
        for _ in range(_ROUNDS):
            factors = np.linalg.lstsq(terms[sample] * weights[:, None], values[sample] * weights, rcond=None)[0]
            distance = abs(values[sample] - terms[sample] @ factors)
            weights = 1 / np.sqrt(np.maximum(distance, 0.05 * distance.mean() + 1e-12))
        surfaces.append((terms @ factors).reshape(chosen.shape))
    return np.stack(surfaces, axis=2)


def _tolerance(image: Thumbnail, surface: np.ndarray, distances: np.ndarray) -> float:
    """How far a grain of background may be from the surface; at least as far as rounding moves it."""
    median = np.median(distances)
    deviation = 1.4826 * np.median(abs(distances - median))
    return float(median + _DEVIATIONS * deviation + max(image.step / 2, 1e-5 * abs(surface).max()))


def _is_even(image: Thumbnail, distance: np.ndarray, background: np.ndarray) -> bool:
    """Whether the background is flat, and not just the calmer half of a texture.

    The grains of pure noise scatter by an eighth of what its pixels do; their extremes in a cell stay below half of it.
    The grains of a texture scatter as much as its pixels. A background that varies by less than a fortieth of the
    image's contrast, or by half a step of the numbers, is flat as well.
    """
    usual = float(np.median(distance[background]))
    noise = float(np.median(image.noise.max(2)[background]))
    contrast = float(np.nanmax(image.high) - np.nanmin(image.low))
    return usual <= max(0.5 * noise, contrast / 40, image.step / 2, 1e-6 * float(abs(image.high[background]).max()))


def _is_one_sided(side: np.ndarray, cells: int) -> bool:
    """Whether the rest is brighter than the background, or darker, except a twentieth of it or a few stray cells."""
    minority = min((side > 0).sum(), (side < 0).sum())
    return bool(minority <= max(0.05 * len(side), 0.005 * cells))


class RegionMask:
    """The part of an image to predict: the nonzero pixels of a mask, which may be smaller than the image.

    >>> from pixelwise.core.windows import reader
    >>> region = RegionMask(reader(np.array([[0, 1]])), (1, 2), height=2, width=4)
    >>> region.window(Window(0, 2, 1, 4)).tolist()
    [[False, True, True], [False, True, True]]
    """

    def __init__(self, read: Read, shape: tuple[int, int], height: int, width: int) -> None:
        """Make a region from a mask.

        Args:
            read: returns a window of the mask, h x w.
            shape: rows and columns of the mask: those of the image, or these divided by a whole number and rounded up
                or down.
            height: of the image, in pixels.
            width: of the image, in pixels.

        Raises:
            DataError: the sizes do not fit.
        """
        self._read = read
        self._shape = shape
        self._factor = _whole_factor(shape, (height, width))

    def window(self, window: Window) -> np.ndarray:
        """Whether each pixel of a non-empty window of the image belongs to the region: h x w bool.

        Raises:
            DataError: the mask has several channels, or another size than it should.
        """
        rows, columns = self._indices(window)
        part: np.ndarray = self._part(rows, columns)[rows - rows[0]]
        return part[:, columns - columns[0]]

    def touches(self, window: Window) -> bool:
        """Whether a window of the image contains a pixel of the region."""
        return bool(self._part(*self._indices(window)).any())

    def _indices(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """The mask's rows and columns for those of a window; if the size was rounded down, the last one is repeated."""
        height, width = self._shape
        rows = np.minimum(np.arange(window.y0, window.y1) // self._factor, height - 1)
        return rows, np.minimum(np.arange(window.x0, window.x1) // self._factor, width - 1)

    def _part(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        window = Window(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
        part = _require_shape(self._read(window), window, "region mask")
        if part.ndim != 2:
            raise DataError(
                f"the region mask has {part.shape[2]} channels, but must have one, whose nonzero pixels are predicted."
            )
        return np.asarray(part != 0)


def _whole_factor(small: tuple[int, int], large: tuple[int, int]) -> int:
    """The whole number by which `large` comes closest to `small` when divided."""
    pairs = list(zip(small, large, strict=True))
    fitting = [
        factor
        for factor in range(1, max(large) + 1)
        if all(size > 0 and size in (whole // factor, -(-whole // factor)) for size, whole in pairs)
    ]
    if not fitting:
        raise DataError(
            f"the region mask has {small[0]} x {small[1]} pixels, but the image has {large[0]} x {large[1]}. "
            "Give a mask of the image's size, or of that size divided by a whole number."
        )
    return min(fitting, key=lambda factor: sum(abs(size * factor - whole) for size, whole in pairs))
