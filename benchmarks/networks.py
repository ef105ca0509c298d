"""Train every network on CamVid for the same minutes with the default recipe, and measure it on val.

    python benchmarks/networks.py                      all of them, 8 minutes each
    python benchmarks/networks.py unet fcn8s           some of them
    python benchmarks/networks.py --starts random encoder published
    python benchmarks/networks.py unet --trained       measures the run that is there again
    python benchmarks/networks.py --table              the tables of what was recorded

Each run is a command line as a user would type it, and has the machine to itself: what `pixelwise plan` chooses for the
network is what it gets. Its start is "random": the network of the plan, random weights; "encoder": on the encoder whose
published weights come with the installation, but with random weights; or "published": on that encoder with these
weights. Networks that have an encoder of their own only start at random. What was measured goes to
benchmarks/results/networks/NAME.json, for other starts than "random" to NAME-START.json.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

from real_data import DATA, RESULTS, ROOT, pixelwise

FOLDER = RESULTS / "networks"
MINUTES = 8
ENCODER = ("--set", "model.backbone=tf_efficientnet_lite0")
STARTS: dict[str, tuple[str, ...]] = {
    "random": (),
    "encoder": ENCODER,
    "published": (*ENCODER, "--set", "model.pretrained=true"),
}
IMAGES = 20  # predicted by the plain network, one after another, for images a second


def measure(name: str, start: str, minutes: float, runs: Path, trains: bool) -> dict:
    """Train unless the run is there, evaluate on val, time its prediction, record."""
    title = name if start == "random" else f"{name}-{start}"
    run, data = runs / f"camvid-{title}", str(DATA / "camvid")
    words = ("--model", name, *STARTS[start], "--minutes", f"{minutes:g}", "--seed", "0")
    if trains:
        pixelwise("train", data, "--out", str(run), *words, "--force")
    trained = json.loads((run / "complete").read_text(encoding="utf-8"))
    metrics = pixelwise("evaluate", str(run), data, "--split", "val")
    record = {
        "command": f"pixelwise train DATA/camvid --out RUN {' '.join(words)}",
        "name": name,
        "start": start,
        "minutes": trained["minutes"],
        "epochs": trained["epochs"],
        "mean_iou": metrics["mean_iou"],
        "classes": {row["name"]: row["iou"] for row in metrics["classes"]},
        **look(run),
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{title}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def look(run: Path) -> dict:
    """What the network is and how fast it labels images that are in memory, each prepared and written as a mask."""
    import pixelwise as pw
    from pixelwise.data.sets.folder import open_dataset
    from pixelwise.models.summary import summarize_network

    loaded = pw.load(run)
    samples = open_dataset(DATA / "camvid").split("val")[:IMAGES]
    images = [next(loaded.task.records(sample, loaded.config, None)).image for sample in samples]
    loaded.predict(images[0])  # prepares the engine
    begin = time.perf_counter()
    for image in images:
        loaded.predict(image)
    seconds = time.perf_counter() - begin
    model = loaded.config.model
    figures = summarize_network(model.name, loaded.network, loaded.config.data.channels).totals()
    return {
        "parameters": figures["parameters"],
        "multiply_adds": figures["multiply_adds"],
        "images_per_second": len(images) / seconds,
        "width": model.width,
        "backbone": model.backbone,
        "output_stride": model.output_stride,
        "scale": loaded.config.data.scale,
        "exact": loaded.network.geometry.exact,
    }


def table() -> str:
    """Two Markdown tables: the networks, and their classes."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    if not records:
        return f"nothing is recorded in {FOLDER.relative_to(ROOT)} yet"
    records.sort(key=lambda record: -record["mean_iou"])
    lines = [
        "| network | start | size | parameters, M | multiply-adds at 512 x 512, G | epochs | mean IoU on val | "
        "images a second | exact |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        what = f"{record['backbone']}, width {record['width']}" if record["backbone"] else f"width {record['width']}"
        what += f", output stride {record['output_stride']}" if record["output_stride"] else ""
        lines.append(
            f"| {record['name']} | {start_of(record)} | {what} "
            f"| {record['parameters'] / 1e6:.2f} | {record['multiply_adds'] / 1e9:.1f} | "
            f"{record['epochs']} | {record['mean_iou']:.4f} | {record['images_per_second']:.1f} | "
            f"{'yes' if record['exact'] else 'no'} |"
        )
    classes = list(records[0]["classes"])
    lines += ["", f"| network | start | {' | '.join(classes)} |", "|---|---|" + "---|" * len(classes)]
    for record in records:
        values = (record["classes"][name] for name in classes)
        cells = " | ".join("-" if iou is None else f"{iou:.3f}" for iou in values)
        lines.append(f"| {record['name']} | {start_of(record)} | {cells} |")
    return "\n".join(lines)


def start_of(record: dict) -> str:
    """The start of a run; records made before there were several do not name it."""
    return record.get("start", "random")


def main() -> None:
    from pixelwise.models import MODELS
    from pixelwise.models.checkpoint import settings_of

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="networks; default: all")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=["random"])
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--trained", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        for name, start in itertools.product(options.names or MODELS, options.starts):
            if start != "random" and "backbone" not in settings_of(name):
                print(f"{name}: has an encoder of its own, so it only starts at random", flush=True)
                continue
            print(json.dumps(measure(name, start, options.minutes, options.runs, not options.trained)), flush=True)
    print(table())


if __name__ == "__main__":
    main()
