"""Which files belong together, and into which split: by a hash that never moves."""

import hashlib
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pixelwise.core.errors import DataError, SettingError
from pixelwise.data.sets.folder import DataSet, Description, open_dataset, read_description, without
from pixelwise.data.sets.pairs import list_images, pairing_hint
from pixelwise.data.sets.splits import SPLITS, group_of, hash_of


def touch(root: Path, images: Iterable[str], masks: Iterable[str] | None = None) -> Path:
    """Make empty files: no pixel is read here."""
    images = list(images)
    for part, names in (("images", images), ("masks", images if masks is None else masks)):
        (root / part).mkdir(parents=True)
        for name in names:
            (root / part / name).touch()
    return root


def stems_of(dataset: DataSet) -> dict[str, list[str]]:
    return {name: [sample.image.stem for sample in samples] for name, samples in dataset.splits.items()}


def place_of(dataset: DataSet) -> dict[str, str]:
    return {sample.image.stem: name for name, samples in dataset.splits.items() for sample in samples}


def literal_hash(name: str) -> float:
    return int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 16**16


def literal_place(name: str) -> str:
    value = literal_hash(name)
    return "train" if value < 0.7 else "val" if value < 0.85 else "test"


STEMS = [f"scan{number:03}" for number in range(300)]
BY_PLACE = {name: [stem for stem in STEMS if literal_place(stem) == name] for name in SPLITS}


# The hash


def test_the_hash_is_the_same_for_ever() -> None:
    assert hash_of("cell_000") == 0x7DC56C2B059BAF2F / 2**64
    assert hash_of("img001") == 0xA12702A6ED127663 / 2**64


@given(st.text())
def test_the_hash_lies_between_0_and_1_whatever_the_name(name: str) -> None:
    assert 0 <= hash_of(name) < 1


def test_a_name_that_is_no_text_has_a_hash_too() -> None:
    # How Python shows a file name whose bytes are no UTF-8, and Windows one with half a surrogate pair.
    assert 0 <= hash_of("caf\udce9") < 1
    assert hash_of("caf\udce9") != hash_of("caf\udce8")


# The split


def test_the_split_is_the_hash_and_nothing_else(tmp_path: Path) -> None:
    dataset = open_dataset(touch(tmp_path, [f"{stem}.png" for stem in STEMS]))
    assert stems_of(dataset) == BY_PLACE
    shares = {name: len(stems) / 300 for name, stems in BY_PLACE.items()}
    assert shares == pytest.approx({"train": 0.7, "val": 0.15, "test": 0.15}, abs=0.08)
    for sample in dataset.samples:
        assert sample.image == tmp_path / "images" / f"{sample.name}.png"
        assert sample.target == tmp_path / "masks" / f"{sample.name}.png"
    assert len(dataset.samples) == 300


def test_the_borders_lie_at_70_and_85_percent(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(20_000)]
    close = [name for name in names if min(abs(literal_hash(name) - border) for border in (0.7, 0.85)) < 0.001]
    assert {literal_place(name) for name in close} == set(SPLITS)
    places = place_of(open_dataset(touch(tmp_path, [f"{name}.png" for name in close])))
    assert places == {name: literal_place(name) for name in close}


@settings(deadline=None, max_examples=20)
@given(st.sets(st.sampled_from(STEMS), min_size=12, max_size=40), st.sets(st.sampled_from(STEMS), max_size=40))
def test_no_image_moves_when_others_are_added(first: set[str], added: set[str]) -> None:
    assume({"train", "val"} <= {literal_place(stem) for stem in first})
    with tempfile.TemporaryDirectory() as folder:
        before = place_of(open_dataset(touch(Path(folder) / "a", [f"{stem}.png" for stem in first])))
        after = place_of(open_dataset(touch(Path(folder) / "b", [f"{stem}.tif" for stem in first | added])))
    assert before.keys() == first
    assert after.keys() == first | added
    assert {stem: after[stem] for stem in first} == before


