"""Ends a run when validation has not improved for a while."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason


class Patience(EarlyStopping):
    """Lightning's EarlyStopping, which says why it stopped and goes on by the patience that is asked for now.

    Args:
        monitor: The metric whose highest value is best.
        patience: Validations in a row without a new best after which the run ends.
        resumed: Whether what a checkpoint has seen was seen in this run; another run's best does not count here.
    """

    def __init__(self, monitor: str, patience: int, *, resumed: bool = False) -> None:
        super().__init__(monitor, patience=patience, mode="max", check_on_train_epoch_end=False)
        self.resumed = resumed

    def plan_lines(self) -> list[tuple[str, str]]:
        """What a user should know before training, as (name, text)."""
        return [("patience", f"ends after {self._validations()} without a higher {self.monitor}")]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what was seen of a checkpoint, not its patience."""
        if not self.resumed:
            return
        asked = self.patience
        super().load_state_dict(state_dict)
        self.patience, self.stopping_reason = asked, EarlyStoppingReason.NOT_STOPPED

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that had ended so has ended."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why the run ends before its time."""
        early = trainer.global_step < trainer.estimated_stepping_batches
        if not (early and trainer.is_global_zero):
            return
        if self.stopping_reason == EarlyStoppingReason.NON_FINITE_METRIC:
            print(f"stopped early: {self.monitor} is not finite", flush=True)
        elif self.wait_count >= self.patience:
            best = f"{float(self.best_score):.4f}"
            print(
                f"stopped early: {self.monitor} was not above {best} in the last {self._validations()} (--patience)", flush=True
            )

    def _validations(self) -> str:
        return f"{self.patience} validation{'s'[: self.patience != 1]}"
