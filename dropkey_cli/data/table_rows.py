"""Turns the rows of tables into images with their classes, and lists all rows that cannot be used."""

import math
import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dropkey_cli.data.class_folders import SPLIT_NAMES, nearest_first
from dropkey_cli.data.dataset import Sample
from dropkey_cli.data.table_file import Columns, Row, TableFile, is_name, open_table
from dropkey_cli.errors import InputError

SPLITS = ("train", "val", "test")
LOOKED_AT = 1000


@dataclass(frozen=True)
class TableOptions:
    """How tables are read.

    Args:
        image_root: Folder that relative paths start from; None for the table's own.
        path_column: Column of the image files; None finds it by its name, and so do the next two.
        label_column: Column of the labels.
        split_column: Column of the splits; there need be none.
        label_separator: What stands between the labels of a cell; None where a cell that is no list has one label.
    """

    image_root: str | None = None
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    label_separator: str | None = None

    def folder(self, file: str) -> str:
        """The folder that the paths in a table start from."""
        folder = os.path.normpath(os.path.expanduser(self.image_root or os.path.dirname(file)))
        return "" if folder == os.curdir else folder


class TableRows:
    """The rows of one or more tables, kept in columns. What is wrong with some is collected, to be refused all at once.

    Args:
        separator: What stands between the labels of a cell; None where a cell that is no list has one label.

    Attributes:
        note: Which columns of the first table are read.
        is_multi: Whether an image may have any number of classes, and not exactly one.
        num_repeated: How many rows `samples` left out, because they repeat another one.
    """

    def __init__(self, separator: str | None) -> None:
        if separator == "":
            raise InputError(
                "label_separator is empty; expected what stands between labels; give e.g. --data.label_separator '|'"
            )
        self.separator = separator
        self.is_multi = separator is not None
        self.num_repeated = 0
        self.note = ""
        self._files: list[tuple[str, str]] = []  # name and folder of the images
        self._faults: list[tuple[int, int, str]] = []  # file, line, what is wrong
        self._values: dict[tuple[str, ...], int] = {}  # the different labels of the cells, numbered
        # By row:
        self._paths: list[str] = []
        self._labels, self._splits, self._lines, self._file_of = array("l"), bytearray(), array("q"), bytearray()

    def __len__(self) -> int:
        """How many rows can be used so far."""
        return len(self._paths)

    def add(self, table: TableFile, columns: Columns, *, folder: str, split: str | None) -> None:
        """Read a table.

        Args:
            table: The table.
            columns: Those to read.
            folder: Where relative paths start.
            split: The split of all its rows; None for that in the split column or, where there is none, train.
        """
        found = f"image in {columns.path!r}, label in {columns.label!r}"
        split_found = "no split column" if columns.split is None else f"split in {columns.split!r}"
        self.note = self.note or f"{table.file}: {found}, {split_found}"
        self._files.append((table.file.name, folder))
        known: dict[str, int] = {}
        for row in table.rows(columns):
            try:
                place = SPLITS.index(split or _split(row, columns))
                path, label = _path(row), self._label(row, known)
            except ValueError as error:
                self._faults.append((len(self._files) - 1, row.line, str(error)))
                continue
            self._paths.append(os.path.normpath(os.path.join(folder, path)))
            self._labels.append(label)
            self._splits.append(place)
            self._lines.append(row.line)
            self._file_of.append(len(self._files) - 1)

    def names(self, split: str) -> set[str]:
        """The labels that the rows of a split have."""
        place = SPLITS.index(split)
        used = {label for label, own in zip(self._labels, self._splits, strict=True) if own == place}
        return {name for value, label in self._values.items() if label in used for name in value}

    def samples(self, class_names: Sequence[str], *, look: bool) -> dict[str, list[Sample]]:
        """The images of each split that has some, sorted by path, whatever the order of the rows.

        Args:
            class_names: The classes in label order.
            look: Whether to look for the files, or a thousand of them, evenly spread.

        Raises:
            InputError: If there are rows that cannot be used; the message counts them and names five.
        """
        indices = {name: index for index, name in enumerate(class_names)}
        values = [self._as_label(value, indices) for value in self._values]
        order = self._without_repeats(sorted(range(len(self)), key=self._place))
        if look:
            self._look(order)
        unknown = [name for value in self._values for name in value if name not in indices]
        shown = [", ".join(map(repr, value)) for value in self._values] if unknown else []
        for row in range(len(self)) if unknown else ():
            if values[self._labels[row]] is None:
                self._add_fault(row, f"has an unknown label, {shown[self._labels[row]]}")
        self._refuse_faults(f"the classes {nearest_first(unknown[0], class_names)}" if unknown else "")
        samples: dict[str, list[Sample]] = {split: [] for split in SPLITS}
        for row in order:
            samples[SPLITS[self._splits[row]]].append(Sample(self._paths[row], values[self._labels[row]]))  # type: ignore[arg-type]  # None was refused
        return {split: images for split, images in samples.items() if images}

    def _label(self, row: Row, known: dict[str, int]) -> int:
        """The number of a cell's label."""
        if isinstance(row.label, str) and row.label in known:
            return known[row.label]
        self.is_multi |= isinstance(row.label, list)
        number = self._values.setdefault(_names(row.label, self.separator), len(self._values))
        if isinstance(row.label, str):
            known[row.label] = number
        return number

    def _as_label(self, value: tuple[str, ...], indices: dict[str, int]) -> int | tuple[int, ...] | None:
        """The index of a class, or of each of several; None if one is unknown."""
        if not indices.keys() >= set(value):
            return None
        return tuple(sorted(indices[name] for name in value)) if self.is_multi else indices[value[0]]

    def _place(self, row: int) -> str:
        """What rows are sorted by: the path, the same on every system."""
        return self._paths[row] if os.sep == "/" else self._paths[row].replace(os.sep, "/")

    def _without_repeats(self, order: list[int]) -> list[int]:
        """The first row of each file; others must say the same of it."""
        kept: list[int] = []
        for row in order:
            first = kept[-1] if kept and self._paths[kept[-1]] == self._paths[row] else None
            if first is None:
                kept.append(row)
                continue
            self.num_repeated += 1
            for what, column in (("label", self._labels), ("split", self._splits)):
                if column[first] != column[row]:
                    self._add_fault(row, f"gives {self._paths[row]!r} another {what} than {self._where(first)}")
        return kept

    def _look(self, order: list[int]) -> None:
        step = max(1, math.ceil(len(order) / LOOKED_AT))
        for row in order[::step]:
            if not os.path.lexists(self._paths[row]):
                self._add_fault(row, f"names {self._paths[row]!r}, which does not exist")

    def _where(self, row: int) -> str:
        return f"{self._files[self._file_of[row]][0]}:{self._lines[row]}"

    def _add_fault(self, row: int, text: str) -> None:
        self._faults.append((self._file_of[row], self._lines[row], text))

    def _refuse_faults(self, expected: str) -> None:
        if not self._faults:
            return
        first = [f"{self._files[file][0]}:{line} {text}" for file, line, text in sorted(self._faults)[:5]]
        folders = ", ".join(dict.fromkeys(repr(folder or os.curdir) for _, folder in self._files))
        raise InputError(
            f"{len(self._faults)} row(s) cannot be used: {', '.join(first)}{', …' if len(self._faults) > 5 else ''}; "
            f"expected in each an image file, as a path from {folders}, and its label{expected and ', one of ' + expected}; "
            "correct them, or give the images' folder as --data.image_root"
        )