@pytest.mark.parametrize(
    "natural",
    [
        ("test", "test"),
        ("val", "test"),
        ("train", "test"),
        ("val", "val"),
        ("train", "train"),
        ("train", "val"),
        ("test",) * 5,
        ("val", *["test"] * 4),
        ("train", *["test"] * 4),
        ("val",) * 4,
        ("train",) * 4,
        ("val", "val", "test"),
    ],
)
@pytest.mark.parametrize("offset", range(4))
def test_train_and_val_are_never_empty(tmp_path: Path, natural: tuple[str, ...], offset: int) -> None:
    left = {name: iter(BY_PLACE[name][offset:]) for name in SPLITS}
    stems = [next(left[name]) for name in natural]
    places = place_of(open_dataset(touch(tmp_path, [f"{stem}.png" for stem in stems])))
    assert places.keys() == set(stems)
    assert {"train", "val"} <= set(places.values())
    moved = [stem for stem in stems if places[stem] != literal_place(stem)]
    assert len(moved) == len({"train", "val"} - set(natural))  # no more than is needed


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(0, 10**6), min_size=2, max_size=5))
def test_train_and_val_are_never_empty_whatever_the_names(numbers: set[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        places = place_of(open_dataset(touch(Path(folder), [f"{number}.png" for number in numbers])))
    assert {"train", "val"} <= set(places.values())


def test_the_group_that_moves_is_the_one_next_to_the_border(tmp_path: Path) -> None:
    stems = BY_PLACE["train"][:20]
    places = place_of(open_dataset(touch(tmp_path, [f"{stem}.png" for stem in stems])))
    assert [stem for stem in stems if places[stem] == "val"] == [max(stems, key=literal_hash)]


def test_a_single_image_or_group_is_refused(tmp_path: Path) -> None:
    message = r"{}: contains a single image or group, which cannot serve for both training and validation\. Add images"
    with pytest.raises(DataError, match=message.format("one")):
        open_dataset(touch(tmp_path / "one", ["a.png"]))
    group = touch(tmp_path / "group", ["p1_a.png", "p1_b.png", "p1_c.png"])
    (group / "dataset.toml").write_text("group = 'p\\d+'\n")
    with pytest.raises(DataError, match=message.format("group")):
        open_dataset(group)


# Groups


@pytest.mark.parametrize(
    ("expression", "stem", "group"),
    [
        (None, "p1_a", "p1_a"),
        ("", "p1_a", "p1_a"),
        (r"p\d+", "p12_a", "p12"),
        (r"_(\d+)_(\d+)", "x_3_4", "3"),
        (r"^slide(\w)", "other", "other"),
        (r"(p\d+)?_a", "x_a", "x_a"),  # the group that matters took no part
        (r"\d*", "a7", "a7"),  # matches nothing at the start
    ],
)
def test_a_group_is_what_the_expression_captures_or_the_stem(expression: str | None, stem: str, group: str) -> None:
    assert group_of(stem, expression) == group


@settings(deadline=None, max_examples=15)
@given(st.sets(st.integers(0, 500), min_size=2, max_size=12), st.integers(1, 4))
def test_a_group_stays_in_one_split(patients: set[int], slices: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = touch(Path(folder), [f"p{patient}_{part}.png" for patient in patients for part in range(slices)])
        (root / "dataset.toml").write_text(r"group = '^(p\d+)_'")
        places = place_of(open_dataset(root))
    assert len(places) == len(patients) * slices
    of_patient = {patient: {places[f"p{patient}_{part}"] for part in range(slices)} for patient in patients}
    assert all(len(found) == 1 for found in of_patient.values())
    assert {"train", "val"} <= set(places.values())
    natural = {literal_place(f"p{patient}") for patient in patients}
    if {"train", "val"} <= natural:  # the group's hash counts, not the image's
        assert all(found == {literal_place(f"p{patient}")} for patient, found in of_patient.items())


# Layouts


def test_folders_of_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    for name, stems in (("train", "abc"), ("val", "ad"), ("test", "e")):
        touch(tmp_path / name, [f"{stem}.png" for stem in stems])
    (tmp_path / "images").mkdir()  # of another layout: not looked at
    dataset = open_dataset(tmp_path)
    assert stems_of(dataset) == {"train": ["a", "b", "c"], "val": ["a", "d"], "test": ["e"]}
    assert [str(sample.image.relative_to(tmp_path)) for sample in dataset.samples][:2] == [
        str(Path("train/images/a.png")),
        str(Path("train/images/b.png")),
    ]


def test_train_alone_gives_val_a_part_of_it_by_the_same_hash(tmp_path: Path) -> None:
    touch(tmp_path / "train", [f"{stem}.png" for stem in STEMS])
    touch(tmp_path / "test", ["x.png"])
    places = stems_of(open_dataset(tmp_path))
    assert places["val"] == BY_PLACE["val"]
    assert sorted(places["train"]) == sorted(BY_PLACE["train"] + BY_PLACE["test"])
    assert places["test"] == ["x"]


def test_val_or_test_alone_will_do_to_measure_on(tmp_path: Path) -> None:
    touch(tmp_path / "val", ["x.png"])
    dataset = open_dataset(tmp_path)
    assert [sample.name for sample in dataset.split("val")] == ["x"]
    with pytest.raises(DataError, match=r"the split 'train' is empty or missing; splits with images: val\.$"):
        dataset.split("train")


def test_a_split_without_a_pair_is_empty(tmp_path: Path) -> None:
    dataset = open_dataset(touch(tmp_path, ["a.png"], ["b.png"]))
    assert dataset.samples == ()
    with pytest.raises(DataError, match=r"the split 'train' is empty or missing; splits with images: none\.$"):
        dataset.split("train")


def test_files_without_a_partner_or_with_a_twin_are_listed(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        ["a.png", "b.tif", "c.JPG", "d.png", "d.tif", "e.png"],
        ["a.png", "b.bmp", "c.png", "d.png", "f.png", "f.tif"],
    )
    dataset = open_dataset(root)
    assert sorted(sample.name for sample in dataset.samples) == ["a", "b", "c", "d"]
    assert {sample.name: sample.image.name for sample in dataset.samples}["d"] == "d.png"
    found = dataset.found[""]
    assert found.lonely_images == (root / "images" / "e.png",)
    assert found.lonely_masks == (root / "masks" / "f.png",)
    assert found.same_stem == (root / "images" / "d.tif", root / "masks" / "f.tif")


def test_only_files_that_may_be_images_are_listed(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.tiff", ".hidden.png", "notes.txt", "png", "c.webp"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.tiff", "b.PNG", "c.webp"]


def test_without_leaves_out_samples_by_image_or_mask(tmp_path: Path) -> None:
    for name in ("train", "val"):
        touch(tmp_path / name, ["a.png", "b.png", "c.png"])
    dataset = open_dataset(tmp_path)
    smaller = without(dataset, iter([tmp_path / "train/images/a.png", tmp_path / "val/masks/c.png"]))
    assert stems_of(smaller) == {"train": ["b", "c"], "val": ["a", "b"]}
    assert len(dataset.samples) == 6


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "valid"), ("train", "val")),
        (("Train", "Validation", "Test"), ("train", "val", "test")),
        (("training", "VAL", "testing"), ("train", "val", "test")),
    ],
)
def test_folders_of_splits_have_other_names_too(
    tmp_path: Path, folders: tuple[str, ...], splits: tuple[str, ...]
) -> None:
    for name in folders:
        touch(tmp_path / name, [f"{name}.png"])
    assert stems_of(open_dataset(tmp_path)) == {split: [name] for split, name in zip(splits, folders, strict=True)}


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train", "val", "valid"):
        touch(tmp_path / name, ["a.png"])
    with pytest.raises(DataError, match=r"val/ and valid/ both stand for the split 'val'\. Rename or remove one\.$"):
        open_dataset(tmp_path)


