"""What an end half-way leaves, and how a prediction goes on from there."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pixelwise.core.errors import OutputError, RunError
from pixelwise.data.files.sinks import ZarrMask
from pixelwise.data.files.writers import write_mask
from pixelwise.prediction.postprocess import PostProcess, clean
from pixelwise.prediction.requests import OutputOptions
from pixelwise.prediction.stream import Outcome
from streams import Spy, interrupted_after, make_network, mask_of, only, pixels_of, run, save, save_tiled, smooth, tiled


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("options", [PostProcess(), PostProcess(None, 40, 30)])
@pytest.mark.parametrize("form", ["zarr", "tiff"])
def test_a_prediction_goes_on_where_it_was_interrupted(
    form: Any, options: PostProcess, tmp_path: Path, out: Path, little_memory: Callable[[], None]
) -> None:
    little_memory()
    image = smooth(512, 384)
    source = save_tiled(tmp_path / "x.tif", image)
    outputs = OutputOptions(out, form, probabilities=True, clean=options)
    first = tiled(128)
    Spy(first, interrupted_after(7))
    with pytest.raises(KeyboardInterrupt):
        run(first, [source], outputs)
    second = tiled("auto")  # it goes on with the tiles that it began with
    spy = Spy(second)
    entry = only(run(second, [source], replace(outputs, resume=True)))
    assert 12 - 7 <= spy.windows < 12
    assert entry["tiles"] == 12
    whole = tiled(None)
    np.testing.assert_array_equal(mask_of(entry), clean(whole.labels(image[..., None]), options))
    chances = torch.from_numpy(whole.logits(image[..., None])).softmax(0).numpy()
    np.testing.assert_allclose(pixels_of(entry["probabilities"]) / 255, chances, atol=0.501 / 255)
    third = tiled("auto")
    spy = Spy(third)
    again = run(third, [source], replace(outputs, resume=True))
    assert again.finished_before
    assert spy.windows == 0
    assert again.outputs == [entry]


@pytest.mark.parametrize("options", [PostProcess(), PostProcess(None, 40, 30)])
def test_an_end_while_the_file_is_assembled_costs_no_tile(
    options: PostProcess, tmp_path: Path, out: Path, little_memory: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    little_memory()
    image = smooth(128, 160)
    source = save_tiled(tmp_path / "x.tif", image)
    with monkeypatch.context() as patch:
        patch.setattr("pixelwise.prediction.canvas.write_pyramid_tiff", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tiled(32), [source], OutputOptions(out, "tiff", clean=options))
    assert not (out / "x.tif").exists()
    predictor = tiled(32)
    spy = Spy(predictor)
    entry = only(run(predictor, [source], OutputOptions(out, "tiff", clean=options, resume=True)))
    assert spy.windows == 0
    np.testing.assert_array_equal(mask_of(entry), clean(tiled(None).labels(image[..., None]), options))
    assert [path.name for path in out.iterdir()] == ["x.tif"]


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.filterwarnings("ignore::pixelwise.prediction.predictor.ApproximateWarning")
def test_what_is_blended_goes_on_too(tmp_path: Path, out: Path) -> None:
    image = smooth(130, 200)
    source, network = save_tiled(tmp_path / "x.tif", image), make_network(norm="group")
    first = tiled(64, network)
    Spy(first, interrupted_after(3))
    with pytest.raises(KeyboardInterrupt):
        run(first, [source], OutputOptions(out, "zarr"))
    predictor = tiled("auto", network)
    entry = only(run(predictor, [source], OutputOptions(out, "zarr", resume=True)))
    np.testing.assert_array_equal(mask_of(entry), tiled(64, network).labels(image[..., None]))


def test_of_many_images_only_those_that_are_left_are_predicted(tmp_path: Path, out: Path) -> None:
    paths = [save(tmp_path / f"{number}.png", smooth(20 + number, 30, number)) for number in range(4)]
    outputs = OutputOptions(out, probabilities=True, overlay=True)
    first = run(tiled("auto"), [*paths[:2]], outputs)
    predictor = tiled("auto")
    spy = Spy(predictor)
    summary = run(predictor, [*paths], replace(outputs, resume=True))
    assert not summary.finished_before
    assert [entry["input"] for entry in summary.outputs] == [str(path) for path in paths]
    assert spy.windows == 2
    assert summary.outputs[:2] == first.outputs
    again = run(predictor, [*paths], replace(outputs, resume=True))
    assert again.finished_before
    assert again.outputs == summary.outputs
    save(paths[1], smooth(21, 30, 9))  # another image
    run(predictor, [*paths], replace(outputs, resume=True))
    assert spy.windows == 3


def test_what_is_finished_keeps_what_is_known_of_it(tmp_path: Path, out: Path) -> None:
    """Its tiles, those that were left out, and whether it is exact."""
    image, region = smooth(64, 96), np.zeros((64, 96), np.uint8)
    region[20:30, 20:30] = 1
    inside, source = save(tmp_path / "region.png", region), save_tiled(tmp_path / "x.tif", image)
    for form, network in (("png", None), ("tiff", None), ("zarr", None), ("zarr", make_network(norm="group"))):
        outputs = OutputOptions(out / f"{form}{network is None}", form, inside=inside)
        entry = only(run(tiled(16, network), [source], outputs))
        assert entry.get("approximate", False) is (network is not None)
        assert (entry["tiles"], entry.get("skipped_tiles")) == ((24, 23) if network is None else (24, None))
        again = run(tiled(16, network), [source], replace(outputs, resume=True))
        assert again.finished_before
        assert again.outputs == [entry]


@pytest.mark.usefixtures("one_by_one")
def test_tiles_that_were_left_out_before_an_interruption_count(tmp_path: Path, out: Path) -> None:
    region = np.zeros((128, 128), np.uint8)
    region[:, :64] = 1
    outputs = OutputOptions(out, "zarr", inside=save(tmp_path / "region.png", region))
    source, first = save_tiled(tmp_path / "x.tif", smooth(128, 128)), tiled(32)
    Spy(first, interrupted_after(5))
    with pytest.raises(KeyboardInterrupt):
        run(first, [source], outputs)
    entry = only(run(tiled(32), [source], replace(outputs, resume=True)))
    assert (entry["tiles"], entry["skipped_tiles"]) == (16, 8)


@pytest.mark.parametrize("record", ["", "0123456789abcdef", "7", '["x"]', "{}"])
def test_a_mask_of_something_else_is_not_finished(record: str, tmp_path: Path, out: Path) -> None:
    paths = [save(tmp_path / name, smooth(20, 30)) for name in ("a.png", "b.png")]
    run(tiled(None), [*paths], OutputOptions(out))
    write_mask(out / "a.png", np.zeros((20, 30), np.uint8), record=record)
    predictor = tiled(None)
    spy = Spy(predictor)
    summary = run(predictor, [*paths], OutputOptions(out, resume=True))
    assert len(summary.outputs) == 2
    assert spy.windows == 1


def test_nothing_to_resume(tmp_path: Path, out: Path) -> None:
    source = save(tmp_path / "x.png", smooth(20, 30))
    with pytest.raises(RunError, match=r"out: contains no prediction to resume\. Start without --resume\."):
        run(tiled(), [source], OutputOptions(out, resume=True))


@pytest.mark.usefixtures("one_by_one")
def test_other_settings_do_not_go_on(tmp_path: Path, out: Path) -> None:
    source = save_tiled(tmp_path / "x.tif", smooth(128, 128))
    first = tiled(32)
    Spy(first, interrupted_after(5))
    with pytest.raises(KeyboardInterrupt):
        run(first, [source], OutputOptions(out, "zarr"))
    with pytest.raises(RunError, match=r"x\.zarr: was started with another .*: skip_background was False and is True"):
        run(tiled(32), [source], OutputOptions(out, "zarr", skip_background=True, resume=True))
    other = make_network()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(RunError, match=r"x\.zarr: was started with another .*: network was"):
        run(tiled(32, other), [source], OutputOptions(out, "zarr", resume=True))


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import streams
from pixelwise.prediction import items
from pixelwise.prediction.requests import OutputOptions
items.BATCH_PIXELS = 1
predictor = streams.tiled(64)
streams.Spy(predictor, lambda count: count >= 20 and os.kill(os.getpid(), signal.SIGKILL))
streams.run(predictor, [Path({source!r})], OutputOptions(Path({out!r}), "zarr"))
"""


