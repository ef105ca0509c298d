"""Bad input through the command line: a clear message that names the file or setting, status 2, nothing left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from pixelwise import cli
from pixelwise.core.config import read_config
from pixelwise.data.files.readers import read_mask

TINY = (
    "--epochs", "1", "--device", "cpu", "--set", "train.steps_per_epoch=2", "--set", "model.width=4",
    "--set", "model.depth=2", "--set", "train.batch=2", "--set", "train.patch=[32,32]",
)  # fmt: skip
MakeDataset = Callable[..., Path]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def done(*arguments: object) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def content(folder: Path) -> dict[Path, bytes | None]:
    """All that lies in a folder, hidden files too."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refused(root: Path, arguments: tuple[object, ...], *words: object) -> str:
    """Run a command that must refuse, and see that it says these words, once, and leaves all below `root` as it was."""
    before = content(root)
    result = invoke(*arguments)
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.lower().startswith("error: ")]
    assert len(lines) == 1, result.stderr
    message = result.stderr[result.stderr.index(lines[0]) :]
    for word in words:
        assert str(word) in message
    assert content(root) == before
    return message


@pytest.fixture
def data(make_dataset: MakeDataset, tmp_path: Path) -> Path:
    """Data with a split of its own: four images to train on, four to validate."""
    return make_dataset(tmp_path / "data", count=4, split=("train", "val"))


@pytest.fixture(scope="session")
def made() -> dict[str, Path]:
    return {}


