"""Writes one row per image: path, class, probability, error, and the next classes."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from dropkey_cli.data.dataset import Batch
from dropkey_cli.errors import InputError


class PredictionWriter(Callback):
    """Writes predictions as CSV, one row per image in input order; an unreadable image has its reason in ``error``.

    The rows go to a file beside ``output`` that takes its name when all are written. A file that was there before is kept
    under a numbered name.

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
        if trainer.world_size > 1:
            raise InputError(f"predict runs on one process, {trainer.world_size} were asked for: add --trainer.devices 1")
        classes = trainer.datamodule.class_names  # type: ignore[attr-defined]  # Lightning sets it
        self.top_k = min(self.top_k, len(classes))
        if self.output.is_dir():
            raise InputError(f"--output {str(self.output)!r} is a folder: give a file, e.g. predictions.csv")
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._unfinished.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise InputError(f"cannot write --output {str(self.output)!r}: {error.strerror}") from error
        self._rows = csv.writer(self._file)
        self._rows.writerow(header(self.top_k))
        trainer.predict_loop.return_predictions = False  # Lightning would keep the probabilities of every image

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Tensor, batch: Batch, *_: object
    ) -> None:
        """Write the batch's rows."""
        class_names = trainer.datamodule.class_names  # type: ignore[attr-defined]  # Lightning sets it
        for row in rows(batch["path"], batch["error"], outputs, class_names, self.top_k):
            self._rows.writerow(row)
        self.num_rows += len(batch["path"])
        self.num_errors += sum(map(bool, batch["error"]))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the finished file its name."""
        assert self._file is not None
        self._file.close()
        keep_earlier(self.output)
        os.replace(self._unfinished, self.output)
        unread = f", {self.num_errors} of them unreadable (see the error column)" if self.num_errors else ""
        print(f"{self.num_rows} row{'s'[: self.num_rows != 1]}{unread} in {self.output}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing half-written behind."""
        if self._file is not None:
            self._file.close()
            self._unfinished.unlink(missing_ok=True)


def header(top_k: int) -> list[str]:
    """The column names."""
    columns = ["path", "prediction", "probability", "error"]
    for rank in range(2, top_k + 1):
        columns += [f"top{rank}_class", f"top{rank}_probability"]
    return columns


def rows(paths: list[str], errors: list[str], probabilities: Tensor, class_names: list[str], top_k: int) -> Iterator[list[str]]:
    """One row per image, its classes by falling probability.

    Args:
        paths: File of each of the B images.
        errors: Why an image could not be read; empty for the others.
        probabilities: (B, K), in [0, 1].
        class_names: Name of each of the K classes.
        top_k: How many of them a row names.
    """
    best = probabilities.topk(top_k)
    for path, error, values, indices in zip(paths, errors, best.values.tolist(), best.indices.tolist(), strict=True):
        if error:
            yield [path, "", "", error] + [""] * (2 * (top_k - 1))
            continue
        named = [(class_names[index], f"{value:.6f}") for value, index in zip(values, indices, strict=True)]
        yield [path, *named[0], "", *(cell for pair in named[1:] for cell in pair)]


def keep_earlier(output: Path) -> None:
    """Give an existing ``name.csv`` the first free name of ``name.1.csv``, ``name.2.csv`` and so on."""
    if not output.exists():
        return
    number = 1
    while (kept := output.with_name(f"{output.stem}.{number}{output.suffix}")).exists():
        number += 1
    output.rename(kept)
    print(f"the earlier {output} is now {kept}")
