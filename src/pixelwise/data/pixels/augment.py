"""Random changes of a training sample.

All of the geometry (crop, flip, turn, rotation, zoom, elastic deformation) is one map from the sample's pixels to the
image's, so that an image is resampled once: linearly, its labels by nearest neighbour through the same map.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from pixelwise.core.classes import IGNORE
from pixelwise.core.config import AugmentSettings

Size = tuple[int, int]
Maps = tuple[np.ndarray, np.ndarray]  # x, y

INVERSION_STEPS = 30  # each makes the error of a moved point several times smaller
LONGEST = 2**15 - 1  # pixels of a side from which on OpenCV refuses to warp


@dataclass(frozen=True)
class Pose:
    """A linear map from sample to image coordinates, 2 x 2 on (x, y), about the sample's and the crop's centres."""

    matrix: np.ndarray
    warped: bool = True  # False: only flips and turns, so that every pixel can keep its value

    def extent(self, size: Size) -> tuple[float, float]:
        """Half the height and width that a sample of this size covers in the image, pixels."""
        half = np.abs(self.matrix) @ np.array([size[1] / 2, size[0] / 2])
        return float(half[1]), float(half[0])


def draw_pose(rng: np.random.Generator, settings: AugmentSettings) -> Pose:
    """Draw flips and turn; with probability `warp` rotation, zoom and aspect ratio too."""
    warped = rng.random() < settings.warp
    strength = 1.0 if warped else 0.0
    angle = strength * np.deg2rad(rng.uniform(-settings.rotation, settings.rotation))
    if settings.turns:
        angle += np.pi / 2 * rng.integers(4)
    zoom = np.exp(strength * rng.uniform(-1, 1) * np.log1p(settings.scale))
    aspect = np.exp(strength * rng.uniform(-1, 1) * np.log1p(settings.aspect) / 2)
    flip_x = -1.0 if settings.flip_horizontal and rng.random() < 0.5 else 1.0
    flip_y = -1.0 if settings.flip_vertical and rng.random() < 0.5 else 1.0
    sine, cosine = (0.0, 1.0) if angle == 0 else (np.sin(angle), np.cos(angle))
    rotation = np.array([[cosine, -sine], [sine, cosine]])
    if not warped:
        rotation = rotation.round()  # the sine of a right angle is 1, not nearly 1
    return Pose(rotation @ np.diag([flip_x * zoom * aspect, flip_y * zoom / aspect]), warped)


def draw_map(
    rng: np.random.Generator, settings: AugmentSettings, pose: Pose, centre: tuple[float, float], size: Size
) -> Maps:
    """Image coordinates (x, y), each H x W float32, of every pixel of a sample of this size.

    A pose that is not warped lands on whole pixels: its samples are as sharp as the images that will be predicted,
    and their labels are not moved by a fraction of a pixel against them.

    Args:
        rng: draws the elastic deformation (Simard et al. 2003; a coarse grid as in Ronneberger et al. 2015).
        settings: how strong it is.
        pose: the linear part.
        centre: (y, x) in the image of the sample's centre.
        size: H, W of the sample.
    """
    height, width = size
    x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    matrix = pose.matrix
    map_x = matrix[0, 0] * x + matrix[0, 1] * y
    map_y = matrix[1, 0] * x + matrix[1, 1] * y
    if not pose.warped:
        return _whole(map_x, centre[1]), _whole(map_y, centre[0])
    map_x, map_y = map_x + centre[1], map_y + centre[0]
    if settings.elastic and rng.random() < settings.elastic_probability:
        map_x += _displacement(rng, settings, size)
        map_y += _displacement(rng, settings, size)
    return map_x.astype(np.float32), map_y.astype(np.float32)


def _whole(offsets: np.ndarray, centre: float) -> np.ndarray:
    """Offsets moved to about `centre`, such that they are whole numbers."""
    moved: np.ndarray = offsets + round(centre + offsets.flat[0]) - offsets.flat[0]
    return moved.astype(np.float32)


def _displacement(rng: np.random.Generator, settings: AugmentSettings, size: Size) -> np.ndarray:
    points = tuple(max(3, round(length / settings.elastic_spacing)) for length in size)
    grid = rng.normal(0, settings.elastic, points).astype(np.float32)
    return cv2.resize(grid, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)


def warp_image(image: np.ndarray, maps: Maps) -> np.ndarray:
    """Resample H x W x C linearly at the map's coordinates; beyond the border the image is mirrored."""
    wide = image if image.dtype in (np.uint8, np.uint16, np.float32) else image.astype(np.float32)
    chunks = [  # OpenCV takes at most four channels at once
        _remap(wide[..., c : c + 4], maps, cv2.INTER_LINEAR, cv2.BORDER_REFLECT_101) for c in range(0, wide.shape[2], 4)
    ]
    return np.concatenate([chunk.reshape(*maps[0].shape, -1) for chunk in chunks], axis=2)


def warp_labels(labels: np.ndarray, maps: Maps) -> np.ndarray:
    """Resample H x W labels by nearest neighbour; beyond the border nothing is known, so it is `IGNORE`."""
    return _remap(labels, maps, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT)


