"""What was found out about samples is kept: on disk, so that no file is looked at twice until it changes.

The pixels themselves are kept in memory, as far as they fit, for the training that follows.
"""

import base64
import dataclasses
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path

from pixelwise.core.errors import OutputError
from pixelwise.core.files import write_text
from pixelwise.data.health.examine import Pixels
from pixelwise.data.sets.pairs import Sample

BOOKS = 100  # that are kept; the ones that were written longest ago go
FORM = 1  # raised whenever what is found out changes without a change of its fields


class Memory:
    """Decoded pixels of samples, as many as fit into a number of bytes; each is handed out once."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._kept: dict[Path, Pixels] = {}
        self._lock = threading.Lock()

    def keep(self, sample: Sample, pixels: Pixels) -> None:
        """Keep them, if they fit; pages of a stack are asked for one by one, so stacks are not kept."""
        if len(pixels.image.pixels) > 1:
            return
        size = pixels.image.pixels.nbytes + getattr(getattr(pixels.labels, "pixels", None), "nbytes", 0)
        with self._lock:
            if size <= self._left:
                self._left -= size
                self._kept[sample.image] = pixels

    def take(self, sample: Sample) -> Pixels | None:
        """The pixels of a sample, which are forgotten here; None if they were not kept."""
        with self._lock:
            return self._kept.pop(sample.image, None)


class Notebook:
    """A file in the user's cache folder with what was found out about the samples of one data set.

    Args:
        root: of the data set.
        question: what else the findings depend on: how labels are read, axes.
        classes: the dataclasses that findings are made of.
    """

    def __init__(self, root: Path, question: str, classes: Sequence[type]) -> None:
        self._classes = {one.__name__: one for one in classes}
        fields = [[one.__name__, *(item.name for item in dataclasses.fields(one))] for one in classes]
        key = json.dumps([FORM, version("pixelwise"), str(root.resolve()), question, fields])
        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        self._path = user_cache_path("pixelwise") / "checks" / f"{name}.json"
        self._known: dict[str, Any] = {}
        with suppress(OSError, ValueError, TypeError):  # a torn or foreign file is as good as none
            self._known = dict(json.loads(self._path.read_text(encoding="utf-8")))
        self._fresh: dict[str, Any] = {}

    def read(self, sample: Sample) -> Any | None:
        """What was found out about a sample whose files are as they were; None if nothing is known."""
        state = _state(sample)
        if state is None or state not in self._known:
            return None
        try:
            found = self._decoded(self._known[state])
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        self._fresh[state] = self._known[state]
        return found

    def write(self, sample: Sample, found: Any) -> None:
        """Note what was found out."""
        state = _state(sample)
        if state is not None:
            self._fresh[state] = self._encoded(found)

    def save(self) -> None:
        """Write the file, where there is a place for it; without one, everything is looked at again next time."""
        if self._fresh.keys() - self._known.keys():
            with suppress(OutputError, OSError, UnicodeError):
                others = {state: found for state, found in self._known.items() if _is_current(state)}
                write_text(self._path, json.dumps(others | self._fresh))
                books = sorted(self._path.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
                for old in books[:-BOOKS]:
                    old.unlink(missing_ok=True)

    def _encoded(self, value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {item.name: self._encoded(getattr(value, item.name)) for item in dataclasses.fields(value)}
            return {"class": type(value).__name__, "fields": fields}
        if isinstance(value, np.ndarray):
            data = base64.b64encode(np.ascontiguousarray(value).data).decode()
            return {"array": data, "dtype": value.dtype.str, "shape": value.shape}
        if isinstance(value, Path):
            return {"path": str(value)}
        if isinstance(value, tuple | list):
            return [self._encoded(one) for one in value]
        return value.item() if isinstance(value, np.generic) else value

    def _decoded(self, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(self._decoded(one) for one in value)
        if not isinstance(value, dict):
            return value
        if "path" in value:
            return Path(value["path"])
        if "array" in value:
            dtype = np.dtype(value["dtype"])
            if dtype.hasobject:
                raise ValueError
            return np.frombuffer(base64.b64decode(value["array"]), dtype).reshape(value["shape"])
        fields: Mapping[str, Any] = value["fields"]
        kind = self._classes[value["class"]]
        return kind(**{name: self._decoded(one) for name, one in fields.items()})


def _state(sample: Sample) -> str | None:
    """Facts that change when a file of a sample changes; None if a file is gone."""
    try:
        stats = [(str(path), path.stat()) for path in sample.files]
    except OSError:
        return None
    return json.dumps([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])


def _is_current(state: str) -> bool:
    """Whether the files of a state are as they were."""
    try:
        known = [(Path(name), size, changed) for name, size, changed in json.loads(state)]
        return all(
            (stat := path.stat()).st_size == size and stat.st_mtime_ns == changed for path, size, changed in known
        )
    except (OSError, ValueError, TypeError):
        return False
