"""The checkpoints of a run: the best one, and the last one, from which the run goes on exactly where it was."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, GradientAccumulationScheduler, ModelCheckpoint
from torch import Tensor
from torchmetrics import Metric

from dropkey_cli.callbacks.run_log import say
from dropkey_cli.callbacks.step_rows import keep_rows_before
from dropkey_cli.callbacks.stop_signals import StopSignals
from dropkey_cli.data.loading import TrainSampler
from dropkey_cli.errors import InputError, RunError
from dropkey_cli.files import resume_command

SAVE = 1  # lower than every signal


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint in a run folder that may have been moved.

    Args:
        folder: The checkpoints folder of the run.
        monitor: The metric whose highest value is best.
        resumed: Whether an earlier part of the same run wrote there.
    """

    def __init__(self, folder: Path, monitor: str | None, *, resumed: bool = False) -> None:
        super().__init__(
            folder, filename="best", monitor=monitor, mode="max", auto_insert_metric_name=False, enable_version_counter=False
        )
        self.resumed = resumed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """As Lightning's, to which a folder with checkpoints in it is strange."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*exists and is not empty.*")
            super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The best score so far, of this run only: another run's checkpoint does not count here."""
        if not self.resumed:
            return
        scores = {str(Path(self.dirpath or "") / Path(path).name): score for path, score in state_dict["best_k_models"].items()}
        best = next(iter(scores), "")
        here = {"dirpath": self.dirpath, "best_model_path": best, "kth_best_model_path": best, "best_k_models": scores}
        super().load_state_dict({**state_dict, **here})


