import math

import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, hamming_loss

from dropkey_cli.callbacks.checkpoints import restore_metrics
from dropkey_cli.tasks.multi_label_metrics import MeanAveragePrecision, multi_label_metrics


def random_answers(images: int = 203, classes: int = 7, *, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels (images, classes), of uneven classes, the last of which no image has."""
    generator = torch.Generator().manual_seed(3)
    labels = (torch.rand(images, classes, generator=generator) < torch.linspace(0.6, 0, classes)).float()
    return scale * torch.randn(images, classes, generator=generator) + labels, labels


@pytest.mark.parametrize("batch_size", [1, 10, 203])
@pytest.mark.parametrize("scale", [3.0, 0.01])  # with 0.01, many batches have logits in [0, 1] alone, which are none
def test_metrics_equal_scikit_learns(batch_size: int, scale: float) -> None:
    logits, labels = random_answers(scale=scale)
    metrics = multi_label_metrics("val", 7)
    for start in range(0, len(logits), batch_size):
        metrics.update(logits[start : start + batch_size], labels[start : start + batch_size])
    said, true, scores = (logits > 0).numpy(), labels.numpy(), logits.sigmoid().numpy()
    precisions = average_precision_score(true[:, :6], scores[:, :6], average=None)
    expected = {
        "val/map": precisions.mean(),
        "val/f1_micro": f1_score(true, said, average="micro"),
        "val/f1_macro": f1_score(true, said, average="macro", zero_division=0.0),
        "val/exact_match": accuracy_score(true, said),
        "val/hamming_loss": hamming_loss(true, said),
    }
    assert {name: float(value) for name, value in metrics.compute().items()} == pytest.approx(expected, rel=1e-5)


def test_mean_average_precision_counts_the_classes_that_an_image_has() -> None:
    metric = MeanAveragePrecision(3)
    # Class 0: the right images are at places 1 and 3: (1/1 + 2/3) / 2; class 1: at place 2 of 3; class 2: none
    logits = torch.tensor([[3.0, 1.0, 9.0], [2.0, 2.0, 9.0], [1.0, 3.0, 9.0]])
    metric.update(logits, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    assert float(metric.compute()) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    metric.reset()
    metric.update(logits, torch.zeros(3, 3))
    assert math.isnan(metric.compute())


def test_a_process_without_images_adds_none() -> None:
    empty, full = MeanAveragePrecision(7), MeanAveragePrecision(7)
    full.update(*random_answers())
    alone = full.compute()
    full.scores, full.labels = [*empty.scores, *full.scores], [*empty.labels, *full.labels]
    full._computed = None
    assert torch.equal(full.compute(), alone)
    assert [state[0].shape for state in (empty.scores, empty.labels)] == [(0, 7), (0, 7)]


def test_half_precision_answers_are_scored_in_float() -> None:
    logits, labels = random_answers()
    metric, expected = MeanAveragePrecision(7), MeanAveragePrecision(7)
    metric.update(logits.bfloat16(), labels.bfloat16())
    expected.update(logits.bfloat16().float(), labels)
    assert metric.scores[-1].dtype == torch.float32
    assert torch.equal(metric.compute(), expected.compute())


def test_mixed_labels_count_where_they_are_more_than_half() -> None:
    metrics = multi_label_metrics("train", 2)
    metrics.update(torch.tensor([[1.0, -1.0]]), torch.tensor([[0.7, 0.3]]))
    assert float(metrics.compute()["train/f1_micro"]) == 1.0


def test_names_by_stage() -> None:
    assert set(multi_label_metrics("train", 4)) == {"train/f1_micro"}
    assert set(multi_label_metrics("test", 4)) == {
        f"test/{name}" for name in ("map", "f1_micro", "f1_macro", "exact_match", "hamming_loss")
    }


def test_a_run_that_goes_on_finds_a_list_again_that_several_processes_have_joined() -> None:
    logits, labels = random_answers()
    module, whole = torch.nn.ModuleDict({"map": MeanAveragePrecision(7)}), MeanAveragePrecision(7)
    whole.update(logits, labels)
    states = {"map": {"scores": whole.scores[1][:90], "labels": whole.labels[1][:90]}}
    restore_metrics(module, states)
    module["map"].update(logits[90:], labels[90:])  # type: ignore[operator]  # a Metric
    assert module["map"].compute() == whole.compute()  # type: ignore[operator]
