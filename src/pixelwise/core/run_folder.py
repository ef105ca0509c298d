"""The folder of a run: every file's name, in one place."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunFolder:
    """Where the files of a run are.

    >>> RunFolder(Path("runs/cells")).state.as_posix()
    'runs/cells/last/state.safetensors'
    """

    path: Path

    @property
    def config(self) -> Path:
        """Every setting, resolved: enough to repeat the run."""
        return self.path / "config.toml"

    @property
    def model(self) -> Path:
        """The best weights."""
        return self.path / "model.safetensors"

    @property
    def state(self) -> Path:
        """All that a resume needs."""
        return self.path / "last" / "state.safetensors"

    @property
    def history(self) -> Path:
        """A line of JSON for each epoch."""
        return self.path / "history.jsonl"

    @property
    def environment(self) -> Path:
        """Versions and machine."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """What the training said."""
        return self.path / "log.txt"

    @property
    def complete(self) -> Path:
        """Marks the end of the training, and says what it reached."""
        return self.path / "complete"

    @property
    def compiled(self) -> Path:
        """Folder of the exported networks."""
        return self.path / "compiled"

    def evaluation(self, split: str) -> Path:
        """Folder of an evaluation that names no other."""
        return self.path / f"evaluation-{split}"

    def read_history(self) -> list[dict[str, Any]]:
        """The lines of the history; none if the run was copied without them."""
        if not self.history.is_file():
            return []
        return [json.loads(line) for line in self.history.read_text(encoding="utf-8").splitlines() if line]
