"""The classifier of patches at every pixel, sliding, and the casting of classifiers to convolutions."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import alexnet, vgg16

from pixelwise.backbones import make_classifier
from pixelwise.core.errors import ModelError, SettingError
from pixelwise.geometry.probing import probe_geometry
from pixelwise.geometry.reach import Geometry
from pixelwise.models.segmentation.patch import PATCH, Patch, convolutionalize, slide


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lively(in_channels: int = 1, **keywords: object) -> Patch:
    """A small network in eval mode whose batch norm has figures of its own."""
    torch.manual_seed(0)
    network = Patch(in_channels, num_classes=3, **{"width": 3, "hidden": 5} | keywords)
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(2, in_channels, 20, 20))
    return network.eval()


# The network


@pytest.mark.parametrize("norm", ["batch", "none"])
@settings(max_examples=4, deadline=None)
@given(height=st.integers(1, 14), width=st.integers(1, 14), in_channels=st.integers(1, 3))
def test_every_pixel_gets_what_its_patch_gets(norm: str, height: int, width: int, in_channels: int) -> None:
    network, images = lively(in_channels, norm=norm), draw(2, in_channels, height, width)
    with torch.inference_mode():
        expected = slide(network.classifier, F.pad(images, (32, 32, 32, 32)), PATCH)
        result = network(images)
    assert result.shape == (2, 3, height, width)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def test_far_from_the_border_there_are_no_zeros() -> None:
    """What it says of a pixel in the middle is what its classifier says of the 65 x 65 pixels around it."""
    network, images = lively(), draw(1, 1, 80, 75)
    with torch.inference_mode():
        logits = network(images)[0, :, 40, 36]
        expected = network.classifier(images[..., 40 - 32 : 40 + 33, 36 - 32 : 36 + 33])[0]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_the_arithmetic_leaves_no_rest() -> None:
    classifier, sides = Patch(width=1, hidden=1).classifier, []
    values = torch.zeros(2, 1, PATCH, PATCH)
    for layer in classifier[:12]:
        values = layer(values)
        sides.append(values.shape[-1])
    assert sides == [62, 62, 62, 31, 28, 28, 28, 14, 10, 10, 10, 5]


def test_parameters() -> None:
    network = Patch(norm="none")
    convolutions = (16 * 1 + 1) * 48 + (16 * 48 + 1) * 48 + (25 * 48 + 1) * 48
    dense = (25 * 48 + 1) * 200 + (200 + 1) * 2
    assert sum(parameter.numel() for parameter in network.parameters()) == convolutions + dense == 335_978
    assert sum(parameter.numel() for parameter in network.classifier.parameters()) == 335_978


def test_it_sees_half_a_patch() -> None:
    geometry = Geometry(stride=1, halo=32, margin=32)
    assert Patch().geometry == geometry
    assert probe_geometry(lively(), channels=1, largest=256).geometry == geometry


def test_its_classifier_is_a_copy() -> None:
    network = lively()
    before = network(draw(1, 1, 3, 3))
    for values in network.classifier.state_dict().values():
        values.zero_()
    assert torch.equal(network(draw(1, 1, 3, 3)), before)
    assert not network.classifier.training
    assert network.train().classifier.training


def test_every_parameter_gets_a_gradient() -> None:
    network = Patch(in_channels=2, width=4, hidden=6)
    network(draw(2, 2, 9, 8)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_its_encoder_is_what_comes_before_the_dense_layers() -> None:
    network = Patch(width=4, hidden=6)
    kernels = [module.kernel_size[0] for module in network.encoder() if isinstance(module, nn.Conv2d)]
    assert kernels == [4, 4, 5]
    assert [module.kernel_size for module in network.modules() if isinstance(module, nn.Conv2d)][3:] == [(5, 5), (1, 1)]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"norm": "group"}, r'model.norm: must be "batch" or "none", not \'group\': statistics of the image'),
        ({"dropout": 1.0}, r"model.dropout: must be a probability from 0 to below 1, not 1.0"),
        ({"width": 0}, r"model.width: must be at least 1, not 0"),
        ({"hidden": 0}, r"model.hidden: must be at least 1, not 0"),
    ],
)
def test_settings_that_make_no_sense(keywords: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Patch(**keywords)


# Sliding


def test_sliding_is_what_it_says() -> None:
    images, classifier = draw(2, 3, 9, 12), nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 5))
    result = slide(classifier, images, patch=4, stride=3)
    assert result.shape == (2, 5, 2, 3)
    for row in range(2):
        for column in range(3):
            window = images[..., 3 * row : 3 * row + 4, 3 * column : 3 * column + 4]
            torch.testing.assert_close(result[..., row, column], classifier(window))


def test_sliding_refuses() -> None:
    with pytest.raises(SettingError, match="stride: must be at least 1 pixel, not 0"):
        slide(nn.Flatten(), torch.zeros(1, 1, 9, 9), patch=3, stride=0)
    with pytest.raises(ModelError, match=r"a window of 10 x 10 pixels does not fit into images of 12 x 9: pad the"):
        slide(nn.Flatten(), torch.zeros(1, 1, 12, 9), patch=10)


# Casting


def test_a_dense_layer_on_a_pixel_is_a_1x1_convolution() -> None:
    """The same weights as a dense layer at each pixel and as a convolution."""
    dense, images = nn.Linear(3, 5), draw(2, 3, 4, 6)
    network = convolutionalize(nn.Sequential(nn.Flatten(), dense), image_size=1)
    assert network[0].kernel_size == (1, 1)
    torch.testing.assert_close(network(images), dense(images.movedim(1, -1)).movedim(-1, 1))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_casting_equals_sliding(data: st.DataObject) -> None:
    """Random classifiers without padding, whatever rests their steps leave, on random images."""
    number = st.integers(1, 3)
    layers: list[nn.Module] = []
    channels = in_channels = data.draw(number)
    stride, size = 1, data.draw(st.integers(14, 24))
    image_size = size
    for _ in range(data.draw(number)):
        step, kernel, dilation = data.draw(number), data.draw(number), data.draw(st.integers(1, 2))
        options = [
            nn.Conv2d(channels, 4, kernel, step, dilation=dilation, bias=bool(kernel % 2)),
            nn.MaxPool2d(kernel, step, dilation=dilation),
            nn.AvgPool2d(dilation * (kernel - 1) + 1, step),
        ]
        layer = data.draw(st.sampled_from(options))
        after = (size - dilation * (kernel - 1) - 1) // step + 1
        if after < 1:
            break
        channels = 4 if isinstance(layer, nn.Conv2d) else channels
        layers += [layer, nn.BatchNorm2d(channels), nn.ReLU()]
        stride, size = stride * step, after
    dense = nn.Linear(channels * size**2, 6)
    head = nn.Sequential(nn.Dropout(), nn.Flatten(), dense, nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2, bias=False))
    classifier = nn.Sequential(nn.Sequential(*layers), head)
    with torch.no_grad():
        classifier(draw(8, in_channels, image_size, image_size))
    classifier.eval()
    images = draw(2, in_channels, image_size + data.draw(st.integers(0, 9)), image_size + data.draw(st.integers(0, 9)))
    with torch.inference_mode():
        expected = slide(classifier, images, image_size, stride)
        result = convolutionalize(classifier, image_size)(images)
    assert 0 <= result.shape[2] - expected.shape[2] <= 1
    assert 0 <= result.shape[3] - expected.shape[3] <= 1
    result = result[..., : expected.shape[2], : expected.shape[3]]
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("pooling", [nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)], ids=["mean", "maximum"])
def test_a_pooling_to_one_pixel_becomes_a_plain_one(pooling: nn.Module) -> None:
    classifier = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), pooling, nn.Flatten(), nn.Linear(4, 3))
    images = draw(1, 2, 15, 17)
    torch.testing.assert_close(convolutionalize(classifier, 11)(images), slide(classifier, images, 11, stride=2))


def test_the_mode_stays_and_the_weights_are_copies() -> None:
    classifier = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    network = convolutionalize(classifier, 3)
    assert not any(module.training for module in network.modules())
    assert convolutionalize(classifier.train(), 3).training
    theirs = {tensor.data_ptr() for tensor in classifier.state_dict().values()}
    assert not theirs & {tensor.data_ptr() for tensor in network.state_dict().values()}
    assert all(parameter.requires_grad for parameter in network.parameters())


class Small(nn.Module):
    """The layout of torchvision's AlexNet, with padding; `bend` is something that no child shows."""

    def __init__(self, size: int = 3, bend: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 5, stride=2, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.avgpool = nn.AdaptiveAvgPool2d(size)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(4 * size**2, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))
        self.bend = bend

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images).sin() if self.bend else self.features(images)
        return self.classifier(self.avgpool(features).flatten(1))


def test_the_layout_of_torchvision() -> None:
    """With padding the two agree at the classifier's own size; the adaptive pooling is the identity there."""
    classifier, image = Small().train(), draw(1, 1, 15, 15)
    classifier.features.eval()
    network = convolutionalize(classifier, 15)
    assert (classifier.training, classifier.features.training, network.training) == (True, False, True)
    torch.testing.assert_close(network.eval()(image), classifier.eval()(image)[..., None, None])
    assert network(draw(1, 1, 40, 23)).shape == (1, 3, 7, 3)


@pytest.mark.parametrize(("name", "side"), [("lenet", 32), ("alexnet_paper", 227)])
def test_our_own_classifiers(name: str, side: int) -> None:
    """LeNet pads nothing, so it slides, 4 pixels a step; the paper's AlexNet agrees at its own size."""
    torch.manual_seed(0)
    classifier = make_classifier(name, in_channels=1, num_classes=10, width=16).eval()
    images = draw(1, 1, side + 8, side + 4) if name == "lenet" else draw(1, 1, side, side)
    with torch.inference_mode():
        expected = slide(classifier, images, side, stride=4)
        result = convolutionalize(classifier, side)(images)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize(
    ("build", "channels", "side", "parameters"), [(alexnet, 256, 6, 61_100_840), (vgg16, 512, 7, 138_357_544)]
)
def test_torchvisions_alexnet_and_vgg16(
    build: Callable[[], nn.Module], channels: int, side: int, parameters: int
) -> None:
    """Their parameters, the kernels of their dense layers, and the sizes that they give; no values."""
    with torch.device("meta"):
        network = convolutionalize(build(), 224)
        assert network(torch.zeros(1, 3, 224, 224)).shape == (1, 1000, 1, 1)
        assert network(torch.zeros(1, 3, 512, 256)).shape == (1, 1000, 10, 2)
    dense = [(layer.in_channels, layer.kernel_size) for layer in network if isinstance(layer, nn.Conv2d)][-3:]
    assert dense == [(channels, (side, side)), (4096, (1, 1)), (4096, (1, 1))]
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


CONVOLUTION, FLATTEN = nn.Conv2d(1, 2, 3), nn.Flatten()  # 5 x 5 -> 2 x 3 x 3


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([CONVOLUTION, nn.AdaptiveAvgPool2d(2), FLATTEN, nn.Linear(8, 2)],
         r"1 \(AdaptiveAvgPool2d\) has no convolutional form: it pools 3 x 3 to 2 x 2 pixels, and would pool other"),
        ([CONVOLUTION, nn.GroupNorm(1, 2), FLATTEN, nn.Linear(18, 2)],
         r"1 \(GroupNorm\) has no convolutional form: only convolutions, poolings, batch norm, activations, dropout"),
        ([CONVOLUTION, nn.Linear(3, 2)],
         r"1 \(Linear\) has no convolutional form: a dense layer takes the values of a whole map: put nn.Flatten bef"),
        ([CONVOLUTION, FLATTEN, nn.Linear(18, 4), nn.MaxPool2d(2)],
         r"3 \(MaxPool2d\) has no convolutional form: it comes after nn.Flatten, which leaves no map"),
        ([CONVOLUTION, FLATTEN, nn.BatchNorm1d(18), nn.Linear(18, 4)],
         r"2 \(BatchNorm1d\) has no convolutional form: put it after the first dense layer, where each value is one p"),
        ([CONVOLUTION, FLATTEN, nn.Sequential(nn.Linear(32, 4))],
         r"2.0 takes 32 values, but gets 2 x 3 x 3 = 18: give the image_size that the classifier was made for"),
        ([CONVOLUTION, nn.Conv2d(2, 2, 4), FLATTEN, nn.Linear(2, 2)],
         r"1 \(Conv2d\) cannot take 2 x 3 x 3: .*; give the image_size that the classifier was made for"),
        ([CONVOLUTION], "the classifier ends with 2 x 3 x 3 for images of 5 x 5, not with one value for each class:"),
        ([nn.ReLU(), FLATTEN], "the classifier has neither a convolution nor a dense layer: give one that has"),
    ],
)  # fmt: skip
def test_what_cannot_be_cast_is_named(layers: list[nn.Module], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        convolutionalize(nn.Sequential(*layers), 5)


def test_modules_whose_order_is_unknown_are_refused() -> None:
    message = "Linear: cannot tell in which order its children are applied: give an nn.Sequential, .* not none"
    with pytest.raises(ModelError, match=message):
        convolutionalize(nn.Linear(2, 2), 1)
    other = Small()
    other.neck = nn.ReLU()
    with pytest.raises(ModelError, match=r"Small: cannot tell .* not features, avgpool, classifier, neck"):
        convolutionalize(other, 15)
    with pytest.raises(ModelError, match="Small: its forward does more than apply features, avgpool, flatten, classif"):
        convolutionalize(Small(bend=True), 15)
    with pytest.raises(ModelError, match=r"avgpool \(AdaptiveAvgPool2d\) .* it pools 3 x 3 to 2 x 2 pixels"):
        convolutionalize(Small(size=2), 15)
    with pytest.raises(SettingError, match=r"model.image_size: must be at least 1, not 0"):
        convolutionalize(Small(), 0)