def read_tables(files: Mapping[str | None, str], options: TableOptions) -> TableRows:
    """The rows of tables.

    Args:
        files: The tables, by the split of all their rows; None for the one whose split column says it.
        options: How they are read.

    Raises:
        InputError: If one cannot be read, or its columns are not clear.
    """
    rows = TableRows(options.label_separator)
    for split, file in files.items():
        table = open_table(file)
        columns = table.find_columns(options.path_column, options.label_column, None if split else options.split_column)
        rows.add(table, columns, folder=options.folder(file), split=split)
    return rows


def _split(row: Row, columns: Columns) -> str:
    if columns.split is None or row.fault:
        return "train"
    split = SPLIT_NAMES.get(str(row.split).strip().lower())
    if split is None:
        raise ValueError(f"has split {row.split!r}, not one of {', '.join(SPLIT_NAMES)}")
    return split


def _path(row: Row) -> str:
    if row.fault:
        raise ValueError(row.fault)
    if not row.path:
        raise ValueError("has no image file")
    if not isinstance(row.path, str) or not is_name(row.path):
        raise ValueError(f"has {_shortened(row.path)} for an image file")
    return row.path


def _names(cell: object, separator: str | None) -> tuple[str, ...]:
    """The different labels in a cell, sorted."""
    if isinstance(cell, list):
        return tuple(sorted(set(map(_name, cell))))
    if separator is not None and isinstance(cell, str):
        return tuple(sorted({_name(part) for part in cell.split(separator) if part.strip()}))
    return (_name(cell),)


def _name(value: object) -> str:
    """A label as text: a name, or a whole number, which pandas may have written as 1.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    name = str(value).strip() if isinstance(value, str | int) else ""
    if not name or not is_name(name):
        empty = value is None or (isinstance(value, str) and not name) or value != value
        raise ValueError("has no label" if empty else f"has label {_shortened(value)}, neither a name nor a whole number")
    return name


def _shortened(value: object) -> str:
    """A cell for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