def warp_weights(weights: np.ndarray, maps: Maps) -> np.ndarray:
    """Resample H x W float32 weights linearly; beyond the border they do not matter."""
    return _remap(weights, maps, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)


def move_points(points: np.ndarray, maps: Maps) -> np.ndarray:
    """Where points of the image lie in a sample.

    The maps lead from the sample to the image, so they are inverted: by their mean linear part first, then by steps
    that make up for what the elastic deformation adds. A point outside of the sample is placed as if the deformation of
    the sample's border went on.

    Args:
        points: P x 2, (x, y) in pixels of the image; 0 is the centre of the first pixel.
        maps: of `draw_map`.

    Returns:
        P x 2 float64, (x, y) in pixels of the sample.

    >>> flipped = np.array([[3, 2, 1, 0]], np.float32), np.zeros((1, 4), np.float32)
    >>> move_points(np.array([[0.0, 0.0]]), flipped).round(6).tolist()
    [[3.0, 0.0]]
    """
    columns, rows = _linear_part(maps)
    inverse = np.linalg.pinv(np.stack([columns, rows], axis=1))
    centre = np.array([maps[0].shape[1] - 1, maps[0].shape[0] - 1]) / 2
    middle = np.array([float(maps[0].mean()), float(maps[1].mean())])
    found: np.ndarray = centre + (points - middle) @ inverse.T
    for _ in range(INVERSION_STEPS):
        inside = found.clip(0, 2 * centre)
        reached = np.stack([_at(axis, inside) for axis in maps], axis=1) + (found - inside) @ np.stack([columns, rows])
        found = found + (points - reached) @ inverse.T
    return found


def move_boxes(boxes: np.ndarray, maps: Maps) -> np.ndarray:
    """The upright boxes around what boxes of the image become in a sample.

    Args:
        boxes: B x 4, x0, y0, x1, y1 in pixels of the image, half-open: 0 is the first pixel's edge.
        maps: of `draw_map`.

    Returns:
        B x 4 float64 in pixels of the sample, not clipped to it.
    """
    x0, y0, x1, y1 = boxes.T
    corners = np.stack([x0, y0, x1, y0, x1, y1, x0, y1], axis=1).reshape(-1, 2) - 0.5  # edges to centres
    moved = move_points(corners, maps).reshape(-1, 4, 2) + 0.5
    return np.concatenate([moved.min(1), moved.max(1)], axis=1)


def _linear_part(maps: Maps) -> tuple[np.ndarray, np.ndarray]:
    """How far a step along a row and one along a column lead in the image, on average: (x, y) each."""
    steps = []
    for axis in (1, 0):
        length = maps[0].shape[axis]
        ends = [np.take(values, [0, length - 1], axis=axis).mean(1 - axis) for values in maps]
        steps.append(np.array([(last - first) / max(length - 1, 1) for first, last in ends]))
    return steps[0], steps[1]


def _at(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values of a map between its pixels, at P x 2 places (x, y) inside of it."""
    return np.asarray(ndimage.map_coordinates(values.astype(np.float64), places[:, ::-1].T, order=1, mode="nearest"))


def _remap(array: np.ndarray, maps: Maps, interpolation: int, border: int) -> np.ndarray:
    """`cv2.remap`; of an image longer than it takes, the part that the map needs. A constant border is `IGNORE`."""
    map_x, map_y = maps
    if max(array.shape[:2]) >= LONGEST:
        rows, columns = _needed(map_y, array.shape[0]), _needed(map_x, array.shape[1])
        array, map_x, map_y = array[rows, columns], map_x - columns.start, map_y - rows.start
    return cv2.remap(np.ascontiguousarray(array), map_x, map_y, interpolation, borderMode=border, borderValue=IGNORE)


def _needed(coordinates: np.ndarray, length: int) -> slice:
    """What an axis of that length gives to coordinates, with what its ends mirror."""
    low, high, last = float(coordinates.min()), float(coordinates.max()), length - 1
    start, stop = math.floor(min(low, 2 * last - high)) - 1, math.ceil(max(high, -low)) + 2
    return slice(min(max(start, 0), last), max(min(stop, length), 1))


def change_intensities(rng: np.random.Generator, settings: AugmentSettings, image: np.ndarray) -> np.ndarray:
    """Brightness, contrast, noise and blur on a normalised H x W x C float32 image.

    The noise is drawn after the blur, as a camera does.
    """
    channels = image.shape[2] if rng.random() < settings.color else 1
    if settings.contrast or settings.brightness:
        gain = np.exp(rng.uniform(-1, 1, channels) * np.log1p(settings.contrast)).astype(np.float32)
        offset = rng.uniform(-settings.brightness, settings.brightness, channels).astype(np.float32)
        image = image * gain + offset
    if settings.blur and rng.random() < settings.blur_probability:
        sigma = rng.uniform(0.25, 1.0) * settings.blur
        image = cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape)
    if settings.noise and rng.random() < settings.noise_probability:
        sigma = rng.uniform(0, settings.noise)
        image = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(sigma)
    return image
