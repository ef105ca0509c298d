"""What a planned training will cost, from a few measured steps; the plan itself does not depend on them."""

import logging
import time

import torch
from lightning_fabric import Fabric

from pixelwise import checkpoint
from pixelwise.config import Config
from pixelwise.data.doctor import Survey
from pixelwise.memory import peak_ram_bytes
from pixelwise.plan import pick_device
from pixelwise.step import Average, Criterion, make_optimizer, make_sampler, pixel_counts, set_up, training_step

WARM_STEPS, STEPS = 2, 4
VALIDATION_COST = 1.1  # validation, checkpoints and start-up come on top of the steps


def forecast(config: Config, surveyed: Survey, device: str = "auto") -> dict[str, float]:
    """Run a few steps of the training for real, on one device.

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
        sampler = make_sampler(config, surveyed, network)
        for number in range(WARM_STEPS + STEPS):
            if number == WARM_STEPS:
                begin = time.perf_counter()
            batch = sampler.batch(range(number * config.train.batch, (number + 1) * config.train.batch))
            float(training_step(fabric, wrapped, wrapped_optimizer, criterion, batch, config.train.clip))
            average.update(number)
    rate = STEPS / (time.perf_counter() - begin)
    return {
        "minutes": _minutes(config, rate),
        "steps_per_second": rate,
        "peak_memory_bytes": _peak(config, surveyed, fabric),
    }


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
