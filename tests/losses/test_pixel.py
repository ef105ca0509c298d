"""Losses of single pixels, against the formulas written out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from loss_cases import SEEDS, batch, softmax
from pixelwise.core.classes import IGNORE
from pixelwise.core.errors import SettingError
from pixelwise.losses import cross_entropy, focal_loss


def literal_cross_entropy(logits: Tensor, labels: Tensor, classes: Tensor, pixels: Tensor) -> float:
    loss = weights = 0.0
    for n, row, column in np.ndindex(*labels.shape):
        label = int(labels[n, row, column])
        if label != IGNORE:
            weight = float(classes[label] * pixels[n, row, column])
            loss -= weight * math.log(softmax(logits[n, :, row, column].tolist())[label])
            weights += weight
    return loss / weights if weights else 0.0


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_cross_entropy_is_the_formula_of_the_paper(seed: int) -> None:
    logits, labels, classes, pixels = batch(seed)
    expected = literal_cross_entropy(logits, labels, classes, pixels)
    assert cross_entropy(logits, labels, classes, pixels).item() == pytest.approx(expected, rel=1e-10)
    in_float32 = cross_entropy(logits.float(), labels, classes.float(), pixels.float())
    assert in_float32.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_cross_entropy_of_the_lectures_example() -> None:
    # Softmax of (0, ln 3) is (1/4, 3/4); the background pixel weighs 1 + 10 exp(-(2 + 3)^2 / 50).
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]]).T.reshape(1, 2, 1, 2)
    weight = 1 + 10 * math.exp(-0.5)
    loss = cross_entropy(logits, torch.tensor([[[0, 1]]]), pixel_weights=torch.tensor([[[weight, 1.0]]]))
    assert loss.item() == pytest.approx((weight * math.log(4) + math.log(4 / 3)) / (weight + 1), abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_cross_entropy_without_pixel_weights_is_that_of_torch(seed: int) -> None:
    logits, labels, classes, _ = batch(seed, ignored=0.1)
    if bool((labels == IGNORE).all()):
        labels = torch.zeros_like(labels)
    torch.testing.assert_close(cross_entropy(logits, labels), F.cross_entropy(logits, labels, ignore_index=IGNORE))
    expected = F.cross_entropy(logits, labels, weight=classes, ignore_index=IGNORE)
    torch.testing.assert_close(cross_entropy(logits, labels, classes), expected)


def test_pixel_weights_of_zero_or_nan_on_ignored_pixels_are_harmless() -> None:
    logits = torch.randn(1, 2, 1, 2, requires_grad=True)
    labels = torch.tensor([[[1, IGNORE]]])
    assert cross_entropy(logits, labels, pixel_weights=torch.zeros(1, 1, 2)).item() == 0
    loss = cross_entropy(logits, labels, pixel_weights=torch.tensor([[[2.0, float("nan")]]]))
    loss.backward()
    torch.testing.assert_close(loss, cross_entropy(logits, labels))
    assert bool(logits.grad.isfinite().all())


@settings(deadline=None, max_examples=10)
@given(SEEDS)
def test_gradients_of_cross_entropy_are_those_of_finite_differences(seed: int) -> None:
    logits, labels, classes, pixels = batch(seed)
    logits, labels, pixels = logits[:1, :, :3, :3].requires_grad_(), labels[:1, :3, :3], pixels[:1, :3, :3]
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels, classes, pixels), logits)


def literal_focal(logits: Tensor, labels: Tensor, gamma: float, classes: Tensor) -> float:
    loss = weights = 0.0
    for n, row, column in np.ndindex(*labels.shape):
        label = int(labels[n, row, column])
        if label != IGNORE:
            p = softmax(logits[n, :, row, column].tolist())[label]
            loss -= float(classes[label]) * (1 - p) ** gamma * math.log(p)
            weights += float(classes[label])
    return loss / weights if weights else 0.0


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]))
def test_focal_loss_is_the_formula_of_the_paper(seed: int, gamma: float) -> None:
    logits, labels, classes, _ = batch(seed)
    expected = literal_focal(logits, labels, gamma, classes)
    assert focal_loss(logits, labels, gamma, classes).item() == pytest.approx(expected, rel=1e-8, abs=1e-12)
    plain = literal_focal(logits, labels, gamma, torch.ones(3))
    assert focal_loss(logits.float(), labels, gamma).item() == pytest.approx(plain, rel=1e-4, abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_focal_loss_without_focus_is_cross_entropy(seed: int) -> None:
    logits, labels, classes, _ = batch(seed)
    torch.testing.assert_close(focal_loss(logits, labels, 0.0, classes), cross_entropy(logits, labels, classes))


@settings(deadline=None, max_examples=10)
@given(SEEDS, st.sampled_from([0.0, 0.5, 2.0]))
def test_gradients_of_focal_loss_are_those_of_finite_differences(seed: int, gamma: float) -> None:
    logits, labels, classes, _ = batch(seed)
    logits = logits[:1, :, :3, :3].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, labels[:1, :3, :3], gamma, classes), logits)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("logit", [0.0, 50.0, 1000.0, -1000.0])
def test_focal_loss_of_sure_pixels_has_a_finite_gradient(gamma: float, logit: float) -> None:
    logits = torch.tensor([logit, 0.0]).reshape(1, 2, 1, 1).requires_grad_()
    loss = focal_loss(logits, torch.zeros(1, 1, 1, dtype=torch.int64), gamma)
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(logits.grad.isfinite().all())
    assert (loss.item() < 1e-6) == (logit > 0)


def test_focal_loss_looks_at_hard_pixels() -> None:
    # p = 0.9 and p = 0.1: with gamma 2 the second weighs (0.9 / 0.1)^2 = 81 times as much as in cross entropy.
    logits = torch.tensor([[math.log(9.0), 0.0], [0.0, 0.0]], dtype=torch.float64).reshape(1, 2, 1, 2)
    logits[0, 0, 0, 1] = -math.log(9.0)
    losses = [focal_loss(logits[..., k : k + 1], torch.zeros(1, 1, 1, dtype=torch.int64)).item() for k in (0, 1)]
    assert losses == pytest.approx([0.01 * -math.log(0.9), 0.81 * -math.log(0.1)])


@pytest.mark.parametrize("loss", [cross_entropy, focal_loss])
def test_a_wrong_number_of_class_weights_is_refused(loss) -> None:  # type: ignore[no-untyped-def]
    message = (
        r"^class_weights: there must be one weight for each of the 3 classes, but 2 were given\. Give 3, or None\.$"
    )
    with pytest.raises(SettingError, match=message):
        loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64), class_weights=torch.ones(2))
