"""Reads the rows of a CSV, TSV, JSONL or parquet file, one after another, with their line numbers."""

import csv
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dropkey_cli.errors import InputError, did_you_mean, one_line

ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
FORMATS = "*.csv, *.tsv, *.jsonl or *.parquet"
# Names of columns that need no option, written without capitals, spaces, - and _
_PATH_NAMES = {"path", "image", "img", "file", "filename", "filepath", "imagepath", "imgpath", "imagefile", "imagename"}
_LABEL_NAMES = {"label", "labels", "class", "classes", "classname", "target", "targets", "category", "categories", "tags"}
_SPLIT_NAMES = {"split"}
_ROWS_AT_ONCE = 65_536


class Row(NamedTuple):
    """One row: its line, from 1 (in parquet: its number); its cells, or what is wrong with it."""

    line: int
    path: Any = None
    label: Any = None
    split: Any = None
    fault: str = ""


class Columns(NamedTuple):
    """The names of the columns that are read."""

    path: str
    label: str
    split: str | None


@dataclass(frozen=True)
class TableFile:
    """A table that has been opened: the names of its columns, and what gives the cells of some of them, row by row."""

    file: Path
    names: list[str]
    cells: Callable[[list[str]], Iterator[tuple[int, Any]]]

    def find_columns(self, path: str | None, label: str | None, split: str | None) -> Columns:
        """The columns to read.

        Args:
            path: The column of the image files, as given; None finds it by its name, and so do the next two.
            label: That of the labels.
            split: That of the splits; there need be none.

        Raises:
            InputError: If one is missing, or two may be meant; the message names all there are.
        """
        found = self._find("path_column", path, _PATH_NAMES), self._find("label_column", label, _LABEL_NAMES)
        for name, column in zip(("path_column", "label_column"), found, strict=True):
            if column is None:
                example = {"path_column": "path", "label_column": "label"}[name]
                raise InputError(
                    f"{str(self.file)!r} has no column that is called {example!r} or the like, its columns are "
                    f"{self._listed()}; give --data.{name} NAME, or a first line with names if there is none"
                )
        return Columns(str(found[0]), str(found[1]), self._find("split_column", split, _SPLIT_NAMES))

    def rows(self, columns: Columns) -> Iterator[Row]:
        """Every row.

        Args:
            columns: From `find_columns`.

        Raises:
            InputError: If the file cannot be read on.
        """
        wanted = [name for name in columns if name is not None]
        with _readable(self.file):
            for line, cells in self.cells(wanted):
                yield Row(line, fault=cells) if isinstance(cells, str) else Row(line, *cells)

    def paths(self) -> Iterator[str]:
        """The image of every row, from the column ``path`` or one that is called like it; empty where the cell is.

        Raises:
            InputError: If there is no such column, a row is damaged, or the file cannot be read on.
        """
        column = "path" if self.names.count("path") == 1 else self._find("path_column", None, _PATH_NAMES)
        if column is None:
            raise InputError(f"{str(self.file)!r} has no column 'path' (columns: {self._listed() or 'none'}): name one so")
        with _readable(self.file):
            for line, cells in self.cells([column]):
                if isinstance(cells, str):
                    raise InputError(f"line {line} of {str(self.file)!r} {cells}: mend it")
                path = "" if cells[0] is None else str(cells[0])
                if not is_name(path):
                    raise InputError(f"line {line} of {str(self.file)!r} has {path!r} for an image file: mend it")
                yield path

    def has_lists(self, label: str | None) -> bool:
        """Whether the labels are lists, as the first that there is shows.

        Args:
            label: The column of the labels; None finds it by its name.

        Raises:
            InputError: If there is no such column, or the file cannot be read.
        """
        column = self._find("label_column", label, _LABEL_NAMES)
        if column is None:
            return False
        with _readable(self.file):
            first = (cells[0] for _, cells in self.cells([column]) if not isinstance(cells, str))
            return isinstance(next((cell for cell in first if cell is not None), None), list)

    def _find(self, option: str, given: str | None, known: set[str]) -> str | None:
        if given is not None:
            if self.names.count(given) != 1:
                raise InputError(
                    f"{option} is {given!r}, but the columns of {str(self.file)!r} are {self._listed()}; "
                    f"give --data.{option} NAME{did_you_mean(given, self.names)}"
                )
            return given
        fitting = [name for name in self.names if "".join(name.lower().split()).replace("_", "").replace("-", "") in known]
        if len(fitting) > 1:
            raise InputError(
                f"{str(self.file)!r} has {len(fitting)} columns that may be meant: {', '.join(map(repr, fitting))}; "
                f"expected one; give --data.{option} {fitting[0]}"
            )
        return fitting[0] if fitting else None

    def _listed(self) -> str:
        return ", ".join(map(repr, self.names[:20])) + (", …" if len(self.names) > 20 else "")


