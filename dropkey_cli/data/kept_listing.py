"""Keeps what was slow to list, millions of files on a network drive, until one of the folders it was found in changes."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dropkey_cli.data.reading import Stamps, stamp
from dropkey_cli.files import whole_file

SLOW = 1.0
"""Seconds: what was listed faster is not kept."""
SETTLED = 60.0
"""Seconds without a change before a listing is kept: time stamps are coarse, and network drives show them late."""
_FORMAT = 1


def kept_listing(key: str, make: Callable[[Stamps], Any]) -> Any:  # noqa: ANN401 - what make gives
    """A listing from an earlier run, if all that it was made from is as it was then; else one made now.

    It lies in the user's cache folder, ``~/.cache/dropkey`` or below ``$XDG_CACHE_HOME``; where that cannot be written,
    everything is listed anew every time.

    Args:
        key: What is listed, and how: another key is another listing.
        make: Makes the listing, of what JSON has, and gives the state of every file and folder that it depends on.
    """
    name = hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=16).hexdigest()
    file = cache_folder() / "listings" / f"{name}.json"
    found = _read(file)
    if found is not None:
        return found
    stamps: Stamps = {}
    start, today = time.monotonic(), time.time()
    listing = make(stamps)
    if time.monotonic() - start > SLOW and _is_settled(stamps, today):
        _write(file, {"format": _FORMAT, "key": key, "stamps": stamps, "listing": listing})
    return listing


def cache_folder() -> Path:
    """Where files of the user's lie that can be made anew."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dropkey"


def _read(file: Path) -> Any:  # noqa: ANN401 - what was kept
    """The listing in a file; None where there is none, or none that holds."""
    try:
        kept = json.loads(file.read_bytes())
        stamps = {path: None if found is None else tuple(found) for path, found in kept["stamps"].items()}
        if kept["format"] != _FORMAT or any(stamp(path) != found for path, found in stamps.items()):
            return None
        return kept["listing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, or written by something else
        return None


def _is_settled(stamps: Stamps, today: float) -> bool:
    newest = max((time_ns for found in stamps.values() if found is not None for time_ns in found[1:]), default=0)
    return newest / 1e9 < today - SETTLED


def _write(file: Path, kept: dict[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file, "w", encoding="ascii") as opened:
            json.dump(kept, opened)
    except OSError:  # a cache folder that is full or not the user's
        return
