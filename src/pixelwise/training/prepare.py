"""Before a training: look at the data, plan, try the network, and make the run's folder.

All that can be refused is refused here, before anything is written.
"""

import os
import platform
import shutil
import sys
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from torch import nn

from pixelwise.backbones import Loaded, load_pretrained, load_weights
from pixelwise.backbones.reading import check_file
from pixelwise.core.config import Config, Overrides, read_config
from pixelwise.core.draft import Draft, check_value
from pixelwise.core.errors import DataError, ModelError, OutputError, RunError, SettingError
from pixelwise.core.files import cannot_write, write_json, write_text
from pixelwise.core.progress import Progress
from pixelwise.core.run_folder import RunFolder
from pixelwise.data.health.examine import ImageFacts
from pixelwise.data.health.kept import Memory
from pixelwise.data.health.problems import current
from pixelwise.data.health.survey import Survey, read_samples, sound, understand
from pixelwise.data.sets.folder import DataSet, open_dataset
from pixelwise.engines.machine import Machine
from pixelwise.task import Task
from pixelwise.training.data_state import state_of
from pixelwise.training.plan import make_plan
from pixelwise.training.step import Parts

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Start:
    """How a training is started; what it trains stands in its settings."""

    init: Path | None = None  # a run whose weights to start from
    resume: bool = False  # go on with the run; settings that are given must be the run's own
    force: bool = False  # replace the run that is there
    allow: tuple[str, ...] = ()  # codes of problems whose files are left out
    device: str = "auto"  # auto, cpu, cuda, mps
    began: float | None = None  # `time.monotonic()` at the command's start: minutes count from there


def prepare(
    task: Task,
    data: Path,
    overrides: Overrides | None = None,
    start: Start | None = None,
    progress: Progress | None = None,
    known: Config | None = None,
) -> tuple[Config, Survey]:
    """Check the data, plan the settings (unless they are `known`), and try whether they make a network.

    Raises:
        PixelwiseError: bad data or settings.
    """
    start = start or Start()
    draft = Draft(overrides or {})  # refuses what makes no sense by itself before any file is read
    if known is None:
        _check_weights(draft["model.weights"], start.init)
    allow = current(start.allow)
    machine = Machine.here(start.device)
    dataset = _open(data, known, overrides or {})
    meaning = task.meaning(known) if known else None
    memory = Memory(psutil.virtual_memory().total // 4)
    surveyed = sound(
        understand(read_samples(dataset, task.labels, progress=progress, memory=memory), meaning, allow), allow
    )
    config = known or make_plan(task, surveyed, machine, _with_network_of(start.init, overrides or {}))
    meant = task.meaning(config)
    if meant != surveyed.meaning:  # the user says otherwise: do the labels agree?
        surveyed = surveyed.with_meaning(meant, allow)
    _require_labels(surveyed)
    tiny = task.labels.vanishing(surveyed.of("train"), surveyed.meaning, config.data.scale)
    surveyed = replace(surveyed, problems=(*surveyed.problems, *tiny))
    _try_network(task, config, surveyed)
    return config, surveyed


def _with_network_of(init: Path | None, overrides: Overrides) -> Overrides:
    """The settings that the user chose, and, unless these describe a network, the network of the run to start from."""
    if init is None:
        return overrides
    chosen = overrides.get("model", {})
    is_described = bool(chosen) or not RunFolder(init).config.is_file()  # what is missing is told where it is loaded
    first = None if is_described else read_config(RunFolder(init).config).model
    own = {"name": first.name, **first.architecture} if first else {}
    return {**overrides, "model": {**own, "pretrained": False, **chosen}}  # its weights are the start, no others


def _check_weights(weights: str | None, init: Path | None) -> None:
    """Refuse a file to start from that is none by its looks, or that is not the only start."""
    if weights is None:
        return
    if init is not None:
        raise SettingError(
            f"--weights {weights} and --init {init} exclude each other: start from a file of weights or from a run."
        )
    check_file(Path(weights))


def starting_weights(config: Config, network: nn.Module, progress: Progress | None = None) -> Loaded | None:
    """Put the weights into a network's backbone that the settings ask for; None if they ask for none.

    Raises:
        SettingError: they cannot be had, or do not fit.
    """
    backbone = cast(Any, network).backbone if config.model.pretrained else None
    if backbone is None:
        return None
    if config.model.weights is not None:
        return load_weights(backbone, Path(config.model.weights))
    return load_pretrained(backbone, progress=progress)


def _require_labels(surveyed: Survey) -> None:
    """Refuse a split that is empty, or in which nothing is labelled."""
    for split in SPLITS:
        if not any(fact.labels.any() for fact in surveyed.of(split)):
            raise DataError(
                f"{surveyed.dataset.root}: every pixel of the split '{split}' is ignored, so none is labelled."
            )


def check_folder(folder: RunFolder, start: Start) -> None:
    """Refuse a run folder that is in the way, before any work is done."""
    if is_child():
        return
    out = folder.path
    if start.resume and start.force:
        raise SettingError("--resume and --force exclude each other.")
    if start.resume:
        if not folder.config.is_file():
            raise RunError(f"{out}: holds no run to resume. Start one without --resume.")
        return
    if out.exists() or out.is_symlink():
        _check_existing(folder, start.force)
    parent = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"{out}: cannot be written, because {parent} is not writable. Choose another folder.")


