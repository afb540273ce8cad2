"""Sums gradients over processes in the same order all through a run, also after it was resumed."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch.nn.parallel import DistributedDataParallel


class SteadyBuckets(Callback):
    """Keeps DDP's first grouping of the gradients.

    After a first step DDP groups them anew, by when they were ready. Where a gradient lies in its group decides in which order
    three or more processes add it up, so the first step of a resumed run would round otherwise than the uninterrupted run's.
    The first grouping, from the last layer to the first, is about that by which gradients are ready.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the groups as they are."""
        ddp = trainer.strategy.model
        if isinstance(ddp, DistributedDataParallel):
            ddp.reducer = _SteadyReducer(ddp.reducer)  # type: ignore[assignment]  # as far as DDP uses it


class _SteadyReducer:
    def __init__(self, reducer: Any) -> None:  # noqa: ANN401 - torch's, made in C++
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        """Not done."""
        return False
