"""timm's encoders as backbones: padding, output strides, and encoders that are none."""

import pytest
import timm
import torch
from torch import nn

from pixelwise.backbones.encoders import Encoder
from pixelwise.core.errors import SettingError


def test_the_features_are_timms() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("resnet18", features_only=True, pretrained=False, in_chans=2).eval()
    ours = Encoder("resnet18", in_channels=2).eval()
    ours.network.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 2, 64, 96)
    for feature, expected in zip(ours(images), theirs(images), strict=True):
        torch.testing.assert_close(feature, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("resnet18", [2, 4, 8, 16, 32]),
        ("convnext_atto", [4, 8, 16, 32]),
        ("vgg11_bn", [1, 2, 4, 8, 16, 32]),
    ],
)
def test_the_strides_double_until_the_output_stride(name: str, strides: list[int]) -> None:
    with torch.device("meta"):
        assert Encoder(name).strides == strides


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [("resnet18", 8), ("resnet18", 16), ("mobilenetv2_100", 16), ("mobilenetv3_small_100", 8)],
)
def test_an_output_stride(name: str, output_stride: int) -> None:
    with torch.device("meta"):
        backbone = Encoder(name, output_stride=output_stride).eval()
    assert backbone.strides == [min(stride, output_stride) for stride in (2, 4, 8, 16, 32)]
    sizes = [feature.shape[-2:] for feature in backbone(torch.zeros(1, 3, 33, 47, device="meta"))]
    assert sizes == [(-(-33 // stride), -(-47 // stride)) for stride in backbone.strides]


def test_unpadded_layers_get_padding_and_padded_ones_do_not() -> None:
    with torch.device("meta"):
        unpadded = timm.create_model("inception_resnet_v2", features_only=True, pretrained=False)
        network = Encoder("inception_resnet_v2", in_channels=1).network
    changed = 0
    for ours, theirs in zip(network.modules(), unpadded.modules(), strict=True):
        if not isinstance(ours, nn.Conv2d | nn.MaxPool2d):
            continue
        kernel = ours.kernel_size if isinstance(ours.kernel_size, tuple) else (ours.kernel_size,) * 2
        assert ours.padding in ((kernel[0] // 2, kernel[1] // 2), kernel[0] // 2)
        changed += ours.padding not in (theirs.padding, (theirs.padding,) * 2)
    assert changed == 12  # three convolutions and two poolings of the stem, seven layers of the two reductions
    assert list(unpadded.state_dict()) == list(network.state_dict())


def test_an_encoder_with_group_norm_trains_on_one_cell() -> None:
    torch.manual_seed(0)
    backbone = Encoder("test_resnet", norm="group")
    backbone(torch.randn(1, 3, 16, 16))[-1].sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_an_encoder_in_training_keeps_training() -> None:
    backbone = Encoder("test_resnet")
    assert all(module.training for module in backbone.modules())
    assert not next(module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)).num_batches_tracked


def test_a_part_of_an_encoder_is_built_in_inference_mode_too() -> None:
    with torch.inference_mode():
        backbone = Encoder("test_resnet", depth=2)
    assert backbone.strides == [2, 4, 8]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_tiny_patch16_224", "its features have the strides 16, 16, 16.*"),
        ("mixer_s16_224", ".+"),
        ("swin_tiny_patch4_window7_224", ".+"),
    ],
)
def test_an_encoder_without_a_pyramid(name: str, reason: str) -> None:
    message = (
        rf"^model\.backbone: the features of '{name}' do not halve from one to the next for images of every size "
        rf"\({reason}\): use a convolutional encoder, such as resnet18, resnet50, mobilenetv2_100, "
        r"mobilenetv3_small_100, inception_resnet_v2, darknet53\.$"
    )
    with torch.device("meta"), pytest.raises(SettingError, match=message):
        Encoder(name)


@pytest.mark.parametrize("name", ["inception_resnet_v2", "vgg11"])
def test_an_encoder_without_that_output_stride(name: str) -> None:
    message = (
        rf"^model\.output_stride: '{name}' cannot keep a stride of 8 \(.+\): leave it out, or use a backbone such as "
        r"vgg16 or resnet50\.$"
    )
    with torch.device("meta"), pytest.raises(SettingError, match=message):
        Encoder(name, output_stride=8)
