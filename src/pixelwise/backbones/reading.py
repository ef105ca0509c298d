"""Tensors out of a file of weights that comes from outside: safetensors, or what torch saved, of tensors alone.

Nothing but tensors is ever unpickled. What cannot be used is refused with a reason: a web page that was saved in the
file's place, a file that was cut short, a pickled network.
"""

import argparse
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixelwise.core.errors import SettingError, reason

SAFETENSORS, PICKLED = (".safetensors",), (".pth", ".pt", ".bin", ".ckpt", ".tar")
SUFFIXES = (*SAFETENSORS, *PICKLED)
"""Of the files that are read; `.ckpt` is Lightning's, `.pth.tar` that of older scripts."""

HOW_TO_CONVERT = (
    "Save its tensors alone where it can be loaded: torch.save(network.state_dict(), FILE), or "
    "safetensors.torch.save_file(network.state_dict(), FILE)"
)


def read_tensors(path: Path, setting: str = "model.weights") -> dict[str, Tensor]:
    """All tensors of a file by name; those of dicts inside of dicts have the dicts' names before theirs.

    Args:
        path: a file with one of `SUFFIXES`.
        setting: whose file it is, for messages.

    Returns:
        Name -> tensor, on the CPU, in the file's order.

    Raises:
        SettingError: the file is missing, is no file of weights, was cut short, or holds more than tensors.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "weights.pth")
    >>> torch.save({"epoch": 3, "state_dict": {"conv.weight": torch.zeros(2)}}, path)
    >>> list(read_tensors(path))
    ['state_dict.conv.weight']
    """
    check_file(path, setting)
    content = _read_safetensors(path, setting) if path.suffix.lower() in SAFETENSORS else _read_pickled(path, setting)
    tensors = dict(_flat(content)) if isinstance(content, Mapping) else {}
    if not tensors:
        raise SettingError(f"{setting}: {path} holds no tensors by name, but {_kind(content)}. {HOW_TO_CONVERT}.")
    return tensors


def check_file(path: Path, setting: str = "model.weights") -> None:
    """Refuse what is no file of weights by its looks, without reading all of it.

    Raises:
        SettingError: it is missing, a folder, empty, a web page, or has another suffix.
    """
    if path.is_dir():
        raise SettingError(f"{setting}: {path} is a folder: name a file of weights in it ({', '.join(SUFFIXES)}).")
    try:
        with path.open("rb") as file:
            start = file.read(512).lstrip()
    except OSError as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({reason(error)})"
        raise SettingError(f"{setting}: {path} {what}: name a file of weights ({', '.join(SUFFIXES)}).") from error
    if path.suffix.lower() not in SUFFIXES:
        raise SettingError(f"{setting}: {path} is not read: a file of weights ends in {', '.join(SUFFIXES)}.")
    if not start:
        raise SettingError(f"{setting}: {path} is empty: fetch it again.")
    if start[:1] == b"<":
        raise SettingError(
            f"{setting}: {path} is a web page, not a file of weights: fetch it again by its direct address, which "
            f"often ends in the file's name or in ?download=true."
        )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_safetensors(path: Path, setting: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # of the library's own kind
        raise _broken(path, setting, error) from error


def _read_pickled(path: Path, setting: str) -> Any:
    """What torch saved. A Namespace of options stands in many checkpoints; it is data, and nothing of it is called."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, of zip, of torch, or whatever strange content leads to
        if names := _others(path):
            raise SettingError(
                f"{setting}: {path} holds more than tensors ({', '.join(names[:3])}), and nothing else is unpickled, "
                f"since that could run any program. {HOW_TO_CONVERT}."
            ) from error
        raise _broken(path, setting, error) from error


def _others(path: Path) -> list[str]:
    """Names of what a file of torch holds besides tensors; none if that cannot be told. Nothing is unpickled."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # it is no such file, or one of torch's older format
        return []


def _broken(path: Path, setting: str, error: BaseException) -> SettingError:
    why = reason(error)
    if "Weights only load failed" in why:  # torch goes on with advice to unpickle it anyway
        why = "it is not in torch's format, or holds more than tensors"
    return SettingError(
        f"{setting}: {path} is not a complete file of weights: {why}. Fetch it again; if it is a pickled network, save "
        f"its state_dict() instead."
    )


def _flat(content: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors with the names of their dicts before their own; an optimiser's stand under numbers and are left out."""
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            yield before + name, value
        elif isinstance(name, str) and isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")


def _kind(content: Any) -> str:
    """What there is instead of tensors, in a few words."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    kinds = [f"{name}: {type(value).__name__}" for name, value in list(content.items())[:4]]
    return f"a dict of {', '.join(kinds)}{', ...' if len(content) > 4 else ''}" if kinds else "an empty dict"
