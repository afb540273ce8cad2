"""Writes one row per image: path, class, probability, error, and the next classes."""

import csv
import os
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from dropkey_cli.data.dataset import Batch
from dropkey_cli.errors import InputError
from dropkey_cli.files import keep_earlier

ERROR = 3
"""The column that says why an image could not be read."""


class PredictionWriter(Callback):
    """Writes predictions as CSV, one row per image in input order; an unreadable image has its reason in ``error``.

    The first process writes the rows of all, batch by batch, to a file beside ``output`` that takes its name when all are
    written. A file that was there before is kept under a numbered name.

    Args:
        output: The CSV file.
        top_k: Number of classes per row, at most as many as there are.
    """

    def __init__(self, output: str = "predictions.csv", top_k: int = 5) -> None:
        if top_k < 1:
            raise InputError(f"--top_k {top_k!r}: give a number of classes per image, 1 or more")
        self.output = Path(output)
        self.top_k = top_k
        self.num_rows = self.num_errors = 0
        self._file: TextIO | None = None
        self._rows: Any = None

    @property
    def _unfinished(self) -> Path:
        return self.output.with_name(f"{self.output.name}.{os.getpid()}.part")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file before the first image is read, so that a wrong place costs no time."""
        trainer.predict_loop.return_predictions = False  # Lightning would keep the probabilities of every image
        classes = trainer.datamodule.class_names  # type: ignore[attr-defined]  # Lightning sets it
        self.top_k = min(self.top_k, len(classes))
        if not trainer.is_global_zero:
            return
        if os.path.isdir(self.output):  # unlike Path.is_dir, also for names that are too long
            raise InputError(f"--output {str(self.output)!r} is a folder: give a file, e.g. predictions.csv")
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._unfinished.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise InputError(f"cannot write --output {str(self.output)!r}: {error.strerror}") from error
        self._rows = csv.writer(self._file)
        self._rows.writerow(header(self.top_k))

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Tensor, batch: Batch, *_: object
    ) -> None:
        """Write the batch's rows, and those of the other processes."""
        class_names = trainer.datamodule.class_names  # type: ignore[attr-defined]  # Lightning sets it
        own = list(rows(batch["path"], batch["error"], outputs, class_names, self.top_k))
        for row in _interleave(_gather(own, trainer)):
            self._rows.writerow(row)
            self.num_rows += 1
            self.num_errors += bool(row[ERROR])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the finished file its name."""
        if self._file is None:  # not the first process
            return
        self._file.close()
        if kept := keep_earlier(self.output):
            print(f"the earlier {self.output} is now {kept}")
        os.replace(self._unfinished, self.output)
        unread = f", {self.num_errors} of them unreadable (see the error column)" if self.num_errors else ""
        print(f"{self.num_rows} row{'s'[: self.num_rows != 1]}{unread} in {self.output}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing half-written behind."""
        if self._file is not None:
            self._file.close()
            self._unfinished.unlink(missing_ok=True)


def _gather(own: list[list[str]], trainer: Trainer) -> list[list[list[str]]]:
    """The rows of every process, in the first one; nothing in the others."""
    if trainer.world_size == 1:
        return [own]
    gathered: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
    torch.distributed.gather_object(own, gathered)
    return gathered or []


def _interleave(gathered: list[list[list[str]]]) -> Iterator[list[str]]:
    """The rows in input order: as `EvalSampler` dealt them out."""
    return (row for place in zip_longest(*gathered) for row in place if row is not None)


def header(top_k: int) -> list[str]:
    """The column names."""
    columns = ["path", "prediction", "probability", "error"]
    for rank in range(2, top_k + 1):
        columns += [f"top{rank}_class", f"top{rank}_probability"]
    return columns


def rows(paths: list[str], errors: list[str], probabilities: Tensor, class_names: list[str], top_k: int) -> Iterator[list[str]]:
    """One row per image, its classes by falling probability; padding has none.

    Args:
        paths: File of each of the B images; empty for padding.
        errors: Why an image could not be read; empty for the others.
        probabilities: (B, K), in [0, 1].
        class_names: Name of each of the K classes.
        top_k: How many of them a row names.
    """
    best = probabilities.topk(top_k)
    for path, error, values, indices in zip(paths, errors, best.values.tolist(), best.indices.tolist(), strict=True):
        if not path:
            continue
        if error:
            yield [path, "", "", error] + [""] * (2 * (top_k - 1))
            continue
        named = [(class_names[index], f"{value:.6f}") for value, index in zip(values, indices, strict=True)]
        yield [path, *named[0], "", *(cell for pair in named[1:] for cell in pair)]
