"""The command `pixelwise models`: its tables, its JSON, its picture, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from networks import make_settings
from pixelwise import cli
from pixelwise.models import MODELS, checkpoint
from pixelwise.models.checkpoint import build_network

SMALL = ("--set", "model.width=4", "--set", "model.depth=2")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["models", *(str(argument) for argument in arguments)])


def done(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    return result.stderr


def test_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {name: MODELS[name] for name in ("unet", "segnet")}
    monkeypatch.setattr("pixelwise.models.summary.MODELS", chosen)
    listed = json.loads(done("--json"))["models"]
    assert [one["name"] for one in listed] == ["unet", "segnet"]
    keys = {"name", "parameters", "multiply_adds", "stride", "halo", "margin", "exact", "reason"}
    assert all(set(one) == keys for one in listed)
    lines = done().splitlines()
    assert [line.split()[0] for line in lines] == ["network", "unet", "segnet"]


def test_one_network() -> None:
    found = json.loads(done("unet", *SMALL, "--channels", 1, "--classes", 3, "--size", 64, "--json"))
    assert (found["name"], found["stride"], found["exact"]) == ("unet", 4, True)
    assert found["parameters"] == sum(layer["parameters"] for layer in found["layers"])
    assert found["multiply_adds"] == sum(layer["multiply_adds"] for layer in found["layers"])
    assert found["layers"][-1]["shape"] == [3, 64, 64]
    assert set(found["layers"][0]) >= {"name", "shape", "parameters", "multiply_adds", "receptive_field"}
    lines = done("unet", *SMALL).splitlines()
    assert lines[0].split()[:2] == ["layer", "kind"]
    assert lines[-1].startswith("unet")
    assert done("unet", *SMALL, "--quiet") == ""


def test_help_has_an_example() -> None:
    assert "Example: pixelwise models unet" in done("--help")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = make_settings()
    config = config.model_copy(update={"model": config.model.model_copy(update={"width": 2, "depth": 1})})
    checkpoint.save_model(tmp_path / "run" / "model.safetensors", build_network(config), config, {})
    return tmp_path / "run"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)).save(tmp_path / "x.png")
    return tmp_path / "x.png"


def test_the_picture_of_features(run: Path, image: Path, tmp_path: Path) -> None:
    found = json.loads(done("unet", "--features", run, image, "--json"))
    assert found["features"] == str(run / "features-x.png")
    assert found["layers"][0] == {"name": "contracting.0", "kind": "Sequential", "shape": [2, 40, 30]}
    with Image.open(found["features"]) as picture:
        assert picture.format == "PNG"
    out = tmp_path / "deep" / "y.png"
    assert done("unet", "--features", run, image, "--layer", "head", "--out", out) == f"{out}\n"
    assert out.is_file()
    assert done("unet", "--features", run, image, "--quiet") == ""


def test_bad_usage(run: Path, image: Path, tmp_path: Path) -> None:
    assert refused("unt") == "error: model.name: unknown network 'unt'; did you mean unet?\n"
    assert "model.widht is not a setting; did you mean model.width" in refused("unet", "--set", "model.widht=3")
    assert "only settings of the network, model.*" in refused("unet", "--set", "train.batch=3")
    assert "--set: name the network" in refused("--set", "model.width=3")
    assert "--features: name the network" in refused("--features", run, image)
    assert "--layer: belongs to --features RUN IMAGE" in refused("unet", "--layer", "head")
    assert "--out: is where a picture goes" in refused("unet", "--out", tmp_path / "a.png")
    assert "--checkerboard: draws an operator" in refused("unet", "--checkerboard", 3, 2)
    assert "--checkerboard: the stride must be between 1 and 64 pixels, not 0" in refused("--checkerboard", 3, 0)
    assert "--checkerboard: the kernel must be between 1 and 64 pixels, not 65" in refused("--checkerboard", 65, 2)
    assert "--set: a run has its settings" in refused("unet", "--features", run, image, *SMALL)
    assert "is a run of unet, not of segnet" in refused("segnet", "--features", run, image)
    assert "--layer haed: there is no such layer in the network" in refused(
        "unet", "--features", run, image, "--layer", "haed"
    )
    assert "no such file" in refused("unet", "--features", tmp_path, image)
    assert "missing.png" in refused("unet", "--features", run, tmp_path / "missing.png")
    assert "cannot take" in refused("unet", "--set", "model.padding=valid", "--size", "512")


@pytest.mark.parametrize(
    ("kernel", "stride", "fewest", "most"),
    [(3, 2, 1, 4), (4, 2, 4, 4), (1, 2, 0, 1), (64, 32, 4, 4), (5, 1, 25, 25), (33, 32, 1, 4), (31, 32, 0, 1)],
)
def test_the_checkerboard_counts_the_stamps_away_from_the_border(
    kernel: int, stride: int, fewest: int, most: int, tmp_path: Path
) -> None:
    """Along an axis a pixel has floor or ceil of kernel / stride stamps, over the plane their products."""
    path = tmp_path / "board.png"
    found = json.loads(done("--checkerboard", kernel, stride, "--out", path, "--json"))
    expected = {"checkerboard": str(path), "kernel": kernel, "stride": stride, "fewest": fewest, "most": most}
    assert found == expected
    assert np.asarray(Image.open(path)).std() > 0
    line = done("--checkerboard", kernel, stride, "--out", path)
    assert ("unevenly" in line) == (fewest != most)
