"""The Python interface: `pw.train`, `pw.load`, `Run`."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from torch import nn
from typing_extensions import Unpack, override

from pixelwise.core.classes import ClassMap
from pixelwise.core.config import SECTIONS, TOP, Config, DataSettings, Overrides, check_names
from pixelwise.core.errors import DataError, SettingError, near
from pixelwise.core.files import write_json
from pixelwise.core.progress import Progress
from pixelwise.core.run_folder import RunFolder
from pixelwise.core.windows import Window
from pixelwise.data.files.sources import open_source
from pixelwise.data.health.examine import ImageFacts
from pixelwise.data.health.survey import survey
from pixelwise.data.masks.labels import LabelRule
from pixelwise.data.pixels.normalize import stretched, unlike_text, unlike_training
from pixelwise.data.sets.folder import DataSet, open_dataset
from pixelwise.engines import EngineChoice, ExportedEngine, choose_engine
from pixelwise.engines.exported import preparing
from pixelwise.engines.machine import pick_device
from pixelwise.evaluation.measure import evaluate
from pixelwise.geometry.reach import Geometry
from pixelwise.models import checkpoint
from pixelwise.prediction.inputs import count_pixels
from pixelwise.prediction.page import Page
from pixelwise.prediction.sizes import sizes_of
from pixelwise.prediction.tiler import TileSize
from pixelwise.task import Task
from pixelwise.tasks import choose_task, task_of

if TYPE_CHECKING:  # a training's libraries take seconds and memory, so they are imported when needed
    from pixelwise.training.loop import Result

ANYWHERE = EngineChoice(device="auto")
WORTH_PREPARING = 12_000_000  # pixels: from here on the fastest engine saves more time than it takes to prepare


@dataclass(frozen=True)
class Reading:
    """How a prediction reads images where it is not as the run did."""

    normalize: str = "run"  # "percentile": stretch each image by its own percentiles to the level of the training's
    nodata: float | None = None  # the value of pixels without data, in images whose files do not say

    def of(self, data: DataSettings) -> DataSettings:
        """The settings of a run's data with these in their place.

        Raises:
            SettingError: there is no such way, or the run does not know enough for it.
        """
        if self.normalize not in WAYS:
            raise SettingError(f"--normalize {self.normalize}: is not a way to normalise; {near(self.normalize, WAYS)}")
        chosen = stretched(data) if self.normalize == "percentile" else data
        return chosen if self.nodata is None else chosen.model_copy(update={"nodata": self.nodata})


class Ways(TypedDict, total=False):
    """How `Run.predict` reads an image, and what it gives.

    normalize: "run", or "percentile" to stretch the image by its own percentiles to the training's level.
    nodata: the value of pixels without data, where the file does not say; they become background.
    series: number of the image, from 0, in a file that holds several; by default the largest.
    label_values: give the values that the training masks hold (H x W x 3 where these are colours), not classes.
    """

    label_values: bool
    normalize: str
    nodata: float | None
    series: int | None


AS_THE_RUN = Reading()
WAYS = ("run", "percentile")


@dataclass(frozen=True)
class Run:
    """A trained network with all that it needs to label images.

    `tell` hears when something begins that takes long, such as the export for another engine.

    >>> Run  # run = pw.load("runs/cells"); mask = run.predict("image.png")
    <class 'pixelwise.api.Run'>
    """

    path: Path
    network: nn.Module
    config: Config
    facts: dict[str, Any]  # best epoch, its metric and value
    tell: Callable[[str], None] = field(default=lambda text: None, repr=False, compare=False)
    _predictors: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @override
    def __repr__(self) -> str:
        best = ""
        if "value" in self.facts:
            best = f", {self.facts['metric']} {self.facts['value']:.4f} on val (epoch {self.facts['epoch']})"
        return f"Run({str(self.path)!r}: {self.config.task}, {self.config.model.title()}{best})"

    @property
    def task(self) -> Task:
        """What it was trained for."""
        return task_of(self.config)

    @property
    def folder(self) -> RunFolder:
        """The names of its files."""
        return RunFolder(self.path)

    @property
    def classes(self) -> ClassMap:
        """Names and colours of the classes."""
        return ClassMap.of(self.config.data)

    def predictor(
        self,
        engine: EngineChoice = ANYWHERE,
        tile: TileSize = "auto",
        views: str = "none",
        limit: int | None = None,
        pixels: int | None = None,
        reading: Reading = AS_THE_RUN,
    ) -> Any:
        """The network with its preprocessing, on a device; the compiled network is kept beside the run.

        Args:
            engine: what runs the network; "auto" is a device too, the fastest.
            tile: side of a tile, see `pw.predict`.
            views: test-time augmentation: none, flips, turns.
            limit: bytes that the process may use; by default a share of what is free.
            pixels: how many there are to predict: for few of them "auto" takes an engine that is ready, because
                preparing another takes about ten seconds, once.
            reading: how images are read where it is not as the run did.
        """
        config = self.config.model_copy(update={"data": reading.of(self.config.data)})
        choice = replace(engine, device=pick_device(engine.device), cache=self.folder.compiled, tell=self.tell)
        if isinstance(getattr(self.network, "geometry", None), Geometry):
            choice = _ready(self, choice, limit, pixels)
        return self.task.predictor(self.network, config, choice, tile, views, limit)

    def predict(
        self,
        image: np.ndarray | str | Path,
        *,
        device: str = "auto",
        engine: str = "auto",
        tile: TileSize = "auto",
        views: str = "none",
        **how: Unpack[Ways],
    ) -> Any:
        """Label an image.

        Args:
            image: H x W or H x W x C of any type as it comes from a camera, or the path of an image file.
            device: auto, cpu, cuda, mps.
            engine: auto, torch, openvino, onnxruntime.
            tile: "auto", None for the whole image at once, or the side of a tile.
            views: test-time augmentation: none, flips, turns.
            how: how the image is read, see `Ways`.

        Returns:
            H x W class indices, uint8, or uint16 for more than 256 classes (P x H x W for a file of P > 1 pages), or
            what another task makes of an image.

        Raises:
            DataError, ModelError: the image cannot be used; the message says why.

        Warns:
            UnlikeTrainingWarning: the image lies far outside of the brightness of the training images.
        """
        pixels = image.shape[0] * image.shape[1] if isinstance(image, np.ndarray) and image.ndim > 1 else 0
        for key in how:
            if key not in Ways.__annotations__:
                raise SettingError(f"predict: there is no {key}; {near(key, Ways.__annotations__)}")
        reading = Reading(how.get("normalize", "run"), how.get("nodata"))
        choice = (device, engine, tile, views, pixels < WORTH_PREPARING, reading)
        if choice not in self._predictors:  # to make one hashes the weights, and may compile the network
            chosen = EngineChoice(engine, device)
            self._predictors[choice] = self.predictor(chosen, tile, views, pixels=pixels, reading=reading)
        result = self._predicted(self._predictors[choice], image, how.get("series"))
        return LabelRule.from_settings(self.config.data).to_values(result) if how.get("label_values") else result

    def _predicted(self, predictor: Any, image: np.ndarray | str | Path, series: int | None) -> Any:
        data = getattr(predictor, "config", self.config).data
        if isinstance(image, np.ndarray):
            if image.ndim not in (2, 3) or image.size == 0:
                raise DataError(f"the image has the shape {image.shape}; H x W or H x W x C is expected.")
            pixels = image[..., None] if image.ndim == 2 else image
            result = self.task.predict(predictor, pixels)
            _warn_if_unlike(Page.of_array(pixels, data), "the image", data)
            return result
        with open_source(Path(image), series=series) as source:
            whole, facts = Window.whole(source.height, source.width), source.facts
            results = []
            for number in range(source.pages):
                pixels = source.read(number, whole)
                results.append(self.task.predict(predictor, pixels, facts))
                if number == source.pages // 2:
                    _warn_if_unlike(Page.of_array(pixels, data, facts), str(image), data)
        return results[0] if len(results) == 1 else np.stack(results)

    def evaluate(
        self,
        data: str | Path,
        split: str | None = None,
        out: str | Path | None = None,
        *,
        device: str = "auto",
        allow: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Measure on a split of a data set; write metrics.json and report.html.

        Args:
            data: the folder of the data set; its labels mean what they meant in training, unless its dataset.toml names
                classes (they are the run's by name) or values to ignore.
            split: train, val or test; by default test, or val where there is no test.
            out: folder to write to; by default `evaluation-SPLIT` in the run.
            device: auto, cpu, cuda, mps.
            allow: codes of problems whose files are left out.
            progress: is called with (done, all).

        Returns:
            The content of metrics.json; `notes`, if any, say what a person should know.

        Raises:
            DataError: the split is empty, its files cannot be used, or a class occurs that the run does not have.
        """
        from pixelwise.report import Report, write_report

        task = self.task
        dataset = open_dataset(Path(data), self.config.data.folds, self.config.data.fold)
        reading = Reading(nodata=dataset.description.nodata)
        config = self.config.model_copy(update={"data": reading.of(self.config.data)})
        name = choose_split(dataset, split)
        carry = partial(task.labels.carried_over, task.meaning(config))
        sound = survey(dataset, task.labels, meaning=carry, allow=allow, splits=(name,))
        samples, config = sound.dataset.split(name), task.with_meaning(config, sound.meaning)
        notes = [*sound.told, *_unlike(sound.of(name), config.data)]
        folder = Path(out) if out else self.folder.evaluation(name)
        pixels = count_pixels([sample.image for sample in samples], WORTH_PREPARING)
        predictor = self.predictor(EngineChoice(device=device), pixels=pixels, reading=reading)
        if note := getattr(predictor, "note", ""):
            notes.append(note)
        metrics, cases = evaluate(task, predictor, config, samples, dataset.description.axes, progress)
        metrics["split"] = name
        if notes:
            metrics["notes"] = notes
        write_json(folder / "metrics.json", metrics)
        title = f"{self.path.resolve().name}: {Path(data).resolve().name}, split {name}"
        colors = self.classes.colors if "classes" in metrics else ()
        report = Report(title, task.figure, metrics, cases, colors, self.history(), _summary(self, metrics))
        write_report(folder / "report.html", report)
        return metrics

    def history(self) -> list[dict[str, Any]]:
        """The lines of history.jsonl; none if the run was copied without them."""
        return self.folder.read_history()


