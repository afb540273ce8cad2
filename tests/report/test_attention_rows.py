import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dropkey_cli.errors import InputError
from dropkey_cli.report.attention_rows import (
    AttentionRow,
    attention_rows,
    by_layer,
    mean_over_runs,
    read_attention,
    write_attention,
)

SUMS = {
    "blocks.0": torch.tensor([[4.0, 1.0, 2.0, 6.0, 1.0, 3.0], [5.0, 0.0, 5.0, 5.0, 4.0, 1.0]], dtype=torch.float64),
    "blocks.1": torch.tensor([[0.0, 7.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64),
}


def test_sums_become_means_over_the_rows_they_are_of() -> None:
    first, second, third = attention_rows(SUMS, "inference")
    assert first == AttentionRow("blocks.0", 0, "inference", 1.5, 0.5, 0.75, rows=4, empty_rows=1)
    assert second == AttentionRow("blocks.0", 1, "inference", 1.0, 0.8, 0.2, rows=5)
    assert (third.rows, third.empty_rows) == (0, 7)
    assert all(map(math.isnan, (third.entropy, third.normalized_entropy, third.top_key)))
    assert by_layer([first, second, third]) == {"blocks.0": [first, second], "blocks.1": [third]}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rows = attention_rows({"a,b": SUMS["blocks.0"] / 3}, "monte_carlo")
    write_attention(tmp_path / "attention.csv", rows)
    assert read_attention(tmp_path / "attention.csv") == rows
    header = (tmp_path / "attention.csv").read_text().splitlines()[0]
    assert header == "layer,head,pass,entropy,normalized_entropy,top_key,rows,empty_rows"


def test_another_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "attention.csv").write_text("layer,head\n")
    with pytest.raises(InputError, match="no column empty_rows, entropy"):
        read_attention(tmp_path / "attention.csv")


def test_runs_count_the_same_in_their_mean() -> None:
    first = attention_rows({"blocks.0": SUMS["blocks.0"]}, "inference")
    second = [replace(row, entropy=row.entropy + 1, top_key=0.25, rows=100) for row in first]
    mean = mean_over_runs([first, second])
    assert [row.entropy for row in mean] == [2.0, 1.5]
    assert [row.top_key for row in mean] == [0.5, 0.225]
    assert [row.rows for row in mean] == [104, 105]
    with pytest.raises(InputError, match="different layers"):
        mean_over_runs([first, second[:1]])