@pytest.fixture
def run(made: dict[str, Path], make_dataset: MakeDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on grey images, trained once; tests that change it make a copy."""
    if "run" not in made:
        root = tmp_path_factory.mktemp("finished")
        data = make_dataset(root / "data", count=2, split=("train", "val"))
        done("train", data, "--out", root / "run", "--quiet", *TINY)
        made["run"] = root / "run"
    return made["run"]


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copied"
    folder.mkdir()
    for name in ("model.safetensors", "config.toml"):
        (folder / name).write_bytes((run / name).read_bytes())
    return folder


def train(data: Path, *more: object) -> tuple[object, ...]:
    return ("train", data, "--out", data.parent / "run", *TINY, *more)


def first(data: Path, part: str, split: str = "train") -> Path:
    return min((data / split / part).iterdir())


# The data.


def test_no_such_folder(tmp_path: Path, run: Path) -> None:
    missing = tmp_path / "missing"
    for command in (train(missing), ("plan", missing), ("evaluate", run, missing)):
        refused(tmp_path, command, f"{missing}: no such folder")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    refused(tmp_path, train(tmp_path / "data"), f"{tmp_path / 'data'}: no such folder")


@pytest.mark.parametrize("part", ["images", "masks"])
@pytest.mark.parametrize("split", ["", "train"])
def test_no_images_and_no_masks(make_dataset: MakeDataset, tmp_path: Path, part: str, split: str) -> None:
    data = make_dataset(tmp_path / "data", count=3, split=[split] if split else None)
    for path in (data / split / part).iterdir():
        path.unlink()
    refused(tmp_path, train(data), f"{data / split / part}: contains no {part}")
    (data / split / part).rmdir()
    text = f"{data / split}: has no folder '{part}'" if part == "masks" or not split else "has no folder 'images'"
    refused(tmp_path, train(data), text)


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    refused(tmp_path, train(tmp_path / "data"), f"{tmp_path / 'data'}: has no folder 'images'")


@pytest.mark.parametrize(("part", "code"), [("masks", "unpaired-image"), ("images", "unpaired-mask")])
def test_an_image_or_a_mask_alone(data: Path, tmp_path: Path, part: str, code: str) -> None:
    lost = first(data, part)
    lost.unlink()
    other = data / "train" / {"masks": "images", "images": "masks"}[part] / lost.name
    refused(tmp_path, train(data), f"{other}: has no ", f"--allow {code}")
    shown = done(*train(data, "--allow", code))
    assert "3 training images" in shown.stderr


def test_no_image_has_its_mask(data: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted((data / "train" / "masks").iterdir())):
        path.rename(path.with_name(f"other{number}.png"))
    refused(
        tmp_path, train(data), first(data, "images"), "has no mask with the same stem", "has no image with the same"
    )
    both = ("--allow", "unpaired-image", "--allow", "unpaired-mask")
    refused(tmp_path, train(data, *both), f"{data}: the split 'train' is empty", "splits with images: val")


def test_two_files_of_one_stem(data: Path, tmp_path: Path) -> None:
    twin = first(data, "images").with_suffix(".bmp")
    Image.open(first(data, "images")).save(twin)
    refused(tmp_path, train(data), "has the same stem as another file", "--allow ambiguous-pair")
    done(*train(data, "--allow", "same-stem"))


def test_sizes_that_differ(data: Path, tmp_path: Path) -> None:
    mask = first(data, "masks")
    Image.fromarray(np.asarray(Image.open(mask))[:-3]).save(mask)
    refused(tmp_path, train(data), f"{first(data, 'images')}: is 40 x 48, but its mask {mask} is 40 x 45")
    assert "3 training images" in done(*train(data, "--allow", "size-differs")).stderr


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_truncated_png(data: Path, tmp_path: Path, part: str) -> None:
    broken = first(data, part)
    broken.write_bytes(broken.read_bytes()[:-30])
    message = refused(tmp_path, train(data), f"{broken}: is truncated", "--allow truncated")
    assert message.count(str(broken)) == 1
    assert "3 training images" in done(*train(data, "--allow", "unreadable")).stderr


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_text_file_named_png(data: Path, tmp_path: Path, part: str) -> None:
    broken = first(data, part, "val")
    broken.write_text("this is no image")
    refused(tmp_path, train(data), f"{broken}: is a text file, not an image")


def test_many_problems_are_told_at_once(data: Path, tmp_path: Path) -> None:
    first(data, "images").write_text("this is no image")
    first(data, "images", "val").write_bytes(b"")
    refused(tmp_path, train(data), f"{first(data, 'images')}: is a text", f"{first(data, 'images', 'val')}: is empty")


def test_mask_values_beyond_the_classes(make_dataset: MakeDataset, tmp_path: Path, run: Path) -> None:
    data = make_dataset(tmp_path / "data", count=3, kind="index", split=("train", "val"))
    (data / "dataset.toml").write_text('classes = ["background", "disc"]\nlabels = "index"\n')
    mask = first(data, "masks")
    message = refused(tmp_path, train(data), mask, "holds the value 2, but the 2 classes have the values 0 to 1")
    assert "--allow unknown-value" in message
    refused(tmp_path, ("evaluate", run, data), data, "the run does not have the class disc, which occurs")


def test_binary_masks_of_three_values(data: Path, tmp_path: Path) -> None:
    (data / "dataset.toml").write_text('labels = "binary"\n')
    mask = first(data, "masks")
    pixels = np.array(Image.open(mask))
    pixels[0, 0] = 128
    Image.fromarray(pixels).save(mask)
    refused(tmp_path, train(data), data, "binary labels have two values, but 3 were found (0, 128, 255)")


def test_masks_of_one_value(data: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for mask in (data / split / "masks").iterdir():
            Image.fromarray(np.zeros((48, 40), np.uint8)).save(mask)
    refused(tmp_path, train(data), data, "hold the value 0 in every pixel; at least two classes are needed")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_labelled_pixel(make_dataset: MakeDataset, tmp_path: Path, split: str) -> None:
    data = make_dataset(tmp_path / "data", count=2, kind="index", split=("train", "val"))
    (data / "dataset.toml").write_text("ignore = 9\n")
    for mask in (data / split / "masks").iterdir():
        Image.fromarray(np.full((48, 40), 9, np.uint8)).save(mask)
    refused(tmp_path, train(data), f"{data}: every pixel of the split '{split}' is ignored, so none is labelled")


def test_pixels_that_are_no_numbers(data: Path, tmp_path: Path) -> None:
    image = first(data, "images")
    pixels = np.zeros((48, 40), np.float32)
    pixels[20, 20] = np.nan
    tifffile.imwrite(image.with_suffix(".tif"), pixels)
    image.unlink()
    refused(tmp_path, train(data), image.with_suffix(".tif"), "1 values that are NaN or infinite")


def test_images_smaller_than_the_patch_and_of_one_pixel(data: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for part, value in (("images", 200), ("masks", 255)):
            Image.fromarray(np.full((1, 1), value, np.uint8)).save(data / split / part / "dot.png")
            path = first(data, part, split)
            Image.fromarray(np.asarray(Image.open(path))[:9, :13]).save(path)
    run = data.parent / "run"
    done(*train(data))
    done("evaluate", run, data)
    dot = data / "val" / "images" / "dot.png"
    done("predict", run, dot, "--out", tmp_path / "masks")
    assert read_mask(tmp_path / "masks" / "dot.png").shape == (1, 1, 1)


def test_grey_and_color_images_together(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", count=3, split=("train", "val"), channels=3)
    grey = first(data, "images")
    Image.open(grey).convert("L").save(grey)
    shown = done(*train(data))
    assert f"{grey}: is grey while 5 other images are RGB. It is used as RGB" in shown.stderr
    run = data.parent / "run"
    assert read_config(run / "config.toml").data.channels == 3
    done("predict", run, grey, first(data, "images", "val"), "--out", tmp_path / "masks")
    assert len(list((tmp_path / "masks").iterdir())) == 2


def test_other_mixtures_of_channels(data: Path, tmp_path: Path) -> None:
    image = first(data, "images")
    four = np.zeros((4, 48, 40), np.uint8)
    tifffile.imwrite(image.with_suffix(".tif"), four, photometric="minisblack", metadata={"axes": "CYX"})
    image.unlink()
    text = "has another number of channels than most images, which have 1"
    refused(tmp_path, train(data), image.with_suffix(".tif"), text, "--allow mixed-channels")


def test_an_empty_split(make_dataset: MakeDataset, tmp_path: Path, run: Path) -> None:
    data = make_dataset(tmp_path / "data", count=3, split=("test",))
    refused(tmp_path, train(data), f"{data}: the split 'train' is empty or missing; splits with images: test")
    refused(tmp_path, ("plan", data), f"{data}: the split 'train' is empty or missing")
    refused(tmp_path, ("evaluate", run, data, "--split", "val"), f"{data}: the split 'val' is empty or missing")
    make_dataset(data, count=3, split=("val",))
    refused(tmp_path, train(data), f"{data}: the split 'train' is empty or missing; splits with images: val, test")
    refused(tmp_path, ("evaluate", run, data, "--split", "tset"), "the split 'tset' is empty or missing")


def test_one_image_cannot_be_split(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", count=1)
    refused(tmp_path, train(data), f"{data}: contains a single image or group, which cannot serve for both training")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("clases = []\n", "clases is not a key of dataset.toml; did you mean classes"),
        ("classes = 3\n", "classes = 3: input should be a valid list"),
        ('labels = "boolean"\n', "labels = 'boolean'"),
        ("labels = binary\n", "is not valid TOML"),
        ('group = "(((("\n', "group is not a valid regular expression"),
    ],
)
def test_a_wrong_dataset_toml(data: Path, tmp_path: Path, text: str, words: str) -> None:
    (data / "dataset.toml").write_text(text)
    refused(tmp_path, train(data), data / "dataset.toml", words)


# The run folder.


def test_a_run_that_exists_is_kept_unless_it_is_replaced(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done(*train(data, "--seed", "1"))
    (run / "notes.txt").write_text("mine")
    refused(tmp_path, train(data), f"{run}: exists already and is not empty. Use --resume to go on with it or --force")
    refused(tmp_path, train(data, "--force", "--set", "model.depth=99"), "model.depth")
    done(*train(data, "--seed", "2", "--force"))
    assert read_config(run / "config.toml").seed == 2
    assert not (run / "notes.txt").exists()
    assert "labels: binary" in (run / "log.txt").read_text()


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_folder_that_is_no_run_is_never_replaced(data: Path, tmp_path: Path, force: tuple[str, ...]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("the only copy")
    text = "exists already and is not empty. It does not look like a run, so it is not replaced; choose another folder"
    refused(tmp_path, train(data, *force), f"{tmp_path / 'run'}: {text}")


def test_the_run_folder_is_a_file(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    refused(tmp_path, train(data), f"{tmp_path / 'run'}: is a file; choose another folder")


def test_a_place_that_cannot_be_written(data: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    below = tmp_path / "file" / "deep" / "out"
    refused(
        tmp_path,
        ("train", data, "--out", below, *TINY),
        f"{below}: cannot be written, because {tmp_path / 'file'} is not",
    )
    refused(tmp_path, ("evaluate", run, data, "--out", below), below / "metrics.json", "cannot be written")
    image = first(data, "images")
    refused(tmp_path, ("predict", run, image, "--out", below), below / image.name, "cannot be written")


def test_resume_of_no_run(data: Path, tmp_path: Path) -> None:
    refused(tmp_path, train(data, "--resume"), f"{tmp_path / 'run'}: holds no run to resume")
    (tmp_path / "run").mkdir()
    refused(tmp_path, train(data, "--resume"), f"{tmp_path / 'run'}: holds no run to resume")
    refused(tmp_path, train(data, "--resume", "--force"), "--resume and --force exclude each other")


def test_resume_with_a_changed_setting(data: Path, tmp_path: Path) -> None:
    done(*train(data))
    (tmp_path / "run" / "complete").unlink()
    resume = ("train", data, "--out", tmp_path / "run", "--resume", "--device", "cpu")
    own = f"the run in {tmp_path / 'run'} was started with"
    refused(tmp_path, (*resume, "--set", "train.batch=3"), f"train.batch = 3: {own} 2")
    refused(tmp_path, (*resume, "--epochs", "2"), f"train.epochs = 2: {own} 1")
    refused(tmp_path, (*resume, "--minutes", "2"), f"train.minutes = 2.0: {own} None")
    refused(tmp_path, (*resume, "--seed", "4"), f"seed = 4: {own} 0")
    refused(tmp_path, (*resume, "--model", "unett"), f"model.name = 'unett': {own} 'unet'")


def test_resume_from_a_broken_state(data: Path, tmp_path: Path) -> None:
    done(*train(data))
    (tmp_path / "run" / "complete").unlink()
    state = tmp_path / "run" / "last" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    result = invoke("train", data, "--out", tmp_path / "run", "--resume", "--device", "cpu")
    assert result.exit_code == 2
    assert f"error: {state}: is not a readable checkpoint" in result.stderr
    assert "Traceback" not in result.stderr


# Checkpoints.


def commands(run: Path, data: Path) -> list[tuple[object, ...]]:
    """Every command that reads a run."""
    return [
        ("predict", run, first(data, "images"), "--out", data.parent / "masks"),
        ("evaluate", run, data),
        train(data, "--init", run),
    ]


def test_no_such_run(data: Path, tmp_path: Path) -> None:
    for command in commands(tmp_path / "nowhere", data):
        refused(tmp_path, command, f"{tmp_path / 'nowhere' / 'model.safetensors'}: no such file")


def test_a_checkpoint_of_another_version(data: Path, copied: Path, tmp_path: Path) -> None:
    path = copied / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pixelwise", "version": "7", "content": "{}"})
    for command in commands(copied, data):
        refused(tmp_path, command, f"{path}: is a checkpoint of version 7; this pixelwise reads version 2")


def test_a_truncated_checkpoint(data: Path, copied: Path, tmp_path: Path) -> None:
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    for command in commands(copied, data):
        refused(tmp_path, command, f"{path}: is not a readable checkpoint")


def test_a_checkpoint_of_another_program(data: Path, copied: Path, tmp_path: Path) -> None:
    path = copied / "model.safetensors"
    save_file(load_file(path), path)
    for command in commands(copied, data):
        refused(tmp_path, command, f"{path}: was not written by pixelwise")


# The model and the image.


def test_channels_that_the_images_do_not_have(data: Path, tmp_path: Path) -> None:
    refused(tmp_path, train(data, "--set", "data.channels=4"), "data.channels = 4: the images have 1 channels")


def test_color_images_are_not_trained_on_as_grey(make_dataset: MakeDataset, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", count=3, split=("train", "val"), channels=3)
    command = train(data, "--set", "data.channels=1")
    refused(tmp_path, command, first(data, "images"), "is a colour image", "data.channels = 1")


def test_an_image_with_other_channels_than_the_run(run: Path, tmp_path: Path) -> None:
    image = tmp_path / "four.tif"
    tifffile.imwrite(image, np.zeros((4, 20, 20), np.uint8), photometric="minisblack", metadata={"axes": "CYX"})
    result = invoke("predict", run, image, "--out", tmp_path / "masks")
    assert result.exit_code == 2
    assert f"error: {image}: has 4 channels, but the network takes 1." in result.stderr
    assert not (tmp_path / "masks").exists()


def test_images_to_evaluate_with_other_channels_than_the_run(
    make_dataset: MakeDataset, run: Path, tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "data", count=2, split=("train", "val"), channels=3)
    refused(tmp_path, ("evaluate", run, data), first(data, "images", "val"), "is a colour image")


def test_a_batch_that_batch_norm_cannot_train_on(data: Path, tmp_path: Path) -> None:
    one_cell = ("--set", "train.batch=1", "--set", "train.patch=[4,4]")
    refused(tmp_path, train(data, *one_cell), "batch norm cannot train on a single image of at most 4 x 4 pixels")


def test_labels_that_the_masks_do_not_have(data: Path, tmp_path: Path) -> None:
    for setting, words in (
        ("data.values=[0, 7]", (first(data, "masks"), "holds the value 255", "have the values 0, 7")),
        ("data.values=[0]", ("data.values", "two")),
        ('data.classes=["a", "b", "c"]', ("classes: 3 names but 2 colours",)),
        ('data.classes=["a", "a"]', ("classes: names must differ",)),
    ):
        refused(tmp_path, train(data, "--set", setting), *words)


# Settings and options.


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.batch=many", "train.batch = 'many': input should be a valid integer"),
        ("train.batch=0", "train.batch = 0: input should be greater than or equal to 1"),
        ("train.batch=2.5", "train.batch = 2.5: input should be a valid integer"),
        ("train.rate=nan", "train.rate = nan"),
        ("train.patch=big", "train.patch = 'big': input should be a valid tuple"),
        ("train.patch=0", "train.patch.0 = 0"),
        ("train.patch=[32]", "train.patch"),
        ("train.patch={a=1}", "train.patch"),
        ("train.patch=[0,0]", "train.patch.0 = 0"),
        ("train.steps_per_epoch=x", "train.steps_per_epoch = 'x'"),
        ("train.precision=64", "train.precision = 64"),
        ("train.strategy=fast", "train.strategy = 'fast'"),
        ("model.padding=mirror", "model.padding = 'mirror': input should be 'same' or 'valid'"),
        ("model.depth=0", "model.depth = 0"),
        ("model.depth=11", "model.depth: must be between 1 and 10 poolings, not 11"),
        ("model.residual=7", "model.residual = 7"),
        ("data.scale=nan", "data.scale = nan"),
        ("data.scale=inf", "data.scale = inf"),
        ("data.scale=0", "data.scale = 0"),
        ("data.scale=big", "data.scale = 'big'"),
        ("data.channels=-1", "data.channels = -1"),
        ("data.channels=x", "data.channels = 'x'"),
        ("data.mean=[0.5, 0.5]", "data.mean: has 2 figures for 1 channels"),
        ("data.folds=x", "data.folds = 'x'"),
        ("data.folds=99", "data.folds = 99"),
        ("augment.rotation=400", "augment.rotation = 400"),
        ("seed=-1", "seed = -1"),
        ("seed=now", "seed = 'now'"),
        ("train.bacth=3", "train.bacth is not a setting; did you mean train.batch"),
        ("tarin.batch=3", "[tarin] is not a section of settings; did you mean train?"),
        ("sed=3", "sed is not a setting; did you mean seed"),
        ("a.b.c=3", "[a.b] is not a section of settings"),
        ("train.batch", "--set train.batch: write it as section.key=value"),
        ("", "--set : write it as section.key=value"),
        ("train.batch=", "train.batch = ''"),
    ],
)
def test_settings_that_make_no_sense(data: Path, tmp_path: Path, setting: str, words: str) -> None:
    refused(tmp_path, train(data, "--set", setting), words)


def test_settings_that_exclude_each_other(data: Path, tmp_path: Path) -> None:
    refused(tmp_path, train(data, "--minutes", "1"), "minutes and epochs exclude each other; set one of them")
    nothing = ("--set", "loss.dice=0", "--set", "loss.cross_entropy=0")
    refused(tmp_path, train(data, *nothing), "loss.tversky, loss.lovasz: all are 0")
    refused(tmp_path, train(data, "--set", "model.padding=valid", "--set", "model.residual=true"), "model.residual")


def test_a_wrong_config(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    command = train(data, "--config", path)
    refused(tmp_path, command, f"{path}: cannot be read")
    for text, words in (
        ("[train]\nbatch = = 3\n", "is not valid TOML"),
        ("[train]\nbacth = 3\n", "train.bacth is not a setting; did you mean train.batch"),
        ("[trian]\nbatch = 3\n", "[trian] is not a section of settings; did you mean train?"),
        ("batch = 3\n", "batch is not a setting"),
    ):
        path.write_text(text)
        refused(tmp_path, command, path, words)
    path.write_text('[train]\nrate = "fast"\n')
    refused(tmp_path, command, "train.rate = 'fast'")
    path.write_bytes(b"\xff\xfe\x00")
    refused(tmp_path, command, f"{path}: cannot be read")
    refused(tmp_path, train(data, "--config", tmp_path), f"{tmp_path}: cannot be read")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "unett"), "unknown network 'unett'; did you mean unet?"),
        (("--device", "tpu"), "device tpu: is not there; this machine has: "),
        (("--allow", "everything"), "--allow everything: no problem has this code"),
        (("--seed", "-1"), "--seed"),
        (("--epochs", "0"), "--epochs"),
        (("--epochs", "many"), "--epochs"),
        (("--minutes", "0"), "--minutes"),
        (("--weight", "3"), "--weight"),
    ],
)
def test_options_of_train_that_make_no_sense(data: Path, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    refused(tmp_path, train(data, *options), words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--engine", "touch"), "engine touch: is not an engine; did you mean torch?"),
        (("--device", "tpu"), "device tpu: is not there; this machine has: "),
        (("--format", "jpeg"), "--format jpeg: unknown format; "),
        (("--tile", "6"), "tile: 6 is not a multiple of the network's stride 4; take 4 or 8"),
        (("--tile", "0"), "--tile"),
    ],
)
def test_options_of_predict_that_make_no_sense(
    data: Path, run: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    refused(tmp_path, ("predict", run, first(data, "images"), "--out", tmp_path / "masks", *options), words)


def test_nothing_to_predict(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = ("--out", tmp_path / "masks")
    refused(tmp_path, ("predict", run, tmp_path / "empty", *out), f"{tmp_path / 'empty'}: contains no images")
    refused(
        tmp_path, ("predict", run, tmp_path / "*.tif", *out), f"{tmp_path / '*.tif'}: no image matches this pattern"
    )
    result = invoke("predict", run, tmp_path / "no.png", *out)
    assert result.exit_code == 2
    assert f"error: {tmp_path / 'no.png'}: no such file" in result.stderr


def test_the_axes_of_a_stack(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    stack: Any = np.zeros((3, 8, 9), np.uint8)
    tifffile.imwrite(path, stack, photometric="minisblack", metadata={"axes": "QYX"})
    command = ("predict", run, path, "--out", tmp_path / "masks")
    result = invoke(*command)
    assert result.exit_code == 2
    assert f"error: {path}: has the shape 3 x 8 x 9 with the axes QYX, whose meaning is unclear" in result.stderr
    assert "--axes ZYX on the command line" in result.stderr
    done(*command, "--axes", "ZYX")
    assert read_mask(tmp_path / "masks" / "s.tif").shape == (3, 8, 9)
    assert "Name Y and X once each" in invoke(*command, "--axes", "QQ").stderr


def test_a_demo_does_not_replace_other_things(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("the only copy")
    refused(tmp_path, ("demo", "--out", tmp_path / "demo"), f"{tmp_path / 'demo'}: exists already")
    refused(tmp_path, ("demo", "--out", tmp_path / "demo", "--force"), "It does not look like a demo")


def test_commands_that_do_not_exist(tmp_path: Path) -> None:
    refused(tmp_path, ("trian",), "trian")
    refused(tmp_path, ("train", tmp_path), "--out")


def test_weights_that_cannot_be_the_start(data: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pth"
    refused(tmp_path, (*train(data), "--weights", missing), "model.weights", missing)
    page = tmp_path / "page.pth"
    page.write_text("<!DOCTYPE html><html></html>", encoding="utf-8")
    refused(tmp_path, (*train(data), "--weights", page), "model.weights", page)
    refused(
        tmp_path,
        (*train(data), "--model", "segnet", "--pretrained"),
        "no published weights for vgg16 with model.width 4",
    )
