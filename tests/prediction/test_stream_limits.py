"""What streaming cannot do, or not exactly, and what it says then."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from networks import Brightness, make_settings
from pixelwise.core.errors import ModelError, SettingError
from pixelwise.geometry.reach import Geometry
from pixelwise.prediction.postprocess import PostProcess
from pixelwise.prediction.predictor import Predictor
from pixelwise.prediction.requests import OutputOptions
from pixelwise.prediction.stream import Listener, predict_files
from streams import Spy, make_network, mask_of, noise, only, run, save, save_tiled, smooth, tiled


class Averaging(nn.Module):
    """Compares pixels with the mean of what it is given."""

    geometry = Geometry(stride=4, halo=0, margin=0, exact=False, reason="it averages over the whole image")

    def forward(self, images: Tensor) -> Tensor:
        apart = images - images.mean((2, 3), keepdim=True)
        return torch.cat([-apart, apart], 1)


@pytest.mark.filterwarnings("ignore::pixelwise.prediction.predictor.ApproximateWarning")
@pytest.mark.parametrize("form", ["png", "zarr"])
@pytest.mark.parametrize("kind", ["group", "averaging"])
def test_what_is_blended_says_so(kind: str, form: Any, tmp_path: Path, out: Path) -> None:
    network = make_network(norm="group") if kind == "group" else Averaging()
    image = smooth(130, 200)
    source = save_tiled(tmp_path / "x.tif", image)
    notes: list[str] = []
    predictor = tiled(64, network)
    entry = only(
        predict_files(predictor, [str(source)], OutputOptions(out, form), listener=Listener(note=notes.append))
    )
    assert entry["approximate"] is True
    assert any("are blended, so the result only approximates" in note for note in notes)
    np.testing.assert_array_equal(mask_of(entry), predictor.labels(image[..., None]))  # blended there as well
    assert (mask_of(entry) == tiled(None, network).labels(image[..., None])).mean() > 0.8
    whole = only(run(tiled("auto", network), [source], OutputOptions(out / "whole", form)))
    assert "approximate" not in whole
    np.testing.assert_array_equal(mask_of(whole), tiled(None, network).labels(image[..., None]))


def test_what_does_not_fit_the_memory(tmp_path: Path, out: Path, little_memory: Callable[[], None]) -> None:
    source = save_tiled(tmp_path / "x.tif", smooth(64, 64))
    little_memory()
    (failure,) = run(tiled(16), [source], OutputOptions(out, "png")).failed
    assert failure["message"].startswith(f"{source}: a PNG needs its whole mask of 64 x 64 pixels in memory")
    assert "only 0 MiB are left. Use --format tiff or zarr, or allow more" in failure["message"]


def test_a_network_of_other_classes_than_the_run(tmp_path: Path, out: Path) -> None:
    source = save(tmp_path / "x.png", smooth(16, 16))
    predictor = tiled("auto", Brightness(-1.0, 0.0, 1.0))
    (failure,) = run(predictor, [source], OutputOptions(out)).failed
    assert failure["message"] == f"{source}: the network returned 3 classes, but the run has 2."


def test_a_threshold_is_for_two_classes(tmp_path: Path, out: Path) -> None:
    config = make_settings(labels="index", classes=["a", "b", "c"], colors=[[0, 0, 0], [1, 1, 1], [2, 2, 2]], values=[])
    predictor = Predictor(Brightness(-1.0, 0.0, 1.5), config, engine="torch")
    with pytest.raises(SettingError, match="threshold"):
        run(predictor, [save(tmp_path / "x.png", smooth(8, 8))], OutputOptions(out, clean=PostProcess(0.4)))


def test_what_takes_long_is_announced(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelwise.prediction.reading.LONG_SECONDS", 0.0)
    monkeypatch.setattr("pixelwise.prediction.reading.LONG_PIXELS", 0)
    notes: list[str] = []
    source = save_tiled(tmp_path / "x.tif", smooth(64, 64))
    predict_files(tiled(32), [str(source)], OutputOptions(out), listener=Listener(note=notes.append))
    assert "0 megapixels in 4 windows of" in notes[0]
    assert "minutes; the mask takes at most" in notes[0]


def test_without_room_for_a_png_auto_takes_tiff(tmp_path: Path, out: Path, little_memory: Callable[[], None]) -> None:
    image = smooth(64, 64)
    source = save_tiled(tmp_path / "x.tif", image)
    little_memory()
    entry = only(run(tiled(16), [source], OutputOptions(out)))
    assert entry["mask"].endswith("x.tif")
    np.testing.assert_array_equal(mask_of(entry), tiled(None).labels(image[..., None]))


def test_an_engine_that_fails_once_fails_what_it_was_given(tmp_path: Path, out: Path, one_by_one: None) -> None:
    sources = [save(tmp_path / f"{name}.png", smooth(16, 16)) for name in "abc"]

    calls = iter(range(9))

    def fail_second(count: int) -> None:
        if next(calls) == 1:
            raise ModelError("it is too much")

    predictor = tiled("auto")
    Spy(predictor, fail_second)
    summary = run(predictor, [*sources], OutputOptions(out))
    assert [failure["message"] for failure in summary.failed] == [f"{sources[1]}: it is too much"]
    assert [entry["input"] for entry in summary.outputs] == [str(sources[0]), str(sources[2])]


def test_a_file_larger_than_the_memory_that_must_be_read_whole(tmp_path: Path, out: Path) -> None:
    predictor = tiled("auto")
    sources = [save(tmp_path / "x.png", noise(64, 64)), save(tmp_path / "y.png", noise(4, 4))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pixelwise.prediction.reading.held_bytes", lambda: predictor.memory.limit - 1000)
        summary = run(predictor, [*sources], OutputOptions(out))
    assert [entry["input"] for entry in summary.outputs] == [str(sources[1])]
    assert "can only be read as a whole" in summary.failed[0]["message"]
    assert "Save it as a tiled TIFF or a Zarr" in summary.failed[0]["message"]
