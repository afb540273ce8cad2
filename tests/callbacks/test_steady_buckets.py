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
