"""Losses of a segmentation network: cross entropy with weights, soft Dice, and their sum.

Shapes: N images of H x W pixels, K classes. Logits are N x K x H x W and floating, labels N x H x W and
int64. Half precision is promoted to float32 before any sum, also under autocast; float64 stays float64. A
pixel whose label is `ignore_index` adds nothing to a loss or to its gradient; where all are, both are 0.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelwise.classes import IGNORE
from pixelwise.errors import SettingError


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
        class_weights: K weights >= 0, on any device; 1 each when None.
        pixel_weights: N x H x W weights >= 0, such as border weights; 1 each when None. The weight w
            of a pixel is its class's weight times its own.
        ignore_index: label of the pixels that count nowhere.

    Returns:
        A scalar, 0 where the weights sum to 0.

    Raises:
        SettingError: the number of class weights is not K.

    Ronneberger, Fischer and Brox 2015, "U-Net", equations 1 and 2; the paper sums, here the mean is
    taken so that the learning rate does not depend on the size of a patch. Sums run over the labelled pixels.

    >>> logits = torch.tensor([0.0, 0.0]).reshape(1, 2, 1, 1)
    >>> round(cross_entropy(logits, torch.tensor([[[1]]])).item(), 4)
    0.6931
    """
    logits = _promoted(logits)
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=ignore_index)
    weights = _weight_map(logits, labels, class_weights, pixel_weights, ignore_index)
    return (weights * losses).sum() / _or_one(weights.sum())


def dice_loss(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss: the mean over classes of 1 - (2 sum p y + smooth) / (sum p + sum y + smooth).

    The sums run over all labelled pixels of the batch, for each class alone; p is the softmax probability, y
    is 1 where the label is that class. A class that the batch's labels do not hold has no say in the mean.

    Args:
        logits: N x K x H x W.
        labels: N x H x W, int64, 0 to K - 1 or `ignore_index`.
        ignore_index: label of the pixels that count nowhere.
        smooth: pixels added to both sides of the fraction; it calms the gradient of very rare classes.

    Returns:
        A scalar from 0 (perfect) to 1, 0 where every pixel is ignored.

    Milletari, Navab and Ahmadi 2016, "V-Net"; with plain sums below the line, not squares, as in
    Drozdzal et al. 2016, "The Importance of Skip Connections in Biomedical Image Segmentation".

    >>> logits = torch.tensor([-50.0, 50.0]).reshape(1, 2, 1, 1)
    >>> dice_loss(logits, torch.tensor([[[1]]])).item()
    0.0
    """
    probabilities = _promoted(logits).softmax(dim=1)
    labelled = (labels != ignore_index).unsqueeze(1).to(probabilities)
    classes = labels.masked_fill(labels == ignore_index, 0).unsqueeze(1)
    truth = torch.zeros_like(probabilities).scatter(1, classes, labelled)

    over_pixels = (0, 2, 3)
    overlap = (probabilities * truth).sum(over_pixels)
    predicted = (probabilities * labelled).sum(over_pixels)
    actual = truth.sum(over_pixels)
    losses = 1 - (2 * overlap + smooth) / (predicted + actual + smooth)
    present = (actual > 0).to(losses)
    return (losses * present).sum() / _or_one(present.sum())


class SegmentationLoss(nn.Module):
    """Sum of cross entropy and soft Dice, each times its factor.

    Args:
        cross_entropy: factor of the cross entropy, >= 0.
        dice: factor of the Dice loss, >= 0; a loss whose factor is 0 is not computed.
        class_weights: K weights of the cross entropy, see `class_weights`; 1 each when None.

    Raises:
        SettingError: a factor is negative or not finite, or both are 0; on a call, the number of class
            weights is not K.

    >>> loss = SegmentationLoss(dice=0.5)
    >>> loss(torch.zeros(1, 2, 4, 4), torch.full((1, 4, 4), 255)).item()
    0.0
    """

    class_weights: Tensor | None

    def __init__(
        self, cross_entropy: float = 1.0, dice: float = 1.0, class_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if not (cross_entropy >= 0 and dice >= 0 and 0 < cross_entropy + dice < math.inf):
            raise SettingError(
                "loss: the factors of cross_entropy and dice must be 0 or more and not both 0, "
                f"but they are {cross_entropy} and {dice}. Set at least one of them above 0."
            )
        self.cross_entropy_factor = cross_entropy
        self.dice_factor = dice
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor, pixel_weights: Tensor | None = None) -> Tensor:
        """Loss of N x K x H x W logits; `pixel_weights` (N x H x W) act on the cross entropy alone."""
        total = _promoted(logits).new_zeros(())
        if self.cross_entropy_factor > 0:
            entropy = cross_entropy(logits, labels, self.class_weights, pixel_weights)
            total = total + self.cross_entropy_factor * entropy
        if self.dice_factor > 0:
            total = total + self.dice_factor * dice_loss(logits, labels)
        return total


def class_weights(pixel_counts: Sequence[int], power: float) -> np.ndarray:
    """Weights that balance the classes: inverse frequency to `power`, with a mean of 1 over the pixels.

    Args:
        pixel_counts: labelled pixels of each of the K classes in the training set.
        power: 0 gives every class the weight 1, 1 gives every class the same total weight.

    Returns:
        K float32 weights w with sum(frequency * w) = 1. A class without pixels gets the weight of the rarest
        class that has some; where no class has any, all weights are 1.

    >>> class_weights([30, 10], power=1.0).round(4)
    array([0.6667, 2.    ], dtype=float32)
    """
    counts = np.asarray(pixel_counts, dtype=np.float64)
    if not counts.any():
        return np.ones(len(counts), dtype=np.float32)
    counts[counts == 0] = counts[counts > 0].min()
    weights = counts**-power
    shares = np.asarray(pixel_counts, dtype=np.float64) / np.sum(pixel_counts)
    return (weights / (shares * weights).sum()).astype(np.float32)


def _promoted(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _weight_map(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
    pixel_weights: Tensor | None,
    ignore_index: int,
) -> Tensor:
    """N x H x W weights, 0 where the label is ignored (whatever `pixel_weights` holds there)."""
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
            f"loss.class_weights: one weight for each of the {num_classes} classes is needed, "
            f"but {len(class_weights)} were given. Give {num_classes}, or leave the setting out."
        )


def _or_one(total: Tensor) -> Tensor:
    """A divisor that is never 0: where the total is 0, the sum above it is 0 as well."""
    return torch.where(total > 0, total, torch.ones_like(total))
