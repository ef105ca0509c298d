"""What a few minutes of training give on this machine's cores, ours beside the peer, one after the other.

    python benchmarks/few_minutes.py camvid nuclei em                  peer, ours and random, seed 0
    python benchmarks/few_minutes.py em --who ours --seeds 0 1 2       some of them
    python benchmarks/few_minutes.py few-steps --seeds 0 1 2           em at the cost of 400 steps of a plain U-Net
    python benchmarks/few_minutes.py step samples                      what a step costs, see training_cost.py
    python benchmarks/few_minutes.py --table                           the tables of what was recorded

"peer" is segmentation_models.pytorch on the same encoder with the same published weights (peer.py says how it trains);
"ours" is `pixelwise train` with its default settings, "random" the same with `model.pretrained=false`. Each is a
command that has the machine to itself. Both keep their best epoch by val and are measured on val: mean IoU pooled over
the split, void ignored.

"few-steps" trains ours in float32 on as many samples as cost the multiply-adds (of the forward pass) of 400 steps of
a U-Net of width 32 and depth 4 with a folded stem and shortcuts, on 8 patches of 256 x 256.

A row that is recorded in benchmarks/results/few-minutes/ is not run again, unless with --again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import torch
import training_cost
from real_data import DATA, MINUTES, RESULTS, ROOT, pixelwise
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

FOLDER = RESULTS / "few-minutes"
WHO = ("peer", "ours", "random")
RECIPES = {
    "camvid": ("--scale", "0.5", "--patch", "192", "256", "--upright"),
    "nuclei": ("--stretch", "--turn", "180"),
    "em": ("--grey",),
}
"""What the peer is told of a set."""

STEPS, BATCH, SIDE = 400, 8, 256
FLOAT32 = ("--set", "train.precision=32-true")


def train_peer(name: str, minutes: float, seed: int) -> dict:
    """One training of the peer, and what it measured."""
    command = [sys.executable, str(ROOT / "benchmarks" / "peer.py"), str(DATA / name), *RECIPES[name]]
    command += ["--minutes", f"{minutes:g}", "--seed", str(seed)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def train_ours(name: str, run: Path, seed: int, *arguments: str) -> dict:
    """One training of ours by the command line, evaluated on val."""
    data = str(DATA / name)
    trained = pixelwise("train", data, "--out", str(run), "--seed", str(seed), *arguments, "--force")
    metrics = pixelwise("evaluate", str(run), data, "--split", "val")
    history = (run / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "command": " ".join(["pixelwise train", f"DATA/{name} --out RUN --seed {seed}", *arguments]),
        "minutes": trained["minutes"],
        "steps": json.loads(history[-1])["step"],
        "epochs": trained["epochs"],
        "best_epoch": trained["best"]["epoch"],
        "mean_iou": metrics["mean_iou"],
        "pixel_accuracy": metrics["pixel_accuracy"],
        "classes": {row["name"]: row["iou"] for row in metrics["classes"]},
    }


def few_minutes(name: str, who: str, seed: int, minutes: float, runs: Path) -> dict:
    """One training of a set."""
    if who == "peer":
        return train_peer(name, minutes, seed)
    start = ("--set", "model.pretrained=false") if who == "random" else ()
    return train_ours(name, runs / f"few-minutes-{name}-{who}-{seed}", seed, "--minutes", f"{minutes:g}", *start)


def few_steps(seed: int, steps: int, runs: Path) -> dict:
    """Ours on em, at the cost of so many steps of a plain U-Net."""
    from pixelwise.core.config import make_config
    from pixelwise.models import UNet
    from pixelwise.tasks import task_of

    config = make_config(pixelwise("plan", str(DATA / "em"), *FLOAT32)["config"])
    budget = steps * BATCH * multiply_adds(UNet(1, 2, width=32, depth=4, stem=2, residual=True), 1, (SIDE, SIDE))
    network, train = task_of(config).network(config), config.train
    whole = budget / (train.batch * multiply_adds(network, config.data.channels, train.patch))
    epochs = max(1, round(whole / train.steps_per_epoch))
    length = ("--epochs", str(epochs), "--set", f"train.steps_per_epoch={max(1, round(whole / epochs))}")
    found = train_ours("em", runs / f"few-steps-{seed}", seed, *length, *FLOAT32)
    return {"share_of_cost": found["steps"] / whole, **found}


def multiply_adds(network: nn.Module, channels: int, size: tuple[int, int]) -> int:
    """Of the forward pass on one sample."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, channels, *size))
    return counter.get_total_flops() // 2


