"""Weights of a file in an encoder: files as torchvision, timm, Lightning, MoCo, DINO and others write them."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from pixelwise.backbones import load_weights, make_backbone
from pixelwise.backbones.fitting import fold
from pixelwise.core.errors import SettingError


def randomised(network: nn.Module) -> nn.Module:
    """The same network with statistics and scales that no fresh one has."""
    torch.manual_seed(4)
    for name, values in network.state_dict().items():
        if values.is_floating_point() and values.ndim == 1:
            values.copy_(torch.rand_like(values) * 0.5 + (0.5 if name.endswith(("weight", "var")) else 0.0))
    return network.eval()


def pyramid(network: Any, images: Tensor) -> list[Tensor]:
    """The features of torchvision's ResNet."""
    values = network.relu(network.bn1(network.conv1(images)))
    features = [values]
    values = network.maxpool(values)
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        values = layer(values)
        features.append(values)
    return features


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return randomised(torchvision.models.resnet18(weights=None))


def saved(weights: Any, path: Path) -> Path:
    torch.save(weights, path)
    return path


def before_all(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in weights.items()}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision(name: str, tmp_path: Path) -> None:
    theirs = randomised(getattr(torchvision.models, name)(weights=None))
    path = saved(theirs.state_dict(), tmp_path / f"{name}.pth")
    backbone = make_backbone(name).eval()
    loaded = load_weights(backbone, path)
    assert (loaded.taken, loaded.how, loaded.left) == (loaded.wanted, "by name", ("fc.weight", "fc.bias"))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for feature, other in zip(backbone(images), pyramid(theirs, images), strict=True):
            torch.testing.assert_close(feature, other, rtol=1e-4, atol=1e-4)


def test_what_is_told(resnet18: nn.Module, tmp_path: Path) -> None:
    path = saved(resnet18.state_dict(), tmp_path / "weights.pth")
    loaded = load_weights(make_backbone("resnet18", in_channels=1), path)
    assert str(loaded) == (
        f"resnet18 starts with the weights of a file ({path}, {path.stat().st_size / 1e6:.1f} MB, SHA-256 "
        f"{loaded.sha256[:8]}...): 100 of its 100 tensors were taken by name, 2 of the file were left (fc.weight, "
        f"fc.bias); its first layer is folded to 1 channel(s)."
    )


@pytest.mark.parametrize(
    ("content", "how"),
    [
        (lambda w: before_all("module.", w), "by name, below module."),
        (lambda w: before_all("encoder.", w) | {"decoder.a.weight": torch.ones(2)}, "by name, below encoder."),
        (lambda w: {"state_dict": before_all("model.encoder.", w), "epoch": 2}, "by name, below state_dict.model.enc"),
        (lambda w: {"state_dict": before_all("module.encoder_q.", w)}, "by name, below state_dict.module.encoder_q."),
        (lambda w: before_all("module.base_encoder.", w), "by name, below module.base_encoder."),
        (
            lambda w: {"student": before_all("module.backbone.", w), "teacher": before_all("backbone.", w)},
            "by name, below teacher.backbone.",
        ),
        (lambda w: {n: v for n, v in w.items() if not n.endswith("num_batches_tracked")}, "by name"),
        (lambda w: {f"x{i}.{n.rpartition('.')[2]}": v for i, (n, v) in enumerate(w.items())}, "by order"),
        (lambda w: {n: v.half() for n, v in w.items()}, "by name"),
    ],
)
def test_files_that_people_have(content: Any, how: str, resnet18: nn.Module, tmp_path: Path) -> None:
    weights = resnet18.state_dict()
    backbone = make_backbone("resnet18")
    loaded = load_weights(backbone, saved(content(weights), tmp_path / "weights.pth"))
    assert loaded.how.startswith(how)
    assert loaded.taken == loaded.wanted
    for name, values in backbone.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(values, weights[name.removeprefix("network.")], rtol=1e-3, atol=1e-3)


