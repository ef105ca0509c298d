"""The forecast measures; the plan does not depend on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pixelwise.core.config import Config
from pixelwise.core.memory import peak_ram_bytes
from pixelwise.data.health.survey import Survey
from pixelwise.data.sets.sampling import Batch
from pixelwise.tasks import TASKS
from pixelwise.training.forecast import STEPS, VALIDATION_COST, WARM_STEPS, forecast
from pixelwise.training.prepare import Start, prepare
from pixelwise.training.step import Learner

TASK = TASKS["segment"]

SMALL = {
    "model": {"width": 4, "depth": 2},
    "train": {"patch": [32, 32], "batch": 2, "steps_per_epoch": 50, "precision": "32-true"},
}


def plan(data: Path, **train: Any) -> tuple[Config, Survey]:
    return prepare(TASK, data, {**SMALL, "train": {**SMALL["train"], **train}}, Start(device="cpu"))


def test_forecast_of_epochs_and_of_minutes(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", count=3, split=("train", "val"))
    config, surveyed = plan(data, epochs=4)
    expected = forecast(TASK, config, surveyed, "cpu")
    assert expected["steps_per_second"] > 0
    assert expected["minutes"] == pytest.approx(VALIDATION_COST * 200 / expected["steps_per_second"] / 60)
    assert expected["steps"] == 200
    assert expected["peak_memory_bytes"] >= peak_ram_bytes() * 0.9
    timed, surveyed = plan(data, minutes=3)
    assert forecast(TASK, timed, surveyed, "cpu")["minutes"] == 3


def test_forecast_of_a_schedule_weighs_its_phases(
    make_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of the decoder alone takes 1 s, one of all parts 3 s: at shares of 1 and 3, 2.5 s on average."""
    data = make_dataset(tmp_path / "data", count=3, split=("train", "val"))
    phases = [("decoder", 1.0), ("all", 1.0), ("all", 2.0)]
    schedule = [{"parts": parts, "share": share, "rate": 1.0} for parts, share in phases]
    config, surveyed = plan(data, schedule=schedule, epochs=4)
    now, seen = 0.0, []

    def step(learner: Learner, batch: Batch, number: int) -> dict[str, float]:
        nonlocal now
        trains = [value.requires_grad for value in learner.network.parameters()]
        seen.append(all(trains))
        assert any(trains)
        now += 3.0 if all(trains) else 1.0
        return {}

    monkeypatch.setattr(Learner, "step", step)
    monkeypatch.setattr("time.perf_counter", lambda: now)
    expected = forecast(TASK, config, surveyed, "cpu")
    assert expected["steps_per_second"] == pytest.approx(1 / 2.5)
    assert expected["minutes"] == pytest.approx(VALIDATION_COST * 200 * 2.5 / 60)
    assert seen == [False] * (WARM_STEPS + STEPS) + [True] * (WARM_STEPS + STEPS)


def test_the_same_data_and_machine_give_the_same_plan(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", count=3, split=("train", "val"))
    first, second = (prepare(TASK, data, {"train": {"epochs": 1}}, Start(device="cpu"))[0] for _ in range(2))
    assert first == second
