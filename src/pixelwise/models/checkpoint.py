"""Weights, settings and training state on disk: safetensors only, so nothing is ever unpickled.

`model.safetensors` holds the best weights, its metadata the resolved config; `last/state.safetensors` holds
everything that resuming needs. Each is a single file, renamed when complete, so that it never mixes two moments.
"""

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pixelwise.core.config import Config, ModelSettings, make_config
from pixelwise.core.errors import ModelError, RunError, SettingError, near
from pixelwise.core.files import write_with
from pixelwise.models import MODELS, Segmenter, build

FORMAT = "pixelwise"
VERSION = 2


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write named tensors and JSON metadata as one safetensors file, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": FORMAT, "version": str(VERSION), "content": json.dumps(metadata)}
    write_with(path, lambda temporary: _save_file(ready, temporary, header))


def _save_file(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata=header)
    except SafetensorError as error:  # its I/O errors carry no errno
        raise OSError(str(error)) from error


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save` wrote.

    Raises:
        RunError: the file is missing, broken, not ours, or of another version.
    """
    if not path.is_file():
        raise RunError(f"{path}: no such file. Is this the folder of a finished `pixelwise train`?")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            _check_header(path, header)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return tensors, json.loads(header["content"])
    except (SafetensorError, json.JSONDecodeError, OSError, KeyError) as error:
        raise RunError(f"{path}: is not a readable checkpoint ({error}). Train again, or restore the file.") from error


def _check_header(path: Path, header: Mapping[str, str]) -> None:
    if header.get("format") != FORMAT:
        raise RunError(f"{path}: was not written by pixelwise.")
    if header.get("version") != str(VERSION):
        raise RunError(
            f"{path}: is a checkpoint of version {header.get('version')}; this pixelwise reads version {VERSION}. "
            "Use the pixelwise that wrote it, or train again."
        )


def build_network(config: Config) -> Segmenter:
    """The network that a config describes, freshly initialised from torch's current random state.

    Raises:
        SettingError, ModelError: as of `network_from`.
    """
    return network_from(config.model, config.data.channels, len(config.data.classes))


def network_from(settings: ModelSettings, channels: int, classes: int) -> Segmenter:
    """The network with these settings, freshly initialised from torch's current random state.

    Settings that are None are left to the network; `STARTS` are left to the training, so that a run can be read
    without the weights that it started from.

    Raises:
        SettingError, ModelError: the settings make no network, or one that lacks what they ask for.
    """
    keywords = settings.architecture
    own = settings_of(settings.name)
    for key in keywords:
        if key not in own and not (key == "backbone" and MODELS[settings.name].own_encoder):  # `build` tells why
            raise SettingError(f"model.{key}: {settings.name} has no such setting; it has {', '.join(own)}.")
    network = build(settings.name, in_channels=channels, num_classes=classes, **keywords)
    if settings.pretrained and network.backbone is None:
        setting, what = ("weights", "to take them") if settings.weights else ("pretrained", "with published weights")
        raise SettingError(
            f"model.{setting}: {settings.title()} has no backbone {what}; "
            f"choose a network that has one, or leave model.{setting} out."
        )
    return network


def settings_of(name: str) -> list[str]:
    """The settings of section `model` that the network called `name` has.

    Raises:
        SettingError: the network is unknown.

    >>> "padding" in settings_of("unet")
    True
    """
    if name not in MODELS:
        raise SettingError(f"model.name: unknown network {name!r}; {near(name, MODELS)}")
    parameters = inspect.signature(MODELS[name]).parameters
    return [key for key in ModelSettings.model_fields if key in parameters]


def save_model(path: Path, network: nn.Module, config: Config, facts: Mapping[str, Any]) -> None:
    """Write a network's weights, the config that builds it, and some facts about its training."""
    save(path, network.state_dict(), {"config": config.model_dump(mode="json"), **facts})


def fingerprint(network: nn.Module, config: Config) -> str:
    """A hash of everything that a prediction depends on: the weights, and the settings of network and data."""
    model = config.model.model_dump(exclude={"weights"})  # where it started does not matter any more
    digest = hashlib.sha256(json.dumps([model, config.data.model_dump()]).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_model(
    path: Path, build: Callable[[Config], nn.Module] = build_network
) -> tuple[nn.Module, Config, dict[str, Any]]:
    """Read what `save_model` wrote: the network in eval mode, its config, the facts.

    Args:
        path: the file.
        build: makes the network that a config describes.

    Raises:
        RunError: the file cannot be used.
    """
    tensors, metadata = load(path)
    try:
        config = make_config(metadata.pop("config"), str(path))
        network = build(config)
    except (SettingError, ModelError, KeyError) as error:
        raise RunError(f"{path}: its settings cannot be used here: {error}") from error
    load_weights(network, tensors, path)
    return network.eval(), config, metadata


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fill a network; every tensor must be there, with its shape.

    Raises:
        RunError: they do not fit.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        name = wrong[0]
        raise RunError(
            f"{path}: its weights do not fit the network: {len(wrong)} tensors differ, "
            f"first {name}: {found.get(name, 'missing')} in the file, {wanted.get(name, 'none')} in the network."
        )
    network.load_state_dict(dict(tensors))


def load_matching(network: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Start a network from another's weights where names and shapes agree; returns the names of all other weights.

    This is how `--init` fine-tunes: a head for other classes, or a first layer for other channels, starts afresh.
    """
    own = network.state_dict()
    fitting = {name: t for name, t in tensors.items() if name in own and own[name].shape == t.shape}
    network.load_state_dict({**own, **fitting})
    return sorted(own.keys() - fitting.keys())


def describe_matching(network: nn.Module, afresh: Sequence[str]) -> str:
    """Which tensors `load_matching` took and which it left, part by part."""
    own = network.state_dict()
    taken = [name for name in own if name not in set(afresh)]
    left = f" ({_by_part(afresh)})" if afresh else ""
    return f"{len(taken)} of {len(own)} tensors were taken ({_by_part(taken)}), {len(afresh)} start afresh{left}"


def _by_part(names: Iterable[str]) -> str:
    """How many of them each part of the network has."""
    counts = Counter(name.partition(".")[0] for name in sorted(names))
    return ", ".join(f"{part} {count}" for part, count in counts.items()) or "none"


def flatten(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put `prefix/` before every name."""
    return {f"{prefix}/{name}": tensor for name, tensor in state.items()}


def unflatten(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries below `prefix/`, without it."""
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors `parameter number/key`; all its values are tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{key}": value for index, values in state.items() for key, value in values.items() if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split("/")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # The same strides too: vector and scalar code round differently, and the bits would part.
                values[key] = torch.empty_like(parameter).copy_(value)