def test_a_file_of_timm_whose_extractor_renames_layers(tmp_path: Path) -> None:
    theirs = randomised(timm.create_model("test_convnext"))
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    backbone = make_backbone("test_convnext").eval()
    assert load_weights(backbone, tmp_path / "weights.safetensors").how == "by name"
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)[0], theirs.forward_intermediates(images)[1][0])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("alexnet", {"norm": "none"}),
        ("vgg16", {"width": 8}),
        ("vgg16", {"width": 8, "norm": "group"}),
        ("googlenet", {}),
        ("lenet", {}),
    ],
)
def test_our_own_encoders(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    theirs, ours = make_backbone(name, **settings), make_backbone(name, **settings)
    loaded = load_weights(ours, saved(before_all("backbone.", theirs.state_dict()), tmp_path / "weights.pth"))
    assert loaded.taken == loaded.wanted
    assert all(torch.equal(values, theirs.state_dict()[key]) for key, values in ours.state_dict().items())


def test_an_encoder_cut_short_takes_what_it_has(resnet18: nn.Module, tmp_path: Path) -> None:
    backbone = make_backbone("resnet18", depth=2)
    loaded = load_weights(backbone, saved(resnet18.state_dict(), tmp_path / "weights.pth"))
    assert loaded.taken == loaded.wanted < 100
    assert "layer4.0.conv1.weight" in loaded.left


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_a_grey_image_is_seen_as_before(channels: int, resnet18: nn.Module, tmp_path: Path) -> None:
    path = saved(resnet18.state_dict(), tmp_path / "weights.pth")
    backbone = make_backbone("resnet18", in_channels=channels).eval()
    load_weights(backbone, path)
    grey = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        found = backbone(grey.expand(-1, channels, -1, -1))[-1]
        torch.testing.assert_close(found, pyramid(resnet18, grey.expand(-1, 3, -1, -1))[-1], rtol=1e-3, atol=1e-3)


def test_further_channels_get_the_mean() -> None:
    weight = torch.randn(5, 3, 2, 2)
    folded = fold(weight, 4)
    torch.testing.assert_close(folded[:, :3], weight * 0.75)
    torch.testing.assert_close(folded[:, 3], weight.mean(dim=1) * 0.75)
    assert fold(weight, 3) is weight


def test_a_few_tensors_may_start_afresh(resnet18: nn.Module, tmp_path: Path) -> None:
    weights = {name: value for name, value in resnet18.state_dict().items() if not name.startswith("layer4.1.bn2")}
    loaded = load_weights(make_backbone("resnet18"), saved(weights, tmp_path / "weights.pth"))
    assert (loaded.taken, loaded.wanted, len(loaded.afresh)) == (96, 100, 4)
    assert "4 start afresh (layer4.1.bn2.weight, layer4.1.bn2.bias, " in str(loaded)


def refused(name: str, weights: Any, message: str, path: Path, **settings: Any) -> None:
    """Loading says so, and leaves the encoder as it was."""
    backbone = make_backbone(name, **settings)
    before = {key: values.clone() for key, values in backbone.state_dict().items()}
    saved(weights, path)
    with pytest.raises(SettingError, match=rf"^model\.weights: the weights of {path} do not fit {name}: {message}"):
        load_weights(backbone, path)
    assert all(torch.equal(values, before[key]) for key, values in backbone.state_dict().items())


def test_another_network(resnet18: nn.Module, tmp_path: Path) -> None:
    message = (
        r"0 of its \d+ tensors are in the file; \d+ missing: conv_stem\.weight, .*, \.\.\.; 4 of another shape: "
        r"bn1\.weight \(64 instead of 32\), .*; \d+ in the file alone: conv1\.weight, .*\. "
        r"Use another backbone, or leave model\.weights out\.$"
    )
    path = tmp_path / "weights.pth"
    with pytest.raises(SettingError, match=message):
        load_weights(make_backbone("mobilenetv2_100"), saved(resnet18.state_dict(), path))


def test_a_wider_network(resnet18: nn.Module, tmp_path: Path) -> None:
    message = (
        r"\d+ of its \d+ tensors are in the file; \d+ missing: .*; \d+ of another shape: .* \(64 x 64 x 3 x 3 inst"
    )
    refused("resnet50", resnet18.state_dict(), message, tmp_path / "weights.pth")


def test_a_deeper_network(tmp_path: Path) -> None:
    weights = timm.create_model("resnet34").state_dict()
    message = (
        r"80 more tensors stand in the same parts of the file, as of a deeper network or of another normalisation: "
    )
    refused("resnet18", weights, message, tmp_path / "weights.pth")


def test_another_normalisation(resnet18: nn.Module, tmp_path: Path) -> None:
    message = r"\d+ more tensors stand in the same parts of the file, as of .* another normalisation: bn1\.running_mean"
    refused("resnet18", resnet18.state_dict(), message, tmp_path / "weights.pth", norm="group")


def test_biases_are_no_weights(resnet18: nn.Module, tmp_path: Path) -> None:
    """By order, kinds must agree and not shapes alone."""
    swap = {"weight": "bias", "bias": "weight"}
    names = [(f"x{i}", n.rpartition(".")[2]) for i, n in enumerate(resnet18.state_dict())]
    values = resnet18.state_dict().values()
    weights = {f"{a}.{swap.get(b, b)}": v for (a, b), v in zip(names, values, strict=True)}
    refused("resnet18", weights, "0 of its 100 tensors are in the file", tmp_path / "weights.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value: float, resnet18: nn.Module, tmp_path: Path) -> None:
    weights = {name: values.clone() for name, values in resnet18.state_dict().items()}
    weights["conv1.weight"][0, 0, 0, 0] = value
    message = r"1 of its tensors hold values that are not finite: conv1\.weight\."
    refused("resnet18", weights, message, tmp_path / "weights.pth")


def test_whole_numbers_are_no_weights(resnet18: nn.Module, tmp_path: Path) -> None:
    weights = {**resnet18.state_dict(), "conv1.weight": torch.ones(64, 3, 7, 7, dtype=torch.int8)}
    message = r"conv1\.weight holds int8 values of another form than plain numbers\."
    refused("resnet18", weights, message, tmp_path / "weights.pth")


def test_a_first_layer_that_cannot_be_folded(tmp_path: Path) -> None:
    """Blocks of pixels are this network's channels: which of them is which colour, its weights do not tell."""
    weights = timm.create_model("tresnet_m").state_dict()
    message = (
        r"the first layer body\.conv1\.conv\.weight \(64 x 48 x 3 x 3 instead of 64 x 16 x 3 x 3\) cannot be folded"
    )
    refused("tresnet_m", weights, message, tmp_path / "weights.pth", in_channels=1)
