"""Logs the learning rate."""

from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer


class LearningRate(Callback):
    """Logs ``train/lr`` at the trainer's interval: the largest of the parameter groups', the one that was asked for."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Log what this step is made with."""
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it; 0 logs nothing
        if interval > 0 and (trainer.global_step + 1) % interval == 0 and trainer.is_global_zero:
            rate = max(float(group["lr"]) for group in optimizer.param_groups)
            for logger in trainer.loggers:
                logger.log_metrics({"train/lr": rate}, step=trainer.global_step)
