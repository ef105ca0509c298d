"""What every task keeps of its protocol."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pixelwise.core.config import Config
from pixelwise.data.health.survey import Survey
from pixelwise.engines import EngineChoice
from pixelwise.task import Record, Task
from pixelwise.tasks import PRETRAININGS, TASKS, task_of
from pixelwise.training.prepare import Start, prepare
from pixelwise.training.step import Parts, sum_of, to_tensors

ALL = {**TASKS, **PRETRAININGS}
TINY: dict[str, dict[str, Any]] = {
    "model": {"width": 4, "depth": 2, "stem": 1},
    "train": {"steps_per_epoch": 3, "batch": 2, "precision": "32-true", "epochs": 1},
}


@dataclass(frozen=True)
class Prepared:
    """A task with a data set and settings for it."""

    task: Task
    config: Config
    survey: Survey

    def network(self, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        return self.task.network(self.config)

    def record(self) -> Record:
        return next(iter(self.task.records(self.survey.dataset.split("val")[0], self.config, None)))

    def predictor(self) -> Any:
        return self.task.predictor(self.network().eval(), self.config, EngineChoice("torch"))


@pytest.fixture(params=sorted(ALL))
def prepared(request: pytest.FixtureRequest, make_dataset: Callable[..., Path], tmp_path: Path) -> Prepared:
    data = make_dataset(tmp_path / "data", count=3, kind="index", split=("train", "val"))
    task = ALL[request.param]
    return Prepared(task, *prepare(task, data, TINY, Start(device="cpu")))


def test_a_config_names_its_task(prepared: Prepared) -> None:
    assert prepared.config.task == prepared.task.name
    assert task_of(prepared.config) is prepared.task
    assert prepared.task.meaning(prepared.config) == prepared.survey.meaning
    prepared.task.check(prepared.config)
    assert all(isinstance(line, str) and line for line in prepared.task.reasons(prepared.config, prepared.survey))


def test_a_plan_is_repeated(prepared: Prepared) -> None:
    again = prepare(prepared.task, prepared.survey.dataset.root, TINY, Start(device="cpu"))[0]
    assert again == prepared.config
    known = prepare(prepared.task, prepared.survey.dataset.root, None, Start(device="cpu"), None, again)[0]
    assert known == again


def test_the_network_follows_the_random_state(prepared: Prepared) -> None:
    first, again, other = (prepared.network(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_samples_are_functions_of_their_number(prepared: Prepared) -> None:
    samplers = [prepared.task.sampler(prepared.config, prepared.survey, prepared.network()) for _ in range(2)]
    samplers[1].batch([5, 0])  # what was drawn before does not matter
    first, again, other = samplers[0].batch([3, 4]), samplers[1].batch([3, 4]), samplers[0].batch([4, 5])
    assert first.images.dtype == np.float32
    assert first.images.shape[:2] == (2, 1)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.images[1], other.images[0])
    for name, target in first.targets.items():
        assert len(target) == 2
        for one, same in zip(target, again.targets[name], strict=True):
            np.testing.assert_array_equal(one, same)


def test_the_loss_has_named_parts_that_teach(prepared: Prepared) -> None:
    network = prepared.network().train()
    batch = prepared.task.sampler(prepared.config, prepared.survey, network).batch([0, 1])
    images, targets = to_tensors(batch, torch.device("cpu"))
    parts = prepared.task.criterion(prepared.config, prepared.survey)(network.outputs(images), targets)
    assert parts
    assert all(part.ndim == 0 and part.isfinite() for part in parts.values())
    sum_of(parts).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_every_part_of_the_schedule_trains(prepared: Prepared) -> None:
    network: nn.Module = prepared.network()
    Parts(network).check(prepared.config.train.schedule)


def test_a_record_is_predicted_counted_and_drawn(prepared: Prepared) -> None:
    task, record = prepared.task, prepared.record()
    assert record.image.shape == (48, 40, 1)
    before = record.image.copy()
    predictor, tally = prepared.predictor(), task.tally(prepared.config, full=True)
    prediction = task.predict(predictor, record.image)
    score = tally.add(record, prediction)
    assert isinstance(score, float)
    figures = tally.figures()
    assert isinstance(figures[task.figure.name], float)
    assert figures["images"] == 1
    pictures = task.draw(record, prediction, prepared.config)
    assert pictures
    assert all(picture.dtype == np.uint8 and picture.shape[2:] == (3,) for picture in pictures.values())
    np.testing.assert_array_equal(record.image, before)


def test_counts_of_two_processes_add_up(prepared: Prepared) -> None:
    task, config, predictor = prepared.task, prepared.config, prepared.predictor()
    whole, first, second = (task.tally(config, full=False) for _ in range(3))
    for number, sample in enumerate(prepared.survey.dataset.split("val")):
        for record in task.records(sample, config, None):
            prediction = task.predict(predictor, record.image)
            whole.add(record, prediction)
            (first if number else second).add(record, prediction)
    first.merge(second)
    assert first.figures()["images"] == whole.figures()["images"] == 3
    assert first.figures()[task.figure.name] == pytest.approx(whole.figures()[task.figure.name])


def test_nothing_counted_is_no_figure(prepared: Prepared) -> None:
    assert prepared.task.tally(prepared.config, full=True).figures()[prepared.task.figure.name] is None


def test_tasks_and_pretrainings_have_names_of_their_own() -> None:
    assert not TASKS.keys() & PRETRAININGS.keys()
    others = {"segment", "instances", "detect", "classify", "localize", "pose", "embed", "autoencode", "caption"}
    assert not PRETRAININGS.keys() & others
    assert all(name == task.name for name, task in ALL.items())
