"""Group norm in place of batch norm."""

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from pixelwise.backbones.norms import replace_batch_norms
from pixelwise.core.errors import SettingError


def test_every_batch_norm_becomes_a_group_norm_that_starts_as_it_did() -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", features_only=True, pretrained=False)
    before = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    replace_batch_norms(network, "test_resnet", "group")
    after = {name: module for name, module in network.named_modules() if isinstance(module, nn.GroupNorm)}
    assert before.keys() == after.keys()
    for name, old in before.items():
        assert torch.equal(after[name].weight, old.weight)
        assert after[name].num_channels == old.num_features
    assert any(not old.weight.any() for old in before.values())  # timm starts the ends of branches at zero


def test_an_activation_inside_a_batch_norm_stays() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), BatchNormAct2d(4))
    replace_batch_norms(network, "example", "group")
    images = torch.randn(2, 1, 8, 8)
    expected = torch.relu(nn.functional.group_norm(network[0](images), 4))
    torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-6)


def test_without_any_it_would_not_train() -> None:
    message = (
        r"^model\.norm: resnet18 cannot train without a normalisation, which keeps its sums and branches in range: "
        r'use "batch" or "group", or one of lenet, alexnet, alexnet_paper and vgg16\.$'
    )
    with pytest.raises(SettingError, match=message):
        replace_batch_norms(nn.BatchNorm2d(3), "resnet18", "none")


def test_a_network_without_batch_norm() -> None:
    message = (
        r'^model\.norm: convnext_tiny has no batch norm that group norm could replace: use "batch", which leaves it '
        r"as it is\.$"
    )
    with pytest.raises(SettingError, match=message):
        replace_batch_norms(nn.Sequential(nn.LayerNorm(3)), "convnext_tiny", "group")
