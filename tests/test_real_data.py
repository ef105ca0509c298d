"""The main job on the real images beside the project; skipped where they are not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pixelwise as pw
from pixelwise.data.health.survey import survey
from pixelwise.data.sets.folder import open_dataset
from pixelwise.engines.machine import Machine
from pixelwise.tasks import TASKS
from pixelwise.training.plan import make_plan

TASK = TASKS["segment"]
CPU = Machine(cores=2, memory=24 << 30, device="cpu", fast_bf16=False)


@pytest.mark.parametrize(
    ("name", "kind", "channels", "count"),
    [("em", "binary", 1, 2), ("nuclei", "instances", 3, 2), ("camvid", "index", 3, 11)],
)
def test_the_kind_of_labels_is_seen_from_the_masks_alone(
    real_data: Path, tmp_path: Path, name: str, kind: str, channels: int, count: int
) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for path in sorted((real_data / name / "val" / part).iterdir())[:24]:
            shutil.copy(path, tmp_path / part)
    if name == "camvid":  # only a person can know that 11 is void
        (tmp_path / "dataset.toml").write_text("ignore = 11\n", encoding="utf-8")
    found = survey(open_dataset(tmp_path), TASK.labels)
    assert found.meaning.kind == kind
    assert found.channels == channels
    assert len(found.meaning.classes) == count
    assert {problem.code for problem in found.problems} <= {"em": {"values-0-255"}, "camvid": set()}.get(
        name, {"disconnected-instance"}
    )


@pytest.mark.parametrize(
    ("name", "normalization", "flip_vertical", "scale"),
    [("em", "fixed", True, 1.0), ("nuclei", "percentile", True, 1.0), ("camvid", "fixed", False, 0.5)],
)
def test_what_the_plan_sees_in_real_images(
    real_data: Path, name: str, normalization: str, flip_vertical: bool, scale: float
) -> None:
    dataset = open_dataset(real_data / name)
    few = {split: samples[:40] for split, samples in dataset.splits.items()}
    found = survey(type(dataset)(dataset.root, few, dataset.description), TASK.labels)
    config = make_plan(TASK, found, CPU, {"train": {"minutes": 10}})
    assert config.data.normalization == normalization
    assert config.augment.flip_vertical is flip_vertical
    assert config.data.scale == scale
    assert config.train.precision == "32-true"


@pytest.mark.slow
def test_em_from_folder_to_report(real_data: Path, tmp_path: Path) -> None:
    """A small network for a short time: far from the figures of docs/results.md, far above chance."""
    pw.train(
        real_data / "em", tmp_path / "run", epochs=1, seed=0,
        model={"width": 12, "depth": 3}, train={"steps_per_epoch": 40, "patch": [192, 192], "batch": 4, "rate": 4e-3},
    )  # fmt: skip
    run = pw.load(tmp_path / "run")
    metrics = run.evaluate(real_data / "em", "val")
    assert metrics["mean_iou"] > 0.55
    assert metrics["images"] == 4
    written = json.loads((tmp_path / "run" / "evaluation-val" / "metrics.json").read_text())
    assert written["confusion"] == metrics["confusion"]
    mask = run.predict(sorted((real_data / "em" / "val" / "images").iterdir())[0])
    truth = np.array(Image.open(sorted((real_data / "em" / "val" / "masks").iterdir())[0])) > 0
    assert mask.shape == (512, 512)
    assert (mask == truth).mean() > 0.75
