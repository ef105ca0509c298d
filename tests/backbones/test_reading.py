"""Files of weights that are none, or hold more than tensors: each is refused with what to do."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pixelwise.backbones.reading import read_tensors, sha256_of
from pixelwise.core.errors import SettingError


def saved(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


def refused(path: Path, message: str) -> None:
    with pytest.raises(SettingError, match=rf"^model\.weights: {path} {message}"):
        read_tensors(path)


def test_a_state_dict(tmp_path: Path) -> None:
    weights = {"a.weight": torch.ones(2), "b": torch.zeros(3)}
    save_file(weights, tmp_path / "a.safetensors")
    for path in (
        tmp_path / "a.safetensors",
        *(saved(weights, tmp_path / f"a{end}") for end in (".pth", ".pt", ".bin")),
    ):
        found = read_tensors(path)
        assert list(found) == ["a.weight", "b"]
        assert torch.equal(found["a.weight"], weights["a.weight"])


def test_a_checkpoint(tmp_path: Path) -> None:
    """Its optimiser's state stands under numbers, its options in a Namespace: both are passed over."""
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
    content = {"state_dict": {"a": torch.ones(2)}, "epoch": 3, "optimizer": optimizer}
    content["args"] = argparse.Namespace(rate=0.1)  # type: ignore[assignment]
    assert list(read_tensors(saved(content, tmp_path / "checkpoint.pth.tar"))) == ["state_dict.a"]


def test_the_older_format_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert list(read_tensors(path)) == ["a"]


def test_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.pth", r"does not exist: name a file of weights \(\.safetensors, \.pth, ")


def test_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, r"is a folder: name a file of weights in it \(\.safetensors, ")


def test_another_suffix(tmp_path: Path) -> None:
    path = tmp_path / "weights.h5"
    path.write_bytes(b"HDF")
    refused(path, r"is not read: a file of weights ends in \.safetensors, \.pth, \.pt, \.bin, \.ckpt, \.tar\.$")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_empty_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.touch()
    refused(path, r"is empty: fetch it again\.$")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_web_page(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_text("\n<!DOCTYPE html><html><body>Sign in</body></html>")
    refused(path, r"is a web page, not a file of weights: fetch it again by its direct address")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file(suffix: str, tmp_path: Path) -> None:
    path, weights = tmp_path / f"weights{suffix}", {"a": torch.ones(1000)}
    torch.save(weights, path) if suffix == ".pth" else save_file(weights, path)
    path.write_bytes(path.read_bytes()[:2000])
    refused(path, r"is not a complete file of weights: .+\. Fetch it again; if it is a pickled network, save its ")


def test_a_pickled_network(tmp_path: Path) -> None:
    path = saved(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "network.pth")
    refused(
        path,
        r"holds more than tensors \(.*torch\.nn\.modules\..*\), and nothing else is unpickled, since "
        r"that could run any program\. Save its tensors alone where it can be loaded: torch",
    )


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"a": "text", "b": 3}, "a dict of a: str, b: int"),
        ({"a": [0.1, 0.2]}, "a dict of a: list"),
        ({}, "an empty dict"),
        ([torch.ones(2)], "a list"),
        (torch.ones(2), "a Tensor"),
    ],
)
def test_no_tensors_by_name(content: Any, what: str, tmp_path: Path) -> None:
    refused(saved(content, tmp_path / "odd.pth"), rf"holds no tensors by name, but {what}\. Save its tensors alone ")


def test_the_checksum(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
