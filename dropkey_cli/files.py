"""Files that are whole or not there, names that are free, and names as a user would write them."""

import csv
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole_file(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:  # noqa: ANN401 - those of open()
    """Write a file that takes its name when it is complete and on the disk; until then an earlier one stays.

    A process that is killed leaves at most a file ``NAME.part`` behind, which the next writer of the same file replaces.

    Args:
        path: The file.
        mode: As for open().
        options: As for open().
    """
    part = path.with_name(f"{path.name}.part")  # in the same folder: a move between file systems is a copy
    try:
        with part.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_csv(path: Path, header: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file, whole or not at all; bytes of file names that are no UTF-8 stay as they are."""
    with whole_file(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill a new folder that takes its name when it is complete; after an error there is none.

    Args:
        path: The folder: not there yet, or empty.
    """
    part = path.absolute().with_name(f".{path.absolute().name}.{os.getpid()}.part")  # beside it: a rename, not a copy
    part.mkdir(parents=True)
    try:
        yield part
        if path.is_dir():
            path.rmdir()
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Bring the new name to the disk, too, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def keep_earlier(path: Path) -> Path | None:
    """Give an existing ``name.csv`` the first free name of ``name.1.csv``, ``name.2.csv`` and so on; that name, or None."""
    if not path.exists():
        return None
    number = 1
    while (kept := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    return path.rename(kept)


def from_here(path: str | Path) -> Path:
    """A path relative to the working folder, if it lies below that."""
    path = Path(path)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def resume_command(folder: Path) -> str:
    """What to type to go on with a run, whatever its folder is called."""
    return f"dropkey fit --resume {shlex.quote(str(folder))}"
