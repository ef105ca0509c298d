"""Losses of regions, against literal sums, and the Lovasz extension against its definition by sets."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from loss_cases import SEEDS, batch, softmax
from pixelwise.core.classes import IGNORE
from pixelwise.losses import dice_loss, lovasz_loss, tversky_loss


def literal_dice(logits: Tensor, labels: Tensor, smooth: float) -> float:
    losses = []
    for label in range(logits.shape[1]):
        overlap = predicted = actual = 0.0
        for n, row, column in np.ndindex(*labels.shape):
            if labels[n, row, column] != IGNORE:
                probability = softmax(logits[n, :, row, column].tolist())[label]
                is_label = float(labels[n, row, column] == label)
                overlap += probability * is_label
                predicted += probability
                actual += is_label
        if actual:
            losses.append(1 - (2 * overlap + smooth) / (predicted + actual + smooth))
    return sum(losses) / len(losses) if losses else 0.0


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.sampled_from([0.5, 1.0, 20.0]))
def test_dice_is_the_literal_formula(seed: int, smooth: float) -> None:
    logits, labels, _, _ = batch(seed)
    expected = literal_dice(logits, labels, smooth)
    assert dice_loss(logits, labels, smooth=smooth).item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_dice_leaves_absent_classes_out() -> None:
    # Two pixels of class 0, each with probability 1/4 for all 4 classes: 1 - (2 * 0.5 + 1) / (0.5 + 2 + 1).
    loss = dice_loss(torch.zeros(1, 4, 1, 2), torch.zeros(1, 1, 2, dtype=torch.int64))
    assert loss.item() == pytest.approx(1 - 2 / 3.5, abs=1e-6)


def labelled_pixels(logits: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """P x K probabilities and P labels."""
    places = [place for place in np.ndindex(*labels.shape) if labels[place] != IGNORE]
    shares = [softmax(logits[n, :, row, column].tolist()) for n, row, column in places]
    return np.array(shares), np.array([int(labels[place]) for place in places])


def literal_tversky(logits: Tensor, labels: Tensor, alpha: float, beta: float, smooth: float) -> float:
    shares, truth = labelled_pixels(logits, labels)
    losses = []
    for label in sorted(set(truth)):
        p, y = shares[:, label], truth == label
        found, wrong, missed = p[y].sum(), p[~y].sum(), (1 - p[y]).sum()
        losses.append(1 - (found + smooth / 2) / (found + alpha * wrong + beta * missed + smooth / 2))
    return float(np.mean(losses)) if losses else 0.0


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.floats(0, 2), st.floats(0.1, 2), st.sampled_from([0.5, 1.0, 20.0]))
def test_tversky_is_the_literal_formula(seed: int, alpha: float, beta: float, smooth: float) -> None:
    logits, labels, _, _ = batch(seed)
    expected = literal_tversky(logits, labels, alpha, beta, smooth)
    found = tversky_loss(logits, labels, alpha, beta, smooth=smooth)
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_tversky_of_two_halves_is_dice(seed: int) -> None:
    logits, labels, _, _ = batch(seed)
    torch.testing.assert_close(tversky_loss(logits, labels, 0.5, 0.5), dice_loss(logits, labels))


def test_the_weights_of_tversky_are_of_the_wrong_and_of_the_missed() -> None:
    # The only pixel of class 1 has p = 1/4, the other one p = 3/4 of it: found 1/4, wrong 3/4, missed 3/4.
    logits = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).log()[None, :, None, :]
    labels = torch.tensor([[[1, 0]]])
    for alpha, beta in ((1.0, 0.0), (0.0, 1.0), (0.3, 0.7)):
        expected = 1 - 0.25 / (0.25 + 0.75 * alpha + 0.75 * beta)  # the same for class 0
        assert tversky_loss(logits, labels, alpha, beta, smooth=0.0).item() == pytest.approx(expected, rel=1e-6)
    lean = torch.zeros(1, 2, 1, 4), torch.tensor([[[1, 0, 0, 0]]])
    assert tversky_loss(*lean, alpha=0.1, beta=0.9).item() != pytest.approx(tversky_loss(*lean, 0.9, 0.1).item())


def literal_lovasz(logits: Tensor, labels: Tensor) -> float:
    """Sum of m_i (D({1 .. i}) - D({1 .. i - 1})), largest errors first, with D(M) = |M| / |{y = c} or M|."""
    shares, truth = labelled_pixels(logits, labels)
    losses = []
    for label in sorted(set(truth)):
        members = set(np.flatnonzero(truth == label))
        errors = np.where(truth == label, 1 - shares[:, label], shares[:, label])
        total, wrong, before = 0.0, set(), 0.0
        for pixel in sorted(range(len(errors)), key=lambda place: -errors[place]):
            wrong.add(pixel)
            jaccard = len(wrong) / len(members | wrong)
            total += errors[pixel] * (jaccard - before)
            before = jaccard
        losses.append(total)
    return float(np.mean(losses)) if losses else 0.0


@settings(deadline=None, max_examples=40)
@given(SEEDS)
def test_lovasz_is_the_extension_of_the_jaccard_loss(seed: int) -> None:
    logits, labels, _, _ = batch(seed)
    expected = literal_lovasz(logits, labels)
    assert lovasz_loss(logits, labels).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert lovasz_loss(logits.float(), labels).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_lovasz_of_sure_predictions_is_one_minus_the_mean_iou(seed: int) -> None:
    logits, labels, _, _ = batch(seed)
    chosen, counted = logits.argmax(1), labels != IGNORE
    sure = 1000 * F.one_hot(chosen, 3).movedim(-1, 1).double()
    losses = []
    for label in labels[counted].unique():
        here, true = (chosen == label) & counted, labels == label
        losses.append(1 - (here & true).sum() / (here | true).sum())
    expected = float(torch.stack(losses).mean()) if losses else 0.0
    assert lovasz_loss(sure, labels).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", [dice_loss, tversky_loss, lovasz_loss])
def test_a_perfect_prediction_costs_nothing(loss) -> None:  # type: ignore[no-untyped-def]
    _, labels, _, _ = batch(4)
    perfect = 1000 * F.one_hot(labels.where(labels != IGNORE, torch.tensor(0)), 3).movedim(-1, 1).float()
    assert loss(perfect, labels).item() == 0
    assert loss(-perfect, labels).item() > 0.3


@settings(deadline=None, max_examples=15)
@given(SEEDS)
def test_gradients_are_those_of_finite_differences(seed: int) -> None:
    logits, labels, _, _ = batch(seed)
    logits, labels = logits[:1, :, :3, :3].requires_grad_(), labels[:1, :3, :3]
    assert torch.autograd.gradcheck(lambda x: dice_loss(x, labels), logits)
    assert torch.autograd.gradcheck(lambda x: tversky_loss(x, labels, 0.2, 0.9), logits)
    assert torch.autograd.gradcheck(lambda x: lovasz_loss(x, labels), logits)
