"""Settings: names that do not exist, values that make no sense, and the way to a file and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pixelwise.core.config import (
    SECTIONS,
    TOP,
    Config,
    check_names,
    make_config,
    parse_overrides,
    read_config,
    read_toml,
)
from pixelwise.core.errors import SettingError


def whole_tree(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The smallest tree that is a config; `changes` maps "section.key" to a value."""
    tree: dict[str, Any] = {
        "data": {
            "labels": "binary",
            "classes": ["background", "cell"],
            "colors": [[0, 0, 0], [200, 30, 30]],
            "values": [0, 255],
            "ignore": [],
            "channels": 1,
            "scale": 1.0,
            "normalization": "fixed",
            "mean": [1 / 3],
            "std": [1e-5],
        },
        "model": {},
        "train": {"patch": [64, 48], "batch": 2, "steps_per_epoch": 5, "rate": 1e-3},
        "augment": {},
        "loss": {},
    }
    for name, value in (changes or {}).items():
        section, _, key = name.rpartition(".")
        (tree[section] if section else tree)[key] = value
    return tree


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seed": 2**63 - 1, "train.epochs": 7},
        {"train.minutes": 0.1 + 0.2, "train.rate": 1e-7, "model.residual": True, "model.stem": 4},
        {"data.classes": ['quoted "name"', "Zellkern ä \\ b"], "data.ignore": [11, -1]},
        {"model.backbone": "resnet18", "model.output_stride": 16, "model.pretrained": True, "model.head": "aspp"},
        {"train.schedule": [{"parts": "decoder", "share": 1, "rate": 1.0}, {"parts": "all", "share": 3, "rate": 0.1}]},
    ],
)
def test_a_config_is_the_same_after_a_trip_through_its_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = make_config(whole_tree(changes))
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert read_config(path) == config


def test_unset_values_are_left_out_of_the_file() -> None:
    text = make_config(whole_tree({"train.epochs": 7})).to_toml()
    assert "epochs = 7" in text
    assert "minutes" not in text


def test_a_config_cannot_be_changed() -> None:
    config = make_config(whole_tree())
    with pytest.raises(ValidationError, match="frozen"):
        config.train.batch = 3


def test_the_sections_are_those_of_the_config() -> None:
    fields = {name: field.annotation for name, field in Config.model_fields.items() if name not in TOP}
    assert fields == SECTIONS


