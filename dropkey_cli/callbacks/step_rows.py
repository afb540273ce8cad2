"""Rows of a CSV file that belong to steps, of which a resumed run repeats the last ones."""

import csv
from pathlib import Path

from dropkey_cli.files import whole_file


def keep_rows_before(path: Path, step: int) -> None:
    """Remove the rows of later steps, which the part of a run wrote that was lost.

    Args:
        path: A CSV file with a column ``step``; its last line may be cut off.
        step: The first step that is not kept.
    """
    with path.open(newline="", encoding="utf-8") as old:
        rows = csv.reader(old)
        header = next(rows, None)
        if header is None or "step" not in header:
            return
        column = header.index("step")
        with whole_file(path, "w", newline="", encoding="utf-8") as new:
            writer = csv.writer(new)
            writer.writerow(header)
            whole = (row for row in rows if len(row) == len(header) and row[column].isdecimal())
            writer.writerows(row for row in whole if int(row[column]) < step)
