"""Keeps an exponential moving average of the weights, which is what gets validated and saved."""

import itertools
import warnings
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn

from dropkey_cli.errors import InputError


class WeightAverage(WeightAveraging):
    """Lightning's WeightAveraging, as an exponential moving average that also suits short runs.

    Checkpoints hold the average as ``state_dict``, and beside it the weights that a resumed run goes on from. Unlike with
    Lightning's EMAWeightAveraging, the average lies on the run's device from the start, no step waits for that device, counters
    such as ``num_batches_tracked`` are copied, and the checkpoint of a finished run still has the weights to go on from.

    Args:
        decay: Share of the average that each step keeps, in (0, 1); see `warmed_up`.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    def plan_lines(self) -> list[tuple[str, str]]:
        """What a user should know before training, as (name, text)."""
        return [("EMA", f"the weights' moving average (decay {self.decay:g}, warmed up) is what is validated and saved")]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the model, when it is built, and before it is wrapped.

        Raises:
            InputError: If the weights are not of 32 bits: in 16 an average stands still.
        """
        if trainer.precision != "32-true" and not trainer.precision.endswith("-mixed"):
            raise InputError(
                f"--ema {self.decay:g} averages weights of 32 bits, --trainer.precision {trainer.precision} has none; give "
                "32-true or bf16-mixed, or leave --ema out"
            )
        self._device = trainer.strategy.root_device  # where the model is going to be
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*overrides the configure_model.*")  # sharding is refused
            super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()  # read at every step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ANN401 - as Lightning's
        """Move the average after every optimizer step."""
        assert self._average_model is not None, "setup comes first"
        if trainer.global_step > self._latest_update_step:
            move_average(self._average_model.module, pl_module, warmed_up(self.decay, int(self._average_model.n_averaged)))
            self._average_model.n_averaged += 1
            self._latest_update_step = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing yet: the last checkpoint is still to be written."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the model the average."""
        self._copy_average_to_current(pl_module)


def warmed_up(decay: float, updates: int) -> float:
    """The decay after a number of updates: at most (1 + n) / (10 + n), and 0 at first, which takes the weights as they are."""
    return min(decay, (1 + updates) / (10 + updates)) if updates else 0.0


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move an average towards a model, in place.

    Args:
        average: A copy of the model.
        model: Its weights are weighted by 1 - ``decay``; what are no floating-point numbers is copied.
        decay: Weight of the average as it was.
    """
    tensors = [itertools.chain(module.parameters(), module.buffers()) for module in (average, model)]
    pairs = [(mine.detach(), new.detach()) for mine, new in zip(*tensors, strict=True)]
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([mine for mine, _ in floats], [new for _, new in floats], 1 - decay)
    for mine, new in pairs:
        if not mine.is_floating_point():
            mine.copy_(new)
