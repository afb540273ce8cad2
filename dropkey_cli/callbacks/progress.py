"""Progress as plain lines, for logs and pipes, where a progress bar would write control codes."""

import time

from lightning import Callback, LightningModule, Trainer

SECONDS_BETWEEN_LINES = 30.0


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
        names = [name for name in trainer.callback_metrics if name.startswith(("train/", "val/"))]
        values = "  ".join(f"{name} {float(trainer.callback_metrics[name]):.4f}" for name in names)
        print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {trainer.global_step}/{steps}  {values}  "
            f"{_minutes(elapsed)} elapsed, {_minutes(left)} left",
            flush=True,
        )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
