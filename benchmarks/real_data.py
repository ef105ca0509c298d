"""Train with the default settings on the real data sets and measure on their val split.

    python benchmarks/real_data.py em --seed 0        one run: train, evaluate, record
    python benchmarks/real_data.py --table            print the table of what was recorded

Each run is a command line as a user would type it, and has the machine to itself. What it measured goes to
benchmarks/results/SET-SEED.json, and one picture of it to docs/pictures/.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = ROOT / "docs" / "pictures"
MINUTES = {"em": 10, "nuclei": 10, "camvid": 20}
BARS = {"em": 0.80, "nuclei": 0.82, "camvid": 0.58}


def pixelwise(*arguments: str) -> dict:
    """Run the command line and give its JSON."""
    command = [sys.executable, "-m", "pixelwise", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def measure(name: str, seed: int, runs: Path, minutes: float) -> dict:
    """Train, evaluate on val, record."""
    run = runs / f"{name}-{seed}"
    trained = pixelwise(
        "train", str(DATA / name), "--out", str(run), "--minutes", str(minutes), "--seed", str(seed), "--force"
    )
    metrics = pixelwise("evaluate", str(run), str(DATA / name), "--split", "val")
    record = {
        "command": f"pixelwise train DATA/{name} --out RUN --minutes {minutes:g} --seed {seed}",
        "set": name,
        "seed": seed,
        "minutes": trained["minutes"],
        "epochs": trained["epochs"],
        "mean_iou": metrics["mean_iou"],
        "pixel_accuracy": metrics["pixel_accuracy"],
        "classes": {row["name"]: row["iou"] for row in metrics["classes"]},
        "boundary_f": metrics.get("boundary_f"),
        "instances": metrics.get("instances", {}).get("0.50"),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}-{seed}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def picture(name: str, run: Path) -> None:
    """One val image, its truth and its prediction side by side, small."""
    import numpy as np
    from PIL import Image

    import pixelwise as pw
    from pixelwise.data.pixels.pictures import colorize, shrink, to_display
    from pixelwise.data.sets.folder import open_dataset

    loaded = pw.load(run)
    samples = open_dataset(DATA / name).split("val")
    record = next(loaded.task.records(samples[len(samples) // 2], loaded.config, None))
    panels = [
        to_display(record.image),
        colorize(record.truth.classes, loaded.classes),
        colorize(loaded.predict(record.image), loaded.classes),
    ]
    PICTURES.mkdir(parents=True, exist_ok=True)
    joined = np.concatenate([shrink(panel, 240) for panel in panels], axis=1)
    Image.fromarray(joined).quantize(64).save(PICTURES / f"{name}.png", optimize=True)


def table() -> str:
    """A Markdown table of everything recorded."""
    rows = ["| set | seed | minutes | epochs | mean IoU | bar | IoU of each class |", "|---|---|---|---|---|---|---|"]
    for path in sorted(path for name in MINUTES for path in RESULTS.glob(f"{name}-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        classes = ", ".join(f"{name} {iou:.3f}" for name, iou in record["classes"].items() if iou is not None)
        rows.append(
            f"| {record['set']} | {record['seed']} | {record['minutes']:.2f} | {record['epochs']} "
            f"| {record['mean_iou']:.4f} | {BARS[record['set']]:.2f} | {classes} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", choices=[[], *MINUTES], help="data sets to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    for name in options.sets:
        print(json.dumps(measure(name, options.seed, options.runs, options.minutes or MINUTES[name])), flush=True)
        if options.seed == 0:
            picture(name, options.runs / f"{name}-{options.seed}")
    print(table())


if __name__ == "__main__":
    main()
