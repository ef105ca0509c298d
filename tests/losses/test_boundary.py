"""Losses of boundaries: where classes meet, edges against it, and the agreement of both, all written out by pixel."""

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
from pixelwise.losses import boundary_target, dual_task_loss, edge_loss
from pixelwise.losses.boundary import class_change


def edges_for(labels: Tensor, seed: int) -> Tensor:
    """N x 1 x H x W random logits, many of them sure."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(0, 3, (labels.shape[0], 1, *labels.shape[1:])))


def literal_boundary(labels: Tensor, radius: int) -> Tensor:
    found = torch.zeros(labels.shape, dtype=torch.bool)
    for n, row, column in np.ndindex(*labels.shape):
        if labels[n, row, column] == IGNORE:
            continue
        rows, columns = (slice(max(0, at - radius), at + radius + 1) for at in (row, column))
        near = labels[n, rows, columns]
        found[n, row, column] = bool(((near != IGNORE) & (near != labels[n, row, column])).any())
    return found


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(1, 3))
def test_a_boundary_is_where_another_class_is_near(seed: int, radius: int) -> None:
    _, labels, _, _ = batch(seed, num_classes=2, ignored=0.4)
    target = boundary_target(labels, radius)
    assert target.dtype == torch.bool
    assert torch.equal(target, literal_boundary(labels, radius))


def test_a_straight_boundary_has_two_pixels_at_radius_one() -> None:
    labels = torch.zeros(1, 4, 6, dtype=torch.int64)
    labels[..., 3:] = 7
    assert boundary_target(labels)[0].int().tolist() == [[0, 0, 1, 1, 0, 0]] * 4
    assert boundary_target(labels, radius=2)[0].int().tolist() == [[0, 1, 1, 1, 1, 0]] * 4
    assert not bool(boundary_target(torch.full((1, 3, 3), IGNORE)).any())
    assert not bool(boundary_target(torch.tensor([[[0, IGNORE, 0]]])).any())
    assert bool(boundary_target(torch.tensor([[[0, IGNORE, 0]]]), ignore_index=-1).all())


def literal_edge_loss(edges: Tensor, labels: Tensor) -> float:
    target = literal_boundary(labels, 1)
    places = [place for place in np.ndindex(*labels.shape) if labels[place] != IGNORE]
    if not places:
        return 0.0
    share = sum(bool(target[place]) for place in places) / len(places)
    total = 0.0
    for n, row, column in places:
        p = 1 / (1 + math.exp(-float(edges[n, 0, row, column])))
        total -= (1 - share) * math.log(p) if target[n, row, column] else share * math.log(1 - p)
    return total / len(places)


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_edge_loss_is_the_balanced_formula(seed: int) -> None:
    _, labels, _, _ = batch(seed)
    edges = edges_for(labels, seed)
    expected = literal_edge_loss(edges, labels)
    assert edge_loss(edges, labels).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert edge_loss(edges.float(), labels).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_edges_and_the_rest_weigh_the_same() -> None:
    labels = torch.zeros(1, 1, 20, dtype=torch.int64)
    labels[..., 10:] = 1  # 2 of 20 pixels are edges
    edges = torch.zeros(1, 1, 1, 20, requires_grad=True)
    edge_loss(edges, labels).backward()
    pull = edges.grad[0, 0, 0]
    assert pull[9:11].sum().item() == pytest.approx(-0.5 * 0.9 * 2 / 20)
    assert pull.sum().item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("value", [0, IGNORE])
def test_without_a_boundary_edges_cost_nothing(value: int) -> None:
    edges = torch.randn(2, 1, 3, 3, requires_grad=True)
    loss = edge_loss(edges, torch.full((2, 3, 3), value))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(edges.grad, torch.zeros_like(edges))


def literal_change(shares: np.ndarray) -> np.ndarray:
    """K x H x W -> H x W, by the Sobel kernels written out."""
    kernel = np.outer([1, 2, 1], [-1, 0, 1]) / 4
    padded = np.pad(shares, ((0, 0), (1, 1), (1, 1)), mode="edge")
    found = np.zeros(shares.shape[1:])
    for row, column in np.ndindex(*found.shape):
        window = padded[:, row : row + 3, column : column + 3]
        gradients = [(window * turned).sum((1, 2)) for turned in (kernel, kernel.T)]
        found[row, column] = math.sqrt(sum((gradient**2).sum() for gradient in gradients) / 2)
    return found


@settings(deadline=None, max_examples=20)
@given(SEEDS)
def test_class_change_is_the_length_of_the_sobel_gradient(seed: int) -> None:
    shares = np.random.default_rng(seed).random((1, 3, 4, 5))
    found = class_change(torch.from_numpy(shares))
    np.testing.assert_allclose(found[0].numpy(), literal_change(shares[0]), rtol=1e-10)


def test_class_change_is_differentiable_where_nothing_changes() -> None:
    shares = torch.ones(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    class_change(shares).sum().backward()
    assert torch.equal(shares.grad, torch.zeros_like(shares))
    rough = torch.rand(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(class_change, rough)


def one_hot(classes: np.ndarray, num_classes: int) -> np.ndarray:
    return np.moveaxis(np.eye(num_classes)[classes], -1, 0)


def literal_dual(logits: Tensor, edges: Tensor, labels: Tensor, threshold: float) -> float:
    """|change of argmax - change of labels| where either is not 0, and -log p where the edges are sure; means."""
    num_classes, differences, entropies = logits.shape[1], [], []
    for n in range(len(labels)):
        truth = labels[n].numpy()
        predicted = literal_change(one_hot(logits[n].numpy().argmax(0), num_classes))
        actual = literal_change(one_hot(np.where(truth == IGNORE, 0, truth), num_classes))
        for row, column in np.ndindex(*truth.shape):
            near = truth[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
            if not (near == IGNORE).any() and (predicted[row, column] or actual[row, column]):
                differences.append(abs(predicted[row, column] - actual[row, column]))
            sure = 1 / (1 + math.exp(-float(edges[n, 0, row, column]))) > threshold
            if sure and truth[row, column] != IGNORE:
                entropies.append(-math.log(softmax(logits[n, :, row, column].tolist())[truth[row, column]]))
    return sum(float(np.mean(values)) for values in (differences, entropies) if values)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.sampled_from([0.5, 0.8, 0.99]), st.sampled_from([0.0, 0.05, 0.3]))
def test_dual_task_loss_is_the_literal_sum(seed: int, threshold: float, ignored: float) -> None:
    logits, labels, _, _ = batch(seed, ignored=ignored)
    edges = edges_for(labels, seed)
    expected = literal_dual(logits, edges, labels, threshold)
    assert dual_task_loss(logits, edges, labels, threshold).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_gradient_of_a_chosen_class_is_that_of_its_probability() -> None:
    """dL/dlogits = dL/dchoice at the hard choice, times the softmax's own derivatives."""
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(rng.normal(size=(1, 3, 4, 5))).requires_grad_()
    labels = torch.from_numpy(rng.integers(0, 3, (1, 4, 5)))
    dual_task_loss(logits, torch.full((1, 1, 4, 5), -9.0), labels).backward()

    choice = one_hot(logits[0].detach().numpy().argmax(0), 3)
    actual = literal_change(one_hot(labels[0].numpy(), 3))
    compared = (literal_change(choice) > 0) | (actual > 0)

    def loss(shares: np.ndarray) -> float:
        return float(np.abs(literal_change(shares) - actual)[compared].mean())

    slopes = np.zeros_like(choice)
    for place in np.ndindex(*choice.shape):
        step = np.zeros_like(choice)
        step[place] = 1e-6
        slopes[place] = (loss(choice + step) - loss(choice - step)) / 2e-6
    shares = logits[0].detach().softmax(0).numpy()
    expected = shares * (slopes - (shares * slopes).sum(0))
    at_kinks = (literal_change(choice) == 0) | (literal_change(choice) == actual)  # of the root, and of |x|
    assert not at_kinks.all()
    reached = F.max_pool2d(torch.from_numpy(at_kinks & compared)[None].double(), 3, 1, 1)[0].numpy() > 0
    np.testing.assert_allclose(logits.grad[0].numpy()[:, ~reached], expected[:, ~reached], atol=1e-6)
    assert (np.abs(expected[:, ~reached]) > 1e-3).any()


