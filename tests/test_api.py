"""The Python interface: its names, training, opening a run, labelling arrays and files."""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

import pixelwise as pw
from pixelwise.api import UnlikeTrainingWarning
from pixelwise.core.config import Config, make_config
from pixelwise.core.errors import DataError, ModelError, RunError, SettingError
from pixelwise.geometry.reach import Geometry
from pixelwise.models import UNet, checkpoint
from pixelwise.prediction.predictor import Predictor
from pixelwise.training.loop import Result


def make_settings(**data: Any) -> Config:
    return make_config(
        {
            "data": {
                "labels": "binary", "classes": ["background", "cell"], "colors": [[0, 0, 0], [250, 120, 10]],
                "values": [0, 255], "ignore": [], "channels": 1, "scale": 1.0, "normalization": "fixed",
                "mean": [0.5], "std": [0.25], **data,
            },
            "model": {"width": 3, "depth": 2},
            "train": {"patch": [32, 32], "batch": 2, "epochs": 1, "steps_per_epoch": 2, "rate": 0.001},
            "augment": {},
            "loss": {},
        }
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with nothing but its weights, as if copied from elsewhere."""
    config = make_settings()
    torch.manual_seed(0)
    network = checkpoint.build_network(config)
    network(torch.randn(4, 1, 32, 32))
    facts = {"epoch": 4, "metric": "mean_iou", "value": 0.75}
    checkpoint.save_model(tmp_path / "run" / "model.safetensors", network, config, facts)
    return tmp_path / "run"


def noise(height: int = 37, width: int = 51, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def literal(run: pw.Run, image: np.ndarray) -> np.ndarray:
    """The mask of an 8-bit grey image by hand."""
    values = torch.from_numpy(((image / 255 - 0.5) / 0.25).astype(np.float32))
    with torch.no_grad():
        return run.network(values[None, None])[0].argmax(0).numpy()


def test_the_public_names() -> None:
    assert pw.__all__ == ["Run", "__version__", "doctor", "load", "models", "predict", "train"]
    networks = {network.__name__ for network in pw.models.MODELS.values()}
    assert set(pw.models.__all__) == networks | {"MODELS", "Segmenter", "build", "convolutionalize", "slide"}
    names = "patch fcn32s fcn16s fcn8s unet deconvnet segnet pspnet deeplabv2 deeplabv3plus gscnn"
    assert " ".join(pw.models.MODELS) == names
    assert pw.models.MODELS["unet"] is pw.models.UNet
    with pytest.raises(AttributeError, match="No pixelwise attribute trian"):
        pw.trian  # noqa: B018


def test_a_run_labels_arrays(folder: Path) -> None:
    run = pw.load(folder)
    image = noise()
    mask = run.predict(image)
    assert mask.dtype == np.uint8
    assert 0 < mask.mean() < 1
    np.testing.assert_array_equal(mask, literal(run, image))
    np.testing.assert_array_equal(run.predict(image[..., None]), mask)
    np.testing.assert_array_equal(run.predict(np.dstack([image] * 3)), mask)  # equal channels are grey
    np.testing.assert_array_equal(run.predict(image.astype(np.uint16) * 257), mask)
    np.testing.assert_array_equal(run.predict((image / 255).astype(np.float32)), mask)
    np.testing.assert_array_equal(run.predict(image, tile=8), mask)
    np.testing.assert_array_equal(run.predict(image, tile=None, device="cpu"), mask)


def test_a_run_labels_files(folder: Path, tmp_path: Path) -> None:
    run = pw.load(str(folder))
    image = noise()
    Image.fromarray(image).save(tmp_path / "x.png")
    for path in (tmp_path / "x.png", str(tmp_path / "x.png")):
        np.testing.assert_array_equal(run.predict(path), literal(run, image))
    stack = np.stack([noise(seed=page) for page in range(3)])
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack", metadata={"axes": "ZYX"})
    np.testing.assert_array_equal(run.predict(tmp_path / "s.tif"), [literal(run, page) for page in stack])


@pytest.mark.parametrize("shape", [(0, 5), (5,), (2, 3, 4, 5), (4, 4, 0)])
def test_arrays_that_are_no_images(folder: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"the image has the shape \(.*\); H x W or H x W x C is expected\."):
        pw.load(folder).predict(np.zeros(shape, np.uint8))


def test_images_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    run = pw.load(folder)
    with pytest.raises(ModelError, match="has 5 channels, but the network takes 1"):
        run.predict(np.zeros((4, 4, 5), np.uint8))
    with pytest.raises(DataError, match="NaN or infinite"):
        run.predict(np.array([[0.0, np.nan]]))
    with pytest.raises(DataError, match=r"no\.png: no such file"):
        run.predict(tmp_path / "no.png")
    with pytest.raises(SettingError, match="tile: 5 is not a multiple of the network's stride 4; take 4 or 8"):
        run.predict(noise(), tile=5)
    with pytest.raises(SettingError, match=r"device tpu: is not there; this machine has: .*cpu"):
        run.predict(noise(), device="tpu")


def test_what_a_run_tells(folder: Path) -> None:
    run = pw.load(folder)
    assert run.facts == {"epoch": 4, "metric": "mean_iou", "value": 0.75}
    assert run.config == make_settings()
    assert run.classes.names == ("background", "cell")
    assert run.classes.colors[1] == (250, 120, 10)
    assert run.path == folder
    assert isinstance(run.network, UNet)
    assert not run.network.training
    assert isinstance(run.predictor(), Predictor)
    assert run.history() == []
    lines = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "mean_iou": 0.5}]
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "\n")
    assert run.history() == lines


def test_a_run_reads_well_at_the_prompt(folder: Path, make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    told = repr(pw.load(folder))
    assert told == f"Run('{folder}': segment, unet, width 3, depth 2, mean_iou 0.7500 on val (epoch 4))"
    data = make_dataset(tmp_path / "data", count=3, split=("train", "val"))
    result = pw.train(data, tmp_path / "new", epochs=1, device="cpu", **SMALL)
    assert repr(result).startswith(f"{tmp_path / 'new'}: 1 epochs in ")
    assert repr(result).endswith(f"best mean_iou {result.best.value:.4f} (epoch 1)")


def test_a_run_made_before_tasks_had_names_loads(folder: Path) -> None:
    tensors, metadata = checkpoint.load(folder / "model.safetensors")
    del metadata["config"]["task"]
    older = {"config": metadata["config"], "epoch": 4, "mean_iou": 0.75}
    checkpoint.save(folder / "model.safetensors", tensors, older)
    run = pw.load(folder)
    assert run.config.task == "segment"
    assert run.facts == {"epoch": 4, "metric": "mean_iou", "value": 0.75}


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_folder_that_is_no_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match=r"model\.safetensors: no such file\. Is this the folder of a finished"):
        pw.load(tmp_path / name)


SMALL = {
    "model": {"width": 4, "depth": 2},
    "train": {"steps_per_epoch": 2, "batch": 2, "patch": [32, 32]},
}


def test_train_load_predict(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", count=3, split=("train", "val"))
    result = pw.train(str(data), str(tmp_path / "run"), epochs=1, seed=3, device="cpu", **SMALL)
    assert isinstance(result, Result)
    assert result.run == tmp_path / "run"
    assert (result.epochs, result.finished_before) == (1, False)
    run = pw.load(result.run)
    assert run.facts == {"epoch": result.best.epoch, "metric": "mean_iou", "value": result.best.value}
    assert (run.config.seed, run.config.model.width, run.config.train.batch) == (3, 4, 2)
    assert [line["epoch"] for line in run.history()] == [1]
    image = next((data / "val" / "images").iterdir())
    assert run.predict(image).shape == (48, 40)
    metrics = run.evaluate(str(data), out=str(tmp_path / "figures"))
    assert metrics["mean_iou"] == pytest.approx(result.best.value)
    assert (tmp_path / "figures" / "report.html").is_file()
    assert pw.train(data, result.run, resume=True).finished_before
    tuned = pw.train(data, tmp_path / "tuned", epochs=1, init=str(result.run), device="cpu", **SMALL)
    assert tuned.epochs == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, r"pixelwise\.train: there is no epoch; did you mean epochs\?"),
        ({"modle": {"width": 3}}, r"pixelwise\.train: there is no modle; did you mean model\?"),
        ({"model": "unet"}, r"model = 'unet': give a section of settings as a dict, for example model=\{'width': 16\}"),
        ({"train": {"bacth": 3}}, r"pixelwise\.train: train\.bacth is not a setting; did you mean train\.batch"),
        ({"train": {"batch": "x"}}, r"settings: train\.batch = 'x': input should be a valid integer"),
        ({"minutes": 1, "epochs": 1}, r"minutes and epochs exclude each other"),
        ({"resume": True, "force": True}, r"--resume and --force exclude each other"),
        ({"device": "tpu"}, r"device tpu: is not there"),
        ({"task": "segmnt"}, r"--task segmnt: unknown task; did you mean segment\?"),
    ],
)
def test_settings_that_make_no_sense(
    make_dataset: Callable[..., Path], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    data = make_dataset(tmp_path / "data", count=2, split=("train", "val"))
    with pytest.raises(SettingError, match=message):
        pw.train(data, tmp_path / "run", **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


# Ways of reading an image


def test_ways_of_reading_an_image(folder: Path, tmp_path: Path) -> None:
    run, image = pw.load(folder), noise()
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in (noise(5, 6), image):
            writer.write(page, photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(run.predict(tmp_path / "a.tif"), run.predict(image))
    assert run.predict(tmp_path / "a.tif", series=0).shape == (5, 6)
    everything = run.predict(np.full((9, 9), 7, np.uint8), nodata=7)
    assert not everything.any()
    with pytest.raises(SettingError, match=r"--normalize percentile: the run does not say how bright its training"):
        run.predict(image, normalize="percentile")
    with pytest.raises(
        SettingError, match=r"--normalize fix: is not a way to normalise; choose from: run, percentile\."
    ):
        run.predict(image, normalize="fix")


def test_evaluate_tells_of_images_unlike_those_of_the_training(
    tmp_path: Path, make_dataset: Callable[..., Path]
) -> None:
    config = make_settings(levels=[0.2, 0.9, 0.8, 1.0])
    torch.manual_seed(0)
    network = checkpoint.build_network(config)
    network(torch.randn(4, 1, 32, 32))
    checkpoint.save_model(tmp_path / "run" / "model.safetensors", network, config, {})
    data = make_dataset(tmp_path / "data", count=2, split=("val",))
    run = pw.load(tmp_path / "run")
    run.evaluate(data)
    for path in (data / "val" / "images").iterdir():
        with Image.open(path) as image:
            pixels = np.asarray(image).astype(np.uint16) * 16
        Image.fromarray(pixels).save(path)
    message = r"img000\.png: its intensities reach from .* of full scale .* \(1 more images are like it\)"
    (note,) = run.evaluate(data)["notes"]
    assert re.search(message, note)
    with pytest.warns(UnlikeTrainingWarning, match=r"img000\.png: its intensities reach from .* of full scale"):
        run.predict(data / "val" / "images" / "img000.png")
    with pytest.warns(UnlikeTrainingWarning, match=r"the image: its intensities reach from .* of full scale"):
        run.predict(pixels)


PREPARING = "preparing openvino for this network, once (given up after 0.2 s)"
GIVEN_UP = "torch is used instead of openvino: UNet: its export was given up after 0.2 seconds. Use the engine torch"


@pytest.mark.usefixtures("impatient")
def test_evaluate_and_predict_come_back_from_an_export_that_takes_too_long(
    folder: Path, make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    told: list[str] = []
    run = replace(pw.load(folder), tell=told.append)
    data = make_dataset(tmp_path / "data", count=2, split=("val",))
    (note,) = run.evaluate(data, device="cpu")["notes"]
    assert note.startswith(GIVEN_UP)
    np.testing.assert_array_equal(run.predict(noise(), device="cpu"), literal(run, noise()))
    assert told == [PREPARING]  # it is not tried again


@pytest.mark.usefixtures("impatient")
def test_predict_comes_back_for_a_module_that_is_only_here() -> None:
    """Neither its code nor its values could be sent to another process."""
    pytest.importorskip("openvino")

    class Local(nn.Module):
        geometry = Geometry(stride=1, halo=0, margin=0)

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.lock = nn.Parameter(torch.tensor(2.0)), threading.Lock()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.cat([images, self.weight * images], 1)

    image = noise().astype(np.float32)
    np.testing.assert_array_equal(pw.predict(Local(), image), (image > 0).astype(np.uint8))
