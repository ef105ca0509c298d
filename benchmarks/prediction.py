"""Seamless prediction beside MONAI's sliding window, the whole image in PyTorch, and OpenVINO on the whole image.

    python benchmarks/prediction.py speed      U-Net width 32, depth 4, on one image: six ways
    python benchmarks/prediction.py memory     a large TIFF to a Zarr under --max-ram
    python benchmarks/prediction.py margins    networks of several margins on one RGB image under --max-ram; goes on
                                               where it was cut short
    python benchmarks/prediction.py files      many small images from PNG to PNG
    python benchmarks/prediction.py start      processor time of `pixelwise --help`

Ways are interleaved, their results compared, and then the medians of the rounds. Writes
benchmarks/results/prediction-*.json and prints the tables that docs/benchmarks.md holds.
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
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from pixelwise.core.config import make_config
from pixelwise.models import UNet
from pixelwise.models.checkpoint import save_model
from pixelwise.prediction.costs import Memory
from pixelwise.prediction.predictor import array_logits, predict
from pixelwise.prediction.runner import Runner, make_runner
from pixelwise.prediction.tiler import TileSize

RESULTS = Path(__file__).resolve().parent / "results"
GiB = 2**30


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def lively_unet(channels: int = 1, **form: Any) -> UNet:
    """A U-Net whose batch norm has figures of its own."""
    torch.manual_seed(0)
    network = UNet(channels, 2, **form)
    with torch.no_grad():
        network(torch.randn(4, channels, 128, 128))
    return network.eval()


def convolution_peak() -> float:
    """Operations a second of a large 3 x 3 convolution, compiled by OpenVINO: what the machine can do."""
    import openvino as ov

    layer = torch.nn.Conv2d(128, 128, 3, padding=1)
    example = torch.zeros(1, 128, 256, 256)
    compiled = ov.compile_model(
        ov.convert_model(layer, example_input=example), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    images = np.random.default_rng(0).normal(size=(1, 128, 256, 256)).astype(np.float32)
    times = [seconds(lambda: compiled(images)) for _ in range(8)]
    return 2 * 9 * 128 * 128 * 256 * 256 / min(times)


def speed(side: int, count: int) -> None:
    """One image, six ways; the table is printed and recorded after every way, so that a run may be cut short."""
    network = lively_unet(width=32, depth=4)
    image = np.random.default_rng(0).normal(size=(side, side, 1)).astype(np.float32)
    tensor = torch.from_numpy(image[..., 0])[None, None]
    with torch.inference_mode():
        expected = network(tensor)[0].numpy()
    with FlopCounterMode(display=False) as flops:
        network(torch.zeros(1, 1, 256, 256))
    operations = flops.get_total_flops() / 256**2 * side**2
    runner = make_runner(network, 1)
    ways = speed_ways(network, runner, image)
    told = {"peak_gflops": convolution_peak() / 1e9, "engine": runner.engine.name, "side": side}
    told["first_call_seconds"] = seconds(ways[SECOND_CALL])
    times: dict[str, list[float]] = {name: [] for name in ways}
    rows: dict[str, dict[str, float]] = {}
    for _ in range(count):
        for name, work in ways.items():
            begin = time.perf_counter()
            result = np.squeeze(work())
            times[name].append(time.perf_counter() - begin)
            difference = float(np.abs(result - expected).max() / np.abs(expected).max())
            assert difference < 1e-4 or name == PEERS["monai"], f"{name} differs from the whole image by {difference}"
            rows[name] = {"difference": difference, "rounds": len(times[name])}
            add_medians(rows, times, operations)
            record("speed", {**told, "ways": rows})
    print_speed(told, rows)


def speed_ways(network: UNet, runner: Runner, image: np.ndarray) -> dict[str, Callable[[], Any]]:
    """What is compared; each gives logits."""
    import openvino as ov
    from monai.inferers import sliding_window_inference

    side, tensor = len(image), torch.from_numpy(image[..., 0])[None, None]
    memory = Memory(16 * GiB, held=0)
    tilings = {name: runner.tiler.choose((side, side), tile, memory) for name, tile in TILES.items()}
    whole_network = ov.convert_model(network, example_input=tensor)
    whole_network.reshape([1, 1, side, side])
    compiled = ov.compile_model(whole_network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    engine = "auto" if side >= 2048 else runner.engine.name  # "auto" leaves smaller images to torch

    def eager() -> np.ndarray:
        with torch.inference_mode():
            return network(tensor)[0].numpy()

    def monai() -> np.ndarray:
        with torch.inference_mode():
            return sliding_window_inference(tensor, (512, 512), 4, network, overlap=0.5, mode="gaussian")[0].numpy()

    return {
        SECOND_CALL: lambda: predict(network, image, engine=engine, logits=True),
        **{name: (lambda tiling=tiling: array_logits(runner, image, tiling)) for name, tiling in tilings.items()},
        PEERS["openvino"]: lambda: compiled(tensor.numpy())[0],
        PEERS["eager"]: eager,
        PEERS["monai"]: monai,
    }


SECOND_CALL = "pw.predict, second call"
TILES: dict[str, TileSize] = {"tiles, auto": "auto", "tiles of 1024": 1024}
PEERS = {
    "openvino": "OpenVINO, whole image at once",
    "eager": "PyTorch eager, whole image",
    "monai": "MONAI sliding window, 512, overlap 0.5",
}


def add_medians(rows: dict[str, dict[str, float]], times: dict[str, list[float]], operations: float) -> None:
    """Seconds, speed, and how many times faster than its peers each way is, as far as they have run."""
    medians = {name: statistics.median(each) for name, each in times.items() if each}
    for name, row in rows.items():
        row |= {"seconds": medians[name], "gflops": operations / medians[name] / 1e9}
        row |= {
            f"times_faster_than_{other}": medians[peer] / medians[name]
            for other, peer in PEERS.items()
            if peer in medians
        }


def print_speed(told: dict[str, Any], rows: dict[str, dict[str, float]]) -> None:
    print(
        f"machine: {told['peak_gflops']:.0f} GFLOP/s in a large convolution; engine: {told['engine']}; "
        f"{told['side']} x {told['side']}; first call of pw.predict: {told['first_call_seconds']:.1f} s "
        "(bar of the second: 6 times MONAI)\n"
    )
    print(
        "| way | s | useful GFLOP/s | difference from the whole image | times OpenVINO whole | times eager whole "
        "| times MONAI |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        print(
            f"| {name} | {row['seconds']:.2f} | {row['gflops']:.0f} | {row['difference']:.1e} | "
            + " | ".join(f"{row[f'times_faster_than_{other}']:.2f}" for other in PEERS)
            + " |"
        )


def record(name: str, value: dict[str, Any]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"prediction-{name}.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_record(name: str) -> dict[str, Any]:
    """What was recorded before; nothing where there is none."""
    path = RESULTS / f"prediction-{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def make_run(folder: Path, channels: int = 1, **form: Any) -> UNet:
    """A run folder of a network with random weights, and the network: its speed is that of a trained one."""
    config = make_config(
        {
            "data": {
                "labels": "binary", "classes": ["background", "object"], "colors": [[0, 0, 0], [255, 200, 0]],
                "values": [0, 255], "ignore": [], "channels": channels, "scale": 1.0,
                "normalization": "fixed", "mean": [0.5] * channels, "std": [0.25] * channels,
            },
            "model": form,
            "train": {"patch": [256, 256], "batch": 1, "epochs": 1, "steps_per_epoch": 1, "rate": 1e-3},
            "augment": {}, "loss": {},
        },
        "benchmark",
    )  # fmt: skip
    folder.mkdir(parents=True)
    network = lively_unet(channels, **form)
    save_model(folder / "model.safetensors", network, config, {"epoch": 1, "mean_iou": 0.0})
    return network


def make_slide(path: Path, side: int, channels: int = 1) -> None:
    """A grey or RGB image of noise, written as a tiled BigTIFF by rows of tiles."""
    import tifffile

    rng = np.random.default_rng(0)
    form: tuple[int, ...] = () if channels == 1 else (channels,)
    blob = rng.integers(0, 256, (512, 512, *form), dtype=np.uint8)

    def tiles() -> Any:
        for number in range((side // 512) ** 2):
            yield np.roll(blob, number * 37, axis=number % 2)

    photometric = "rgb" if form else "minisblack"
    shape, tile = (side, side, *form), (512, 512)
    tifffile.imwrite(path, tiles(), shape=shape, dtype=np.uint8, tile=tile, bigtiff=True, photometric=photometric)


def command(*arguments: object) -> dict[str, Any]:
    words = [sys.executable, "-m", "pixelwise", *map(str, arguments), "--json", "--quiet"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr, flush=True)
    done.check_returncode()
    return json.loads(done.stdout)


def memory(side: int, folder: Path) -> None:
    """A large image under limits, and a small one for its speed."""
    run, rows = folder / "run", []
    make_run(run, width=4, depth=2)
    for length in (4096, side):
        make_slide(folder / f"{length}.tif", length)
    command("predict", run, folder / "4096.tif", "--out", folder / "warm", "--format", "zarr")  # compiles
    for length, limit in ((4096, "2GiB"), (side, "2GiB"), (side, "1GiB")):
        out = folder / f"out-{length}-{limit}"
        told = command("predict", run, folder / f"{length}.tif", "--out", out, "--format", "zarr", "--max-ram", limit)
        rows.append(
            {
                "side": length, "max_ram": limit, "peak_gib": told["peak_ram_bytes"] / GiB,
                "megapixels_per_second": told["megapixels_per_second"], "engine": told["engine"],
            }
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    print("| image | --max-ram | peak, GiB | megapixels a second | of that on 4,096 |\n|---|---|---|---|---|")
    for row in rows:
        share = row["megapixels_per_second"] / rows[0]["megapixels_per_second"]
        print(
            f"| {row['side']} x {row['side']} | {row['max_ram']} | {row['peak_gib']:.2f} | "
            f"{row['megapixels_per_second']:.1f} | {share:.2f} |"
        )
    record("memory", {"rows": rows})


LITE = "tf_efficientnet_lite0"
MARGINS: dict[str, dict[str, Any]] = {
    "default": {"width": 32, "depth": 4, "stem": 2, "residual": True},  # of `pixelwise plan` on a CPU
    **{
        f"lite0 depth {depth} width {width}": {"width": width, "backbone": LITE, "depth": depth}
        for depth in (2, 3, 4)
        for width in (16, 32)
    },
}
LIMITS = ("1GiB", "2GiB")


def margins(side: int, folder: Path) -> None:
    """What a margin costs: each network on one RGB image under each limit; what is recorded is not run again."""
    rows, image = read_record("margins"), folder / "image.tif"
    folder.mkdir(parents=True)
    make_slide(image, side, channels=3)
    for name, form in MARGINS.items():
        missing = [limit for limit in LIMITS if margin_key(name, side, limit) not in rows]
        if not missing:
            continue
        run = folder / name.replace(" ", "-")
        geometry = make_run(run, channels=3, **form).geometry
        for limit in missing:
            row = {"network": name, "side": side, "max_ram": limit}
            row |= {"stride": geometry.stride, "margin": geometry.margin, **margin_row(run, image, limit)}
            rows[margin_key(name, side, limit)] = row
            record("margins", rows)
            print(json.dumps(row), flush=True)
    print_margins(rows)


def margin_key(name: str, side: int, limit: str) -> str:
    return f"{name}, {side}, {limit}"


def margin_row(run: Path, image: Path, limit: str) -> dict[str, Any]:
    """Speed and memory of one prediction, whose export is not counted; or why it is refused."""
    out = run / f"out-{limit}"
    try:
        words = ("--format", "zarr", "--max-ram", limit, "--engine", "openvino")
        told = command("predict", run, image, "--out", out, *words)
    except subprocess.CalledProcessError as error:
        return {"refused": error.stderr.strip().splitlines()[-1]}
    return {
        "megapixels_per_second": told["megapixels_per_second"],
        "peak_gib": told["peak_ram_bytes"] / GiB,
        "engine": told["engine"],
    }


def print_margins(rows: dict[str, Any]) -> None:
    print("| network | stride | margin | image | --max-ram | megapixels a second | peak, GiB | engine |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows.values():
        told = f"refused: {row['refused']} | |" if "refused" in row else ""
        told = told or f"{row['megapixels_per_second']:.2f} | {row['peak_gib']:.2f} | {row['engine']}"
        print(
            f"| {row['network']} | {row['stride']} | {row['margin']} | {row['side']} x {row['side']} "
            f"| {row['max_ram']} | {told} |"
        )


FORMS: dict[str, dict[str, Any]] = {
    "wide": {"width": 32, "depth": 4},
    "default": {"width": 32, "depth": 4, "stem": 2, "residual": True},  # of `pixelwise plan` on a CPU
    "small": {"width": 8, "depth": 3},
}


def files(names: Sequence[str], count: int, times: int, folder: Path) -> None:
    """From PNG to PNG: the command's own seconds, and those of a plain loop over the same network."""
    from PIL import Image

    images = folder / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (256, 256), dtype=np.uint8)).save(images / f"{number:04}.png")
    rows = read_record("files")
    for name in names:
        rows[name] = {"count": count, **compare_files(FORMS[name], times, folder / name)}
    print(
        "| network | images | pixelwise, s | plain PyTorch loop, s | times faster | equal pixels, worst image |\n"
        "|---|---|---|---|---|---|"
    )
    for name, row in rows.items():
        print(
            f"| {name} | {row['count']} of 256 x 256 | {row['ours']:.2f} | {row['plain']:.2f} | {row['ratio']:.2f} "
            f"| {row['equal']:.5f} |"
        )
    record("files", rows)


