"""Says before training what will happen, and after it what to type next."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class RunPlan(Callback):
    """Prints the plan of a training run: what data and task say of themselves in ``plan_lines()``, devices, folder.

    Args:
        folder: The run's folder; None where nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the plan."""
        if not trainer.is_global_zero:
            return
        for name, text in plan_lines(trainer, pl_module):
            print(f"{name:<12}{text}")
        print(f"{'run folder':<12}{self.folder or 'none'}", flush=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the best checkpoint and the next commands."""
        best = trainer.checkpoint_callback
        if not trainer.is_global_zero or not isinstance(best, ModelCheckpoint) or not best.best_model_path:
            return
        path = Path(best.best_model_path)
        path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        print(f"best {best.monitor} {float(best.best_model_score or 0):.4f}: {path}")
        print(f"next: dropkey predict --ckpt_path {path} --data.root IMAGE_OR_FOLDER")


def plan_lines(trainer: Trainer, task: LightningModule) -> list[tuple[str, str]]:
    """The plan's lines as (name, text)."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
    lines = [line for part in (data, task) for line in getattr(part, "plan_lines", list)()]
    device = trainer.strategy.root_device.type
    return [
        *lines,
        ("training", f"{trainer.max_epochs} epochs, {trainer.estimated_stepping_batches} optimizer steps"),
        ("device", f"{trainer.world_size} × {device}, precision {trainer.precision}"),
    ]