def test_gradients_of_the_second_part_and_of_edges_are_those_of_finite_differences() -> None:
    rng = np.random.default_rng(1)
    labels = torch.from_numpy(rng.choice([0, 1, IGNORE], (1, 3, 4), p=[0.45, 0.45, 0.1]))
    logits = torch.from_numpy(rng.normal(size=(1, 2, 3, 4))).requires_grad_()
    edges = edges_for(labels, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: edge_loss(x, labels), edges)
    flat = torch.zeros_like(labels)  # and one class is chosen everywhere: only the second part is left
    assert torch.autograd.gradcheck(
        lambda x: dual_task_loss(x + torch.tensor([9.0, 0.0]).reshape(1, 2, 1, 1), edges.detach(), flat), logits
    )


def test_edges_get_no_gradient_from_the_agreement() -> None:
    logits, labels, _, _ = batch(8)
    edges = edges_for(labels, 8).requires_grad_()
    logits.requires_grad_()
    dual_task_loss(logits, edges, labels).backward()
    assert edges.grad is None
    assert bool(logits.grad.isfinite().all())


def test_perfect_classes_and_their_edges_agree() -> None:
    labels = torch.tensor([[[0, 0, 1], [0, 2, 1], [2, 2, 1]]])
    logits = 100 * (2 * F.one_hot(labels).movedim(-1, 1).float() - 1)
    edges = 20 * boundary_target(labels).unsqueeze(1).float() - 10
    assert dual_task_loss(logits, edges, labels).item() == 0
    assert dual_task_loss(logits.roll(1, dims=1), edges, labels).item() > 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    logits, edges = (torch.randn(1, channels, 300, 300).to(dtype) for channels in (2, 1))
    labels = torch.randint(0, 2, (1, 300, 300))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = edge_loss(edges, labels), dual_task_loss(logits, edges, labels)
    wide = edge_loss(edges.double(), labels), dual_task_loss(logits.double(), edges.double(), labels)
    for value, expected in zip(found, wide, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected.float(), rtol=1e-4, atol=1e-6)


def test_ignored_pixels_have_no_say() -> None:
    logits, labels, _, _ = batch(3, ignored=0.4)
    edges, ignored = edges_for(labels, 3), labels == IGNORE
    other = torch.where(ignored.unsqueeze(1), 100 * torch.randn_like(logits), logits)
    wild = torch.where(ignored.unsqueeze(1), 100 * torch.randn_like(edges), edges)
    torch.testing.assert_close(edge_loss(wild, labels), edge_loss(edges, labels))
    torch.testing.assert_close(dual_task_loss(other, wild, labels), dual_task_loss(logits, edges, labels))
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    dual_task_loss(logits, torch.full((1, 1, 3, 3), 9.0), torch.full((1, 3, 3), IGNORE)).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))
