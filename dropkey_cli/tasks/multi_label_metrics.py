"""Metrics of images that may have any number of classes; all are exact on any number of processes."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MultilabelExactMatch, MultilabelF1Score, MultilabelHammingDistance
from torchmetrics.functional.classification import multilabel_average_precision
from torchmetrics.utilities import dim_zero_cat


class MeanAveragePrecision(Metric):
    """Mean over classes of their average precision, as scikit-learn's; classes that no image has do not count.

    It keeps the scores of all images, 5 bytes per image and class. Torchmetrics' would count classes without images as 0.

    Args:
        num_classes: Number of classes K.
    """

    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Begin with no image, but with K classes: a process that gets no image can then be joined with the others."""
        super().reset()
        self.scores = [torch.zeros(0, self.num_classes, device=self.device)]
        self.labels = [torch.zeros(0, self.num_classes, dtype=torch.uint8, device=self.device)]

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits and labels (B, K)."""
        self.scores.append(logits.float().sigmoid())
        self.labels.append((labels > 0.5).to(torch.uint8))

    def compute(self) -> Tensor:
        """In [0, 1]; NaN if no image has a class."""
        scores, labels = dim_zero_cat(self.scores), dim_zero_cat(self.labels)  # (images, K)
        present = labels.any(0).nonzero().flatten()
        if len(present) == 0:
            return torch.tensor(torch.nan, device=self.device)
        return multilabel_average_precision(scores[:, present], labels[:, present], len(present), validate_args=False)


class _AtHalf:
    """Counts a class as said where its probability is above 0.5: where its logit is above 0."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits and labels (B, K)."""
        parent: Any = super()
        parent.update((logits > 0).int(), (labels > 0.5).int())


class F1Score(_AtHalf, MultilabelF1Score):
    """F1 score of what is said."""


class ExactMatch(_AtHalf, MultilabelExactMatch):
    """Share of the images whose classes are all right."""


class HammingLoss(_AtHalf, MultilabelHammingDistance):
    """Share of wrong answers among all images and classes."""


def multi_label_metrics(stage: str, num_classes: int) -> MetricCollection:
    """f1_micro, and for validation and test map, f1_macro, exact_match and hamming_loss.

    Args:
        stage: train, val or test, the first word of the names.
        num_classes: Number of classes K.
    """
    # Checks of the values would wait for the device
    metrics: dict[str, Metric] = {"f1_micro": F1Score(num_classes, average="micro", validate_args=False)}
    if stage != "train":
        metrics = {
            "map": MeanAveragePrecision(num_classes),
            **metrics,
            "f1_macro": F1Score(num_classes, average="macro", validate_args=False),
            "exact_match": ExactMatch(num_classes, validate_args=False),
            "hamming_loss": HammingLoss(num_classes, average="micro", validate_args=False),
        }
    return MetricCollection(metrics, prefix=f"{stage}/", compute_groups=False)  # type: ignore[arg-type]  # one Metric subclass
