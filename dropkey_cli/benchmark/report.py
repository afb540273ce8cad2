"""A benchmark's outcome as tables for people, which Markdown can take as they are, and as JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from dropkey_cli.benchmark.attention import AttentionRow, Skipped
from dropkey_cli.benchmark.step import StepRow
from dropkey_cli.benchmark.timing import Quartiles, quartiles
from dropkey_cli.errors import InputError

MEBIBYTE = 2**20
NOTES = {
    "ratio": "to the first row, within each round: median of the rounds (quartiles)",
    "peak MiB": "most memory at once, beyond inputs, weights and optimizer state; not counted on a CPU",
    "saved MiB": "kept by the forward for the backward pass, weights apart; ×: in units of one (B, H, N, D) tensor",
    "dropped": "share of the draws that dropped a key",
    "error": "largest deviation of outputs and gradients from float64 with the same mask; the paper's mask is not known",
}


def print_table(title: str, rows: Sequence[AttentionRow] | Sequence[StepRow], *, batch_size: int) -> None:
    """Print a title and a table; in a file or pipe, as wide as it needs to be."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 160
    cells = [_attention_cells(row) if isinstance(row, AttentionRow) else _step_cells(row, batch_size) for row in rows]
    table = Table(box=MARKDOWN)
    for column in cells[0]:
        table.add_column(column, justify="left" if column == "" else "right", overflow="fold")
    for row in cells:
        table.add_row(*row.values())
    with console.capture() as text:
        console.print(table)
    console.print(f"\n{title}\n\n{text.get().strip()}")  # without the box's empty edges


def notes(rows: Sequence[AttentionRow] | Sequence[StepRow]) -> list[str]:
    """What the columns mean, one line each."""
    columns = _attention_cells(rows[0]) if isinstance(rows[0], AttentionRow) else _step_cells(rows[0], 1)
    return [f"{name:<10} {meaning}" for name, meaning in NOTES.items() if name in columns]


def to_json(row: AttentionRow | StepRow) -> dict[str, object]:
    """The row's figures, unrounded, with the quartiles of its times."""
    figures = asdict(row) | {"ratio": row.ratio._asdict()}
    times = {name: quartiles(samples)._asdict() for name, samples in figures.items() if name.endswith("seconds")}
    return figures | {f"{name}_quartiles": spread for name, spread in times.items()}


def check_json(path: str | None) -> None:
    """Refuse a file that could not be written when all is measured.

    Raises:
        InputError: If its folder does not exist, or it is a folder.
    """
    if path is not None and (not Path(path).absolute().parent.is_dir() or Path(path).is_dir()):
        raise InputError(f"--json {path!r} cannot be written: give a file in a folder that exists")


def write_json(path: str | None, report: Mapping[str, object]) -> None:
    """Write a report, if a file is asked for."""
    if path is not None:
        Path(path).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    """One line per reason, with all the rows it keeps away."""
    names: dict[str, list[str]] = {}
    for row in dict.fromkeys(skipped):
        names.setdefault(row.why, []).append(row.name)
    return [f"not run: {', '.join(rows)} ({why})" for why, rows in names.items()]


def _attention_cells(row: AttentionRow) -> dict[str, str]:
    return {
        "": row.name,
        "forward ms": _milliseconds(row.forward_seconds),
        "fwd+bwd ms": _milliseconds(row.seconds),
        "ratio": _ratio(row.ratio),
        "peak MiB": _mebibytes(row.peak_bytes),
        "saved MiB": f"{_mebibytes(row.saved_bytes)} ({row.saved_units:.2f}×)",
        "dropped": f"{row.drop_ratio:.4f}",
        "error": "–" if row.max_error is None else f"{row.max_error:.1e}",
    }


def _step_cells(row: StepRow, batch_size: int) -> dict[str, str]:
    return {
        "": row.name,
        "step ms": _milliseconds(row.seconds),
        "images/s": f"{batch_size / quartiles(row.seconds).median:.1f}",
        "ratio": _ratio(row.ratio),
        "peak MiB": _mebibytes(row.peak_bytes),
        "saved MiB": _mebibytes(row.saved_bytes),
        "dropped": "–" if row.drop_ratio is None else f"{row.drop_ratio:.4f}",
    }


def _milliseconds(seconds: Sequence[float]) -> str:
    median = quartiles(seconds).median * 1000
    return f"{median:.0f}" if median >= 100 else f"{median:.3g}"


def _ratio(ratio: Quartiles) -> str:
    return f"{ratio.median:.3f} ({ratio.lower:.3f}–{ratio.upper:.3f})"


def _mebibytes(size: int | None) -> str:
    return "n/a" if size is None else f"{size / MEBIBYTE:.1f}"
