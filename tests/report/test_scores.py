from pathlib import Path

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from dropkey_cli.report.predictions import Predictions
from dropkey_cli.report.scores import (
    BINS,
    calibration,
    class_scores,
    confusion_matrix,
    confusions,
    label_counts,
    label_scores,
    macro_scores,
    read_scores,
    worst_mistakes,
    write_scores,
)

NAMES = list("abcd")


def made(label: list[int], prediction: list[int], probability: list[float]) -> Predictions:
    positions = list(range(len(label)))
    return Predictions(positions, [f"{p}.png" for p in positions], label, [0.0] * len(label), prediction, probability)


def test_scores_of_classes_are_those_of_torchmetrics(predictions: Predictions) -> None:
    scores = class_scores(predictions, NAMES)
    found = torch.tensor(predictions.prediction), torch.tensor(predictions.label)
    for name, function in (("precision", multiclass_precision), ("recall", multiclass_recall), ("f1", multiclass_f1_score)):
        expected = function(*found, num_classes=4, average=None)
        torch.testing.assert_close(torch.tensor([getattr(row, name) for row in scores]), expected, msg=name)
    assert [row.support for row in scores] == [predictions.label.count(number) for number in range(4)]
    assert scores[3].support == 0


def test_scores_of_any_number_of_classes_per_image_are_those_of_scikit_learn(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(60, 4, generator=generator) > 0.6).float()
    labels[:, 3] = 0
    probabilities = torch.rand(60, 4, generator=generator)
    counts = label_counts(probabilities[:25], labels[:25]) + label_counts(probabilities[25:], labels[25:])
    names = ["<b>", 'a "b", c', "猫\udcff", ""]
    write_scores(tmp_path / "per_class.csv", label_scores(counts, names))
    found = read_scores(tmp_path / "per_class.csv")
    assert [row.name for row in found] == names
    expected = precision_recall_fscore_support(labels, probabilities > 0.5, zero_division=0)
    for column, name in zip(expected, ("precision", "recall", "f1", "support"), strict=True):
        assert [getattr(row, name) for row in found] == pytest.approx(column.tolist(), abs=1e-6)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_macro_recall_is_the_balanced_accuracy(predictions: Predictions) -> None:
    macro = macro_scores(class_scores(predictions, NAMES))
    assert macro["macro_recall"] == pytest.approx(balanced_accuracy_score(predictions.label, predictions.prediction))
    assert macro.keys() == {"macro_precision", "macro_recall", "macro_f1"}


def test_the_confusion_matrix_is_that_of_scikit_learn(predictions: Predictions) -> None:
    expected = sklearn_confusion_matrix(predictions.label, predictions.prediction, labels=range(4))
    assert confusion_matrix(predictions, 4).tolist() == expected.tolist()
    assert sorted(pair.count for pair in confusions(predictions)) == sorted(
        int(count) for row in range(4) for column, count in enumerate(expected[row]) if row != column and count
    )


def test_confused_pairs_come_by_number_and_then_by_class() -> None:
    pairs = confusions(made([0, 0, 1, 2, 2, 2, 3], [1, 0, 0, 3, 3, 2, 3], [0.5] * 7))
    assert [(pair.label, pair.prediction, pair.count) for pair in pairs] == [(2, 3, 2), (0, 1, 1), (1, 0, 1)]
    assert [pair.share for pair in pairs] == [2 / 3, 0.5, 1.0]


def test_the_calibration_error_is_a_hand_count() -> None:
    # Two bins: 0.4 to 0.4667 with 1 of 2 right, 0.8667 to 0.9333 with 1 of 3 right
    found = calibration(made([0] * 5, [0, 1, 0, 1, 1], [0.41, 0.43, 0.90, 0.91, 0.92]))
    assert found.error == pytest.approx(2 / 5 * abs(1 / 2 - 0.42) + 3 / 5 * abs(1 / 3 - 0.91))
    assert [(place, count) for place, count in enumerate(found.count) if count] == [(6, 2), (13, 3)]
    assert [found.accuracy[6], found.accuracy[13]] == pytest.approx([0.5, 1 / 3])
    assert found.confidence[13] == pytest.approx(0.91)


def test_the_calibration_error_is_that_of_whole_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(500, 6, generator=generator).mul(2).softmax(-1).double()
    label = torch.randint(0, 6, (500,), generator=generator)
    best = probabilities.max(-1)
    found = calibration(made(label.tolist(), best.indices.tolist(), best.values.tolist()))
    expected = multiclass_calibration_error(probabilities, label, num_classes=6, n_bins=BINS)
    assert found.error == pytest.approx(float(expected))
    shares = [count / 500 for count in found.count]
    gaps = [abs(right - said) for right, said in zip(found.accuracy, found.confidence, strict=True)]
    assert sum(share * gap for share, gap in zip(shares, gaps, strict=True)) == pytest.approx(found.error)


def test_certainty_counts_in_the_last_bin() -> None:
    found = calibration(made([0, 0], [0, 1], [1.0, 0.95]))
    assert found.count[BINS - 1] == 2
    assert found.error == pytest.approx(abs(0.5 - 0.975))


def test_the_surest_mistakes_come_first() -> None:
    assert worst_mistakes(made([0, 0, 0, 0], [1, 0, 1, 1], [0.5, 0.99, 0.9, 0.6]), 2) == [2, 3]
