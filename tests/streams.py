"""Images, predictors and what came of them: shared by the tests of streaming."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
import zarr
from PIL import Image
from scipy import ndimage
from torch import nn

from networks import Brightness, make_settings
from pixelwise.data.files.readers import read_mask
from pixelwise.engines import Arrays
from pixelwise.models import UNet
from pixelwise.prediction.predictor import Predictor
from pixelwise.prediction.requests import OutputOptions
from pixelwise.prediction.stream import Outcome, predict_files


def bright(channels: int = 1, tile: Any = "auto", **data: Any) -> Predictor:
    return Predictor(Brightness(-1.0, 1.0), make_settings(channels, **data), engine="torch", tile=tile)


def noise(height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.squeeze()).save(path)
    return path


def save_stack(path: Path, pages: int, height: int = 30, width: int = 20) -> np.ndarray:
    stack = np.stack([noise(height, width, seed=page)[..., 0] for page in range(pages)])
    tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "ZYX"})
    return stack


def run(predictor: Predictor, inputs: list[Path | str], options: OutputOptions) -> Outcome:
    return predict_files(predictor, [str(path) for path in inputs], options)


class Spy:
    """An engine that notes what it is given, and calls `before` with how many windows there were."""

    def __init__(self, predictor: Predictor, before: Callable[[int], None] = lambda count: None) -> None:
        self._engine, self._before = predictor.runner.engine, before
        self.name, self.device, self.note = self._engine.name, self._engine.device, self._engine.note
        self.shapes: list[tuple[int, ...]] = []
        predictor.runner = replace(predictor.runner, engine=self)

    def __call__(self, images: np.ndarray) -> Arrays:
        if images.shape[2] < 700:  # and not the measurement of its speed
            self._before(sum(shape[0] for shape in self.shapes))
            self.shapes.append(images.shape)
        return self._engine(images)

    @property
    def windows(self) -> int:
        return sum(shape[0] for shape in self.shapes)


def make_network(**keywords: Any) -> UNet:
    torch.manual_seed(0)
    network = UNet(1, 2, width=3, depth=2, **keywords)
    network(torch.randn(4, 1, 60, 60))
    return network.eval()


def tiled(tile: Any = 32, network: nn.Module | None = None, limit: int | None = None, **data: Any) -> Predictor:
    network = make_network() if network is None else network
    return Predictor(network, make_settings(**data), engine="torch", tile=tile, limit=limit)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Spots, H x W uint8."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), 3)
    return (255 * (field - field.min()) / np.ptp(field)).astype(np.uint8)


def save_tiled(path: Path, image: np.ndarray, **keywords: Any) -> Path:
    tifffile.imwrite(path, image, tile=(64, 64), photometric="minisblack", **keywords)
    return path


def pixels_of(path: str | Path) -> np.ndarray:
    """A mask or probabilities, without the axis of a single page."""
    path = Path(path)
    return np.asarray(zarr.open_array(path / "0", mode="r")) if path.suffix == ".zarr" else tifffile.imread(path)


def mask_of(entry: dict[str, Any]) -> np.ndarray:
    return read_mask(Path(entry["mask"]))[0] if entry["mask"].endswith(".png") else pixels_of(entry["mask"])


def only(outcome: Outcome) -> dict[str, Any]:
    assert outcome.failed == []
    assert len(outcome.outputs) == 1
    return outcome.outputs[0]


def interrupted_after(count: int) -> Callable[[int], None]:
    def check(windows: int) -> None:
        if windows >= count:
            raise KeyboardInterrupt

    return check