def test_letters_case_of_the_parts_does_not_matter(tmp_path: Path) -> None:
    touch(tmp_path, ["a.png", "b.png"])
    (tmp_path / "images").rename(tmp_path / "Images")
    (tmp_path / "masks").rename(tmp_path / "MASKS")
    assert len(open_dataset(tmp_path).samples) == 2


def test_accents_pair_whether_they_are_one_letter_or_two(tmp_path: Path) -> None:
    composed, decomposed = (
        [unicodedata.normalize(form, f"Müller é{n}.png") for n in range(4)] for form in ("NFC", "NFD")
    )
    mixed = open_dataset(touch(tmp_path / "a", composed, decomposed))
    assert [sample.name for sample in mixed.samples] == [
        sample.name for sample in open_dataset(touch(tmp_path / "b", composed)).samples
    ]
    assert len(mixed.samples) == 4
    assert not mixed.found[""].lonely_images
    # The split is the same wherever the files come from.
    assert {sample.name: name for name, samples in mixed.splits.items() for sample in samples} == {
        sample.name: name
        for name, samples in open_dataset(touch(tmp_path / "c", decomposed)).splits.items()
        for sample in samples
    }


def test_a_split_of_images_alone_is_unlabelled(tmp_path: Path) -> None:
    touch(tmp_path / "train", [f"{stem}.png" for stem in STEMS[:20]])
    touch(tmp_path / "test", ["x.png", "y.png"])
    (tmp_path / "test" / "masks" / "x.png").unlink()
    (tmp_path / "test" / "masks" / "y.png").unlink()
    for remaining in ("an empty folder", "no folder"):
        dataset = open_dataset(tmp_path)
        assert [path.name for path in dataset.unlabelled["test"]] == ["x.png", "y.png"], remaining
        assert dataset.splits.keys() == {"train", "val"}
        with pytest.raises(
            DataError, match=r"the split 'test' has 2 images but no masks, so there is nothing to compare"
        ):
            dataset.split("test")
        if remaining == "an empty folder":
            (tmp_path / "test" / "masks").rmdir()


