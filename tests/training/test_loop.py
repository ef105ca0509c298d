"""The loop: it learns, keeps its time, survives a kill with the same bits, and works in two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pixelwise.api import load
from pixelwise.backbones import Loaded, make_backbone
from pixelwise.core.config import Config, Overrides, read_config
from pixelwise.core.errors import OutputError, RunError, SettingError
from pixelwise.models import UNet, checkpoint
from pixelwise.training.callbacks import StepReport
from pixelwise.training.loop import Result
from pixelwise.training.step import Clock, rate_factor
from trainings import Listener, StopAt, model_file, small, state_file, train

MakeDataset = Callable[..., Path]


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    best = {f"best/{name}": tensor for name, tensor in load_file(model_file(run)).items()}
    return best | load_file(state_file(run))


def assert_same_run(first: Path, second: Path) -> None:
    """Equal bits in every tensor, and an equal history but for the clock."""
    one, two = tensors_of(first), tensors_of(second)
    assert one.keys() == two.keys()
    different = [name for name in one if not torch.equal(one[name], two[name])]
    assert different == []
    histories = [
        [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines.splitlines()]
        for lines in ((run / "history.jsonl").read_text() for run in (first, second))
    ]
    assert histories[0] == histories[1]


@pytest.fixture
def data(make_dataset: MakeDataset, tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "data", count=4, split=("train", "val"))


def test_it_learns_and_leaves_what_the_contract_names(data: Path, tmp_path: Path) -> None:
    listener, out = Listener(), tmp_path / "run"
    overrides = small(steps_per_epoch=40, rate=0.01)
    result = train(data, out, overrides, epochs=2, seed=0, callbacks=listener)
    assert np.mean(listener.losses[-10:]) < 0.5 * np.mean(listener.losses[:5])
    assert result.best.value > 0.7
    assert result.epochs == 2
    names = {path.name for path in out.iterdir()}
    assert names == {
        "config.toml",
        "model.safetensors",
        "last",
        "history.jsonl",
        "environment.json",
        "complete",
        "data.json",
    }
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in history] == [1, 2]
    assert max(line["mean_iou"] for line in history) == result.best.value
    assert load(out).facts == {"epoch": result.best.epoch, "metric": "mean_iou", "value": result.best.value}


def test_the_rate_rises_and_falls(data: Path, tmp_path: Path) -> None:
    listener = Listener()
    train(data, tmp_path / "run", small(steps_per_epoch=10, rate=0.01, warmup=0.25), epochs=2, callbacks=listener)
    top = int(np.argmax(listener.rates))
    assert 4 <= top <= 6
    assert (np.diff(listener.rates[:top]) > 0).all()
    assert (np.diff(listener.rates[top:]) < 0).all()
    assert max(listener.rates) <= 0.01 + 1e-12


def test_the_same_seed_gives_the_same_bits_and_another_does_not(data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(data, tmp_path / name, small(), epochs=1, seed=seed)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    first, other = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "c")
    assert any(not torch.equal(first[name], other[name]) for name in first if "weight" in name)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_stopped_anywhere_ends_with_the_same_bits(data: Path, tmp_path: Path, optimizer: str) -> None:
    overrides = small(checkpoint_seconds=0.0, optimizer=optimizer, momentum=0.9)
    train(data, tmp_path / "whole", overrides, epochs=2, seed=1)
    out = tmp_path / "stopped"
    for sitting, step in enumerate((1, 3, 4, 5, 8)):  # the very first, inside, at the end of, and across epochs
        with pytest.raises(KeyboardInterrupt):
            train(data, out, overrides, epochs=2, seed=1, resume=sitting > 0, callbacks=StopAt(step))
        assert not (out / "complete").exists()
    train(data, out, overrides, epochs=2, seed=1, resume=True)
    assert_same_run(tmp_path / "whole", out)


def test_a_resume_goes_back_to_the_last_checkpoint_when_the_kill_came_later(data: Path, tmp_path: Path) -> None:
    overrides = small(checkpoint_seconds=1e6)  # so none is ever due: it starts again from the seed
    train(data, tmp_path / "whole", overrides, epochs=2, seed=1)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "stopped", overrides, epochs=2, seed=1, callbacks=StopAt(6))
    train(data, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_resuming_a_finished_run_says_so(data: Path, tmp_path: Path) -> None:
    first = train(data, tmp_path / "run", small(), epochs=1)
    again = train(data, tmp_path / "run", resume=True)
    assert again == Result(**{**first.__dict__, "minutes": again.minutes, "finished_before": True})
    assert again.minutes == pytest.approx(first.minutes, abs=0.01)


def test_a_resumed_run_keeps_its_settings(data: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", small(), epochs=2, callbacks=StopAt(2))
    with pytest.raises(SettingError, match=r"train\.batch = 8: the run in .* was started with 2"):
        train(data, tmp_path / "run", {"train": {"batch": 8}}, resume=True)
    with pytest.raises(SettingError, match=r"train\.epochs = 3: the run in .* was started with 2"):
        train(data, tmp_path / "run", epochs=3, resume=True)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pixelwise", *arguments]


def train_command(data: Path, out: Path, *more: str) -> list[str]:
    settings = [
        "model.width=4", "model.depth=2", "train.steps_per_epoch=30", "train.batch=2", "train.patch=[32,32]",
        "train.checkpoint_seconds=0", "model.dropout=0.1",
    ]  # fmt: skip
    pairs = [part for setting in settings for part in ("--set", setting)]
    return command("train", str(data), "--out", str(out), "--epochs", "3", *pairs, *more)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a signal of POSIX systems")
def test_sigkill_anywhere_then_resume_gives_the_same_bits(data: Path, tmp_path: Path) -> None:
    subprocess.run(train_command(data, tmp_path / "whole"), check=True, capture_output=True)
    out = tmp_path / "killed"
    more: list[str] = []
    for wait in (0.3, 0.9):  # after the first checkpoint is there; anywhere inside a step or a write
        process = subprocess.Popen(
            train_command(data, out, *more), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        before = state_file(out).stat().st_mtime_ns if state_file(out).exists() else None
        deadline = time.monotonic() + 90
        while not state_file(out).exists() or state_file(out).stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (out / "complete").exists()
        checkpoint.load(state_file(out))  # never a broken one
        more = ["--resume"]
    subprocess.run(train_command(data, out, "--resume"), check=True, capture_output=True)
    assert_same_run(tmp_path / "whole", out)
    assert list(out.rglob("*.part")) == []


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are of POSIX systems")
def test_a_full_disk_leaves_the_old_checkpoint_and_a_clear_message(data: Path, tmp_path: Path) -> None:
    import resource

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(data, out, small(checkpoint_seconds=0.0), epochs=2, callbacks=StopAt(3))
    old = load_file(state_file(out))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"state\.safetensors: cannot be written \(.*\)\. Free some space"):
            train(data, out, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = load_file(state_file(out))
    assert all(torch.equal(old[name], left[name]) for name in old)
    assert list(out.rglob("*.part")) == []
    assert train(data, out, resume=True).epochs == 2


def test_minutes_are_kept_and_the_schedule_knows_them(data: Path, tmp_path: Path) -> None:
    listener = Listener()
    begin = time.monotonic()
    overrides = small(steps_per_epoch=5, rate=0.01)
    result = train(data, tmp_path / "run", overrides, minutes=0.15, callbacks=listener)
    assert time.monotonic() - begin < 0.15 * 60 + 2
    assert result.minutes > 0.09
    assert listener.rates[-1] < 0.15 * max(listener.rates)
    assert "mean_iou" in listener.lines[-1]


def test_the_time_of_earlier_sittings_counts(data: Path, tmp_path: Path) -> None:
    overrides = small(steps_per_epoch=5, checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", overrides, minutes=0.1, callbacks=StopAt(8))
    spent = checkpoint.load(state_file(tmp_path / "run"))[1]["state"]["seconds"]
    begin = time.monotonic()
    train(data, tmp_path / "run", resume=True)
    assert time.monotonic() - begin < 6 - spent + 2


def test_the_clock_counts_from_the_first_step() -> None:
    class Settings:
        minutes, epochs, steps_per_epoch = 1.0, None, 1

    class FakeConfig:
        train = Settings()

    clock = Clock(FakeConfig(), time.monotonic() - 20, 0.0)  # type: ignore[arg-type]
    clock.reserve = 10.0
    assert clock.progress(0) == pytest.approx(0.0, abs=0.01)
    later = Clock(FakeConfig(), time.monotonic() - 5, 30.0, first=20.0)  # type: ignore[arg-type]
    later.reserve = 10.0
    assert later.progress(0) == pytest.approx((35 - 20) / (50 - 20), abs=0.01)


def test_early_stop(data: Path, tmp_path: Path) -> None:
    overrides = small(rate=1e-9, patience=2, average=0.0)  # it cannot get better
    result = train(data, tmp_path / "run", overrides, epochs=50)
    assert result.epochs == result.best.epoch + 2 < 50


def test_init_starts_from_another_runs_weights(data: Path, make_dataset: MakeDataset, tmp_path: Path) -> None:
    train(data, tmp_path / "first", small(steps_per_epoch=30, rate=0.01), epochs=1)
    frozen = small(rate=1e-12, weight_decay=0.0, average=0.0, steps_per_epoch=1)
    train(data, tmp_path / "tuned", frozen, epochs=1, init=tmp_path / "first")
    old, new = load_file(model_file(tmp_path / "first")), load_file(model_file(tmp_path / "tuned"))
    weights = [name for name in old if old[name].ndim == 4]
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in weights)
    listener = Listener()
    other = make_dataset(tmp_path / "other", count=4, split=("train", "val"), kind="index")
    train(other, tmp_path / "third", small(), epochs=1, init=tmp_path / "first", callbacks=listener)
    taken = next(note for note in listener.notes if note.startswith(f"--init {tmp_path / 'first'}: "))
    assert taken.endswith("2 start afresh (head 2)")
    with pytest.raises(RunError, match=r"nowhere.*model\.safetensors: no such file"):
        train(data, tmp_path / "fourth", small(), epochs=1, init=tmp_path / "nowhere")
    assert not (tmp_path / "fourth").exists()


def test_init_takes_the_network_of_the_run_unless_one_is_described(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "first", small(), epochs=1)
    undescribed = {section: values for section, values in small().items() if section != "model"}
    train(data, tmp_path / "second", undescribed, epochs=1, init=tmp_path / "first")
    first, second = (read_config(tmp_path / name / "config.toml").model for name in ("first", "second"))
    assert second == first
    train(data, tmp_path / "third", {**undescribed, "model": {"width": 3}}, epochs=1, init=tmp_path / "first")
    third = read_config(tmp_path / "third" / "config.toml").model
    assert (third.width, third.pretrained, third.backbone) == (3, False, None)
    with pytest.raises(RunError, match=r"nowhere.*model\.safetensors: no such file"):
        train(data, tmp_path / "fourth", undescribed, epochs=1, init=tmp_path / "nowhere")


PHASES = [
    {"parts": "decoder", "share": 3, "rate": 1.0},
    {"parts": "encoder", "share": 2, "rate": 0.5},
    {"parts": "all", "share": 3, "rate": 0.1},
]


class Watcher(Listener):
    """Remembers the weights after each step, too; `training` looks at a network as it is made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.networks: list[nn.Module] = []
        self.states: list[dict[str, torch.Tensor]] = []
        build = checkpoint.build_network

        def remember(config: Config) -> nn.Module:
            self.networks.append(build(config))
            return self.networks[-1]

        monkeypatch.setattr("pixelwise.models.checkpoint.build_network", remember)

    def stepped(self, report: StepReport) -> None:
        super().stepped(report)
        self.states.append({name: tensor.clone() for name, tensor in self.networks[-1].state_dict().items()})


