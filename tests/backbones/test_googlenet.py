"""GoogLeNet against torchvision."""

import pytest
import torch
import torchvision
from torch import nn

from pixelwise.backbones.googlenet import GoogLeNetBackbone, make_googlenet
from pixelwise.core.errors import SettingError


def test_the_features_are_those_inside_torchvisions_network() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.GoogLeNet(num_classes=7, aux_logits=False, init_weights=False).eval()
    ours = GoogLeNetBackbone().eval()
    unused = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert (unused.missing_keys, unused.unexpected_keys) == ([], ["fc.weight", "fc.bias"])
    found: dict[str, torch.Tensor] = {}
    for name in ("conv1", "conv3", "inception3b", "inception4e", "inception5b"):
        theirs.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: found.__setitem__(name, output)
        )
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        theirs(images)
        features = ours(images)
    for feature, expected in zip(features, found.values(), strict=True):
        torch.testing.assert_close(feature, expected, rtol=0, atol=1e-6)


def test_it_is_published_with_6624904_parameters() -> None:
    """torchvision.models.GoogLeNet_Weights says so, without the auxiliary classifiers."""
    with torch.device("meta"):
        network = make_googlenet()
    published = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.meta["num_params"]
    assert sum(parameter.numel() for parameter in network.parameters()) == published == 6624904


def test_group_norm() -> None:
    with torch.device("meta"):
        backbone = GoogLeNetBackbone(norm="group")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert sum(isinstance(module, nn.GroupNorm) for module in backbone.modules()) == 57


def test_it_cannot_be_dilated() -> None:
    message = (
        r"^model\.output_stride: googlenet cannot be dilated to an output stride of 8: leave it out, or use a backbone "
        r"such as vgg16 or resnet50\.$"
    )
    with pytest.raises(SettingError, match=message):
        GoogLeNetBackbone(output_stride=8)
    assert GoogLeNetBackbone(output_stride=32).stride == 32
