"""A sound data set shows nothing; a set with one planted fault shows that one and no other."""

import io
import json
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
from pixelwise.core.errors import DataError, OutputError, SettingError
from pixelwise.data.files.readers import read_image, read_mask
from pixelwise.data.health import checks
from pixelwise.data.health.problems import CODES, OLD_CODES, Problem, current

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


# Mended copies

FIXED = [(code, plant) for code, plant in FAULTS if CODES[code].fix and code not in ("exif-rotation", "contradiction")]


@pytest.mark.parametrize(("code", "plant"), FIXED, ids=[f"{code}-{plant.__name__}" for code, plant in FIXED])
def test_what_can_be_mended_is(sound: Path, tmp_path: Path, code: str, plant: Plant) -> None:
    plant(sound)
    before = {path: path.read_bytes() for path in sound.rglob("*") if path.is_file()}
    found = pw.doctor(sound, fix=tmp_path / "mended")
    assert found.ok
    assert code in {problem.code for problem in found.problems}
    assert code not in {problem.code for problem in found.remaining}
    assert {path: path.read_bytes() for path in sound.rglob("*") if path.is_file()} == before
    again = pw.doctor(tmp_path / "mended")
    assert again.problems == found.remaining
    assert again.images in (10, 11, 12)
    assert found.mended is not None
    assert found.mended.samples == again.images
    assert not list(tmp_path.glob(".*"))


def masks_of(root: Path) -> dict[str, np.ndarray]:
    return {path.stem: read_mask(path)[0] for path in sorted(root.glob("*/masks/*"))}


def test_smoothed_masks_get_their_classes_back(sound: Path, tmp_path: Path) -> None:
    smooth(sound)
    pw.doctor(sound, fix=tmp_path / "mended")
    for place, split in enumerate(("train", "val", "test")):
        for name, mask in masks_of(tmp_path / "mended").items():
            if name.startswith(split):
                true = scene(100 * place + int(name[-1]))[1] > 0
                assert set(np.unique(mask)) == {0, 255}
                assert np.mean((mask > 0) != true) < 0.03  # half a pixel at the edges


def test_conventions_become_one(sound: Path, tmp_path: Path) -> None:
    true = {name: mask > 0 for name, mask in masks_of(sound).items()}
    two_conventions(sound)
    pw.doctor(sound, fix=tmp_path / "mended")
    for name, mask in masks_of(tmp_path / "mended").items():
        np.testing.assert_array_equal(mask, true[name])


def test_palettes_become_one(sound: Path, tmp_path: Path) -> None:
    true = masks_of(sound)
    shuffled_palettes(sound)
    pw.doctor(sound, fix=tmp_path / "mended")
    for name, mask in masks_of(tmp_path / "mended").items():
        np.testing.assert_array_equal(mask, COLORS[true[name]])


def test_numbers_of_palettes_become_one_where_numbers_are_the_labels(sound: Path, tmp_path: Path) -> None:
    true = masks_of(sound)
    say_index(shuffled_palettes)(sound)
    first = masks_of(sound)
    pw.doctor(sound, fix=tmp_path / "mended")
    mended = masks_of(tmp_path / "mended")
    table = {int(value): int(mended["train0"][true["train0"] == value][0]) for value in range(3)}
    assert sorted(table.values()) == [0, 1, 2]
    np.testing.assert_array_equal(mended["train0"], first["train0"])
    for name, mask in mended.items():
        np.testing.assert_array_equal(mask, np.array([table[0], table[1], table[2]])[true[name]])


def test_labels_come_out_of_the_alpha_channel(sound: Path, tmp_path: Path) -> None:
    true = masks_of(sound)
    hide_in_alpha(sound)
    pw.doctor(sound, fix=tmp_path / "mended")
    for name, mask in masks_of(tmp_path / "mended").items():
        np.testing.assert_array_equal(mask, np.where(true[name] > 0, 255, 0))