class UnlikeTrainingWarning(UserWarning):
    """An image lies far outside of the brightness of the training images."""


def _warn_if_unlike(page: Page, name: str, data: DataSettings) -> None:
    if data.normalization == "fixed" and data.levels is not None and unlike_training(*page.level(), data):
        warnings.warn(f"{name}: {unlike_text(*page.level(), data)}", UnlikeTrainingWarning, stacklevel=4)


def _unlike(facts: Sequence[ImageFacts], data: DataSettings) -> list[str]:
    """What to say of the images that `unlike_training` is true of, with the figures of the first."""
    unlike = [fact for fact in facts if unlike_training(fact.low, fact.high, data)]
    if not unlike:
        return []
    first = unlike[0]
    more = f" ({len(unlike) - 1} more images are like it)" if len(unlike) > 1 else ""
    return [f"{first.sample.image}: {unlike_text(first.low, first.high, data)}{more}"]


def _ready(run: Run, choice: EngineChoice, limit: int | None, pixels: int | None) -> EngineChoice:
    """The engine that serves so many pixels, its network exported where the memory is limited."""
    cache = run.folder.compiled
    is_cached = ExportedEngine.is_kept(run.network, cache, sizes_of(run.network, run.config.data.channels))
    if choice.name == "auto" and pixels is not None and pixels < WORTH_PREPARING and not is_cached:
        choice = replace(choice, name="torch")
    name = choose_engine(run.network, choice)
    if limit is not None and not is_cached and name != "torch":
        run.tell(preparing(name))
        _export_elsewhere(run.path, choice.name)
    return choice


