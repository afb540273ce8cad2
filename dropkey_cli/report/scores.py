"""How good the predictions are, class by class and together: precision, recall, F1, confusions, calibration."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dropkey_cli.files import write_csv
from dropkey_cli.report.predictions import Predictions

BINS = 15
"""Of probability, as in most papers on calibration."""


@dataclass(frozen=True)
class ClassScores:
    """One class: its name, its images, and in [0, 1] how many of those called so are (precision) and are found (recall)."""

    name: str
    support: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Confusion:
    """How many images of the class ``label`` were taken for ``prediction``, and which share of the class they are."""

    label: int
    prediction: int
    count: int
    share: float


@dataclass(frozen=True)
class Calibration:
    """Share of right answers against the probability they were given with, in bins of probability.

    Attributes:
        accuracy: Per bin.
        confidence: Mean probability per bin.
        count: Images per bin.
        error: Expected calibration error: the mean of |accuracy − confidence| over the images.
    """

    accuracy: list[float]
    confidence: list[float]
    count: list[int]
    error: float


def class_scores(predictions: Predictions, class_names: list[str]) -> list[ClassScores]:
    """The scores of every class; a class without images has recall and F1 0, one that is never predicted precision 0."""
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        predictions.label, predictions.prediction, labels=range(len(class_names)), zero_division=0
    )
    found = zip(class_names, *(column.tolist() for column in columns), strict=True)
    return [ClassScores(name, int(support), precision, recall, f1) for name, precision, recall, f1, support in found]


def label_counts(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Of images with any number of classes (B, K), per class: said and right, said, and there, (3, K).

    A class is said where its probability is above 0.5.
    """
    said, there = probabilities > 0.5, labels > 0.5
    return torch.stack([(said & there).sum(0), said.sum(0), there.sum(0)])


def label_scores(counts: Tensor, class_names: Sequence[str]) -> list[ClassScores]:
    """The scores of every class from its `label_counts`; what would be divided by 0 is 0."""
    return [
        ClassScores(name, there, right / max(said, 1), right / max(there, 1), 2 * right / max(said + there, 1))
        for name, (right, said, there) in zip(class_names, counts.T.tolist(), strict=True)
    ]


def write_scores(path: Path, scores: Sequence[ClassScores]) -> None:
    """Write the file ``per_class.csv``, whole or not at all."""
    rows = ((row.name, row.support, *(f"{x:.6f}" for x in (row.precision, row.recall, row.f1))) for row in scores)
    write_csv(path, ("class", "images", "precision", "recall", "f1"), rows)


def read_scores(path: Path) -> list[ClassScores]:
    """Read what `write_scores` wrote."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [
            ClassScores(row["class"], int(row["images"]), *(float(row[name]) for name in ("precision", "recall", "f1")))
            for row in csv.DictReader(file)
        ]


def macro_scores(scores: list[ClassScores]) -> dict[str, float]:
    """Means over the classes that have images: recall's is the balanced accuracy."""
    present = [row for row in scores if row.support]
    names = ("precision", "recall", "f1")
    return {f"macro_{name}": sum(getattr(row, name) for row in present) / max(len(present), 1) for name in names}


def confusion_matrix(predictions: Predictions, num_classes: int) -> Tensor:
    """Number of images by label (rows) and prediction (columns), (K, K)."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    found = torch.tensor(predictions.prediction), torch.tensor(predictions.label)
    return multiclass_confusion_matrix(*found, num_classes=num_classes, validate_args=False)


def confusions(predictions: Predictions) -> list[Confusion]:
    """The pairs of classes that were confused, most images first."""
    images = Counter(predictions.label)
    pairs = Counter(zip(predictions.label, predictions.prediction, strict=True))
    wrong = [(pair, count) for pair, count in pairs.items() if pair[0] != pair[1]]
    wrong.sort(key=lambda item: (-item[1], item[0]))
    return [Confusion(label, prediction, count, count / images[label]) for (label, prediction), count in wrong]


def calibration(predictions: Predictions) -> Calibration:
    """The reliability diagram and the expected calibration error."""
    from torchmetrics.functional.classification import binary_calibration_error

    # torchmetrics gives probability 1 a bin of its own, behind the last
    confidence = torch.tensor(predictions.probability, dtype=torch.float64).clamp(0, 1 - 1e-9)
    correct = torch.tensor(predictions.correct, dtype=torch.float64)
    error = float(binary_calibration_error(confidence, correct.long(), n_bins=BINS, validate_args=False))
    borders = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    places = torch.bucketize(confidence, borders, right=True) - 1
    count = torch.bincount(places, minlength=BINS)
    sums = [torch.bincount(places, weights=values, minlength=BINS) / count.clamp(min=1) for values in (correct, confidence)]
    return Calibration(sums[0].tolist(), sums[1].tolist(), count.tolist(), error)


def worst_mistakes(predictions: Predictions, count: int) -> list[int]:
    """Places in ``predictions`` of the wrong answers that were given with the highest probability, highest first."""
    wrong = [place for place, right in enumerate(predictions.correct) if not right]
    return sorted(wrong, key=lambda place: -predictions.probability[place])[:count]
