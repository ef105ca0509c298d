"""Canvases on their own: what they take in, what they hold, and what others may be used in their place."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from networks import make_settings
from pixelwise.core.memory import growth, release_free_memory
from pixelwise.core.progress import Progress
from pixelwise.data.files.sources import open_source
from pixelwise.engines import Arrays
from pixelwise.prediction.canvas import Blank, MemoryCanvas, softmax
from pixelwise.prediction.inputs import Input
from pixelwise.prediction.postprocess import PostProcess
from pixelwise.prediction.requests import Entry, OutputOptions, Request
from pixelwise.prediction.stream import predict_files
from pixelwise.prediction.tiling import Tile, plan_tiles
from streams import only, save, smooth, tiled


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_softmax_equals_torch(seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 300, (4, 3, 5))  # beyond what exp can take
    np.testing.assert_allclose(softmax(logits), torch.from_numpy(logits).softmax(0).numpy(), rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize(
    ("form", "pages", "instances", "wanted"),
    [
        ("png", 1, False, {}),
        ("png", 1, True, {"overlay": True}),
        ("tiff", 3, True, {"clean": PostProcess(None, 40, 30)}),
        ("tiff", 3, False, {"probabilities": True}),
    ],
)
def test_a_mask_in_memory_takes_no_more_than_is_counted(
    form: Any, pages: int, instances: bool, wanted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tifffile.TIFF, "MAXWORKERS", 4)  # as on a larger machine
    stack = np.stack([smooth(800, 800, seed=page) for page in range(pages)])
    tifffile.imwrite(tmp_path / "x.tif", stack, tile=(256, 256), photometric="minisblack", metadata={"axes": "ZYX"})
    options, tiling = OutputOptions(tmp_path / "out", form, **wanted), plan_tiles((800, 800), 100, 1, 0)
    config = make_settings(**({"labels": "instances", "values": []} if instances else {}))
    logits = np.random.default_rng(0).normal(size=(2, 100, 100)).astype(np.float32)
    with open_source(tmp_path / "x.tif") as source:
        request = Request(Input(tmp_path / "x.tif", Path("x")), {})
        blank = Blank(request, source, options, tiling, 2**30, config)

        def write() -> None:
            canvas = MemoryCanvas(blank)
            for page in range(pages):
                for tile in tiling.tiles:
                    canvas.put(page, page, tile, {"logits": logits}, None)
            canvas.finish({}, lambda done, total: None)

        write()  # what libraries keep from now on
        release_free_memory()
        assert growth(write, seconds=0.0005) <= MemoryCanvas.bytes_needed(blank)


@dataclass
class Sums:
    """Writes nothing but the sum of an output, as another task might."""

    blank: Blank
    total: float = 0.0
    pages: list[int] = field(default_factory=list)

    def is_done(self, number: int) -> bool:
        return False

    def skip(self, number: int, page: int, tile: Tile) -> None:
        raise AssertionError("nothing is skipped")

    def put(self, number: int, page: int, tile: Tile, outputs: Arrays, region: np.ndarray | None) -> None:
        self.total += float(outputs["logits"].sum(dtype=np.float64))
        self.pages.append(page)

    def finish(self, details: Entry, tick: Progress) -> Entry:
        return {"sum": self.total}


def test_another_canvas_takes_the_same_outputs(tmp_path: Path, out: Path) -> None:
    image, made = smooth(70, 90), []

    def open_sums(blank: Blank) -> Sums:
        made.append(Sums(blank))
        return made[-1]

    source = save(tmp_path / "x.png", image)
    entry = only(predict_files(tiled(32), [str(source)], OutputOptions(out), open_canvas=open_sums))
    assert entry == {"input": str(source), "sum": made[0].total, "width": 90, "height": 70, "tiles": 3 * 3}
    expected = tiled(None).logits(image[..., None]).sum(dtype=np.float64)
    assert made[0].total == pytest.approx(expected, rel=1e-4)
    assert made[0].pages == [0] * 9
    blank = made[0].blank
    assert (blank.classes.names, blank.instances, blank.format) == (("background", "cell"), False, "png")
    assert blank.room > 0
    assert not out.exists()
