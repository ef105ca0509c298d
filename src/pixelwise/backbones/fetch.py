"""Files of published weights: from a cache, from a file that someone put there, or from the internet.

A server that does not answer is given up after `TIMEOUT` seconds, whatever it is that keeps it silent. A file that was
fetched has the size and the SHA-256 that its server tells, or is not kept.
"""

import hashlib
import re
import threading
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch
from typing_extensions import override

from pixelwise.core.errors import SettingError, reason
from pixelwise.core.files import whole
from pixelwise.core.progress import Progress

TIMEOUT = 8.0  # seconds without an answer
CHUNK = 1 << 20  # bytes
HUB_FILE = "model.safetensors"


def cached_of_hub(hub_id: str, folder: Path | None = None) -> Path | None:
    """The file of a repository of the Hugging Face hub, if it is here already: put by hand, or in the hub's cache.

    Args:
        hub_id: OWNER/REPOSITORY, or OWNER/REPOSITORY@REVISION.
        folder: of the cache, if not the usual ones of the hub and of torch.
    """
    from huggingface_hub import try_to_load_from_cache

    placed = place_of_hub(hub_id, folder)
    if placed.is_file():
        return placed
    repository, _, revision = hub_id.partition("@")
    found = try_to_load_from_cache(repository, HUB_FILE, cache_dir=folder, revision=revision or None)
    return Path(found) if isinstance(found, str) else None


def place_of_hub(hub_id: str, folder: Path | None = None) -> Path:
    """Where a file of the hub is put, by us or by hand."""
    return (folder or torch_folder()) / f"{hub_id.partition('@')[0].rpartition('/')[2]}.safetensors"


def url_of_hub(hub_id: str, endpoint: str | None = None) -> str:
    """The address of a repository's weights, on the usual hub or on another one."""
    from huggingface_hub import constants

    repository, _, revision = hub_id.partition("@")
    return f"{endpoint or constants.ENDPOINT}/{repository}/resolve/{revision or 'main'}/{HUB_FILE}"


def torch_folder() -> Path:
    """Where torch keeps weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def checksum_in(name: str) -> str:
    """The start of the SHA-256 with which torch ends a file's name; "" if there is none.

    >>> checksum_in("resnet18-f37072fd.pth"), checksum_in("model.safetensors")
    ('f37072fd', '')
    """
    found = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    return found[1] if found else ""


def fetch(encoder: str, url: str, path: Path, progress: Progress | None = None) -> None:
    """Fetch a file, whole or not at all.

    Args:
        encoder: whose weights they are, for messages.
        url: of the file.
        path: where to put it.
        progress: is called with the bytes that have come, and with all.

    Raises:
        SettingError: it cannot be fetched, or is not what its server says; the message says how to bring it by hand.
        OutputError: it cannot be written.
    """
    try:
        _fetch(url, path, progress)
    except _FetchError as error:
        raise SettingError(
            f"model.pretrained: the weights of {encoder} could not be fetched from {url}: {error}. Connect to the "
            f"internet, put that file at {path}, name any file of weights with --weights, or leave model.pretrained "
            f"out."
        ) from error


class _FetchError(Exception):
    """Why a file did not come."""


def _fetch(url: str, path: Path, progress: Progress | None) -> None:
    answer, told = _connect(url)
    total, digest, done = int(answer.headers.get("Content-Length") or 0), hashlib.sha256(), 0
    expected = told or checksum_in(path.name)
    with answer, whole(path) as temporary, temporary.open("wb") as file:
        for chunk in _chunks(answer):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if progress:
                progress(done, max(total, done))
        if total and done != total:
            raise _FetchError(f"{done:,} of {total:,} bytes came")
        if not digest.hexdigest().startswith(expected):
            raise _FetchError(f"its SHA-256 is {digest.hexdigest()} instead of {expected}")


def _connect(url: str) -> tuple[Any, str]:
    """The answer of a server, and the SHA-256 that it tells; "" if it tells none.

    A thread of its own waits for it, because looking up a name has no time limit.
    """
    results: list[tuple[Any, str] | BaseException] = []

    def ask() -> None:
        noting = _Redirects()
        try:
            answer = build_opener(noting).open(Request(url, headers={"User-Agent": "pixelwise"}), timeout=TIMEOUT)
            results.append((answer, noting.checksum or _checksum(answer.headers.get("ETag"))))
        except (OSError, HTTPException, ValueError) as error:
            results.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    result = results[0] if results else TimeoutError(f"no answer within {TIMEOUT:g} seconds")
    if isinstance(result, BaseException):
        raise _FetchError(reason(result)) from result
    return result


class _Redirects(HTTPRedirectHandler):
    """Keeps the checksum that the hub tells when it sends us on to where the file lies."""

    def __init__(self) -> None:
        self.checksum = ""

    @override
    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.checksum = self.checksum or _checksum(headers.get("X-Linked-ETag"))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _checksum(tag: str | None) -> str:
    """The SHA-256 that a tag of content is; "" if it is another one."""
    digits = (tag or "").strip('"')
    return digits if re.fullmatch(r"[0-9a-f]{64}", digits) else ""


def _chunks(answer: Any) -> Iterator[bytes]:
    try:
        while chunk := answer.read(CHUNK):
            yield chunk
    except (OSError, HTTPException) as error:
        raise _FetchError(reason(error)) from error
