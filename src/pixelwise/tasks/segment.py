"""Semantic segmentation: the class of every pixel.

N images, K classes, H x W pixels. The truth of a record is a `Labels`; a prediction is H x W class indices, uint8, or
uint16 where K > 256.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from typing_extensions import override

from pixelwise.backbones.installed import how_to_install, installed_file
from pixelwise.core.classes import IGNORE, ClassMap
from pixelwise.core.config import Config
from pixelwise.core.draft import Draft
from pixelwise.core.errors import DataError, SettingError
from pixelwise.data.files.facts import FileFacts, valid_pixels
from pixelwise.data.files.readers import read_picture, turn_text
from pixelwise.data.health.examine import ImageFacts
from pixelwise.data.health.survey import Survey
from pixelwise.data.masks.labels import LabelRule, some
from pixelwise.data.masks.masks import MaskLabels
from pixelwise.data.masks.stored import classes_of, ids_of, read_stored
from pixelwise.data.pixels import pictures
from pixelwise.data.pixels.normalize import filled
from pixelwise.data.pixels.targets import objects
from pixelwise.data.sets.pairs import Sample
from pixelwise.data.sets.sampling import PatchSampler, Store
from pixelwise.data.sets.scenes import is_upright, scene_scale, typical_size
from pixelwise.engines import EngineChoice
from pixelwise.engines.machine import Machine
from pixelwise.losses import SegmentationLoss, check_factors, class_weights, dual_task_loss, edge_loss
from pixelwise.metrics.boundary import boundary_counts, boundary_f
from pixelwise.metrics.confusion import confusion_matrix, mean_iou, summary
from pixelwise.metrics.instances import instance_scores, match_counts, sum_counts
from pixelwise.models import MODELS, checkpoint
from pixelwise.prediction.predictor import Predictor
from pixelwise.prediction.requests import OutputOptions
from pixelwise.prediction.stream import Listener, Outcome, predict_files
from pixelwise.prediction.tiler import TileSize
from pixelwise.task import Figure, Record
from pixelwise.training.plan import GRID, holds_little, patch_pixels

FEW_DROPOUT = 0.3
PUBLISHED = "tf_efficientnet_lite0"  # the encoder whose weights come with the installation
PUBLISHED_FORM = {"width": 32, "dropout": 0.0}
PUBLISHED_DEPTH = 3  # where no scene asks for more context: a stride of 16, and a margin of 201 pixels instead of 489
PUBLISHED_TRAINING = {"rate": 5e-3, "encoder_rate": 0.2, "clip": 5.0}
PUBLISHED_BATCH = 4  # on a CPU: more and smaller steps
SCENE_CLASS_WEIGHTS = 0.5
SMALL_SIDE = 64  # pixels; smaller images are not folded
LARGEST_DRAWN = 2048  # pixels of a side; of larger images the report shows every second, third, ... pixel


@dataclass(frozen=True)
class Labels:
    """The truth of one page: class indices, and instance ids where the labels have them."""

    classes: np.ndarray  # H x W uint16, 0 to K - 1 or IGNORE
    instances: np.ndarray | None  # H x W


class Segmentation:
    """The class of every pixel, learnt from masks."""

    name = "segment"
    figure = Figure("mean_iou", "mean IoU")
    labels = MaskLabels()

    def meaning(self, config: Config) -> LabelRule:
        """How a run's mask values become classes."""
        return LabelRule.from_settings(config.data)

    def with_meaning(self, config: Config, meaning: LabelRule) -> Config:
        """A run's settings, by which masks of another meaning become its classes."""
        return config.model_copy(update={"data": config.data.model_copy(update=meaning.settings())})

    def fill(self, draft: Draft, survey: Survey, machine: Machine) -> None:
        """Classes as the survey found them; whole scenes where the classes depend on the height in the picture."""
        facts = survey.of("train")
        fill_labels(draft, survey)
        if is_upright(facts):
            _fill_scene(draft, facts, patch_pixels(machine))
        if draft["train.recipe"] == "paper":
            _fill_paper(draft)
        fill_model(draft, facts, machine)

    def check(self, config: Config) -> None:
        """Combinations that no single setting shows."""
        data, loss = config.data, config.loss
        if data.labels == "binary" and len(set(data.values)) != 2:
            raise SettingError(f"data.values = {data.values}: binary labels have two values, of class 0 and class 1.")
        check_factors(loss)
        if config.model.auxiliary and not loss.auxiliary:
            raise SettingError(
                "model.auxiliary: loss.auxiliary = 0 would leave the auxiliary head untrained; "
                "set it above 0, or model.auxiliary to false."
            )
        if loss.border and loss.cross_entropy == 0:
            raise SettingError("loss.border: weights the cross entropy, which loss.cross_entropy = 0 switches off.")

    def label_reasons(self, config: Config, survey: Survey) -> list[str]:
        """What the masks were taken for, unless the survey told it."""
        return [] if survey.told else [f"labels: {config.data.labels} ({some(config.data.classes)})"]

    def reasons(self, config: Config, survey: Survey) -> list[str]:
        """What the masks were taken for, and whether up stays up."""
        scene = (
            "classes depend on the height in the picture: a patch sees the whole scene, up stays up"
            if is_upright(survey.of("train"))
            else "no direction is special: patches are turned and mirrored freely"
        )
        return [*self.label_reasons(config, survey), scene, *_missing_weights(config)]

    def network(self, config: Config) -> nn.Module:
        """One of `MODELS`."""
        return checkpoint.build_network(config)

    def sampler(self, config: Config, survey: Survey, network: nn.Module) -> PatchSampler:
        """Augmented patches; a network without padding gets them with its margin around them."""
        return make_sampler(config, survey, network)

    def criterion(self, config: Config, survey: Survey) -> nn.Module:
        """The loss that the settings describe, of all outputs that a network has."""
        return Criterion(config, pixel_counts(survey))

    def records(self, sample: Sample, config: Config, axes: str | None) -> Iterator[Record]:
        """The pages of a sample.

        Raises:
            DataError: a file cannot be read, or a mask holds values that the run does not know.
        """
        rule = self.meaning(config)
        picture, stored = read_picture(sample.image, axes), read_stored(sample.target, axes)
        images, masks = picture.pixels, stored.pixels
        if images.shape[:3] != masks.shape[:3]:
            raise DataError(
                f"{sample.image}: is {images.shape[1:3]}, but its mask {sample.target} is {masks.shape[1:3]}."
                f"{turn_text(images.shape, masks.shape, picture.facts)}"
            )
        declared = config.data.nodata
        facts = picture.facts if picture.facts.nodata is not None else replace(picture.facts, nodata=declared)
        for number, image in enumerate(images):
            valid = valid_pixels(image, facts)
            try:
                classes = classes_of(stored, number, rule, valid)
            except DataError as error:
                raise DataError(f"{sample.target}: {error}") from error
            name = sample.name if len(images) == 1 else f"{sample.name} page {number}"
            ids = ids_of(stored, number, valid) if rule.kind == "instances" else None
            yield Record(name, image, Labels(classes, ids), facts)

    def tally(self, config: Config, full: bool) -> "PixelTally":
        """Pooled figures of pixels; with `full` also of boundaries and objects, which take longer."""
        return PixelTally(tuple(config.data.classes), full, frozenset(config.data.absent))

    def predictor(
        self,
        network: nn.Module,
        config: Config,
        engine: EngineChoice,
        tile: TileSize = "auto",
        views: str = "none",
        limit: int | None = None,
    ) -> Predictor:
        """The network for images of any size."""
        return Predictor(network, config, engine, tile, views, limit)

    def predict(self, predictor: Predictor, image: np.ndarray, facts: FileFacts | None = None) -> np.ndarray:
        """H x W class indices, 0 where there is no data."""
        return predictor.labels(image, facts)

    def draw(self, record: Record, prediction: np.ndarray, config: Config) -> dict[str, np.ndarray]:
        """The image, truth and prediction in the classes' colours, and the errors."""
        classes, truth = ClassMap.of(config.data), record.truth.classes
        counted = truth != IGNORE
        wrong = int(np.count_nonzero((truth != prediction) & counted)) / max(1, int(np.count_nonzero(counted)))
        step = max(1, max(record.image.shape) // LARGEST_DRAWN)  # so that no coloured copies of a huge image are made
        image = filled(record.image, record.facts.nodata if record.facts else None)
        shown, truth, prediction = (array[::step, ::step] for array in (image, truth, prediction))
        image = pictures.to_display(shown)
        return {
            "Image": image,
            "Truth": pictures.colorize(truth, classes),
            "Prediction": pictures.colorize(prediction, classes),
            f"Errors: {wrong:.1%} of pixels": pictures.error_picture(image, truth, prediction),
        }

    def predict_files(
        self, predictor: Predictor, inputs: Sequence[str], options: OutputOptions, axes: str | None, listener: Listener
    ) -> Outcome:
        """A mask for each image, and what else the options ask for."""
        return predict_files(predictor, inputs, options, axes, listener)


# The plan


def fill_labels(draft: Draft, survey: Survey) -> None:
    """What the masks mean, as the survey found it, and which classes no training image shows."""
    rule: LabelRule = survey.meaning
    found, counts = rule.settings(), pixel_counts(survey)
    count = len(draft.section("data").get("classes", found["classes"]))
    if rule.kind == "index" and count != len(rule.values):  # the user knows better
        found |= {"values": list(range(count))}
    draft.fill("data", **found, absent=[index for index in range(count) if not any(counts[index : index + 1])])


def fill_model(draft: Draft, facts: Sequence[ImageFacts], machine: Machine) -> None:
    """The network's form for this machine, on published weights where they serve."""
    draft.fill("model", name="unet")
    name = draft["model.name"]
    if _wants_published(draft, facts, machine):
        draft.fill("model", backbone=PUBLISHED, pretrained=True)
    if draft["model.pretrained"]:
        draft.fill("train", **PUBLISHED_TRAINING)
    if name == "unet" and draft["model.backbone"] is None:
        _fill_unet(draft, facts, machine.device)
    elif name == "unet" and draft["model.backbone"] == PUBLISHED:
        _fill_published(draft, facts, machine)
    elif name in MODELS:
        form = dict(MODELS[name].small if machine.device == "cpu" else MODELS[name].large)
        if name.startswith("fcn") and draft["model.backbone"] not in (None, form["backbone"]):
            del form["width"]  # that of VGG16
        draft.fill("model", **form)


def _fill_published(draft: Draft, facts: Sequence[ImageFacts], machine: Machine) -> None:
    """A U-Net on the encoder whose weights are installed."""
    draft.fill("model", **PUBLISHED_FORM)
    if machine.device == "cpu":
        draft.fill("train", batch=PUBLISHED_BATCH)
    if is_upright(facts):  # all levels; and rare classes would be learnt last
        draft.fill("loss", class_weight_power=SCENE_CLASS_WEIGHTS)
    else:
        draft.fill("model", depth=PUBLISHED_DEPTH)


def _missing_weights(config: Config) -> list[str]:
    """How a U-Net without a backbone could start from more than chance, if that is not installed."""
    model = config.model
    if model.name != "unet" or model.backbone or model.padding == "valid" or installed_file(PUBLISHED):
        return []
    return [f"the weights are random; published ones can be installed: {how_to_install(PUBLISHED)}"]


def _wants_published(draft: Draft, facts: Sequence[ImageFacts], machine: Machine) -> bool:
    """Whether the U-Net gets the encoder whose weights are installed: the user asks for it, or leaves it to us.

    On a CPU it was measured to be at least as good as random weights; on a GPU it was not measured. A form that only a
    U-Net without a backbone has is the user's wish not to have one.
    """
    chosen = draft.section("model")
    if "backbone" in chosen or chosen.get("pretrained") is False or not _takes_backbone(draft["model.name"]):
        return False
    if chosen.get("pretrained"):
        return True
    own = chosen.get("padding") == "valid" or chosen.get("stem", 1) > 1 or chosen.get("norm", "batch") != "batch"
    plain = draft["model.name"] == "unet" and draft["train.recipe"] == "default" and not own
    return (
        plain and machine.device == "cpu" and PUBLISHED in machine.encoders and min(typical_size(facts)) >= SMALL_SIDE
    )


def _takes_backbone(name: str) -> bool:
    """Whether a network can have another encoder than its own."""
    return name in MODELS and "backbone" in checkpoint.settings_of(name)


def _fill_unet(draft: Draft, facts: Sequence[ImageFacts], device: str) -> None:
    paper = draft["train.recipe"] == "paper"
    draft.fill("model", padding="valid" if paper else "same")
    padded = draft["model.padding"] == "same"
    folded = padded and device != "cuda" and min(typical_size(facts)) >= SMALL_SIDE
    draft.fill("model", stem=2 if folded else 1, width=64 if paper else 32, depth=4, residual=padded)
    draft.fill("model", norm="none" if paper else "batch")
    draft.fill("model", dropout=0.5 if paper else FEW_DROPOUT if holds_little(facts) else 0.0)


def _fill_scene(draft: Draft, facts: Sequence[ImageFacts], pixels: int) -> None:
    """A patch sees the whole scene, at the largest scale 1/2^k at which it fits; it is mirrored sideways alone."""
    height, width = typical_size(facts)
    draft.fill("data", scale=scene_scale(facts, pixels))
    sides = (length * draft["data.scale"] for length in (height, width))
    if draft["train.recipe"] != "paper":
        draft.fill("train", patch=tuple(max(GRID, round(side / GRID) * GRID) for side in sides))
    draft.fill("augment", flip_vertical=False, turns=False, rotation=8.0, elastic=0.0)


def _fill_paper(draft: Draft) -> None:
    """Ronneberger et al. 2015, section 3; the rate, which they do not state, is ours."""
    draft.fill("train", patch=(388, 388), batch=1, optimizer="sgd", momentum=0.99)
    draft.fill("train", rate=1e-3, weight_decay=0.0, average=0.0)
    draft.fill("loss", dice=0.0, border=10.0, class_weight_power=1.0)


# Training


def make_sampler(config: Config, survey: Survey, network: nn.Module) -> PatchSampler:
    """Patches of the train split, of the size that the network's outputs have for `train.patch`."""
    facts = survey.of("train")
    pages = [(fact, page) for fact in facts for page in range(fact.pages)]
    owners = {
        value: [index for index, (fact, _) in enumerate(pages) if fact.labels[:, value].any()]
        for value in range(len(config.data.classes))
    }
    sized = cast(Any, network)
    seen = [sized.input_size(length) for length in config.train.patch]
    height, width = (sized.output_size(length) for length in seen)
    samples = [(fact.sample, page) for fact, page in pages]
    budget = psutil.virtual_memory().total // 4
    store = Store(samples, config, survey.dataset.description.axes, budget, survey.pixels)
    areas = [fact.height * fact.width for fact, _ in pages]
    return PatchSampler(store, areas, owners, (height, width), border=(seen[0] - height) // 2)


def pixel_counts(survey: Survey) -> list[int]:
    """K pixels of each class in the train split."""
    return [int(count) for count in np.sum([fact.labels.sum(0) for fact in survey.of("train")], axis=0)]


class Criterion(nn.Module):
    """The loss that a config describes, of all outputs that a network has.

    Its parts are those of the logits; that of the auxiliary logits, times `loss.auxiliary` (Zhao et al. 2017,
    arXiv:1612.01105, section 4); that of the edges, times `loss.edges`, and what classes and edges disagree about,
    times `loss.dual` (Takikawa et al. 2019, arXiv:1907.05740, equations 3 and 7).

    With border weights the paper's sum w(x) = w_c(x) + w_0 exp(...) (Ronneberger et al. 2015, eq. 2) is formed here
    and handed to the cross entropy as one weight a pixel; without them the class weights act alone.
    """

    class_weights: Tensor

    def __init__(self, config: Config, pixel_counts: Sequence[int]) -> None:
        super().__init__()
        weights = class_weights(pixel_counts, config.loss.class_weight_power)
        self.settings = config.loss
        self.register_buffer("class_weights", torch.from_numpy(np.append(weights, 0).astype(np.float32)))
        self.loss = SegmentationLoss(config.loss, weights.tolist())

    @override
    def forward(self, outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name, N x H x W int64 "labels", N x H x W "border" weights if any -> scalars by name."""
        labels, weights = targets["labels"], None
        if "border" in targets:
            index = labels.where(labels != IGNORE, torch.tensor(len(self.class_weights) - 1, device=labels.device))
            weights = self.class_weights[index] + targets["border"]
        settings, logits, edges = self.settings, outputs["logits"], outputs.get("edges")
        parts = self.loss.parts(logits, labels, weights)
        if "auxiliary" in outputs and settings.auxiliary:
            parts["auxiliary"] = settings.auxiliary * self.loss(outputs["auxiliary"], labels, weights)
        if edges is not None and settings.edges:
            parts["edges"] = settings.edges * edge_loss(edges, labels)
        if edges is not None and settings.dual:
            parts["dual"] = settings.dual * dual_task_loss(logits, edges, labels)
        return parts


# Measuring


@dataclass
class PixelTally:
    """Counts of pixels, and with `full` of boundaries and objects; `figures` turns them into figures."""

    names: tuple[str, ...]
    full: bool = True
    absent: frozenset[int] = frozenset()  # classes that no training image showed
    confusion: np.ndarray = field(init=False)
    images: int = 0
    _boundary: Any = 0
    _matches: list[dict[float, tuple[int, int, int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.confusion = np.zeros((len(self.names), len(self.names)), np.int64)

    def add(self, record: Record, prediction: np.ndarray) -> float:
        """Take one image in; its own mean IoU."""
        truth, count = record.truth, len(self.names)
        confusion = confusion_matrix(truth.classes, prediction, count)
        self.confusion += confusion
        self.images += 1
        if self.full:
            self._boundary = self._boundary + boundary_counts(truth.classes, prediction, count)
            if truth.instances is not None:
                self._matches.append(match_counts(truth.instances, objects(prediction)))
        return mean_iou(confusion, self.absent)

    def merge(self, other: "PixelTally") -> None:
        """Add what another process counted."""
        self.confusion += other.confusion
        self.images += other.images
        self._boundary = self._boundary + other._boundary
        self._matches += other._matches

    def figures(self) -> dict[str, Any]:
        """The content of metrics.json."""
        figures = {**summary(self.confusion, self.names, self.absent), "images": self.images}
        if self.full and self.images:
            boundary = boundary_f(self._boundary)
            if boundary:  # one class everywhere has no boundary
                figures["boundary_f"] = boundary
        if self._matches:
            figures["instances"] = instance_scores(sum_counts(self._matches))
        return figures
