"""The command line: what each command prints and makes, and its exit statuses."""

import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image
from typer.testing import CliRunner, Result

from pixelwise import cli
from pixelwise.cli import terminal
from pixelwise.cli.prediction import figure
from pixelwise.core.config import read_config
from pixelwise.data.files.readers import read_image, read_mask

COMMANDS = {"doctor", "train", "pretrain", "plan", "evaluate", "predict", "verify-seams", "models", "demo"}
TINY = (
    "--epochs", "1", "--device", "cpu", "--set", "train.steps_per_epoch=2", "--set", "model.width=4",
    "--set", "model.depth=2", "--set", "train.batch=2", "--set", "train.patch=[32,32]",
)  # fmt: skip
MakeDataset = Callable[..., Path]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def done(*arguments: object) -> Result:
    """Run a command that must succeed."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def outside(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The same as a process of its own."""
    command = [sys.executable, "-m", "pixelwise", *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="session")
def made() -> dict[str, tuple[Path, Path]]:
    """Kind of labels -> data and run, once for all tests."""
    return {}


@pytest.fixture
def trained(
    made: dict[str, tuple[Path, Path]], make_dataset: MakeDataset, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    def train(kind: str) -> tuple[Path, Path]:
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            data = make_dataset(root / "data", count=2, kind=kind, split=("train", "val", "test"))
            done("train", data, "--out", root / "run", "--quiet", *TINY)
            made[kind] = data, root / "run"
        return made[kind]

    return train


@pytest.fixture
def data(make_dataset: MakeDataset, tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "data", count=2, split=("train", "val"))


# As processes.


def test_help_is_there_before_torch_is_imported() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "pixelwise", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0
    assert set(re.findall(r"^  (\w[\w-]*)  ", shown.stdout, re.MULTILINE)) == COMMANDS
    imported = {line.split("|")[-1].strip() for line in shown.stderr.splitlines()}
    assert "pixelwise.cli" in imported
    assert not imported & {"torch", "numpy", "pydantic", "cv2", "PIL", "tifffile", "scipy"}


def test_a_wrong_setting_ends_with_status_2_and_one_line(tmp_path: Path) -> None:
    refused = outside("train", tmp_path, "--out", tmp_path / "run", "--set", "train.bacth=3")
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("error: --set: train.bacth is not a setting; did you mean train.batch")
    assert list(tmp_path.iterdir()) == []


def test_json_stands_alone_on_stdout(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained = outside("train", data, "--out", run, "--json", *TINY)
    assert trained.returncode == 0, trained.stderr
    told = json.loads(trained.stdout)
    assert told.keys() == {"run", "minutes", "epochs", "best"}
    assert told["best"].keys() == {"epoch", "metric", "value", "mean_iou"}
    assert (told["best"]["metric"], told["best"]["value"]) == ("mean_iou", told["best"]["mean_iou"])
    assert (told["run"], told["epochs"], told["best"]["epoch"]) == (str(run), 1, 1)
    assert 0 < told["minutes"] < 2
    assert trained.stderr.count("checked 4 images and masks") == 1
    assert "epoch 1: loss" in trained.stderr
    assert "Traceback" not in trained.stderr
    assert "Warning" not in trained.stderr
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert names == {
        "config.toml", "model.safetensors", "last/state.safetensors", "history.jsonl", "environment.json", "log.txt",
        "complete", "data.json",
    }  # fmt: skip


# In this process.


@pytest.mark.parametrize("command", [None, *sorted(COMMANDS)])
def test_every_command_explains_itself(command: str | None) -> None:
    shown = done(*([command] if command else []), "--help")
    assert shown.stdout.startswith("Usage: ")
    if command:
        assert f"Example: pixelwise {command}" in shown.stdout
        for option in ("--json", "--quiet"):
            assert option in shown.stdout


def test_train_tells_people_what_it_did_and_what_to_do_next(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    shown = done("train", data, "--out", run, "--seed", "7", *TINY)
    first, second = shown.stdout.splitlines()
    assert re.fullmatch(
        rf"{run}: done, 1 epochs in \d+\.\d minutes; best mean IoU on val 0\.\d{{4}} \(epoch 1\)", first
    )
    assert second == f"next: pixelwise evaluate {run} {data}"
    config = read_config(run / "config.toml")
    assert (config.seed, config.model.width, config.train.patch, config.train.epochs) == (7, 4, (32, 32), 1)
    log = (run / "log.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S", line) for line in log)
    for words in (
        "task: segment; 2 training images",
        "labels: binary (background, object)",
        "unet, width 4",
        "epoch 1: loss",
    ):
        assert any(words in line for line in log), words
        assert words in shown.stderr
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"].keys() >= {"pixelwise", "torch", "numpy"}


def test_an_empty_folder_may_become_a_run(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    done("train", data, "--out", tmp_path / "run", *TINY)
    assert (tmp_path / "run" / "complete").is_file()
    assert "labels: binary" in (tmp_path / "run" / "log.txt").read_text()


def test_quiet_is_silent(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    image = next((data / "val" / "images").iterdir())
    for command in (
        ("train", data, "--out", run, *TINY),
        ("evaluate", run, data),
        ("predict", run, image, "--out", tmp_path / "masks"),
        ("plan", data, *TINY),
    ):
        shown = done(*command, "--quiet")
        assert (shown.stdout, shown.stderr) == ("", "")


def test_resume_of_a_finished_run_says_so(trained: Callable[[str], tuple[Path, Path]]) -> None:
    data, run = trained("binary")
    before = (run / "model.safetensors").read_bytes()
    shown = done("train", data, "--out", run, "--resume")
    assert f"{run}: was finished already, 1 epochs" in shown.stdout
    told = json.loads(done("train", data, "--out", run, "--resume", "--json").stdout)
    assert (told["run"], told["epochs"], told["best"]["epoch"]) == (str(run), 1, 1)
    assert (run / "model.safetensors").read_bytes() == before


def test_resume_goes_on(trained: Callable[[str], tuple[Path, Path]]) -> None:
    data, run = trained("index")
    (run / "complete").unlink()
    shown = done("train", data, "--out", run, "--resume")
    assert f"{run}: done, 1 epochs" in shown.stdout
    assert "resumed at step 2, epoch 2" in shown.stderr
    assert (run / "complete").is_file()


def test_init_starts_from_another_run(data: Path, tmp_path: Path, trained: Callable[[str], tuple[Path, Path]]) -> None:
    _, run = trained("index")  # with three classes: its head cannot be used
    shown = done("train", data, "--out", tmp_path / "tuned", "--init", run, *TINY)
    assert re.search(rf"--init {run}: \d+ of \d+ tensors were taken \(.*\), 2 start afresh \(head 2\)", shown.stderr)


def test_plan_prints_a_config_that_train_takes(data: Path, tmp_path: Path) -> None:
    shown = done("plan", data, *TINY)
    (tmp_path / "plan.toml").write_text(shown.stdout, encoding="utf-8")
    planned = tomllib.loads(shown.stdout)
    assert planned["model"]["width"] == 4
    assert re.search(r"# forecast: \d+\.\d minutes at \d+\.\d\d steps a second, \d+\.\d GiB at most", shown.stdout)
    told = json.loads(done("plan", data, "--json", *TINY).stdout)
    assert told.keys() == {"config", "forecast"}
    assert told["forecast"].keys() == {"minutes", "peak_memory_bytes", "steps", "steps_per_second"}
    assert all(value > 0 for value in told["forecast"].values())
    assert {key: value for key, value in told["config"]["train"].items() if value is not None} == planned["train"]
    done("train", data, "--out", tmp_path / "run", "--config", tmp_path / "plan.toml", "--device", "cpu")
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text()) == planned


def test_set_wins_over_config_and_model_over_both(data: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('seed = 5\n[train]\nbatch = 4\nrate = 0.5\n[model]\nname = "vnet"\n')
    told = json.loads(
        done("plan", data, "--config", tmp_path / "c.toml", "--model", "unet", "--json", *TINY).stdout
    )["config"]  # fmt: skip
    assert (told["seed"], told["train"]["batch"], told["train"]["rate"]) == (5, 2, 0.5)
    assert told["model"]["name"] == "unet"


def test_minutes_are_a_setting_of_the_plan(data: Path) -> None:
    told = json.loads(done("plan", data, "--json", "--minutes", "3", "--seed", "9", *TINY[2:]).stdout)
    assert (told["config"]["train"]["minutes"], told["config"]["train"]["epochs"]) == (3.0, None)
    assert told["config"]["seed"] == 9
    assert told["forecast"]["minutes"] == 3.0


@pytest.mark.parametrize("kind", ["binary", "index", "instances", "color"])
def test_evaluate_measures_every_kind_of_labels(kind: str, trained: Callable[[str], tuple[Path, Path]]) -> None:
    data, run = trained(kind)
    told = json.loads(done("evaluate", run, data, "--json").stdout)
    assert told == json.loads((run / "evaluation-test" / "metrics.json").read_text(encoding="utf-8"))
    assert (told["split"], told["images"]) == ("test", 2)
    assert ("instances" in told) == (kind == "instances")
    assert len(told["classes"]) == (2 if kind in ("binary", "instances") else 3)
    assert sum(map(sum, told["confusion"])) == 2 * 48 * 40
    assert (run / "evaluation-test" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_evaluate_tells_people_the_figures(tmp_path: Path, trained: Callable[[str], tuple[Path, Path]]) -> None:
    data, run = trained("binary")
    lines = done("evaluate", run, data, "--split", "val", "--out", tmp_path / "e").stdout.splitlines()
    assert re.fullmatch(r"2 images of val: mean IoU 0\.\d{4}", lines[0])
    assert [line.split()[0] for line in lines[1:3]] == ["background", "object"]
    assert lines[3] == f"report: {tmp_path / 'e' / 'report.html'}"
    assert figure(None) == "absent"


def test_evaluate_and_predict_name_images_unlike_the_training(
    tmp_path: Path, trained: Callable[[str], tuple[Path, Path]]
) -> None:
    data, run = trained("binary")
    shutil.copytree(data, tmp_path / "data")
    for path in (tmp_path / "data" / "val" / "images").iterdir():
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16)).save(path)
    text = "of full scale (1st to 99th percentile), those of the training from"
    shown = done("evaluate", run, tmp_path / "data", "--split", "val", "--out", tmp_path / "e")
    assert text in shown.stderr
    assert "UnlikeTrainingWarning" not in shown.stderr
    images = tmp_path / "data" / "val" / "images"
    assert done("predict", run, images, "--out", tmp_path / "m").stderr.count(text) == 2
    ways = ("--normalize", "percentile", "--nodata", "nan", "--nodata-label", "255", "--series", "0")
    assert text not in done("predict", run, images, "--out", tmp_path / "n", *ways).stderr


@pytest.mark.parametrize("kind", ["binary", "instances"])
def test_predict_makes_what_it_tells(kind: str, tmp_path: Path, trained: Callable[[str], tuple[Path, Path]]) -> None:
    data, run = trained(kind)
    folder, out = data / "test" / "images", tmp_path / "masks"
    shown = done("predict", run, folder, "--out", out, "--json", "--overlay", "--probabilities", "--tile", "32")
    told = json.loads(shown.stdout)
    assert told.keys() == {"outputs", "failed", "engine", "megapixels_per_second", "peak_ram_bytes"}
    assert told["failed"] == []
    assert told["megapixels_per_second"] > 0
    assert told["peak_ram_bytes"] > 2**20
    images = sorted(folder.iterdir())
    assert [entry["input"] for entry in told["outputs"]] == [str(path) for path in images]
    for path, entry in zip(images, told["outputs"], strict=True):
        assert (entry["width"], entry["height"]) == (40, 48)
        assert entry["mask"] == str(out / f"{path.stem}.png")
        assert read_mask(Path(entry["mask"])).shape == (1, 48, 40)
        assert read_image(Path(entry["overlay"])).shape == (1, 48, 40, 3)
        assert Path(entry["probabilities"]).is_file()
        assert ("instances" in entry) == (kind == "instances")


def test_predict_tells_people_where_the_masks_are(tmp_path: Path, trained: Callable[[str], tuple[Path, Path]]) -> None:
    data, run = trained("binary")
    pattern = str(data / "test" / "images" / "*.png")
    options = ("--format", "tiff", "--engine", "torch", "--device", "cpu")
    shown = done("predict", run, pattern, "--out", tmp_path / "masks", *options)
    assert re.fullmatch(rf"2 masks in {tmp_path / 'masks'}, \d+\.\d\d megapixels a second by torch\n", shown.stdout)
    assert sorted(path.suffix for path in (tmp_path / "masks").iterdir()) == [".tif", ".tif"]


def test_predict_in_little_memory_to_zarr_and_on(tmp_path: Path, trained: Callable[[str], tuple[Path, Path]]) -> None:
    data, run = trained("binary")
    image, out = min((data / "test" / "images").iterdir()), tmp_path / "masks"
    command = ("predict", run, image, "--out", out, "--engine", "torch", "--format", "zarr", "--tile", "16")
    told = json.loads(done(*command, "--max-ram", "64GiB", "--tta", "flips", "--json").stdout)
    assert told["engine"] == "torch"
    assert told["outputs"][0]["mask"] == str(out / f"{image.stem}.zarr")
    assert told["outputs"][0]["tiles"] == 9
    assert zarr.open_array(out / f"{image.stem}.zarr" / "0", mode="r").shape == (48, 40)
    again = done(*command, "--tta", "flips", "--resume")
    assert again.stdout == f"{out}: was finished already, 1 masks\n"
    other = invoke(*command, "--resume")  # without --tta
    assert other.exit_code == 2
    assert "views was flips and is none" in other.stderr
    assert "Traceback" not in other.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tta", "flip"), r"views flip: is not a test-time augmentation; .*flips"),
        (("--format", "jpeg"), r"--format jpeg: unknown format; .*png"),
        (("--probability-type", "float32"), r"--probability-type float32: unknown type of probabilities; .*float16"),
        (("--max-ram", "plenty"), r'"plenty" is not a size. Write a number and a unit, as in 2GiB'),
        (("--max-ram", "1MB"), r"1 MiB of memory is not enough: the process holds [\d.]+ [MG]iB before"),
        (("--threshold", "1.5"), r"threshold"),
        (("--engine", "onyx"), r"engine onyx: is not an engine"),
        (("--resume",), r"masks: contains no prediction to resume\. Start without --resume"),
    ],
)
def test_options_of_predict_that_cannot_be(
    options: tuple[str, ...], message: str, tmp_path: Path, trained: Callable[[str], tuple[Path, Path]]
) -> None:
    data, run = trained("binary")
    shown = invoke("predict", run, data / "test" / "images", "--out", tmp_path / "masks", *options)
    assert shown.exit_code == 2
    assert re.match(f"error: .*({message})", shown.stderr), shown.stderr
    assert "Traceback" not in shown.stderr
    assert not (tmp_path / "masks").exists()


def test_verify_seams_tells_the_differences(tmp_path: Path, trained: Callable[[str], tuple[Path, Path]]) -> None:
    data, run = trained("index")
    image = min((data / "test" / "images").iterdir())
    told = json.loads(done("verify-seams", run, image, "--tile", "16", "--engine", "torch", "--json").stdout)
    keys = {"max_abs_difference", "max_relative_difference", "flipped_pixels", "halo", "margin", "stride", "exact"}
    assert keys | {"whole"} <= told.keys()
    assert (told["flipped_pixels"], told["exact"], told["whole"], told["tiles"]) == (0, True, True, 9)
    assert told["max_relative_difference"] < 1e-5
    shown = done("verify-seams", run, image, "--tile", "16", "--engine", "torch").stdout
    assert shown.startswith("9 tiles by torch, against one forward of the whole image (48 x 40)\n")
    assert "flipped pixels: 0" in shown
    refused = invoke("verify-seams", run, tmp_path / "no.png")
    assert refused.exit_code == 2
    assert "no.png: no such file" in refused.stderr


def test_seams_where_there_should_be_none_are_our_failure(
    monkeypatch: pytest.MonkeyPatch, trained: Callable[[str], tuple[Path, Path]]
) -> None:
    data, run = trained("index")
    found = {
        "tiles": 2, "engine": "torch", "whole": False, "height": 3, "width": 4, "max_abs_difference": 1.0,
        "max_relative_difference": 0.5, "flipped_pixels": 1, "near_ties": 0, "stride": 1, "halo": 1, "margin": 1,
        "exact": True, "reason": "", "tolerance": 1e-4,
    }  # fmt: skip
    monkeypatch.setattr("pixelwise.prediction.verify.verify_seams", lambda *arguments: found)
    shown = invoke("verify-seams", run, data / "x.png", "--engine", "torch")
    assert shown.exit_code == 1
    assert "the largest crop that fits the memory (3 x 4)" in shown.stdout
    assert "error: the tiles differ, although the network is exact" in shown.stderr
    found |= {"exact": False, "reason": "it averages"}
    shown = invoke("verify-seams", run, data / "x.png", "--engine", "torch")
    assert shown.exit_code == 0
    assert "not exact: it averages" in shown.stdout


def test_one_broken_image_among_many(tmp_path: Path, trained: Callable[[str], tuple[Path, Path]]) -> None:
    data, run = trained("binary")
    good = sorted((data / "test" / "images").iterdir())
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    shown = invoke("predict", run, good[0], broken, good[1], "--out", tmp_path / "masks", "--json")
    assert shown.exit_code == 2
    told = json.loads(shown.stdout)
    assert [entry["input"] for entry in told["outputs"]] == [str(path) for path in good]
    assert [failure["input"] for failure in told["failed"]] == [str(broken)]
    assert shown.stderr.strip() == f"error: {told['failed'][0]['message']}"
    assert "is a text file, not an image" in shown.stderr
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == [path.name for path in good]


def test_demo_tells_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(out: Path, force: bool, callbacks: Any, note: Callable[[str], None]) -> dict[str, Any]:
        note(f"working, {force}")
        return {"data": "D", "run": "R", "report": "P", "masks": "M", "mean_iou": 0.75}

    monkeypatch.setattr("pixelwise.demo.run_demo", make)
    shown = done("demo", "--out", tmp_path / "demo", "--force")
    assert shown.stderr == "working, True\n"
    assert "trained  R  (mean IoU 0.750 on images it has not seen)" in shown.stdout
    assert "Try next" in shown.stdout
    told = json.loads(done("demo", "--out", tmp_path / "demo", "--json").stdout)
    assert told == {"data": "D", "run": "R", "report": "P", "masks": "M", "mean_iou": 0.75}


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (RuntimeError("a bug"), 1, "This is a bug in pixelwise, not a mistake of yours"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_exit_statuses(monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, text: str) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("pixelwise.demo.run_demo", fail)
    shown = invoke("demo", "--out", "x")
    assert shown.exit_code == status
    assert text in shown.stderr
    assert ("RuntimeError: a bug" in shown.stderr) == (status == 1)
    assert shown.stdout == ""


def test_an_interrupt_between_commands_has_its_status_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupt)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130


# Progress.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_plain_lines_where_there_is_no_terminal(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "PLAIN_SECONDS", 0.0)
    shown = done("train", data, "--out", tmp_path / "run", *TINY)
    first = r"training: 0%  epoch 1, step 1, loss \d+\.\d{3}"  # nothing to tell a rate by
    second = r"training: 50%  epoch 1, step 2, loss \d+\.\d{3}, \d+\.\d steps/s  (\d+ min )?\d+ s left"
    assert len(re.findall(f"^{first}\n{second}$", shown.stderr, re.MULTILINE)) == 1


def test_rates_and_remaining_time_count_from_the_first_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Starting up took 100 s, then each of 10 files takes 4 s; a line comes every 5 s."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with terminal.Display("working", quiet=False) as progress:
        for done in (1, 2, 3, 4):
            now = 100.0 + 4 * done
            progress.count(done, 10)
    assert capsys.readouterr().err.splitlines() == [
        "working: 10%  1 of 10 files",
        "working: 30%  3 of 10 files, 0.2 a second  28 s left",
    ]


def test_progress_lines_do_not_come_too_often(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.Display("working", quiet=False) as progress:
        for step in range(100):
            progress.count(step, 100)
    assert capsys.readouterr().err == ""


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with terminal.Display("working", quiet=False) as progress:
        progress.count(3, 4)
        progress.note("a [line] that stays")
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "75%" in shown
    assert "3 of 4 files" in shown
    assert "a [line] that stays" in shown


def test_quiet_shows_no_bar_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with terminal.Display("working", quiet=True) as progress:
        progress.show(0.5, "half")
        progress.note("a line")
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (754, "12 min 34 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert terminal._duration(seconds) == text


def test_masks_are_those_of_the_python_interface(tmp_path: Path, trained: Callable[[str], tuple[Path, Path]]) -> None:
    from pixelwise import load

    data, run = trained("index")
    image = min((data / "test" / "images").iterdir())
    done("predict", run, image, "--out", tmp_path)
    mask = np.asarray(Image.open(tmp_path / image.name))
    np.testing.assert_array_equal(mask, load(run).predict(image))


# An export that takes too long.


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_an_export_that_takes_too_long_is_told_of_and_torch_serves(
    command: str, trained: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    data, run = trained("binary")
    shutil.copytree(run, tmp_path / "run")
    what = data if command == "evaluate" else data / "test" / "images"
    result = done(command, tmp_path / "run", what, "--out", tmp_path / "out", "--device", "cpu")
    preparing, given_up = (line for line in result.stderr.splitlines() if "openvino" in line)
    assert preparing == "preparing openvino for this network, once (given up after 0.2 s)"
    assert given_up.startswith("torch is used instead of openvino: UNet: its export was given up after 0.2 seconds.")
