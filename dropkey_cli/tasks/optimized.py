"""What the training of every task shares: optimizer, learning-rate schedule, and how a resumed run goes on by them."""

import math
from typing import Any

from lightning import LightningModule
from timm.scheduler.scheduler import Scheduler
from torch import nn

from dropkey_cli.errors import InputError
from dropkey_cli.tasks.optimization import (
    AskedOptions,
    check_optimizer,
    check_same_groups,
    create_optimizer,
    fused_works,
)
from dropkey_cli.tasks.options import check_option, check_share
from dropkey_cli.tasks.plan import optimizer_line, schedule_line
from dropkey_cli.tasks.schedules import PlateauSchedule, create_schedule, schedule_arguments

IMAGES_PER_BASE_STEP = 256
BASE_LR = 5e-4


class OptimizedModule(LightningModule):
    """A module whose ``network`` is trained as its attributes say; a task's constructor sets them.

    Attributes:
        monitor: The metric whose highest value is best.
        network: What is trained; None until it is built.
        optimizer_name: timm's or torch's name of the optimizer.
        optimizer_args: Its further arguments.
        lr: Learning rate after warm-up; None for the default.
        layer_decay: Factor on the learning rate from each layer to the one before it.
        weight_decay: The optimizer's.
        schedule: Name of the schedule.
        schedule_args: Its arguments, defaults included.
        warmup_share: Share of all steps in which the learning rate rises.
    """

    monitor: str
    network: nn.Module | None
    optimizer_name: str
    optimizer_args: dict[str, Any]
    lr: float | None
    layer_decay: float
    weight_decay: float
    schedule: str
    schedule_args: dict[str, Any]
    warmup_share: float
    _saved_groups: list[dict[str, Any]] | None = None
    _asked: AskedOptions | None = None

    def set_optimization(
        self,
        *,
        optimizer: str,
        optimizer_args: dict[str, Any] | None,
        lr: float | None,
        layer_decay: float,
        weight_decay: float,
        schedule: str,
        schedule_args: dict[str, Any] | None,
        warmup_share: float,
    ) -> None:
        """Check and keep what a task's constructor was given; see the attributes.

        Raises:
            InputError: If a value cannot be.
        """
        check_option("lr", lr, lr is None or lr >= 0, "0 or more")
        check_option("layer_decay", layer_decay, 0 < layer_decay <= 1, "a factor above 0, at most 1")
        check_option("weight_decay", weight_decay, weight_decay >= 0, "0 or more")
        check_share("warmup_share", warmup_share)
        check_optimizer(optimizer)
        self.optimizer_name = optimizer
        self.optimizer_args = optimizer_args or {}
        self.lr = lr
        self.layer_decay = layer_decay
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.schedule_args = schedule_arguments(schedule, schedule_args)
        self.warmup_share = warmup_share

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning takes many forms
        """The optimizer with layer-wise learning rates, and the schedule per step."""
        assert self.network is not None, "configure_model comes first"
        steps, lr = self.num_steps, self.learning_rate
        if self.schedule == "plateau" and self.trainer.limit_val_batches == 0:
            raise InputError("schedule plateau goes by validation, which this run has none of: give another --model.schedule")
        optimizer = create_optimizer(
            self.network,
            self.optimizer_name,
            lr=lr,
            weight_decay=self.weight_decay,
            layer_decay=self.layer_decay,
            fused=fused_works(self.trainer),
            arguments=self.optimizer_args,
        )
        if self._saved_groups is not None:
            check_same_groups(self._saved_groups, optimizer, layer_decay=self.layer_decay)
        scheduler = create_schedule(
            optimizer, self.schedule, lr=lr, steps=steps, warmup_share=self.warmup_share, arguments=self.schedule_args
        )
        self._asked = AskedOptions(optimizer, scheduler)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def num_steps(self) -> int:
        """All optimizer steps of the run."""
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < math.inf:
            raise InputError(
                f"the trainer options give {steps} optimizer steps: give --trainer.max_epochs or --trainer.max_steps, 1 or more"
            )
        return int(steps)

    @property
    def data(self) -> Any:  # noqa: ANN401 - any LightningDataModule with class_names, preprocessing and batch_size
        """The trainer's data."""
        return self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it

    @property
    def learning_rate(self) -> float:
        """The learning rate after warm-up, for the number of images in one optimizer step."""
        if self.lr is not None:
            return self.lr
        images = self.data.batch_size * self.trainer.accumulate_grad_batches * self.trainer.world_size
        return BASE_LR * float(images) / IMAGES_PER_BASE_STEP

    def optimization_lines(self) -> list[tuple[str, str]]:
        """What the plan says of optimizer and schedule, as (name, text)."""
        rates = {"lr": self.learning_rate, "layer_decay": self.layer_decay, "weight_decay": self.weight_decay}
        return [
            optimizer_line(self.optimizer_name, self.optimizer_args, **rates),
            schedule_line(self.schedule, self.schedule_args, warmup_share=self.warmup_share, monitor=self.monitor),
        ]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:  # noqa: ANN401 - timm's schedulers are not torch's
        """Timm's schedulers count steps themselves; others, such as stochastic weight averaging's, are Lightning's to call."""
        if isinstance(scheduler, Scheduler):
            scheduler.step_update(self.global_step)
        else:
            super().lr_scheduler_step(scheduler, metric)

    def on_validation_epoch_end(self) -> None:
        """Let a schedule that follows the metric know it, before any checkpoint is written."""
        schedule = self.lr_schedulers()
        if isinstance(schedule, PlateauSchedule) and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            schedule.observe(float(self.trainer.callback_metrics[self.monitor]), self.global_step)

    def on_train_start(self) -> None:
        """Let a resumed run go on by the rate, schedule and decay that are asked for now, not by the checkpoint's."""
        if self.trainer.ckpt_path is not None and self._asked is not None:
            self._asked.restore(self.lr_schedulers(), self.global_step)
