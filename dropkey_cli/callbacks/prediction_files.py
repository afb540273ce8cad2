"""Files of predictions that are written batch by batch: CSV, JSON lines and parquet, with the same columns and numbers."""

import csv
import json
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from dropkey_cli.callbacks.prediction_table import Table, rows
from dropkey_cli.errors import InputError

CELLS_PER_GROUP = 2**20
"""Rows × columns of a row group of parquet: 4 MiB of numbers. Each group adds to what the file says of itself."""


class PredictionFile(Protocol):
    """A file that takes table after table, all with the same columns."""

    def write(self, table: Table) -> None:
        """Append rows."""

    def close(self) -> None:
        """Complete the file."""


class CsvFile:
    """Comma-separated, a header first; the missing are empty.

    Args:
        path: The file, which is replaced.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        self._rows = csv.writer(self._file)
        self._begun = False

    def write(self, table: Table) -> None:
        """Append rows."""
        if not self._begun:
            self._rows.writerow(table)
            self._begun = True
        self._rows.writerows(rows(table))

    def close(self) -> None:
        """Complete the file."""
        self._file.close()


class JsonLinesFile:
    """An object per line; the missing are null.

    Args:
        path: The file, which is replaced.
    """

    def __init__(self, path: Path) -> None:
        # Bytes of a file name that are no UTF-8 are lone surrogates, which JSON escapes as Python does
        self._file = path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")

    def write(self, table: Table) -> None:
        """Append rows."""
        for row in rows(table):
            self._file.write(json.dumps(dict(zip(table, row, strict=True)), ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Complete the file."""
        self._file.close()


class ParquetFile:
    """Strings and float32; the missing are null.

    Args:
        path: The file, which is replaced.

    Raises:
        InputError: If pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise InputError(
                "an --output that ends in .parquet needs pyarrow: pip install 'dropkey[parquet]', or give a .csv"
            ) from error
        self._arrow, self._parquet = pyarrow, parquet
        self._file = path.open("wb")
        self._writer: Any = None
        # Not in arrow's own form: its small objects, kept among the large ones of a batch, leave the memory in pieces
        self._waiting: dict[str, list[str] | bytearray] = {}
        self._cells = 0

    def write(self, table: Table) -> None:
        """Append rows."""
        for name, column in table.items():
            if isinstance(column, list):
                cast(list[str], self._waiting.setdefault(name, [])).extend(column)
            else:
                cast(bytearray, self._waiting.setdefault(name, bytearray())).extend(column.tobytes())
            self._cells += len(column)
        if self._cells >= CELLS_PER_GROUP:
            self._write_group()

    def close(self) -> None:
        """Complete the file."""
        if self._waiting:
            self._write_group()
        if self._writer is not None:
            self._writer.close()
        self._file.close()

    def _write_group(self) -> None:
        group = self._arrow.table({name: self._column(waiting) for name, waiting in self._waiting.items()})
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(self._file, group.schema)
        self._writer.write_table(group, row_group_size=max(1, group.num_rows))
        self._waiting, self._cells = {}, 0

    def _column(self, waiting: list[str] | bytearray) -> Any:  # noqa: ANN401 - pyarrow has no types
        if isinstance(waiting, list):  # arrow holds UTF-8 only
            texts = [text.encode("utf-8", "backslashreplace").decode() or None for text in waiting]
            return self._arrow.array(texts, self._arrow.string())
        return self._arrow.array(np.frombuffer(waiting, np.float32), from_pandas=True)  # NaN becomes null


FORMATS: dict[str, type[CsvFile] | type[JsonLinesFile] | type[ParquetFile]] = {
    ".csv": CsvFile,
    ".jsonl": JsonLinesFile,
    ".parquet": ParquetFile,
}