def _check_existing(folder: RunFolder, force: bool) -> None:
    out = folder.path
    if not out.is_dir():
        raise OutputError(f"{out}: is a file; choose another folder for the run.")
    is_run = folder.config.is_file()
    if any(out.iterdir()) and not (force and is_run):
        advice = (
            "Use --resume to go on with it or --force to replace it."
            if is_run
            else "It does not look like a run, so it is not replaced; choose another folder."
        )
        raise RunError(f"{out}: exists already and is not empty. {advice}")


def is_child() -> bool:
    """Whether a launcher started this process beside a first one, which has done the checks."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0 or int(os.environ.get("NODE_RANK", 0)) > 0


def _open(data: Path, known: Config | None, overrides: Overrides) -> DataSet:
    if known:
        return open_dataset(data, known.data.folds, known.data.fold)
    chosen = overrides.get("data", {})
    folds, fold = (check_value("data", key, chosen.get(key, 0)) for key in ("folds", "fold"))
    return open_dataset(data, folds, fold)


def resumed_config(folder: RunFolder, overrides: Overrides) -> Config:
    """The config of the run; whatever the user gives again must agree with it.

    Raises:
        SettingError: it does not.
    """
    config = read_config(folder.config)
    for section, values in overrides.items():
        own = getattr(config, section) if section else config
        for key, value in values.items():
            if value is not None and getattr(own, key) != check_value(section, key, value):
                name = f"{section}.{key}" if section else key
                raise SettingError(
                    f"{name} = {value!r}: the run in {folder.path} was started with {getattr(own, key)!r}. "
                    "Leave the setting out to resume, or start a new run (with --init for its weights)."
                )
    return config


def _try_network(task: Task, config: Config, surveyed: Survey) -> None:
    """Build the network once and send the smallest batch through, so that impossible settings are refused now."""
    for fact in surveyed.facts.values():
        _check_channels(fact, config.data.channels)
    with torch.random.fork_rng(devices=[]):
        network = cast(Any, task.network(config).train())
        Parts(network).check(config.train.schedule)
        enough = 2 * network.stride  # more pixels, or more than two samples, would show nothing new
        height, width = (network.input_size(min(length, enough)) for length in config.train.patch)
        with torch.no_grad():
            network.outputs(torch.zeros(min(config.train.batch, 2), config.data.channels, height, width))


def _check_channels(fact: ImageFacts, channels: int) -> None:
    """What `match_channels` would refuse: grey serves as RGB, and RGB whose channels are equal as grey."""
    if (fact.channels, channels) == (3, 1):
        if (fact.mean != fact.mean[0]).any() or (fact.variance != fact.variance[0]).any():
            raise ModelError(
                f"{fact.sample.image}: is a colour image, but data.channels = 1 takes grey ones; "
                "convert it to grey first, or leave the setting out."
            )
    elif fact.channels != channels and (fact.channels, channels) != (1, 3):
        raise ModelError(
            f"data.channels = {channels}: the images have {fact.channels} channels, for example {fact.sample.image}."
        )


def make_folder(folder: RunFolder, config: Config, surveyed: Survey, force: bool, loaded: Loaded | None = None) -> None:
    """Make the run folder with its config, its data's state and its first weights: it appears as a whole."""
    out = folder.path
    draft = RunFolder(out.with_name(f".{out.name}.{os.getpid()}.part"))
    try:
        draft.path.mkdir(parents=True)
        write_text(draft.config, config.to_toml())
        write_json(draft.environment, environment())
        write_json(draft.data, state_of(surveyed))
        if loaded:
            write_json(draft.weights, vars(loaded))
        if out.exists() and force:
            shutil.rmtree(out)
        elif out.exists():
            out.rmdir()  # empty, as check_folder saw
        draft.path.rename(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(draft.path, ignore_errors=True)


def environment() -> dict[str, Any]:
    """Versions and machine, to be kept with a run."""
    packages = ("pixelwise", "torch", "torchvision", "lightning-fabric", "numpy", "opencv-python-headless")
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine(),
        "packages": {name: metadata.version(name) for name in packages},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
