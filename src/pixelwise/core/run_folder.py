"""The folder of a run: every file's name, in one place."""

import json
from pathlib import Path
from typing import Any


class RunFolder:
    """Where the files of a run are.

    >>> RunFolder(Path("runs/cells")).state.as_posix()
    'runs/cells/last/state.safetensors'
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"  # every setting, resolved: enough to repeat the run
        self.model = path / "model.safetensors"  # the best weights
        self.state = path / "last" / "state.safetensors"  # all that a resume needs
        self.history = path / "history.jsonl"  # a line of JSON for each epoch
        self.environment = path / "environment.json"  # versions and machine
        self.data = path / "data.json"  # what it is trained on: names, sizes, contents
        self.weights = path / "weights.json"  # which weights it started from, where these are published or a file's
        self.log = path / "log.txt"  # what the training said
        self.complete = path / "complete"  # marks the end of the training, and says what it reached
        self.compiled = path / "compiled"  # exported networks

    def evaluation(self, split: str) -> Path:
        """Folder of an evaluation that names no other."""
        return self.path / f"evaluation-{split}"

    def read_history(self) -> list[dict[str, Any]]:
        """The lines of the history; none if the run was copied without them."""
        if not self.history.is_file():
            return []
        return [json.loads(line) for line in self.history.read_text(encoding="utf-8").splitlines() if line]
