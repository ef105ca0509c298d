"""Every setting of a run: one tree, one TOML file, no inheritance; an unknown key is an error.

`overrides` below means the part of the tree that the user set (a nested dict); the plan fills in the rest.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from typing_extensions import override

from pixelwise.core.errors import SettingError, near

Overrides = dict[str, dict[str, Any]]
LabelKind = Literal["binary", "index", "instances", "color"]
Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Byte = Annotated[int, Field(ge=0, le=255)]
Rgb = tuple[Byte, Byte, Byte]


def _absolute(value: str) -> str:
    """A path that means the same wherever the settings are read again."""
    return str(Path(value).expanduser().absolute())


def _square(value: Any) -> Any:
    """One side stands for both."""
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


FilePath = Annotated[str, AfterValidator(_absolute)]
Patch = Annotated[tuple[Count, Count], BeforeValidator(_square)]

Levels = Annotated[list[float], Field(min_length=4, max_length=4)]
AnyFloat = Annotated[float, Field(allow_inf_nan=True)]

MAX_CHANNELS = 4096
Channels = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]


class Section(BaseModel):
    """Base of all sections: frozen, strict about names, and without NaN or infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(Section):
    """What the images and labels are, and how they are brought to the network."""

    labels: LabelKind  # what the values of a mask stand for
    classes: list[str]  # names, by class index
    colors: list[Rgb]  # the classes' colours in masks, overlays and reports
    values: list[int]  # the mask values of the classes, in their order; empty: 0, 1, 2, ..., or their colours
    ignore: list[int | Rgb]  # mask values, or colours, that count nowhere
    channels: Channels  # of an image as the network sees it; grey images are repeated to fit 3
    scale: Annotated[float, Field(gt=0, le=4)]  # images are resized by this before the network, masks back after it
    normalization: Literal["fixed", "percentile"]  # by the training set alone, or by each image's percentiles first
    mean: list[float]  # per channel, of the (stretched) intensities of the training set
    std: list[Positive]
    levels: Levels | None = None  # the training images' 1st and 99th percentiles (medians), and a low and a high 99th
    nodata: AnyFloat | None = None  # value of pixels without data, in images whose files do not say; may be nan
    folds: Annotated[int, Field(ge=0)] = 0  # k-fold cross-validation over train and val; 0 is off
    fold: Annotated[int, Field(ge=0)] = 0  # which fold validates
    absent: list[int] = []  # classes without a pixel in the training set
    targets: list[int] = []  # the class of each of `values`; empty: its place among them


STARTS = ("pretrained", "weights")
"""Settings of a model that say where its training starts; the network is the same without them."""


class ModelSettings(Section):
    """The network. The plan or the network itself chooses what is left out; a setting that it lacks is refused."""

    name: str = "unet"
    width: Count | None = None  # channels of the first level, or of the layers behind a backbone
    depth: Count | None = None  # number of poolings
    padding: Literal["same", "valid"] | None = None
    norm: Literal["batch", "group", "none"] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    stem: Literal[1, 2, 4] | None = None  # side of the pixel blocks that are folded into channels first
    residual: bool | None = None  # a shortcut beside each level's two convolutions
    backbone: str | None = None  # the encoder by name: resnet50, vgg16, any timm encoder
    pretrained: bool = False  # start from the backbone's published weights: cached, installed, or downloaded once
    weights: FilePath | None = None  # start from those of this file instead; it sets pretrained
    output_stride: Literal[8, 16, 32] | None = None  # image pixels of a cell at the backbone's deepest level
    auxiliary: bool | None = None  # a second head on an earlier level, used in training only
    head: Literal["aspp", "largefov"] | None = None  # of DeepLabV2
    image_branch: bool | None = None  # pooling over the whole image beside the atrous convolutions

    @property
    def architecture(self) -> dict[str, Any]:
        """What a network is built of: the settings that are not None, without its name and where its weights start."""
        return self.model_dump(exclude={"name", *STARTS}, exclude_none=True)

    def title(self) -> str:
        """The network in a few words.

        >>> ModelSettings(name="pspnet", backbone="resnet18", width=64).title()
        'pspnet, backbone resnet18, width 64'
        """
        known = {key: getattr(self, key) for key in ("backbone", "width", "depth")}
        return ", ".join([self.name, *(f"{key} {value}" for key, value in known.items() if value is not None)])


