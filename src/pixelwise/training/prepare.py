"""Before a training: look at the data, plan, try the network, and make the run's folder.

All that can be refused is refused here, before anything is written.
"""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pixelwise.core.config import Config, Overrides, read_config
from pixelwise.core.errors import DataError, ModelError, OutputError, RunError, SettingError
from pixelwise.core.files import cannot_write, write_json, write_text
from pixelwise.data.sets.doctor import ImageFacts, Survey, survey
from pixelwise.data.sets.folder import DataSet, open_dataset
from pixelwise.data.sets.labels import LabelRule
from pixelwise.data.sets.masks import MaskLabels
from pixelwise.models import UNet, checkpoint
from pixelwise.training.plan import Machine, make_plan


def prepare(
    data: Path,
    overrides: Overrides | None = None,
    *,
    minutes: float | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    allow: Sequence[str] = (),
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    known: Config | None = None,
) -> tuple[Config, Survey]:
    """Check the data, plan the settings (unless they are `known`), and try whether they make a network.

    Raises:
        PixelwiseError: bad data or settings.
    """
    machine = Machine.here(device)
    dataset = _open(data, known, overrides or {})
    rule = LabelRule.from_settings(known.data) if known else None
    surveyed = survey(dataset, MaskLabels(), meaning=rule, allow=allow, splits=("train", "val"), progress=progress)
    config = known or make_plan(surveyed, machine, overrides, minutes, epochs, seed)
    meant = LabelRule.from_settings(config.data)
    if meant != surveyed.meaning:  # the user says otherwise: do the masks agree?
        surveyed = surveyed.with_meaning(meant, allow)
    _require_labels(surveyed)
    _try_network(config, surveyed)
    return config, surveyed


def _require_labels(surveyed: Survey) -> None:
    """Refuse a split that is empty, or in which no pixel counts."""
    for split in ("train", "val"):
        if not any(fact.labels.any() for fact in surveyed.of(split)):
            raise DataError(
                f"{surveyed.dataset.root}: every pixel of the split '{split}' is ignored, so none is labelled."
            )


def check_folder(out: Path, resume: bool, force: bool) -> None:
    """Refuse a run folder that is in the way, before any work is done."""
    if is_child():
        return
    if resume and force:
        raise SettingError("--resume and --force exclude each other.")
    if resume:
        if not (out / "config.toml").is_file():
            raise RunError(f"{out}: holds no run to resume. Start one without --resume.")
        return
    if out.exists() or out.is_symlink():
        if not out.is_dir():
            raise OutputError(f"{out}: is a file; choose another folder for the run.")
        is_run = (out / "config.toml").is_file()
        if any(out.iterdir()) and not (force and is_run):
            advice = (
                "Use --resume to go on with it or --force to replace it."
                if is_run
                else "It does not look like a run, so it is not replaced; choose another folder."
            )
            raise RunError(f"{out}: exists already and is not empty. {advice}")
    parent = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"{out}: cannot be written ({parent} is no writable folder). Choose another folder.")


def is_child() -> bool:
    """Whether a launcher started this process beside a first one, which has done the checks."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0 or int(os.environ.get("NODE_RANK", 0)) > 0


def _open(data: Path, known: Config | None, overrides: Overrides) -> DataSet:
    if known:
        return open_dataset(data, known.data.folds, known.data.fold)
    chosen = overrides.get("data", {})
    folds, fold = chosen.get("folds", 0), chosen.get("fold", 0)
    if not isinstance(folds, int) or not isinstance(fold, int):
        raise SettingError(f"data.folds = {folds!r}, data.fold = {fold!r}: both must be whole numbers.")
    return open_dataset(data, folds, fold)


def resumed_config(
    out: Path, overrides: Overrides, minutes: float | None, epochs: int | None, seed: int | None
) -> Config:
    """The config of the run; whatever the user gives again must agree with it."""
    config = read_config(out / "config.toml")
    given: Overrides = {section: dict(values) for section, values in overrides.items()}
    for section, key, value in (
        ("train", "minutes", minutes),
        ("train", "epochs", epochs),
        ("", "seed", seed),
    ):
        if value is not None:
            given.setdefault(section, {})[key] = value
    tree = config.model_dump(mode="json")
    for section, values in given.items():
        own = tree[section] if section else tree
        for key, value in values.items():
            if own[key] != value:
                name = f"{section}.{key}" if section else key
                raise SettingError(
                    f"{name} = {value!r}: the run in {out} was started with {own[key]!r}. "
                    "Leave the setting out to resume, or start a new run (with --init for its weights)."
                )
    return config


def _try_network(config: Config, surveyed: Survey) -> None:
    """Build the network once and send the smallest batch through, so that impossible settings are refused now."""
    for fact in surveyed.facts.values():
        _check_channels(fact, config.data.channels)
    with torch.random.fork_rng(devices=[]):
        network = checkpoint.build_network(config).train()
        if isinstance(network, UNet):
            enough = 2 * network.geometry.stride  # more pixels, or more than two samples, would show nothing new
            height, width = (network.input_size(min(length, enough)) for length in config.train.patch)
            with torch.no_grad():
                network(torch.zeros(min(config.train.batch, 2), config.data.channels, height, width))


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


def make_folder(out: Path, config: Config, force: bool, fill: Callable[[Path], None] | None = None) -> None:
    """Make the run folder with its config, and what `fill` writes, at once: it appears under its name as a whole."""
    draft = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        draft.mkdir(parents=True)
        write_text(draft / "config.toml", config.to_toml())
        write_json(draft / "environment.json", environment())
        if fill is not None:
            fill(draft)
        if out.exists() and force:
            shutil.rmtree(out)
        elif out.exists():
            out.rmdir()  # empty, as check_folder saw
        draft.rename(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


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
