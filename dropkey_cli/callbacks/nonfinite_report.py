"""What to tell of a training step that was not finite: where it began, in which layer, and what to go on from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.distributed.tensor import DTensor

from dropkey_cli.callbacks.checkpoints import LastCheckpoint
from dropkey_cli.callbacks.gathering import anywhere
from dropkey_cli.callbacks.nonfinite_layers import find_nonfinite
from dropkey_cli.files import from_here, resume_command

_NUM_PATHS = 3


@dataclass
class TrainBatch:
    """One batch that was learnt from, and its loss (0-d, on the device)."""

    epoch: int
    index: int
    paths: list[str]
    loss: Tensor


@dataclass
class TrainStep:
    """One optimizer step: its number from 1, its batches and, unless a gradient scaler decided, whether it was left out."""

    number: int
    batches: list[TrainBatch]
    left_out: Tensor  # 0-d float on the device, 0 or 1; the same in every process


def describe(step: TrainStep) -> str:
    """What is not finite in a step, for this process, as a clause; empty if it was another's loss."""
    losses = [float(batch.loss) for batch in step.batches]
    for batch, loss in zip(step.batches, losses, strict=True):
        if not math.isfinite(loss):
            return f"the loss is {loss} at step {step.number} ({_name(batch)})"
    return ""


def _name(batch: TrainBatch) -> str:
    more = f" and {len(batch.paths) - _NUM_PATHS} more" if len(batch.paths) > _NUM_PATHS else ""
    images = f": {', '.join(map(str, batch.paths[:_NUM_PATHS]))}{more}" if batch.paths else ""
    return f"epoch {batch.epoch}, batch {batch.index}{images}"


def describe_gradients(step: TrainStep) -> str:
    """That the gradients of a step are not finite, as a clause."""
    batch = step.batches[-1]
    return f"the gradients are not finite at step {step.number} ({_name(batch)}) though the loss is {float(batch.loss):.4g}"


def story(trainer: Trainer, pl_module: LightningModule, step: TrainStep, batch: Any) -> str:  # noqa: ANN401
    """Where it began and the layer: by the first process whose loss was not finite, or by this one if only gradients were."""
    images = batch.get("image") if isinstance(batch, Mapping) else None
    network = getattr(pl_module, "network", None) or pl_module
    try:
        with trainer.precision_plugin.forward_context():
            hint = find_nonfinite(network, images if isinstance(images, Tensor) and _runs_alone(network) else None)
    except Exception as error:  # the run ends with the story, whatever the network says to being called once more
        hint = f"the network could not be looked at ({error})"
    own = describe(step)
    return anywhere(f"{own}; {hint}" if own else "") or f"{describe_gradients(step)}; {hint}"


def _runs_alone(network: torch.nn.Module) -> bool:
    """Whether the network's forward needs no other process."""
    sharded = any(isinstance(parameter, DTensor) for parameter in network.parameters())
    return not sharded and not any(isinstance(module, torch.nn.SyncBatchNorm) for module in network.modules())


def ways_out(trainer: Trainer, on_nonfinite: str) -> str:
    """What there is to go on from, and what to change."""
    rate = max(group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
    change = f"a lower --model.lr (it is {rate:.3g} now) or --trainer.gradient_clip_val 1"
    change += ", or leave such steps out with --on_nonfinite_loss skip" if on_nonfinite == "stop" else ""
    for saver in trainer.checkpoint_callbacks:
        if isinstance(saver, LastCheckpoint) and saver.path.is_file():
            todo = resume_command(from_here(saver.folder))
            return f"the last good checkpoint is {from_here(saver.path)}; continue with {todo} and {change}"
    path = _other_checkpoint(trainer)
    if path is None:
        return f"no checkpoint was written before it; start again with {change}"
    return f"the last good checkpoint is {path}; start again with --ckpt_path {path} and {change}"


def _other_checkpoint(trainer: Trainer) -> Path | None:
    """The newest checkpoint of Lightning's own callbacks, or the one that the run began with."""
    names: list[Any] = [trainer.ckpt_path]
    for saver in trainer.checkpoint_callbacks:
        names += [saver.last_model_path, saver.best_model_path] if isinstance(saver, ModelCheckpoint) else []
    paths = [Path(name) for name in names if name and Path(name).exists()]
    newest = max(paths, key=lambda path: path.stat().st_mtime, default=None)
    return None if newest is None else from_here(newest)
