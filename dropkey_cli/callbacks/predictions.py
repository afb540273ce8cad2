"""Writes one row per image: path, class, probability, error, and the next classes."""

import os
from contextlib import suppress
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from dropkey_cli.callbacks.gathering import gather
from dropkey_cli.callbacks.prediction_files import FORMATS, PredictionFile
from dropkey_cli.callbacks.prediction_table import Choice, interleave, prediction_table
from dropkey_cli.data.dataset import Batch
from dropkey_cli.errors import InputError
from dropkey_cli.files import keep_earlier


class PredictionWriter(Callback):
    """Writes predictions, one row per image in input order; an unreadable image has its reason in ``error``.

    The first process writes the rows of all, batch by batch, to a file beside ``output`` that takes its name when all are
    written. A file that was there before is kept under a numbered name.

    Args:
        output: The file; its ending says how: .csv, .jsonl or .parquet.
        top_k: Number of classes per row, at most as many as there are.
        threshold: Classes with a lower probability are left empty.
        all_probabilities: Add a column with the probability of each class.
    """

    def __init__(
        self, output: str = "predictions.csv", top_k: int = 5, *, threshold: float = 0.0, all_probabilities: bool = False
    ) -> None:
        if top_k < 1:
            raise InputError(f"--top_k {top_k!r}: give a number of classes per image, 1 or more")
        if not 0 <= threshold <= 1:
            raise InputError(f"--threshold {threshold!r}: give a probability from 0 to 1, e.g. 0.5")
        self.output = Path(output)
        self.choice = Choice(top_k, threshold, all_probabilities)
        self.num_rows = self.num_errors = 0
        self._file: PredictionFile | None = None

    @property
    def _unfinished(self) -> Path:
        return self.output.with_name(f"{self.output.name}.{os.getpid()}.part")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file before the first image is read, so that a wrong place costs no time."""
        trainer.predict_loop.return_predictions = False  # Lightning would keep the probabilities of every image
        classes = trainer.datamodule.class_names  # type: ignore[attr-defined]  # Lightning sets it
        self.choice = self.choice._replace(top_k=min(self.choice.top_k, len(classes)))
        if trainer.is_global_zero:
            self._open()

    def _open(self) -> None:
        if os.path.isdir(self.output):  # unlike Path.is_dir, also for names that are too long
            raise InputError(f"--output {str(self.output)!r} is a folder: give a file, e.g. predictions.csv")
        file = FORMATS.get(self.output.suffix.lower())
        if file is None:
            raise InputError(f"--output {str(self.output)!r}: give a file that ends in {', '.join(FORMATS)}")
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self._file = file(self._unfinished)
        except OSError as error:
            raise InputError(f"cannot write --output {str(self.output)!r}: {error.strerror}") from error

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: dict[str, Tensor], batch: Batch, *_: object
    ) -> None:
        """Write the batch's rows, and those of the other processes."""
        class_names = trainer.datamodule.class_names  # type: ignore[attr-defined]  # Lightning sets it
        own = prediction_table(batch["path"], batch["error"], outputs, class_names, self.choice)
        tables = gather(own, trainer)
        if self._file is not None:
            table = interleave(tables)
            self._file.write(table)
            self.num_rows += len(table["error"])
            self.num_errors += sum(map(bool, table["error"]))

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
            with suppress(OSError, ValueError):  # what could not be written before cannot be now
                self._file.close()
            self._unfinished.unlink(missing_ok=True)
