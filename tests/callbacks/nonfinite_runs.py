"""Small trainings in which chosen batches are not finite, and the same ones written by hand."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader

BATCH_SIZE = 4
OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "fused": lambda parameters: AdamW(parameters, lr=0.1, weight_decay=0.1, fused=True),
    "unfused": lambda parameters: AdamW(parameters, lr=0.1, weight_decay=0.1),
    "sgd": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
}


def batches(count: int, values: dict[int, float] | None = None, *, seed: int = 0) -> list[dict[str, Any]]:
    """Batches of images; in those numbered in ``values`` (from 0) one pixel has the value there."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        images = torch.randn(BATCH_SIZE, 3, 2, 2, generator=generator)
        if values and number in values:
            images[1, 0, 0, 0] = values[number]
        labels = torch.randint(0, 5, (BATCH_SIZE,), generator=generator)
        made.append({"image": images, "label": labels, "path": [f"{number}_{image}.png" for image in range(BATCH_SIZE)]})
    return made


def network(*, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6) if norm else nn.Tanh(), nn.Linear(6, 5))


class Task(LightningModule):
    """Learns the labels of batches with a network."""

    def __init__(self, data: list[dict[str, Any]], *, optimizer: str = "fused", net: nn.Module | None = None) -> None:
        super().__init__()
        self.data, self.optimizer, self.network = data, optimizer, net or network()

    def training_step(self, batch: dict[str, Any], _index: int) -> Tensor:
        return F.cross_entropy(self.network(batch["image"]), batch["label"])

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(self.data, batch_size=None)  # type: ignore[arg-type]  # a list will do

    def configure_optimizers(self) -> Optimizer:
        return OPTIMIZERS[self.optimizer](self.parameters())


def trainer(**options: Any) -> Trainer:  # noqa: ANN401 - any option
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 2}
    return Trainer(**{**quiet, **defaults, **options})


def learn_by_hand(
    data: list[dict[str, Any]], *, optimizer: str, net: nn.Module, leave_out: set[int], accumulate: int = 1
) -> tuple[nn.Module, Optimizer]:
    """What training gives if the steps numbered in ``leave_out`` (from 0) are never made."""
    stepper = OPTIMIZERS[optimizer](net.parameters())
    for step in range(math.ceil(len(data) / accumulate)):
        if step in leave_out:
            continue
        stepper.zero_grad()
        for batch in data[step * accumulate : (step + 1) * accumulate]:
            (F.cross_entropy(net(batch["image"]), batch["label"]) / accumulate).backward()  # type: ignore[no-untyped-call]
        stepper.step()
    return net, stepper


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    """Bitwise equal parameters and buffers."""
    for (name, mine), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
