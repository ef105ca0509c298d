"""What every network keeps to, whatever its architecture: one suite for all members of `MODELS`.

A new network joins with a line in `SMALL`: keywords that make it small, in the forms worth testing.
"""

import inspect
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pixelwise.core.config import ModelSettings
from pixelwise.core.errors import ModelError, SettingError
from pixelwise.engines import EngineChoice, make_engine
from pixelwise.geometry.reach import round_up
from pixelwise.geometry.sizes import Sizes
from pixelwise.models import MODELS, build
from pixelwise.models.checkpoint import network_from
from pixelwise.prediction.predictor import predict
from pixelwise.prediction.tiling import plan_tiles

SMALL: dict[str, list[dict[str, Any]]] = {
    "patch": [{"width": 4}],
    "fcn32s": [{"width": 4}],
    "fcn16s": [{"width": 4}],
    "fcn8s": [{"width": 4}, {"backbone": "test_resnet"}],
    "unet": [
        {"width": 4, "depth": 2},
        {"width": 4, "depth": 1, "stem": 4},
        {"width": 4, "depth": 3, "norm": "group"},
        {"width": 4, "depth": 2, "stem": 2, "residual": True},
        {"width": 4, "backbone": "test_resnet"},
        {"width": 4, "backbone": "tf_efficientnet_lite0", "depth": 2},
    ],
    "deconvnet": [{"width": 4}],
    "segnet": [{"width": 4}, {"width": 4, "depth": 2}],
    "pspnet": [{"width": 8, "backbone": "test_resnet"}],
    "deeplabv2": [
        {"width": 8, "backbone": "test_resnet"},
        {"width": 64, "backbone": "vgg16", "head": "largefov"},
    ],
    "deeplabv3plus": [
        {"width": 8, "backbone": "test_resnet"},
        {"width": 8, "backbone": "test_resnet", "output_stride": 8, "image_branch": False},
    ],
    "gscnn": [{"width": 8, "backbone": "test_resnet"}],
}
FORMS = [pytest.param(name, form, id=f"{name}-{form}") for name, forms in SMALL.items() for form in forms]
every_form = pytest.mark.parametrize(("name", "form"), FORMS)
every_name = pytest.mark.parametrize("name", MODELS)


def make(name: str, form: dict[str, Any], seed: int = 0, **keywords: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build(name, **{"in_channels": 1, "num_classes": 2} | form | keywords)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def test_every_network_is_in_this_suite() -> None:
    assert SMALL.keys() == MODELS.keys()


@every_name
def test_channels_and_classes_are_enough_to_build_it(name: str) -> None:
    for parameter in inspect.signature(MODELS[name]).parameters.values():
        assert parameter.default is not parameter.empty or parameter.name in ("in_channels", "num_classes")


@every_form
@pytest.mark.parametrize("size", [(1, 1), (31, 17), (50, 33)], ids=str)
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_logits_are_finite_and_have_the_size_of_the_image(
    name: str, form: dict[str, Any], size: tuple[int, int], train: bool
) -> None:
    network = make(name, form, num_classes=3).train(train)
    logits = network(draw(2, 1, *size))
    assert logits.shape == (2, 3, *size)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@every_form
def test_an_image_of_many_strides(name: str, form: dict[str, Any]) -> None:
    with torch.inference_mode():
        logits = make(name, form, num_classes=3).eval()(draw(1, 1, 500, 333))
    assert logits.shape == (1, 3, 500, 333)
    assert logits.isfinite().all()


@every_form
@pytest.mark.parametrize(("in_channels", "num_classes"), [(1, 21), (3, 2), (5, 7)])
def test_channels_and_classes(name: str, form: dict[str, Any], in_channels: int, num_classes: int) -> None:
    network = make(name, form, in_channels=in_channels, num_classes=num_classes)
    assert (network.in_channels, network.num_classes) == (in_channels, num_classes)
    assert network(draw(2, in_channels, 20, 30)).shape == (2, num_classes, 20, 30)


def without_dropout(name: str, form: dict[str, Any]) -> nn.Module:
    """Where values are dropped by chance, three steps would tell nothing."""
    return make(name, {"dropout": 0.0} | form if "dropout" in inspect.signature(MODELS[name]).parameters else form)


@every_form
def test_it_learns(name: str, form: dict[str, Any]) -> None:
    """Three steps lower the loss and move every trainable parameter."""
    network, images = without_dropout(name, form).double(), draw(2, 1, 72, 104, dtype=torch.float64)
    labels = (F.avg_pool2d(images, 5, stride=1, padding=2)[:, 0] > 0).long()
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.005)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(network(images), labels)
        losses.append(loss.item())
        if len(losses) < 4:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert losses[3] < losses[0]
    unmoved = [key for key, value in network.named_parameters() if torch.equal(value, before[key])]
    assert unmoved == []


