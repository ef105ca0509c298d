"""Encoders that are trained alone: what is written, what trains, and what `train --init` takes of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from pixelwise.cli import app
from pixelwise.core.errors import RunError, SettingError
from pixelwise.models import UNet, build, checkpoint
from pixelwise.models.checkpoint import MODEL_FILE
from pixelwise.tasks.pretrain import (
    Autoencoder,
    PatchClassifier,
    encoder_tensors,
    feature_shapes,
    make_stages,
    pretrain,
)
from pixelwise.training.loop import train

MakeDataset = Callable[..., Path]
TINY: dict[str, dict[str, Any]] = {
    "train": {"steps_per_epoch": 6, "batch": 2, "patch": [32, 32], "precision": "32-true"},
    "model": {"width": 4, "depth": 2, "stem": 1},
}


def small_unet() -> UNet:
    torch.manual_seed(0)
    return UNet(1, 3, width=4, depth=2)


def start(data: Path, out: Path, task: str, **keywords: Any) -> Any:
    return pretrain(data, out, task, {**TINY, **keywords.pop("overrides", {})}, epochs=1, device="cpu", **keywords)


@pytest.mark.parametrize("task", ["classify", "autoencode", "stacked"])
def test_a_training_starts_from_the_encoder(task: str, make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    result = start(data, tmp_path / "encoder", task)
    assert result.task == task
    assert result.steps >= 6
    assert np.isfinite(result.loss)
    tensors, facts = checkpoint.load(result.run / MODEL_FILE)
    assert facts["pretrained_by"] == task
    assert {name.split(".")[0] for name in tensors} == {"contracting"}
    notes: list[str] = []

    class Notes:
        def note(self, text: str) -> None:
            notes.append(text)

        def surveyed(self, done: int, total: int) -> None: ...

        def stepped(self, report: object) -> None: ...

        def validated(self, line: dict[str, Any]) -> None: ...

    own = {**TINY, "train": {**TINY["train"], "rate": 1e-12}}  # so that the weights stay what they were
    run = train(data, tmp_path / "run", own, epochs=1, device="cpu", init=result.run, callbacks=Notes()).run
    weights = checkpoint.load(run / MODEL_FILE)[0]
    for name, tensor in tensors.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-6)
    left = len(weights) - len(tensors)
    assert any(f"--init: {left} of {len(weights)} tensors start afresh" in note for note in notes)


def test_the_same_seed_gives_the_same_encoder(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    runs = [start(data, tmp_path / name, "classify", seed=seed).run for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    first, again, other = (checkpoint.load(run / MODEL_FILE)[0] for run in runs)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_classifier_learns_the_pixel_in_the_middle() -> None:
    network = small_unet()
    classifier = PatchClassifier(network, feature_shapes(network))
    images, labels = torch.randn(4, 1, 16, 16), torch.randint(0, 3, (4, 16, 16))
    labels[1, 8, 8] = 255  # counts nowhere
    logits = classifier(images)
    features = network.features_on_grid(images)[-1]
    expected = classifier.dense(features[:, :, 1:3, 1:3].mean((2, 3), keepdim=True))
    torch.testing.assert_close(logits, expected)
    kept = [0, 2, 3]
    literal = F.cross_entropy(logits[kept, :, 0, 0], labels[kept, 8, 8])
    torch.testing.assert_close(classifier.loss(logits, labels), literal)


def test_an_autoencoder_rebuilds_the_image_or_the_level_before() -> None:
    network = small_unet()
    shapes = feature_shapes(network)
    assert shapes == [(4, 1), (8, 2), (16, 4)]
    images = torch.randn(2, 1, 24, 16)
    for level, target, size in ((-1, None, (2, 1, 24, 16)), (2, 1, (2, 8, 12, 8)), (0, None, (2, 1, 24, 16))):
        rebuilt, wanted = Autoencoder(network, shapes, level, target)(images)
        assert rebuilt.shape == wanted.shape == size
        assert not wanted.requires_grad
    mean = images.mean().expand_as(images)
    assert Autoencoder.loss((mean, images), torch.empty(0)).item() == pytest.approx(1, abs=0.01)


def test_a_stage_trains_its_own_level() -> None:
    from pixelwise.tasks.pretrain import _restricted

    network = small_unet()
    stages = make_stages(network, "stacked")
    assert len(stages) == 3
    _restricted(stages[1])
    trained = {name.split(".")[1] for name, value in network.named_parameters() if value.requires_grad}
    assert trained == {"1"}
    assert {name.split(".")[0] for name in encoder_tensors(network)} == {"contracting"}


def test_a_backbone_is_a_single_part() -> None:
    network = build("unet", in_channels=1, num_classes=2, width=4, backbone="lenet")
    with pytest.raises(SettingError, match=r'task: "stacked" trains an encoder level by level, but this one is a sing'):
        make_stages(network, "stacked")
    assert len(make_stages(network, "autoencode")) == 1


def test_what_makes_no_sense_is_refused(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data, out = make_dataset(tmp_path / "data"), tmp_path / "out"
    with pytest.raises(SettingError, match="task: 'clasify' is no way to pretrain; did you mean classify"):
        start(data, out, "clasify")
    with pytest.raises(SettingError, match="model: unet in this form has no encoder that can be trained alone"):
        start(data, out, "classify", overrides={"model": {"width": 4, "depth": 1, "padding": "valid"}})
    with pytest.raises(SettingError, match="model: patch in this form has no encoder that can be trained alone"):
        start(data, out, "classify", overrides={"model": {"name": "patch", "width": 4}})
    with pytest.raises(SettingError, match=r"train.devices: an encoder is trained alone by one process; leave"):
        start(data, out, "classify", overrides={"train": {**TINY["train"], "devices": 2}})
    rate = {**TINY["train"], "rate": 1e12, "warmup": 0.0, "clip": 0.0}
    with pytest.raises(SettingError, match=r"train.rate = 1e\+12: the loss became (nan|inf) at step \d+; the training"):
        start(data, out, "autoencode", overrides={"train": rate})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="exists already and is not empty"):
        start(data, out, "classify")


def test_a_failed_pretraining_leaves_the_encoder_that_it_should_replace(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    data, out = make_dataset(tmp_path / "data"), tmp_path / "out"
    start(data, out, "autoencode")
    before = (out / MODEL_FILE).read_bytes()
    rate = {**TINY["train"], "rate": 1e12, "warmup": 0.0, "clip": 0.0}
    with pytest.raises(SettingError, match="diverged"):
        start(data, out, "autoencode", overrides={"train": rate}, force=True)
    assert (out / MODEL_FILE).read_bytes() == before
    start(data, out, "autoencode", force=True, seed=1)
    assert (out / MODEL_FILE).read_bytes() != before


def test_the_command_prints_json(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    arguments = ["pretrain", str(data), "--out", str(tmp_path / "e"), "--task", "autoencode", "--epochs", "1", "--json"]
    for section, values in TINY.items():
        for key, value in values.items():
            arguments += ["--set", f"{section}.{key}={json.dumps(value) if not isinstance(value, str) else value}"]
    shown = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout) | {"minutes": 0, "loss": 0} == {
        "run": str(tmp_path / "e"), "task": "autoencode", "minutes": 0, "steps": 6, "loss": 0,
    }  # fmt: skip
