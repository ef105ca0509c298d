"""The main job on made-up images: cells, a training, a measurement, masks, a report."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pixelwise.api import load
from pixelwise.core.config import Overrides
from pixelwise.core.errors import OutputError
from pixelwise.data.sets.cells import write_cells
from pixelwise.engines import EngineChoice
from pixelwise.prediction.requests import OutputOptions
from pixelwise.prediction.stream import Listener
from pixelwise.tasks import TASKS
from pixelwise.training.callbacks import Callbacks
from pixelwise.training.loop import train

MINUTES = 1.5


def run_demo(out: Path, force: bool, callbacks: Callbacks, note: Callable[[str], None]) -> dict[str, Any]:
    """Make `out` with data/, run/ and masks/.

    Returns:
        Their paths, the report's, and the mean IoU on the test images.

    Raises:
        OutputError: the folder is there already (and `force` is not set), or cannot be written.
    """
    data, run, masks = out / "data", out / "run", out / "masks"
    _clear(out, force)
    note("making images of cells")
    write_cells(data, seed=0)
    settings: Overrides = {"": {"seed": 0}, "train": {"minutes": MINUTES}}
    train(TASKS["segment"], data, run, settings, callbacks=callbacks)
    note("measuring on images that the training has not seen")
    trained = load(run)
    metrics = trained.evaluate(data)
    predictor = trained.predictor(EngineChoice("torch", "auto"))
    options = OutputOptions(masks, overlay=True)
    trained.task.predict_files(predictor, [str(data / "test" / "images")], options, None, Listener())
    report = trained.folder.evaluation(metrics["split"]) / "report.html"
    return {
        "data": str(data), "run": str(run), "report": str(report), "masks": str(masks), "mean_iou": metrics["mean_iou"],
    }  # fmt: skip


def _clear(out: Path, force: bool) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        is_demo = (out / "data" / "dataset.toml").is_file()
        if not (force and is_demo):
            advice = "Use --force to replace it, or" if is_demo else "It does not look like a demo, so"
            raise OutputError(f"{out}: exists already. {advice} choose another folder with --out.")
        for part in ("data", "run", "masks"):
            shutil.rmtree(out / part, ignore_errors=True)
