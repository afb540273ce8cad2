"""Says before training what will happen, and after it what to type next."""

import shlex
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from dropkey_cli.files import from_here


class RunPlan(Callback):
    """Prints the plan of a training run: what data, task and callbacks say in ``plan_lines()``, devices, folder.

    Args:
        folder: The run's folder; None where nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._trained = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print what is known before the network is built: data, and weights that may be fetched."""
        if stage == "fit" and trainer.is_global_zero:
            data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
            _print(getattr(data, "plan_lines", list)())
            weights = getattr(pl_module, "weights_line", None)
            _print([weights()] if callable(weights) else [])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the rest of the plan."""
        if trainer.is_global_zero:
            speakers = [pl_module, *getattr(trainer, "callbacks", [])]
            told = [line for speaker in speakers for line in getattr(speaker, "plan_lines", list)()]
            _print([*told, *run_lines(trainer), ("run folder", str(self.folder or "none"))])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there is something to train."""
        self._trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the best checkpoint and the next commands."""
        if not trainer.is_global_zero:
            return
        if not self._trained:  # a resumed run
            print(f"nothing was left to train after step {trainer.global_step}: give a larger --trainer.max_epochs to go on")
        best = trainer.checkpoint_callback
        if not isinstance(best, ModelCheckpoint) or best.best_model_score is None:
            return
        path = from_here(best.best_model_path)
        print(f"best {best.monitor} {float(best.best_model_score):.4f}: {path}")
        print(f"next: dropkey predict --ckpt_path {shlex.quote(str(path))} --data.root IMAGE_OR_FOLDER")


def run_lines(trainer: Trainer) -> list[tuple[str, str]]:
    """How long and on what the run computes, as (name, text)."""
    device = trainer.strategy.root_device.type
    strategy = f" ({type(trainer.strategy).__name__})" if trainer.world_size > 1 else ""
    epochs = f"{trainer.max_epochs} epoch{'s'[: trainer.max_epochs != 1]}, " if trainer.max_epochs != -1 else ""
    return [
        ("training", f"{epochs}{trainer.estimated_stepping_batches} optimizer steps"),
        ("device", f"{trainer.world_size} × {device}{strategy}, precision {trainer.precision}"),
    ]


def _print(lines: list[tuple[str, str]]) -> None:
    for name, text in lines:
        print(f"{name:<12}{text}", flush=True)
