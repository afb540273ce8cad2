"""Keeps a loss that is NaN or infinite out of the weights and the checkpoints, and ends the run or leaves the step out."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Adam, Optimizer

from dropkey_cli.callbacks.gathering import anywhere, largest_anywhere
from dropkey_cli.callbacks.nonfinite_layers import find_nonfinite, largest_magnitude, largest_norm
from dropkey_cli.callbacks.nonfinite_report import TrainBatch, TrainStep, describe, describe_gradients, story, ways_out
from dropkey_cli.callbacks.run_log import say
from dropkey_cli.errors import RunError

MOST_SKIPPED_IN_A_ROW = 20


class FiniteLoss(Callback):
    """Leaves out every optimizer step whose loss or gradients are NaN or infinite, in all processes alike.

    Whether they are is decided on the device. The host learns of it, and ends the run or counts, at the trainer's logging
    interval, at the end of an epoch and before a checkpoint is written; on a CPU after every step. Under a gradient scaler
    (16-mixed) the scaler leaves steps out; there only the loss counts, since gradients that overflow are part of its search.

    Args:
        on_nonfinite: ``stop`` raises a `RunError` that says where it began; no step after that one changes the weights.
            ``skip`` goes on, and logs ``train/skipped_batches``: the batches of all the steps left out. More than
            MOST_SKIPPED_IN_A_ROW such steps in a row end the run all the same.
    """

    def __init__(self, on_nonfinite: Literal["stop", "skip"] = "stop") -> None:
        self.on_nonfinite = on_nonfinite
        self.skipped_batches = 0
        self.skipped_in_a_row = 0
        self._step = 0
        self._batches: list[TrainBatch] = []  # of the step that is being accumulated
        self._steps: list[TrainStep] = []  # that the host has not looked at
        self._statistics: RunningStatistics | None = None

    def state_dict(self) -> dict[str, int]:
        """The counts, so that a resumed run goes on with them."""
        return {"skipped_batches": self.skipped_batches, "skipped_in_a_row": self.skipped_in_a_row}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take the counts of a checkpoint."""
        self.skipped_batches, self.skipped_in_a_row = state_dict["skipped_batches"], state_dict["skipped_in_a_row"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin where the run begins."""
        self._step = trainer.global_step
        self._batches, self._steps = [], []
        self._poison = torch.zeros((), device=trainer.strategy.root_device)  # NaN once something was not finite
        self._left_out = torch.zeros((), device=trainer.strategy.root_device)
        self._statistics = RunningStatistics(pl_module) if self.on_nonfinite == "skip" else None

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        """Keep the running statistics, which the forward changes."""
        if self._statistics is not None:
            self._statistics.keep()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note on the device whether the loss is finite."""
        self._poison_of_batch = loss.detach() * 0
        self._poison = self._poison + self._poison_of_batch

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take back what a batch that is not finite did to running statistics; not earlier: the backward needs them."""
        if self._statistics is not None:
            self._statistics.take_back(self._poison_of_batch.isnan())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Leave the step out if anything in it was not finite."""
        if _scaler(trainer) is not None:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._poison = self._poison + largest_norm(gradients).to(self._poison.device) * 0
        self._left_out = largest_anywhere(self._poison.isnan().float())
        if can_leave_out_on_device(optimizer):
            optimizer.found_inf = self._left_out  # type: ignore[attr-defined]  # the fused kernels' own way, as of GradScaler
        elif self._left_out.item():
            for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
                parameter.grad = None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning takes many forms
        batch: Any,  # noqa: ANN401 - the data's own type
        batch_idx: int,
    ) -> None:
        """Keep the batch's loss; look at all that were kept where that costs nothing."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        loss = loss.detach() if isinstance(loss, Tensor) else torch.zeros((), device=self._poison.device)
        paths = batch.get("path", []) if isinstance(batch, Mapping) else []
        self._batches.append(TrainBatch(trainer.current_epoch + 1, batch_idx + 1, paths, loss.float()))
        if trainer.global_step == self._step:
            return  # gradients are being accumulated
        self._step = trainer.global_step
        self._steps.append(TrainStep(self._step, self._batches, self._left_out))
        self._batches = []
        if self.on_nonfinite == "skip" or _scaler(trainer) is not None:
            self._poison = torch.zeros_like(self._poison)
        interval = trainer.log_every_n_steps or MOST_SKIPPED_IN_A_ROW  # type: ignore[attr-defined]  # Lightning sets it
        logs = self._step % interval == 0 or trainer.is_last_batch or self._step == trainer.max_steps
        if logs or reading_is_free(trainer.strategy.root_device):
            self._look(trainer, pl_module, batch)
        if logs and self.on_nonfinite == "skip":
            _log(trainer, {"train/skipped_batches": float(self.skipped_batches)})

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say it if the validation loss is not finite; the best checkpoint is chosen by another metric."""
        loss = trainer.callback_metrics.get("val/loss")
        if loss is not None and not loss.isfinite():
            _say(trainer, f"val/loss is {float(loss)} after step {trainer.global_step}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to write weights that are not finite; the files there are stay."""
        self._look(trainer, pl_module, None)
        checkpoint.get("callbacks", {})[self.state_key] = self.state_dict()
        bad = 1 - largest_magnitude([*pl_module.parameters()]).isfinite().float().to(trainer.strategy.root_device)
        place = find_nonfinite(pl_module, None) if bad.item() else ""
        if largest_anywhere(bad).item():
            todo = ways_out(trainer, self.on_nonfinite)
            raise RunError(f"after step {trainer.global_step} {anywhere(place)}, so no checkpoint is written; {todo}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many batches were skipped; if that was all of them, the run failed."""
        self._look(trainer, pl_module, None)
        if 0 < self.skipped_in_a_row == trainer.global_step:
            raise RunError(f"all {trainer.global_step} steps were skipped, so nothing was learnt; {ways_out(trainer, 'skip')}")
        if self.skipped_batches:
            since = f"; nothing was learnt in the last {self.skipped_in_a_row} steps" if self.skipped_in_a_row > 1 else ""
            _say(trainer, f"{self.skipped_batches} batches were skipped in all, since loss or gradients were not finite{since}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizer as it was."""
        for optimizer in trainer.optimizers:
            vars(optimizer).pop("found_inf", None)

    def _look(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:  # noqa: ANN401 - the data's own type
        """Read, in one go, what was kept of the last steps, and act on it."""
        steps, self._steps = self._steps, []
        for step, left_out in zip(steps, left_out_steps(steps), strict=True):
            if not left_out:
                self.skipped_in_a_row = 0
                continue
            if self.on_nonfinite == "stop":
                raise RunError(f"{story(trainer, pl_module, step, batch)}; {ways_out(trainer, self.on_nonfinite)}")
            if self.skipped_batches == 0:
                where = anywhere(describe(step)) or describe_gradients(step)
                _say(
                    trainer,
                    f"{where}: this step is skipped; metrics.csv counts all of them in train/skipped_batches",
                )
            self.skipped_batches += len(step.batches)
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row > MOST_SKIPPED_IN_A_ROW:
                many = f"it is step {self.skipped_in_a_row} in a row to be skipped, so nothing is learnt"
                told = story(trainer, pl_module, step, batch)
                raise RunError(f"{told}; {many}; {ways_out(trainer, self.on_nonfinite)}")


class RunningStatistics:
    """The running statistics of a model's batch normalisations before a batch."""

    def __init__(self, model: torch.nn.Module) -> None:
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self.now = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self.before = [buffer.clone() for buffer in self.now]

    def keep(self) -> None:
        """Remember them as they are."""
        for before, now in zip(self.before, self.now, strict=True):
            before.copy_(now)

    def take_back(self, bad: Tensor) -> None:
        """Make them what they were if ``bad`` (0-d bool, on the device) is True."""
        for before, now in zip(self.before, self.now, strict=True):
            now.copy_(torch.where(bad, before, now))


def reading_is_free(device: torch.device) -> bool:
    """Whether the host need not wait for the device to know a value."""
    return device.type == "cpu"


def can_leave_out_on_device(optimizer: Optimizer) -> bool:
    """Whether the optimizer leaves a step out by a flag on the device: torch's fused Adam and AdamW, unsharded."""
    if not isinstance(optimizer, Adam) or not all(group["fused"] for group in optimizer.param_groups):
        return False
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return all(p.device.type in ("cpu", "cuda") and not isinstance(p, DTensor) for p in parameters)


def left_out_steps(steps: list[TrainStep]) -> list[bool]:
    """Which steps did not count: left out on the device, or with a loss that is not finite; the same in every process."""
    if not steps:
        return []
    losses = [torch.stack([batch.loss for batch in step.batches]).sum() * 0 for step in steps]
    bad = torch.maximum(torch.stack(losses).isnan().float(), torch.stack([step.left_out for step in steps]))
    return [value > 0 for value in largest_anywhere(bad).tolist()]


def _scaler(trainer: Trainer) -> object | None:
    """The gradient scaler of 16-mixed."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _say(trainer: Trainer, text: str) -> None:
    if trainer.is_global_zero:
        say(f"warning: {text}")


def _log(trainer: Trainer, values: dict[str, float]) -> None:
    if trainer.is_global_zero and trainer.log_every_n_steps > 0:  # type: ignore[attr-defined]  # Lightning sets it
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step - 1)  # Lightning counts from 0
