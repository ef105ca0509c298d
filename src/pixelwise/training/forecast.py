"""What a planned training will cost, from a few measured steps; the plan itself does not depend on them."""

import time
from collections.abc import Callable

import torch
from lightning_fabric import Fabric

from pixelwise.core.config import Config
from pixelwise.core.memory import peak_ram_bytes
from pixelwise.data.health.survey import Survey
from pixelwise.engines.machine import pick_device
from pixelwise.task import Task
from pixelwise.training.loop import launch
from pixelwise.training.step import Learner

WARM_STEPS, STEPS = 2, 4
VALIDATION_COST = 1.1  # validation, checkpoints and start-up come on top of the steps


def forecast(task: Task, config: Config, surveyed: Survey, device: str = "auto") -> dict[str, float]:
    """Run a few steps of the training for real, on one device; with a schedule, a few of each kind of phase.

    Returns:
        `minutes` and `steps` of the whole run, `steps_per_second`, and `peak_memory_bytes` (of the GPU where one is
        used, else of this process; the images that a training keeps in memory are added).
    """
    alone = config.train.model_copy(update={"devices": 1, "nodes": 1, "strategy": "auto"})
    fabric = launch(config.model_copy(update={"train": alone}), pick_device(device))
    with torch.random.fork_rng(devices=[]):
        learner = Learner(fabric, config, task.network(config), task.criterion(config, surveyed))
        sampler = task.sampler(config, surveyed, learner.network)

        def step(number: int) -> None:
            batch = sampler.batch(range(number * config.train.batch, (number + 1) * config.train.batch))
            learner.step(batch, number + 1)

        seconds = {}
        for name in dict.fromkeys(phase.parts for phase in learner.schedule):
            learner.parts.train(name)
            seconds[name] = _seconds_per_step(step)
    whole = sum(phase.share for phase in learner.schedule)
    rate = whole / sum(phase.share * seconds[phase.parts] for phase in learner.schedule)
    minutes = _minutes(config, rate)
    return {
        "minutes": minutes,
        "steps": steps_in(minutes, rate),
        "steps_per_second": rate,
        "peak_memory_bytes": _peak(config, surveyed, fabric),
    }


def _seconds_per_step(step: Callable[[int], None]) -> float:
    """Of a step by its number, once it is warm."""
    for number in range(WARM_STEPS):
        step(number)
    begin = time.perf_counter()
    for number in range(WARM_STEPS, WARM_STEPS + STEPS):
        step(number)
    return (time.perf_counter() - begin) / STEPS


def _minutes(config: Config, steps_per_second: float) -> float:
    if config.train.minutes is not None:
        return config.train.minutes
    steps = (config.train.epochs or 0) * config.train.steps_per_epoch
    return VALIDATION_COST * steps / steps_per_second / 60


def steps_in(minutes: float, steps_per_second: float) -> int:
    """Steps that a training makes in so many minutes, after what it does beside them.

    >>> steps_in(11, 1.0)
    600
    """
    return round(60 * minutes * steps_per_second / VALIDATION_COST)


def _peak(config: Config, surveyed: Survey, fabric: Fabric) -> int:
    if fabric.device.type == "cuda":
        return torch.cuda.max_memory_allocated(fabric.device)
    pixels = sum(fact.pages * fact.height * fact.width for fact in surveyed.of("train")) * config.data.scale**2
    return int(peak_ram_bytes() + pixels * (config.data.channels + 1))
