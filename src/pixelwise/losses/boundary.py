"""Losses of class boundaries: for the edges that a network draws, and for their agreement with its classes.

Shapes: N images of H x W pixels, K classes. Edges are N x 1 x H x W logits: a pixel is a boundary if its sigmoid is
large.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.core.classes import IGNORE
from pixelwise.losses.pixel import or_one, promoted


def boundary_target(labels: Tensor, radius: int = 1, ignore_index: int = IGNORE) -> Tensor:
    """Where classes meet: all pixels with another class within `radius` rows and columns.

    Args:
        labels: N x H x W, int64.
        radius: pixels; 1 compares the 8 neighbours and so marks one pixel on each side of a boundary.
        ignore_index: label of the pixels to ignore: they are not boundaries, nor do they make others boundaries.

    Returns:
        N x H x W bool.

    >>> boundary_target(torch.tensor([[[0, 0, 1, 1, IGNORE]]]))
    tensor([[[False,  True,  True, False, False]]])
    """
    counted = labels != ignore_index
    values = labels.float()
    highest = _largest_near(values.masked_fill(~counted, -torch.inf), radius)
    lowest = -_largest_near((-values).masked_fill(~counted, -torch.inf), radius)
    return counted & (highest != lowest)


def edge_loss(edges: Tensor, labels: Tensor, radius: int = 1, ignore_index: int = IGNORE) -> Tensor:
    """Binary cross entropy of the edges against `boundary_target`, balanced between the few edges and the rest.

    The mean of weight * loss over the labelled pixels of the batch, where an edge pixel weighs as much as the share of
    the other pixels, and every other pixel as much as the share of the edges.

    Args:
        edges: N x 1 x H x W logits.
        labels: N x H x W, int64.
        radius: of the boundaries, pixels.
        ignore_index: label of the pixels to ignore.

    Returns:
        A scalar, 0 if the batch has no boundary or every pixel is ignored.

    Xie and Tu 2015, "Holistically-Nested Edge Detection", equation 2; as a mean, with shares over the batch, as in the
    shape stream of Takikawa et al. 2019, arXiv:1907.05740.

    >>> round(edge_loss(torch.zeros(1, 1, 1, 4), torch.tensor([[[0, 0, 1, 1]]])).item(), 4)  # half of them edges
    0.3466
    """
    edges = promoted(edges)[:, 0]
    counted = labels != ignore_index
    target = boundary_target(labels, radius, ignore_index)
    number = or_one(counted.sum().to(edges))
    share = target.sum() / number
    weights = torch.where(target, 1 - share, share) * counted
    losses = F.binary_cross_entropy_with_logits(edges, target.to(edges), reduction="none")
    return (weights * losses).sum() / number


def dual_task_loss(
    logits: Tensor, edges: Tensor, labels: Tensor, threshold: float = 0.8, ignore_index: int = IGNORE
) -> Tensor:
    """The dual-task regulariser: it makes classes and edges, which describe the same boundaries, agree.

    The sum of two means. First, over the pixels where the predicted classes or the labels change: the difference
    between the two changes. Second, over the pixels that the network takes for edges with a probability above
    `threshold`: the cross entropy of their classes.

    Args:
        logits: N x K x H x W.
        edges: N x 1 x H x W logits; they only select pixels and get no gradient from this loss.
        labels: N x H x W, int64, 0 to K - 1 or `ignore_index`.
        threshold: of the edges' sigmoid.
        ignore_index: label of the pixels to ignore; changes of class next to them are ignored, too.

    Returns:
        A scalar, 0 if there is nothing to compare.

    Takikawa et al. 2019, arXiv:1907.05740, section 3.3. Our deviations: choosing a class has the gradient of a plain
    softmax instead of a random Gumbel softmax; one Sobel filter replaces the Gaussian and the derivative; both sums are
    means, so that the learning rate does not depend on the size of a patch.

    >>> labels = torch.tensor([[[0, 0, 1, 1]]])
    >>> logits = 50 * (2 * torch.nn.functional.one_hot(labels).movedim(-1, 1).float() - 1)
    >>> dual_task_loss(logits, torch.zeros(1, 1, 1, 4), labels).item()
    0.0
    """
    logits = promoted(logits)
    return _difference_of_changes(logits, labels, ignore_index) + _entropy_at_edges(
        logits, promoted(edges).detach(), labels, threshold, ignore_index
    )


def _difference_of_changes(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """The mean of |predicted - true| changes of class, over the pixels where either is not 0."""
    num_classes = logits.shape[1]
    probabilities = logits.softmax(dim=1)
    chosen = F.one_hot(logits.argmax(dim=1), num_classes).movedim(-1, 1).to(probabilities)
    predicted = class_change(chosen + (probabilities - probabilities.detach()))
    ignored = labels == ignore_index
    truth = F.one_hot(labels.masked_fill(ignored, 0), num_classes).movedim(-1, 1).to(probabilities)
    actual = class_change(truth)
    known = _largest_near(ignored.float(), 1) == 0
    compared = (known & ((predicted > 0) | (actual > 0))).to(probabilities)
    return (compared * (predicted - actual).abs()).sum() / or_one(compared.sum())


def class_change(shares: Tensor) -> Tensor:
    """How fast the class changes at each pixel: N x K x H x W shares -> N x H x W, 1 beside a straight boundary.

    The length of the gradient over rows, columns and classes, by Sobel filters, divided by the square root of 2 because
    wherever one class begins another ends. Border pixels are repeated.

    >>> class_change(torch.tensor([[[[1.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 1.0]]]]))
    tensor([[[0., 1., 1., 0.]]])
    """
    padded = F.pad(shares, (1, 1, 1, 1), mode="replicate")
    # Written out, since a convolution would run in half precision under autocast.
    across = padded[..., 2:] - padded[..., :-2]
    across = (across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]) / 4
    down = padded[..., 2:, :] - padded[..., :-2, :]
    down = (down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]) / 4
    square = (across.square() + down.square()).sum(dim=1) / 2
    changes = square > 0
    return torch.where(changes, square, 1.0).sqrt() * changes  # the root has no finite slope at 0


def _entropy_at_edges(logits: Tensor, edges: Tensor, labels: Tensor, threshold: float, ignore_index: int) -> Tensor:
    """The mean cross entropy over the labelled pixels that are probably edges."""
    sure = ((edges[:, 0].sigmoid() > threshold) & (labels != ignore_index)).to(logits)
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=ignore_index)
    return (sure * losses).sum() / or_one(sure.sum())


def _largest_near(values: Tensor, radius: int) -> Tensor:
    """The largest value within `radius` rows and columns, for N x H x W floats."""
    return F.max_pool2d(values, 2 * radius + 1, stride=1, padding=radius)
