"""Progress: a bar in a terminal, plain lines in logs and pipes, where a bar would write control codes."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

SECONDS_BETWEEN_LINES = 30.0


class ProgressBar(RichProgressBar):
    """Rich's bar with the metrics of the last logging step: to read them at every step is to wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self._reads = True
        self._values: dict[str, float] = {}

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - as Lightning's
        """Move on; read the metrics at the trainer's interval."""
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it; 0 logs nothing
        self._reads = interval > 0 and trainer.global_step % interval == 0
        super().on_train_batch_end(trainer, *arguments, **named)
        self._reads = True

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics of training and validation by name."""
        if self._reads:
            self._values = _metrics(trainer)
        return self._values


class ProgressLines(Callback):
    """Prints one line per epoch, and one every half minute inside long epochs."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = self._last = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Print a line if the last one is long ago."""
        if time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._print(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's line."""
        self._print(trainer)

    def _print(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        self._last = time.monotonic()
        elapsed = self._last - self._start
        steps, done = trainer.estimated_stepping_batches, trainer.global_step - self._first_step
        left = (steps - trainer.global_step) * elapsed / max(done, 1)
        epochs = f"/{trainer.max_epochs}" if trainer.max_epochs != -1 else ""
        values = "  ".join(f"{name} {value:.4f}" for name, value in _metrics(trainer).items())
        print(
            f"epoch {trainer.current_epoch + 1}{epochs}  step {trainer.global_step}/{steps}  {values}  "
            f"{_minutes(elapsed)} elapsed, {_minutes(left)} left",
            flush=True,
        )


def _metrics(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(("train/", "val/"))}


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
