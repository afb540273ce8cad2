from collections.abc import Callable
from pathlib import Path

import pytest

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.results import Row, read_rows, write_rows
from dropkey_cli.errors import InputError

CELLS = [
    Cell(),
    Cell("attention_dropout", 0.1),
    Cell("dropkey", 0.3, "decreasing", structure="element"),
    Cell("dropkey", 0.05, "increasing", match_mean=True, structure="block", window_size=3, remedy="monte_carlo"),
]


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [Row(cell, seed, {"test/acc1": 0.1234567 + seed / 8}, 1.5, f"runs/{seed}") for seed, cell in enumerate(CELLS)]
    rows.append(Row(CELLS[0], 7, error="out of memory, it says"))
    write_rows(tmp_path / "ablation.csv", rows)
    assert read_rows(tmp_path / "ablation.csv") == rows


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ablation.csv").write_text("path,label\n")
    with pytest.raises(InputError, match=r"ablation.csv is no table of an ablation: it has no column cell, error"):
        read_rows(tmp_path / "ablation.csv")


@pytest.mark.parametrize("damaged", [lambda line: line.replace("0.5", "half"), lambda line: line[:30]])
def test_a_line_that_was_damaged_is_named(tmp_path: Path, damaged: Callable[[str], str]) -> None:
    path = tmp_path / "ablation.csv"
    write_rows(path, [Row(cell, 0, {"test/acc1": 0.5}) for cell in CELLS[:2]])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], damaged(lines[2])]))
    with pytest.raises(InputError, match=r"ablation.csv, line 3: .*; mend the line or delete it"):
        read_rows(path)
