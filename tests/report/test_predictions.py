import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dropkey_cli.report.predictions import Outcomes, read_predictions, write_predictions


def test_a_row_says_label_answer_and_the_next_classes(tmp_path: Path) -> None:
    probabilities = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    outcomes = Outcomes.of(probabilities, label=torch.tensor([1, 0]), index=torch.tensor([4, 2]), paths=["b.png", "a.png"])
    write_predictions(tmp_path / "p.csv", Outcomes.join([outcomes]), ["x", "x", 'y "z"'])
    rows = list(csv.reader((tmp_path / "p.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0][:8] == [
        "index", "path", "label", "label_index", "label_probability", "prediction", "prediction_index", "probability",
    ]  # fmt: skip
    assert rows[1] == ["2", "a.png", "x", "0", "0.500000", "x", "0", "0.500000", "x", "0.300000", 'y "z"', "0.200000"]
    assert rows[2] == ["4", "b.png", "x", "1", "0.200000", 'y "z"', "2", "0.700000", "x", "0.200000", "x", "0.100000"]
    found = read_predictions(tmp_path / "p.csv")
    assert (found.index, found.label, found.prediction, found.correct) == ([2, 4], [0, 1], [0, 2], [True, False])
    assert found.probability == [0.5, 0.7]
    assert found.label_probability == [0.5, 0.2]


def test_parts_join_in_the_order_of_the_data_set(outcomes: Callable[..., Outcomes], tmp_path: Path) -> None:
    whole = outcomes(10)
    probabilities = torch.zeros(10, 4)
    probabilities.scatter_(1, whole.classes, whole.probabilities)
    parts = [
        Outcomes.of(probabilities[places], label=whole.label[places], index=whole.index[places],
                    paths=[whole.paths[place] for place in places])
        for places in (range(1, 10, 2), range(0, 10, 2))
    ]  # fmt: skip
    for number, outcome in enumerate((whole, Outcomes.join(parts))):
        write_predictions(tmp_path / f"{number}.csv", outcome, list("abcd"))
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / "1.csv").read_bytes()


def test_paths_that_are_no_text_survive(tmp_path: Path) -> None:
    outcomes = Outcomes.of(torch.eye(2), label=torch.tensor([0, 1]), index=torch.arange(2), paths=["\udcff.png", "a,b.png"])
    write_predictions(tmp_path / "p.csv", outcomes, ["a", "b"])
    assert read_predictions(tmp_path / "p.csv").path == ["\udcff.png", "a,b.png"]


def test_what_is_kept_does_not_grow_with_the_classes() -> None:
    outcomes = Outcomes.of(torch.rand(3, 1000), label=torch.tensor([0, 1, 2]), index=torch.arange(3), paths=["", "", ""])
    assert outcomes.classes.shape == outcomes.probabilities.shape == (3, 5)
    assert float(outcomes.probabilities[0, 0]) == pytest.approx(float(outcomes.probabilities[0].max()))
