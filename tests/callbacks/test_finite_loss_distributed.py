"""FiniteLoss in two processes with gloo on the CPU, of which one meets what is not finite."""

import math
import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from lightning import Trainer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn

from dropkey_cli.callbacks import finite_loss
from dropkey_cli.callbacks.finite_loss import FiniteLoss, can_leave_out_on_device
from dropkey_cli.callbacks.nonfinite_layers import largest_magnitude
from dropkey_cli.errors import RunError
from tests.callbacks.nonfinite_runs import OPTIMIZERS, Task, batches, network, trainer

pytestmark = pytest.mark.slow

BAD = {3: math.nan}  # of the second process


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    monkeypatch.syspath_prepend(pytestconfig.rootpath)  # where the new processes find this module


def join(rank: int, store: Path) -> None:
    """Become one of the two processes, as a launcher would have it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    dist.init_process_group("gloo", init_method=store.as_uri(), rank=rank, world_size=2)


def leave() -> None:
    dist.barrier()
    os._exit(0)  # now and then gloo's threads abort an orderly end: "terminate called without an active exception"


def data_of(rank: int) -> list[dict[str, Any]]:
    return batches(6, BAD if rank == 1 else None, seed=rank)


def run_of(callback: FiniteLoss, **options: Any) -> Trainer:  # noqa: ANN401 - the trainer's
    return trainer(callbacks=[callback], devices=2, strategy="ddp", use_distributed_sampler=False, **options)


def everywhere(value: Tensor) -> list[Tensor]:
    values = [torch.empty_like(value), torch.empty_like(value)]
    dist.all_gather(values, value)
    return values


def flat(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def learn_alone(optimizer: str, *, leave_out: set[int], accumulate: int) -> nn.Module:
    """The two processes' training in one, without the steps numbered in ``leave_out`` (from 0)."""
    net = network()
    stepper = OPTIMIZERS[optimizer](net.parameters())
    pairs = list(zip(data_of(0), data_of(1), strict=True))
    for step in range(6 // accumulate):
        if step not in leave_out:
            stepper.zero_grad()
            for batch in (batch for pair in pairs[step * accumulate : (step + 1) * accumulate] for batch in pair):
                loss = nn.functional.cross_entropy(net(batch["image"]), batch["label"])
                (loss / accumulate / 2).backward()  # type: ignore[no-untyped-call]  # torch's
            stepper.step()
    return net


@pytest.mark.parametrize(("optimizer", "accumulate"), [("fused", 1), ("fused", 2), ("sgd", 1)])
def test_both_skip_what_one_meets(optimizer: str, accumulate: int, tmp_path: Path) -> None:
    spawn(skip_in_two_processes, (tmp_path / "store", optimizer, accumulate), nprocs=2)  # type: ignore[no-untyped-call]


def skip_in_two_processes(rank: int, store: Path, optimizer: str, accumulate: int) -> None:
    join(rank, store)
    task, callback = Task(data_of(rank), optimizer=optimizer), FiniteLoss("skip")
    run_of(callback, accumulate_grad_batches=accumulate).fit(task)
    mine, other = everywhere(flat(task.network))
    assert torch.equal(mine, other)
    expected = learn_alone(optimizer, leave_out={3 // accumulate}, accumulate=accumulate)
    torch.testing.assert_close(mine, flat(expected), rtol=1e-4, atol=1e-5)
    assert callback.skipped_batches == accumulate
    leave()


@pytest.mark.parametrize("reading_is_free", [True, False])
def test_both_stop_with_the_same_words(reading_is_free: bool, tmp_path: Path) -> None:
    spawn(stop_in_two_processes, (tmp_path / "store", reading_is_free), nprocs=2)  # type: ignore[no-untyped-call]


def stop_in_two_processes(rank: int, store: Path, reading_is_free: bool) -> None:
    finite_loss.reading_is_free = lambda device: reading_is_free
    join(rank, store)
    task = Task(data_of(rank))
    run = run_of(FiniteLoss(), log_every_n_steps=5)
    with pytest.raises(
        RunError, match=r"^the loss is nan at step 4 \(epoch 1, batch 4: 3_0\.png, .*; .* finite.*; no checkpoint"
    ):
        run.fit(task)
    assert run.global_step == (4 if reading_is_free else 5)
    mine, other = everywhere(flat(task.network))
    assert torch.equal(mine, other)
    torch.testing.assert_close(mine, flat(learn_alone("fused", leave_out={3, 4, 5}, accumulate=1)), rtol=1e-4, atol=1e-5)
    leave()


@pytest.mark.parametrize("what", ["stop", "skip"])
def test_no_process_writes_weights_that_are_not_finite_in_one(what: str, tmp_path: Path) -> None:
    spawn(save_in_two_processes, (tmp_path / "store", what), nprocs=2)  # type: ignore[no-untyped-call]


def save_in_two_processes(rank: int, store: Path, what: Literal["stop", "skip"]) -> None:
    join(rank, store)
    task = Task(batches(2))
    run = run_of(FiniteLoss(what))
    run.fit(task)
    dist.barrier()
    if rank == 1:
        torch.nn.init.constant_(task.network[1].bias, math.inf)  # type: ignore[index]  # a Sequential
    with pytest.raises(
        RunError, match=r"^after step 2 the parameter network\.1\.bias is not finite, so no checkpoint is written"
    ):
        run.save_checkpoint(store.with_name("x.ckpt"))
    assert not store.with_name("x.ckpt").exists()
    leave()


def test_sharded_gradients_of_one_process_count_for_both(tmp_path: Path) -> None:
    spawn(step_on_shards, (tmp_path / "store",), nprocs=2)  # type: ignore[no-untyped-call]


def step_on_shards(rank: int, store: Path) -> None:
    join(rank, store)
    net = network()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    optimizer = OPTIMIZERS["fused"](net.parameters())
    assert not can_leave_out_on_device(optimizer)
    strategy, precision = SimpleNamespace(root_device=torch.device("cpu")), SimpleNamespace()
    run: Any = SimpleNamespace(strategy=strategy, precision_plugin=precision, global_step=0)
    module: Any = SimpleNamespace(network=net)
    callback = FiniteLoss()
    callback.on_train_start(run, module)
    for bad in (False, True):
        optimizer.zero_grad()
        net(torch.ones(2, 12)).sum().backward()
        gradients: list[Any] = [parameter.grad for parameter in net.parameters()]
        if bad and rank == 1:
            gradients[0].to_local().fill_(math.inf)
        assert math.isfinite(float(largest_magnitude(gradients))) is not (bad and rank == 1)
        callback.on_before_optimizer_step(run, module, optimizer)
        assert [parameter.grad is None for parameter in net.parameters()] == [bad] * 4
    leave()