def _export_elsewhere(path: Path, engine: str) -> None:
    """Export the network in a process of its own, whose memory is free again when it ends.

    If that fails, this process does it, or says why it cannot.
    """
    code = (
        "import sys; from pixelwise.api import EngineChoice, load; "
        "load(sys.argv[1]).predictor(EngineChoice(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, str(path), engine], capture_output=True, check=False)


def _summary(run: Run, metrics: dict[str, Any]) -> dict[str, str]:
    """What the report tells about the run, as text."""
    model, data, train = run.config.model, run.config.data, run.config.train
    parameters = sum(p.numel() for p in run.network.parameters())
    length = f"{train.minutes:g} minutes" if train.minutes else f"{train.epochs} epochs"
    best = f"{run.facts.get('epoch')}"
    if "value" in run.facts:
        best += f" ({run.task.figure.title} on val {run.facts['value']:.4f})"
    return {
        "Network": f"{model.title()}, {parameters:,} parameters",
        "Best epoch": best,
        "Training": f"{length}, batches of {train.batch} patches of {train.patch[0]} x {train.patch[1]}",
        "Images": f"{metrics['images']} measured, scale {data.scale:g}, normalisation {data.normalization}",
        "Labels": data.labels,
        "Seed": str(run.config.seed),
    }


def choose_split(dataset: DataSet, split: str | None) -> str:
    """The split to measure on: the named one, else test, else val.

    Raises:
        DataError: it is empty or missing.
    """
    if split is None:
        split = "test" if dataset.splits.get("test") or "test" in dataset.unlabelled else "val"
    dataset.split(split)
    return split


def load(path: str | Path) -> Run:
    """Open a run folder.

    Raises:
        RunError: it holds no weights, or they cannot be used.
    """
    folder = RunFolder(Path(path))
    network, config, facts = checkpoint.load_model(folder.model, lambda config: task_of(config).network(config))
    if "mean_iou" in facts:  # of a run made before tasks had names
        facts = {"epoch": facts["epoch"], "metric": "mean_iou", "value": facts["mean_iou"]}
    return Run(folder.path, network, config, facts)


def train(data: str | Path, out: str | Path, **settings: Any) -> "Result":
    """Train on a data set; `pw.load(out)` opens the result.

    Args:
        data: the folder of the data set.
        out: the run folder to make.
        settings: `task`, `minutes`, `epochs`, `seed`, `init`, `resume`, `force`, `allow`, `device`, `callbacks` as of
            the command line; sections of settings as dicts: `model={"width": 16}`, `train={"batch": 4}`.

    Raises:
        PixelwiseError: bad data or settings.
    """
    from pixelwise.training.loop import train as train_run
    from pixelwise.training.prepare import Start

    callbacks = settings.pop("callbacks", None)
    overrides, rest = _overrides(settings)
    start = Start(
        init=Path(rest["init"]) if rest.get("init") is not None else None,
        resume=rest.get("resume", False),
        force=rest.get("force", False),
        allow=tuple(rest.get("allow", ())),
        device=rest.get("device", "auto"),
    )
    task = choose_task(overrides.get("", {}).get("task"), Path(out) if start.resume else None)
    return train_run(task, Path(data), Path(out), overrides, start, callbacks)


def _overrides(settings: dict[str, Any]) -> tuple[Overrides, dict[str, Any]]:
    """What of a call's keywords are settings, section by section, and the rest."""
    options = ("init", "resume", "force", "allow", "device")
    lengths = ("minutes", "epochs")
    overrides: Overrides = {}
    for key, value in settings.items():
        if key in options or value is None:
            continue
        if key in TOP:
            overrides.setdefault("", {})[key] = value
        elif key in lengths:
            overrides["train"] = {**overrides.get("train", {}), key: value}
        elif key not in SECTIONS:
            known = [*options, *lengths, *TOP, "callbacks", *SECTIONS]
            raise SettingError(f"pixelwise.train: there is no {key}; {near(key, known)}")
        elif not isinstance(value, dict):
            raise SettingError(
                f"{key} = {value!r}: give a section of settings as a dict, for example model={{'width': 16}}."
            )
        else:
            overrides[key] = {**value, **overrides.get(key, {})}
    check_names(overrides, "pixelwise.train")
    return overrides, {key: settings[key] for key in options if key in settings}
