import math

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score

from dropkey_cli.tasks.metrics import BalancedAccuracy, MeanLoss, classification_metrics


def test_mean_loss_is_that_of_all_images_however_they_are_batched() -> None:
    losses = np.random.default_rng(0).gamma(2.0, size=1009).astype(np.float32)
    for sizes in ([1009], [64] * 15 + [49], [1] * 1009):
        metric, start = MeanLoss(), 0
        for size in sizes:
            metric.update(torch.tensor(losses[start : start + size].astype(np.float64).mean()), size)
            start += size
        assert float(metric.compute()) == pytest.approx(losses.astype(np.float64).mean(), rel=1e-12)


def test_a_loss_that_is_nan_stays_visible() -> None:
    metric = MeanLoss()
    metric.update(torch.tensor(1.0), 3)
    metric.update(torch.tensor(torch.nan), 2)
    assert math.isnan(metric.compute())


def test_mean_loss_keeps_its_type_where_the_network_changes() -> None:
    module = torch.nn.ModuleDict({"loss": MeanLoss()}).to(torch.bfloat16)
    module["loss"].update(torch.tensor(1 / 3), 1)  # type: ignore[operator]  # a Metric
    assert float(module["loss"].compute()) == pytest.approx(1 / 3, abs=1e-7)  # type: ignore[operator]  # a Metric
    assert MeanLoss(torch.float32).total.dtype == torch.float32  # for devices without float64


def test_balanced_accuracy_is_scikit_learns() -> None:
    labels, logits = torch.tensor([0, 0, 0, 2, 2, 3]), torch.randn(6, 5)
    metric = BalancedAccuracy(5, average=None)
    metric.update(logits, labels)
    recalls = recall_score(labels, logits.argmax(-1), labels=[0, 2, 3], average=None, zero_division=0.0)
    assert float(metric.compute()) == pytest.approx(recalls.mean())


def test_names_by_stage_and_number_of_classes() -> None:
    assert set(classification_metrics("train", 10)) == {"train/acc1"}
    assert set(classification_metrics("val", 5)) == {"val/acc1", "val/balanced_acc"}
    assert set(classification_metrics("test", 6)) == {"test/acc1", "test/balanced_acc", "test/acc5"}
