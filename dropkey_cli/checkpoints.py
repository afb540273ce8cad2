"""Where runs and their checkpoints lie, and what a checkpoint says about itself."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dropkey_cli.errors import InputError, did_you_mean, first_line

RUNS = Path("runs")
DEPTH = 3
"""Folders between a folder that is given and a run's: someone may give / or the home folder, which take minutes to search."""
_NEEDED = {"config", "preprocessing", "class_names", "model"}
# What Lightning reads; a checkpoint of weights alone lacks the last five
_KINDS = {
    "state_dict": dict,
    "callbacks": dict | None,
    "optimizer_states": list | None,
    "lr_schedulers": list | None,
    "epoch": int | None,
    "global_step": int | None,
}
_RELEASE = re.compile(r"\d+(\.\d+)+((a|b|rc|\.dev|\.post)\d+)?")


def check_run_name(name: str) -> None:
    """Refuse a name that is no folder's under runs/.

    Raises:
        InputError: If it is not.
    """
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"--name {name!r} is no folder name: give a word such as --name my_run")


def claim_run_folder(name: str, *, claim: bool = True) -> Path:
    """A new, empty folder ``runs/NAME/version_N``; two runs that ask at once get different ones.

    Args:
        name: The run's name.
        claim: False in all but the first process of a run: they write nothing, and get the folder's parent.
    """
    check_run_name(name)
    parent = RUNS / name
    if not claim:
        return parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null character
        give_back_run_folder(RUNS)
        raise InputError(f"cannot make the run folder {str(parent)!r} ({error}): give another --name") from error
    number = 1 + max((_version(folder) for folder in parent.iterdir()), default=-1)
    while True:
        folder = parent / f"version_{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def give_back_run_folder(folder: Path) -> None:
    """Remove a run's folder, and those above it under runs/, as far as there is nothing in them."""
    for place in (folder, *folder.parents):
        if RUNS not in (place, *place.parents) or not place.is_dir() or any(place.iterdir()):
            return
        place.rmdir()


