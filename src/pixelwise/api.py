"""The Python interface: `pw.train`, `pw.load`, `Run`."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from pixelwise.core.classes import ClassMap
from pixelwise.core.config import SECTIONS, Config, Overrides, check_names
from pixelwise.core.errors import DataError, SettingError, near
from pixelwise.core.files import write_json
from pixelwise.core.progress import Progress
from pixelwise.core.windows import Window
from pixelwise.data.files.sources import open_source
from pixelwise.data.pixels.pictures import to_display
from pixelwise.data.sets.doctor import survey
from pixelwise.data.sets.folder import DataSet, open_dataset
from pixelwise.data.sets.labels import LabelRule
from pixelwise.data.sets.masks import MaskLabels
from pixelwise.engines import EngineChoice, ExportedEngine, choose_engine
from pixelwise.evaluation.measure import Score, chosen_scores, evaluate, output_folder, read_truth
from pixelwise.models import checkpoint
from pixelwise.models.checkpoint import MODEL_FILE
from pixelwise.prediction.inputs import count_pixels
from pixelwise.prediction.predictor import Predictor
from pixelwise.prediction.sizes import sizes_of
from pixelwise.prediction.tiler import TileSize
from pixelwise.training.plan import pick_device

if TYPE_CHECKING:  # a training's and a report's libraries take seconds and memory, so they are imported when needed
    from pixelwise.report.html import Case
    from pixelwise.training.loop import Result

ANYWHERE = EngineChoice(device="auto")
COMPILED = "compiled"  # in a run's folder
WORTH_PREPARING = 12_000_000  # pixels: from here on the fastest engine saves more time than it takes to prepare


@dataclass(frozen=True)
class Run:
    """A trained network with all that it needs to label images.

    >>> Run  # run = pw.load("runs/cells"); mask = run.predict("image.png")
    <class 'pixelwise.api.Run'>
    """

    path: Path
    network: nn.Module
    config: Config
    facts: dict[str, Any]  # best epoch and its mean IoU
    _predictors: dict[Any, Predictor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def classes(self) -> ClassMap:
        """Names and colours of the classes."""
        return ClassMap(tuple(self.config.data.classes), tuple(self.config.data.colors))

    def predictor(
        self,
        engine: EngineChoice = ANYWHERE,
        tile: TileSize = "auto",
        views: str = "none",
        limit: int | None = None,
        pixels: int | None = None,
    ) -> Predictor:
        """The network with its preprocessing, on a device; the compiled network is kept beside the run.

        Arguments as of `Predictor`, and `pixels`, how many there are to predict: for few of them "auto" takes an
        engine that is ready, because preparing another takes about ten seconds, once.
        """
        cache = self.path / COMPILED
        choice = replace(engine, device=pick_device(engine.device), cache=cache)
        is_cached = ExportedEngine.is_kept(self.network, cache, sizes_of(self.network, self.config.data.channels))
        if choice.name == "auto" and pixels is not None and pixels < WORTH_PREPARING and not is_cached:
            choice = replace(choice, name="torch")
        if limit is not None and not is_cached and choose_engine(self.network, choice) != "torch":
            self._export_elsewhere(choice.name)
        return Predictor(self.network, self.config, choice, tile, views, limit)

    def _export_elsewhere(self, engine: str) -> None:
        """Export the network in a process of its own, whose memory is free again when it ends.

        If that fails, this process does it, or says why it cannot.
        """
        code = (
            "import sys; from pixelwise.api import EngineChoice, load; "
            "load(sys.argv[1]).predictor(EngineChoice(sys.argv[2]))"
        )
        subprocess.run([sys.executable, "-c", code, str(self.path), engine], capture_output=True, check=False)

    def predict(
        self,
        image: np.ndarray | str | Path,
        *,
        device: str = "auto",
        engine: str = "auto",
        tile: TileSize = "auto",
        views: str = "none",
    ) -> np.ndarray:
        """Label an image.

        Args:
            image: H x W or H x W x C of any type as it comes from a camera, or the path of an image file.
            device: auto, cpu, cuda, mps.
            engine: auto, torch, openvino, onnxruntime.
            tile: "auto", None for the whole image at once, or the side of a tile.
            views: test-time augmentation: none, flips, turns.

        Returns:
            H x W uint8 class indices (P x H x W for a file of P > 1 pages).

        Raises:
            DataError, ModelError: the image cannot be used; the message says why.
        """
        pixels = image.shape[0] * image.shape[1] if isinstance(image, np.ndarray) and image.ndim > 1 else 0
        choice = (device, engine, tile, views, pixels < WORTH_PREPARING)
        if choice not in self._predictors:  # to make one hashes the weights, and may compile the network
            self._predictors[choice] = self.predictor(EngineChoice(engine, device), tile, views, pixels=pixels)
        predictor = self._predictors[choice]
        if isinstance(image, np.ndarray):
            if image.ndim not in (2, 3) or image.size == 0:
                raise DataError(f"the image has the shape {image.shape}; H x W or H x W x C is expected.")
            return predictor.labels(image[..., None] if image.ndim == 2 else image)
        with open_source(Path(image)) as source:
            pages = (source.read(page, Window.whole(source.height, source.width)) for page in range(source.pages))
            masks = np.stack([predictor.labels(page) for page in pages])
        return masks[0] if len(masks) == 1 else masks

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
            data: the folder of the data set; its mask values mean what they meant in training.
            split: train, val or test; by default test, or val where there is no test.
            out: folder to write to; by default `evaluation-SPLIT` in the run.
            device: auto, cpu, cuda, mps.
            allow: codes of problems whose files are left out.
            progress: is called with (done, all).

        Returns:
            The content of metrics.json.

        Raises:
            DataError: the split is empty, or its files cannot be used.
        """
        from pixelwise.report.html import write_report

        dataset = open_dataset(Path(data), self.config.data.folds, self.config.data.fold)
        name = choose_split(dataset, split)
        rule = LabelRule.from_settings(self.config.data)
        sound = survey(dataset, MaskLabels(), meaning=rule, allow=allow, splits=(name,)).dataset
        samples = sound.split(name)
        folder = Path(out) if out else output_folder(self.path, name)
        pixels = count_pixels([sample.image for sample in samples], WORTH_PREPARING)
        predictor = self.predictor(EngineChoice(device=device), pixels=pixels)
        metrics, scores = evaluate(predictor, samples, rule, dataset.description.axes, progress)
        metrics["split"] = name
        write_json(folder / "metrics.json", metrics)
        cases = [self._case(predictor, score, rule, dataset.description.axes) for score in chosen_scores(scores)]
        title = f"{self.path.resolve().name}: {Path(data).resolve().name}, split {name}"
        write_report(
            folder / "report.html",
            title,
            metrics,
            self.classes,
            cases,
            self.history(),
            self._summary(metrics),
        )
        return metrics

    def history(self) -> list[dict[str, Any]]:
        """The lines of history.jsonl; none if the run was copied without them."""
        path = self.path / "history.jsonl"
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]

    def _case(self, predictor: Predictor, score: Score, rule: LabelRule, axes: str | None) -> "Case":
        from pixelwise.report.html import Case

        truth = read_truth(score.sample, rule, axes)[score.page]
        prediction = predictor.labels(truth.image)
        return Case(score.name, to_display(truth.image), truth.labels, prediction, score.mean_iou)

    def _summary(self, metrics: dict[str, Any]) -> dict[str, str]:
        """What the report tells about the run, as text."""
        model, data, train = self.config.model, self.config.data, self.config.train
        parameters = sum(p.numel() for p in self.network.parameters())
        length = f"{train.minutes:g} minutes" if train.minutes else f"{train.epochs} epochs"
        return {
            "Network": f"{model.title()}, {parameters:,} parameters",
            "Best epoch": f"{self.facts.get('epoch')} (mean IoU on val {self.facts.get('mean_iou', float('nan')):.4f})",
            "Training": f"{length}, batches of {train.batch} patches of {train.patch[0]} x {train.patch[1]}",
            "Images": f"{metrics['images']} measured, scale {data.scale:g}, normalisation {data.normalization}",
            "Labels": data.labels,
            "Seed": str(self.config.seed),
        }


