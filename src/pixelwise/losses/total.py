"""The sum of losses that training minimises, and the weights that balance its classes."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from pixelwise.core.config import LossSettings
from pixelwise.core.errors import SettingError
from pixelwise.losses.pixel import cross_entropy, focal_loss
from pixelwise.losses.region import dice_loss, lovasz_loss, tversky_loss

FACTORS = ("cross_entropy", "dice", "focal", "tversky", "lovasz")
"""The settings of all losses that compare classes with labels."""


class SegmentationLoss(nn.Module):
    """The sum of the losses of N x K x H x W logits, each times its factor; those with a factor of 0 are not computed.

    Args:
        settings: the factors and what the losses need; None: cross entropy and Dice.
        class_weights: K weights of the cross entropy and the focal loss, see `class_weights`; None: 1 each.

    Raises:
        SettingError: as in `check_factors`; on a call, the number of class weights is not K.

    >>> from pixelwise.core.classes import IGNORE
    >>> loss = SegmentationLoss(LossSettings(dice=0.5, lovasz=1.0))
    >>> loss(torch.zeros(1, 2, 4, 4), torch.full((1, 4, 4), IGNORE)).item()
    0.0
    """

    class_weights: Tensor | None

    def __init__(self, settings: LossSettings | None = None, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.settings = settings or LossSettings()
        check_factors(self.settings)
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    @override
    def forward(self, logits: Tensor, labels: Tensor, pixel_weights: Tensor | None = None) -> Tensor:
        """A scalar; `pixel_weights` (N x H x W) replace the class weights, only in the cross entropy."""
        return torch.stack(list(self.parts(logits, labels, pixel_weights).values())).sum()

    def parts(self, logits: Tensor, labels: Tensor, pixel_weights: Tensor | None = None) -> dict[str, Tensor]:
        """The losses by name, each times its factor; see `forward`."""
        settings = self.settings
        weights = self.class_weights if pixel_weights is None else None
        losses: dict[str, Callable[[], Tensor]] = {
            "cross_entropy": lambda: cross_entropy(logits, labels, weights, pixel_weights),
            "dice": lambda: dice_loss(logits, labels),
            "focal": lambda: focal_loss(logits, labels, settings.focal_gamma, self.class_weights),
            "tversky": lambda: tversky_loss(logits, labels, settings.tversky_alpha, settings.tversky_beta),
            "lovasz": lambda: lovasz_loss(logits, labels),
        }
        factors = {name: getattr(settings, name) for name in FACTORS}
        return {name: factor * losses[name]() for name, factor in factors.items() if factor > 0}


def check_factors(settings: LossSettings) -> None:
    """Refuse a sum of nothing, and a loss that errors do not increase.

    Raises:
        SettingError: the factors of all losses of classes are 0 (losses of boundaries alone do not teach classes), or
            both weights of the Tversky loss are.
    """
    if not any(getattr(settings, name) > 0 for name in FACTORS):
        names = ", ".join(f"loss.{name}" for name in FACTORS)
        raise SettingError(f"{names}: all are 0, so there is nothing to minimise. Set at least one of them above 0.")
    if settings.tversky > 0 and settings.tversky_alpha == settings.tversky_beta == 0:
        raise SettingError(
            "loss.tversky_alpha, loss.tversky_beta: both are 0, so errors cost nothing. Set one of them above 0, or "
            "loss.tversky to 0."
        )


def class_weights(pixel_counts: Sequence[int], power: float) -> np.ndarray:
    """Weights that balance the classes: inverse frequency to `power`, with a mean of 1 over the pixels.

    Args:
        pixel_counts: labelled pixels of each of the K classes in the training set.
        power: 0 gives every class the weight 1, 1 gives every class the same total weight.

    Returns:
        K float32 weights w with sum(frequency * w) = 1. A class without pixels gets the weight of the rarest class that
        has some; if no class has any, all weights are 1.

    >>> class_weights([30, 10], power=1.0).round(4)
    array([0.6667, 2.    ], dtype=float32)
    """
    counts = np.asarray(pixel_counts, dtype=np.float64)
    if not counts.any():
        return np.ones(len(counts), dtype=np.float32)
    counts[counts == 0] = counts[counts > 0].min()
    weights = counts**-power
    shares = np.asarray(pixel_counts, dtype=np.float64) / np.sum(pixel_counts)
    weights /= (shares * weights).sum()
    return weights.astype(np.float32)
