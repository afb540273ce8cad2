"""Multi-label classification: any number of classes per image, each learnt by itself."""

from torch import Tensor
from torchmetrics import MetricCollection

from dropkey_cli.tasks.classification import Classification
from dropkey_cli.tasks.multi_label_metrics import multi_label_metrics


class MultiLabelClassification(Classification):
    """A timm vision transformer with DropKey that learns any number of classes per image: a yes or no for each.

    Its options are those of `Classification`; the loss is bce.
    """

    monitor = "val/map"
    monitor_meaning = "the mean over classes of their average precision"
    multi_label = True

    def probabilities(self, logits: Tensor) -> Tensor:
        """What prediction gives for logits (B, K): of each class by itself, in [0, 1]."""
        return logits.float().sigmoid()

    def create_metrics(self, stage: str, num_classes: int) -> MetricCollection:
        """The metrics of train, val or test."""
        return multi_label_metrics(stage, num_classes)

    def metric_labels(self, labels: Tensor) -> Tensor:
        """The labels (B, K) as they are."""
        return labels
