"""What the start of an encoder is worth where labels are few: 2, 5 and 10 training images of three sets.

    python benchmarks/starts.py                     every set, number of images and start, 3 minutes each
    python benchmarks/starts.py --sets em --images 2 --starts random patches
    python benchmarks/starts.py --table             the table of what was recorded

The same network each time, as the plan takes it. "published" trains with the default settings, from the weights that
come with the installation; "random" from random weights (`model.pretrained=false`) for all of the time. The others
spend a third of the time on the encoder alone (`pixelwise pretrain`, from random weights), then follow the lectures'
regime: the decoder alone, then everything at a smaller rate.

The images are spread evenly over the train split, val is whole. What a run measured goes to benchmarks/results/starts/;
a row that is recorded there is not run again, unless with --again.
"""

import argparse
import json
import shutil
from pathlib import Path

from real_data import DATA, MINUTES, RESULTS, ROOT, pixelwise

FOLDER = RESULTS / "starts"
STARTS = ("published", "random", "patches", "rebuild", "stacked")
IMAGES = (2, 5, 10)
SCHEDULE = '[{parts = "decoder", share = 0.25, rate = 1.0}, {parts = "all", share = 0.75, rate = 0.5}]'
RANDOM = ("--set", "model.pretrained=false")


def few(name: str, count: int, folder: Path) -> Path:
    """A data set with some images of the train split, and all of val, as links."""
    data = folder / f"starts-{name}-{count}-data"
    shutil.rmtree(data, ignore_errors=True)
    for split in ("train", "val"):
        for part in ("images", "masks"):
            place = data / split / part
            place.mkdir(parents=True)
            paths = sorted((DATA / name / split / part).iterdir())
            for path in spread(paths, count) if split == "train" else paths:
                (place / path.name).symlink_to(path)
    shutil.copy(DATA / name / "dataset.toml", data)
    return data


def spread(paths: list[Path], count: int) -> list[Path]:
    """So many of them, evenly spread: a film's first images are all alike."""
    return [paths[(2 * index + 1) * len(paths) // (2 * count)] for index in range(count)]


def measure(name: str, count: int, start: str, minutes: float, runs: Path) -> dict:
    """Pretrain if the start says so, train, evaluate."""
    data, run = few(name, count, runs), runs / f"starts-{name}-{count}-{start}"
    arguments = ["train", str(data), "--out", str(run), "--force"]
    if start in ("published", "random"):
        arguments += ["--minutes", f"{minutes:g}"]
    else:
        encoder, third = run.with_name(f"{run.name}-encoder"), f"{minutes / 3:g}"
        pixelwise("pretrain", str(data), "--out", str(encoder), "--kind", start, "--minutes", third, *RANDOM, "--force")
        arguments += ["--init", str(encoder), "--set", f"train.schedule={SCHEDULE}"]
        arguments += ["--minutes", f"{2 * minutes / 3:g}"]
    trained = pixelwise(*arguments, *(() if start == "published" else RANDOM))
    metrics = pixelwise("evaluate", str(run), str(data), "--split", "val")
    return {
        "set": name,
        "images": count,
        "start": start,
        "minutes": minutes,
        "epochs": trained["epochs"],
        "mean_iou": metrics["mean_iou"],
    }


def record(row: tuple[str, int, str], minutes: float, runs: Path, again: bool) -> None:
    """Run a row unless it is recorded, and record it."""
    path = FOLDER / f"{'-'.join(map(str, row))}.json"
    if again or not path.exists():
        found = measure(*row, minutes, runs)
        FOLDER.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(found), flush=True)


def table() -> str:
    """Mean IoU by set, start and number of images."""
    paths = [path for name in MINUTES for path in FOLDER.glob(f"{name}-*.json")]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    figures = {(found["set"], found["start"], found["images"]): found["mean_iou"] for found in records}
    lines = [
        f"| set | start | {' | '.join(f'{count} images' for count in IMAGES)} |",
        "|---|---|" + "---|" * len(IMAGES),
    ]
    for name in MINUTES:
        for start in STARTS:
            known = (figures.get((name, start, count)) for count in IMAGES)
            lines.append(f"| {name} | {start} | {' | '.join('-' if iou is None else f'{iou:.4f}' for iou in known)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=MINUTES, default=list(MINUTES))
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES)
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS)
    parser.add_argument("--minutes", type=float, default=3.0, help="of each, the pretraining included")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--again", action="store_true", help="also rows that are recorded")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    rows = [(name, count, start) for name in options.sets for count in options.images for start in options.starts]
    for row in rows if not options.table else ():
        record(row, options.minutes, options.runs, options.again)
    print(table())


if __name__ == "__main__":
    main()
