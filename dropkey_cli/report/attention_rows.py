"""``attention.csv``: entropy and strongest key of a network's attention, one row per layer and head."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from dropkey_cli.errors import InputError
from dropkey_cli.files import write_csv
from dropkey_cli.method.attention_entropy import SUMS

COLUMNS = ("layer", "head", "pass", "entropy", "normalized_entropy", "top_key", "rows", "empty_rows")

Pass = Literal["training", "inference", "monte_carlo"]
"""How keys were dropped: as in training; not at all; in evaluation, with Monte Carlo."""


@dataclass(frozen=True)
class AttentionRow:
    """The attention of one head, averaged over all queries of all images.

    Args:
        layer: The layer's name.
        head: Number of the head, from 0.
        mode: The pass: masked rows are sharper than unmasked ones, so the two are not to be compared.
        entropy: In nats; NaN where no query has a key.
        normalized_entropy: Divided by the log of the number of keys that the query may attend to: 1 where all count alike. Only
            of queries with at least two; NaN without any.
        top_key: Weight of the strongest key.
        rows: Queries.
        empty_rows: Further queries, left out, that had lost all keys.
    """

    layer: str
    head: int
    mode: Pass
    entropy: float
    normalized_entropy: float
    top_key: float
    rows: int
    empty_rows: int = 0


def attention_rows(sums: Mapping[str, Tensor], mode: Pass) -> list[AttentionRow]:
    """The rows that sums over queries make.

    Args:
        sums: For each layer what `attention_sums` gives (H, 6), added up.
        mode: The pass.
    """
    return [_row(layer, head, mode, line) for layer, of_heads in sums.items() for head, line in enumerate(of_heads.tolist())]


def _row(layer: str, head: int, mode: Pass, line: list[float]) -> AttentionRow:
    found = dict(zip(SUMS, line, strict=True))
    rows, spread = found["rows"], found["spread_rows"]
    return AttentionRow(
        layer,
        head,
        mode,
        entropy=found["entropy"] / rows if rows else float("nan"),
        normalized_entropy=found["normalized_entropy"] / spread if spread else float("nan"),
        top_key=found["top_key"] / rows if rows else float("nan"),
        rows=int(rows),
        empty_rows=int(found["empty_rows"]),
    )


def by_layer(rows: Iterable[AttentionRow]) -> dict[str, list[AttentionRow]]:
    """The rows of each layer, in their order."""
    layers: dict[str, list[AttentionRow]] = {}
    for row in rows:
        layers.setdefault(row.layer, []).append(row)
    return layers


def mean_over_runs(tables: Sequence[list[AttentionRow]]) -> list[AttentionRow]:
    """One table of several trainings of the same network: the mean over them of each layer and head, each counting the same.

    Raises:
        InputError: If they are not of the same layers and heads.
    """
    first = [(row.layer, row.head, row.mode) for row in tables[0]]
    if any([(row.layer, row.head, row.mode) for row in table] != first for table in tables):
        raise InputError("these attention tables are of different layers, heads or passes: give those of one network")
    return [
        replace(
            together[0],
            entropy=sum(row.entropy for row in together) / len(together),
            normalized_entropy=sum(row.normalized_entropy for row in together) / len(together),
            top_key=sum(row.top_key for row in together) / len(together),
            rows=sum(row.rows for row in together),
            empty_rows=sum(row.empty_rows for row in together),
        )
        for together in zip(*tables, strict=True)
    ]


def write_attention(path: Path, rows: Iterable[AttentionRow]) -> None:
    """Write the table, whole or not at all."""
    write_csv(path, COLUMNS, (vars(row).values() for row in rows))


def read_attention(path: Path) -> list[AttentionRow]:
    """Read the table.

    Raises:
        InputError: If it is none.
    """
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        if missing := {*COLUMNS} - {*(table.fieldnames or ())}:
            raise InputError(
                f"{path} is no table of attention: it has no column {', '.join(sorted(missing))}; "
                "dropkey test --ckpt_path RUN --attention writes one"
            )
        return [_read(line) for line in table]


def _read(line: dict[str, str]) -> AttentionRow:
    return AttentionRow(
        layer=line["layer"],
        head=int(line["head"]),
        mode=line["pass"],  # type: ignore[arg-type]  # as it was written
        entropy=float(line["entropy"]),
        normalized_entropy=float(line["normalized_entropy"]),
        top_key=float(line["top_key"]),
        rows=int(line["rows"]),
        empty_rows=int(line["empty_rows"]),
    )