class LoggedSteps(Callback):
    """Mends, before any other callback, how many steps are logged: from some places Lightning resumes with one too many."""

    def __init__(self) -> None:
        self._fresh = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run begins or goes on."""
        self._fresh = True

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        """Count those that were made."""
        if self._fresh:
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
            self._fresh = False


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` after every epoch, every few minutes, and when the run is asked to stop; then it stops.

    It is written between two batches, when all is validated and logged and no gradients are accumulated. A run that starts
    from it goes on bit for bit as it would have.

    Args:
        folder: The run's folder.
        signals: Knows whether the run is asked to stop.
        minutes: Time between two checkpoints within an epoch; 0 writes them after epochs only.
    """

    def __init__(self, folder: Path, signals: StopSignals, *, minutes: float = 10.0) -> None:
        self.folder = folder
        self.path = folder / "checkpoints" / "last.ckpt"
        self.signals = signals
        self.seconds = 60 * minutes
        self._states: dict[str, dict[str, Any]] = {}
        self._place: dict[str, Any] = {}
        self._began = self._saving = False
        signals.saver = True

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what is needed when training starts."""
        self._states = checkpoint.get("metric_states", {})
        self._place = checkpoint.get("place", {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the place where the checkpoint was written."""
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        self._began = True
        if trainer.ckpt_path is not None:
            if trainer.is_global_zero and (self.folder / "metrics.csv").is_file():
                keep_rows_before(self.folder / "metrics.csv", trainer.global_step)
            find_place(trainer, self._place)
            if trainer.is_global_zero:  # the states are those of all processes together
                restore_metrics(pl_module, self._states)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Save if an epoch is over, if it is time, or if the run is to stop."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        stepped = trainer.global_step > self._saved_step
        due = stepped and 0 < self.seconds <= time.monotonic() - self._saved_at and trainer.is_global_zero
        wish = self.signals.agreed(self.signals.received or due * SAVE)
        if wish or (batch_idx == 0 and stepped):
            self._save(trainer)
        if wish > SAVE:
            self._stop(trainer, wish)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end."""
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say how to go on; a `RunError` says it itself."""
        silent = self.signals.obeyed or isinstance(exception, RunError) or not trainer.is_global_zero
        if self._began and not silent and self.path.is_file():
            todo = f"continue with: {resume_command(self.folder)}"
            say(f"the last checkpoint is that of step {self._saved_step}; {todo}", error=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning leaves out: the metrics of the epoch so far, of all processes together, and the place in it."""
        if self._saving:  # elsewhere metrics may hold what is logged already
            checkpoint["metric_states"] = metric_states(pl_module)
        checkpoint["place"] = place(trainer)

    def _save(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # before: the rows of the steps that the checkpoint has behind it are not logged again
        self._saving = True
        trainer.save_checkpoint(self.path)
        self._saving = False
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def _stop(self, trainer: Trainer, number: int) -> None:
        """End this process with the signal's exit code."""
        self.signals.obeyed = True
        if not trainer.is_global_zero:  # Lightning would kill the first one for another code
            raise SystemExit(0)
        if number == getattr(signal, "SIGUSR1", None):
            requeue()
        say(f"stopped at step {trainer.global_step}; continue with: {resume_command(self.folder)}")
        raise SystemExit(128 + number)


def place(trainer: Trainer) -> dict[str, Any]:
    """What a place within an epoch depends on: the number of images, the size of the batches, the number of processes."""
    sampled = [(loader, loader.sampler) for loader in _loaders(trainer) if isinstance(loader.sampler, TrainSampler)]
    return {
        "images": [len(sampler.dataset) for _, sampler in sampled],  # type: ignore[arg-type]  # it has a length
        "batch_size": [loader.batch_size for loader, _ in sampled],
        "processes": [sampler.num_replicas for _, sampler in sampled],
    }


def find_place(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Let the training images begin where the checkpoint was written.

    Args:
        trainer: At the start of its training, with the checkpoint's progress.
        saved: What `place` gave when the checkpoint was written.

    Raises:
        InputError: If that is within an epoch and images, batches or processes are not the same.
    """
    loop = trainer.fit_loop.epoch_loop
    progress = loop.batch_progress
    done = progress.current.completed + loop.restarted_on_train_batch_end if loop.restarting else 0  # then not yet counted
    if done and saved != place(trainer):
        raise InputError(
            f"the checkpoint was written after {done} batches of an epoch with {_spelled(saved)}, now there are "
            f"{_spelled(place(trainer))}: give the same images, --data.batch_size and --trainer.devices to go on from it"
        )
    if done >= trainer.num_training_batches:
        done = 0  # the next epoch's images come next
    for loader in _loaders(trainer):
        if isinstance(loader.sampler, TrainSampler):
            loader.sampler.start_at(trainer.current_epoch, done * loader.batch_size)
            warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")  # Lightning looks for its own interface
    if loop.restarting:
        progress.is_last_batch = False  # it was said of the batch that comes now
        if not loop.restarted_on_train_batch_end:
            progress.total.reset_on_restart()  # Lightning forgets it, and then validates too early
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it
        if isinstance(callback, GradientAccumulationScheduler):
            callback.on_train_epoch_start(trainer)  # Lightning begins no epoch in the middle
    iter(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]  # Lightning has made an iterator before it knew the place


def metric_states(module: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """The states of all metrics that are under way, summed over the processes, by name."""
    states = {}
    for name, metric in module.named_modules():
        if isinstance(metric, Metric):
            with metric.sync_context():
                states[name] = {key: _on_cpu(value) for key, value in metric.metric_state.items()}
    return states


def restore_metrics(module: torch.nn.Module, states: dict[str, dict[str, Any]]) -> None:
    """Let metrics go on from what `metric_states` gave."""
    for name, metric in module.named_modules():
        if isinstance(metric, Metric) and name in states:
            for key, value in states[name].items():
                parts = [part.to(metric.device) for part in ([value] if isinstance(value, Tensor) else value)]
                # A list of several processes comes back as one tensor
                setattr(metric, key, parts if isinstance(metric._defaults[key], list) else parts[0])
            metric._update_count, metric._computed = 1, None  # they hold something


def requeue() -> None:
    """Ask SLURM to start the job again: it finds its run by the job's number."""
    command = ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{' '.join(command)} failed ({error}): submit the job again", file=sys.stderr)


def _loaders(trainer: Trainer) -> list[Any]:
    combined = trainer.fit_loop._combined_loader
    return [] if combined is None else [loader for loader in combined.flattened if hasattr(loader, "sampler")]


def _spelled(saved: dict[str, Any]) -> str:
    return ", ".join(f"{name} {' + '.join(map(str, values))}" for name, values in saved.items()) or "other data"


def _on_cpu(value: Any) -> Any:  # noqa: ANN401 - a tensor or a list of them
    return value.detach().cpu().clone() if isinstance(value, Tensor) else [_on_cpu(item) for item in value]