def compare_files(form: dict[str, Any], times: int, folder: Path) -> dict[str, Any]:
    """Median seconds of both ways for one network, once their masks are equal."""
    from PIL import Image

    run, images, network = folder / "run", folder.parent / "images", lively_unet(**form)
    make_run(run, **form)

    def loop(out: Path) -> None:
        out.mkdir(exist_ok=True)
        for path in sorted(images.iterdir()):
            pixels = (np.asarray(Image.open(path), np.float32) / 255 - 0.5) / 0.25
            with torch.inference_mode():
                mask = network(torch.from_numpy(pixels)[None, None])[0].argmax(0).to(torch.uint8).numpy()
            Image.fromarray(mask).save(out / path.name)

    def ours() -> float:
        told = command("predict", run, images, "--out", folder / "ours")
        return len(told["outputs"]) * 256 * 256 / 1e6 / told["megapixels_per_second"]

    ours()  # compiles and keeps the network
    rows = []
    for _ in range(times):
        rows.append((ours(), seconds(lambda: loop(folder / "plain"))))
        print(f"{rows[-1][0]:.1f} s, plain loop {rows[-1][1]:.1f} s", file=sys.stderr, flush=True)
    equal = min(
        float((np.asarray(Image.open(path)) == np.asarray(Image.open(folder / "plain" / path.name))).mean())
        for path in sorted((folder / "ours").glob("*.png"))
    )
    assert equal > 0.999, f"masks differ: {equal}"
    return {
        "ours": statistics.median(a for a, _ in rows),
        "plain": statistics.median(b for _, b in rows),
        "ratio": statistics.median(b / a for a, b in rows),
        "equal": equal,
    }


def start(times: int) -> None:
    """Processor seconds of the command line before any command, the median of some starts."""
    spent = []
    for _ in range(times):
        before = os.times()
        subprocess.run([sys.executable, "-m", "pixelwise", "--help"], stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
    print(f"pixelwise --help: {statistics.median(spent):.2f} s of processor time (bar 0.4)")
    record("start", {"seconds": statistics.median(spent)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "memory", "margins", "files", "start"], nargs="+")
    parser.add_argument("--side", type=int, help="of the image: 2048 for speed, 32768 for memory, 8192 for margins")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=500, help="of files")
    parser.add_argument("--networks", nargs="+", choices=FORMS, default=list(FORMS), help="of files")
    parser.add_argument("--folder", type=Path, help="for temporary files; default: the system's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for what in options.what:
            if what == "speed":
                speed(options.side or 2048, options.rounds)
            if what == "memory":
                memory(options.side or 32768, Path(folder) / "memory")
            if what == "margins":
                margins(options.side or 8192, Path(folder) / "margins")
            if what == "start":
                start(options.rounds)
            if what == "files":
                files(options.networks, options.count, options.rounds, Path(folder) / "files")


if __name__ == "__main__":
    main()
