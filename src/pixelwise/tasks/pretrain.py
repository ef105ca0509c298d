"""Encoders trained alone, as a source of weights: by the class of patches, or by rebuilding what they see.

Before segmenters were trained from end to end, their encoders came from elsewhere: from a classifier of the patch
around a pixel (Ciresan et al. 2012; Long et al. 2015, arXiv:1411.4038, section 4, who cast one to convolutions), or
from an autoencoder that rebuilds its input, as a whole or level by level (Vincent et al. 2010, JMLR 11). The data and
the settings are those of segmentation; `train --init` starts from such a run, and `train.schedule` says which parts
then train. benchmarks/starts.py measures what that gives where labels are few.

N images, C channels, H x W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pixelwise.core.classes import IGNORE, ClassMap
from pixelwise.core.config import Config, ModelSettings, PhaseSettings
from pixelwise.core.draft import Draft
from pixelwise.core.errors import SettingError
from pixelwise.data.files.facts import FileFacts
from pixelwise.data.health.survey import Survey
from pixelwise.data.pixels.normalize import Normalization, Numbers, filled, match_channels
from pixelwise.data.pixels.pictures import colorize, to_display
from pixelwise.data.pixels.scaling import resize
from pixelwise.engines import EngineChoice
from pixelwise.engines.machine import Machine
from pixelwise.geometry.modes import evaluation_mode
from pixelwise.layers import ConvNormAct, enlarge, pad_to_stride
from pixelwise.losses import cross_entropy
from pixelwise.models import Segmenter, checkpoint
from pixelwise.models.checkpoint import network_from
from pixelwise.task import Criterion, Figure, Record, Task
from pixelwise.tasks.segment import Segmentation, fill_labels, fill_model

PATCH = 4  # strides a side of a patch that is classified: the two cells about its middle hardly see its border
NARROWEST = 8  # channels of an autoencoder's decoder
MEASURED_SIDE = 512  # pixels: of a larger image the middle is measured
BATCH = 32  # patches that are classified at once


class Coder(nn.Module):
    """An encoder, taken out of a network, with something behind it to train it by.

    Its tensors have the names that they have in the network, so that a training of the network can start from them.
    """

    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        self.stride, self.in_channels = network.stride, network.in_channels
        names = {id(module): name for name, module in network.named_modules()}
        for part in network.encoder():
            _graft(self, names[id(part)], part)
        object.__setattr__(self, "_network", network)  # kept out of the children, since only the encoder belongs here

    def input_size(self, output_size: int) -> int:
        """Any size of image is taken."""
        return output_size

    def output_size(self, input_size: int) -> int:
        """As large as the image."""
        return input_size

    def features(self, images: Tensor) -> list[Tensor]:
        """The encoder's features, finest first."""
        network = cast(Segmenter, self._network)
        return network.features_on_grid(pad_to_stride(images, self.stride))

    @abstractmethod
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """What the criterion compares."""

    def parts(self) -> dict[str, list[nn.Module]]:
        """The modules that train in each phase."""
        return {}


