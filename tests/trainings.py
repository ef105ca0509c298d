"""Small trainings for tests."""

from pathlib import Path
from typing import Any

import pixelwise as pw
from pixelwise.core.config import Config, Overrides, make_config
from pixelwise.core.run_folder import RunFolder
from pixelwise.training.callbacks import Callbacks, StepReport
from pixelwise.training.loop import Result


def small(**train_settings: Any) -> Overrides:
    """Settings of a network that trains in a second."""
    return {
        "model": {"width": 4, "depth": 2, "dropout": 0.1, "stem": 1},
        "train": {"steps_per_epoch": 4, "batch": 2, "patch": [32, 32], "precision": "32-true", **train_settings},
    }


def train(data: Path, out: Path, overrides: Overrides | None = None, **options: Any) -> Result:
    """`pw.train` with the sections of settings as one dict."""
    return pw.train(data, out, **(overrides or {}), **options)


def state_file(run: Path) -> Path:
    """All that a resume needs."""
    return RunFolder(run).state


def model_file(run: Path) -> Path:
    """The best weights."""
    return RunFolder(run).model


class StopAt(Callbacks):
    """Ends a training as a kill would, after some steps: nothing is saved on the way out."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, report: StepReport) -> None:
        if report.step == self.step:
            raise KeyboardInterrupt


class Listener(Callbacks):
    """Remembers what it hears."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.lines: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def stepped(self, report: StepReport) -> None:
        self.losses.append(report.loss)
        self.rates.append(report.rate)

    def validated(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def note(self, text: str) -> None:
        self.notes.append(text)


def three_classes(
    train: dict[str, Any] | None = None, loss: dict[str, Any] | None = None, data: dict[str, Any] | None = None
) -> Config:
    """A config of three classes."""
    return make_config(
        {
            "data": {
                "labels": "index", "classes": ["a", "b", "c"], "colors": [[0, 0, 0], [9, 9, 9], [8, 8, 8]],
                "values": [], "ignore": [], "channels": 1, "scale": 1.0, "normalization": "fixed",
                "mean": [0.0], "std": [1.0], **(data or {}),
            },
            "model": {},
            "train": {"patch": [8, 8], "batch": 2, "epochs": 1, "steps_per_epoch": 2, "rate": 0.1, **(train or {})},
            "augment": {},
            "loss": loss or {},
        }
    )  # fmt: skip