def test_a_process_that_was_killed_leaves_whole_tiles(tmp_path: Path, out: Path) -> None:
    image = smooth(512, 512)
    source = save_tiled(tmp_path / "x.tif", image)
    code = KILLED.format(tests=str(Path(__file__).parents[1]), source=str(source), out=str(out))
    killed = subprocess.run([sys.executable, "-c", code], check=False, timeout=120, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    expected = tiled(None).labels(image[..., None])
    left = pixels_of(out / "x.zarr")
    assert left.any()
    assert ((left == expected) | (left == 0)).all()
    predictor = tiled(64)
    spy = Spy(predictor)
    entry = only(run(predictor, [source], OutputOptions(out, "zarr", resume=True)))
    assert 64 - 20 <= spy.windows < 64
    np.testing.assert_array_equal(mask_of(entry), expected)


def test_a_full_disk_stops_with_what_is_written(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = smooth(256, 256)
    source = save_tiled(tmp_path / "x.tif", image)
    write, calls = ZarrMask.write, []

    def full(self: ZarrMask, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) > 6:
            raise OutputError("x.zarr: cannot be written (No space left on device).")
        write(self, *arguments)

    monkeypatch.setattr(ZarrMask, "write", full)
    with pytest.raises(OutputError, match="No space left on device"):
        run(tiled(64), [source], OutputOptions(out, "zarr"))
    monkeypatch.undo()
    left, expected = pixels_of(out / "x.zarr"), tiled(None).labels(image[..., None])
    np.testing.assert_array_equal(left[:64], expected[:64])
    assert not left[128:].any()
    predictor = tiled(64)
    spy = Spy(predictor)
    np.testing.assert_array_equal(
        mask_of(only(run(predictor, [source], OutputOptions(out, "zarr", resume=True)))), expected
    )
    assert spy.windows == 16 - 6


def test_a_foreign_zarr_in_the_way_is_one_image_s_failure(tmp_path: Path, out: Path) -> None:
    """Begun with other settings, it cannot be resumed; the other image can."""
    sources = [save_tiled(tmp_path / name, smooth(32, 32)) for name in ("a.tif", "b.tif")]
    run(tiled(16), [sources[0]], OutputOptions(out, "zarr"))
    again = OutputOptions(out, "zarr", clean=PostProcess(0.3), resume=True)
    summary = run(tiled(16), [*sources], again)
    assert [failure["input"] for failure in summary.failed] == [str(sources[0])]
    assert "was started with another input or other settings" in summary.failed[0]["message"]
    assert only(Outcome(outputs=summary.outputs))["input"] == str(sources[1])
