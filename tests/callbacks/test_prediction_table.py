import numpy as np
import pytest
import torch

from dropkey_cli.callbacks.prediction_table import NO_NUMBER, Choice, Table, interleave, prediction_table, rows

NAMES = ["ant", "bee", "cat, or dog"]
PROBABILITIES = torch.tensor([[0.2, 0.7, 0.1], [0.4, 0.3, 0.3], [0.0, 0.25, 0.75]])
STD = torch.tensor([[0.02, 0.07, 0.01], [0.04, 0.03, 0.03], [0.0, 0.5, 0.25]])
FIRST = ["path", "prediction", "probability", "error"]


def table(choice: Choice, **outputs: torch.Tensor) -> Table:
    return prediction_table(["a", "b", "c"], ["", "broken", ""], {"probability": PROBABILITIES, **outputs}, NAMES, choice)


def test_columns_that_scripts_rely_on() -> None:
    assert list(table(Choice(1))) == FIRST
    tops = ["top2_class", "top2_probability", "top3_class", "top3_probability"]
    assert list(table(Choice(3))) == [*FIRST, *tops]
    spreads = ["std", "top2_std", "top3_std"]
    assert list(table(Choice(3), std=STD)) == [*FIRST, *tops, *spreads]
    per_class = [f"{name}_{class_name}" for name in ("probability", "std") for class_name in NAMES]
    everything = table(Choice(3, all_probabilities=True), std=STD, features=torch.zeros(3, 2))
    assert list(everything) == [*FIRST, *tops, *spreads, *per_class, "feature_0", "feature_1"]


def test_rows_by_falling_probability() -> None:
    assert list(rows(table(Choice(2)))) == [
        ("a", "bee", 0.7, None, "ant", 0.2),
        ("b", None, None, "broken", None, None),
        ("c", "cat, or dog", 0.75, None, "bee", 0.25),
    ]


def test_what_belongs_to_a_class_goes_with_it() -> None:
    given = table(Choice(2, all_probabilities=True), std=STD, features=torch.tensor([[1.5], [2.5], [-3.0]]))
    (first, unreadable, last) = rows(given)
    by_name = dict(zip(given, first, strict=True))
    assert (by_name["std"], by_name["top2_std"]) == (0.07, 0.02)
    assert first[-7:] == (0.2, 0.7, 0.1, 0.02, 0.07, 0.01, 1.5)
    assert unreadable == ("b", None, None, "broken", *[None] * (len(first) - 4))
    assert last[-7:] == (0.0, 0.25, 0.75, 0.0, 0.5, 0.25, -3.0)


@pytest.mark.parametrize(("threshold", "kept"), [(0.25, 2), (0.2500001, 1), (0.75, 1), (0.76, 0)])
def test_classes_below_the_threshold_are_left_empty(threshold: float, kept: int) -> None:
    (_, _, row) = rows(table(Choice(3, threshold), std=STD))
    pairs = [row[1:3], row[4:6], row[6:8]]
    assert pairs == [("cat, or dog", 0.75), ("bee", 0.25), ("ant", 0.0)][:kept] + [(None, None)] * (3 - kept)
    assert row[8:] == (0.25, 0.5, 0.0)[:kept] + (None,) * (3 - kept)
    assert row[3] is None


def test_padding_has_no_row_and_a_batch_of_it_has_none_at_all() -> None:
    padded = prediction_table(["a", ""], ["", ""], {"probability": PROBABILITIES[:2]}, NAMES, Choice(1))
    assert list(rows(padded)) == [("a", "bee", 0.7, None)]
    only = prediction_table([""], [""], {"probability": PROBABILITIES[:1]}, NAMES, Choice(1))
    assert list(only) == FIRST
    assert list(rows(only)) == []


def test_a_network_that_gives_nan_is_an_error_and_not_a_class() -> None:
    outputs = {"probability": torch.tensor([[0.1, torch.nan, 0.2]])}
    assert list(rows(prediction_table(["a"], [""], outputs, NAMES, Choice(2)))) == [("a", None, None, NO_NUMBER, None, None)]


def test_numbers_are_exact_whatever_the_precision() -> None:
    probability = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) ** 9
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        given = prediction_table(["a"] * 200, [""] * 200, {"probability": probability.to(dtype)}, NAMES, Choice(1))
        read = np.array([row[2] for row in rows(given)], dtype=np.float32)
        assert read.tolist() == probability.to(dtype).float().amax(1).tolist()


def test_rows_of_processes_in_input_order() -> None:
    # Five images on three processes: a d | b e | c and padding
    dealt = [["a", "d"], ["b", "e"], ["c", ""]]
    values = {name: torch.tensor([[float(ord(name[:1] or "0"))]]) for paths in dealt for name in paths}
    tables = [
        prediction_table(paths, ["", ""], {"probability": torch.cat([values[path] for path in paths])}, ["only"], Choice(1))
        for paths in dealt
    ]
    assert [row[::2] for row in rows(interleave(tables))] == [(name, float(ord(name))) for name in "abcde"]
    assert interleave(tables[:1]) is tables[0]
