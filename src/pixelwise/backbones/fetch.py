"""Files of published weights: from the cache, from a file that someone put into it, or from the internet.

Only tensors are unpickled, and a silent server is given up after `TIMEOUT` seconds.
"""

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from pixelwise.core.errors import SettingError, reason

TIMEOUT = 10.0  # seconds without an answer
HUB_FILE = "model.safetensors"


def from_hub(name: str, hub_id: str, endpoint: str | None = None, folder: Path | None = None) -> dict[str, Tensor]:
    """The tensors of a repository of the Hugging Face hub, by name.

    Args:
        name: of the backbone, for messages.
        hub_id: OWNER/REPOSITORY, or OWNER/REPOSITORY@REVISION.
        endpoint: address of the hub, if not the usual one.
        folder: of the cache, if not the usual ones of the hub and of torch.

    Raises:
        SettingError: the file is missing and cannot be fetched, or does not hold tensors.
    """
    from safetensors.torch import load_file

    placed = (folder or _torch_folder()) / f"{hub_id.partition('@')[0].rpartition('/')[2]}.safetensors"
    path = placed if placed.exists() else _fetch_from_hub(name, hub_id, endpoint, folder, placed)
    try:
        return load_file(path)
    except Exception as error:  # of the library's own kind
        raise _broken(path, error) from error


def from_url(name: str, url: str, folder: Path | None = None) -> dict[str, Tensor]:
    """The tensors of a file that torch saved; its name ends with the start of its SHA-256.

    Args:
        name: of the backbone, for messages.
        url: of the file.
        folder: of the cache, if not torch's own.

    Raises:
        SettingError: the file is missing and cannot be fetched, or holds something other than tensors.
    """
    folder = folder or _torch_folder()
    path = folder / url.rpartition("/")[2]
    try:
        # Our standard output is for results, not for what torch prints.
        with _impatient(), contextlib.redirect_stdout(sys.stderr):
            return torch.hub.load_state_dict_from_url(
                url, str(folder), map_location="cpu", progress=sys.stderr.isatty(), check_hash=True, weights_only=True
            )
    except Exception as error:  # of the network, of the disk, or of the file's format
        raise _broken(path, error) if path.exists() else _unreachable(name, url, path, error) from error


def _fetch_from_hub(name: str, hub_id: str, endpoint: str | None, folder: Path | None, placed: Path) -> Path:
    """The file in the hub's cache, fetched if it is missing."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, _, revision = hub_id.partition("@")
    host = endpoint or constants.ENDPOINT

    def download(local_files_only: bool) -> Path:
        return Path(
            hf_hub_download(
                repository,
                HUB_FILE,
                revision=revision or None,
                cache_dir=folder,
                endpoint=host,
                etag_timeout=TIMEOUT,
                local_files_only=local_files_only,
            )
        )

    try:
        return download(local_files_only=True)
    except LocalEntryNotFoundError:
        url = f"{host}/{repository}/resolve/{revision or 'main'}/{HUB_FILE}"
    try:
        _greet(host)  # the hub's client would try for most of a minute
        return download(local_files_only=False)
    except Exception as error:  # the client passes on the errors of its HTTP library, which changes between versions
        raise _unreachable(name, url, placed, error) from error


def _greet(host: str) -> None:
    """Raise an error unless a server answers; what it answers does not matter."""
    try:
        urlopen(Request(host, method="HEAD"), timeout=TIMEOUT).close()
    except HTTPError as answer:
        answer.close()


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Let connections that are opened meanwhile time out, since torch.hub does not set a timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _torch_folder() -> Path:
    """Where torch keeps weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _unreachable(name: str, url: str, path: Path, error: BaseException) -> SettingError:
    return SettingError(
        f"model.pretrained: the weights of {name} could not be fetched from {url}: {reason(error)}. Connect to "
        f"the internet, put that file at {path}, or leave model.pretrained out."
    )


def _broken(path: Path, error: BaseException) -> SettingError:
    return SettingError(
        f"model.pretrained: {path} is not a complete file of weights: {reason(error)}. Remove it and try again."
    )
