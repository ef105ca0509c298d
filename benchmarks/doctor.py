"""How fast the doctor is, and what it finds in real sets whose masks were flipped or moved.

    python benchmarks/doctor.py speed [--pairs 1000] [--rounds 3] [--out doctor-speed.json]
    python benchmarks/doctor.py planted [--data ../shared/data] [--out doctor-planted.json]

speed: the whole command on made-up pairs of 256 x 256, nothing known beforehand, then once more. The bar is 10,000
pairs in a minute on 2 cores. What a command costs before it reads a file (Python, imports) is told apart, from a set of
ten pairs, since a larger set does not cost it again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pixelwise.data.files.readers import read_picture
from pixelwise.data.health.alignment import fit_of
from pixelwise.data.health.checks import USUAL_FIT
from pixelwise.data.masks.masks import MaskLabels
from pixelwise.data.sets.folder import open_dataset
from pixelwise.data.sets.pairs import Sample

SIDE = 256
PROJECTED = 10_000


def make(root: Path, pairs: int, seed: int = 0) -> Path:
    """RGB images of discs of three kinds with noise, and their classes."""
    rng = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number in range(pairs):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        for _ in range(12):
            centre = tuple(int(place) for place in rng.integers(0, SIDE, 2))
            cv2.circle(mask, centre, int(rng.integers(6, 20)), int(rng.integers(1, 4)), -1)
        level = 60 + 40 * mask[..., None] + rng.normal(0, 10, (SIDE, SIDE, 3))
        image = cv2.GaussianBlur(level, (3, 3), 0).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{number:05}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number:05}.png")
    return root


def seconds_of(data: Path, cache: Path) -> float:
    """Wall time of the command; what it finds out is kept in `cache`."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "pixelwise", "doctor", str(data), "--quiet"],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "LOCALAPPDATA": str(cache)},
        check=True,
    )
    return time.perf_counter() - start


PLANTED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as they are": lambda mask: mask,
    "top to bottom": lambda mask: mask[::-1],
    "moved": lambda mask: np.roll(mask, (mask.shape[0] // 12, mask.shape[1] // 10), (0, 1)),
}


def planted(options: argparse.Namespace) -> None:
    """How many masks of each set count as misaligned, as they are and as something was done to all of them."""
    rows = json.loads(options.out.read_text()) if options.out.exists() else {}
    print(f"{'set':<8}  {'pairs':>5}  " + "  ".join(f"{name:>13}" for name in PLANTED))
    for name in ("em", "nuclei", "camvid"):
        if name not in rows:
            samples = open_dataset(options.data / name).samples
            rows[name] = {"pairs": len(samples), **{way: flagged(samples, change) for way, change in PLANTED.items()}}
            options.out.write_text(json.dumps(rows, indent=2))
        print(f"{name:<8}  {rows[name]['pairs']:>5}  " + "  ".join(f"{rows[name][way]:>13}" for way in PLANTED))


def flagged(samples: Sequence[Sample], change: Callable[[np.ndarray], np.ndarray]) -> int:
    """The number of masks that the doctor would call misaligned, by its own rule for a whole set."""
    labels = MaskLabels()
    pairs = ((read_picture(one.image).pixels[0], labels.grid(labels.load(one, None))[0]) for one in samples)
    fits = [fit_of(image, np.ascontiguousarray(change(grid))) for image, grid in pairs]
    known = [fit for fit in fits if fit is not None]
    usual = float(np.median([fit.best for fit in known]))
    return sum(fit.is_clear and fit.best > USUAL_FIT * usual for fit in known)


def main() -> None:
    """What is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("speed", "planted"))
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.out = options.out or Path(f"doctor-{options.what}.json")
    {"speed": speed, "planted": planted}[options.what](options)


def speed(options: argparse.Namespace) -> None:
    """A row for each round, written as it comes, and the medians."""
    rows = json.loads(options.out.read_text()) if options.out.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        few, many = make(root / "few", 10), make(root / "many", options.pairs)
        print(f"{'round':>5}  {'10 pairs':>8}  {f'{options.pairs} pairs':>11}  {'again':>6}  {'pairs/s':>7}")
        for number in range(len(rows), options.rounds):
            cache = root / f"cache{number}"
            start, first, again = (seconds_of(data, cache) for data in (few, many, many))
            rate = (options.pairs - 10) / (first - start)
            rows.append({"pairs": options.pairs, "start": start, "first": first, "again": again, "rate": rate})
            options.out.write_text(json.dumps(rows, indent=2))
            print(f"{number + 1:>5}  {start:>7.1f}s  {first:>10.1f}s  {again:>5.1f}s  {rate:>7.0f}")
    rate = statistics.median(row["rate"] for row in rows)
    start = statistics.median(row["start"] for row in rows)
    print(f"median: {rate:.0f} pairs a second; {PROJECTED:,} pairs would take {start + PROJECTED / rate:.0f} s")


if __name__ == "__main__":
    main()
