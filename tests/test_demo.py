"""The demo, with its time cut short, and its refusals."""

import json
from pathlib import Path

import pytest

from pixelwise import demo
from pixelwise.core.errors import OutputError
from pixelwise.training.callbacks import Callbacks


@pytest.mark.slow
def test_the_demo_makes_what_it_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "MINUTES", 0.3)
    out = tmp_path / "demo"
    told = demo.run_demo(out, False, Callbacks(), lambda text: None)
    assert told.keys() >= {"run", "report", "mean_iou", "data", "masks"}
    assert 0.5 < told["mean_iou"] <= 1
    metrics = json.loads((out / "run" / "evaluation-test" / "metrics.json").read_text())
    assert metrics["mean_iou"] == told["mean_iou"]
    assert metrics["images"] == 6
    assert metrics["instances"]["0.50"]["f1"] > 0
    assert Path(told["report"]).read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert {path.name for path in Path(told["masks"]).iterdir()} >= {"instances", "overlays", "cell_030.png"}
    with pytest.raises(OutputError, match=r"demo: exists already\. Use --force"):
        demo.run_demo(out, False, Callbacks(), lambda text: None)


def test_the_demo_never_replaces_what_is_no_demo(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("the only copy")
    with pytest.raises(OutputError, match=r"exists already\. It does not look like a demo, so choose another folder"):
        demo.run_demo(tmp_path, True, Callbacks(), lambda text: None)
    assert (tmp_path / "thesis.txt").read_text() == "the only copy"
