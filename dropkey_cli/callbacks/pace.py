"""How fast a run is, how long it still takes, and the best so far: measured by the clock alone, no device is waited for."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler


class FetchTimes(Profiler):
    """Adds up the seconds for which training waited for its next batch.

    Attributes:
        seconds: Their sum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._began = 0.0

    def start(self, action_name: str) -> None:
        """Lightning begins something."""
        if action_name.endswith(".train_dataloader_next"):
            self._began = time.monotonic()

    def stop(self, action_name: str) -> None:
        """And has done it."""
        if action_name.endswith(".train_dataloader_next"):
            self.seconds += time.monotonic() - self._began


class Counts(NamedTuple):
    """What has been counted up to a moment, in this process's part of the run.

    Args:
        seconds: Of training, without validation.
        images: Of all processes.
        waited: Seconds in which training waited for its images.
    """

    seconds: float
    images: int
    waited: float

    def images_per_second(self, before: "Counts") -> float:
        """Since an earlier moment; 0 where images or time are not known."""
        return (self.images - before.images) / (self.seconds - before.seconds) if self.seconds > before.seconds else 0.0

    def waiting(self, before: "Counts") -> float:
        """Share of the time since an earlier moment in which training waited for its images."""
        return (self.waited - before.waited) / (self.seconds - before.seconds) if self.seconds > before.seconds else 0.0


class Pace(Callback):
    """Counts images and seconds, and remembers the best value of the task's metric and its epoch.

    Args:
        resumed: Whether a checkpoint's best value is this run's own.

    Attributes:
        best: The highest value of the task's ``monitor``; None before the first validation.
        best_epoch: Its epoch, from 1.
    """

    def __init__(self, *, resumed: bool = False) -> None:
        self.resumed = resumed
        self.best: float | None = None
        self.best_epoch = 0
        self._images = 0
        self._start = self._paused = self._first_seconds = self._validation_began = 0.0
        self._first_step: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start, self._paused, self._images, self._first_step = time.monotonic(), 0.0, 0, None
        self._start_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Count the batch; the time up to the end of the first one, which may compile, foretells nothing."""
        self._images += num_images(batch) * trainer.world_size
        if self._first_step is None:
            self._first_step, self._first_seconds = trainer.global_step, time.monotonic() - self._start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No images are trained on."""
        self._validation_began = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """They are again; is this the best?"""
        if trainer.sanity_checking:
            return
        self._paused += time.monotonic() - self._validation_began
        value = trainer.callback_metrics.get(getattr(pl_module, "monitor", ""))
        if value is not None and (self.best is None or float(value) > self.best):
            self.best, self.best_epoch = float(value), trainer.current_epoch + 1

    def counts(self, trainer: Trainer) -> Counts:
        """Up to now."""
        profiler = trainer.profiler  # type: ignore[attr-defined]  # Lightning sets it
        waited = profiler.seconds if isinstance(profiler, FetchTimes) else 0.0
        return Counts(time.monotonic() - self._start - self._paused, self._images, waited)

    @property
    def elapsed(self) -> float:
        """Seconds since training began or went on."""
        return time.monotonic() - self._start

    def seconds_left(self, trainer: Trainer) -> float:
        """How long the remaining steps take at the pace so far, their validations included; inf if nobody knows."""
        first, began = (self._start_step, 0.0) if self._first_step is None else (self._first_step, self._first_seconds)
        if trainer.global_step <= first:
            first, began = self._start_step, 0.0
        done = max(trainer.global_step - first, 1)
        return float(trainer.estimated_stepping_batches - trainer.global_step) * (self.elapsed - began) / done

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, in the same run."""
        best, epoch = state_dict.get("best"), state_dict.get("best_epoch")
        if self.resumed and isinstance(best, float) and isinstance(epoch, int):  # a file may say anything
            self.best, self.best_epoch = best, epoch


def num_images(batch: object) -> int:
    """How many images a batch has; 0 for a batch that is not one of ours."""
    return len(batch["image"]) if isinstance(batch, Mapping) and "image" in batch else 0


def learning_rate(trainer: Trainer) -> float | None:
    """The highest of all groups of weights, where it is a plain number: to read it waits for nothing."""
    rates = [group.get("lr") for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return max((rate for rate in rates if isinstance(rate, float)), default=None)
