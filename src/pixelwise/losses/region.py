"""Losses of whole regions, from sums over a batch: soft Dice, Tversky, Lovasz-softmax.

Shapes: N images of H x W pixels, K classes, P labelled pixels. Each loss is a mean over the classes that occur in the
batch's labels; the other classes do not count.
"""

import torch
from torch import Tensor

from pixelwise.core.classes import IGNORE
from pixelwise.losses.pixel import or_one, promoted


def dice_loss(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss: the mean over classes of 1 - (2 sum p y + smooth) / (sum p + sum y + smooth).

    The sums run over all labelled pixels of the batch, separately for each class; p is the softmax probability, y is 1
    where the label is that class. Classes that do not occur in the batch's labels do not count.

    Args:
        logits: N x K x H x W.
        labels: N x H x W, int64, 0 to K - 1 or `ignore_index`.
        ignore_index: label of the pixels to ignore.
        smooth: pixels added to numerator and denominator; it calms the gradient of very rare classes.

    Returns:
        A scalar from 0 (perfect) to 1, 0 if every pixel is ignored.

    Milletari, Navab and Ahmadi 2016, "V-Net"; with plain sums in the denominator, not squares, as in Drozdzal et al.
    2016, "The Importance of Skip Connections in Biomedical Image Segmentation".

    >>> logits = torch.tensor([-50.0, 50.0]).reshape(1, 2, 1, 1)
    >>> dice_loss(logits, torch.tensor([[[1]]])).item()
    0.0
    """
    overlap, predicted, actual = _sums(logits, labels, ignore_index)
    losses = 1 - (2 * overlap + smooth) / (predicted + actual + smooth)
    return _mean_over_present(losses, actual)


def tversky_loss(
    logits: Tensor,
    labels: Tensor,
    alpha: float = 0.3,
    beta: float = 0.7,
    ignore_index: int = IGNORE,
    smooth: float = 1.0,
) -> Tensor:
    """Tversky loss: Dice with separate weights for what is predicted wrongly and what is missed.

    The mean over classes of 1 - (2 T + smooth) / (2 (T + alpha F + beta M) + smooth), with T = sum p y (found),
    F = sum p (1 - y) (predicted wrongly), M = sum (1 - p) y (missed); p is the softmax probability, y is 1 where the
    label is that class. With alpha = beta = 0.5 this is `dice_loss`.

    Args:
        logits: N x K x H x W.
        labels: N x H x W, int64, 0 to K - 1 or `ignore_index`.
        alpha: weight of what is predicted wrongly, >= 0.
        beta: weight of what is missed, >= 0; if it is above alpha, small classes are rather found than missed.
        ignore_index: label of the pixels to ignore.
        smooth: pixels added to numerator and denominator, as in `dice_loss`.

    Returns:
        A scalar from 0 (perfect) to 1, 0 if every pixel is ignored.

    Salehi, Erdogmus and Gholipour 2017, arXiv:1706.05721, equation 3, for each class in turn; the defaults are those
    that they found best. The smoothing is ours.

    >>> logits = torch.tensor([-50.0, 50.0]).reshape(1, 2, 1, 1)
    >>> tversky_loss(logits, torch.tensor([[[1]]])).item()
    0.0
    """
    overlap, predicted, actual = _sums(logits, labels, ignore_index)
    wrong, missed = predicted - overlap, actual - overlap
    losses = 1 - (2 * overlap + smooth) / (2 * (overlap + alpha * wrong + beta * missed) + smooth)
    return _mean_over_present(losses, actual)


def lovasz_loss(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Lovasz-softmax loss: a convex extension of 1 - intersection over union to any errors of the pixels.

    A pixel's error for class c is 1 - p if its label is c, else p; p is the softmax probability. The errors, largest
    first, are weighted by the growth of the Jaccard loss of c with each pixel that joins the wrong ones. If all errors
    are 0 or 1, the loss of a class is 1 - its intersection over union.

    Args:
        logits: N x K x H x W.
        labels: N x H x W, int64, 0 to K - 1 or `ignore_index`.
        ignore_index: label of the pixels to ignore.

    Returns:
        A scalar from 0 (perfect) to 1, 0 if every pixel is ignored.

    Berman, Triki and Blaschko 2018, arXiv:1705.08790, equations 8, 9, 11 and 12, over the classes that occur in the
    labels, with the batch as one image.

    >>> logits = torch.tensor([-500.0, 500.0]).reshape(1, 2, 1, 1)
    >>> lovasz_loss(logits, torch.tensor([[[1]]])).item(), lovasz_loss(logits, torch.tensor([[[0]]])).item()
    (0.0, 1.0)
    """
    labelled = labels != ignore_index
    probabilities = promoted(logits).softmax(dim=1).movedim(1, -1)[labelled]
    labels = labels[labelled]
    if not len(labels):
        return probabilities.sum()  # of nothing: 0, with gradients of 0
    present = labels.unique().tolist()  # type: ignore[no-untyped-call]  # torch leaves it open
    losses = [_lovasz_of_class(probabilities[:, label], labels == label) for label in present]
    return torch.stack(losses).mean()


def _lovasz_of_class(probabilities: Tensor, truth: Tensor) -> Tensor:
    """The Lovasz extension of the Jaccard loss of one class: P probabilities, P bools -> scalar."""
    errors = torch.where(truth, 1 - probabilities, probabilities)
    errors, order = errors.sort(descending=True, stable=True)
    hits = truth[order].to(errors)
    intersection = hits.sum() - hits.cumsum(0)
    union = hits.sum() + (1 - hits).cumsum(0)
    jaccard = 1 - intersection / union
    return (errors * jaccard.diff(prepend=jaccard.new_zeros(1))).sum()


def _sums(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the labelled pixels for each of K classes: of p y, of p, of y."""
    probabilities = promoted(logits).softmax(dim=1)
    labelled = (labels != ignore_index).unsqueeze(1).to(probabilities)
    classes = labels.masked_fill(labels == ignore_index, 0).unsqueeze(1)
    truth = torch.zeros_like(probabilities).scatter(1, classes, labelled)
    over_pixels = (0, 2, 3)
    overlap = (probabilities * truth).sum(over_pixels)
    return overlap, (probabilities * labelled).sum(over_pixels), truth.sum(over_pixels)


def _mean_over_present(losses: Tensor, actual: Tensor) -> Tensor:
    """The mean of the K losses over the classes that have pixels."""
    present = (actual > 0).to(losses)
    return (losses * present).sum() / or_one(present.sum())
