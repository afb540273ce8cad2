"""The images to predict: what a file, folder, pattern, table or list, or standard input, stands for."""

import glob
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from dropkey_cli.data.reading import is_image_file, list_images
from dropkey_cli.data.table_file import ENDINGS, open_table
from dropkey_cli.errors import InputError

STDIN = "-"


def paths_of(root: str, *, channels: int = 3) -> list[str]:
    """The images that ``--data.root`` stands for, in order; those that a list names need not be there.

    Args:
        root: An image; a folder, searched with its sub-folders; a pattern such as ``photos/*.jpg`` or ``photos/**``; a table
            (.csv, .tsv, .jsonl, .parquet) with a column ``path``, or a list (.txt) with a path per line, whose relative paths
            start at the file's own folder; ``-``: a list on standard input, whose relative paths start here.
        channels: The channels that the model sees: which files of a folder or pattern are images.

    Raises:
        InputError: If it does not exist, cannot be read, or names no image.
    """
    if root == STDIN:
        return split_lines(sys.stdin.buffer.read())
    path = Path(root).expanduser()
    kind = path.suffix.lower() if os.path.isfile(path) else ""
    if kind == ".txt":
        return _beside(path, split_lines(path.read_bytes()))
    if kind in ENDINGS:
        return _beside(path, open_table(path).paths())
    if glob.has_magic(root) and not os.path.exists(path):
        return _matching(path, channels)
    return list_images(root, channels=channels)


def split_lines(text: bytes) -> list[str]:
    """The paths in a list: one per line, or separated by NUL (``find -print0``); empty lines are none."""
    separator = b"\0" if b"\0" in text else b"\n"
    lines = text.split(separator) if separator == b"\0" else (line.removesuffix(b"\r") for line in text.split(separator))
    return [os.fsdecode(line) for line in lines if line]


def _beside(path: Path, names: Iterable[str]) -> list[str]:
    """Names in a file, relative to its folder; an empty one leads to the folder, and so to a row with an error."""
    folder = "" if path.parent == Path() else path.parent
    found = [os.path.join(folder, name) or "." for name in names]
    if not found:
        raise InputError(f"--data.root {str(path)!r} names no image: it is empty; give a table or list with a path per row")
    return found


def _matching(pattern: Path, channels: int) -> list[str]:
    """The images among what a pattern matches, sorted as a folder's are."""
    found = glob.glob(str(_literal_front(pattern)), recursive=True)
    images = [path for path in found if is_image_file(path, channels=channels) and not os.path.isdir(path)]
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
