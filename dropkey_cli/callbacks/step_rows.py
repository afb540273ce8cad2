"""CSV files with a row per step, of which a resumed run takes back what came after its checkpoint."""

import csv
from pathlib import Path

from dropkey_cli.files import whole_file


def keep_rows_before(path: Path, step: int) -> None:
    """Remove the rows whose column ``step`` is ``step`` or more, and a last line that was cut short.

    The file is replaced in one go, so that it is whole at every moment; what is kept stays byte for byte. Rows without a
    step are removed, since nobody knows when they were written. A missing file stays missing.

    Args:
        path: The file; its first line names the columns.
        step: The first step that the resumed run makes.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as old, whole_file(path, "w", encoding="utf-8", newline="") as new:
        header = old.readline()
        if header.endswith("\n"):
            new.write(header)
            column = next(csv.reader([header])).index("step")
            new.writelines(line for line in old if line.endswith("\n") and _is_before(line, column, step))


def _is_before(line: str, column: int, step: int) -> bool:
    cells = next(csv.reader([line]), [])
    return len(cells) > column and cells[column].isdecimal() and int(cells[column]) < step