def _graft(parent: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module below another one under its full name."""
    first, _, rest = name.partition(".")
    if not rest:
        parent.add_module(first, module)
        return
    if not hasattr(parent, first):
        parent.add_module(first, nn.Module())
    _graft(getattr(parent, first), rest, module)


class PatchClassifier(Coder):
    """An encoder and one dense layer: the class of the pixel in the middle of a patch."""

    def __init__(self, network: Segmenter) -> None:
        super().__init__(network)
        self.dense = nn.Conv2d(feature_shapes(network)[-1][0], network.num_classes, kernel_size=1)

    @override
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """N x K x 1 x 1 "logits", from the mean of the deepest features' four middle cells."""
        features = self.features(images)[-1]
        row, column = features.shape[-2] // 2, features.shape[-1] // 2
        middle = features[..., max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1]
        return {"logits": self.dense(middle.mean((-2, -1), keepdim=True))}


class Autoencoder(Coder):
    """An encoder with decoders that rebuild what went in: the image, or the features of the level before.

    Args:
        network: whose encoder it is.
        stacked: a decoder for each level, which rebuilds the level before it; else one, from the deepest features to
            the image.

    Raises:
        SettingError: `stacked`, and the encoder is not made of levels.
    """

    def __init__(self, network: Segmenter, stacked: bool) -> None:
        super().__init__(network)
        self._levels = network.encoder()
        shapes = [(network.in_channels, 1), *feature_shapes(network)]
        if stacked and len(self._levels) != len(shapes) - 1:
            raise SettingError("--kind stacked: this encoder is one part, not a stack of levels; use --kind rebuild.")
        pairs = list(zip(shapes[1:], shapes[:-1], strict=True)) if stacked else [(shapes[-1], shapes[0])]
        self.decoders = nn.ModuleList(_decoder(*pair) for pair in pairs)

    @override
    def parts(self) -> dict[str, list[nn.Module]]:
        """Of a stack "level 1", "level 2", ...: a level of the encoder with its decoder."""
        if len(self.decoders) == 1:
            return {}
        pairs = zip(self._levels, self.decoders, strict=True)
        return {level_name(number): [level, decoder] for number, (level, decoder) in enumerate(pairs, start=1)}

    @override
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """What the decoders that train make of the features ("rebuilt N"), and what it should be ("wanted N")."""
        features = self.features(images)
        shown = [pad_to_stride(images, self.stride), *features]
        outputs: dict[str, Tensor] = {}
        for number, decoder in enumerate(self.decoders, start=1):
            if not self.training or any(parameter.requires_grad for parameter in decoder.parameters()):
                deeper = features[-1] if len(self.decoders) == 1 else features[number - 1]
                outputs |= {f"rebuilt {number}": decoder(deeper), f"wanted {number}": shown[number - 1].detach()}
        return outputs


def level_name(number: int) -> str:
    """What a phase calls a level of a stack, counted from 1."""
    return f"level {number}"


def _decoder(deep: tuple[int, int], shallow: tuple[int, int]) -> nn.Sequential:
    """From features of some (channels, stride) to others, or to an image."""
    (channels, stride), (wanted, end) = deep, shallow
    blocks: list[nn.Module] = []
    while stride > end:
        narrower = max(channels // 2, NARROWEST)
        blocks += [_Double(), ConvNormAct(channels, narrower)]
        channels, stride = narrower, stride // 2
    return nn.Sequential(*blocks, nn.Conv2d(channels, wanted, kernel_size=1))


class _Double(nn.Module):
    @override
    def forward(self, features: Tensor) -> Tensor:
        return enlarge(features, 2, "nearest")


def feature_shapes(network: Segmenter) -> list[tuple[int, int]]:
    """Channels and stride of each of the encoder's features, finest first.

    Raises:
        SettingError: the network has no encoder that could be trained alone.
    """
    side = 2 * network.stride
    features: list[Tensor] = []
    if network.input_size(side) == side:  # else its encoder pads nothing
        with evaluation_mode(network), torch.no_grad():
            features = network.features_on_grid(torch.zeros(1, network.in_channels, side, side))
    if not features:
        raise SettingError(f"model: {type(network).__name__} in this form has no encoder that can be trained alone.")
    return [(level.shape[1], side // level.shape[-1]) for level in features]


def classify_loss(outputs: dict[str, Tensor], targets: dict[str, Any]) -> dict[str, Tensor]:
    """Cross entropy of the middle pixel's class; patches whose middle is ignored count nowhere."""
    labels = targets["labels"]
    middle = labels[:, labels.shape[1] // 2, labels.shape[2] // 2]
    return {"cross_entropy": cross_entropy(outputs["logits"], middle[:, None, None])}


def rebuild_loss(outputs: dict[str, Tensor], targets: dict[str, Any]) -> dict[str, Tensor]:
    """Mean squared errors relative to the variance: 1 where nothing but the mean is known. No label is looked at."""
    losses = {}
    for name in outputs:
        if name.startswith("rebuilt"):
            rebuilt, wanted = outputs[name].float(), outputs[name.replace("rebuilt", "wanted")].float()
            losses[name] = F.mse_loss(rebuilt, wanted) / wanted.var().clamp_min(1e-6)
    return losses


@dataclass(frozen=True)
class CoderPredictor:
    """A coder with its preprocessing."""

    network: Coder
    config: Config
    device: str

    def outputs(self, images: np.ndarray) -> dict[str, Tensor]:
        """Of normalised N x C x H x W images."""
        batch = torch.from_numpy(images).to(self.device, memory_format=torch.channels_last)
        with evaluation_mode(self.network), torch.no_grad():
            return {name: output.float().cpu() for name, output in self.network.outputs(batch).items()}

    def normalized(self, image: np.ndarray, facts: FileFacts | None = None) -> np.ndarray:
        """C x H x W float32 of an image as it comes, scaled."""
        data = self.config.data
        numbers = Numbers.of(image.dtype, facts, data.nodata)
        fitted = match_channels(image, data.channels)
        gain, offset = Normalization.from_settings(data).gain_and_offset(fitted, numbers)
        fitted = filled(fitted, numbers.nodata)
        normalized: np.ndarray = resize(fitted, data.scale).astype(np.float32) * gain + offset
        return normalized.transpose(2, 0, 1)


@dataclass
class MeanTally:
    """The mean of a figure: its sum over what was counted, and how much that was."""

    name: str
    total: float = 0.0
    weight: float = 0.0
    images: int = 0

    def merge(self, other: "MeanTally") -> None:
        """Add what another process counted."""
        self.total, self.weight = self.total + other.total, self.weight + other.weight
        self.images += other.images

    def figures(self) -> dict[str, Any]:
        """The mean; None if nothing was counted."""
        return {self.name: self.total / self.weight if self.weight else None, "images": self.images}


class AccuracyTally(MeanTally):
    """The share of middle pixels whose class is right; ignored ones count nowhere."""

    def add(self, record: Record, prediction: "PatchClasses") -> float:
        """Take one image in; its own accuracy."""
        truth = record.truth.classes[np.ix_(prediction.rows, prediction.columns)]
        counted = truth != IGNORE
        right = float(((truth == prediction.classes) & counted).sum())
        self.total, self.weight, self.images = self.total + right, self.weight + float(counted.sum()), self.images + 1
        return right / counted.sum() if counted.any() else float("nan")


class ErrorTally(MeanTally):
    """The mean over images of the mean error of what was rebuilt."""

    def add(self, record: Record, prediction: dict[str, Tensor]) -> float:
        """Take one image in; its own error, negative, as less is worse."""
        losses = rebuild_loss(prediction, {})
        error = float(torch.stack(list(losses.values())).mean())
        self.total, self.weight, self.images = self.total + error, self.weight + 1, self.images + 1
        return -error


class Pretraining(ABC):
    """What the ways to train an encoder alone share; data, labels and the network's form are segmentation's."""

    name: str
    figure: Figure

    def __init__(self) -> None:
        self._segmentation = base = Segmentation()
        self.labels, self.meaning, self.check = base.labels, base.meaning, base.check
        self.records, self.sampler, self.with_meaning = base.records, base.sampler, base.with_meaning

    def fill(self, draft: Draft, survey: Survey, machine: Machine) -> None:
        """As in segmentation, with what this way of training needs."""
        facts = survey.of("train")
        fill_labels(draft, survey)
        draft.fill("data", channels=survey.channels)
        draft.fill("model", pretrained=False)  # what is published was pretrained already
        fill_model(draft, facts, machine)
        model = ModelSettings(**draft.section("model"))
        with torch.random.fork_rng(devices=[]):
            network = network_from(model, draft["data.channels"], len(draft["data.classes"]))
            self.fill_training(draft, network)
        self._segmentation.fill(draft, survey, machine)

    @abstractmethod
    def fill_training(self, draft: Draft, network: Segmenter) -> None:
        """Settings of section `train` that follow from the network whose encoder is trained."""

    def reasons(self, config: Config, survey: Survey) -> list[str]:
        """What the masks were taken for."""
        return self._segmentation.label_reasons(config, survey)

    @abstractmethod
    def network(self, config: Config) -> Coder:
        """The encoder with what trains it."""

    @abstractmethod
    def criterion(self, config: Config, survey: Survey) -> Criterion:
        """What the encoder learns by."""

    def predictor(
        self,
        network: nn.Module,
        config: Config,
        engine: EngineChoice,
        tile: Any = "auto",
        views: str = "none",
        limit: int | None = None,
    ) -> CoderPredictor:
        """The coder with its preprocessing; torch runs it, on the middle of each image, so tiles do not matter."""
        return CoderPredictor(cast(Coder, network.to(engine.device)), config, engine.device)

    def predict_files(
        self, predictor: Any, inputs: Sequence[str], options: Any, axes: str | None, listener: Any
    ) -> Any:
        """A coder predicts nothing that could be written.

        Raises:
            SettingError: always.
        """
        raise SettingError(
            f"this run trained an encoder alone ({self.name}), so it predicts nothing. Start a training from it: "
            "pixelwise train DATA --out RUN --init THIS."
        )


class PatchPretraining(Pretraining):
    """The encoder classifies the pixel in the middle of each patch."""

    name = "patches"
    figure = Figure("accuracy", "accuracy of middle pixels")

    @override
    def fill_training(self, draft: Draft, network: Segmenter) -> None:
        """Small patches, centred on each class equally often."""
        side = PATCH * network.stride
        draft.fill("train", patch=(side, side), balance=1.0)

    @override
    def network(self, config: Config) -> PatchClassifier:
        return PatchClassifier(checkpoint.build_network(config))

    @override
    def criterion(self, config: Config, survey: Survey) -> Criterion:
        """Cross entropy of middle pixels."""
        return classify_loss

    def tally(self, config: Config, full: bool) -> "AccuracyTally":
        """The share of middle pixels whose class is right."""
        return AccuracyTally(self.figure.name)

    def predict(self, predictor: CoderPredictor, image: np.ndarray, facts: FileFacts | None = None) -> "PatchClasses":
        """Classes of patches about the points of a grid."""
        pixels = predictor.normalized(image, facts)
        side = PATCH * predictor.network.stride
        rows, columns = (np.arange(min(side // 4, length // 2), length, side // 2) for length in pixels.shape[1:])
        padded = np.pad(pixels, ((0, 0), (side // 2, side), (side // 2, side)), mode="symmetric")
        patches = [padded[:, y : y + side, x : x + side] for y in rows for x in columns]
        logits = [
            predictor.outputs(np.stack(patches[start : start + BATCH]))["logits"].numpy()
            for start in range(0, len(patches), BATCH)
        ]
        scale = predictor.config.data.scale
        y, x = (
            np.minimum(((places + 0.5) / scale).astype(int), length - 1)
            for places, length in zip((rows, columns), image.shape[:2], strict=True)
        )
        classes = np.concatenate(logits).argmax(1).astype(np.uint16)
        return PatchClasses(y, x, classes.reshape(len(rows), len(columns)))

    def draw(self, record: Record, prediction: "PatchClasses", config: Config) -> dict[str, np.ndarray]:
        """The image, and the grid of classes."""
        grid = colorize(prediction.classes, ClassMap.of(config.data))
        return {"Image": to_display(record.image), "Classes of patches": grid.repeat(16, 0).repeat(16, 1)}


@dataclass(frozen=True)
class PatchClasses:
    """Classes at the crossings of some rows and columns of an image."""

    rows: np.ndarray  # R
    columns: np.ndarray  # C
    classes: np.ndarray  # R x C uint16


class RebuildPretraining(Pretraining):
    """The encoder's deepest features are decoded to the image; of a stack, each level to the one before it."""

    figure = Figure("relative_error", "squared error relative to the variance", rises=False)

    def __init__(self, stacked: bool) -> None:
        super().__init__()
        self.stacked = stacked
        self.name = "stacked" if stacked else "rebuild"

    @override
    def fill_training(self, draft: Draft, network: Segmenter) -> None:
        """A stack trains level after level, for an equal share of the time each."""
        coder = Autoencoder(network, self.stacked)
        phases = [PhaseSettings(parts=name, share=1.0, rate=1.0) for name in coder.parts()]
        draft.fill("train", schedule=phases)

    @override
    def network(self, config: Config) -> Autoencoder:
        return Autoencoder(checkpoint.build_network(config), self.stacked)

    @override
    def criterion(self, config: Config, survey: Survey) -> Criterion:
        """The relative squared error of what is rebuilt."""
        return rebuild_loss

    def tally(self, config: Config, full: bool) -> "ErrorTally":
        """The mean error of the images."""
        return ErrorTally(self.figure.name)

    def predict(
        self, predictor: CoderPredictor, image: np.ndarray, facts: FileFacts | None = None
    ) -> dict[str, Tensor]:
        """What is rebuilt, and what it should be, of the image or the middle of a large one."""
        pixels = predictor.normalized(image, facts)
        starts = [max(0, (length - MEASURED_SIDE) // 2) for length in pixels.shape[1:]]
        rows, columns = (slice(start, start + MEASURED_SIDE) for start in starts)
        return predictor.outputs(np.ascontiguousarray(pixels[None, :, rows, columns]))

    def draw(self, record: Record, prediction: dict[str, Tensor], config: Config) -> dict[str, np.ndarray]:
        """The image as the encoder saw it, and as it was rebuilt."""
        shown = {"Image": prediction["wanted 1"], "Rebuilt": prediction["rebuilt 1"]}
        return {caption: to_display(images[0].permute(1, 2, 0).numpy()) for caption, images in shown.items()}


PRETRAININGS: dict[str, Task] = {
    task.name: task
    for task in (PatchPretraining(), RebuildPretraining(stacked=False), RebuildPretraining(stacked=True))
}
"""The ways to train an encoder alone, by name."""
