"""Exports a checkpoint: every form is written, loaded again and compared before the folder takes its name."""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from dropkey_cli.errors import InputError, RunError
from dropkey_cli.export.card import model_card
from dropkey_cli.export.comparing import Run, check_difference, largest_difference
from dropkey_cli.export.images import images_to_compare
from dropkey_cli.export.onnx_file import FILE as ONNX_FILE
from dropkey_cli.export.onnx_file import write_onnx
from dropkey_cli.export.program import FILE as PROGRAM_FILE
from dropkey_cli.export.program import write_program
from dropkey_cli.export.timm_folder import WEIGHTS, write_timm
from dropkey_cli.export.trained import Trained, preprocessing_json
from dropkey_cli.files import whole_folder


class Form(NamedTuple):
    """One form of an export: what writes it and gives what runs it, and its main file."""

    write: Callable[[Trained, Tensor, Path], Run]
    file: str


FORMS = {
    "timm": Form(write_timm, WEIGHTS),
    "onnx": Form(write_onnx, ONNX_FILE),
    "torch": Form(write_program, PROGRAM_FILE),
}


class Exported(NamedTuple):
    """One form that was written."""

    form: str
    file: Path
    megabytes: float
    difference: float
    seconds: float


def export(
    trained: Trained, forms: list[str], output: Path, *, images: str | None, title: str, words: list[str]
) -> tuple[list[Exported], str]:
    """Write a folder with the network in some forms, a model card and ``preprocessing.json``.

    Args:
        trained: The network.
        forms: Some of timm, onnx and torch.
        output: The folder; it must not be there yet.
        images: A file or folder with the images to compare on; by default those it was trained on, if they are there.
        title: The card's.
        words: The command that was typed.

    Returns:
        What was written, and the images that it was compared on, in a phrase.

    Raises:
        InputError: If the folder is there already or the images cannot be read.
        RunError: If a form cannot be made or computes something else; then nothing is left behind.
    """
    check_output(output)
    root = trained.description["config"]["data"].get("init_args", {}).get("root")
    batch, text = images_to_compare(trained.preprocessing, given=images, root=root)
    try:
        with whole_folder(output) as folder:
            exported = [_write(form, trained, batch, folder) for form in forms]
            (folder / "README.md").write_text(model_card(trained, forms, title=title, words=words), encoding="utf-8")
            (folder / "preprocessing.json").write_text(preprocessing_json(trained), encoding="utf-8")
    except OSError as error:
        raise RunError(f"writing {str(output)!r} failed ({error}): free some space, or give another --output") from error
    return [row._replace(file=output / row.file.name) for row in exported], text


def check_output(output: Path) -> None:
    """Refuse a folder that is there already, unless it is empty.

    Raises:
        InputError: If it is.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise InputError(f"--output {str(output)!r} is there already: give another folder, or remove it first")


def _write(form: str, trained: Trained, images: Tensor, folder: Path) -> Exported:
    start, file = time.monotonic(), folder / FORMS[form].file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporters speak of themselves
        run = FORMS[form].write(trained, images, folder)
    difference = largest_difference(run, trained.network, images)
    check_difference(form, difference, trained.network, images)
    return Exported(form, file, file.stat().st_size / 1e6, difference, time.monotonic() - start)
