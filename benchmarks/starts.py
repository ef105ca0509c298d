"""What the start of an encoder is worth where labels are few: `em` with 2, 5 and 20 training images.

    python benchmarks/starts.py                     every start and number of images, 3 minutes each
    python benchmarks/starts.py --images 2 --starts random patches
    python benchmarks/starts.py --table             the table of what was recorded

The same U-Net each time. "random" trains it from random weights for all of the time. The others spend a third of the
time on the encoder alone (`pixelwise pretrain`), then follow the lectures' regime: the decoder alone, then everything
at a smaller rate. What a run measured goes to benchmarks/results/starts/.
"""

import argparse
import json
from pathlib import Path

from real_data import DATA, RESULTS, ROOT, pixelwise

FOLDER = RESULTS / "starts"
STARTS = ("random", "patches", "rebuild", "stacked")
IMAGES = (2, 5, 20)
SCHEDULE = '[{parts = "decoder", share = 0.25, rate = 1.0}, {parts = "all", share = 0.75, rate = 0.5}]'


def few(count: int, folder: Path) -> Path:
    """A data set with the first images of the train split, and all of val, as links."""
    data = folder / f"em-{count}"
    for split, kept in (("train", count), ("val", None)):
        for part in ("images", "masks"):
            place = data / split / part
            place.mkdir(parents=True, exist_ok=True)
            for path in sorted((DATA / "em" / split / part).iterdir())[:kept]:
                if not (place / path.name).exists():
                    (place / path.name).symlink_to(path)
    (data / "dataset.toml").write_text((DATA / "em" / "dataset.toml").read_text(encoding="utf-8"), encoding="utf-8")
    return data


def measure(count: int, start: str, minutes: float, runs: Path) -> dict:
    """Pretrain unless the start is random, train, evaluate, record."""
    data, run = few(count, runs), runs / f"em-{count}-{start}"
    arguments = ["train", str(data), "--out", str(run), "--force"]
    if start == "random":
        arguments += ["--minutes", f"{minutes:g}"]
    else:
        encoder, third = runs / f"em-{count}-{start}-encoder", f"{minutes / 3:g}"
        pixelwise("pretrain", str(data), "--out", str(encoder), "--kind", start, "--minutes", third, "--force")
        arguments += ["--init", str(encoder), "--set", f"train.schedule={SCHEDULE}"]
        arguments += ["--minutes", f"{2 * minutes / 3:g}"]
    trained = pixelwise(*arguments)
    metrics = pixelwise("evaluate", str(run), str(data), "--split", "val")
    record = {
        "images": count,
        "start": start,
        "minutes": minutes,
        "epochs": trained["epochs"],
        "mean_iou": metrics["mean_iou"],
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{count}-{start}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def table() -> str:
    """Mean IoU by start and number of images."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.json")]
    figures = {(record["images"], record["start"]): f"{record['mean_iou']:.4f}" for record in records}
    lines = [f"| start | {' | '.join(f'{count} images' for count in IMAGES)} |", "|---|" + "---|" * len(IMAGES)]
    lines += [f"| {start} | {' | '.join(figures.get((n, start), '-') for n in IMAGES)} |" for start in STARTS]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES)
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS)
    parser.add_argument("--minutes", type=float, default=3.0, help="of each, the pretraining included")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        for count in options.images:
            for start in options.starts:
                print(json.dumps(measure(count, start, options.minutes, options.runs)), flush=True)
    print(table())


if __name__ == "__main__":
    main()
