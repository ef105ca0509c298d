"""What sliding a classifier over an image costs beside its convolutional form, and beside a label for every pixel.

    python benchmarks/convolutionalize.py          (--rounds 3, --side 64)

Three classifiers, none of which pads, so that both ways give the same: `Patch`'s at each pixel and at its own step of
8 pixels, and torchvision's AlexNet without its padding. Windows go in by rows, as one batch each. Ways are interleaved
and the medians of the rounds compared, after their results are. Writes benchmarks/results/convolutionalize.json and
prints the table that docs/benchmarks.md holds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import alexnet

from pixelwise.models.segmentation.patch import PATCH, Patch, convolutionalize, slide

RESULTS = Path(__file__).resolve().parent / "results" / "convolutionalize.json"
UNPADDED_ALEXNET = 355  # pixels a side from which AlexNet's layers without padding still make 6 x 6


@dataclass(frozen=True)
class Case:
    """A classifier, the two ways of running it, and an image."""

    name: str
    images: Tensor
    stride: int  # pixels from one window to the next
    sliding: Callable[[], Tensor]
    convolutional: Callable[[], Tensor]


def lively_patch() -> Patch:
    """The default network with batch norm figures of its own."""
    torch.manual_seed(0)
    network = Patch(1, 2)
    with torch.no_grad():
        network(torch.randn(2, 1, 64, 64))
    return network.eval()


def every_pixel(side: int) -> Case:
    """A label for every pixel: zeros around the image, windows one pixel apart."""
    network = lively_patch()
    classifier, images, around = network.classifier, torch.randn(1, 1, side, side), PATCH // 2
    padded = F.pad(images, (around, around, around, around))
    name = "patch, 65 pixels, at every pixel"
    return Case(name, images, 1, lambda: slide(classifier, padded, PATCH), lambda: network(images))


def at_its_step(name: str, classifier: nn.Module, images: Tensor, patch: int, stride: int) -> Case:
    """Windows inside the image, as far apart as the classifier's layers step."""
    network = convolutionalize(classifier, patch)
    return Case(name, images, stride, lambda: slide(classifier, images, patch, stride), lambda: network(images))


def cases(side: int) -> list[Case]:
    torch.manual_seed(0)
    unpadded = alexnet().eval()
    for layer in unpadded.features:
        if isinstance(layer, nn.Conv2d):
            layer.padding = (0, 0)
    larger = UNPADDED_ALEXNET + 5 * 32
    return [
        every_pixel(side),
        at_its_step("patch, 65 pixels, 8 apart", lively_patch().classifier, torch.randn(1, 1, 257, 257), PATCH, 8),
        at_its_step(
            "AlexNet without padding, 355 pixels, 32 apart",
            unpadded,
            torch.randn(1, 3, larger, larger),
            UNPADDED_ALEXNET,
            32,
        ),
    ]


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def multiply_adds(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() // 2


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Compare the results, then the times."""
    expected, result = case.sliding(), case.convolutional()
    difference = float((result - expected).abs().max() / expected.abs().max())
    assert difference < 1e-5, f"{case.name}: the two ways differ by {difference}"
    times = [(seconds(case.sliding), seconds(case.convolutional)) for _ in range(rounds)]
    sliding, convolutional = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "classifier": case.name,
        "side": case.images.shape[-1],
        "windows": result.shape[-2] * result.shape[-1],
        "difference": difference,
        "sliding_seconds": sliding,
        "convolutional_seconds": convolutional,
        "times_faster": statistics.median(slow / fast for slow, fast in times),
        "times_fewer_multiply_adds": multiply_adds(case.sliding) / multiply_adds(case.convolutional),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=64, help="of the image that gets a label for every pixel")
    options = parser.parse_args()
    print(
        "| classifier | image | windows | sliding, s | convolutional, s | times faster | times fewer multiply-adds "
        "| difference |\n|---|---|---|---|---|---|---|---|"
    )
    rows = []
    with torch.inference_mode():
        for case in cases(options.side):
            row = measure(case, options.rounds)
            rows.append(row)
            print(
                f"| {row['classifier']} | {row['side']} x {row['side']} | {row['windows']} | "
                f"{row['sliding_seconds']:.2f} | {row['convolutional_seconds']:.3f} | {row['times_faster']:.0f} | "
                f"{row['times_fewer_multiply_adds']:.0f} | {row['difference']:.1e} |",
                flush=True,
            )
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
