"""``dropkey fit --resume RUN``: the run's own config and last checkpoint, in the run's own folder."""

import os
from argparse import ArgumentParser
from pathlib import Path

from dropkey_cli.checkpoints import RUNS, find_checkpoint
from dropkey_cli.errors import InputError

SLURM_JOB = "slurm_job"
"""File in a run's folder with the number of the SLURM job that made it."""


def resumed_run(command: str, words: list[str]) -> tuple[list[str], Path | None]:
    """The options of a command with ``--resume`` spelled out, and the folder of the run that goes on, if one does.

    A job that SLURM started again goes on with its run by itself.

    Args:
        command: fit, validate, test or predict; only fit can resume.
        words: Its options.

    Raises:
        InputError: If there is no such run or it has nothing to go on from.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", nargs="?", const="")
    given, rest = parser.parse_known_args(words)
    if given.resume is None:
        folder = requeued_run() if command == "fit" else None
        return (words, None) if folder is None else ([*_of_run(folder), *words], folder)
    if command != "fit":
        raise InputError(f"--resume goes on with a training run, which {command} is not: give --ckpt_path RUN, or dropkey fit")
    if not given.resume:
        raise InputError("--resume needs a run: write --resume runs/NAME/version_N, or --resume last for the newest")
    if any(word.partition("=")[0] == "--ckpt_path" for word in rest):
        raise InputError("--resume takes the run's last checkpoint: leave --ckpt_path out, or use it without --resume")
    return [*_of_run(folder := _folder(given.resume)), *rest], folder


def _folder(given: str) -> Path:
    checkpoint = find_checkpoint(given, prefer="last", option="--resume")
    folder = checkpoint.parent.parent
    if checkpoint.name != "last.ckpt" or not (folder / "config.yaml").is_file():
        raise InputError(
            f"--resume {given!r} finds {str(checkpoint)!r}, which is no last.ckpt of a run with a config.yaml: give a run's "
            f"folder, or start a new run from it with --ckpt_path {checkpoint}"
        )
    return folder


def typed(words: list[str], folder: Path | None) -> list[str]:
    """The options as a user would type them: with ``--resume`` where `resumed_run` has spelled it out.

    Args:
        words: The options of fit, configs first.
        folder: That of the run that goes on, if one does.
    """
    if folder is None:
        return words
    _, checkpoint = _of_run(folder)
    return ["--resume", str(folder), *(word for word in words[2:] if word != checkpoint)]  # its own config is the first


def _of_run(folder: Path) -> list[str]:
    return [f"--config={folder / 'config.yaml'}", f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"]


def requeued_run() -> Path | None:
    """The run of this SLURM job, if SLURM has started the job again and there is a checkpoint to go on from."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return None
    for record in sorted(RUNS.glob(f"**/version_*/{SLURM_JOB}"), key=lambda path: path.stat().st_mtime, reverse=True):
        if record.read_text(encoding="utf-8").strip() == job and (record.parent / "checkpoints" / "last.ckpt").is_file():
            return record.parent
    return None


def record_job(folder: Path) -> None:
    """Note in a new run's folder which SLURM job it belongs to."""
    if job := os.environ.get("SLURM_JOB_ID"):
        (folder / SLURM_JOB).write_text(job, encoding="utf-8")
