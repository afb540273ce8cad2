"""``ablation.csv``: one row per training and way of evaluating it."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dropkey_cli.ablation.cells import Cell
from dropkey_cli.errors import InputError
from dropkey_cli.files import write_csv

FIRST = ("cell", "what", "ratio", "schedule", "match_mean", "structure", "window_size", "remedy", "seed")
LAST = ("seconds", "run", "error")


@dataclass(frozen=True)
class Row:
    """One training, evaluated one way.

    Args:
        cell: What it was told.
        seed: Its seed: runs of one seed have the same initial weights and the same images in every batch.
        metrics: What was measured after the last epoch, by name, e.g. test/acc1; empty where it failed.
        seconds: How long it took.
        run: Its folder, relative to that of the table.
        error: Why there are no metrics; "" where there are.
    """

    cell: Cell
    seed: int
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    run: str = ""
    error: str = ""


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write the table, whole or not at all; a metric that a row does not have is an empty cell."""
    rows = list(rows)
    names = sorted({name for row in rows for name in row.metrics})
    write_csv(path, [*FIRST, *names, *LAST], [_written(row, names) for row in rows])


def _written(row: Row, names: list[str]) -> list[object]:
    cell = row.cell
    told = [cell.name, cell.what, f"{cell.ratio:g}", cell.schedule, str(cell.match_mean).lower(), cell.structure]
    told += [str(cell.window_size or ""), cell.remedy, str(row.seed)]
    measured = [f"{row.metrics[name]:.7g}" if name in row.metrics else "" for name in names]
    return [*told, *measured, f"{row.seconds:.1f}", row.run, row.error]


def read_rows(path: Path) -> list[Row]:
    """Read the table.

    Raises:
        InputError: If it is none.
    """
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        if missing := {*FIRST, *LAST} - {*(table.fieldnames or ())}:
            raise InputError(
                f"{path} is no table of an ablation: it has no column {', '.join(sorted(missing))}; give another folder"
            )
        try:
            return [_read(line) for line in table]
        except (TypeError, ValueError) as error:  # half a line, or something else where a number stood
            raise InputError(f"{path}, line {table.line_num}: {error}; mend the line or delete it") from error


def _read(line: dict[str, str]) -> Row:
    cell = Cell(
        what=line["what"],  # type: ignore[arg-type]  # as it was written
        ratio=float(line["ratio"]),
        schedule=line["schedule"],
        match_mean=line["match_mean"] == "true",
        structure=line["structure"],
        window_size=int(line["window_size"]) if line["window_size"] else None,
        remedy=line["remedy"],  # type: ignore[arg-type]
    )
    metrics = {name: float(value) for name, value in line.items() if value and name not in (*FIRST, *LAST)}
    return Row(cell, int(line["seed"]), metrics, float(line["seconds"]), line["run"], line["error"])
