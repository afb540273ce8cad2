"""FSDP2 for any network: weights, gradients and optimizer states are split over the processes, block by block."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from timm.optim.lookahead import Lookahead
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

from dropkey_cli.errors import InputError
from dropkey_cli.patching.interception import KeyDropping
from dropkey_cli.patching.known import rule_for


class FullySharded(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with every transformer block sharded over all processes, and ordinary checkpoints.

    Args:
        process_group_backend: nccl or gloo; by default what suits the devices.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend)

    def setup_environment(self) -> None:
        """All processes hold shards: Lightning's auto means one per machine."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Shard the network that configure_model has built, with DropKey in it."""
        module: Any = self.lightning_module
        shard(module, self.device_mesh["data_parallel"])
        super().setup(trainer)

    def setup_optimizers(self, trainer: Trainer) -> None:
        """As Lightning's.

        Raises:
            InputError: If an optimizer hides its state: at every checkpoint torch would make a step to get one.
        """
        super().setup_optimizers(trainer)
        if any(isinstance(optimizer, Lookahead) for optimizer in self.optimizers):
            raise InputError(
                "the state of an optimizer with lookahead cannot be sharded: leave lookahead_ out of --model.optimizer, or "
                "give --trainer.strategy ddp"
            )

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As Lightning's, before the first step as well: for that, torch makes one without gradients, which must not count."""
        if not optimizer.state:
            super().optimizer_state(optimizer)
            for state in optimizer.state.values():
                if "step" in state:
                    state["step"] *= 0
        return super().optimizer_state(optimizer)


def shard(module: LightningModule, mesh: Any) -> None:  # noqa: ANN401 - a DeviceMesh
    """Shard every block and then the rest, in place."""
    for name in sorted(shard_units(module), key=lambda name: -name.count(".")):  # what lies within another comes first
        fully_shard(module.get_submodule(name), mesh=mesh)
    fully_shard(module, mesh=mesh)


def shard_units(module: nn.Module) -> list[str]:
    """The blocks of a network, e.g. blocks.0: the nearest numbered module around each known attention layer."""
    units: dict[str, None] = {}
    for name, part in module.named_modules():
        if isinstance(part, KeyDropping | nn.MultiheadAttention) or rule_for(type(part)) is not None:
            words = name.split(".")
            numbered = [position for position, word in enumerate(words[:-1]) if word.isdecimal()]
            if numbered:
                units[".".join(words[: numbered[-1] + 1])] = None
    return list(units)
