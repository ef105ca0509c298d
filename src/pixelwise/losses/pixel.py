"""Losses that are a mean over pixels: cross entropy with weights, and focal loss.

Shapes: N images of H x W pixels, K classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelwise.core.classes import IGNORE
from pixelwise.core.errors import SettingError


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Weighted softmax cross entropy: the sum of w(x) * -log p(x), divided by the sum of w(x).

    Args:
        logits: N x K x H x W.
        labels: N x H x W, int64, 0 to K - 1 or `ignore_index`.
        class_weights: K weights >= 0, on any device; None: 1 each.
        pixel_weights: N x H x W weights >= 0, such as border weights; None: 1 each. The weight w of a pixel is its
            class's weight times its own.
        ignore_index: label of the pixels to ignore.

    Returns:
        A scalar, 0 if the weights sum to 0.

    Raises:
        SettingError: the number of class weights is not K.

    Ronneberger, Fischer and Brox 2015, "U-Net", equations 1 and 2; our mean replaces the paper's sum, so that the
    learning rate does not depend on the size of a patch. Sums run over the labelled pixels.

    >>> logits = torch.tensor([0.0, 0.0]).reshape(1, 2, 1, 1)
    >>> round(cross_entropy(logits, torch.tensor([[[1]]])).item(), 4)
    0.6931
    """
    logits = promoted(logits)
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=ignore_index)
    weights = _weight_map(logits, labels, class_weights, pixel_weights, ignore_index)
    return (weights * losses).sum() / or_one(weights.sum())


def focal_loss(
    logits: Tensor,
    labels: Tensor,
    gamma: float = 2.0,
    class_weights: Tensor | None = None,
    ignore_index: int = IGNORE,
) -> Tensor:
    """Focal loss: cross entropy in which a pixel counts less the surer the network already is of its label.

    The sum of w(x) * (1 - p(x))**gamma * -log p(x), divided by the sum of w(x); p is the softmax probability of the
    pixel's label, w its class's weight.

    Args:
        logits: N x K x H x W.
        labels: N x H x W, int64, 0 to K - 1 or `ignore_index`.
        gamma: focus, >= 0; 0 is the plain cross entropy.
        class_weights: K weights >= 0, the paper's alpha; None: 1 each.
        ignore_index: label of the pixels to ignore.

    Returns:
        A scalar, 0 if the weights sum to 0.

    Raises:
        SettingError: the number of class weights is not K.

    Lin et al. 2017, arXiv:1708.02002, equations 4 and 5, with softmax instead of their sigmoid; they divide by the
    number of objects, we by the sum of the weights, as in `cross_entropy`.

    >>> logits = torch.tensor([0.0, 0.0]).reshape(1, 2, 1, 1)
    >>> round(focal_loss(logits, torch.tensor([[[1]]]), gamma=2.0).item(), 4)
    0.1733
    """
    logits = promoted(logits)
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=ignore_index)
    # 1 - p; never 0, where the power's slope may be infinite (gamma below 1) while the loss is 0.
    missing = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).eps)
    weights = _weight_map(logits, labels, class_weights, None, ignore_index)
    return (weights * missing**gamma * losses).sum() / or_one(weights.sum())


def promoted(values: Tensor) -> Tensor:
    """Half precision as float32, anything else as it is."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def or_one(total: Tensor) -> Tensor:
    """A divisor that is never 0: if the total is 0, the sum that it divides is 0 as well."""
    return torch.where(total > 0, total, torch.ones_like(total))


def _weight_map(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    pixel_weights: Tensor | None,
    ignore_index: int,
) -> Tensor:
    """N x H x W weights, 0 where the label is ignored, whatever `pixel_weights` holds there."""
    ignored = labels == ignore_index
    weights = torch.ones_like(labels, dtype=logits.dtype)
    if class_weights is not None:
        _check_number(class_weights, logits.shape[1])
        weights = class_weights.to(logits)[labels.masked_fill(ignored, 0)]
    if pixel_weights is not None:
        weights = weights * pixel_weights.to(logits)
    return weights.masked_fill(ignored, 0)


def _check_number(class_weights: Tensor, num_classes: int) -> None:
    if len(class_weights) != num_classes:
        raise SettingError(
            f"class_weights: there must be one weight for each of the {num_classes} classes, but {len(class_weights)} "
            f"were given. Give {num_classes}, or None."
        )
