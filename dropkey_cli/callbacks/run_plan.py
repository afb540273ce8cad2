"""Says before training what will happen, and after it what to type next."""

import shlex
import shutil
import sys
import textwrap
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from dropkey_cli.callbacks.run_log import note, say
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
            say(f"nothing was left to train after step {trainer.global_step}: give a larger --trainer.max_epochs to go on")
        best, path = trainer.checkpoint_callback, Path()
        if isinstance(best, ModelCheckpoint) and best.best_model_score is not None:
            path = from_here(best.best_model_path)
            say(f"best {best.monitor} {float(best.best_model_score):.4f}: {path}")
        elif self.folder is not None:  # without validation none is best
            path = self.folder / "checkpoints" / "last.ckpt"
            if isinstance(best, ModelCheckpoint) and best.monitor is not None and self._trained:
                earlier = "let validation come earlier (--trainer.val_check_interval, --trainer.check_val_every_n_epoch)"
                say(f"no {best.monitor} up to step {trainer.global_step}, so there is no best.ckpt: {earlier}")
        if path.is_file():
            say(f"next: dropkey predict --ckpt_path {shlex.quote(str(path))} --data.root IMAGE_OR_FOLDER")


def run_lines(trainer: Trainer) -> list[tuple[str, str]]:
    """How long and on what the run computes, as (name, text)."""
    strategy = f" ({type(trainer.strategy).__name__})" if trainer.world_size > 1 else ""
    steps = trainer.estimated_stepping_batches
    by_epochs = trainer.max_epochs != -1 and trainer.max_steps != steps
    epochs = f"{trainer.max_epochs} epoch{'s'[: trainer.max_epochs != 1]}, " if by_epochs else ""
    return [
        ("training", f"{epochs}{steps} optimizer step{'s'[: steps != 1]}{_images_per_step(trainer)}"),
        ("device", f"{trainer.world_size} × {_device_name(trainer)}{strategy}, precision {trainer.precision}"),
    ]


def _device_name(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    return f"cuda, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def _images_per_step(trainer: Trainer) -> str:
    """How many images make an optimizer step, and of what that is the product; "" where the data have no batch size."""
    batch_size = getattr(trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]  # Lightning sets it
    if batch_size is None:
        return ""
    factors = {"devices": trainer.world_size, "batches accumulated": trainer.accumulate_grad_batches}
    shown = "".join(f" × {number} {name}" for name, number in factors.items() if number > 1)
    images = batch_size * trainer.world_size * trainer.accumulate_grad_batches
    return f" of {images} images{f' ({batch_size}{shown})' if shown else ''}"


def _print(lines: list[tuple[str, str]]) -> None:
    """Print the plan, in a terminal with its texts in one column."""
    width = shutil.get_terminal_size().columns - 12 if sys.stdout.isatty() else 10_000
    for name, line in lines:
        text = line.removeprefix(f"{name} in ")  # DropKey in 12 layers
        wrapped = textwrap.wrap(text, max(20, width), break_long_words=False, break_on_hyphens=False)
        print(f"{name:<12}" + f"\n{'':<12}".join(wrapped), flush=True)
        note(f"{name:<12}{text}")