@every_form
def test_a_batch_of_one_trains(name: str, form: dict[str, Any]) -> None:
    network, images = make(name, form), draw(1, 1, 72, 104)
    F.cross_entropy(network(images), torch.zeros(1, 72, 104, dtype=torch.long)).backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@every_form
def test_its_outputs_are_at_the_size_of_the_image(name: str, form: dict[str, Any]) -> None:
    network = make(name, form, num_classes=3)
    outputs = network.outputs(draw(2, 1, 40, 33))
    kinds = {"logits": 3, "auxiliary": 3, "edges": 1}
    assert "logits" in outputs
    for key, values in outputs.items():
        assert values.shape == (2, kinds[key], 40, 33)


@every_form
def test_its_encoder_is_a_part_of_it(name: str, form: dict[str, Any]) -> None:
    network = make(name, form)
    own = {id(parameter) for parameter in network.parameters()}
    encoder = {id(parameter) for part in network.encoder() for parameter in part.parameters()}
    assert encoder < own


@every_form
def test_the_same_seed_gives_the_same_weights(name: str, form: dict[str, Any]) -> None:
    first, again, other = (make(name, form, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@every_form
def test_saved_weights_give_equal_logits(name: str, form: dict[str, Any], tmp_path: Path) -> None:
    network, other, images = make(name, form), make(name, form, seed=1), draw(2, 1, 33, 50)
    network(images)  # in train mode, so that the buffers are no longer those of a new network
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(network.eval()(images), other.eval()(images))


@every_form
def test_another_image_size_needs_no_other_weights(name: str, form: dict[str, Any]) -> None:
    """Fully convolutional: the architecture does not change with the image; only the logits' size does."""
    network = make(name, form).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert [network(draw(1, 1, size, size)).shape[-1] for size in (24, 40, 57)] == [24, 40, 57]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@every_form
def test_memory_format_makes_no_difference(name: str, form: dict[str, Any]) -> None:
    network, images = make(name, form).double().eval(), draw(2, 1, 40, 33, dtype=torch.float64)
    expected = network(images)
    network.to(memory_format=torch.channels_last)
    result = network(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def changed_lines(network: nn.Module, size: int, pixels: list[int], amount: float, columns: bool) -> Tensor:
    """For each pixel, which lines of the logits change with it: an image that is long along one axis and one stride
    wide along the other tells what a square one would.
    """
    width = network.geometry.stride
    images = draw(1, network.in_channels, size, width, dtype=torch.float64).repeat(len(pixels), 1, 1, 1)
    plain = images[:1].clone()
    for number, pixel in enumerate(pixels):
        images[number, :, pixel, pixel % width] += amount
    if columns:
        images, plain = images.mT.contiguous(), plain.mT.contiguous()
    changed = (network(images) != network(plain)).any(dim=1)  # NaN differs from everything
    return changed.any(dim=1 if columns else 2)


@every_form
@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
def test_geometry_covers_what_probing_shows(name: str, form: dict[str, Any], columns: bool) -> None:
    """At every phase modulo the stride; the halo and margin are at most one stride larger than probed."""
    network = make(name, form).double().eval()
    geometry = network.geometry
    if not geometry.exact:
        assert geometry.reason
        return
    stride = geometry.stride
    start = round_up(geometry.halo, stride) + stride
    pixels = list(range(start, start + stride))
    halo = margin = 0
    for amount in (torch.nan, 1.0, -1.0, 100.0):
        with torch.inference_mode():
            lines = changed_lines(network, 2 * start, pixels, amount, columns)
        for pixel, line in zip(pixels, lines, strict=True):
            outputs = line.nonzero()[:, 0]
            tiles = outputs // stride * stride  # the smallest tile on the grid that owns each
            halo = max(halo, int((outputs - pixel).abs().max()))
            margin = max(margin, int(torch.maximum(tiles - pixel, pixel - (tiles + stride - 1)).max()))
    assert halo <= geometry.halo <= halo + stride
    assert margin <= geometry.margin <= margin + stride


@every_form
def test_a_network_that_is_not_exact_sees_everything(name: str, form: dict[str, Any]) -> None:
    network = make(name, form).double().eval()
    size = round_up(2 * network.geometry.halo, network.geometry.stride) + network.geometry.stride
    with torch.inference_mode():
        farthest = int(changed_lines(network, size, [0], 1.0, columns=False)[0].nonzero().max())
    assert (farthest <= network.geometry.halo) == network.geometry.exact


@every_form
def test_tiled_is_whole(name: str, form: dict[str, Any]) -> None:
    network = make(name, form, num_classes=3).double()
    network(draw(2, 1, 64, 64, dtype=torch.float64))  # in train mode: the buffers are no longer those of a new network
    geometry = network.eval().geometry
    height, stride = 2 * geometry.margin + 5 * geometry.stride + 3, geometry.stride
    images = draw(1, 1, height, 45, dtype=torch.float64)
    with torch.inference_mode():
        whole = network(images)
        logits = torch.full_like(whole, torch.nan)
        padded = F.pad(images, (0, 2 * stride, 0, 2 * stride), mode="replicate")
        for tile in plan_tiles((height, 45), round_up(16, 2 * stride), stride, geometry.margin).tiles:
            logits[..., *tile.owned.slices] = network(padded[..., *tile.window.slices])[..., *tile.inside(0).slices]
    difference = (logits - whole).abs().max().item()
    assert (difference < 1e-10 * max(1.0, whole.abs().max().item())) == geometry.exact


@every_form
def test_tiles_flip_no_class_in_float32(name: str, form: dict[str, Any]) -> None:
    """Through `predict`: equal within 1e-4 of the largest logit, and classes but where two logits are that near."""
    network = make(name, form, num_classes=3)
    network(draw(2, 1, 64, 64))
    geometry = network.eval().geometry
    if not geometry.exact:
        return
    tile = round_up(24, geometry.stride)
    height = 2 * geometry.margin + 2 * tile + 5
    image = draw(height, 41).numpy()
    whole = predict(network, image, tile=None, engine="torch", logits=True)
    tiled = predict(network, image, tile=tile, engine="torch", logits=True)
    tolerance = 1e-4 * np.abs(whole).max()
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=tolerance)
    second, first = np.sort(whole, axis=0)[-2:]
    assert not ((tiled.argmax(0) != whole.argmax(0)) & (first - second > tolerance)).any()


ONE_FORM = pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, forms[0]) for name, forms in SMALL.items()),
        ("unet", {"width": 4, "backbone": "tf_efficientnet_lite0", "depth": 2}),
    ],
)


