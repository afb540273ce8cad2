"""Several processes: how many are sensible, and that none outlives the run."""

import os
import subprocess

from lightning import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

SECONDS_TO_END = 10.0


def check_processes(trainer: Trainer) -> None:
    """Refuse to start so many CPU processes that the machine stands still, and what would not leave a usable checkpoint.

    Raises:
        ValueError: If there are more than four for each core, or the strategy splits the checkpoint.
    """
    cores = os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > 4 * cores:
        raise ValueError(f"{trainer.num_devices} CPU processes on {cores} cores, give --trainer.devices {4 * cores} or less")
    if isinstance(trainer.strategy, FSDPStrategy):
        raise ValueError("strategy fsdp is FSDP's first version; give --trainer.strategy fsdp2")
    if isinstance(trainer.strategy, ModelParallelStrategy) and trainer.strategy._save_distributed_checkpoint:
        raise ValueError("its checkpoints would be split by process, give the strategy save_distributed_checkpoint: false")
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it
    if isinstance(trainer.strategy, ModelParallelStrategy) and any(isinstance(one, WeightAveraging) for one in callbacks):
        raise ValueError("a sharded network has no averaged copy, leave weight averaging out or give --trainer.strategy ddp")


def lost_process(error: BaseException) -> bool:
    """Whether gloo or NCCL says so that another process is no longer there."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ("by peer", "remote process exited"))


def end_children(trainer: Trainer) -> None:
    """Wait a little for the processes that this one started, then end them: one may wait for a process that has failed."""
    children: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    for child in children:
        try:
            child.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            child.kill()
