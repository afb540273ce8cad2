"""Says before training what will happen, and after it what to type next."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from dropkey_cli.models.factory import describe_weights
from dropkey_cli.patching.table import ratio_summary


class RunPlan(Callback):
    """Prints the plan of a training run: data, model, DropKey, optimization, devices, folder.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the plan."""
        if trainer.is_global_zero:
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
    names = data.class_names
    sizes = " · ".join(f"{split} {len(dataset)}" for split, dataset in data.splits.items())
    preprocessing = data.preprocessing
    size = preprocessing.image_size
    weights = describe_weights(task.model_name) if task.pretrained else "from scratch"
    parameters = sum(parameter.numel() for parameter in task.network.parameters())
    plan = task.dropkey_plan
    steps = trainer.estimated_stepping_batches
    batch = data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
    lines = [
        ("data", f"{len(names)} classes ({_some(names)}); images: {sizes}"),
        ("images", f"{size} × {size}, {preprocessing.interpolation}, mean {preprocessing.mean}, std {preprocessing.std}"),
        ("model", f"{task.model_name}, {parameters / 1e6:.2f} M parameters, {weights}"),
        ("DropKey", "none" if plan is None else ratio_summary(plan)),
        ("training", f"{trainer.max_epochs} epochs, {steps} steps of {batch} images, AdamW, lr {task.learning_rate:.3g}"),
        ("device", f"{trainer.world_size} × {trainer.strategy.root_device.type}, precision {trainer.precision}"),
    ]
    if data.split_note:
        lines.insert(1, ("split", data.split_note))
    if resized := resampling_note(task, size):
        lines.insert(3, ("", resized))
    return lines


def resampling_note(task: LightningModule, size: int) -> str | None:
    """Says that pretrained weights meet another image size; None if they don't."""
    from dropkey_cli.models.factory import image_config

    native = image_config(task.model_name).image_size
    if not task.pretrained or native == size:
        return None
    return f"weights of {native} × {native} images: position embeddings are resampled to {size} × {size}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
