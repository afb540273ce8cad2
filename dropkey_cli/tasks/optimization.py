"""The optimizer, by timm or torch, and what a resumed run takes of a checkpoint's."""

import inspect
from typing import Any

import torch
from lightning import Trainer
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_class,
    list_optimizers,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Adam, Optimizer

from dropkey_cli.errors import InputError, did_you_mean
from dropkey_cli.tasks.schedules import PlateauSchedule

TORCH_ONLY: dict[str, type[Optimizer]] = {"asgd": torch.optim.ASGD, "rprop": torch.optim.Rprop}
"""Those of torch that timm lacks and that train a network: LBFGS takes one group of weights, SparseAdam sparse gradients."""
SECOND_ORDER = {"adahessian"}
"""Those that need gradients of gradients, which Lightning does not make."""
COUNTED = ("params", "lookahead_step")
"""What a group of weights holds that is no option."""
OWN_OPTIONS = {"params": "", "lr": "lr", "weight_decay": "weight_decay"}


def known_optimizers() -> list[str]:
    """The names that ``optimizer`` takes; some need a package of their own."""
    return sorted({*map(str, list_optimizers()), *TORCH_ONLY} - SECOND_ORDER)


def check_optimizer(name: str) -> None:
    """Refuse an unknown name.

    Raises:
        InputError: With the nearest known ones.
    """
    known = known_optimizers()
    if name.lower().rpartition("_")[2] not in known or name.lower().rpartition("_")[0] not in ("", "lookahead"):
        raise InputError(
            f"optimizer is {name!r}; expected one of timm's or torch's such as adamw, lamb or sgd; give --model.optimizer"
            f"{did_you_mean(name.lower(), known)}"
        )


def create_optimizer(
    network: nn.Module,
    name: str = "adamw",
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float,
    fused: bool = False,
    arguments: dict[str, Any] | None = None,
) -> Optimizer:
    """An optimizer with layer-wise learning rates; biases, norms and what the network names have no weight decay.

    Args:
        network: Any of timm's; weights that need no gradient are left out.
        name: timm's or torch's name of the optimizer, in any case.
        lr: Learning rate of the last layer.
        weight_decay: Of the other weights.
        layer_decay: Factor on the learning rate from each layer to the one before it, in (0, 1].
        fused: Run Adam and AdamW as one kernel.
        arguments: Further arguments of the optimizer, such as ``{"betas": [0.9, 0.95]}``.

    Raises:
        InputError: If it cannot be made so.
    """
    name, given = name.lower(), dict(arguments or {})
    decay = layer_decay if layer_decay < 1 else None
    try:
        cls = TORCH_ONLY.get(name) or get_optimizer_class(name.rpartition("_")[2], bind_defaults=False)
        check_arguments(name, cls, given)  # type: ignore[arg-type]  # not bound to defaults, it is a class
        if cls in (Adam, torch.optim.AdamW):
            given.setdefault("fused", fused)
        if name not in TORCH_ONLY:
            return create_optimizer_v2(network, opt=name, lr=lr, weight_decay=weight_decay, layer_decay=decay, **given)
        kept: set[str] = getattr(network, "no_weight_decay", set)()
        if decay is None:
            groups = param_groups_weight_decay(network, weight_decay, no_weight_decay_list=kept)
        else:
            groups = param_groups_layer_decay(network, weight_decay, no_weight_decay_list=kept, layer_decay=decay)
        return TORCH_ONLY[name](groups, lr=lr, **given)  # type: ignore[call-arg]  # each of them takes it
    except InputError:
        raise
    except Exception as error:  # each has its own kinds; AssertionError where a package or a GPU is missing
        raise InputError(
            f"the optimizer {name!r} cannot be made ({type(error).__name__}: {error}): correct --model.optimizer_args, or give "
            "another --model.optimizer"
        ) from error


def fused_works(trainer: Trainer) -> bool:
    """Whether Adam can run as one kernel: where torch has it; Lightning clips no gradients before it in mixed precision.

    SGD is not: where a step is left out on the device, its kernel leaves the first momentum uninitialised (torch 2.15).
    """
    clips = bool(trainer.gradient_clip_val) and trainer.precision.endswith("-mixed")
    on_device = trainer.strategy.root_device.type in ("cpu", "cuda", "mps")
    return on_device and trainer.precision != "16-mixed" and not clips


def check_arguments(name: str, cls: type[Optimizer], given: dict[str, Any]) -> None:
    """Refuse arguments that the optimizer does not take; timm would leave some of them out without a word."""
    known = [argument for argument in inspect.signature(cls).parameters if argument not in OWN_OPTIONS]
    for argument in given:
        if option := OWN_OPTIONS.get(argument):
            raise InputError(f"optimizer_args has {argument}: give --model.{option} instead")
        if argument not in known:
            raise InputError(
                f"optimizer_args has {argument!r}, which {name} does not take; expected one of {', '.join(known)}"
                f"{did_you_mean(argument, known)}"
            )


class AskedOptions:
    """What optimizer and schedule were asked to be, before a checkpoint's state is loaded over it."""

    def __init__(self, optimizer: Optimizer, scheduler: Scheduler) -> None:
        self.groups = [{key: value for key, value in group.items() if key not in COUNTED} for group in optimizer.param_groups]
        self.schedule = scheduler.state_dict()

    def restore(self, scheduler: Any, step: int) -> None:  # noqa: ANN401 - the scheduler that they were taken of
        """Go on by them at a step; what optimizer and schedule have learnt stays the checkpoint's."""
        for group, asked in zip(scheduler.optimizer.param_groups, self.groups, strict=True):
            group.update(asked)
        if not isinstance(scheduler, PlateauSchedule):  # whose state is nothing but what it has learnt
            scheduler.load_state_dict(self.schedule)
        scheduler.step_update(step)


def check_same_groups(saved: list[dict[str, Any]], optimizer: Optimizer, *, layer_decay: float) -> None:
    """Refuse the state of another optimizer, or of one of other weights, in a sentence.

    Args:
        saved: The groups of a checkpoint's optimizer.
        optimizer: That of this run.
        layer_decay: This run's, for the message.

    Raises:
        InputError: If they differ.
    """
    own = optimizer.param_groups
    if len(saved) != len(own):
        raise InputError(
            f"the checkpoint's optimizer has {len(saved)} groups of weights, layer_decay {layer_decay:g} gives "
            f"{len(own)}: leave out --model.layer_decay, --model.pretrained and --model.freeze to take the checkpoint's"
        )
    sizes = [sum(len(group["params"]) for group in groups) for groups in (saved, own)]
    if [len(group["params"]) for group in saved] != [len(group["params"]) for group in own]:
        raise InputError(
            f"the checkpoint's optimizer trains {sizes[0]} tensors, this run's {sizes[1]}: leave out --model.freeze and "
            "--model.layer_decay to take the checkpoint's"
        )
    if own[0].keys() - saved[0].keys():  # some, such as LAMB, add a step of their own
        raise InputError(
            "the checkpoint is that of another optimizer, whose state this one cannot go on from: leave out --model.optimizer "
            "to take the checkpoint's"
        )
