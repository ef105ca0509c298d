"""Runners that stand ready: what was prepared for a network serves again as long as the network does not change."""

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
    """The runner of `make_runner`, or the one that it made earlier for this network in the same state.

    Only runners of exported networks are kept, since only these take long to prepare. They hold no reference to the
    network, so that it is freed when nobody uses it any more, and they with it.
    """
    if choose_engine(network, choice) == "torch":
        return make_runner(network, channels, choice, views)
    key = channels, choice, views, torch.get_num_threads(), os.getpid()  # an engine's threads do not survive a fork
    kept = _KEPT.get(network)
    if kept is None or kept.state != state_of(network):
        _KEPT[network] = kept = _Kept()  # frees what is outdated before its successor is prepared
    if key in kept.runners:
        return kept.runners[key]
    name = kept.names.get(key, choice.name)  # an export that failed is not tried again
    runner = make_runner(network, channels, replace(choice, name=name), views)
    kept.names[key] = runner.engine.name
    if runner.engine.name != "torch":
        kept.runners[key] = runner
    kept.state = state_of(network)  # now, because a network may keep something of its own when it first runs
    return runner
