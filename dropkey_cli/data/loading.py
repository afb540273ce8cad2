"""Which process reads which images in which order: shuffled for training, each image exactly once for all else."""

import os
import random
import secrets
import signal
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

from dropkey_cli.seeds import derived_seed

PADDING = -1
"""In the place of a position: an image of zeros that counts nowhere, so that every process takes the same number of steps."""


class Draw(NamedTuple):
    """One training image: its position in the data set, and the seed of its augmentation."""

    position: int
    seed: int


class TrainSampler(DistributedSampler[Draw]):
    """Shuffles the training images by (seed, epoch) alone and deals them out to the processes.

    So a resumed run sees the images, augmented alike, that the uninterrupted run would have seen. As torch's
    DistributedSampler, it repeats a few images where their number is no multiple of the number of processes.

    With ``repeats``, that many epochs share one order in which each image stands so often in a row; each epoch takes its part
    of it. So the copies go to different processes, an epoch has as many images as ever, and all are used equally often.

    Args:
        dataset: What is sampled; only its length matters.
        seed: The run's seed.
        repeats: How often an image is used in a row, each time augmented differently.
        num_replicas: Number of processes.
        rank: This process.
    """

    def __init__(self, dataset: Sized, *, seed: int, repeats: int = 1, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(cast(Dataset[Draw], dataset), num_replicas, rank, shuffle=True, seed=derived_seed(seed) >> 1)
        self.run_seed = seed
        self.repeats = repeats
        self._start = 0

    def start_at(self, epoch: int, position: int) -> None:
        """Let the next iteration begin within an epoch, for a resumed run.

        Args:
            epoch: Number of the epoch, from 0.
            position: How many of this process's images in it have been used.
        """
        self.set_epoch(epoch)
        self._start = position

    def __iter__(self) -> Iterator[Draw]:
        """This process's images of the epoch."""
        num_images = len(cast(Sized, self.dataset))
        epoch = self.epoch  # the iterator may outlive a set_epoch
        shared_order, part = divmod(epoch, self.repeats)
        generator = torch.Generator().manual_seed(self.seed + shared_order)
        order = torch.randperm(num_images, generator=generator)
        own = torch.arange(self.rank, self.total_size, self.num_replicas)[self._start :]
        places = part * num_images + own % num_images  # in the order with its repeats
        self._start = 0
        positions, copies = order[places // self.repeats].tolist(), (places % self.repeats).tolist()
        return (
            # The first copy has the seed that it would have without repeats
            Draw(position, derived_seed(self.run_seed, epoch, position, *([copy] if copy else [])))
            for position, copy in zip(positions, copies, strict=True)
        )


class EvalSampler(DistributedSampler[int]):
    """Deals the images out to the processes in order: with W processes, image i goes to process i mod W.

    Where their number is no multiple of W, the last processes get `PADDING` once.
    """

    def __init__(self, dataset: Sized, *, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(cast(Dataset[int], dataset), num_replicas, rank, shuffle=False)

    def __iter__(self) -> Iterator[int]:
        """This process's positions."""
        own = range(self.rank, len(cast(Sized, self.dataset)), self.num_replicas)
        yield from own
        if len(own) < self.num_samples:
            yield PADDING


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Augment by a seed: all generators that transforms draw from start at it. None leaves them alone.

    Torch's, of which the masks are drawn, goes on afterwards where it was.
    """
    if seed is None:
        yield
        return
    before = torch.default_generator.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def leave_signals_to_the_run(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM in a process that loads images: they reach it too, and the run wants to save and end by itself.

    Args:
        worker: Number of the process; not needed.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def run_seed(trainer: Any) -> int:  # noqa: ANN401 - a Trainer or None
    """The seed of the run, which ``seed_everything`` leaves in the environment; without one, another every time."""
    if "PL_GLOBAL_SEED" in os.environ:
        return int(os.environ["PL_GLOBAL_SEED"])
    seed = secrets.randbits(62)
    return seed if trainer is None else int(trainer.strategy.broadcast(seed))  # all processes share one order


def process_of(trainer: Any) -> dict[str, int]:  # noqa: ANN401 - a Trainer or None
    """The number of processes that share the images and the number of this one, as the samplers take them."""
    found: dict[str, int] | None = trainer.distributed_sampler_kwargs if trainer is not None else None
    return found or {"num_replicas": 1, "rank": 0}
