"""How good a prediction is: counts that add up over images (pure updates), then scores (pure computes)."""

from pixelwise.metrics.boundary import TOLERANCES, boundary_counts, boundary_f
from pixelwise.metrics.confusion import (
    confusion_matrix,
    dice,
    iou,
    mean_iou,
    pixel_accuracy,
    precision,
    recall,
    summary,
)
from pixelwise.metrics.instances import THRESHOLDS, instance_scores, match_counts, sum_counts

__all__ = [
    "THRESHOLDS",
    "TOLERANCES",
    "boundary_counts",
    "boundary_f",
    "confusion_matrix",
    "dice",
    "instance_scores",
    "iou",
    "match_counts",
    "mean_iou",
    "pixel_accuracy",
    "precision",
    "recall",
    "sum_counts",
    "summary",
]
