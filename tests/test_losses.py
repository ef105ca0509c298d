import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pixelwise.classes import IGNORE
from pixelwise.errors import SettingError
from pixelwise.losses import SegmentationLoss, class_weights, cross_entropy, dice_loss

SEEDS = st.integers(0, 2**32 - 1)
LOSSES = [cross_entropy, dice_loss, SegmentationLoss()]


def batch(seed: int, num_classes: int = 3, ignored: float = 0.2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels, class weights, pixel weights, in float64."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 6, 3))
    labels = rng.integers(0, num_classes, shape)
    labels[rng.random(shape) < ignored] = IGNORE
    logits = rng.normal(0, 3, (shape[0], num_classes, *shape[1:]))
    arrays = (logits, labels, rng.uniform(0.1, 4, num_classes), rng.uniform(0, 10, shape))
    return tuple(torch.from_numpy(array) for array in arrays)  # type: ignore[return-value]


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def literal_cross_entropy(logits: Tensor, labels: Tensor, classes: Tensor, pixels: Tensor) -> float:
    loss = weights = 0.0
    for n, row, column in np.ndindex(*labels.shape):
        label = int(labels[n, row, column])
        if label != IGNORE:
            weight = float(classes[label] * pixels[n, row, column])
            loss -= weight * math.log(softmax(logits[n, :, row, column].tolist())[label])
            weights += weight
    return loss / weights if weights else 0.0


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


def test_another_ignore_index_may_be_a_class_or_negative() -> None:
    logits, labels, _, _ = batch(1, ignored=0.3)
    for index in (-1, 0):
        renamed = labels.masked_fill(labels == index, IGNORE)
        moved = renamed.masked_fill(renamed == IGNORE, index)
        torch.testing.assert_close(cross_entropy(logits, moved, ignore_index=index), cross_entropy(logits, renamed))
        torch.testing.assert_close(dice_loss(logits, moved, ignore_index=index), dice_loss(logits, renamed))


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_gradients_are_those_of_finite_differences(seed: int) -> None:
    logits, labels, classes, pixels = batch(seed)
    logits, labels, pixels = logits[:1, :, :3, :3], labels[:1, :3, :3], pixels[:1, :3, :3]
    logits.requires_grad_()
    both = SegmentationLoss(0.7, 0.4, classes.tolist())
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels, classes, pixels), logits)
    assert torch.autograd.gradcheck(lambda x: dice_loss(x, labels), logits)
    assert torch.autograd.gradcheck(lambda x: both(x, labels, pixels), logits)


@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_pixels_have_no_say(loss) -> None:  # type: ignore[no-untyped-def]
    logits, labels, _, _ = batch(3, ignored=0.4)
    ignored = labels == IGNORE
    assert bool(ignored.any())
    other = torch.where(ignored.unsqueeze(1), 100 * torch.randn_like(logits), logits)
    torch.testing.assert_close(loss(other, labels), loss(logits, labels), rtol=1e-12, atol=0)
    logits.requires_grad_()
    loss(logits, labels).backward()
    moved = logits.grad.abs().sum(1) > 0
    assert torch.equal(moved, ~ignored)


@pytest.mark.parametrize("loss", [*LOSSES, SegmentationLoss(class_weights=[1.0, 2.0, 0.0])])
def test_a_batch_wholly_ignored_has_loss_and_gradient_zero(loss) -> None:  # type: ignore[no-untyped-def]
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    value = loss(logits, torch.full((2, 4, 4), IGNORE))
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_pixel_weights_of_zero_or_nan_on_ignored_pixels_are_harmless() -> None:
    logits = torch.randn(1, 2, 1, 2, requires_grad=True)
    labels = torch.tensor([[[1, IGNORE]]])
    assert cross_entropy(logits, labels, pixel_weights=torch.zeros(1, 1, 2)).item() == 0
    loss = cross_entropy(logits, labels, pixel_weights=torch.tensor([[[2.0, float("nan")]]]))
    loss.backward()
    torch.testing.assert_close(loss, cross_entropy(logits, labels))
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_summed_in_float32(loss, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    logits = torch.randn(1, 2, 300, 300).to(dtype)  # 90,000 pixels: more than float16 can count
    labels = torch.randint(0, 2, (1, 300, 300))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.double(), labels).float(), rtol=1e-5, atol=1e-6)


def test_float64_stays_float64() -> None:
    logits, labels, _, _ = batch(0)
    assert {loss(logits, labels).dtype for loss in LOSSES} == {torch.float64}


def test_the_sum_weighs_its_parts_and_passes_the_weights_on() -> None:
    logits, labels, classes, pixels = batch(5)
    loss = SegmentationLoss(cross_entropy=0.25, dice=2.0, class_weights=classes.tolist())
    expected = 0.25 * cross_entropy(logits, labels, classes, pixels) + 2 * dice_loss(logits, labels)
    torch.testing.assert_close(loss(logits, labels, pixels), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(SegmentationLoss(1, 0)(logits, labels), cross_entropy(logits, labels))
    torch.testing.assert_close(SegmentationLoss(0, 1)(logits, labels), dice_loss(logits, labels))


def test_class_weights_move_with_the_module_and_are_not_saved() -> None:
    loss = SegmentationLoss(class_weights=[1.0, 2.0])
    assert [name for name, _ in loss.named_buffers()] == ["class_weights"]
    assert loss.state_dict() == {}


@pytest.mark.parametrize(("entropy", "dice"), [(0, 0), (-1, 2), (2, -1), (math.nan, 1), (1, math.nan), (math.inf, 1)])
def test_factors_that_make_no_loss_are_refused(entropy: float, dice: float) -> None:
    message = (
        "^loss: the factors of cross_entropy and dice must be 0 or more and not both 0, "
        rf"but they are {entropy} and {dice}\. Set at least one of them above 0\.$"
    )
    with pytest.raises(SettingError, match=message):
        SegmentationLoss(entropy, dice)


def test_a_wrong_number_of_class_weights_is_refused() -> None:
    message = (
        r"^loss\.class_weights: one weight for each of the 3 classes is needed, but 2 were given\. "
        r"Give 3, or leave the setting out\.$"
    )
    with pytest.raises(SettingError, match=message):
        SegmentationLoss(class_weights=[1.0, 2.0])(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64))


@pytest.mark.parametrize("loss", [cross_entropy, dice_loss])
def test_a_label_beyond_the_classes_is_an_error_of_torch(loss) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((IndexError, RuntimeError), match=r"out of bounds"):
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
