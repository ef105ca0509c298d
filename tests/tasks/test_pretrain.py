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

import pixelwise as pw
from pixelwise.cli import app
from pixelwise.core.classes import IGNORE
from pixelwise.core.errors import RunError, SettingError
from pixelwise.core.run_folder import RunFolder
from pixelwise.models import UNet, build, checkpoint
from pixelwise.task import Record
from pixelwise.tasks import PRETRAININGS, choose_pretraining, choose_task
from pixelwise.tasks.pretrain import (
    Autoencoder,
    PatchClasses,
    PatchClassifier,
    classify_loss,
    feature_shapes,
    rebuild_loss,
)
from pixelwise.tasks.segment import Labels
from pixelwise.training.loop import Result
from pixelwise.training.loop import train as train_run
from pixelwise.training.prepare import Start
from pixelwise.training.step import Parts
from trainings import Listener, StopAt, model_file, state_file, train

MakeDataset = Callable[..., Path]
TINY: dict[str, dict[str, Any]] = {
    "train": {"steps_per_epoch": 6, "batch": 2, "patch": [32, 32], "precision": "32-true", "epochs": 1},
    "model": {"width": 4, "depth": 2, "stem": 1},
}
KINDS = ["patches", "rebuild", "stacked"]


def small_unet() -> UNet:
    torch.manual_seed(0)
    return UNet(1, 3, width=4, depth=2)


