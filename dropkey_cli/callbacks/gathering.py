"""What all processes of a run have found, brought together."""

from typing import Any, TypeVar

import torch.distributed as dist
from lightning import Trainer
from torch import Tensor

Found = TypeVar("Found")


def gather(own: Found, trainer: Trainer) -> list[Found]:
    """What each process has, by its number, in the first process; nothing in the others."""
    if trainer.world_size == 1:
        return [own]
    gathered: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
    dist.gather_object(own, gathered)
    return gathered or []


def gather_everywhere(own: Found) -> list[Found]:
    """What each process has, by its number, in every process."""
    if num_processes() == 1:
        return [own]
    gathered: list[Any] = [None] * num_processes()
    dist.all_gather_object(gathered, own)
    return gathered


def anywhere(text: str) -> str:
    """The text of the first process that has one."""
    if num_processes() == 1:
        return text
    texts = [""] * num_processes()
    dist.all_gather_object(texts, text)
    return next(filter(None, texts), "")


def largest_anywhere(values: Tensor) -> Tensor:
    """The largest of each value over all processes, in place and on the device; strategy.reduce would wait at a barrier."""
    if num_processes() > 1:
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


def num_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