@ONE_FORM
def test_its_onnx_graph_gives_its_logits(name: str, form: dict[str, Any]) -> None:
    """The engine compares the graph with the network before it takes it, at several sizes."""
    pytest.importorskip("onnxruntime")
    network = make(name, form, in_channels=3).eval()
    engine = make_engine(network, EngineChoice("onnxruntime"), Sizes(3, network.geometry))
    images = draw(2, 3, 2 * network.geometry.stride, 3 * network.geometry.stride)
    with torch.inference_mode():
        expected = network(images)
    close = torch.from_numpy(engine(images.numpy())["logits"])
    torch.testing.assert_close(close, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@ONE_FORM
@pytest.mark.slow
@pytest.mark.skipif(not which("g++"), reason="torch.compile on the CPU needs a C++ compiler")
def test_compiled_it_gives_its_logits(name: str, form: dict[str, Any]) -> None:
    network, images = make(name, form).eval(), draw(1, 1, 64, 96)
    torch.compiler.reset()
    with torch.inference_mode():
        expected = network(images)
        compiled = torch.compile(network)(images)
    torch.testing.assert_close(compiled, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@every_form
@pytest.mark.parametrize("shape", [(1, 2, 20, 20), (1, 20, 20), (1, 1, 0, 20)], ids=str)
def test_images_that_do_not_fit_are_refused(name: str, form: dict[str, Any], shape: tuple[int, ...]) -> None:
    got = " x ".join(map(str, shape))
    with pytest.raises(ModelError, match=f"takes N x 1 x H x W images, but got {got}: convert them to 1 channel"):
        make(name, form)(torch.zeros(shape))


@every_name
@pytest.mark.parametrize("keyword", ["in_channels", "num_classes"])
def test_less_than_one_channel_or_class_is_refused(name: str, keyword: str) -> None:
    with pytest.raises(SettingError, match=f"model.{keyword}: must be at least 1, not 0"):
        build(name, **{keyword: 0})


@every_name
def test_an_unknown_setting_is_named(name: str) -> None:
    with pytest.raises(
        SettingError, match=rf"model.num_clases: {name} has no such setting; did you mean num_classes\?"
    ):
        build(name, num_clases=3)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("patch", "it has no encoder, only a few layers for a patch"),
        ("segnet", "its encoder is VGG16, because its decoder is the mirror image of that and returns values to the p"),
        ("deconvnet", "its encoder is VGG16, because its decoder is the mirror image of that and returns values to t"),
    ],
)
def test_a_network_that_takes_no_other_encoder_says_why(name: str, why: str) -> None:
    message = rf"^model\.backbone: {name} takes none: {why}.*\. Leave model\.backbone out.*\.$"
    with pytest.raises(SettingError, match=message):
        build(name, backbone="resnet18")
    with pytest.raises(SettingError, match=message):
        network_from(ModelSettings(name=name, backbone="resnet18"), 3, 2)


def test_every_other_network_takes_an_encoder() -> None:
    taking = {name for name, kind in MODELS.items() if "backbone" in inspect.signature(kind).parameters}
    assert taking == {name for name, kind in MODELS.items() if not kind.own_encoder}


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(SettingError, match=r"model.name: unknown network 'unett'; did you mean unet\?"):
        build("unett")
