"""Damaged files through every way of reading: only errors of our own may come, soon, and in little memory.

    python benchmarks/fuzz.py [--mutations 2000] [--seed 0] [--out fuzz.json]

Each kind of file is made small and sound, then damaged again and again: bits flipped, bytes cut out, doubled or
replaced, numbers made extreme, the end cut off. A kind runs in a process of its own, whose memory is measured.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from PIL import Image

from pixelwise.core.errors import PixelwiseError
from pixelwise.core.windows import Window
from pixelwise.data.files.readers import read_labels, read_picture
from pixelwise.data.files.sources import open_source

LONGEST = 10.0  # seconds of a reading
MOST_MEMORY = 2**30  # bytes beyond what the process holds at its start
SIDE = 48
EXTREMES = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)


def picture(channels: int = 1) -> np.ndarray:
    """Smooth, so that it compresses."""
    y, x = np.mgrid[:SIDE, :SIDE]
    planes = [(y * (number + 2) + x * 3) % 256 for number in range(channels)]
    return np.stack(planes, axis=2).astype(np.uint8).squeeze()


def make_png(path: Path) -> None:
    Image.fromarray(picture(3)).save(path, format="PNG")


def make_jpeg(path: Path) -> None:
    Image.fromarray(picture(3)).save(path, format="JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")


def make_tiled_tiff(path: Path) -> None:
    tags = [(42113, "s", 0, "-9999", True)]
    tifffile.imwrite(path, picture(4), photometric="rgb", extrasamples=["unassalpha"], tile=(16, 16),
                     compression="zlib", predictor=True, extratags=tags)  # fmt: skip


def make_ome_tiff(path: Path) -> None:
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.3, "PhysicalSizeY": 0.3, "PhysicalSizeZ": 1.0}
    stack = np.stack([picture()] * 3).astype(np.uint16)
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(stack, photometric="minisblack", metadata=metadata, compression="lzw")


def make_zarr(path: Path) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=3)
    group.create_array("0", data=picture(), chunks=(16, 16), dimension_names=["y", "x"])
    dataset = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1]}]}
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": [{"name": axis, "type": "space"} for axis in "yx"], "datasets": [dataset]}],
    }


KINDS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "PNG": ("a.png", make_png),
    "JPEG": ("a.jpg", make_jpeg),
    "tiled TIFF": ("a.tif", make_tiled_tiff),
    "OME-TIFF": ("a.ome.tif", make_ome_tiff),
    "Zarr": ("a.zarr", make_zarr),
}


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The content of a file with one to three faults."""
    content = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        if not content:
            break
        # Headers are short and decide most, so half of the faults hit the first part.
        room = len(content) if rng.random() < 0.5 else min(len(content), 256)
        place, length = int(rng.integers(room)), int(rng.integers(1, 17))
        fault = rng.choice(7, p=[0.2, 0.15, 0.05, 0.05, 0.2, 0.3, 0.05])
        if fault == 0:
            content[place] ^= 1 << int(rng.integers(8))
        elif fault == 1:
            content[place : place + length] = rng.bytes(length)
        elif fault == 2:
            del content[place : place + length]
        elif fault == 3:
            content[place:place] = content[place : place + length]
        elif fault == 4:
            number = int(rng.choice(EXTREMES))
            size = int(rng.choice([1, 2, 4]))
            content[place : place + size] = (number % 256**size).to_bytes(
                size, "little" if rng.random() < 0.5 else "big"
            )
        elif fault == 5:
            digits = [index for index, byte in enumerate(content) if 48 <= byte <= 57]
            if digits:
                content[int(rng.choice(digits))] = int(rng.integers(48, 58))
        else:
            del content[place:]
    return bytes(content)


def with_checksums(png: bytes) -> bytes:
    """A PNG whose chunks have the right checksums again, so that a reader looks at what is in them."""
    content, place = bytearray(png), 8
    while place + 12 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        if end + 4 > len(content):
            break
        content[end : end + 4] = zlib.crc32(content[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(content)


def read_windows(path: Path) -> None:
    """The first and the last window of an image."""
    with open_source(path) as source:
        height, width = min(source.height, 256), min(source.width, 256)
        first = Window(0, height, 0, width)
        source.read(0, first)
        source.read(source.pages - 1, first.moved(source.height - height, source.width - width))


WAYS: dict[str, Callable[[Path], object]] = {
    "picture": read_picture,
    "labels": read_labels,
    "source": read_windows,
}


def attempts(path: Path) -> list[tuple[str, str, float]]:
    """(way, what came of it, seconds) for each way of reading a file; "" where it is read after all."""
    found = []
    for way, read in WAYS.items():
        began = time.perf_counter()
        try:
            read(path)
            result = ""
        except PixelwiseError as error:
            result = type(error).__name__
        except Exception:
            result = traceback.format_exc()
        found.append((way, result, time.perf_counter() - began))
    return found


def mutate(folder: Path, kind: str, number: int, seed: int) -> Path:
    """Damaged file `number` of a kind, from the sound one that lies in the folder."""
    name, make = KINDS[kind]
    path, rng = folder / name, np.random.default_rng((seed, number))
    files = sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path]
    if not files[0].exists():
        make(path)
        files = sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path]
        for part in files:
            part.with_name(part.name + ".sound").write_bytes(part.read_bytes())
    sound = [part for part in files if not part.name.endswith(".sound")]
    for part in sound:
        part.write_bytes(part.with_name(part.name + ".sound").read_bytes())
    metadata = [part for part in sound if part.suffix == ".json"]
    chosen = metadata if metadata and rng.random() < 0.7 else sound
    victim = chosen[int(rng.integers(len(chosen)))]
    content = damaged(victim.read_bytes(), rng)
    victim.write_bytes(with_checksums(content) if kind == "PNG" and rng.random() < 0.7 else content)
    return path


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(kind: str, mutations: int, seed: int = 0) -> dict[str, Any]:
    """A row of the table."""
    results: Counter[str] = Counter()
    strange: list[dict[str, Any]] = []
    slowest, began = 0.0, peak_bytes()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(mutations):
            before, path = peak_bytes(), mutate(Path(folder), kind, number, seed)
            for way, result, seconds in attempts(path):
                results["read" if not result else "refused" if "\n" not in result else "strange"] += 1
                slowest = max(slowest, seconds)
                if "\n" in result or seconds > LONGEST:
                    strange.append({"mutation": number, "way": way, "result": result, "seconds": seconds})
            if peak_bytes() - max(before, began) > MOST_MEMORY / 2:
                strange.append({"mutation": number, "way": "all", "result": "memory", "bytes": peak_bytes() - before})
    return {
        "kind": kind,
        "mutations": mutations,
        **{name: results[name] for name in ("read", "refused", "strange")},
        "slowest_seconds": round(slowest, 3),
        "memory_bytes": peak_bytes() - began,
        "faults": strange,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    print(f"{'kind':<12}{'mutations':>10}{'read':>8}{'refused':>9}{'strange':>9}{'slowest s':>11}{'memory MiB':>12}")
    for kind in options.kind or KINDS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(fuzz, (kind, options.mutations, options.seed))
        rows.append(row)
        print(f"{kind:<12}{row['mutations']:>10}{row['read']:>8}{row['refused']:>9}{row['strange']:>9}"
              f"{row['slowest_seconds']:>11.2f}{row['memory_bytes'] / 2**20:>12.0f}", flush=True)  # fmt: skip
        for fault in row["faults"][:5]:
            print(json.dumps(fault)[:2000])
        if options.out:
            options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