def pretrain(data: Path, out: Path, kind: str, callbacks: Any = None, seed: int = 0, **start: Any) -> Result:
    overrides = {**TINY, **start.pop("overrides", {}), "": {"seed": seed}}
    return train_run(PRETRAININGS[kind], data, out, overrides, Start(**start), callbacks)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_starts_from_the_encoder(kind: str, make_dataset: MakeDataset, tmp_path: Path) -> None:
    data, listener = make_dataset(tmp_path / "data"), Listener()
    result = pretrain(data, tmp_path / "encoder", kind)
    assert result.best.metric == PRETRAININGS[kind].figure.name
    assert np.isfinite(result.best.value)
    tensors = checkpoint.load(model_file(result.run))[0]
    parts = {name.split(".")[0] for name in tensors}
    assert parts == {"contracting", "dense" if kind == "patches" else "decoders"}
    own = {**TINY, "train": {**TINY["train"], "rate": 1e-12}}  # so that the weights stay what they were
    run = train(data, tmp_path / "run", own, init=result.run, callbacks=listener).run
    weights = checkpoint.load(model_file(run))[0]
    encoder = [name for name in tensors if name.startswith("contracting")]
    for name in encoder:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(weights[name], tensors[name], rtol=0, atol=1e-6)
    count = f"{len(encoder)} of {len(weights)} tensors were taken (contracting {len(encoder)}), "
    assert any(note.startswith(f"--init {result.run}: {count}") for note in listener.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pretraining_stopped_anywhere_ends_with_the_same_bits(
    kind: str, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    data, often = make_dataset(tmp_path / "data"), {**TINY, "train": {**TINY["train"], "checkpoint_seconds": 0.0}}
    pretrain(data, tmp_path / "whole", kind, overrides=often)
    for sitting, step in enumerate((1, 3, 5)):
        with pytest.raises(KeyboardInterrupt):
            pretrain(data, tmp_path / "stopped", kind, StopAt(step), overrides=often, resume=sitting > 0)
    pretrain(data, tmp_path / "stopped", kind, overrides=often, resume=True)
    for file in (model_file, state_file):
        whole, stopped = (checkpoint.load(file(tmp_path / name))[0] for name in ("whole", "stopped"))
        assert whole.keys() == stopped.keys()
        assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert pretrain(data, tmp_path / "stopped", kind, overrides=often, resume=True).finished_before


def test_the_same_seed_gives_the_same_encoder(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    runs = [pretrain(data, tmp_path / name, "patches", seed=seed).run for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    first, again, other = (checkpoint.load(model_file(run))[0] for run in runs)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_classifier_learns_the_pixel_in_the_middle() -> None:
    network = small_unet()
    classifier = PatchClassifier(network)
    images, labels = torch.randn(4, 1, 16, 16), torch.randint(0, 3, (4, 16, 16))
    labels[1, 8, 8] = IGNORE  # counts nowhere
    outputs = classifier.outputs(images)
    features = network.features_on_grid(images)[-1]
    expected = classifier.dense(features[:, :, 1:3, 1:3].mean((2, 3), keepdim=True))
    torch.testing.assert_close(outputs["logits"], expected)
    kept = [0, 2, 3]
    literal = F.cross_entropy(outputs["logits"][kept, :, 0, 0], labels[kept, 8, 8])
    torch.testing.assert_close(classify_loss(outputs, {"labels": labels})["cross_entropy"], literal)


def test_an_autoencoder_rebuilds_the_image_or_the_level_before() -> None:
    network = small_unet()
    assert feature_shapes(network) == [(4, 1), (8, 2), (16, 4)]
    images = torch.randn(2, 1, 24, 16)
    whole = Autoencoder(network, stacked=False).outputs(images)
    assert whole["rebuilt 1"].shape == whole["wanted 1"].shape == images.shape
    stack = Autoencoder(network, stacked=True).outputs(images)
    sizes = [tuple(stack[f"rebuilt {number}"].shape) for number in (1, 2, 3)]
    assert sizes == [(2, 1, 24, 16), (2, 4, 24, 16), (2, 8, 12, 8)]
    assert all(stack[f"wanted {number}"].shape == sizes[number - 1] for number in (1, 2, 3))
    assert not any(stack[name].requires_grad for name in stack if name.startswith("wanted"))
    mean = images.mean().expand_as(images)
    loss = rebuild_loss({"rebuilt 1": mean, "wanted 1": images}, {})
    assert loss["rebuilt 1"].item() == pytest.approx(1, abs=0.01)


def test_a_phase_trains_its_own_level() -> None:
    coder = Autoencoder(small_unet(), stacked=True)
    parts = Parts(coder)
    parts.train("level 2")
    trained = {".".join(name.split(".")[:2]) for name, value in coder.named_parameters() if value.requires_grad}
    assert trained == {"contracting.1", "decoders.1"}
    assert coder.outputs(torch.randn(2, 1, 16, 16)).keys() == {"rebuilt 2", "wanted 2"}


def test_images_off_the_grid_are_padded() -> None:
    outputs = Autoencoder(small_unet(), stacked=False).eval().outputs(torch.randn(1, 1, 13, 18))
    assert outputs["rebuilt 1"].shape == outputs["wanted 1"].shape == (1, 1, 16, 20)


def test_only_the_encoder_is_kept_with_what_trains_it() -> None:
    network = build("fcn8s", in_channels=1, num_classes=2, width=2)
    coder = PatchClassifier(network)
    encoder = {name for name in network.state_dict() if name.startswith(("backbone.", "head."))}
    assert set(coder.state_dict()) == encoder | {"dense.weight", "dense.bias"}


def test_a_backbone_is_a_single_part() -> None:
    network = build("unet", in_channels=1, num_classes=2, width=4, backbone="lenet")
    with pytest.raises(SettingError, match=r"--kind stacked: this encoder is one part, not a stack of levels; use"):
        Autoencoder(network, stacked=True)
    assert len(Autoencoder(network, stacked=False).decoders) == 1


def test_the_accuracy_counts_labelled_middles() -> None:
    tally = PRETRAININGS["patches"].tally(None, full=True)  # type: ignore[arg-type]
    truth = np.array([[0, 1, IGNORE], [1, 1, 0]], np.uint16)
    record = Record("a", np.zeros((2, 3, 1)), Labels(truth, None))
    prediction = PatchClasses(np.array([0, 1]), np.array([0, 2]), np.array([[0, 1], [1, 1]], np.uint8))
    assert tally.add(record, prediction) == pytest.approx(2 / 3)
    assert tally.figures() == {"accuracy": pytest.approx(2 / 3), "images": 1}


def test_what_makes_no_sense_is_refused(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data, out = make_dataset(tmp_path / "data"), tmp_path / "out"
    with pytest.raises(SettingError, match=r"^--kind patch: unknown way to train an encoder; did you mean patches\?"):
        choose_pretraining("patch")
    with pytest.raises(SettingError, match=r"^--task rebuild: unknown task; choose from: segment\.$"):
        choose_task("rebuild")
    with pytest.raises(SettingError, match="model: UNet in this form has no encoder that can be trained alone"):
        pretrain(data, out, "patches", overrides={"model": {"width": 4, "depth": 1, "padding": "valid"}})
    with pytest.raises(SettingError, match="model: Patch in this form has no encoder that can be trained alone"):
        pretrain(data, out, "patches", overrides={"model": {"name": "patch", "width": 4}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="exists already and is not empty"):
        pretrain(data, out, "patches")


def test_a_run_is_resumed_by_the_command_that_began_it(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    encoder, whole = pretrain(data, tmp_path / "encoder", "rebuild").run, train(data, tmp_path / "run", TINY).run
    with pytest.raises(RunError, match=r"trains an encoder alone \(rebuild\)\. Resume it with `pixelwise pretrain`"):
        choose_task(None, encoder)
    with pytest.raises(RunError, match=r"trains a whole network \(segment\)\. Resume it with `pixelwise train`"):
        choose_pretraining(None, whole)
    with pytest.raises(RunError, match=r"was started with --kind rebuild\. Leave --kind out to resume it"):
        choose_pretraining("patches", encoder)
    assert choose_pretraining(None, encoder).name == "rebuild"


@pytest.mark.parametrize("kind", KINDS)
def test_a_pretraining_is_measured_and_predicts_nothing(kind: str, make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    run = pw.load(pretrain(data, tmp_path / "encoder", kind).run)
    metrics = run.evaluate(data, split="val")
    assert metrics["task"] == kind
    assert metrics["value"] == metrics[metrics["metric"]]
    assert (RunFolder(run.path).evaluation("val") / "report.html").is_file()
    shown = CliRunner().invoke(app, ["predict", str(run.path), str(data / "images"), "--out", str(tmp_path / "masks")])
    assert shown.exit_code == 2
    assert f"this run trained an encoder alone ({kind}), so it predicts nothing" in shown.output


def test_the_command_prints_json(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    arguments = ["pretrain", str(data), "--out", str(tmp_path / "e"), "--kind", "rebuild", "--json"]
    for section, values in TINY.items():
        for key, value in values.items():
            arguments += ["--set", f"{section}.{key}={json.dumps(value) if not isinstance(value, str) else value}"]
    shown = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert found.keys() == {"run", "minutes", "epochs", "best"}
    assert found["best"]["metric"] == "relative_error"
