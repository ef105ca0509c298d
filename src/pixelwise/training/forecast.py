"""What a planned training will cost, from a few measured steps; the plan itself does not depend on them."""

import logging
import time
from collections.abc import Callable

import torch
from lightning_fabric import Fabric

from pixelwise.core.config import Config
from pixelwise.core.memory import peak_ram_bytes
from pixelwise.data.sets.doctor import Survey
from pixelwise.models import checkpoint
from pixelwise.training.plan import pick_device
from pixelwise.training.step import (
    WHOLE_RUN,
    Average,
    Criterion,
    Parts,
    make_optimizer,
    make_sampler,
    pixel_counts,
    set_up,
    training_step,
)

WARM_STEPS, STEPS = 2, 4
VALIDATION_COST = 1.1  # validation, checkpoints and start-up come on top of the steps


def forecast(config: Config, surveyed: Survey, device: str = "auto") -> dict[str, float]:
    """Run a few steps of the training for real, on one device; with a schedule, a few of each kind of phase.

    Returns:
        `minutes` of the whole run, `steps_per_second`, and `peak_memory_bytes` (of the GPU where one is used, else of
        this process; the images that a training keeps in memory are added).
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # its greetings are no news to our users
    fabric = Fabric(accelerator=pick_device(device), devices=1, precision=config.train.precision)
    with torch.random.fork_rng(devices=[]):
        network = checkpoint.build_network(config).to(memory_format=torch.channels_last)
        optimizer = make_optimizer(network, config.train)
        criterion = Criterion(config, pixel_counts(surveyed)).to(fabric.device)
        wrapped, wrapped_optimizer = set_up(fabric, network, optimizer)
        average = Average(network, checkpoint.build_network(config).to(fabric.device), config.train.average)
        sampler, parts = make_sampler(config, surveyed, network), Parts(network)

        def step(number: int) -> None:
            batch = sampler.batch(range(number * config.train.batch, (number + 1) * config.train.batch))
            float(training_step(fabric, wrapped, wrapped_optimizer, criterion, batch, config.train.clip))
            average.update(number)

        schedule, seconds = config.train.schedule or WHOLE_RUN, {}
        for name in dict.fromkeys(phase.parts for phase in schedule):
            parts.train(name)
            seconds[name] = _seconds_per_step(step)
    whole = sum(phase.share for phase in schedule)
    rate = whole / sum(phase.share * seconds[phase.parts] for phase in schedule)
    return {
        "minutes": _minutes(config, rate),
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


def _peak(config: Config, surveyed: Survey, fabric: Fabric) -> int:
    if fabric.device.type == "cuda":
        return torch.cuda.max_memory_allocated(fabric.device)
    pixels = sum(fact.pages * fact.height * fact.width for fact in surveyed.of("train")) * config.data.scale**2
    return int(peak_ram_bytes() + pixels * (config.data.channels + 1))