class PhaseSettings(Section):
    """A phase of the training, one `[[train.schedule]]` table; without a schedule all parts train all the time.

    Phases run one after the other. In each, the rate rises and falls as it does in a run without phases. Frozen parts
    keep their weights and the statistics of their batch norm.
    """

    parts: str  # which parts of the network train: encoder, decoder or all; the others are frozen
    share: Positive  # of the run's length, relative to the sum of all phases' shares
    rate: Positive  # factor of train.rate


class TrainSettings(Section):
    """The optimisation."""

    recipe: Literal["default", "paper"] = "default"  # paper: Ronneberger et al. 2015
    patch: Patch  # height, width of the labelled part of a sample, after data.scale; one number is a square
    batch: Count
    epochs: Count | None = None  # exactly one of epochs and minutes is set
    minutes: Positive | None = None  # how long the whole command may take
    steps_per_epoch: Count
    optimizer: Literal["adamw", "sgd"] = "adamw"
    rate: Positive  # highest learning rate
    encoder_rate: Positive = 1.0  # factor of the rate for the encoder, such as one that starts from published weights
    encoder_norm: Literal["adapted", "kept"] = (
        "adapted"  # statistics of the encoder's batch norm: learnt, or as it began
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd only
    weight_decay: NotNegative = 0.01
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05  # share of the run, or of each phase, in which the rate rises
    clip: NotNegative = 1.0  # largest norm of the gradient; 0 is off
    average: Annotated[float, Field(ge=0, lt=1)] = 0.99  # decay of the averaged weights; 0 is off
    balance: Unit = 0.0  # share of the patches that are centred on a class, all classes equally often
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    patience: Annotated[int, Field(ge=0)] = 0  # stop after this many epochs without a better validation; 0 is off
    validate_every: Count = 1  # validate after every so many epochs
    devices: Count = 1  # processes, each with a device of its own
    nodes: Count = 1
    strategy: Literal["auto", "ddp"] = "auto"  # of Lightning Fabric; auto is ddp with several devices
    checkpoint_seconds: NotNegative = 30.0  # how often the state for a resume is saved within an epoch
    schedule: list[PhaseSettings] = []  # phases of the run, see train.schedule below; empty is one phase of all parts


class AugmentSettings(Section):
    """Random changes of a training sample; image and labels move together."""

    flip_horizontal: bool = True
    flip_vertical: bool = True
    turns: bool = True  # by right angles
    warp: Unit = 0.5  # probability of rotation, zoom and elastic deformation; other samples keep their pixels
    rotation: Annotated[float, Field(ge=0, le=180)] = 180.0  # degrees, to either side
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.25  # zoom between 1/(1+s) and 1+s
    aspect: Annotated[float, Field(ge=0, lt=1)] = 0.1
    elastic: NotNegative = 4.0  # standard deviation of the displacements, pixels
    elastic_spacing: Positive = 48.0  # distance of the displaced grid points, pixels
    elastic_probability: Unit = 0.5
    brightness: NotNegative = 0.2  # in standard deviations of the training set
    contrast: NotNegative = 0.2
    color: Unit = 0.5  # probability that brightness and contrast are drawn for each channel
    noise: NotNegative = 0.15  # largest standard deviation
    noise_probability: Unit = 0.3
    blur: NotNegative = 1.2  # largest standard deviation, pixels
    blur_probability: Unit = 0.15


class LossSettings(Section):
    """What is minimised."""

    cross_entropy: NotNegative = 1.0  # factor, like the next four; 0 is off
    dice: NotNegative = 1.0
    focal: NotNegative = 0.0
    tversky: NotNegative = 0.0
    lovasz: NotNegative = 0.0
    focal_gamma: NotNegative = 2.0  # focus on pixels that are still wrong; 0 is cross entropy
    tversky_alpha: NotNegative = 0.3  # weight of false positives
    tversky_beta: NotNegative = 0.7  # weight of false negatives
    class_weight_power: Unit = 0.35  # class weights are inverse frequencies to this power
    border: NotNegative = 0.0  # w0 of the border weights; 0 is off
    border_sigma: Positive = 5.0  # pixels
    auxiliary: NotNegative = 0.4  # factor of the auxiliary head's loss, if the network has one
    edges: NotNegative = 2.0  # factor of the boundary loss, if the network draws boundaries; the paper has 20
    dual: NotNegative = 1.0  # factor of the disagreement between classes and boundaries, if the network draws them


class Config(Section):
    """All settings of a run, resolved: enough to repeat it."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    task: str = "segment"  # what is learnt
    data: DataSettings
    model: ModelSettings
    train: TrainSettings
    augment: AugmentSettings
    loss: LossSettings

    @override
    def __repr__(self) -> str:
        """The plan in a line; `to_toml` has all of it."""
        train = self.train
        length = f"{train.epochs} epochs" if train.minutes is None else f"{train.minutes:g} minutes"
        patches = f"{train.batch} patches of {train.patch[0]} x {train.patch[1]} a step"
        return f"Config({self.task}: {self.model.title()}; {patches}; {length})"

    def to_toml(self) -> str:
        """The config as a TOML document; unset values are left out."""
        return tomli_w.dumps(self.model_dump(exclude_none=True, mode="json"))


SECTIONS: dict[str, type[Section]] = {
    "data": DataSettings,
    "model": ModelSettings,
    "train": TrainSettings,
    "augment": AugmentSettings,
    "loss": LossSettings,
}


TOP = ("seed", "task")
"""Settings that belong to no section."""


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        SettingError: it is missing, unreadable, or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows editors write a mark
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: cannot be read ({error}).") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{path}: is not valid TOML: {error}.") from error


def read_config(path: Path) -> Config:
    """Read a resolved config, as a run keeps it."""
    return make_config(read_toml(path), str(path))


def make_config(tree: Mapping[str, Any], source: str = "settings") -> Config:
    """Validate a whole tree.

    Raises:
        SettingError: a key is unknown or missing, or a value is of the wrong type or out of range.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise SettingError(f"{source}: {explain(error)}") from error


def explain(error: ValidationError, section: str = "") -> str:
    """What pydantic found wrong, a sentence for each of the first five settings; `section` is that of all of them."""
    sentences: dict[str, str] = {}
    for problem in error.errors():
        # Pydantic also names validators and the branches of unions, which belong to no setting's name.
        place = [str(part) for part in problem["loc"] if not re.match(r"(function-|tuple\[|list\[|int$)", str(part))]
        location = [*section.split("."), *place] if section else place
        sentences.setdefault(".".join(location), _explain_one(location, dict(problem)))
    return " ".join(list(sentences.values())[:5])


def _explain_one(location: list[str], problem: dict[str, Any]) -> str:
    name = ".".join(location)
    if problem["type"] == "extra_forbidden":
        home = ".".join(part for part in location[:-1] if not part.isdigit())
        sections: dict[str, type[Section]] = {**SECTIONS, "train.schedule": PhaseSettings}
        section = sections.get(home)
        known = section.model_fields if section else Config.model_fields
        return f"{name} is not a setting; {near(location[-1], known)}"
    if problem["type"] == "missing":
        return f"{name} is missing."
    return f"{name} = {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}."


def parse_overrides(file: Path | None, assignments: Sequence[str]) -> Overrides:
    """The settings that the user chose: those of a TOML file, then `section.key=value` assignments over them.

    >>> parse_overrides(None, ["train.batch=4", "model.padding=valid"])
    {'train': {'batch': 4}, 'model': {'padding': 'valid'}}

    Raises:
        SettingError: a key is unknown (near ones are named), or an assignment has no value.
    """
    tree: dict[str, Any] = read_toml(file) if file else {}
    overrides: Overrides = {}
    for section, values in tree.items():
        if isinstance(values, dict):
            overrides[section] = dict(values)
        else:
            overrides.setdefault("", {})[section] = values
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        if not separator:
            raise SettingError(f"--set {assignment}: write it as section.key=value, for example train.batch=4.")
        section, _, key = name.strip().rpartition(".")
        overrides.setdefault(section, {})[key] = _parse_value(text.strip())
    check_names(overrides, str(file) if file else "--set")
    return overrides


def check_names(overrides: Overrides, source: str) -> None:
    """Raise a SettingError for the first key that no section has."""
    for section, values in overrides.items():
        if section and section not in SECTIONS:
            raise SettingError(f"{source}: [{section}] is not a section of settings; {near(section, SECTIONS)}")
        known = list(SECTIONS[section].model_fields) if section else list(TOP)
        for key in values:
            if key not in known:
                full = f"{section}.{key}" if section else key
                choices = [f"{section}.{name}" for name in known] if section else _all_names()
                raise SettingError(f"{source}: {full} is not a setting; {near(full, choices)}")


def _all_names() -> list[str]:
    return [
        *TOP,
        *(f"{section}.{key}" for section, model in SECTIONS.items() for key in model.model_fields),
    ]


def _parse_value(text: str) -> Any:
    """A TOML value, or the text itself: `4`, `0.1`, `true`, `[256, 256]`, `valid`."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
