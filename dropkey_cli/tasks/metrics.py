"""Metrics that torchmetrics lacks, and those of classification; all are exact on any number of processes."""

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassStatScores


class BalancedAccuracy(MulticlassStatScores):
    """Mean over classes of the share of their images that is right: acc1 where the classes are even.

    As scikit-learn's, and unlike torchmetrics' macro averages, classes without images do not count.
    """

    def compute(self) -> Tensor:
        """In [0, 1]."""
        right, *_, images = super().compute().unbind(-1)  # (K,) each
        present = images > 0
        return (right[present] / images[present]).mean()


class MeanLoss(Metric):
    """Mean of a loss over images, however they lie in batches and processes. NaN stays NaN.

    Torchmetrics' MeanMetric leaves NaN out, or else ignores the weights, and adds up in float32.

    Args:
        dtype: Type of the sum; float64 where the device has it.
    """

    total: Tensor
    images: Tensor

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.sum_dtype = dtype
        self.add_state("total", torch.zeros((), dtype=dtype), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, images: int) -> None:
        """Add a batch: its mean loss () and its number of images."""
        # Until then 0, perhaps in bfloat16: a network's .to(dtype) reaches the states of its metrics
        self.total = self.total.to(self.sum_dtype) + loss.to(self.sum_dtype) * images
        self.images += images

    def compute(self) -> Tensor:
        """The mean so far."""
        return self.total / self.images


def classification_metrics(stage: str, num_classes: int) -> MetricCollection:
    """acc1, and for validation and test balanced_acc and, where there are more than 5 classes, acc5.

    Args:
        stage: train, val or test, the first word of the names.
        num_classes: Number of classes K.
    """
    metrics: dict[str, Metric] = {"acc1": MulticlassAccuracy(num_classes, average="micro")}
    if stage != "train":
        metrics["balanced_acc"] = BalancedAccuracy(num_classes, average=None)
        if num_classes > 5:
            metrics["acc5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
    # compute_groups merges metrics whose states agree after the first batch, such as acc1 and acc5 of 32 easy images.
    return MetricCollection(metrics, prefix=f"{stage}/", compute_groups=False)  # type: ignore[arg-type]  # one Metric subclass
