import csv
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, Group

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.results import Row
from dropkey_cli.ablation.statistics import compare
from dropkey_cli.ablation.summary import baseline_of, write_summary

BEST = Cell("dropkey", 0.3, "decreasing", structure="element")


def shown(group: Group) -> str:
    console = Console(width=200)
    with console.capture() as text:
        console.print(group)
    return text.get()


def written(folder: Path, rows: list[Row], metric: str = "test/acc1", selection_metric: str = "val/acc1") -> str:
    write_summary(folder, rows, metric=metric, selection_metric=selection_metric)
    return (folder / "summary.md").read_text(encoding="utf-8")


def test_the_table_for_programs_has_the_unrounded_figures(tmp_path: Path, table: list[Row]) -> None:
    written(tmp_path, table)
    text = (tmp_path / "summary.csv").read_text(encoding="utf-8")
    lines = {line["cell"]: line for line in csv.DictReader(text.splitlines())}
    assert list(lines) == list(dict.fromkeys(row.cell.name for row in table))
    values = [{row.seed: row.metrics["test/acc1"] for row in table if row.cell == cell} for cell in (BEST, Cell())]
    found, line = compare(*values), lines[BEST.name]
    assert found.interval is not None
    assert [float(line[name]) for name in ("difference", "difference_standard_error", "lower", "upper", "p")] == [
        found.pairs.mean, found.pairs.error, *found.interval, found.p
    ]  # fmt: skip
    assert (line["seeds"], line["failed"], line["baseline"], line["pairs"]) == ("8", "0", "none", "8")
    assert (line["outcome"], line["chosen"], line["window_size"]) == ("better", "true", "")
    assert (lines["none"]["difference"], lines["none"]["outcome"]) == ("", "baseline")
    assert lines["dropkey_decreasing_0.1_element"]["chosen"] == "false"
    finished = lines["dropkey_decreasing_0.3_element_finish"]
    assert (finished["seeds"], finished["failed"], finished["remedy"]) == ("7", "1", "finish")


def test_plain_sentences_come_first(tmp_path: Path, table: list[Row]) -> None:
    text = written(tmp_path, table)
    assert text.startswith("# Ablation: test/acc1\n\n- “DropKey decreasing 0.3” is better than “none”: +2.6 ± 0.1 [")
    assert "No difference between “DropKey decreasing 0.3” and “attention dropout 0.3” is seen: +0.1 ± 0.1 [−0.2, +0.4]" in text
    assert "points (8 seeds, p 0.38); with these seeds, one of less than about 0.3 points would not be seen.\n" in text
    assert "“DropKey decreasing 0.3” is better than “DropKey increasing 0.3”: +1.6 ±" in text
    assert "“DropKey decreasing 0.3, finished without dropping” is better than “DropKey decreasing 0.3”: +0.4 ±" in text
    assert text.index("- “DropKey") < text.index("| cell |")


def test_what_the_table_means_is_said(tmp_path: Path, table: list[Row]) -> None:
    text = written(tmp_path, table)
    assert "8 cells of 7 to 8 seeds, 1 missing (their training failed, or the value is no finite number)." in text
    assert (
        "share their initial weights and the images of every batch in the same order; what is dropped differs by nature" in text
    )
    assert "Verdicts and p count all 7 of the table, or all 6 of the sentences: by Holm's correction" in text
    assert "DropKey was chosen out of 4 settings, attention dropout out of 2." in text
    assert "\\* the best of its ratios by the mean val/acc1." in text
    assert "| DropKey decreasing 0.3\\* |" in text
    assert "| 7 (1 failed) |" in text
    assert "Hold out a test split" not in text


def test_a_choice_by_the_reported_images_is_said_to_be_optimistic(tmp_path: Path, table: list[Row]) -> None:
    assert "what was chosen looks better than it is. Hold out a test split." in written(tmp_path, table, metric="val/acc1")


def test_nothing_is_said_of_a_choice_where_there_was_none(tmp_path: Path, table: list[Row]) -> None:
    text = written(tmp_path, [row for row in table if row.cell in (Cell(), BEST)])
    assert "*" not in text
    assert "chosen" not in text


def test_a_loss_has_no_points_and_less_of_it_is_better(tmp_path: Path, table: list[Row]) -> None:
    text = written(tmp_path, table, metric="test/loss")
    assert "“DropKey decreasing 0.3” is better than “none”: −0.0260 ± 0.0008 [−0.0278, −0.0242] (8 seeds" in text
    assert "points" not in text
    assert "percent" not in text


def test_one_seed_says_nothing(tmp_path: Path, table: list[Row]) -> None:
    text = written(tmp_path, [row for row in table if row.seed == 0])
    assert (
        "“DropKey decreasing 0.3” and “none” cannot be compared: 1 seed in common, two are needed and ten are better." in text
    )
    assert "better than" not in text
    assert text.count("| one seed says nothing |") == 7


def test_the_terminal_shows_the_same(tmp_path: Path, table: list[Row]) -> None:
    text = shown(write_summary(tmp_path, table, metric="test/acc1", selection_metric="val/acc1"))
    assert text.startswith("“DropKey decreasing 0.3” is better than “none”: +2.6 ± 0.1 [")
    assert "│ DropKey decreasing 0.3* " in text
    assert "\\" not in text
    for line in (tmp_path / "summary.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and ":--" not in line:
            assert all(cell.replace("\\", "") in text for cell in line.strip("| ").split(" | "))


def test_an_ablation_that_failed_altogether_has_a_summary(tmp_path: Path) -> None:
    text = written(tmp_path, [Row(Cell(), 0, error="x"), Row(BEST, 0, error="x")])
    assert "| none | 0 (1 failed) | – |  |  | baseline |" in text
    assert "2 cells of 0 seeds, 2 missing" in text


def test_without_no_dropping_the_first_cell_is_the_baseline(table: list[Row]) -> None:
    assert baseline_of(table[8:]) == Cell("attention_dropout", 0.1)
    assert baseline_of(table[::-1]) == Cell()
    with pytest.raises(ValueError, match="an ablation without a row has no baseline"):
        baseline_of([])


def test_what_only_the_number_of_comparisons_makes_noise_is_said_so(tmp_path: Path) -> None:
    first, second = (
        Cell("dropkey", 0.3, "decreasing", structure="element"),
        Cell("dropkey", 0.3, "constant", structure="element"),
    )
    values = {Cell(): [0.5] * 5, first: [0.57, 0.6, 0.63, 0.6, 0.6], second: [0.57] * 5}
    rows = [Row(cell, seed, {"val/acc1": value}) for cell, of in values.items() for seed, value in enumerate(of)]
    rows += [
        Row(replace(second, schedule="increasing"), seed, {"val/acc1": value}) for seed, value in enumerate(values[second])
    ]
    write_summary(tmp_path, rows, metric="val/acc1", selection_metric="val/acc1")
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")  # t = 3.16, p = 0.034 of 5 pairs; twice that after Holm
    assert "“DropKey decreasing 0.3” may differ from “DropKey constant 0.3”" in text
    assert "among so many comparisons that is noise, more seeds would tell." in text