def test_a_schedule_trains_the_parts_by_turns(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Watcher(monkeypatch)
    overrides = small(steps_per_epoch=8, schedule=PHASES, rate=0.01, warmup=0.0, average=0.0)
    train(data, tmp_path / "run", overrides, epochs=2, callbacks=watcher)
    network: Any = watcher.networks[-1]
    inside = {id(tensor) for part in network.encoder() for tensor in part.state_dict(keep_vars=True).values()}
    names: dict[str, set[str]] = {"encoder": set(), "decoder": set()}
    for name, tensor in network.state_dict(keep_vars=True).items():
        names["encoder" if id(tensor) in inside else "decoder"].add(name)
    assert names["encoder"]
    assert names["decoder"]
    changed = [
        {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
        for before, after in pairwise(watcher.states)
    ]
    for step, moved in enumerate(changed, start=1):
        phase = 0 if step < 6 else 1 if step < 10 else 2
        assert moved == (names[PHASES[phase]["parts"]] if phase < 2 else names["encoder"] | names["decoder"])
    expected = [
        0.01 * PHASES[index]["rate"] * rate_factor(step / count, 0.0)
        for index, count in enumerate((6, 4, 6))
        for step in range(count)
    ]
    assert watcher.rates == pytest.approx(expected)
    assert [note for note in watcher.notes if note.startswith("phase ")] == [
        "phase 1 of 3: parts decoder, 1 of the rate",
        "phase 2 of 3: parts encoder, 0.5 of the rate",
        "phase 3 of 3: parts all, 0.1 of the rate",
    ]
    assert [(line["phase"], line["parts"]) for line in watcher.lines] == [(2, "encoder"), (3, "all")]


def test_a_run_with_a_schedule_stopped_anywhere_ends_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    overrides = small(checkpoint_seconds=0.0, schedule=PHASES)  # 3, 2 and 3 of the 8 steps
    train(data, tmp_path / "whole", overrides, epochs=2, seed=1)
    out = tmp_path / "stopped"
    for sitting, step in enumerate((2, 4, 6, 7)):  # in each phase, and across each of their borders
        with pytest.raises(KeyboardInterrupt):
            train(data, out, overrides, epochs=2, seed=1, resume=sitting > 0, callbacks=StopAt(step))
    train(data, out, overrides, epochs=2, seed=1, resume=True)
    assert_same_run(tmp_path / "whole", out)
    with pytest.raises(RunError, match="exists already"):
        train(data, out, overrides, epochs=2)


def test_phases_follow_minutes_too(data: Path, tmp_path: Path) -> None:
    listener = Listener()
    train(data, tmp_path / "run", small(schedule=PHASES), minutes=0.08, callbacks=listener)
    assert len([note for note in listener.notes if note.startswith("phase ")]) == 3
    assert listener.lines[-1]["parts"] == "all"


def test_a_schedule_that_trains_nothing_leaves_nothing_behind(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UNet, "encoder", lambda _: [])
    with pytest.raises(SettingError, match=r'^train\.schedule: parts = "encoder": this network has no encoder'):
        train(data, tmp_path / "run", small(schedule=PHASES), epochs=1)
    assert not (tmp_path / "run").exists()


PREPARE = sys.modules["pixelwise.training.prepare"]  # where the weights are put into the network


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The backbones whose published weights were asked for; all of these are 7."""
    asked: list[nn.Module] = []

    def load_pretrained(backbone: nn.Module, progress: object) -> Loaded:
        asked.append(backbone)
        for parameter in backbone.parameters():
            nn.init.constant_(parameter, 7.0)
        return Loaded("lenet", "weights of sevens", "sevens.pth", 7, 64 * "7", "by name", 1, 1, (), (), None)

    monkeypatch.setattr(PREPARE, "load_pretrained", load_pretrained)
    return asked


def pretrained() -> Overrides:
    overrides = small(rate=1e-9, weight_decay=0.0, checkpoint_seconds=1e6)
    overrides["model"] |= {"pretrained": True, "backbone": "lenet", "depth": 1, "residual": False}
    return overrides


def sevens(run: Path) -> bool:
    tensors = [t for name, t in load_file(model_file(run)).items() if "backbone" in name and "weight" in name]
    return len(tensors) > 0 and all(torch.allclose(tensor, torch.tensor(7.0)) for tensor in tensors)


def test_a_run_starts_from_published_weights_and_never_fetches_them_again(
    data: Path, tmp_path: Path, fetched: list[nn.Module]
) -> None:
    listener, out = Listener(), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(data, out, pretrained(), epochs=1, callbacks=StopAt(1))
    train(data, out, resume=True)
    assert len(fetched) == 1
    assert sevens(out)
    assert load(out).config.model.pretrained
    train(data, tmp_path / "tuned", pretrained(), epochs=1, init=out, callbacks=listener)
    assert len(fetched) == 1
    assert sevens(tmp_path / "tuned")
    train(data, tmp_path / "again", pretrained(), epochs=1, callbacks=listener)
    assert len(fetched) == 2
    assert any("weights of sevens" in note for note in listener.notes)
    assert json.loads((out / "weights.json").read_text())["source"] == "weights of sevens"
    assert not (tmp_path / "tuned" / "weights.json").exists()


def test_a_run_starts_from_a_file_of_weights_and_never_reads_it_again(data: Path, tmp_path: Path) -> None:
    path, out, listener = tmp_path / "sevens.pth", tmp_path / "run", Listener()
    lenet = make_backbone("lenet", in_channels=1, width=4)
    torch.save({f"encoder.{n}": torch.full_like(v, 7.0) for n, v in lenet.state_dict().items()}, path)
    overrides = pretrained()
    del overrides["model"]["pretrained"]
    overrides["model"] |= {"weights": str(path), "width": 4}
    with pytest.raises(KeyboardInterrupt):
        train(data, out, overrides, epochs=1, callbacks=StopAt(1))
    kept = json.loads((out / "weights.json").read_text())
    assert (kept["file"], kept["how"], kept["taken"]) == (str(path), "by name, below encoder.", kept["wanted"])
    path.unlink()
    train(data, out, overrides, resume=True, callbacks=listener)
    assert sevens(out)
    assert load(out).config.model.weights == str(path)
    assert load(out).config.model.pretrained
    with pytest.raises(SettingError, match=rf"^model\.weights: {path} does not exist"):
        train(data, tmp_path / "other", overrides, epochs=1)
    with pytest.raises(
        SettingError, match=rf"^--weights {path} and --init {out} exclude each other: start from a file "
    ):
        train(data, tmp_path / "other", overrides, epochs=1, init=out)
    overrides["model"] |= {"pretrained": False}
    with pytest.raises(
        SettingError, match=rf"^model\.weights: {path} is to be started from, but model\.pretrained is fa"
    ):
        train(data, tmp_path / "other", overrides, epochs=1)
    assert not (tmp_path / "other").exists()


def test_weights_that_cannot_be_fetched_leave_nothing_behind(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(_: nn.Module, progress: object) -> Loaded:
        raise SettingError("no internet")

    monkeypatch.setattr(PREPARE, "load_pretrained", offline)
    with pytest.raises(SettingError, match="no internet"):
        train(data, tmp_path / "run", pretrained(), epochs=1)
    assert not (tmp_path / "run").exists()


def test_a_run_from_other_weights_that_stopped_at_once_still_starts_from_them(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "first", small(steps_per_epoch=10, rate=0.01), epochs=1)
    overrides = small(checkpoint_seconds=1e6)
    train(data, tmp_path / "whole", overrides, epochs=1, init=tmp_path / "first")
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "stopped", overrides, epochs=1, init=tmp_path / "first", callbacks=StopAt(2))
    train(data, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_a_diverging_training_stops_with_advice(data: Path, tmp_path: Path) -> None:
    overrides = small(optimizer="sgd", rate=1e30, clip=0.0, warmup=0.0, momentum=0.0, steps_per_epoch=20)
    overrides["model"]["norm"] = "none"
    with pytest.raises(
        SettingError, match=r"train\.rate = 1e\+30: the loss became \S+ at step \d+; the training diverged"
    ):
        train(data, tmp_path / "run", overrides, epochs=1)


@pytest.mark.parametrize(
    "setting", [{"train": {"recipe": "paper"}}, {"loss": {"border": 10.0}}], ids=["paper", "border"]
)
def test_border_weights_and_the_papers_recipe(
    make_dataset: MakeDataset, tmp_path: Path, setting: dict[str, dict[str, Any]]
) -> None:
    data = make_dataset(tmp_path / "data", count=3, split=("train", "val"), kind="instances")
    overrides = {
        "model": {"width": 4, "depth": 2, **({} if "loss" in setting else {"padding": "valid"})},
        "train": {"steps_per_epoch": 2, "patch": [20, 20], "precision": "32-true", **setting.get("train", {})},
        "loss": setting.get("loss", {}),
    }
    result = train(data, tmp_path / "run", overrides, epochs=1)
    config = load(tmp_path / "run").config
    assert config.loss.border == 10.0
    assert config.model.padding == ("same" if "loss" in setting else "valid")
    assert 0 <= result.best.value <= 1


def test_bfloat16_trains_too(data: Path, tmp_path: Path) -> None:
    listener = Listener()
    train(
        data,
        tmp_path / "run",
        small(precision="bf16-mixed", steps_per_epoch=30, rate=0.01),
        epochs=1,
        callbacks=listener,
    )
    assert np.mean(listener.losses[-5:]) < 0.7 * listener.losses[0]
    assert all(tensor.dtype != torch.bfloat16 for tensor in load_file(model_file(tmp_path / "run")).values())


@pytest.mark.slow
def test_two_processes_over_gloo(data: Path, tmp_path: Path) -> None:
    """Two CPU processes share each step: same weights in both, one run folder, resume included."""
    out = tmp_path / "run"
    more = ["--set", "train.devices=2", "--set", "train.strategy=ddp", "--json", "--seed", "5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        train_command(data, out, *more), capture_output=True, text=True, env=environment, timeout=300
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 3
    generators = [name for name in load_file(state_file(out)) if name.startswith("random/cpu/")]
    assert len(generators) == 2
    metadata = checkpoint.load(state_file(out))[1]
    assert metadata["processes"] == 2
    assert metadata["state"]["step"] == 90
    with pytest.raises(RunError, match=r"was written by 2 processes, not 1"):
        _resume_alone(data, out)


@pytest.mark.slow
def test_two_processes_freeze_the_same_parts(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    schedule = ", ".join(f'{{parts="{parts}", share=1, rate=1.0}}' for parts in ("decoder", "encoder", "all"))
    settings = ["train.devices=2", "train.steps_per_epoch=3", f"train.schedule=[{schedule}]", "train.average=0"]
    more = [part for setting in settings for part in ("--set", setting)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        train_command(data, out, *more, "--json"), capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [line["parts"] for line in lines] == ["decoder", "encoder", "all"]
    steps = {int(t) for name, t in load_file(state_file(out)).items() if name.endswith("/step")}
    assert steps == {6}  # of 9: every part sat out one phase


def _resume_alone(data: Path, out: Path) -> None:
    (out / "complete").unlink()
    config = (out / "config.toml").read_text().replace("devices = 2", "devices = 1").replace('"ddp"', '"auto"')
    (out / "config.toml").write_text(config)
    train(data, out, resume=True)