def choose_split(dataset: DataSet, split: str | None) -> str:
    """The split to measure on: the named one, else test, else val.

    Raises:
        DataError: it is empty or missing.
    """
    if split is None:
        split = "test" if dataset.splits.get("test") else "val"
    dataset.split(split)
    return split


def load(path: str | Path) -> Run:
    """Open a run folder.

    Raises:
        RunError: it holds no weights, or they cannot be used.
    """
    folder = Path(path)
    network, config, facts = checkpoint.load_model(folder / MODEL_FILE)
    return Run(folder, network, config, facts)


def train(data: str | Path, out: str | Path, **settings: Any) -> "Result":
    """Train on a data set; `pw.load(out)` opens the result.

    Args:
        data: the folder of the data set.
        out: the run folder to make.
        settings: `minutes`, `epochs`, `seed`, `init`, `resume`, `force`, `allow`, `device`, `callbacks` as of the
            command line; sections of settings as dicts: `model={"width": 16}`, `train={"batch": 4}`.

    Raises:
        PixelwiseError: bad data or settings.
    """
    from pixelwise.training.loop import train as train_run

    options = ("minutes", "epochs", "seed", "init", "resume", "force", "allow", "device", "callbacks")
    chosen = {key: value for key, value in settings.items() if key in options}
    overrides: Overrides = {}
    for key, value in settings.items():
        if key not in options:
            if key not in SECTIONS:
                raise SettingError(f"pixelwise.train: there is no {key}; {near(key, [*options, *SECTIONS])}")
            if not isinstance(value, dict):
                raise SettingError(
                    f"{key} = {value!r}: give a section of settings as a dict, for example model={{'width': 16}}."
                )
            overrides[key] = dict(value)
    check_names(overrides, "pixelwise.train")
    if chosen.get("init") is not None:
        chosen["init"] = Path(chosen["init"])
    return train_run(Path(data), Path(out), overrides, **chosen)
