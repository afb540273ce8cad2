"""The optimizer and the learning rates of fine-tuning, by timm."""

from typing import Any

from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn
from torch.optim import Optimizer


def create_adamw(network: nn.Module, *, lr: float, weight_decay: float, layer_decay: float, fused: bool) -> Optimizer:
    """AdamW with layer-wise learning rates; biases and norms have no weight decay.

    Args:
        network: Any of timm's.
        lr: Learning rate of the last layer.
        weight_decay: Of the other weights.
        layer_decay: Factor on the learning rate from each layer to the one before it, in (0, 1].
        fused: Run it as one kernel.
    """
    decay = layer_decay if layer_decay < 1 else None
    return create_optimizer_v2(network, opt="adamw", lr=lr, weight_decay=weight_decay, layer_decay=decay, fused=fused)


def create_cosine(optimizer: Optimizer, *, lr: float, steps: int, warmup_share: float) -> CosineLRScheduler:
    """A linear warm-up from a hundredth of ``lr``, then a cosine to 0, step by step.

    Args:
        optimizer: Whose learning rates follow it.
        lr: Learning rate after warm-up.
        steps: All optimizer steps of the run.
        warmup_share: Share of them in which the rate rises, in [0, 1).
    """
    warmup_steps = round(steps * warmup_share)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, steps - warmup_steps),
        warmup_t=warmup_steps,
        warmup_lr_init=lr / 100,
        warmup_prefix=True,
        t_in_epochs=False,
    )


class AskedOptions:
    """What optimizer and schedule were asked to be, before a checkpoint's state is loaded over it."""

    def __init__(self, optimizer: Optimizer, scheduler: CosineLRScheduler) -> None:
        self.groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        self.schedule = scheduler.state_dict()

    def restore(self, scheduler: Any, step: int) -> None:  # noqa: ANN401 - the scheduler that they were taken of
        """Go on by them at a step; what the optimizer has learnt (its moments) stays the checkpoint's."""
        for group, asked in zip(scheduler.optimizer.param_groups, self.groups, strict=True):
            group.update(asked)
        scheduler.load_state_dict(self.schedule)
        scheduler.step_update(step)
