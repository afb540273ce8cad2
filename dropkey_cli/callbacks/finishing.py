"""Ends a training run with a phase without DropKey, which closes the gap between training and inference."""

import math

from lightning import Callback, LightningModule, Trainer

from dropkey_cli.callbacks.run_log import say
from dropkey_cli.errors import InputError


class Finishing(Callback):
    """Switches DropKey off for the last part of a training run: the network then trains as it predicts.

    It is one of the two remedies that the paper compares, and the better one there. When the phase begins follows from the
    step and the run's length alone: a resumed run finds it again, and one that goes on for longer moves it to its new end.

    Args:
        length: A share of the run's steps, in (0, 1), or a whole number of epochs, 1 or more.
        lr: Constant learning rate of the phase, of the last layer where the layers have different ones, whose proportions
            stay; None lets the schedule go on.

    Raises:
        InputError: If the length is neither.
    """

    def __init__(self, length: float, lr: float | None = None) -> None:
        if not (0 < length < 1 or (length >= 1 and length % 1 == 0)):
            raise InputError(
                f"finish_without_dropkey is {length:g}; expected a share of the training steps between 0 and 1, such as 0.1, "
                "or a whole number of epochs from 1; give --finish_without_dropkey 0.1, or leave it out"
            )
        self.length = length
        self.lr = lr
        self._trainer: Trainer | None = None
        self._first_step = 0
        self._finishing = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Know the trainer that the plan is to speak of."""
        self._trainer = trainer

    def plan_lines(self) -> list[tuple[str, str]]:
        """What a user should know before training, as (name, text)."""
        assert self._trainer is not None, "setup comes first"
        length = f"{100 * self.length:g}% of the run" if self.length < 1 else spelled_epochs(self.length).removeprefix("1 ")
        first, total = first_step(self._trainer, self.length), self._trainer.estimated_stepping_batches
        rate = "by the schedule" if self.lr is None else f"{self.lr:g}"
        best = "" if self._trainer.limit_val_batches == 0 else "; best.ckpt may be from before it, last.ckpt is from its end"
        return [("finish", f"the last {length} (from step {first} of {total}) without DropKey, learning rate {rate}{best}")]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out when the phase begins."""
        self._first_step = first_step(trainer, self.length)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Switch DropKey off when the phase begins."""
        self._hold_rate(trainer)
        if trainer.global_step >= self._first_step and not self._finishing:
            self._finishing = True
            _switch(pl_module, on=False)
            if trainer.is_global_zero:
                rate = "" if self.lr is None else f", at learning rate {self.lr:g}"
                say(f"step {trainer.global_step}: from here on without DropKey{rate} (--finish_without_dropkey)")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Let what shows the learning rate show that of the phase: the schedule has set its own."""
        self._hold_rate(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As after a step, for a schedule that goes by validation."""
        if not trainer.sanity_checking:
            self._hold_rate(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where the run ended before the phase."""
        if trainer.is_global_zero and trainer.global_step <= self._first_step:
            begins = f"the part without DropKey, which begins at step {self._first_step} (--finish_without_dropkey)"
            say(f"ended at step {trainer.global_step}, before {begins}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave DropKey as it was, for Monte Carlo prediction."""
        self._restore(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As at the end."""
        self._restore(pl_module)

    def _hold_rate(self, trainer: Trainer) -> None:
        if self.lr is not None and trainer.global_step >= self._first_step:
            set_learning_rate(trainer, self.lr)

    def _restore(self, pl_module: LightningModule) -> None:
        if self._finishing:
            self._finishing = False
            _switch(pl_module, on=True)


def first_step(trainer: Trainer, length: float) -> int:
    """The number of optimizer steps before the last part of a run.

    Args:
        trainer: That of the run.
        length: A share of its steps, below 1, or a number of epochs.

    Raises:
        InputError: If the run is not longer than that.
    """
    total = trainer.estimated_stepping_batches
    if length < 1:
        return int(total) - max(1, round(length * total))
    trainer.fit_loop.setup_data()  # as Lightning does for its estimate of the steps; it does so once
    batches = trainer.num_training_batches
    if math.isinf(batches):
        raise InputError(
            f"finish_without_dropkey is {spelled_epochs(length)}, but the data do not say how long an epoch is: give a "
            "share of the steps, such as --finish_without_dropkey 0.1"
        )
    steps = int(length) * math.ceil(batches / trainer.accumulate_grad_batches)
    if steps >= total and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it
        raise InputError(
            f"finish_without_dropkey is {spelled_epochs(length)}, {steps} steps, of a run of {total}: give fewer, or a "
            "share such as 0.1, or train without DropKey altogether (--model.dropkey null)"
        )
    return max(0, int(total) - steps)


def spelled_epochs(number: float) -> str:
    """A whole number of epochs in words."""
    return f"{number:g} epoch{'s'[: number != 1]}"


def set_learning_rate(trainer: Trainer, lr: float) -> None:
    """Give the optimizers a learning rate, in each group of weights times what timm's layer-wise decay makes of it."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)


def _switch(pl_module: LightningModule, *, on: bool) -> None:
    pl_module.dropkey_plan.enabled = on  # type: ignore[union-attr]  # no Finishing for a task without one