def test_val_without_masks_is_taken_from_train(tmp_path: Path) -> None:
    touch(tmp_path / "train", [f"{stem}.png" for stem in STEMS[:20]])
    touch(tmp_path / "val", ["x.png"], [])
    dataset = open_dataset(tmp_path)
    assert dataset.splits["val"]
    assert set(dataset.unlabelled) == {"val"}


def test_without_any_mask_there_is_no_data_set(tmp_path: Path) -> None:
    touch(tmp_path / "val", ["x.png"], [])
    with pytest.raises(DataError, match=r"no split has masks\. Add a folder masks/ beside images/ in val/\.$"):
        open_dataset(tmp_path)


def test_splits_below_the_images_are_told(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        touch(tmp_path / part / "train", [])
    with pytest.raises(
        DataError, match=r"images: holds the folders train but no images\. Here a split comes first: move "
    ):
        open_dataset(tmp_path)


def test_what_is_no_image_is_listed(tmp_path: Path) -> None:
    root = touch(tmp_path, ["a.png", "b.png", "notes.docx", "Thumbs.db", ".DS_Store"], ["a.png", "b.png", "c.npy"])
    (root / "images" / "more").mkdir()
    assert [path.name for path in open_dataset(root).found[""].left_out] == ["more", "notes.docx", "c.npy"]


@pytest.mark.parametrize(
    ("images", "masks", "hint"),
    [
        (
            ["a1", "b2"],
            ["a1_mask", "b2_mask"],
            """The masks' names end in "_mask", which the images' do not: remove it.""",
        ),
        (["cell_a", "bell_a"], ["cell_a-label", "bell_a-label"], """The masks' names end in "-label", which the"""),
        (["x.ome", "y.ome"], ["x", "y"], """The images' names end in ".ome", which the masks' do not: remove it."""),
        (["1", "2"], ["seg_1", "seg_2"], """The masks' names begin with "seg_", which the images' do not"""),
        (["A", "B"], ["a", "b"], "The names differ in upper and lower case: rename one side."),
        (
            ["a_leftImg8bit", "b_leftImg8bit"],
            ["a_gtFine", "b_gtFine"],
            """The images' names end in "_leftImg8bit" and""",
        ),
        (
            ["img_1", "img_2"],
            ["mask_1", "mask_2"],
            """The images' names begin with "img_" and the masks' with "mask_":""",
        ),
        (["q", "w"], ["e", "r"], ""),
        ([], ["e"], ""),
    ],
)
def test_why_nothing_pairs_is_told_where_it_can_be_seen(images: list[str], masks: list[str], hint: str) -> None:
    found = pairing_hint(images, masks)
    assert found.startswith(hint)
    assert bool(found) == bool(hint)


# What is missing


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: no such folder\. Give a folder that contains images/ and masks/\.$"):
        open_dataset(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file: no such folder"):
        open_dataset(tmp_path / "file")


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (None, None, r": has no folder 'images'\. A data set consists of images/ and masks/ with the same stems"),
        (None, ["a.png"], r": has no folder 'images'\."),
        (["a.png"], None, r": has no folder 'masks'\."),
        ([], ["a.png"], r"images: contains no images \(known extensions: .*\.png.*\)\.$"),
        (["a.txt"], ["a.png"], r"images: contains no images "),
        (["a.png"], [], r"masks: contains no masks\. Add a mask with the same stem for each image\.$"),
    ],
)
@pytest.mark.parametrize("below", ["", "train"])
def test_missing_images_or_masks_are_named(
    tmp_path: Path, images: list[str] | None, masks: list[str] | None, message: str, below: str
) -> None:
    for part, names in (("images", images), ("masks", masks)):
        if names is not None:
            (tmp_path / below / part).mkdir(parents=True)
            for name in names:
                (tmp_path / below / part / name).touch()
    if below and images is not None:
        message = f"{below}.*{message}"
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path)


