"""Backbones and classifiers by name: published parameter counts, and names that nothing has."""

import subprocess
import sys

import pytest
import torch
import torchvision

from pixelwise.backbones import BACKBONES, make_backbone, make_classifier
from pixelwise.backbones.factory import OWN
from pixelwise.core.errors import SettingError

PUBLISHED = {
    "alexnet": torchvision.models.AlexNet_Weights.IMAGENET1K_V1.meta["num_params"],
    "vgg16": torchvision.models.VGG16_Weights.IMAGENET1K_V1.meta["num_params"],
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["num_params"],
    "googlenet": torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.meta["num_params"],
    "mobilenetv2_100": torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["num_params"],
    "mobilenetv3_small_100": torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.meta["num_params"],
}


def parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make_classifier(name).parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_torchvision_publishes(name: str) -> None:
    assert parameters(name) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "count"),
    [("alexnet", 61100840), ("vgg16", 138357544), ("resnet50", 25557032), ("googlenet", 6624904)],
)
def test_parameters_that_the_lectures_name(name: str, count: int) -> None:
    assert PUBLISHED[name] == count


@pytest.mark.parametrize(("name", "millions"), [("darknet53", 41.61), ("inception_resnet_v2", 55.84)])
def test_parameters_are_those_of_timms_table_of_results(name: str, millions: float) -> None:
    """results-imagenet.csv of timm, in millions."""
    assert parameters(name) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("name", ["lenet", "alexnet_paper"])
def test_classifiers_of_few_channels_classes_and_filters(name: str) -> None:
    classifier = make_classifier(name, in_channels=2, num_classes=5, width=4)
    assert classifier(torch.zeros(1, 2, classifier.side, classifier.side)).shape == (1, 5)


@pytest.mark.parametrize("name", ["googlenet", "resnet18"])
def test_classifiers_with_global_pooling_take_any_size(name: str) -> None:
    classifier = make_classifier(name, in_channels=2, num_classes=5).eval()
    assert classifier(torch.zeros(1, 2, 64, 70)).shape == (1, 5)


def test_the_list_begins_with_ours() -> None:
    assert BACKBONES[: len(OWN)] == OWN == ("lenet", "alexnet", "alexnet_paper", "vgg16", "googlenet")


def test_importing_the_package_does_not_import_timm() -> None:
    code = "import pixelwise.backbones, sys; print([m for m in ('timm', 'torchvision') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("make", [make_backbone, make_classifier])
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vgg61", "did you mean .*vgg16"),
        ("lennet", "did you mean .*lenet"),
        ("resnet49", "did you mean .*resnet"),
        ("?", "choose from: lenet, alexnet, .*, darknet53, or any of timm.list_models"),
        ("hf-hub:timm/resnet18", ".*"),
    ],
)
def test_a_name_that_nothing_has(make: object, name: str, hint: str) -> None:
    with pytest.raises(SettingError, match=rf"^model\.backbone: unknown backbone '{name.replace('?', '[?]')}'; {hint}"):
        make(name)


@pytest.mark.parametrize("make", [make_backbone, make_classifier])
@pytest.mark.parametrize("name", ["googlenet", "resnet18"])
def test_a_width_where_there_is_none(make: object, name: str) -> None:
    message = (
        rf"^model\.width: {name} has only its published width: leave it out, or use one of lenet, alexnet, "
        r"alexnet_paper, vgg16\.$"
    )
    with pytest.raises(SettingError, match=message):
        make(name, width=32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_channels": 0}, r"^model\.in_channels: must be at least 1, not 0\.$"),
        ({"norm": "bach"}, r"^model\.norm: unknown normalisation 'bach'; did you mean batch\?$"),
        ({"output_stride": 4}, r"^model\.output_stride: must be 8, 16 or 32 pixels, not 4\.$"),
    ],
)
def test_arguments_that_no_backbone_takes(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_backbone("vgg16", width=4, **settings)


def test_a_classifier_needs_channels_and_classes() -> None:
    message = r"^a classifier needs at least one channel and one class, not 3 and 0\.$"
    with pytest.raises(SettingError, match=message):
        make_classifier("lenet", 3, 0)
