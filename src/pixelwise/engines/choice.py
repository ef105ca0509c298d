"""What goes into an engine beside images, and what comes out: which engine, and how; the outputs by name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]
"""A network's outputs by name; a plain module's tensor is "logits"."""


@dataclass(frozen=True)
class EngineChoice:
    """What a user wants of an engine.

    Fields:
        name: one of `ENGINES`, or "auto" for the fastest that can run the network here.
        device: where it runs: "cpu", "cuda", "cuda:1", "mps".
        amp: half precision where it is safe ("cuda" and "mps" alone): faster, but the outputs may then differ from
            the network's own by more than 1e-4.
        compiled: run the network by torch.compile ("torch" alone), which pays for long work on a GPU.
        cache: folder that keeps the exported network from one process to the next, since the export takes seconds;
            if it cannot be written, nothing is kept.
        tell: hears when something begins that takes long.
    """

    name: str = "auto"
    device: str = "cpu"
    amp: bool = False
    compiled: bool = False
    cache: Path | None = None
    tell: Callable[[str], None] = field(default=lambda text: None, compare=False)

    @classmethod
    def of(cls, engine: "str | EngineChoice") -> "EngineChoice":
        """The choice itself, or the one of an engine's name.

        >>> EngineChoice.of("torch").name
        'torch'
        """
        return cls(engine) if isinstance(engine, str) else engine
