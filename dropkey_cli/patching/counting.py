"""Counts every draw once: not again where activation checkpointing recomputes a forward in the backward pass."""

import torch
from torch import Tensor

UNIT = 2**16
"""A drop ratio is a whole number of this part; expected values and variances of counts are kept in it, too."""


def recomputing() -> bool:
    """Whether this thread runs a backward pass: a forward in it repeats one that has been before, with the same masks."""
    return torch._C._current_graph_task_id() != -1


@torch.library.custom_op("dropkey::add_unless_recomputed", mutates_args=("counts",))
def add_unless_recomputed(counts: Tensor, draws: Tensor) -> None:
    """Add ``draws`` to ``counts``, both int64 (2,), unless `recomputing`, which compiled code can only ask as it runs."""
    if not recomputing():
        counts.add_(draws)


@add_unless_recomputed.register_fake
def _(counts: Tensor, draws: Tensor) -> None:
    pass
