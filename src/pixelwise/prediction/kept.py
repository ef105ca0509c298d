"""Runners that stand ready: what was prepared for a network is used again as long as nothing has changed."""

import os
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import torch
from torch import nn

from pixelwise.engines import EngineChoice, choose_engine
from pixelwise.prediction.runner import Runner, make_runner
from pixelwise.prediction.state import state_of


@dataclass
class _Kept:
    """What was prepared for a network in one state."""

    state: Hashable = None
    runners: dict[Hashable, Runner] = field(default_factory=dict)
    names: dict[Hashable, str] = field(default_factory=dict)  # of the engines that took the network


_KEPT: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


def kept_runner(network: nn.Module, channels: int, choice: EngineChoice, views: str) -> Runner:
    """The runner that `make_runner` makes, or made before for the same network in the same state.

    Only what takes long to prepare is kept, the runners of exported networks. They do not hold the network, so that
    one that nobody uses any more is freed, and its runners with it.
    """
    if choose_engine(network, choice) == "torch":
        return make_runner(network, channels, choice, views)
    key = channels, choice, views, torch.get_num_threads(), os.getpid()  # a fork has none of an engine's threads
    kept = _KEPT.get(network)
    if kept is None or kept.state != state_of(network):
        _KEPT[network] = kept = _Kept()  # now, so that what is outdated is freed before its successor is prepared
    if key in kept.runners:
        return kept.runners[key]
    name = kept.names.get(key, choice.name)  # an export that failed is not tried again
    runner = make_runner(network, channels, replace(choice, name=name), views)
    kept.names[key] = runner.engine.name
    if runner.engine.name != "torch":
        kept.runners[key] = runner
    kept.state = state_of(network)  # now, because a network may keep something of its own when it first runs
    return runner