def test_a_mask_that_lies_as_its_image_is_stored_is_turned(sound: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for part in ("images", "masks"):
        each(sound, part, lambda array, number: array[:80])
    true = {path.stem: read_mask(path)[0] for path in sound.glob("*/masks/*")}
    for path in sorted(sound.glob("*/images/*.png")):
        Image.open(path).save(path, exif=exif)
    found = pw.doctor(sound, fix=tmp_path / "mended")
    assert {problem.code for problem in found.problems} == {"size-mismatch"}
    assert "The image's EXIF data ask viewers to turn it (orientation 6)" in found.problems[0].message
    assert found.ok
    for name, mask in masks_of(tmp_path / "mended").items():
        np.testing.assert_array_equal(mask, np.rot90(true[name], -1))
    for path in (tmp_path / "mended").glob("*/images/*"):
        assert read_image(path).shape[1:3] == (96, 80)


def test_a_mask_drawn_on_the_stored_image_is_turned_where_sizes_tell_nothing(sound: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    true = read_mask(sound / MASK)[0]
    Image.open(sound / IMAGE).save(sound / IMAGE, exif=exif)  # the image is turned, the mask is not
    other = "train/masks/train3.png"
    Image.open(sound / other.replace("masks", "images")).rotate(180).save(
        sound / other.replace("masks", "images"), exif=exif
    )  # stored upside down, shown upright, as its mask lies
    kept = read_mask(sound / other)[0]
    found = pw.doctor(sound, fix=tmp_path / "mended")
    assert {problem.code for problem in found.problems} == {"exif-rotation", "misaligned"}
    np.testing.assert_array_equal(read_mask(tmp_path / "mended" / MASK)[0], true[::-1, ::-1])
    np.testing.assert_array_equal(read_mask(tmp_path / "mended" / other)[0], kept)


def test_what_is_right_is_copied_byte_for_byte(sound: Path, tmp_path: Path) -> None:
    describe(sound, 'classes = ["rest", "one", "two"]\n')
    unlabel(sound)
    found = pw.doctor(sound, fix=tmp_path / "mended")
    assert found.mended is not None
    assert (found.mended.changed, found.mended.left_out) == (0, ())
    copied = {
        path.relative_to(tmp_path / "mended"): path for path in (tmp_path / "mended").rglob("*") if path.is_file()
    }
    original = {path.relative_to(sound): path for path in sound.rglob("*") if path.is_file()}
    assert copied.keys() == original.keys()
    for name, path in copied.items():
        if name.name != "dataset.toml":
            assert path.read_bytes() == original[name].read_bytes()
    assert pw.doctor(tmp_path / "mended").classes == ("rest", "one", "two")


def test_a_set_without_split_folders_stays_one(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    root = make_dataset(tmp_path / "data", count=8, kind="index")
    (root / "images" / "img000.png").unlink()
    found = pw.doctor(root, fix=tmp_path / "mended")
    assert found.ok
    assert sorted(path.name for path in (tmp_path / "mended").iterdir()) == ["images", "masks"]
    assert len(list((tmp_path / "mended/masks").iterdir())) == 7


@pytest.mark.parametrize("place", ["data/inside", ".", "full"])
def test_a_mended_copy_is_never_written_into_the_original(sound: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    messages = {"full": "exists already and is not empty", ".": "exists already and is not empty"}
    with pytest.raises(
        OutputError, match=messages.get(place, r"lies within .*data, or around it, which is left as it is")
    ):
        pw.doctor(sound, fix=tmp_path / place)


# What is told


def test_the_page_shows_findings_samples_classes_and_sizes(sound: Path, tmp_path: Path) -> None:
    shift(sound)
    found = pw.doctor(sound, html=tmp_path / "page.html")
    assert found.page == tmp_path / "page.html"
    text = found.page.read_text()
    for words in ("misaligned", "train2.png", "class 2", "train2 (train, 96 x 96)", "Sizes", "Intensities", "sound"):
        assert words in text
    assert text.count("data:image/png") == 2 * 12 + 2 * 2
    assert "<script" not in text
    assert 'src="http' not in text


def test_names_on_the_page_are_escaped(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    root = make_dataset(tmp_path / "a<b>", count=8, kind="index")
    (root / "images" / "img000.png").rename(root / "images" / "<img src=x>.png")
    text = pw.doctor(root, html=tmp_path / "page.html").page.read_text()  # type: ignore[union-attr]
    assert "<img src=x>" not in text
    assert "&lt;img src=x&gt;" in text


def test_a_page_of_a_set_without_a_meaning_shows_it_all_the_same(sound: Path, tmp_path: Path) -> None:
    two_conventions(sound)
    text = pw.doctor(sound, html=tmp_path / "page.html").page.read_text()  # type: ignore[union-attr]
    assert "not sound" in text
    assert text.count("data:image/png") > 12


def test_a_diagnosis_as_json_has_what_the_contract_says(sound: Path, tmp_path: Path) -> None:
    orphan(sound)
    found = pw.doctor(sound, fix=tmp_path / "mended")
    value = json.loads(json.dumps(found.as_json()))
    assert value["ok"] is True  # of the mended copy
    assert (value["images"], value["labels"], value["classes"]) == (11, "index", ["class 0", "class 1", "class 2"])
    (problem,) = value["problems"]
    assert problem.keys() == {"code", "severity", "files", "message", "fix"}
    assert problem["files"] == [str(sound / MASK)]
    assert value["fixed"]["out"] == str(tmp_path / "mended")
    assert repr(found).endswith("11 images, index labels, 1 error, 0 warnings, 0 notes)")
    assert not pw.doctor(sound).ok
    assert pw.doctor(sound, allow=["mask-without-image"]).ok


def test_huge_images_are_noted(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "HUGE_PIXELS", SIZE * SIZE - 1)
    assert codes(sound) == ["huge-image"]


def test_objects_that_vanish_at_the_planned_scale_are_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(8):
        mask = np.zeros((400, 400), np.uint8)
        mask[200:] = 1
        for _ in range(20):
            y, x = rng.integers(10, 390, 2)
            mask[y : y + 2, x : x + 3] = 2
        image = (np.array([200, 90, 20])[mask] + rng.normal(0, 5, mask.shape)).clip(0, 255).astype(np.uint8)
        save(tmp_path / "images" / f"{number}.png", image)
        save(tmp_path / "masks" / f"{number}.png", mask)
    found = {problem.code: problem for problem in pw.doctor(tmp_path).problems}
    assert "objects of the class 'class 2' have fewer than 8 pixels" in found["tiny-objects"].message
    assert "'class 1'" not in found["tiny-objects"].message


def test_sets_that_are_copies_as_a_whole_are_warned_of(sound: Path) -> None:
    for part in ("images", "masks"):
        shutil.rmtree(sound / "val" / part)
        shutil.copytree(sound / "train" / part, sound / "val" / part)
    (problem,) = pw.doctor(sound).problems
    assert (problem.code, problem.severity, len(problem.files)) == ("split-leak", "warning", 12)


def test_copies_are_found_across_all_blocks(monkeypatch: pytest.MonkeyPatch, sound: Path) -> None:
    repeat(sound)
    copy_resized(sound)
    monkeypatch.setattr(checks, "_BLOCK", 2)
    assert codes(sound) == ["duplicate-image"]


# The table of codes


def test_old_names_of_codes_are_understood() -> None:
    assert current(list(OLD_CODES)) == tuple(OLD_CODES.values())
    with pytest.raises(SettingError, match=r"^--allow unpaired: no problem has this code; did you mean unpaired-"):
        current(["unpaired"])


def test_every_error_can_be_allowed_or_says_why_not() -> None:
    for code, kind in CODES.items():
        assert bool(kind.allow) == (kind.severity == "error" or code == "mixed-channels") or code == "contradiction"
        assert not kind.what.endswith(".")


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no folder 'images'\."):
        pw.doctor(tmp_path)


def test_a_problem_of_a_whole_set_names_no_file() -> None:
    assert str(Problem("missing-class", (), "Bad.", "Mend.")) == "Bad. Mend. [missing-class]"
