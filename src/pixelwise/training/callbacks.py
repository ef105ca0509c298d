"""What a training tells while it runs. No torch here."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StepReport:
    """Where a training stands."""

    epoch: int
    step: int
    progress: float  # 0 .. 1 of the whole run
    loss: float
    rate: float
    seconds: float  # spent so far, of all sittings


class Callbacks:
    """What a page or a terminal may want to know; these do nothing, and any of them may be overridden."""

    def note(self, text: str) -> None:
        """Something for people to read."""

    def surveyed(self, done: int, total: int) -> None:
        """So many samples have been checked."""

    def fetched(self, done: int, total: int) -> None:
        """So many bytes of published weights have come."""

    def stepped(self, report: StepReport) -> None:
        """A step is done."""

    def validated(self, line: dict[str, Any]) -> None:
        """An epoch is over; `line` goes to history.jsonl."""
