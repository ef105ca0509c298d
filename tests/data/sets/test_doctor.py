"""A sound data set shows nothing; a set with one planted fault shows that one and no other."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

import pixelwise as pw
from pixelwise.data.sets.problems import CODES
from pixelwise.report import write_dataset_page  # noqa: F401, the page's imports come before any time is measured

SIZE = 96
COLORS = np.array([[0, 0, 0], [200, 30, 30], [30, 30, 200]], np.uint8)
Plant = Callable[[Path], None]


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A grey image of discs of two kinds on a dark ground, and their classes 0, 1, 2: each class is in every scene."""
    rng = np.random.default_rng(seed)
    classes = np.zeros((SIZE, SIZE), np.uint8)
    for number in range(9):
        centre = tuple(int(place) for place in rng.integers(12, SIZE - 12, 2))
        cv2.circle(classes, centre, int(rng.integers(5, 11)), 1 + number % 2, -1)
    level = np.array([60, 130, 200])[classes] + rng.normal(0, 6, classes.shape)
    return cv2.GaussianBlur(level, (3, 3), 0).clip(0, 255).astype(np.uint8), classes


def numbered(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of discs and their ids."""
    image, classes = scene(seed)
    count, ids = cv2.connectedComponents((classes > 0).astype(np.uint8))
    assert count > 3
    return image, ids.astype(np.uint16)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(array).save if path.suffix != ".tif" else lambda place: tifffile.imwrite(place, array))(path)


def make(root: Path, masks: Callable[[np.ndarray, int], np.ndarray] = lambda classes, seed: classes) -> Path:
    """A sound set of 12 pairs; `masks` turns classes into what is stored."""
    for place, (split, count) in enumerate((("train", 6), ("val", 3), ("test", 3))):
        for number in range(count):
            seed = 100 * place + number
            image, classes = scene(seed)
            save(root / split / "images" / f"{split}{number}.png", image)
            save(root / split / "masks" / f"{split}{number}.png", masks(classes, seed))
    return root


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return make(tmp_path / "data")


def each(root: Path, part: str, change: Callable[[np.ndarray, int], np.ndarray | None], suffix: str = ".png") -> None:
    """Write all images or masks anew."""
    for number, path in enumerate(sorted(root.glob(f"*/{part}/*.png"))):
        array = change(np.asarray(Image.open(path)), number)
        if array is not None:
            path.unlink()
            save(path.with_suffix(suffix), array)


def describe(root: Path, text: str) -> None:
    (root / "dataset.toml").write_text(text)


def codes(root: Path, **options: Any) -> list[str]:
    return [problem.code for problem in pw.doctor(root, **options).problems]


IMAGE, MASK = "train/images/train2.png", "train/masks/train2.png"


def unpair(root: Path) -> None:
    (root / MASK).unlink()


def orphan(root: Path) -> None:
    (root / IMAGE).unlink()


def twin(root: Path) -> None:
    shutil.copy(root / IMAGE, (root / IMAGE).with_suffix(".bmp"))


def crop(root: Path) -> None:
    save(root / MASK, np.asarray(Image.open(root / MASK))[:-1])


def break_bytes(root: Path) -> None:
    content = bytearray((root / IMAGE).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (root / IMAGE).write_bytes(content)


def cut(root: Path) -> None:
    (root / IMAGE).write_bytes((root / IMAGE).read_bytes()[:-200])


def write_words(root: Path) -> None:
    (root / IMAGE).write_text("no image")


def smooth(root: Path) -> None:
    def half(mask: np.ndarray, number: int) -> np.ndarray:
        large = cv2.resize((mask > 0).astype(np.uint8) * 255, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
        moved = np.roll(large, (1, 1), (0, 1))
        return cv2.resize(moved, (SIZE, SIZE), interpolation=cv2.INTER_AREA)

    each(root, "masks", half)


def jpeg(root: Path) -> None:
    for path in sorted(root.glob("*/masks/*.png")):
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255).save(
            path.with_suffix(".jpg"), quality=90
        )
        path.unlink()


def strange_value(root: Path) -> None:
    describe(root, "labels = 'index'\nclasses = ['rest', 'one', 'two']")
    mask = np.array(Image.open(root / MASK))
    mask[:4, :4] = 7
    save(root / MASK, mask)


def two_conventions(root: Path) -> None:
    each(root, "masks", lambda mask, number: ((mask > 0) * (1 if number % 2 else 255)).astype(np.uint8))


def shuffled_palettes(root: Path) -> None:
    for number, path in enumerate(sorted(root.glob("*/masks/*.png"))):
        order = np.random.default_rng(number).permutation(3)
        image = Image.fromarray(np.argsort(order).astype(np.uint8)[np.asarray(Image.open(path))], "P")
        image.putpalette(COLORS[order].ravel().tolist())
        image.save(path)


def say_index(plant: Plant) -> Plant:
    def both(root: Path) -> None:
        plant(root)
        describe(root, "labels = 'index'")

    return both


def empty(root: Path) -> None:
    each(root, "masks", lambda mask, number: np.zeros_like(mask))


def hide_in_alpha(root: Path) -> None:
    each(
        root,
        "masks",
        lambda mask, number: np.dstack([np.zeros((*mask.shape, 3), np.uint8), (mask > 0) * np.uint8(255)]),
    )


def fractions(root: Path) -> None:
    mask = np.asarray(Image.open(root / MASK)).astype(np.float32)
    (root / MASK).unlink()
    mask[0, 0] = 0.5
    save((root / MASK).with_suffix(".tif"), mask)


def missing_numbers(root: Path) -> None:
    mask = np.asarray(Image.open(root / MASK)).astype(np.float32)
    (root / MASK).unlink()
    mask[0, 0] = np.nan
    save((root / MASK).with_suffix(".tif"), mask)


def leak(root: Path) -> None:
    shutil.copy(root / IMAGE, root / "val/images/val1.png")
    shutil.copy(root / MASK, root / "val/masks/val1.png")


def as_floats(root: Path, change: Callable[[np.ndarray], None]) -> None:
    """All images as floats, so that their types do not differ, and one of them changed."""

    def one(image: np.ndarray, number: int) -> np.ndarray:
        floats = image.astype(np.float32)
        if number == 5:
            change(floats)
        return floats

    each(root, "images", one, ".tif")


def nan(root: Path) -> None:
    as_floats(root, lambda image: image.__setitem__((0, 0), np.nan))


def sentinel(root: Path) -> None:
    as_floats(root, lambda image: image.__setitem__(slice(0, 20), -9999))


def flip(root: Path) -> None:
    save(root / MASK, np.asarray(Image.open(root / MASK))[::-1].copy())


def turn(root: Path) -> None:
    save(root / MASK, np.rot90(np.asarray(Image.open(root / MASK))).copy())


def shift(root: Path) -> None:
    save(root / MASK, np.roll(np.asarray(Image.open(root / MASK)), (9, -8), (0, 1)))


def repeat(root: Path) -> None:
    shutil.copy(root / IMAGE, root / "train/images/train3.png")
    shutil.copy(root / MASK, root / "train/masks/train3.png")


def copy_resized(root: Path) -> None:
    image, mask = (Image.open(root / part) for part in (IMAGE, MASK))
    image.resize((72, 72), Image.Resampling.BICUBIC).save(root / "train/images/train3.png")
    mask.resize((72, 72), Image.Resampling.NEAREST).save(root / "train/masks/train3.png")


def lack(root: Path) -> None:
    for path in root.glob("val/masks/*.png"):
        mask = np.asarray(Image.open(path))
        save(path, np.where(mask == 2, 0, mask).astype(np.uint8))
        image = root / "val/images" / path.name
        save(
            image, np.where(cv2.dilate(mask, np.ones((5, 5))) == 2, 60, np.asarray(Image.open(image))).astype(np.uint8)
        )


def number_objects(text: str) -> Plant:
    def plant(root: Path) -> None:
        for place, split in enumerate(("train", "val", "test")):
            for path in sorted(root.glob(f"{split}/masks/*.png")):
                save(path, numbered(100 * place + int(path.stem[-1]))[1])
        describe(root, text)

    return plant


def tear(root: Path) -> None:
    number_objects("labels = 'instances'")(root)
    mask = np.array(Image.open(root / MASK))
    middle = int(np.mean(np.nonzero(mask == 2)[0]))
    mask[middle][mask[middle] == 2] = 0
    save(root / MASK, mask)


def call_objects(root: Path) -> None:
    def parts(mask: np.ndarray, number: int) -> np.ndarray:
        rows = np.arange(SIZE)[:, None] // 16 + 1
        return np.where(mask > 0, rows, 0).astype(np.uint8)

    each(root, "masks", parts)
    describe(root, "labels = 'instances'")


def color_others(root: Path) -> None:
    each(root, "images", lambda image, number: np.dstack([image] * 3) if number % 2 else None)


def deepen(root: Path) -> None:
    each(root, "images", lambda image, number: image.astype(np.uint16) * 257 if number == 5 else None, ".tif")


def blank(root: Path) -> None:
    save(root / IMAGE, np.full((SIZE, SIZE), 60, np.uint8))


def rare(root: Path) -> None:
    def few(mask: np.ndarray, number: int) -> np.ndarray:
        changed = np.where(mask == 2, 1, mask)
        changed[:2, :2] = 2
        return changed.astype(np.uint8)

    each(root, "masks", few)


def ask_to_turn(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(root / IMAGE).rotate(180).save(root / IMAGE, exif=exif)


def spread(root: Path) -> None:
    each(root, "masks", lambda mask, number: ((mask > 0) * 255).astype(np.uint8))


def paint(root: Path) -> None:
    each(root, "masks", lambda mask, number: COLORS[mask])


def give_palette(root: Path) -> None:
    for path in sorted(root.glob("*/masks/*.png")):
        image = Image.fromarray(np.asarray(Image.open(path)), "P")
        image.putpalette(COLORS.ravel().tolist())
        image.save(path)


def give_alpha(root: Path) -> None:
    opaque = np.full((SIZE, SIZE), 255, np.uint8)
    each(root, "images", lambda image, number: np.dstack([image, image, image, opaque]))


def several(root: Path) -> None:
    def write(image: np.ndarray, number: int) -> None:
        path = sorted(root.glob("*/images/*.png"))[0]
        path.unlink()
        with tifffile.TiffWriter(path.with_suffix(".tif")) as file:
            file.write(image, photometric="minisblack")
            file.write(image[::4, ::4], photometric="minisblack")

    each(root, "images", write)


def declare_missing(root: Path) -> None:
    def write(image: np.ndarray, number: int) -> None:
        path = sorted(root.glob("*/images/*.png"))[0]
        path.unlink()
        changed = image.copy()
        changed[:10] = 0
        tags = [(42113, "s", 0, "0", True)] if number == 5 else []
        tifffile.imwrite(path.with_suffix(".tif"), changed if number == 5 else image, extratags=tags)

    each(root, "images", write)


def forget_photometric(root: Path) -> None:
    def write(image: np.ndarray, number: int) -> None:
        path = sorted(root.glob("*/images/*.png"))[0]
        path.unlink()
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, image, photometric="minisblack")
        content = bytearray(buffer.getvalue())
        with tifffile.TiffFile(io.BytesIO(bytes(content))) as file:
            offset = file.pages[0].tags[262].offset
        content[offset : offset + 2] = (65000).to_bytes(2, "little")
        path.with_suffix(".tif").write_bytes(content)

    each(root, "images", write)


def unlabel(root: Path) -> None:
    shutil.rmtree(root / "test/masks")


def add_notes(root: Path) -> None:
    (root / "train/images/notes.docx").write_text("a note")


def contradict(root: Path) -> None:
    describe(root, "labels = 'binary'")


FAULTS: list[tuple[str, Plant]] = [
    ("unpaired-image", unpair),
    ("unpaired-mask", orphan),
    ("ambiguous-pair", twin),
    ("size-mismatch", crop),
    ("unreadable", break_bytes),
    ("truncated", cut),
    ("unknown-format", write_words),
    ("antialiased", smooth),
    ("jpeg-mask", jpeg),
    ("unknown-value", strange_value),
    ("mixed-conventions", two_conventions),
    ("palettes-differ", say_index(shuffled_palettes)),
    ("empty-mask", empty),
    ("alpha-labels", hide_in_alpha),
    ("float-labels", fractions),
    ("float-labels", missing_numbers),
    ("contradiction", contradict),
    ("split-leak", leak),
    ("non-finite", nan),
    ("undeclared-nodata", sentinel),
    ("misaligned", flip),
    ("misaligned", turn),
    ("misaligned", shift),
    ("duplicate-image", repeat),
    ("duplicate-image", copy_resized),
    ("missing-class", lack),
    ("instances-as-classes", number_objects("labels = 'index'")),
    ("classes-as-instances", call_objects),
    ("disconnected-instance", tear),
    ("mixed-channels", color_others),
    ("mixed-bit-depth", deepen),
    ("constant-image", blank),
    ("class-imbalance", rare),
    ("exif-rotation", ask_to_turn),
    ("values-0-255", spread),
    ("color-coded", paint),
    ("palette", give_palette),
    ("alpha-channel", give_alpha),
    ("several-series", several),
    ("nodata", declare_missing),
    ("no-photometric", forget_photometric),
    ("unlabelled-split", unlabel),
    ("left-out", add_notes),
]


def test_a_sound_set_shows_nothing(sound: Path) -> None:
    found = pw.doctor(sound)
    assert found.problems == ()
    assert found.ok
    assert (found.images, found.labels, found.classes) == (12, "index", ("class 0", "class 1", "class 2"))
    assert found.splits == {"train": 6, "val": 3, "test": 3}


@pytest.mark.parametrize(("code", "plant"), FAULTS, ids=[f"{code}-{plant.__name__}" for code, plant in FAULTS])
def test_a_planted_fault_shows_and_no_other(sound: Path, code: str, plant: Plant) -> None:
    plant(sound)
    found = pw.doctor(sound)
    assert {problem.code for problem in found.problems} == {code}, [str(problem) for problem in found.problems]
    assert found.ok == (CODES[code].severity != "error")
    for problem in found.problems:
        assert problem.message.endswith((".", "?"))
        assert all(path.exists() for path in problem.files)


def test_every_code_but_those_of_special_sets_is_planted() -> None:
    assert CODES.keys() - {code for code, _ in FAULTS} == {"huge-image", "tiny-objects"}
