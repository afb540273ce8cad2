from pathlib import Path

import pytest

from dropkey_cli.ablation.attention import draw_attention_of
from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.results import Row
from dropkey_cli.report.attention_figure import attention_figure
from dropkey_cli.report.attention_rows import AttentionRow, write_attention

CELLS = {
    Cell(): 0.5,
    Cell("attention_dropout", 0.1): 0.6,
    Cell("attention_dropout", 0.3): 0.7,
    Cell("dropkey", 0.3, "decreasing", structure="element"): 0.7,
    Cell("dropkey", 0.3, "decreasing", structure="element", remedy="finish"): 0.9,
}


def measured(folder: Path, *, report: str) -> list[Row]:
    """Two seeds of each cell, with entropies 1 and 2 plus the accuracy."""
    rows = []
    for cell, accuracy in CELLS.items():
        for seed in (0, 1):
            run = f"{cell.name}/seed_{seed}/version_0"
            (folder / run / report).mkdir(parents=True)
            line = AttentionRow("blocks.0.attn", 0, "inference", 1 + seed + accuracy, 0.5, 0.25, rows=8)
            write_attention(folder / run / report / "attention.csv", [line])
            rows.append(Row(cell, seed, {"val/acc1": accuracy}, run=run))
    return rows


@pytest.mark.parametrize("report", ["report_test", "report_validate"])
def test_the_best_of_each_kind_are_drawn_averaged_over_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: str
) -> None:
    drawn: dict[str, float] = {}

    def figure(tables: dict[str, list[AttentionRow]]) -> object:
        drawn.update({name: rows[0].entropy for name, rows in tables.items()})
        return attention_figure(tables)

    monkeypatch.setattr("dropkey_cli.ablation.attention.attention_figure", figure)
    assert draw_attention_of(tmp_path, measured(tmp_path, report=report), "val/acc1") == [tmp_path / "attention.png"]
    assert (tmp_path / "attention.png").stat().st_size > 1000
    assert drawn == pytest.approx({"none": 2.0, "attention dropout 0.3": 2.2, "DropKey decreasing 0.3": 2.2})


def test_nothing_is_drawn_where_nothing_was_measured(tmp_path: Path) -> None:
    assert draw_attention_of(tmp_path, [Row(Cell(), 0, {"val/acc1": 0.5}, run="none/seed_0/version_0")], "val/acc1") == []