def find_checkpoint(given: str | None, *, prefer: str = "best", option: str = "--ckpt_path") -> Path:
    """The checkpoint file that ``--ckpt_path`` or ``--resume`` means.

    Args:
        given: A file; a run folder (runs/NAME/version_N) or the checkpoints folder in it; a folder of runs (runs/NAME),
            of which the newest is taken; or ``best`` or ``last`` of the newest run.
        prefer: Which checkpoint of a run folder is meant, where it has both: best or last.
        option: What was given, for the message.

    Raises:
        InputError: If there is none; the message lists those there are.
    """
    if given is None:
        raise InputError(f"no checkpoint given: add --ckpt_path FILE_OR_RUN_FOLDER; {_candidates()}")
    if given in ("best", "last"):
        newest = _all_checkpoints(f"{given}.ckpt")
        if not newest:
            raise InputError(f"{option} {given}: no run under {RUNS}/ has a {given}.ckpt; {_candidates()}")
        return newest[0]
    path = Path(given)
    if os.path.isfile(path):  # unlike Path.is_file, also for names that are too long or hold a null character
        return path
    for name in (prefer, "best", "last"):  # a run without validation has no best
        for folder in (path / "checkpoints", path):
            if os.path.isfile(folder / f"{name}.ckpt"):
                return folder / f"{name}.ckpt"
    if os.path.isdir(path) and (newest := _all_checkpoints(f"{prefer}.ckpt", path)):
        return newest[0]
    runs = {str(folder) for checkpoint in _all_checkpoints("*.ckpt") for folder in checkpoint.parents[1:3]}
    near = did_you_mean(given, ("best", "last", *sorted(runs)))
    raise InputError(f"{option} {given!r} is neither a checkpoint nor a run folder with one; {_candidates()}{near}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a dropkey checkpoint says about itself: versions, model, classes, preprocessing, settings, config.

    Raises:
        InputError: If it is no checkpoint of ours, or would run code when it is loaded.
    """
    description: dict[str, Any] = load_checkpoint(path)["dropkey"]
    return description


def load_checkpoint(path: Path) -> dict[str, Any]:
    """All that is in a dropkey checkpoint, the tensors as they lie on the disk; what it says of itself is ``dropkey``.

    Raises:
        InputError: If it is no checkpoint of ours, or would run code when it is loaded.
    """
    import torch  # here, because finding a checkpoint must not wait for it

    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch names a dozen kinds of damage
        reason = first_line(error) or type(error).__name__
        raise InputError(
            f"{str(path)!r} is no checkpoint that can be loaded safely ({reason}): give one that dropkey fit wrote"
        ) from error
    description = checkpoint.get("dropkey") if isinstance(checkpoint, dict) else None
    if not isinstance(description, dict) or not description.keys() >= _NEEDED:
        raise InputError(f"{str(path)!r} was not written by dropkey: it does not say its network and classes")
    if faults := list(_faults(checkpoint, description)):
        raise InputError(f"{str(path)!r} is damaged, its {', '.join(faults)} cannot be: give one that dropkey fit wrote")
    return checkpoint


def _faults(checkpoint: dict[str, Any], description: dict[str, Any]) -> Iterator[str]:
    """Names of what is not of the kind that dropkey writes and Lightning reads."""
    yield from (name for name, kind in _KINDS.items() if not isinstance(checkpoint.get(name), kind))
    if not _has_loops(checkpoint.get("loops")):
        yield "loops"
    if not _RELEASE.fullmatch(str(checkpoint.get("pytorch-lightning_version"))):
        yield "pytorch-lightning_version"
    yield from (name for name, value in description.items() if not _is_plain(value))
    yield from (name for name in ("config", "model", "preprocessing") if not isinstance(description[name], dict))
    names = description["class_names"]
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        yield "class_names"
    if isinstance(description["config"], dict):
        yield from (f"config.{part}" for part in ("model", "data") if not _is_class(description["config"].get(part)))


def _has_loops(value: Any) -> bool:  # noqa: ANN401 - anything that a file can hold
    """Whether Lightning can go on from there; a checkpoint of weights alone has none."""
    if value is None:
        return True
    return isinstance(value, dict) and all(
        isinstance(value.get(f"{name}_loop"), dict) for name in ("fit", "validate", "test", "predict")
    )


def _is_plain(value: Any) -> bool:  # noqa: ANN401
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, str | int | float | None)


def _is_class(value: Any) -> bool:  # noqa: ANN401
    """Whether a part of a config names a class, and its arguments if it has some."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("class_path"), str)
        and all(word.isidentifier() for word in value["class_path"].split("."))
        and isinstance(value.get("init_args", {}), dict)
    )


def _version(folder: Path) -> int:
    word, _, number = folder.name.partition("_")
    return int(number) if word == "version" and number.isdecimal() else -1


def _all_checkpoints(pattern: str, folder: Path = RUNS) -> list[Path]:
    """Checkpoints of all runs under a folder, newest first; outside runs/ not deeper than runs lie in a project's folder."""
    depths = ["**/"] if folder == RUNS else ["*/" * depth for depth in range(DEPTH + 1)]
    try:
        found = [path for depth in depths for path in folder.glob(f"{depth}version_*/checkpoints/{pattern}")]
        return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError as error:  # a folder that goes away meanwhile
        raise InputError(f"cannot look for checkpoints in {str(folder)!r} ({error}): give a run's folder or a file") from error


def _candidates() -> str:
    found = _all_checkpoints("*.ckpt")
    if not found:
        return f"there are none under {RUNS}/ here (dropkey fit makes them)"
    listed = ", ".join(map(str, found[:5]))
    return f"found here, newest first: {listed}{f' and {len(found) - 5} more' if len(found) > 5 else ''}"
