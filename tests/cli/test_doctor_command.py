"""`pixelwise doctor`, and what a training says of a data set."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from pixelwise import cli

MakeDataset = Callable[..., Path]


def doctor(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["doctor", *(str(argument) for argument in arguments)])


@pytest.fixture
def data(make_dataset: MakeDataset, tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "data", count=4, kind="index", split=("train", "val"))


def test_a_sound_set_has_status_0_and_says_what_it_is(data: Path) -> None:
    result = doctor(data)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "8 images: train 4, val 4",
        "labels: index (class 0, class 1, class 2): the values 0, 1, 2 occur",
        "",
        "sound: a training can start",
    ]


def test_json_is_one_object(data: Path) -> None:
    (data / "train/masks/img000.png").unlink()
    result = doctor(data, "--json")
    assert result.exit_code == 2
    value = json.loads(result.stdout)
    assert value["ok"] is False
    assert (value["images"], value["labels"]) == (7, "index")
    assert [problem["code"] for problem in value["problems"]] == ["unpaired-image"]
    assert doctor(data, "--json", "--allow", "unpaired-image").exit_code == 0
    assert doctor(data, "--json", "--allow", "image-without-mask").exit_code == 0


def test_errors_are_told_even_if_it_is_quiet(data: Path) -> None:
    (data / "train/masks/img000.png").unlink()
    result = doctor(data, "--quiet")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "img000.png: has no mask with the same stem" in result.stderr


def test_a_mended_copy_makes_it_sound(data: Path, tmp_path: Path) -> None:
    (data / "train/masks/img000.png").unlink()
    result = doctor(data, "--fix", tmp_path / "mended", "--html", tmp_path / "page.html")
    assert result.exit_code == 0
    copy = f"mended copy: {tmp_path / 'mended'}, 7 pairs, 0 masks changed, 1 files left out"
    assert result.stdout.splitlines()[-3:] == [copy, f"page: {tmp_path / 'page.html'}", "sound: a training can start"]
    assert doctor(tmp_path / "mended").exit_code == 0


def test_what_cannot_be_mended_stays_an_error(data: Path, tmp_path: Path) -> None:
    for path in data.glob("*/masks/*"):
        Image.fromarray(np.zeros((48, 40), np.uint8)).save(path)
    result = doctor(data, "--fix", tmp_path / "mended")
    assert result.exit_code == 2
    assert result.stdout.splitlines()[-1] == "not sound: a training refuses this data set"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--allow", "nonsense"], "--allow nonsense: no problem has this code; choose from: unpaired-image, "),
        (["--fix", "data/x"], "lies within"),
    ],
)
def test_wrong_options_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctor("data", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_no_data_set_is_refused(tmp_path: Path) -> None:
    result = doctor(tmp_path / "none")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


def test_a_training_reads_test_too_and_refuses_what_the_doctor_refuses(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "data", count=4, kind="index", split=("train", "val", "test"))
    for path in data.glob("test/masks/*"):
        Image.fromarray(np.array(Image.open(path))[:-1]).save(path)
    arguments = ["train", str(data), "--out", str(tmp_path / "run"), "--epochs", "1"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert "[size-mismatch]" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_test_split_without_masks_is_left_for_later(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", count=4, kind="index", split=("train", "val", "test"))
    for path in data.glob("test/masks/*"):
        path.unlink()
    tiny = ["--set", "model.width=4", "--set", "model.depth=2", "--set", "train.steps_per_epoch=1"]
    tiny += ["--set", "train.batch=2", "--set", "train.patch=32", "--epochs", "1"]
    result = CliRunner().invoke(cli.app, ["train", str(data), "--out", str(tmp_path / "run"), *tiny])
    assert result.exit_code == 0, result.stderr
    assert "the split 'test' has 4 images but no masks, so it is not used" in result.stderr
    result = CliRunner().invoke(cli.app, ["evaluate", str(tmp_path / "run"), str(data)])
    assert result.exit_code == 2
    assert "the split 'test' has 4 images but no masks" in result.stderr
    assert CliRunner().invoke(cli.app, ["evaluate", str(tmp_path / "run"), str(data), "--split", "val"]).exit_code == 0