def machine() -> dict:
    """What of a machine decides how far a training gets in some minutes."""
    abilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    names = ("avx2", "avx512", "avx512_bf16", "amx_bf16")
    return {
        "cores": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "abilities": [name for name in names if abilities.get(name)],
        "torch": torch.__version__,
    }


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def records(pattern: str) -> list[dict]:
    return [read(path) for path in sorted(FOLDER.glob(pattern))]


def plan_rows(options: argparse.Namespace) -> dict[str, tuple]:
    """What is to be run: the name of a row's file -> its function and arguments."""
    rows: dict[str, tuple] = {}
    for name in options.rows:
        for seed in options.seeds if name not in training_cost.ROWS else ():
            if name == "few-steps":
                rows[f"few-steps-{options.steps}-{seed}"] = few_steps, seed, options.steps, options.runs
                continue
            minutes = options.minutes or MINUTES[name]
            for who in options.who:
                arguments = name, who, seed, minutes, options.runs
                rows[f"{name}-{minutes:g}min-{seed}-{who}"] = few_minutes, *arguments
        if name in training_cost.ROWS:
            for data in options.sets:
                rows[f"{name}-{data}"] = training_cost.measure, name, DATA / data, options.rounds
    return rows


def run(key: str, work: tuple, again: bool) -> None:
    """Run a row unless it is recorded, and record it."""
    path = FOLDER / f"{key}.json"
    if again or not path.exists():
        function, *arguments = work
        record = {"row": key, **function(*arguments), "machine": machine()}
        FOLDER.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(record), flush=True)


def table() -> str:
    """Markdown tables of what was recorded."""
    tables = [minutes_table(), steps_table(), training_cost.table(records("step-*.json") + records("samples-*.json"))]
    return "\n\n".join(text for text in tables if text) or f"nothing is recorded in {FOLDER.relative_to(ROOT)} yet"


def minutes_table() -> str:
    lines = ["| set | minutes | seed | who | steps | seconds | mean IoU | IoU of each class | machine |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for record in records("*min-*.json"):
        name, minutes, seed, who = record["row"].split("-")
        classes = ", ".join(f"{label} {iou:.3f}" for label, iou in record["classes"].items() if iou is not None)
        lines.append(
            f"| {name} | {minutes.removesuffix('min')} | {seed} | {who} | {record['steps']} "
            f"| {60 * record['minutes']:.0f} | {record['mean_iou']:.4f} | {classes} | {of_machine(record)} |"
        )
    return "\n".join(lines) if len(lines) > 2 else ""


def steps_table() -> str:
    found = records("few-steps-*.json")
    if not found:
        return ""
    lines = ["| row | steps | seconds | mean IoU | machine |", "|---|---|---|---|---|"]
    for record in found:
        lines.append(
            f"| {record['row']} | {record['steps']} | {60 * record['minutes']:.0f} | {record['mean_iou']:.4f} "
            f"| {of_machine(record)} |"
        )
    return "\n".join([*lines, "", f"mean of the rows: {fmean(record['mean_iou'] for record in found):.4f}"])


def of_machine(record: dict) -> str:
    found = record["machine"]
    return f"{found['cores']} cores, {' '.join(found['abilities']) or found['capability']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[[], *MINUTES, "few-steps", *training_cost.ROWS], metavar="row")
    parser.add_argument("--who", nargs="+", choices=WHO, default=WHO)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, help="instead of a set's own")
    parser.add_argument("--steps", type=int, default=STEPS, help="of few-steps")
    parser.add_argument("--sets", nargs="+", choices=MINUTES, default=["camvid"], help="of step and samples")
    parser.add_argument("--rounds", type=int, default=training_cost.ROUNDS, help="of step and samples")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--again", action="store_true", help="also rows that are recorded")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    for key, work in plan_rows(options).items() if not options.table else ():
        run(key, work, options.again)
    print(table())


if __name__ == "__main__":
    main()