# Names


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.bacth=4", r"^--set: train\.bacth is not a setting; did you mean train\.batch"),
        ("model.widht=4", r"^--set: model\.widht is not a setting; did you mean model\.width"),
        ("augment.elastik=4", r"^--set: augment\.elastik is not a setting; did you mean augment\.elastic"),
        ("loss.boarder=4", r"^--set: loss\.boarder is not a setting; did you mean loss\.border"),
        ("data.skale=4", r"^--set: data\.skale is not a setting; did you mean data\.scale"),
        ("sed=4", r"^--set: sed is not a setting; did you mean seed\?$"),
        ("trian.batch=4", r"^--set: \[trian\] is not a section of settings; did you mean train\?$"),
        ("q.r=4", r"^--set: \[q\] is not a section of settings; choose from: data, model, train, augment, loss\.$"),
        ("train.patch.x=4", r"^--set: \[train\.patch\] is not a section of settings; "),
        ("loss.zzzzzzzzz=4", r"^--set: loss\.z+ is not a setting; choose from: loss\.cross_entropy, loss\.dice, "),
        ("=4", r"^--set:  is not a setting; choose from: seed, task, data\.labels, "),
    ],
)
def test_an_unknown_name_lists_the_near_ones(assignment: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        parse_overrides(None, [assignment])


def test_an_unknown_name_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nbatch = 4\nrat = 0.1\n")
    with pytest.raises(SettingError, match=r"mine\.toml: train\.rat is not a setting; did you mean train\.rate"):
        parse_overrides(path, [])
    path.write_text("train = 3\n")
    with pytest.raises(SettingError, match=r"mine\.toml: train is not a setting; "):
        parse_overrides(path, [])


def test_check_names_takes_every_setting_and_names_its_source() -> None:
    check_names({section: dict.fromkeys(model.model_fields) for section, model in SECTIONS.items()}, "there")
    check_names({"": {"seed": 1}}, "there")
    with pytest.raises(SettingError, match=r"^there: data\.sede is not a setting; "):
        check_names({"": {"seed": 1}, "data": {"sede": 1}}, "there")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.bacth": 4}, r"^here: train\.bacth is not a setting; did you mean batch or patch\?$"),
        ({"trian": {}}, r"^here: trian is not a setting; did you mean train\?$"),
        ({"train.batch": 4, "model.foo": 1}, r"^here: model\.foo is not a setting; choose from: name, width, depth"),
    ],
)
def test_an_unknown_name_in_a_tree_lists_the_near_ones(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_config(whole_tree(changes), "here")


# Values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4),
        ("-0.5", -0.5),
        ("1e-4", 1e-4),
        ("true", True),
        ("[256, 128]", [256, 128]),
        ('["a", "b"]', ["a", "b"]),
        ("valid", "valid"),
        ('"valid"', "valid"),
        ("a=b", "a=b"),
        (" 7 ", 7),
        ("", ""),
        ("True", "True"),
    ],
)
def test_a_value_is_toml_or_else_text(text: str, value: Any) -> None:
    parsed = parse_overrides(None, [f"train.batch={text}"])["train"]["batch"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_assignments_win_over_the_file_and_the_last_one_over_all(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("seed = 5\n[train]\nbatch = 4\nrate = 0.1\n[model]\nwidth = 8\n")
    overrides = parse_overrides(path, ["train.batch=5", " train.batch = 6", "seed=9"])
    assert overrides == {"": {"seed": 9}, "train": {"batch": 6, "rate": 0.1}, "model": {"width": 8}}


def test_phases_come_from_tables_of_a_file_or_from_an_assignment(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[[train.schedule]]\nparts = "decoder"\nshare = 0.5\nrate = 1.0\n'
        '[[train.schedule]]\nparts = "all"\nshare = 0.5\nrate = 0.1\n'
    )
    text = '[{parts="decoder", share=0.5, rate=1.0}, {parts="all", share=0.5, rate=0.1}]'
    both = parse_overrides(path, []), parse_overrides(None, [f"train.schedule={text}"])
    assert both[0] == both[1]
    schedule = make_config(whole_tree({"train.schedule": both[0]["train"]["schedule"]})).train.schedule
    assert [(phase.parts, phase.share, phase.rate) for phase in schedule] == [("decoder", 0.5, 1.0), ("all", 0.5, 0.1)]


def test_the_network_is_named_with_what_is_known_of_it() -> None:
    assert make_config(whole_tree()).model.title() == "unet"
    model = make_config(whole_tree({"model.width": 8, "model.depth": 3})).model
    assert model.title() == "unet, width 8, depth 3"


def test_nothing_chosen_is_an_empty_tree() -> None:
    assert parse_overrides(None, []) == {}


@pytest.mark.parametrize("assignment", ["train.batch", "seed", ""])
def test_an_assignment_needs_a_value(assignment: str) -> None:
    message = rf"^--set {assignment}: write it as section\.key=value, for example train\.batch=4\.$"
    with pytest.raises(SettingError, match=message):
        parse_overrides(None, [assignment])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.batch": "four"}, r"^here: train\.batch = 'four': input should be a valid integer"),
        ({"train.batch": 4.5}, r"^here: train\.batch = 4\.5: input should be a valid integer"),
        ({"train.batch": 0}, r"^here: train\.batch = 0: input should be greater than or equal to 1\.$"),
        ({"train.batch": ""}, r"^here: train\.batch = '': input should be a valid integer"),
        ({"train.patch": [64]}, r"^here: train\.patch\.1 is missing\.$"),
        ({"train.patch": [64, 0]}, r"^here: train\.patch\.1 = 0: input should be greater than or equal to 1\.$"),
        ({"train.epochs": 0}, r"^here: train\.epochs = 0: "),
        ({"train.minutes": -1}, r"^here: train\.minutes = -1: "),
        ({"train.optimizer": "adam"}, r"^here: train\.optimizer = 'adam': input should be 'adamw' or 'sgd'\.$"),
        ({"train.warmup": 1}, r"^here: train\.warmup = 1: input should be less than 1\.$"),
        ({"model.stem": 3}, r"^here: model\.stem = 3: input should be 1, 2 or 4\.$"),
        ({"model.padding": "full"}, r"^here: model\.padding = 'full': input should be 'same' or 'valid'\.$"),
        ({"model.residual": "perhaps"}, r"^here: model\.residual = 'perhaps': input should be a valid boolean"),
        ({"data.labels": "colour"}, r"^here: data\.labels = 'colour': input should be 'binary', 'index', "),
        ({"data.scale": 0}, r"^here: data\.scale = 0: input should be greater than 0\.$"),
        ({"data.std": [0.0]}, r"^here: data\.std\.0 = 0\.0: input should be greater than 0\.$"),
        ({"data.colors": [[0, 0, 0], [0, 0, 300]]}, r"^here: data\.colors\.1\.2 = 300: "),
        ({"seed": -1}, r"^here: seed = -1: input should be greater than or equal to 0\.$"),
        ({"seed": 2**63}, r"^here: seed = 9223372036854775808: input should be less than "),
        ({"model": 3}, r"^here: model = 3: input should be a valid dictionary"),
        ({"model.output_stride": 4}, r"^here: model\.output_stride = 4: input should be 8, 16 or 32\.$"),
        ({"model.pretrained": None}, r"^here: model\.pretrained = None: input should be a valid boolean"),
        ({"train.schedule": 3}, r"^here: train\.schedule = 3: input should be a valid list"),
        ({"train.schedule": [{"parts": "all", "share": 1}]}, r"^here: train\.schedule\.0\.rate is missing\.$"),
        (
            {"train.schedule": [{"parts": 3, "share": 1, "rate": 1}]},
            r"^here: train\.schedule\.0\.parts = 3: input should be a valid string\.$",
        ),
        (
            {"train.schedule": [{"parts": "all", "share": 0, "rate": 1}]},
            r"^here: train\.schedule\.0\.share = 0: input should be greater than 0\.$",
        ),
        (
            {"train.schedule": [{"parts": "all", "share": 1, "rate": 1, "shares": 2}]},
            r"^here: train\.schedule\.0\.shares is not a setting; did you mean share\?$",
        ),
        ({"loss.focal_gamma": -1}, r"^here: loss\.focal_gamma = -1: input should be greater than or equal to 0\.$"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_config(whole_tree(changes), "here")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["data.scale", "train.rate", "train.momentum", "train.balance", "augment.rotation", "model.dropout"]
)
def test_a_number_that_is_not_finite_is_refused(name: str, number: float) -> None:
    with pytest.raises(SettingError, match=rf"^settings: {name} = "):
        make_config(whole_tree({name: number}))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_mean_that_is_not_finite_is_refused(number: float) -> None:
    with pytest.raises(SettingError, match=r"^settings: data\.mean\.0 = (nan|inf): input should be a finite number"):
        make_config(whole_tree({"data.mean": [number]}))


def test_what_is_missing_is_named_and_five_problems_are_enough() -> None:
    tree = whole_tree()
    del tree["train"]["batch"]
    with pytest.raises(SettingError, match=r"^settings: train\.batch is missing\.$"):
        make_config(tree)
    with pytest.raises(SettingError, match=r"^settings: data is missing\. model is missing\. .*loss is missing\.$"):
        make_config({})
    with pytest.raises(SettingError) as caught:
        make_config({"data": {}})
    assert str(caught.value).count("is missing.") == 5


# Files


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"none\.toml: cannot be read \(.*No such file"):
        parse_overrides(tmp_path / "none.toml", [])
    with pytest.raises(SettingError, match=r": cannot be read \("):
        read_toml(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[train\nbatch = 4", r"mine\.toml: is not valid TOML: .*line 1"),
        (b"batch = ", r"mine\.toml: is not valid TOML: "),
        (b"name = '\xff'", r"mine\.toml: cannot be read \(.*utf-8"),
    ],
)
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(SettingError, match=message):
        read_toml(path)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(mark + "[data]\r\nclasses = ['ä']\r\n".encode())
    assert read_toml(path) == {"data": {"classes": ["ä"]}}


@pytest.mark.parametrize(("names", "problem"), [(["seed = 1"], "data is missing"), (["[data]"], "is missing")])
def test_a_run_with_half_a_config_names_the_file(tmp_path: Path, names: Sequence[str], problem: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text("\n".join(names))
    with pytest.raises(SettingError, match=rf"config\.toml: .*{problem}"):
        read_config(path)


def test_a_config_reads_well_at_the_prompt() -> None:
    told = repr(make_config(whole_tree({"train.patch": 64, "train.batch": 3, "train.epochs": 7}), "here"))
    assert told.startswith("Config(segment: unet")
    assert told.endswith("; 3 patches of 64 x 64 a step; 7 epochs)")
