"""A model of one weight and its training, for callbacks whose arithmetic can be done by hand."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader


class Line(LightningModule):
    """Learns the slope of a line by gradient descent; val/slope is what ``metrics`` says, or the slope.

    Args:
        metrics: Value of val/slope at each validation.
    """

    def __init__(self, metrics: list[float] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.0))
        self.metrics = list(metrics or [])

    def configure_model(self) -> None:
        """As our tasks have one."""

    def training_step(self, batch: Tensor, _batch_index: int) -> Tensor:
        return (self.weight * batch - 2 * batch).square().mean()

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        if batch_index == 0:
            value = self.weight.detach() if not self.metrics or self.trainer.sanity_checking else self.metrics.pop(0)
            self.log("val/slope", value)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(model: LightningModule, *callbacks: Callback, ckpt_path: Any = None, **options: Any) -> Trainer:  # noqa: ANN401
    """Train on four batches an epoch.

    Args:
        model: A `Line`.
        callbacks: In their order.
        ckpt_path: To go on from.
        options: The trainer's.
    """
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", devices=1, callbacks=list(callbacks), **{**quiet, "num_sanity_val_steps": 0, **options}
    )
    data = torch.linspace(-1, 1, 8)
    loader: DataLoader[Tensor] = DataLoader(data, batch_size=2)  # type: ignore[arg-type]  # a tensor will do
    trainer.fit(model, loader, loader, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer
