"""The U-Net's own figures and settings; what it shares with other networks is in the conformance suite."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

from pixelwise.core.errors import ModelError, SettingError
from pixelwise.geometry.probing import probe_geometry
from pixelwise.geometry.reach import Reach, output_size, parameters, round_up, transposed_output_size
from pixelwise.models import UNet
from pixelwise.prediction.tiling import plan_unpadded_tiles


def small(seed: int = 0, **keywords: Any) -> UNet:
    torch.manual_seed(seed)
    return UNet(**{"width": 4, "depth": 2} | keywords)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def literal_unet(network: UNet, images: Tensor) -> Tensor:
    """The form without padding, written out from the paper's figure on the network's own weights."""

    def convolve(features: Tensor) -> Tensor:
        return F.relu(F.conv2d(features, weights.pop(0), weights.pop(0)))

    weights = [tensor for name, tensor in network.state_dict().items() if name.startswith("contracting")]
    kept = [convolve(convolve(images))]
    for _ in range(network.depth):
        kept.append(convolve(convolve(F.max_pool2d(kept[-1], 2))))
    up = [tensor for name, tensor in network.state_dict().items() if name.startswith("up")]
    weights = [tensor for name, tensor in network.state_dict().items() if name.startswith("expanding")]
    features = kept.pop()
    for level in reversed(range(network.depth)):
        features = F.conv_transpose2d(features, up.pop(0), up.pop(0), stride=2)
        cut = (kept[level].shape[-1] - features.shape[-1]) // 2
        end = cut + features.shape[-1]
        features = convolve(convolve(torch.cat([kept[level][:, :, cut:end, cut:end], features], dim=1)))
    return F.conv2d(features, network.head.weight, network.head.bias)


def test_the_papers_network() -> None:
    """31,030,658 parameters in 23 convolution layers; 64 to 1024 channels; 572 -> 388."""
    with torch.device("meta"):
        network = UNet(padding="valid")
        convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
        assert network(torch.zeros(1, 1, 572, 572)).shape == (1, 2, 388, 388)
    assert sum(parameter.numel() for parameter in network.parameters()) == 31_030_658
    assert len(convolutions) == 23
    assert network.levels == [64, 128, 256, 512, 1024]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_form_without_padding_against_the_paper_written_out(depth: int) -> None:
    network = small(padding="valid", depth=depth, num_classes=3).double()
    size = network.input_size(10)
    images = draw(2, 1, size, size)
    torch.testing.assert_close(network(images), literal_unet(network, images), rtol=0, atol=1e-12)


def test_the_form_without_padding_is_the_middle_of_the_padded_one() -> None:
    """Far from the border padding makes no difference, once the grids of the two are laid on each other."""
    valid, same = small(padding="valid").double(), small(padding="same", norm="none").double()
    same.load_state_dict(valid.state_dict())
    size = valid.input_size(20)
    shift = -(2 + 4) % 4  # its first poolings begin after 2 and 2 + 4 pixels: that is where a grid of 4 must begin
    image = draw(1, 1, size + 80, size + 80)
    window = slice(40 - shift, 40 - shift + size)
    inner = slice(window.start + valid.geometry.margin, window.stop - valid.geometry.margin)
    expected = same(image)[..., inner, inner]
    torch.testing.assert_close(valid(image[..., window, window]), expected, rtol=0, atol=1e-10)


@given(st.integers(1, 6), st.integers(1, 3000))
@settings(deadline=None, max_examples=50)
def test_sizes_without_padding_against_walking_the_operators(depth: int, wanted: int) -> None:
    network = UNet(width=1, depth=depth, padding="valid", max_width=1)

    def walk(size: int) -> int | None:
        """Size of the logits, None where a pooling or a crop does not come out even."""
        for _ in range(depth):
            size = size - 4
            if size < 2 or size % 2:
                return None
            size = output_size(size, 2, stride=2)
        if size < 5:
            return None
        size -= 4
        for _ in range(depth):
            size = transposed_output_size(size, 2, stride=2) - 4
            if size < 1:
                return None
        return size

    smallest = network.input_size(wanted)
    assert network.output_size(smallest) == walk(smallest)
    assert network.output_size(smallest) >= wanted
    for size in range(max(1, smallest - 2**depth), smallest):
        expected = walk(size)
        assert expected is None or expected < wanted
        if expected is None:
            with pytest.raises(ModelError, match=f"cannot take a side of {size} pixels"):
                network.output_size(size)


def test_sizes_with_padding_are_the_images() -> None:
    assert small().output_size(17) == small().input_size(17) == 17


@pytest.mark.parametrize(("size", "choices"), [(573, "572 or 588"), (512, "508 or 524"), (100, "188, the smallest")])
def test_a_size_off_the_grid_names_the_nearest(size: int, choices: str) -> None:
    network = small(padding="valid", depth=4)
    with pytest.raises(
        ModelError, match=f"U-Net of depth 4 without padding cannot take a side of {size} pixels: use {choices}"
    ):
        network(torch.zeros(1, 1, 572, size))


def test_geometry_without_padding_is_what_probing_shows() -> None:
    """The halo around each output pixel, and the margin that is lost: no output depends on what lies beyond."""
    network = small(padding="valid").double().eval()
    margin, stride = network.geometry.margin, network.geometry.stride
    size = network.input_size(2 * network.geometry.halo + stride)
    start = round_up(size // 2, stride)
    probed = 0
    for pixel in range(start, start + stride):
        for amount in (torch.nan, 1.0, -1.0, 100.0):
            images = draw(1, 1, size, size)
            before = network(images)
            images[..., pixel, pixel] += amount
            changed = (network(images) != before).any(dim=1)[0].any(dim=0).nonzero()[:, 0] + margin
            probed = max(probed, int((changed - pixel).abs().max()))
    assert probed == network.geometry.halo == 23
    assert size - network.output_size(size) == 2 * margin


def test_tiles_without_padding() -> None:
    """Owned parts on the stride grid, each from its own window of the mirrored image, are the whole's logits."""
    network = small(padding="valid").double().eval()
    stride, margin = network.geometry.stride, network.geometry.margin
    mirrored = draw(1, 1, network.input_size(50), network.input_size(41))
    with torch.inference_mode():
        whole = network(mirrored)[..., :50, :41]
        logits = torch.full_like(whole, torch.nan)
        plan = plan_unpadded_tiles((50, 41), 3 * stride, stride, margin, network.input_size)
        reach = 3 * stride + margin  # windows stick out by so much
        mirrored_further = F.pad(mirrored, (0, reach, 0, reach))
        for tile in plan.tiles:
            seen = network(mirrored_further[..., *tile.window.moved(margin, margin).slices])
            logits[..., *tile.owned.slices] = seen[..., *tile.inside(margin).slices]
    assert plan.window_shape[0] < whole.shape[-2] + 2 * margin
    assert (logits - whole).abs().max() < 1e-10


@pytest.mark.parametrize(("padding", "stem"), [("same", 1), ("same", 2), ("valid", 1)])
def test_weights_start_as_the_paper_says(padding: str, stem: int) -> None:
    """Deviation sqrt(2 / N), N incoming values of each output value."""
    network = small(width=32, padding=padding, stem=stem)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel() > 4000:
            sources = module.in_channels * (9 if isinstance(module, nn.Conv2d) else 1)
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / sources), rel=0.05)


def test_widths_are_capped() -> None:
    assert small(width=6, depth=4, max_width=20).levels == [6, 12, 20, 20, 20]
    assert small(width=6, depth=4, max_width=20)(torch.zeros(1, 1, 9, 17)).shape == (1, 2, 9, 17)


@pytest.mark.parametrize("stem", [2, 4])
def test_a_stem_folds_the_image_and_enlarges_the_logits(stem: int) -> None:
    """Equal to a plain U-Net on the folded image, whose logits SciPy interpolates between the blocks' centres."""
    network = small(stem=stem, in_channels=2, num_classes=3).double().eval()
    plain = small(in_channels=2 * stem**2, num_classes=3).double().eval()
    plain.load_state_dict(network.state_dict())
    images = draw(1, 2, 8 * stem, 4 * stem)
    folded = images.reshape(1, 2, 8, stem, 4, stem).permute(0, 1, 3, 5, 2, 4).reshape(1, 2 * stem**2, 8, 4)
    coarse = plain(folded)[0].detach().numpy()
    rows, columns = ((np.arange(cells * stem) + 0.5) / stem - 0.5 for cells in (8, 4))
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"))
    expected = [ndimage.map_coordinates(plane, places, order=1, mode="nearest") for plane in coarse]
    np.testing.assert_allclose(network(images)[0].detach().numpy(), expected, rtol=0, atol=1e-12)
    assert network.geometry.stride == stem * plain.geometry.stride


def test_an_image_is_padded_by_its_last_row_and_column() -> None:
    network, images = small().double().eval(), draw(1, 1, 9, 6)
    padded = F.pad(images, (0, 2, 0, 3), mode="replicate")
    assert torch.equal(network(images), network(padded)[..., :9, :6])


def test_features_stay_channels_last() -> None:
    """A copy into the other format at every skip would cost time."""
    network = small(in_channels=3, num_classes=4, stem=2).to(memory_format=torch.channels_last)
    strays = []

    def check(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | list[Tensor]) -> None:
        for features in [output] if isinstance(output, Tensor) else output:
            if not features.is_contiguous(memory_format=torch.channels_last):
                strays.append(module)

    for module in network.modules():
        if module is not network:  # whose logits are a crop
            module.register_forward_hook(check)
    network(torch.randn(2, 3, 31, 33).to(memory_format=torch.channels_last))
    assert strays == []


def test_dropout_acts_at_the_two_deepest_levels_while_training() -> None:
    network, images = small(depth=3, dropout=0.5, norm="none"), torch.rand(1, 1, 32, 32)
    dropped = [
        any(isinstance(module, nn.Dropout) and module.p == 0.5 for module in block) for block in network.contracting
    ]
    assert dropped == [False, False, True, True]
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


@pytest.mark.parametrize(("padding", "norm"), [("same", "batch"), ("valid", "none")])
def test_the_norm_follows_the_padding(padding: str, norm: str) -> None:
    assert small(padding=padding).norm == norm


def test_group_norm_is_not_exact_and_says_why() -> None:
    geometry = small(norm="group").geometry
    assert not geometry.exact
    assert geometry.reason == "group norm averages over the image: an output pixel depends on every input pixel"
    assert small(norm="none").geometry.exact


def test_one_cell_cannot_be_normalised() -> None:
    network, image = small(), torch.zeros(1, 1, 4, 3)
    with pytest.raises(ModelError, match=r"batch norm cannot train on a single image of at most 4 x 4 pixels"):
        network(image)
    assert network(torch.zeros(1, 1, 5, 3)).shape == (1, 2, 5, 3)
    assert network.eval()(image).shape == (1, 2, 4, 3)
    assert small(norm="none")(image).shape == (1, 2, 4, 3)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"width": 0}, r"model.width: must be at least 1, not 0"),
        ({"max_width": 0}, r"model.max_width: must be at least 1, not 0"),
        ({"depth": 0}, r"model.depth: must be between 1 and 10 poolings, not 0"),
        ({"depth": 11}, r"model.depth: must be between 1 and 10 poolings, not 11"),
        ({"padding": "vaild"}, r"model.padding: unknown padding 'vaild'; did you mean valid\?"),
        ({"norm": "layer"}, r"model.norm: unknown normalisation 'layer'; choose from: batch, group, none"),
        ({"dropout": 1.0}, r"model.dropout: must be a probability from 0 to below 1, not 1.0"),
        ({"dropout": -0.1}, r"model.dropout: must be a probability from 0 to below 1, not -0.1"),
        ({"stem": 3}, r"model.stem: must be 1, 2 or 4, not 3"),
        ({"stem": 2, "padding": "valid"}, r'model.stem: 2 needs model.padding "same"; with "valid" it must be 1'),
    ],
)
def test_settings_that_make_no_sense_are_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**keywords)


def reach_by_hand(network: UNet) -> Reach:
    """The operators of the form with padding, one after the other, on the reach of one axis."""
    stem = network.stride // 2**network.depth
    reach = Reach.of_input(network.stride).pooling(stem)
    skips = []
    for _ in range(network.depth):
        skips.append(reach.convolution(3).convolution(3))
        reach = skips[-1].pooling(2)
    reach = reach.convolution(3).convolution(3)
    for skip in reversed(skips):
        reach = reach.upsampling(2).concatenation(skip).convolution(3).convolution(3)
    return reach.bilinear(stem)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("stem", [1, 2, 4])
def test_geometry_with_padding_is_derived_by_hand(depth: int, stem: int) -> None:
    network = small(depth=depth, stem=stem)
    assert network.geometry == reach_by_hand(network).geometry()


def literal_expansion(network: UNet, skips: list[Tensor]) -> Tensor:
    """The expanding path without a norm, written out on the network's own weights, and the enlarged logits."""
    features = skips.pop()
    for up, block in zip(network.up, network.expanding, strict=True):
        larger = F.conv_transpose2d(features, up.up.weight, up.up.bias, stride=2)
        features = torch.cat([skips.pop(), larger], dim=1)
        for convolution in (block[0][0], block[1][0]):
            features = F.relu(F.conv2d(features, convolution.weight, convolution.bias, padding=1))
    logits = F.conv2d(features, network.head.weight, network.head.bias)
    return F.interpolate(logits, scale_factor=network.finest, mode="bilinear")


@pytest.mark.parametrize(("backbone", "finest"), [("vgg16", 1), ("alexnet", 4)])
def test_on_a_backbone_its_features_are_the_contracting_path(backbone: str, finest: int) -> None:
    network = small(depth=None, backbone=backbone, norm="none", num_classes=3).double().eval()
    images = draw(1, 1, 2 * network.stride, network.stride)
    assert network.backbone is not None
    assert network.finest == finest
    expected = literal_expansion(network, network.backbone(images))
    torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-12)


def test_the_expanding_path_does_not_grow_with_the_backbone() -> None:
    """Beside 2048 channels it has the levels that it has beside 512."""
    with torch.device("meta"):
        networks = [UNet(width=32, backbone=name) for name in ("resnet18", "resnet50")]
    assert [network.levels for network in networks] == [[32, 64, 128, 256, 512]] * 2
    for network, skips, deepest in zip(networks, [(256, 128, 64, 64), (1024, 512, 256, 64)], (512, 2048), strict=True):
        assert network.backbone is not None
        assert network.backbone.channels == [*skips[::-1], deepest]
        before, weights = deepest, 0
        for skip, after in zip(skips, (256, 128, 64, 32), strict=True):
            weights += parameters(before, after, kernel=2)
            weights += parameters(skip + after, after, kernel=3, bias=False) + parameters(after, after, 3, bias=False)
            weights, before = weights + 4 * after, after  # scales and shifts of two batch norms
        total = sum(parameter.numel() for parameter in network.parameters())
        assert total - sum(value.numel() for value in network.backbone.parameters()) == weights + parameters(32, 2)


@pytest.mark.parametrize("backbone", ["vgg16", "resnet18"])
@pytest.mark.parametrize("size", [(1, 1), (31, 17), (70, 45)], ids=str)
def test_on_a_backbone_logits_have_the_size_of_the_image(backbone: str, size: tuple[int, int]) -> None:
    network = small(depth=None, in_channels=3, num_classes=5, backbone=backbone)
    assert network(torch.rand(2, 3, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize(
    ("depth", "levels"), [(None, [4, 8, 16, 32, 64, 128]), (5, [4, 8, 16, 32, 64, 128]), (1, [4, 8])]
)
def test_depth_says_which_of_a_backbones_features_are_used(depth: int | None, levels: list[int]) -> None:
    network = small(depth=depth, backbone="vgg16").eval()
    assert network.levels == levels
    assert network.depth == len(network.up) == len(levels) - 1
    assert network.stride == 2**network.depth
    features = network.features_on_grid(torch.rand(1, 1, 32, 32))
    assert [level.shape[1] for level in features] == [4, 8, 16, 32, 32, 32][: len(levels)]


@pytest.mark.parametrize(
    ("backbone", "depth"), [(None, None), ("vgg16", None), ("vgg16", 2), ("resnet18", 1), ("mobilenetv3_small_100", 2)]
)
def test_the_gradient_reaches_every_parameter(backbone: str | None, depth: int | None) -> None:
    network = small(depth=depth, backbone=backbone)
    network(torch.rand(2, 1, 70, 45)).square().sum().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_on_a_backbone_geometry_is_what_probing_shows() -> None:
    network = small(depth=None, width=2, backbone="vgg16").eval()
    assert network.geometry.exact
    assert probe_geometry(network, channels=1).geometry == network.geometry


def test_on_a_backbone_dropout_acts_at_the_two_deepest_features() -> None:
    network, images = small(depth=None, backbone="vgg16", dropout=0.5, norm="none"), torch.rand(1, 1, 64, 64)
    seen: list[Tensor] = []
    network.drop.register_forward_hook(lambda module, inputs, output: seen.append(output))
    network(images)
    assert [features.shape[-1] for features in seen] == [4, 2]
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_the_encoder_is_the_contracting_path_or_the_backbone() -> None:
    plain, network = small(), small(depth=None, backbone="vgg16")
    assert plain.backbone is None
    assert plain.encoder() == list(plain.contracting)
    assert len(plain.encoder()) == len(plain.features_on_grid(torch.rand(1, 1, 8, 8))) == 3
    assert network.encoder() == [network.backbone]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            {"padding": "valid"},
            r'model.backbone: vgg16 pads its convolutions, so it needs model.padding "same"\.$',
        ),
        (
            {"stem": 2},
            r"model.stem: must be 1 with the backbone vgg16, whose first layers take the image as it is, not 2\.$",
        ),
        (
            {"depth": 6},
            r"model.depth: the features of vgg16, at strides 1, 2, 4, 8, 16, 32, halve 5 times, not 6: use 1 to 5, or "
            r"leave it out",
        ),
        ({"backbone": "vgg61"}, r"model.backbone: unknown backbone 'vgg61'; did you mean .*vgg16"),
        ({"backbone": "resnet18", "norm": "none"}, r"model.norm: resnet18 cannot train without a normalisation"),
    ],
)
def test_settings_that_make_no_sense_with_a_backbone_are_refused(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**{"depth": None, "backbone": "vgg16"} | keywords)


def test_residual_blocks_are_their_formula_and_need_padding() -> None:
    """A level is ReLU(convolutions + shortcut), and its geometry is that of the plain form."""
    network = small(residual=True).double().eval()
    block = network.contracting[0][0]
    images = draw(1, 1, 8, 12)
    branch = block.second(block.first(images))
    expected = (branch + F.conv2d(images, block.shortcut.weight)).clamp(min=0)
    torch.testing.assert_close(block(images), expected)
    assert network.geometry == small().geometry
    with pytest.raises(SettingError, match=r'model\.residual: needs model\.padding "same"'):
        small(residual=True, padding="valid")
