"""What the default network costs beside the peer's: a training step and a prediction, interleaved in one run.

    python benchmarks/run.py          (make bench)

The peer is segmentation_models.pytorch's U-Net with a ResNet-34 encoder, as its README uses it: float32, PyTorch's
default layout. Figures are medians of pairs; only the ratio means anything, because machines are shared and noisy.
Writes benchmarks/results/speed.json and prints the table that docs/benchmarks.md holds.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from lightning_fabric import Fabric
from torch import nn

from pixelwise.core.config import Config, make_config
from pixelwise.data.sets.sampling import Batch
from pixelwise.engines.machine import Machine
from pixelwise.losses import SegmentationLoss
from pixelwise.models import UNet
from pixelwise.prediction.predictor import predict
from pixelwise.training.step import Learner

RESULTS = Path(__file__).resolve().parent / "results" / "speed.json"
BATCH, SIDE, PAIRS = 8, 256, 7
IMAGE = 1024


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def compare(ours: Callable[[], object], peer: Callable[[], object]) -> dict[str, float]:
    """Medians of both, and of the ratio pair by pair, after one warm-up of each."""
    ours(), peer()
    pairs = [(seconds(ours), seconds(peer)) for _ in range(PAIRS)]
    return {
        "ours_seconds": statistics.median(a for a, _ in pairs),
        "peer_seconds": statistics.median(b for _, b in pairs),
        "times_faster": statistics.median(b / a for a, b in pairs),
    }


def our_network() -> nn.Module:
    return UNet(1, 2, width=32, depth=4, stem=2, residual=True).to(memory_format=torch.channels_last)


def peer_network() -> nn.Module:
    return smp.Unet("resnet34", encoder_weights=None, in_channels=1, classes=2)


def config_of_step() -> Config:
    """Settings with those of a step; the others do not matter."""
    data = {
        "labels": "binary", "classes": ["background", "object"], "colors": [[0, 0, 0], [255, 0, 0]], "values": [0, 1],
        "ignore": [], "channels": 1, "scale": 1.0, "normalization": "fixed", "mean": [0.0], "std": [1.0],
    }  # fmt: skip
    train = {"patch": SIDE, "batch": BATCH, "epochs": 1, "steps_per_epoch": 1, "rate": 1e-3}
    return make_config({"data": data, "model": {}, "train": train, "augment": {}, "loss": {}})


def plain_loss(outputs: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The peer's loss, so that both train on the same thing."""
    return {"loss": SegmentationLoss()(outputs["logits"], targets["labels"])}


def training() -> dict[str, float]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH, 1, SIDE, SIDE)).astype(np.float32)
    labels = rng.integers(0, 2, (BATCH, SIDE, SIDE)).astype(np.uint8)
    batch = Batch(images, {"labels": labels})
    precision = "bf16-mixed" if Machine.here("cpu").fast_bf16 else "32-true"
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    learner = Learner(fabric, config_of_step(), our_network(), plain_loss)
    peer = peer_network()
    adam = torch.optim.Adam(peer.parameters(), lr=1e-3)
    x, y, loss = torch.from_numpy(images), torch.from_numpy(labels).long(), SegmentationLoss()

    def peer_step() -> None:
        adam.zero_grad()
        loss(peer(x), y).backward()
        adam.step()

    return compare(lambda: learner.step(batch, 1), peer_step)


def prediction() -> dict[str, float]:
    image = np.random.default_rng(0).normal(size=(IMAGE, IMAGE)).astype(np.float32)
    network, peer = our_network().eval(), peer_network().eval()
    tensor = torch.from_numpy(image)[None, None]
    whole, tiled = predict(network, image, tile=None, logits=True), predict(network, image, tile=512, logits=True)
    difference = float(np.abs(whole - tiled).max() / np.abs(whole).max())
    assert difference < 1e-4, f"tiled and whole prediction differ by {difference}"

    def peer_predict() -> None:
        with torch.inference_mode():
            peer(tensor).argmax(1)

    return {**compare(lambda: predict(network, image, tile=None), peer_predict), "tiled_difference": difference}


def main() -> None:
    torch.manual_seed(0)
    rows = {
        f"training step, {BATCH} x {SIDE} x {SIDE} grey": training(),
        f"prediction, {IMAGE} x {IMAGE} grey, float32": prediction(),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print("| measure | pixelwise, s | smp U-Net ResNet-34, s | times faster |\n|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['ours_seconds']:.3f} | {row['peer_seconds']:.3f} | {row['times_faster']:.2f} |")


if __name__ == "__main__":
    main()
