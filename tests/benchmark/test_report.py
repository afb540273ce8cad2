import json

import pytest

from dropkey_cli.benchmark.attention import AttentionRow, Skipped
from dropkey_cli.benchmark.report import notes, print_table, skipped_lines, to_json
from dropkey_cli.benchmark.step import StepRow
from dropkey_cli.benchmark.timing import Quartiles

MEBIBYTE = 1024 * 1024
ATTENTION = AttentionRow(
    name="dropkey sdpa",
    forward_seconds=[0.001, 0.002, 0.003],
    seconds=[0.004, 0.016, 0.012],
    ratio=Quartiles(1.05, 1.1, 1.25),
    peak_bytes=3 * MEBIBYTE,
    saved_bytes=5 * MEBIBYTE // 2,
    saved_units=7.0912,
    drop_ratio=0.09996,
    max_error=None,
)
STEP = StepRow("dropkey element", [1.5, 1.25, 2.0], Quartiles(1, 1, 1), None, MEBIBYTE, None)


def cells(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The cells of a table of one row, by column."""
    title, _, header, _, row = capsys.readouterr().out.strip().splitlines()
    assert title == "the title"
    columns, values = ([cell.strip() for cell in line.strip("|").split("|")] for line in (header, row))
    return dict(zip(columns, values, strict=True))


def test_figures_of_an_attention_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("the title", [ATTENTION], batch_size=8)
    assert cells(capsys) == {
        "": "dropkey sdpa",
        "forward ms": "2",
        "fwd+bwd ms": "12",
        "ratio": "1.100 (1.050–1.250)",
        "peak MiB": "3.0",
        "saved MiB": "2.5 (7.09×)",
        "dropped": "0.1000",
        "error": "–",
    }


def test_figures_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("the title", [STEP], batch_size=8)
    assert cells(capsys) == {
        "": "dropkey element",
        "step ms": "1500",
        "images/s": "5.3",
        "ratio": "1.000 (1.000–1.000)",
        "peak MiB": "n/a",
        "saved MiB": "1.0",
        "dropped": "–",
    }


def test_json_has_every_figure_unrounded_and_every_sample() -> None:
    written = json.loads(json.dumps(to_json(ATTENTION)))
    assert written["seconds"] == ATTENTION.seconds
    assert written["seconds_quartiles"] == {"lower": 0.008, "median": 0.012, "upper": 0.014}
    assert written["forward_seconds_quartiles"]["median"] == 0.002
    assert written["ratio"] == {"lower": 1.05, "median": 1.1, "upper": 1.25}
    assert (written["drop_ratio"], written["saved_units"], written["max_error"]) == (0.09996, 7.0912, None)


def test_rows_not_run_are_named_once_per_reason() -> None:
    skipped = [Skipped("a", "no GPU"), Skipped("b", "no compiler"), Skipped("c", "no GPU"), Skipped("a", "no GPU")]
    assert skipped_lines(skipped) == ["not run: a, c (no GPU)", "not run: b (no compiler)"]


def test_notes_are_on_the_columns_of_the_table() -> None:
    assert [note.split()[0] for note in notes([ATTENTION])] == ["ratio", "peak", "saved", "dropped", "error"]
    assert [note.split()[0] for note in notes([STEP])] == ["ratio", "peak", "saved", "dropped"]
