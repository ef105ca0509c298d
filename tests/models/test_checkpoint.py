"""Checkpoints: what goes in comes out, nothing is pickled, and what cannot be used is refused by name."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pixelwise.core.config import Config, make_config
from pixelwise.core.errors import OutputError, RunError, SettingError
from pixelwise.models import MODELS, checkpoint


def make_settings(classes: int = 2, channels: int = 1, **model: Any) -> Config:
    names = [f"class {index}" for index in range(classes)]
    return make_config(
        {
            "data": {
                "labels": "index", "classes": names, "colors": [[10 * k, 0, 0] for k in range(classes)], "values": [],
                "ignore": [], "channels": channels, "scale": 1.0, "normalization": "fixed",
                "mean": [0.3] * channels, "std": [0.2] * channels,
            },
            "model": {"width": 4, "depth": 2, **model},
            "train": {"patch": [32, 32], "batch": 2, "epochs": 1, "steps_per_epoch": 2, "rate": 0.001},
            "augment": {},
            "loss": {},
        }
    )  # fmt: skip


def some_tensors() -> dict[str, Tensor]:
    """Every type and form that a training keeps."""
    torch.manual_seed(0)
    return {
        "single": torch.randn(3, 4, requires_grad=True),
        "double": torch.randn(2, dtype=torch.float64),
        "half": torch.randn(5).to(torch.bfloat16),
        "count": torch.tensor(7),
        "bytes": torch.arange(256, dtype=torch.uint8),
        "turned": torch.randn(3, 5).T,
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "empty": torch.zeros(0, 3),
        "special": torch.tensor([float("inf"), float("-inf"), 0.0, -0.0]),
    }


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    config = make_settings()
    torch.manual_seed(1)
    path = tmp_path / "run" / "model.safetensors"
    checkpoint.save_model(path, checkpoint.build_network(config), config, {"epoch": 3, "mean_iou": 0.5})
    return path


def rewrite(path: Path, metadata: dict[str, str] | None, tensors: dict[str, Tensor] | None = None) -> None:
    """Replace the header's metadata (and the tensors)."""
    save_file(load_file(path) if tensors is None else tensors, path, metadata=metadata)


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.safetensors"
    tensors, metadata = some_tensors(), {"step": 3, "loss": 0.1, "best": None, "names": ["a", "ü"], "deep": {"x": [1]}}
    checkpoint.save(path, tensors, metadata)
    found, told = checkpoint.load(path)
    assert told == metadata
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach())
    assert [entry.name for entry in path.parent.iterdir()] == ["x.safetensors"]