# dataset.toml


def test_a_description_is_read_and_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "dataset.toml"
    assert read_description(path) == Description()
    path.write_text(
        "classes = ['a', 'b']\nlabels = 'index'\nignore = 11\ngroup = '^(..)'\npixel_size = 0.5\naxes = 'ZYX'\n"
        "[colors]\na = [0, 0, 0]\nb = [255, 128, 0]\n"
    )
    assert read_description(path) == Description(
        classes=["a", "b"],
        labels="index",
        ignore=11,
        group="^(..)",
        colors={"a": (0, 0, 0), "b": (255, 128, 0)},
        pixel_size=0.5,
        axes="ZYX",
    )


def test_ignored_values_are_a_list() -> None:
    assert Description().ignored == []
    assert Description(ignore=0).ignored == [0]
    assert Description(ignore=[3, 4]).ignored == [3, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clases = ['a']", r": clases is not a key of dataset\.toml; did you mean classes"),
        ("x = 1", r": x is not a key of dataset\.toml; choose from: classes, labels, ignore, group, colors, "),
        ("labels = 'colour'", r": labels = 'colour': input should be 'binary', 'index', 'instances' or 'color'\.$"),
        ("classes = 'a'", r": classes = 'a': input should be a valid list\.$"),
        ("ignore = 'void'", r": ignore = 'void': input should be a valid integer"),
        ("ignore = [1, 'void']", r": ignore\S* = .*: input should be a valid "),
        ("[colors]\na = [1, 2]", r": colors\.a\.2 is missing\.$"),
        ("[colors]\na = [0, 0, 256]", r": colors\.a\.2 = 256: input should be less than or equal to 255\.$"),
        ("[colors]\na = [-1, 0, 0]", r": colors\.a\.0 = -1: input should be greater than or equal to 0\.$"),
        ("group = '('", r": group is not a valid regular expression: "),
        ("group = 3", r": group = 3: input should be a valid string\.$"),
        ("classes = [", r": is not valid TOML: "),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(tmp_path: Path, text: str, message: str) -> None:
    root = touch(tmp_path, ["a.png", "b.png"])
    (root / "dataset.toml").write_text(text)
    with pytest.raises(SettingError, match=r"dataset\.toml" + message):
        open_dataset(root)


def test_a_value_is_named_by_its_key_alone(tmp_path: Path) -> None:
    (tmp_path / "dataset.toml").write_text("ignore = 'void'")
    with pytest.raises(SettingError) as caught:
        read_description(tmp_path / "dataset.toml")
    assert "ignore =" in str(caught.value)
    assert "ignore.int" not in str(caught.value)


# Folds


def val_folds(root: Path, folds: int) -> list[DataSet]:
    return [open_dataset(root, folds, fold) for fold in range(folds)]


@settings(deadline=None, max_examples=15)
@given(st.sets(st.sampled_from(STEMS), min_size=4, max_size=25), st.integers(2, 7))
def test_folds_share_train_and_val_out_among_them(stems: set[str], folds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = touch(Path(folder), [f"{stem}.png" for stem in stems])
        plain = open_dataset(root)
        pool = {sample.name for name in ("train", "val") for sample in plain.split(name)}
        assume(folds <= len(pool))
        parts = val_folds(root, folds)
    vals = [[sample.name for sample in part.splits["val"]] for part in parts]
    assert sorted(name for val in vals for name in val) == sorted(pool)  # each once
    assert max(map(len, vals)) - min(map(len, vals)) <= 1
    for part, val in zip(parts, vals, strict=True):
        assert {sample.name for sample in part.splits["train"]} == pool - set(val)
        assert part.splits["test"] == plain.splits["test"]


def test_folds_keep_groups_together_and_never_change(tmp_path: Path) -> None:
    root = touch(tmp_path, [f"p{patient}_{part}.png" for patient in range(9) for part in range(patient % 3 + 1)])
    (root / "dataset.toml").write_text(r"group = '^(p\d+)_'")
    for part in val_folds(root, 3):
        patients = {name: {sample.name.split("_")[0] for sample in part.splits[name]} for name in ("train", "val")}
        assert not patients["train"] & patients["val"]
        assert patients["val"]
    assert [part.splits for part in val_folds(root, 3)] == [part.splits for part in val_folds(root, 3)]


def test_folds_pool_folders_of_train_and_val(tmp_path: Path) -> None:
    for name, stems in (("train", "abcd"), ("val", "efgh"), ("test", "x")):
        touch(tmp_path / name, [f"{stem}.png" for stem in stems])
    parts = val_folds(tmp_path, 4)
    assert sorted(sample.name for part in parts for sample in part.splits["val"]) == list("abcdefgh")
    assert all(stems_of(part)["test"] == ["x"] for part in parts)


@pytest.mark.parametrize(
    ("folds", "fold", "message"),
    [
        (1, 0, r"^data\.folds = 1: .* can be split into 2 to 4 folds\.$"),
        (5, 0, r"^data\.folds = 5: .* can be split into 2 to 4 folds\.$"),
        (-2, 0, r"^data\.folds = -2: "),
        (3, 3, r"^data\.fold = 3: must lie between 0 and 2\.$"),
        (3, -1, r"^data\.fold = -1: must lie between 0 and 2\.$"),
    ],
)
def test_folds_that_cannot_be_made_are_refused(tmp_path: Path, folds: int, fold: int, message: str) -> None:
    touch(tmp_path / "train", ["a.png", "b.png"])
    touch(tmp_path / "val", ["c.png", "d.png"])
    with pytest.raises(SettingError, match=message):
        open_dataset(tmp_path, folds, fold)


def test_a_description_that_is_a_folder_is_named(tmp_path: Path) -> None:
    root = touch(tmp_path, ["a.png", "b.png"])
    (root / "dataset.toml").mkdir()
    with pytest.raises(SettingError, match=r"dataset\.toml: cannot be read \("):
        open_dataset(root)
