"""What the trained networks of an ablation attend to: none, attention dropout and DropKey side by side."""

from collections.abc import Iterable
from pathlib import Path

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.ablation.choice import best_of_each_kind
from dropkey_cli.ablation.results import Row
from dropkey_cli.ablation.wording import title
from dropkey_cli.report.attention_figure import attention_figure
from dropkey_cli.report.attention_rows import AttentionRow, mean_over_runs, read_attention
from dropkey_cli.report.pictures import drawing, to_png

KINDS = ("none", "attention_dropout", "dropkey")


def draw_attention_of(folder: Path, rows: Iterable[Row], selection_metric: str) -> list[Path]:
    """Draw entropy and strongest key at inference, averaged over seeds, of the best of each kind without structure.

    Args:
        folder: Of the ablation; the pictures' numbers lie in its runs where they were measured.
        rows: Of its table.
        selection_metric: What chooses, e.g. val/acc1.
    """
    rows = [row for row in rows if row.cell.structure in ("", "element")]  # the paper's
    best = best_of_each_kind(rows, selection_metric)
    tables = {title(best[kind].cell): _mean(folder, rows, best[kind].cell) for kind in KINDS if kind in best}
    measured = {name: table for name, table in tables.items() if table}
    if not measured:
        return []
    path = folder / "attention.png"
    with drawing():
        to_png(attention_figure(measured), path)
    return [path]


def _mean(folder: Path, rows: list[Row], cell: Cell) -> list[AttentionRow]:
    """Of all seeds, on the test images if there were some; nothing where attention was not measured."""
    runs = [folder / row.run for row in rows if row.cell == cell and not row.error]
    for name in ("report_test", "report_validate"):
        found = [read_attention(path) for run in runs if (path := run / name / "attention.csv").is_file()]
        if found:
            return mean_over_runs(found)
    return []
