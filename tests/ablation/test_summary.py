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
    assert text.startswith(
        "# Ablation: test/acc1\n\n- Chosen by the mean val/acc1: “DropKey decreasing 0.3” out of 4, “attention dropout 0.3” "
        "out of 2. That flatters test/acc1 a little, since a lucky training is better on both.\n"
        "- “DropKey decreasing 0.3” is better than “none”: +2.6 ± 0.1 ["
    )
    assert "No difference between “DropKey decreasing 0.3” and “attention dropout 0.3” is seen: +0.1 ± 0.1 [−0.2, +0.4]" in text
    assert "points (8 seeds, p 0.38); up to 0.4 points are possible.\n" in text
    assert "“DropKey decreasing 0.3” is better than “DropKey increasing 0.3”: +1.6 ±" in text
    assert "“DropKey decreasing 0.3, finished without dropping” is better than “DropKey decreasing 0.3”: +0.4 ±" in text
    assert text.index("- “DropKey") < text.index("| cell |")


def test_what_the_table_means_is_said(tmp_path: Path, table: list[Row]) -> None:
    text = written(tmp_path, table)
    assert "8 cells of 7 to 8 seeds; 1 failed (the training did, or the value is no finite number)." in text
    assert (
        "share their initial weights and the images of every batch in the same order; what is dropped differs by nature" in text
    )
    assert (
        "Verdicts and p count all 7 of the table, and by themselves the 4 other of the sentences: by Holm's correction" in text
    )
    assert "\\* best of its kind." in text
    assert [line.partition("\\*")[0] for line in text.splitlines() if "\\* |" in line] == [
        "| attention dropout 0.3",
        "| DropKey decreasing 0.3",
    ]
    assert "| 7 (1 failed) |" in text
    assert "hold out a test split" not in text


def test_a_sentence_and_the_table_agree_on_a_comparison_that_both_have(tmp_path: Path) -> None:
    seeds = range(6)
    values = {Cell(): [0.5] * 6, BEST: [0.5 + 0.02 + 0.012 * (-1) ** seed for seed in seeds]}  # p 0.014 alone
    values |= {Cell("attention_dropout", 0.1 + place / 10): [0.5 + 0.01 * (-1) ** seed for seed in seeds] for place in range(8)}
    rows = [Row(cell, seed, {"val/acc1": value}) for cell, of in values.items() for seed, value in enumerate(of)]
    text = written(tmp_path, rows, metric="val/acc1")
    assert "“DropKey decreasing 0.3” may differ from “none”: +2.0 ± 0.5 [+0.6, +3.4] points (6 seeds, p 0.12);" in text
    assert "| DropKey decreasing 0.3 | 6 | 52.0 ± 0.5 | +2.0 ± 0.5 [+0.6, +3.4] | 0.12 | within noise |" in text


def test_seeds_that_a_stopped_ablation_did_not_reach_are_not_called_complete(tmp_path: Path, table: list[Row]) -> None:
    text = written(tmp_path, [row for row in table if not row.error and (row.seed < 7 or row.cell == Cell())])
    assert "8 cells of 7 to 8 seeds.  \n" in text


@pytest.mark.parametrize("schedules", [("decreasing",), ("decreasing", "constant")])
def test_a_choice_by_the_reported_images_is_said_to_be_optimistic(tmp_path: Path, schedules: tuple[str, ...]) -> None:
    ratios = (0.1, 0.3) if len(schedules) == 1 else (0.3,)  # settings that differ in their schedule are a choice, too
    cells = [Cell(), *(replace(BEST, schedule=schedule, ratio=ratio) for schedule in schedules for ratio in ratios)]
    rows = [Row(cell, seed, {"val/acc1": 0.5 + 0.1 * (cell == BEST)}) for cell in cells for seed in range(3)]
    text = written(tmp_path, rows, metric="val/acc1")
    assert (
        "“DropKey decreasing 0.3” out of 2. That flatters val/acc1, since the same images chose: hold out a test split." in text
    )


def test_nothing_is_said_of_a_choice_where_there_was_none(tmp_path: Path, table: list[Row]) -> None:
    text = written(tmp_path, [row for row in table if row.cell in (Cell(), BEST)])
    assert "*" not in text
    assert "hosen" not in text


def test_a_loss_has_no_points_and_less_of_it_is_better(tmp_path: Path, table: list[Row]) -> None:
    text = written(tmp_path, table, metric="test/loss")
    assert "“DropKey decreasing 0.3” is better than “none”: −0.0260 ± 0.0008 [−0.0278, −0.0242] (8 seeds" in text
    assert "points" not in text
    assert "percent" not in text


def test_one_seed_says_nothing(tmp_path: Path, table: list[Row]) -> None:
    text = written(tmp_path, [row for row in table if row.seed == 0])
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        "- No two cells can be compared: two seeds in common are needed, and ten are better."
    ]
    assert "better than" not in text
    assert text.count("| one seed says nothing |") == 7


def test_the_terminal_shows_the_same(tmp_path: Path, table: list[Row]) -> None:
    text = shown(write_summary(tmp_path, table, metric="test/acc1", selection_metric="val/acc1"))
    assert "\n- “DropKey decreasing 0.3” is better than “none”: +2.6 ± 0.1 [" in text
    assert "│ DropKey decreasing 0.3* " in text
    assert "\\" not in text
    for line in (tmp_path / "summary.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and ":--" not in line:
            assert all(cell.replace("\\", "") in text for cell in line.strip("| ").split(" | "))


def test_an_ablation_that_failed_altogether_has_a_summary(tmp_path: Path) -> None:
    text = written(tmp_path, [Row(Cell(), 0, error="x"), Row(BEST, 0, error="x")])
    assert "| none | 0 (1 failed) | – |  |  | baseline |" in text
    assert "2 cells of 0 seeds; 2 failed" in text


def test_without_no_dropping_the_first_cell_is_the_baseline(table: list[Row]) -> None:
    assert baseline_of(table[8:]) == Cell("attention_dropout", 0.1)
    assert baseline_of(table[::-1]) == Cell()
    with pytest.raises(ValueError, match="an ablation without a row has no baseline"):
        baseline_of([])


def test_a_difference_without_spread_of_too_few_seeds_is_not_called_none(tmp_path: Path) -> None:
    values = {Cell(): 0.5, BEST: 0.6}
    rows = [Row(cell, seed, {"val/acc1": value}) for cell, value in values.items() for seed in range(3)]
    text = written(tmp_path, rows, metric="val/acc1")
    assert "“DropKey decreasing 0.3” may differ from “none”: +10.0 ± 0.0 points (3 seeds, p 0.25);" in text
    assert "among so many comparisons of so few seeds that is noise, more would tell." in text


def test_an_ablation_of_one_cell_asks_nothing(tmp_path: Path) -> None:
    text = written(tmp_path, [Row(Cell(), seed, {"val/acc1": 0.5}) for seed in range(2)], metric="val/acc1")
    assert text.startswith("# Ablation: val/acc1\n\n| cell |")
    assert "Holm's" not in text
