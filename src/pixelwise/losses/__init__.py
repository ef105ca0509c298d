"""Losses of a segmentation network: what pixels, regions and boundaries cost, and the sum that training minimises.

Shapes: N images of H x W pixels, K classes. Logits are N x K x H x W and floating, labels N x H x W and
int64. Half precision is promoted to float32 before any sum, also under autocast; float64 stays float64. A
pixel whose label is `ignore_index` adds nothing to a loss or its gradient; if all pixels have it, both are 0.
"""

from pixelwise.losses.boundary import boundary_target, dual_task_loss, edge_loss
from pixelwise.losses.pixel import cross_entropy, focal_loss
from pixelwise.losses.region import dice_loss, lovasz_loss, tversky_loss
from pixelwise.losses.total import FACTORS, SegmentationLoss, check_factors, class_weights

__all__ = [
    "FACTORS",
    "SegmentationLoss",
    "boundary_target",
    "check_factors",
    "class_weights",
    "cross_entropy",
    "dice_loss",
    "dual_task_loss",
    "edge_loss",
    "focal_loss",
    "lovasz_loss",
    "tversky_loss",
]
