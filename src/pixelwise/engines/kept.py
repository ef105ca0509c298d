"""Prepared engines that stay with their networks, so that a second image costs its computation alone.

To export and compile a network takes seconds. The engine is kept as long as the network lives, and serves again only
while nothing has changed that it was made of.
"""

import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from pixelwise.engines import Engine, EngineChoice, TorchEngine, choose_engine, make_engine
from pixelwise.engines.exported import ExportedEngine, fingerprint
from pixelwise.geometry.sizes import Sizes


@dataclass(frozen=True)
class _Kept:
    """An engine, or why torch has to do, with all that it depends on."""

    asked: Any  # the choice, the sizes and the number of threads
    parts: tuple[weakref.ref[nn.Module], ...]
    state: str
    engine: ExportedEngine | str


_KEPT: weakref.WeakKeyDictionary[nn.Module, _Kept] = weakref.WeakKeyDictionary()


def kept_engine(network: nn.Module, choice: EngineChoice, sizes: Sizes) -> Engine:
    """The engine of a choice for a network, as of `make_engine`: the last one if nothing has changed since.

    What counts as a change: any value of a parameter or buffer, however it came about; a part that was replaced, or
    its mode, settings or hooks; the choice, the sizes, the number of torch's threads. An engine that runs the module
    itself has nothing to prepare, and is made anew.

    Raises:
        SettingError, ModelError: as of `make_engine`.
    """
    if choose_engine(network, choice) == "torch":
        return make_engine(network, choice, sizes)
    asked, state = (choice, sizes, torch.get_num_threads()), _state(network, sizes)
    kept = _KEPT.get(network)
    if kept is None or (kept.asked, kept.state) != (asked, state) or not _same_parts(kept, network):
        _KEPT.pop(network, None)  # so that the memory never holds two
        engine = make_engine(network, choice, sizes)
        parts = tuple(weakref.ref(module) for module in network.modules())
        # Torch's engine holds the network, which would then live for ever: its reason is enough to make it again.
        kept = _Kept(asked, parts, state, engine if isinstance(engine, ExportedEngine) else engine.note)
        _KEPT[network] = kept
    return kept.engine if isinstance(kept.engine, ExportedEngine) else TorchEngine(network, choice, note=kept.engine)


def _same_parts(kept: _Kept, network: nn.Module) -> bool:
    modules = list(network.modules())
    return len(modules) == len(kept.parts) and all(
        part() is module for part, module in zip(kept.parts, modules, strict=True)
    )


def _state(network: nn.Module, sizes: Sizes) -> str:
    """All values of the tensors, and what else of the parts may change what they compute."""
    settings = [
        (name, value if isinstance(value, int | float | str | tuple | None) else id(value))
        for module in network.modules()
        for name, value in vars(module).items()
        if not isinstance(value, dict) and not isinstance(getattr(type(module), name, None), cached_property)
    ]
    hooks = [
        list(hooks)
        for module in network.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        if hooks
    ]
    return f"{fingerprint(network, sizes)} {settings} {hooks}"