def test_the_file_is_a_json_header_and_raw_numbers_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.randn(3, 5).T, "b": torch.arange(4)}
    checkpoint.save(path, tensors, {"step": 1})
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    told = header.pop("__metadata__")
    assert told == {"format": "pixelwise", "version": "2", "content": '{"step": 1}'}
    assert header.keys() == tensors.keys()
    body, used = content[8 + length :], 0
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        raw = np.frombuffer(body[start:end], {"F32": np.float32, "I64": np.int64}[entry["dtype"]])
        np.testing.assert_array_equal(raw.reshape(entry["shape"]), tensors[name].numpy())
        used += end - start
    assert used == len(body)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"a": torch.zeros(3)}, {"step": 1})
    old = path.read_bytes()

    def fill_the_disk(tensors: dict[str, Tensor], target: Path, metadata: dict[str, str]) -> None:
        target.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", fill_the_disk)
    with pytest.raises(OutputError, match=r"x\.safetensors: cannot be written \(I/O error: No space left.*Free some"):
        checkpoint.save(path, {"a": torch.ones(3)}, {"step": 2})
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "model.safetensors", tmp_path):
        with pytest.raises(RunError, match=re.escape(f"{path}: no such file. Is this the folder of a finished")):
            checkpoint.load(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(model_file: Path, share: float) -> None:
    content = model_file.read_bytes()
    model_file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(RunError, match=r"model\.safetensors: is not a readable checkpoint \(.+\)\. Train again, or"):
        checkpoint.load_model(model_file)


@given(st.integers(1, 400))
@settings(deadline=None, max_examples=20)
def test_any_truncation_is_refused(tmp_path_factory: pytest.TempPathFactory, missing: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "x.safetensors"
    checkpoint.save(path, {"a": torch.arange(25.0), "b": torch.ones(3)}, {"step": 1})
    content = path.read_bytes()
    path.write_bytes(content[:-missing])
    with pytest.raises(RunError, match="is not a readable checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [b"", b"hello, this is text\n" * 20, b"PK\x03\x04" + bytes(400), bytes(400)])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"model\.safetensors: is not a readable checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_weights_of_another_program_are_refused(model_file: Path, metadata: dict[str, str] | None) -> None:
    rewrite(model_file, metadata)
    with pytest.raises(RunError, match=r"model\.safetensors: was not written by pixelwise\."):
        checkpoint.load(model_file)


@pytest.mark.parametrize("version", ["0", "1", "2.0"])
def test_another_version_is_refused(model_file: Path, version: str) -> None:
    rewrite(model_file, {"format": "pixelwise", "version": version, "content": "{}"})
    message = rf"model\.safetensors: is a checkpoint of version {version}; this pixelwise reads version 2\. Use the"
    with pytest.raises(RunError, match=message):
        checkpoint.load(model_file)


def test_a_version_that_is_missing_is_refused(model_file: Path) -> None:
    rewrite(model_file, {"format": "pixelwise", "content": "{}"})
    with pytest.raises(RunError, match="of version None; this pixelwise reads version 2"):
        checkpoint.load(model_file)


@pytest.mark.parametrize("more", [{}, {"content": "{not json"}])
def test_metadata_that_cannot_be_read_are_refused(model_file: Path, more: dict[str, str]) -> None:
    rewrite(model_file, {"format": "pixelwise", "version": "2", **more})
    with pytest.raises(RunError, match="is not a readable checkpoint"):
        checkpoint.load(model_file)


def test_a_model_comes_back_whole(tmp_path: Path) -> None:
    config = make_settings(classes=3, channels=2, residual=True, stem=2)
    torch.manual_seed(5)
    network = checkpoint.build_network(config).train()
    network(torch.randn(2, 2, 16, 16))  # moves the batch norm's figures
    checkpoint.save_model(tmp_path / "m.safetensors", network, config, {"epoch": 3, "mean_iou": 0.5})
    found, same, facts = checkpoint.load_model(tmp_path / "m.safetensors")
    assert (same, facts) == (config, {"epoch": 3, "mean_iou": 0.5})
    assert not found.training
    images = torch.randn(1, 2, 9, 13)
    assert torch.equal(found(images), network.eval()(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"name": "vnet"}}, "unknown network 'vnet'"),
        ({"model": {"name": "unet", "depth": 99}}, "must be between 1 and 10 poolings, not 99"),
        ({"model": {"wings": 2}}, "model.wings is not a setting"),
        ({"data": None}, "data = None"),
    ],
)
def test_settings_that_make_no_network_are_refused(model_file: Path, change: dict[str, Any], message: str) -> None:
    config = {**make_settings().model_dump(mode="json"), **change}
    rewrite(model_file, {"format": "pixelwise", "version": "2", "content": json.dumps({"config": config})})
    with pytest.raises(
        RunError, match=rf"model\.safetensors: its settings cannot be used here: .*{re.escape(message)}"
    ):
        checkpoint.load_model(model_file)


def test_a_training_state_is_no_model(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "state.safetensors", {"a": torch.zeros(1)}, {"state": {}})
    with pytest.raises(RunError, match=r"state\.safetensors: its settings cannot be used here: 'config'"):
        checkpoint.load_model(tmp_path / "state.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("head.bias"),
            r"1 tensors differ, first head\.bias: missing in the file, \(2,\) in the network",
        ),
        (lambda t: t.update(extra=torch.zeros(4)), r"first extra: \(4,\) in the file, none in the network"),
        (lambda t: t.update({"head.bias": torch.zeros(3)}), r"first head\.bias: \(3,\) in the file, \(2,\) in the net"),
    ],
)
def test_weights_that_do_not_fit_are_refused(model_file: Path, change: Any, message: str) -> None:
    tensors, metadata = checkpoint.load(model_file)
    change(tensors)
    checkpoint.save(model_file, tensors, metadata)
    with pytest.raises(RunError, match=rf"model\.safetensors: its weights do not fit the network: .*{message}"):
        checkpoint.load_model(model_file)


