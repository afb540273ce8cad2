"""That runs on three processes go on bit for bit is in tests/commands/test_several_processes.py."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.nn.parallel import DistributedDataParallel

from dropkey_cli.callbacks.steady_buckets import SteadyBuckets
from dropkey_cli.commands.run import _quieten

MODULE: Any = None  # not looked at


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("steady", [True, False])
@pytest.mark.usefixtures("group")
def test_ddp_keeps_its_first_groups(steady: bool) -> None:
    ddp = DistributedDataParallel(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    if steady:
        SteadyBuckets().on_train_start(SimpleNamespace(strategy=SimpleNamespace(model=ddp)), MODULE)  # type: ignore[arg-type]
    for _ in range(3):
        ddp(torch.ones(3, 4)).sum().backward()
    assert ddp._has_rebuilt_buckets is not steady
    assert ddp.module[0].weight.grad.abs().sum() > 0


def test_other_strategies_are_left_alone() -> None:
    network = nn.Linear(2, 2)
    SteadyBuckets().on_train_start(SimpleNamespace(strategy=SimpleNamespace(model=network)), MODULE)  # type: ignore[arg-type]
    assert not hasattr(network, "reducer")


@pytest.mark.usefixtures("group")
def test_a_depthwise_convolution_of_tokens_is_no_matter_for_a_warning() -> None:
    _quieten()
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    images = torch.ones(2, 16, 8).transpose(1, 2).reshape(2, 8, 4, 4)  # as CeiT's
    ddp = DistributedDataParallel(conv)
    ddp(images).sum().backward()  # torch warns of it once in a process
    assert conv.weight.grad is not None
    assert conv.weight.grad.stride() == (9, 1, 3, 1)  # (9, 9, 3, 1) is the same memory, as the second size is 1