def is_name(text: str) -> bool:
    """Whether a file or a class can be called so: no null character, no half of a letter, which JSON can write."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def open_table(file: str | Path) -> TableFile:
    """A table whose columns are known and whose rows are still to be read.

    Args:
        file: CSV (separated by commas, semicolons or tabs), TSV, JSONL (one object per line) or parquet, as its name says.

    Raises:
        InputError: If there is no such file or it cannot be read.
    """
    file = Path(file).expanduser()
    if (ending := file.suffix.lower()) not in ENDINGS:
        raise InputError(f"{str(file)!r} is no table that dropkey reads; expected {FORMATS}; save it as one of them")
    with _readable(file):
        return {".jsonl": _open_jsonl, ".parquet": _open_parquet}.get(ending, _open_csv)(file)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{str(file)!r} cannot be read ({error.strerror or one_line(error)}); check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{str(file)!r} is no UTF-8 text (byte {error.start}: {error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        raise InputError(f"{str(file)!r} is damaged ({error}); expected rows of cells; mend it, or save it anew") from error


def _open_csv(file: Path) -> TableFile:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        first = lines.readline()
    delimiter = "\t" if file.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    names = [name.strip() for name in next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])]

    def cells(wanted: list[str]) -> Iterator[tuple[int, Any]]:
        places = [names.index(name) for name in wanted]
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
            next(reader, None)
            for row in reader:
                if len(row) == len(names):
                    yield reader.line_num, [row[place] for place in places]
                elif row:  # an empty line is none
                    yield reader.line_num, f"has {len(row)} cells, the first line {len(names)}"

    return TableFile(file, names, cells)


def _open_jsonl(file: Path) -> TableFile:
    def objects() -> Iterator[tuple[int, Any]]:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        value = json.loads(line)
                    except (ValueError, RecursionError):
                        value = None
                    yield number, value if isinstance(value, dict) else "is no JSON object"

    def cells(wanted: list[str]) -> Iterator[tuple[int, Any]]:
        for number, value in objects():
            yield number, value if isinstance(value, str) else [value.get(name) for name in wanted]

    _, first = next(objects(), (0, {}))
    return TableFile(file, list(first) if isinstance(first, dict) else [], cells)


def _open_parquet(file: Path) -> TableFile:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError(
            f"reading {str(file)!r} needs pyarrow, which is not installed; pip install 'dropkey[parquet]', or save it as CSV"
        ) from error

    @contextmanager
    def whole() -> Iterator[None]:
        try:
            yield
        except ArrowException as error:
            raise InputError(f"{str(file)!r} is damaged ({one_line(error)}); expected a parquet file; save it anew") from error

    def cells(wanted: list[str]) -> Iterator[tuple[int, Any]]:
        with whole(), ParquetFile(file) as opened:
            batches = opened.iter_batches(_ROWS_AT_ONCE, columns=list(dict.fromkeys(wanted)))
            columns = ([batch.column(name).to_pylist() for name in wanted] for batch in batches)
            yield from enumerate((row for column in columns for row in zip(*column, strict=True)), 1)

    with whole(), ParquetFile(file) as opened:
        return TableFile(file, list(opened.schema_arrow.names), cells)