def test_weights_that_do_not_fit_change_nothing() -> None:
    network = nn.Conv2d(1, 2, 3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(RunError, match="its weights do not fit"):
        checkpoint.load_weights(network, {**before, "weight": torch.zeros(2, 3, 3, 3)}, Path("x"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(SettingError, match=r"model\.name: unknown network 'nut'; "):
        checkpoint.build_network(make_settings(name="nut"))


class Bare(nn.Module):
    """A network with few settings, and with a backbone where one is named."""

    own_encoder = ""

    def __init__(self, in_channels: int, num_classes: int, width: int = 3, backbone: str | None = None) -> None:
        super().__init__()
        self.head = nn.Conv2d(in_channels, num_classes + width, 1)
        self.backbone = nn.Identity() if backbone else None


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "bare", Bare)


@pytest.mark.usefixtures("bare")
def test_what_is_left_out_is_up_to_the_network() -> None:
    network = checkpoint.build_network(make_settings(classes=4, name="bare", width=None, depth=None))
    assert network.get_submodule("head").out_channels == 7
    with pytest.raises(SettingError, match=r"^model\.depth: bare has no such setting; it has width, backbone\.$"):
        checkpoint.build_network(make_settings(name="bare", depth=2))
    with pytest.raises(SettingError, match=r"^model\.image_branch: bare has no such setting; it has w"):
        checkpoint.build_network(make_settings(name="bare", depth=None, image_branch=False))


def test_the_settings_of_a_network_are_those_of_its_constructor() -> None:
    assert set(checkpoint.settings_of("unet")) >= {"width", "depth", "padding", "norm", "dropout", "stem", "residual"}
    with pytest.raises(SettingError, match=r"^model\.name: unknown network 'nut'; "):
        checkpoint.settings_of("nut")


@pytest.mark.usefixtures("bare")
def test_published_weights_need_a_backbone() -> None:
    message = r"^model\.pretrained: bare, width 4 has no backbone with published weights; choose a network that has"
    with pytest.raises(SettingError, match=message):
        checkpoint.build_network(make_settings(name="bare", depth=None, pretrained=True))
    checkpoint.build_network(make_settings(name="bare", depth=None, pretrained=True, backbone="resnet18"))
    message = (
        r"^model\.weights: bare, width 4 has no backbone to take them; choose a network that has one, or leave model"
    )
    with pytest.raises(SettingError, match=message):
        checkpoint.build_network(make_settings(name="bare", depth=None, pretrained=True, weights="a.pth"))


def test_a_file_from_before_a_setting_was_added_is_read(model_file: Path) -> None:
    config = make_settings(padding="same", norm="batch", dropout=0.0, stem=1, residual=False).model_dump(mode="json")
    for key in ("backbone", "pretrained", "output_stride", "auxiliary", "head", "image_branch"):
        del config["model"][key]
    del config["train"]["schedule"]
    for key in ("focal", "tversky", "lovasz", "focal_gamma", "tversky_alpha", "tversky_beta", "edges", "dual"):
        del config["loss"][key]
    rewrite(model_file, {"format": "pixelwise", "version": "2", "content": json.dumps({"config": config})})
    network, found, _ = checkpoint.load_model(model_file)
    assert found.model.depth == 2
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 2, 8, 8)


@pytest.mark.parametrize(
    ("other", "fresh"),
    [
        ({}, []),
        ({"classes": 5}, ["head.bias", "head.weight"]),
        ({"channels": 3}, ["contracting.0.0.0.weight"]),
        ({"classes": 5, "channels": 3}, ["contracting.0.0.0.weight", "head.bias", "head.weight"]),
    ],
)
def test_matching_weights_are_taken_over(other: dict[str, Any], fresh: list[str]) -> None:
    torch.manual_seed(0)
    old = checkpoint.build_network(make_settings()).state_dict()
    network = checkpoint.build_network(make_settings(**other))
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert checkpoint.load_matching(network, {**old, "of another network": torch.zeros(2)}) == fresh
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, start[name] if name in fresh else old[name])


def test_names_are_put_below_a_prefix_and_taken_out_again() -> None:
    first, second = {"a": torch.zeros(1), "b/c": torch.ones(2)}, {"a": torch.ones(3)}
    joined = checkpoint.flatten("x", first) | checkpoint.flatten("xy", second)
    assert list(joined) == ["x/a", "x/b/c", "xy/a"]
    assert checkpoint.unflatten("x", joined) == first
    assert checkpoint.unflatten("xy", joined) == second


OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "plain": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
}


def descend(network: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        loss = (network(torch.randn(2, 1, 6, 6, generator=generator)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_goes_on_as_if_nothing_had_happened(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(1, 2, 3)
    optimizer = OPTIMIZERS[name](network.parameters())
    descend(network, optimizer, range(3))
    tensors = checkpoint.flatten("network", network.state_dict())
    tensors |= checkpoint.flatten("optimizer", checkpoint.optimizer_tensors(optimizer))
    checkpoint.save(tmp_path / "state.safetensors", tensors, {})
    descend(network, optimizer, range(3, 6))

    read, _ = checkpoint.load(tmp_path / "state.safetensors")
    again = nn.Conv2d(1, 2, 3)
    checkpoint.load_weights(again, checkpoint.unflatten("network", read), tmp_path)
    resumed = OPTIMIZERS[name](again.parameters())
    checkpoint.restore_optimizer(resumed, checkpoint.unflatten("optimizer", read))
    descend(again, resumed, range(3, 6))
    for one, two in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
