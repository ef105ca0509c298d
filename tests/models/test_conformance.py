"""What every network keeps to, whatever its architecture: one suite for all members of `MODELS`.

A new network joins with a line in `SMALL`: keywords that make it small, in the forms worth testing.
"""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pixelwise.errors import ModelError, SettingError
from pixelwise.geometry import round_up
from pixelwise.models import MODELS, build
from pixelwise.tiling import plan_tiles

SMALL: dict[str, list[dict[str, Any]]] = {
    "unet": [
        {"width": 4, "depth": 2},
        {"width": 4, "depth": 1, "stem": 4},
        {"width": 4, "depth": 3, "norm": "group"},
        {"width": 4, "depth": 2, "stem": 2, "residual": True},
    ]
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
@pytest.mark.parametrize("in_channels", [1, 3, 5])
@pytest.mark.parametrize("num_classes", [2, 7, 21])
def test_channels_and_classes(name: str, form: dict[str, Any], in_channels: int, num_classes: int) -> None:
    network = make(name, form, in_channels=in_channels, num_classes=num_classes)
    assert (network.in_channels, network.num_classes) == (in_channels, num_classes)
    assert network(draw(1, in_channels, 20, 30)).shape == (1, num_classes, 20, 30)


@every_form
def test_it_learns(name: str, form: dict[str, Any]) -> None:
    """Three steps on a batch of one lower the loss and move every trainable parameter."""
    network, images = make(name, form), draw(1, 1, 40, 56)
    labels = (F.avg_pool2d(images, 5, stride=1, padding=2)[:, 0] > 0).long()
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
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


def changed_pixels(network: nn.Module, size: int, pixel: int, amount: float) -> tuple[Tensor, Tensor]:
    """Rows and columns of the logits that change with the input pixel (pixel, pixel)."""
    images = draw(1, network.in_channels, size, size, dtype=torch.float64)
    before = network(images)
    images[..., pixel, pixel] += amount
    changed = (network(images) != before).any(dim=1)[0]  # NaN differs from everything
    return changed.any(dim=1).nonzero()[:, 0], changed.any(dim=0).nonzero()[:, 0]


@every_form
def test_geometry_covers_what_probing_shows(name: str, form: dict[str, Any]) -> None:
    """At every phase modulo the stride; the halo and margin are at most one stride larger than probed."""
    network = make(name, form).double().eval()
    geometry = network.geometry
    if not geometry.exact:
        assert geometry.reason
        return
    stride = geometry.stride
    start = round_up(geometry.halo, stride) + stride
    halo = margin = 0
    for pixel in range(start, start + stride):
        for amount in (torch.nan, 1.0, -1.0, 100.0):
            with torch.inference_mode():
                axes = changed_pixels(network, 2 * start, pixel, amount)
            for outputs in axes:
                tiles = outputs // stride * stride  # the smallest tile on the grid that owns each
                halo = max(halo, int((outputs - pixel).abs().max()))
                margin = max(margin, int(torch.maximum(tiles - pixel, pixel - (tiles + stride - 1)).max()))
    assert halo <= geometry.halo <= halo + stride
    assert margin <= geometry.margin <= margin + stride


@every_form
def test_a_network_that_is_not_exact_sees_everything(name: str, form: dict[str, Any]) -> None:
    network = make(name, form).double().eval()
    size = round_up(2 * network.geometry.halo, network.geometry.stride)
    rows, columns = changed_pixels(network, size, 0, 1.0)
    farthest = max(int(rows.max()), int(columns.max()))
    assert (farthest <= network.geometry.halo) == network.geometry.exact


@every_form
def test_tiled_is_whole(name: str, form: dict[str, Any]) -> None:
    network, images = make(name, form, num_classes=3), draw(1, 1, 150, 45, dtype=torch.float64)
    network.double()(images)  # in train mode, so that the buffers are no longer those of a new network
    network.eval()
    geometry = network.geometry
    with torch.inference_mode():
        whole = network(images)
        logits = torch.full_like(whole, torch.nan)
        padded = F.pad(images, (0, 64, 0, 64), mode="replicate")
        for tile in plan_tiles(150, 45, 2 * geometry.stride, geometry.stride, geometry.margin).tiles:
            y0, y1, x0, x1 = tile.window
            logits[..., *tile.owned] = network(padded[..., y0:y1, x0:x1])[..., *tile.inside(0)]
    difference = (logits - whole).abs().max().item()
    assert (difference < 1e-10) == geometry.exact


@every_form
@pytest.mark.parametrize("shape", [(1, 2, 20, 20), (1, 20, 20), (1, 1, 0, 20)], ids=str)
def test_images_that_do_not_fit_are_refused(name: str, form: dict[str, Any], shape: tuple[int, ...]) -> None:
    got = " x ".join(map(str, shape))
    with pytest.raises(ModelError, match=f"takes N x 1 x H x W images, but got {got}: bring the images to 1 channel"):
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


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(SettingError, match=r"model.name: there is no network 'unett'; did you mean unet\?"):
        build("unett")
