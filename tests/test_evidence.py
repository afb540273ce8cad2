"""What the README says of the digits is what the tables that come with it say."""

import re
from pathlib import Path

import pytest

from dropkey_cli.ablation.grid import BASELINE, GRIDS, cells_of
from dropkey_cli.ablation.results import read_rows
from dropkey_cli.ablation.statistics import CellSummary, summarize
from dropkey_cli.ablation.summary import write_summary
from dropkey_cli.ablation.wording import difference_text, mean_text, title

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "configs" / "digits_few_images"
TABLES = sorted(EVIDENCE.rglob("ablation.csv"))
METRIC, SELECTION = "test/acc1", "val/acc1"
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.parent.name)
def test_the_summary_is_that_of_the_table(table: Path, tmp_path: Path) -> None:
    rows = read_rows(table)
    assert not [row for row in rows if row.error]
    write_summary(tmp_path, rows, metric=METRIC, selection_metric=SELECTION)
    for name in ("summary.md", "summary.csv"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (table.parent / name).read_text(encoding="utf-8")


def test_every_cell_of_the_full_grid_was_trained_with_twenty_seeds() -> None:
    rows = read_rows(EVIDENCE / "ablation.csv")
    trained = {cell: {row.seed for row in rows if row.cell == cell} for cell in cells_of(GRIDS["full"], source="full")}
    assert {len(seeds) for seeds in trained.values()} == {20}


def by_title(table: Path) -> dict[str, CellSummary]:
    return {title(summary.cell): summary for summary in summarize(read_rows(table), METRIC, baseline=BASELINE)}


def test_the_readme_has_the_numbers_of_the_table() -> None:
    found = by_title(EVIDENCE / "ablation.csv")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("| ")]
    stated = {cells[0]: cells[1:] for cells in lines if cells[0] in found}
    assert len(stated) > 10
    for name, (mean, difference) in stated.items():
        summary = found[name]
        assert mean == mean_text(summary.values, METRIC), name
        assert difference == ("" if summary.comparison is None else difference_text(summary.comparison, METRIC)), name


def test_pictures_that_the_readme_shows_are_there() -> None:
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert shown
    assert all((ROOT / path).is_file() for path in shown)
