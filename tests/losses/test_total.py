"""The sum of losses, what all losses have in common, and the weights that balance classes."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from loss_cases import batch
from pixelwise.core.classes import IGNORE
from pixelwise.core.config import LossSettings
from pixelwise.core.errors import SettingError
from pixelwise.losses import (
    FACTORS,
    SegmentationLoss,
    class_weights,
    cross_entropy,
    dice_loss,
    focal_loss,
    lovasz_loss,
    tversky_loss,
)

Loss = Callable[[Tensor, Tensor], Tensor]
SMOOTH: list[Loss] = [cross_entropy, focal_loss, dice_loss, tversky_loss]
ALL = LossSettings(
    cross_entropy=0.25, dice=2.0, focal=0.5, tversky=0.75, lovasz=3.0, focal_gamma=1.5, tversky_alpha=0.2
)
LOSSES: list[Loss] = [*SMOOTH, lovasz_loss, SegmentationLoss(), SegmentationLoss(ALL)]


def test_another_ignore_index_may_be_a_class_or_negative() -> None:
    logits, labels, _, _ = batch(1, ignored=0.3)
    for index in (-1, 0):
        renamed = labels.masked_fill(labels == index, IGNORE)
        moved = renamed.masked_fill(renamed == IGNORE, index)
        for loss in (*SMOOTH, lovasz_loss):
            torch.testing.assert_close(loss(logits, moved, ignore_index=index), loss(logits, renamed))  # type: ignore[call-arg]


@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_pixels_have_no_say(loss: Loss) -> None:
    logits, labels, _, _ = batch(3, ignored=0.4)
    ignored = labels == IGNORE
    assert bool(ignored.any())
    other = torch.where(ignored.unsqueeze(1), 100 * torch.randn_like(logits), logits)
    torch.testing.assert_close(loss(other, labels), loss(logits, labels), rtol=1e-12, atol=0)
    logits.requires_grad_()
    loss(logits, labels).backward()
    moved = logits.grad.abs().sum(1) > 0
    assert not bool((moved & ignored).any())
    if loss is not lovasz_loss:  # whose slope is 0 for errors that come after all of a class is wrong
        assert torch.equal(moved, ~ignored)


@pytest.mark.parametrize("loss", [*LOSSES, SegmentationLoss(class_weights=[1.0, 2.0, 0.0])])
def test_a_batch_wholly_ignored_has_loss_and_gradient_zero(loss: Loss) -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((2, 4, 4), IGNORE))
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_summed_in_float32(loss: Loss, dtype: torch.dtype) -> None:
    logits = torch.randn(1, 2, 300, 300).to(dtype)  # 90,000 pixels: more than float16 can count
    labels = torch.randint(0, 2, (1, 300, 300))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.double(), labels).float(), rtol=1e-5, atol=1e-6)


def test_float64_stays_float64() -> None:
    logits, labels, _, _ = batch(0)
    assert {loss(logits, labels).dtype for loss in LOSSES} == {torch.float64}


def test_the_sum_weighs_its_parts_and_passes_the_settings_on() -> None:
    logits, labels, classes, pixels = batch(5)
    loss = SegmentationLoss(ALL, classes.tolist())
    rest = (
        2.0 * dice_loss(logits, labels)
        + 0.5 * focal_loss(logits, labels, 1.5, classes)
        + 0.75 * tversky_loss(logits, labels, 0.2, 0.7)
        + 3.0 * lovasz_loss(logits, labels)
    )
    expected = 0.25 * cross_entropy(logits, labels, classes) + rest
    torch.testing.assert_close(loss(logits, labels), expected, rtol=1e-6, atol=0)
    weighted = 0.25 * cross_entropy(logits, labels, pixel_weights=pixels) + rest
    torch.testing.assert_close(loss(logits, labels, pixels), weighted, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "loss"), [*zip(FACTORS, (cross_entropy, dice_loss, focal_loss, tversky_loss, lovasz_loss), strict=True)]
)
def test_a_sum_may_be_of_one_loss(name: str, loss: Loss) -> None:
    logits, labels, _, _ = batch(6)
    alone = LossSettings(**{**dict.fromkeys(FACTORS, 0.0), name: 1.0})
    torch.testing.assert_close(SegmentationLoss(alone)(logits, labels), loss(logits, labels))


def test_gradients_of_the_sum_are_those_of_finite_differences() -> None:
    logits, labels, classes, pixels = batch(7)
    logits, labels, pixels = logits[:1, :, :3, :3].requires_grad_(), labels[:1, :3, :3], pixels[:1, :3, :3]
    loss = SegmentationLoss(ALL, classes.tolist())
    assert torch.autograd.gradcheck(lambda x: loss(x, labels, pixels), logits)


def test_class_weights_move_with_the_module_and_are_not_saved() -> None:
    loss = SegmentationLoss(class_weights=[1.0, 2.0])
    assert [name for name, _ in loss.named_buffers()] == ["class_weights"]
    assert loss.state_dict() == {}


def test_a_sum_of_nothing_is_refused() -> None:
    message = (
        r"^loss\.cross_entropy, loss\.dice, loss\.focal, loss\.tversky, loss\.lovasz: all are 0, so there is nothing "
        r"to minimise\. Set at least one of them above 0\.$"
    )
    with pytest.raises(SettingError, match=message):
        SegmentationLoss(LossSettings(cross_entropy=0, dice=0))


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_factors_that_make_no_loss_are_no_settings(name: str, value: float) -> None:
    with pytest.raises(ValidationError, match=name):
        LossSettings(**{name: value})


def test_a_wrong_number_of_class_weights_is_refused() -> None:
    with pytest.raises(SettingError, match=r"^class_weights: there must be one weight for each of the 3 classes"):
        SegmentationLoss(class_weights=[1.0, 2.0])(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64))


@pytest.mark.parametrize("loss", [*SMOOTH, lovasz_loss])
def test_a_label_beyond_the_classes_is_an_error_of_torch(loss: Loss) -> None:
    with pytest.raises((IndexError, RuntimeError), match=r"out of (bounds|range)"):
        loss(torch.zeros(1, 3, 1, 1), torch.tensor([[[3]]]))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=12), st.floats(0, 1))
def test_class_weights_are_inverse_frequencies_of_mean_one(counts: list[int], power: float) -> None:
    weights = class_weights(counts, power)
    assert weights.dtype == np.float32
    total = sum(counts)
    if total == 0:
        assert weights.tolist() == [1] * len(counts)
        return
    shares = [count / total for count in counts]
    assert sum(s * w for s, w in zip(shares, weights.tolist(), strict=True)) == pytest.approx(1, rel=1e-5)
    rarest = min(share for share in shares if share > 0)
    frequencies = [share or rarest for share in shares]
    for frequency, weight in zip(frequencies, weights.tolist(), strict=True):
        ratio = (frequencies[0] / frequency) ** power
        assert weight / float(weights[0]) == pytest.approx(ratio, rel=1e-5)


def test_class_weights_of_power_zero_are_ones() -> None:
    assert class_weights([5, 0, 7], 0).tolist() == [1, 1, 1]
