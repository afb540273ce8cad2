"""The images to predict: what a file, folder, pattern, table or list, or standard input, stands for."""

import csv
import glob
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dropkey_cli.data.reading import is_image_file, list_images
from dropkey_cli.errors import InputError

STDIN = "-"
COLUMN = "path"


def paths_of(root: str) -> list[str]:
    """The images that ``--data.root`` stands for, in order; those that a list names need not be there.

    Args:
        root: An image; a folder, searched with its sub-folders; a pattern such as ``photos/*.jpg`` or ``photos/**``; a table
            (.csv, .tsv, .jsonl, .parquet) with a column ``path``, or a list (.txt) with a path per line, whose relative paths
            start at the file's own folder; ``-``: a list on standard input, whose relative paths start here.

    Raises:
        InputError: If it does not exist, cannot be read, or names no image.
    """
    if root == STDIN:
        return split_lines(sys.stdin.buffer.read())
    path = Path(root).expanduser()
    if read := _READERS.get(path.suffix.lower() if os.path.isfile(path) else ""):
        return _listed(path, read)
    if glob.has_magic(root) and not os.path.exists(path):
        return _matching(path)
    return list_images(root)


def split_lines(text: bytes) -> list[str]:
    """The paths in a list: one per line, or separated by NUL (``find -print0``); empty lines are none."""
    separator = b"\0" if b"\0" in text else b"\n"
    lines = text.split(separator) if separator == b"\0" else (line.removesuffix(b"\r") for line in text.split(separator))
    return [os.fsdecode(line) for line in lines if line]


def _listed(path: Path, read: Callable[[Path], Iterator[Any]]) -> list[str]:
    folder = "" if path.parent == Path() else path.parent
    try:
        # An empty cell leads to the folder, and so to a row with an error
        found = [os.path.join(folder, "" if given is None else str(given)) or "." for given in read(path)]
    except InputError:
        raise
    except (OSError, ValueError, csv.Error) as error:  # no UTF-8, no JSON, no table
        raise InputError(f"--data.root {str(path)!r} cannot be read ({error}): check the file") from error
    if not found:
        raise InputError(f"--data.root {str(path)!r} names no image: it is empty; give a table or list with a path per row")
    return found


def _read_list(path: Path) -> Iterator[str]:
    yield from split_lines(path.read_bytes())


def _read_csv(path: Path) -> Iterator[str]:
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        _check_column(path, list(rows.fieldnames or []))
        for row in rows:
            yield row[COLUMN]


def _read_json_lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        for line in filter(str.strip, file):
            row = json.loads(line)
            _check_column(path, list(row) if isinstance(row, dict) else [])
            yield row[COLUMN]


def _read_parquet(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{str(path)!r} needs pyarrow: pip install 'dropkey[parquet]', or give a .csv or .jsonl") from error
    with parquet.ParquetFile(path) as file:
        _check_column(path, file.schema_arrow.names)
        for batch in file.iter_batches(columns=[COLUMN]):
            yield from batch.column(0).to_pylist()


def _check_column(path: Path, names: list[str]) -> None:
    if COLUMN not in names:
        found = ", ".join(names[:10]) or "none"
        raise InputError(f"--data.root {str(path)!r} has no column {COLUMN!r} (columns: {found}): name one so")


_READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
    ".txt": _read_list,
}


def _matching(pattern: Path) -> list[str]:
    """The images among what a pattern matches, sorted as a folder's are."""
    found = glob.glob(str(_literal_front(pattern)), recursive=True)
    images = [path for path in found if is_image_file(path) and not os.path.isdir(path)]
    if not images:
        among = f"{len(found)} files and folders, no image among them" if found else "nothing"
        raise InputError(f"--data.root {str(pattern)!r} matches {among}; expected e.g. 'photos/*.jpg' or 'photos/**'")
    return sorted(images, key=lambda path: Path(path).parts)


def _literal_front(pattern: Path) -> Path:
    """The pattern with its leading folders taken as they are called where they exist: ``photos [2024]/*.jpg``."""
    front = Path()
    for part in pattern.parts:
        if not os.path.exists(front / part):
            break
        front /= part
    return Path(glob.escape(str(front))) / pattern.relative_to(front)
