"""Progress: a bar in a terminal, plain lines in logs and pipes, where a bar would write control codes."""

import math
import time
from collections.abc import Iterator
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.progress import ProgressColumn, Task
from rich.text import Text

from dropkey_cli.callbacks.pace import Counts, Pace, learning_rate, num_images
from dropkey_cli.callbacks.run_log import note, say

SECONDS_BETWEEN_LINES = 30.0
MUCH_WAITING = 0.1
"""Share of the time from which waiting for images is worth a word."""
SECONDS_BEFORE_ADVICE = 10.0
BAR_WIDTH = 16
SHOWN = ("train/loss", "train/acc1", "val/loss", "val/acc1")
NOTHING = Counts(0.0, 0, 0.0)


class ProgressBar(RichProgressBar):
    """Rich's bar with the metrics of the last logging step: to read them at every step is to wait for the device.

    Args:
        pace: What it knows of speed and best value; None outside training.
    """

    def __init__(self, pace: Pace | None = None) -> None:
        super().__init__()
        self.pace = pace
        self._reads = True
        self._values: dict[str, Any] = {}
        self._before = NOTHING

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - as Lightning's
        """Move on; read the metrics at the trainer's interval."""
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it; 0 logs nothing
        self._reads = interval > 0 and trainer.global_step % interval == 0
        super().on_train_batch_end(trainer, *arguments, **named)
        self._reads = True

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics of training and validation by name, the best so far, the rate, and how long it still takes."""
        if self._reads:
            self._values = dict(metrics(trainer, pl_module))
            if self.pace is not None and trainer.training:
                now = self.pace.counts(trainer)
                self._values |= dict(_figures(trainer, self.pace, self._before, now))
                self._before = now
                if self.pace.best is not None:  # a bar is narrow, and this is nearly the best's name
                    self._values.pop(getattr(pl_module, "monitor", ""), None)
        return self._values

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the screen to the last lines."""
        self._stop_progress()

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """As Lightning's, with images in the place of batches per second."""
        images = getattr(trainer.datamodule, "batch_size", 0) * trainer.world_size  # type: ignore[attr-defined]
        description, bar, batches, clock, _ = super().configure_columns(trainer)
        bar.bar_width = BAR_WIDTH
        return [description, bar, batches, clock, *([_ImagesPerSecond(images)] if images else [])]

    def _get_train_description(self, current_epoch: int) -> str:
        """As in the lines, from 1."""
        epochs = self.trainer.max_epochs
        return f"epoch {current_epoch + 1}{f'/{epochs}' if epochs not in (None, -1) else ''}"


class _ImagesPerSecond(ProgressColumn):
    """The speed of a bar in images.

    Args:
        images: Images per batch, of all processes.
    """

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images = images

    def render(self, task: Task) -> Text:
        """What stands in the bar."""
        return Text("" if task.speed is None else f"{task.speed * self.images:.0f} images/s", style="dim")


class ProgressLines(Callback):
    """One line per epoch, and one every half minute inside long epochs, in ``run.log`` and, without a bar, on the terminal.

    Args:
        pace: What it knows of speed and best value.
        printed: Also print them.
    """

    def __init__(self, pace: Pace, *, printed: bool = True) -> None:
        self.pace = pace
        self.printed = printed
        self._advised = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._last = time.monotonic()
        self._before = NOTHING

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Write a line if the last one is long ago."""
        if time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._write(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's line."""
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        now, self._last = self.pace.counts(trainer), time.monotonic()
        epochs = f"/{trainer.max_epochs}" if trainer.max_epochs not in (None, -1) else ""
        steps = trainer.estimated_stepping_batches
        parts = [f"epoch {trainer.current_epoch + 1}{epochs}"]
        parts.append(f"step {trainer.global_step}{f'/{steps}' if math.isfinite(steps) else ''}")
        parts += [f"{name} {value:.4f}" for name, value in metrics(trainer, pl_module).items()]
        parts += [f"{name} {text}" for name, text in _figures(trainer, self.pace, self._before, now) if name != "left"]
        speed = now.images_per_second(self._before)
        parts += [f"{speed:.0f} images/s"] if speed else []
        left = self.pace.seconds_left(trainer)
        parts.append(f"{spelled(self.pace.elapsed)} elapsed{f', {spelled(left)} left' if math.isfinite(left) else ''}")
        (say if self.printed else note)("  ".join(parts))
        self._advise(trainer, now)
        self._before = now

    def _advise(self, trainer: Trainer, now: Counts) -> None:
        """Say once what helps where the device waits for images."""
        share = now.waiting(self._before)
        if self._advised or share <= MUCH_WAITING or now.waited < SECONDS_BEFORE_ADVICE:
            return
        self._advised = True
        workers = getattr(trainer.datamodule, "num_workers", None)  # type: ignore[attr-defined]  # Lightning sets it
        text = (
            f"{share:.0%} of the time training waits for images: give more --data.num_workers (now {workers}), or smaller files"
        )
        (say if self.printed else note)(text)


class EvaluationLines(Callback):
    """A line every half minute of a long validation, test or prediction, on the standard error: the rest may be a result."""

    def __init__(self) -> None:
        self._seen = self._images = 0
        self._start = self._last = 0.0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = self._last = time.monotonic()
        self._seen = self._images = 0

    on_validation_start = on_predict_start = on_test_start

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a line if the last one is long ago."""
        self._seen += 1
        self._images += num_images(batch) * trainer.world_size
        now = time.monotonic()
        if now - self._last > SECONDS_BETWEEN_LINES and trainer.is_global_zero:
            self._last = now
            total, seconds = num_batches(trainer), now - self._start
            left = f", {spelled((total - self._seen) * seconds / self._seen)} left" if math.isfinite(total) else ""
            of = f"/{total:.0f}" if math.isfinite(total) else ""
            text = f"batch {self._seen}{of}  {self._images} images  {self._images / seconds:.0f} images/s"
            command = trainer.state.fn.value if trainer.state.fn is not None else ""
            say(f"{command}  {text}  {spelled(seconds)} elapsed{left}", error=True)

    on_validation_batch_end = on_predict_batch_end = on_test_batch_end


def num_batches(trainer: Trainer) -> float:
    """Of the validation, test or prediction that is under way; inf if nobody knows."""
    if trainer.state.fn == TrainerFn.VALIDATING:
        return float(sum(trainer.num_val_batches))
    return float(sum(trainer.num_test_batches if trainer.state.fn == TrainerFn.TESTING else trainer.num_predict_batches))


def metrics(trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
    """Losses, accuracies and what decides on the best checkpoint; all metrics of a task that has others."""
    found = {name: value for name, value in trainer.callback_metrics.items() if name.startswith(("train/", "val/"))}
    shown = [name for name in dict.fromkeys((*SHOWN, getattr(pl_module, "monitor", ""))) if name in found]
    return {name: float(found[name]) for name in shown or found}


def _figures(trainer: Trainer, pace: Pace, before: Counts, now: Counts) -> Iterator[tuple[str, str]]:
    """What is known beside the metrics, as (name, text)."""
    if pace.best is not None:
        yield "best", f"{pace.best:.4f} (epoch {pace.best_epoch})"
    rate = learning_rate(trainer)
    if rate is not None:
        yield "lr", f"{rate:.2g}"
    if (share := now.waiting(before)) > MUCH_WAITING:
        yield "waiting for data", f"{share:.0%}"
    if math.isfinite(left := pace.seconds_left(trainer)):
        yield "left", spelled(left)


def spelled(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
