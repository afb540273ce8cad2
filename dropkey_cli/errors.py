"""The errors that the command line shows as one line instead of a traceback."""

import difflib
import os
from collections.abc import Iterable

_MOST_NAMES = 10_000
"""In a folder; to compare with more would take seconds."""


class InputError(ValueError):
    """What the user gave cannot work. The message says what was given, what is expected and what to do."""


class RunError(RuntimeError):
    """What went wrong in a run whose input was right; exit code 1. The message says what happened, where, and what to do."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The nearest known words as the end of a sentence: "; did you mean 'a' or 'b'?", or nothing where none is near."""
    return _question(difflib.get_close_matches(given, list(known), n=3, cutoff=0.6))


def near_path(given: str) -> str:
    """What in its folder is called nearly like a path that is not there, as `did_you_mean` says it."""
    folder, name = os.path.split(os.path.expanduser(given).rstrip("/\\"))
    try:
        found = sorted(os.listdir(folder or "."))
    except (OSError, ValueError):  # no such folder; a null character
        return ""
    if not name or len(found) > _MOST_NAMES:
        return ""
    return _question([os.path.join(folder, near) for near in difflib.get_close_matches(name, found, n=3, cutoff=0.6)])


def _question(near: list[str]) -> str:
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """The first line of an error's message; "" where it has none."""
    return (str(error).strip().splitlines() or [""])[0]
