"""``predictions.csv`` of a report: what the network said of every labelled image, one row each."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dropkey_cli.files import write_csv

NAMED = 5
"""So many classes a row names, the likeliest first."""


@dataclass
class Outcomes:
    """What is kept of the class probabilities of some images: little, and on the device they were computed on.

    Attributes:
        index: Position of each of the B images in the data set, (B,).
        label: Class index, (B,).
        label_probability: Probability of that class, (B,).
        classes: The likeliest classes, likeliest first, (B, at most NAMED).
        probabilities: Theirs.
        paths: File of each image.
    """

    index: Tensor
    label: Tensor
    label_probability: Tensor
    classes: Tensor
    probabilities: Tensor
    paths: list[str]

    @classmethod
    def of(cls, probabilities: Tensor, *, label: Tensor, index: Tensor, paths: list[str]) -> "Outcomes":
        """Those of class probabilities (B, K)."""
        best = probabilities.topk(min(NAMED, probabilities.shape[-1]))
        of_label = probabilities.gather(-1, label.clamp(min=0)[:, None]).squeeze(-1)
        return cls(index, label, of_label, best.indices, best.values, paths)

    @classmethod
    def join(cls, parts: list["Outcomes"]) -> "Outcomes":
        """All of them that have a label, on the CPU, in the order of the data set."""
        index, *others = (
            torch.cat([getattr(part, name) for part in parts]).cpu()
            for name in ("index", "label", "label_probability", "classes", "probabilities")
        )
        paths = [path for part in parts for path in part.paths]
        order = index.argsort(stable=True)
        order = order[others[0][order] >= 0]
        label, of_label, classes, probabilities = (tensor[order] for tensor in others)
        return cls(index[order], label, of_label, classes, probabilities, [paths[place] for place in order.tolist()])


@dataclass
class Predictions:
    """The labelled images of a report, N of them, in the order of the data set.

    Attributes:
        index: Position in the data set.
        path: File of the image.
        label: Class index.
        label_probability: Probability of that class.
        prediction: Index of the likeliest class.
        probability: Its probability.
    """

    index: list[int]
    path: list[str]
    label: list[int]
    label_probability: list[float]
    prediction: list[int]
    probability: list[float]

    @property
    def correct(self) -> list[bool]:
        """Whether the likeliest class is the label."""
        return [label == prediction for label, prediction in zip(self.label, self.prediction, strict=True)]


def header(named: int) -> list[str]:
    """The column names; a class stands there by name, and by index, since names may repeat."""
    columns = ["index", "path", "label", "label_index", "label_probability", "prediction", "prediction_index", "probability"]
    for rank in range(2, named + 1):
        columns += [f"top{rank}_class", f"top{rank}_probability"]
    return columns


def write_predictions(path: Path, outcomes: Outcomes, class_names: list[str]) -> None:
    """Write the file, whole or not at all."""
    write_csv(path, header(outcomes.classes.shape[-1]), _rows(outcomes, class_names))


def _rows(outcomes: Outcomes, class_names: list[str]) -> Iterable[list[object]]:
    columns = (outcomes.index, outcomes.label, outcomes.label_probability, outcomes.classes, outcomes.probabilities)
    for path, *values in zip(outcomes.paths, *(column.tolist() for column in columns), strict=True):
        index, label, of_label, classes, probabilities = values
        pairs = [(class_names[number], f"{value:.6f}") for number, value in zip(classes, probabilities, strict=True)]
        further = [cell for pair in pairs[1:] for cell in pair]
        first, probability = pairs[0]
        yield [index, path, class_names[label], label, f"{of_label:.6f}", first, classes[0], probability, *further]


def read_predictions(path: Path) -> Predictions:
    """Read what `write_predictions` wrote."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    return Predictions(
        index=[int(row["index"]) for row in rows],
        path=[row["path"] for row in rows],
        label=[int(row["label_index"]) for row in rows],
        label_probability=[float(row["label_probability"]) for row in rows],
        prediction=[int(row["prediction_index"]) for row in rows],
        probability=[float(row["probability"]) for row in rows],
    )
