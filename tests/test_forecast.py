"""The forecast measures; the plan does not depend on it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pixelwise.forecast import VALIDATION_COST, forecast
from pixelwise.memory import peak_ram_bytes
from pixelwise.prepare import prepare

SMALL = {
    "model": {"width": 4, "depth": 2},
    "train": {"patch": [32, 32], "batch": 2, "steps_per_epoch": 50, "precision": "32-true"},
}


def test_forecast_of_epochs_and_of_minutes(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", count=3, split=("train", "val"))
    config, surveyed = prepare(data, SMALL, epochs=4, device="cpu")
    expected = forecast(config, surveyed, "cpu")
    assert expected["steps_per_second"] > 0
    assert expected["minutes"] == pytest.approx(VALIDATION_COST * 200 / expected["steps_per_second"] / 60)
    assert expected["peak_memory_bytes"] >= peak_ram_bytes() * 0.9
    timed, surveyed = prepare(data, SMALL, minutes=3, device="cpu")
    assert forecast(timed, surveyed, "cpu")["minutes"] == 3


def test_the_same_data_and_machine_give_the_same_plan(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", count=3, split=("train", "val"))
    first, second = (prepare(data, {}, epochs=1, device="cpu")[0] for _ in range(2))
    assert first == second
