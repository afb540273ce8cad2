"""Patched models under DDP and FSDP, with gloo on the CPU: in this process alone, and in two."""

import copy
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import DropKeyPlan, apply_dropkey
from dropkey_cli.patching.interception import KeyDropping
from tests.patching.seeded import Network, gradients_at_seed, output_at_seed

# torch's notes on what swin's blocks return, and on FSDP in one process
pytestmark = [
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning"),
]


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    join_group(0, 1, tmp_path / "store")
    yield
    dist.destroy_process_group()


def join_group(rank: int, processes: int, store: Path) -> None:
    dist.init_process_group("gloo", init_method=store.as_uri(), rank=rank, world_size=processes)


def apply(model: nn.Module, images: Tensor) -> DropKeyPlan:
    return apply_dropkey(model, DropKeySettings(ratio=0.4, schedule="constant"), example_inputs=(images,))


def attentions(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, KeyDropping)]


def blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__.endswith("Block")]


def shard(model: nn.Module, parts: list[nn.Module]) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in [*parts, model]:
        fully_shard(part, mesh=mesh)


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_ddp_trains_as_the_model_alone(network: Network, one_process: None) -> None:
    model, images = network
    plan = apply(model, images)
    expected, counts = gradients_at_seed(copy.deepcopy(model), images), [state.counts.clone() for state in plan.states]
    wrapped = DistributedDataParallel(model)
    assert_close(gradients_at_seed(wrapped, images), expected)
    assert all((state.counts > before).all() for state, before in zip(plan.states, counts, strict=True))
    assert not any("dropkey" in key for key in wrapped.state_dict())


def test_model_in_ddp_can_get_dropkey(network: Network, one_process: None) -> None:
    model, images = network
    patched = copy.deepcopy(model)
    apply(patched, images)
    wrapped = DistributedDataParallel(model)
    plan = apply(wrapped, images)
    assert all(layer.name.startswith("module.") for layer in plan.layers)
    assert_close(gradients_at_seed(wrapped, images), gradients_at_seed(patched, images))


def test_fully_sharded_blocks_train_as_the_model_alone(network: Network, one_process: None) -> None:
    model, images = network
    plain = copy.deepcopy(model)
    plan = apply(model, images)
    expected = gradients_at_seed(copy.deepcopy(model), images)
    shard(model, blocks(model))
    assert_close(gradients_at_seed(model, images), expected)
    assert all(state.counts[0] > 0 for state in plan.states)
    plan.remove()  # the attention modules' own classes are not FSDP's
    assert all(isinstance(module, FSDPModule) for module in [model, *blocks(model)])
    assert torch.equal(output_at_seed(model, images), output_at_seed(plain, images))


def test_fully_sharded_attention_trains_as_the_model_alone(network: Network, one_process: None) -> None:
    model, images = network
    apply(model, images)
    expected = gradients_at_seed(copy.deepcopy(model), images)
    shard(model, attentions(model))
    assert_close(gradients_at_seed(model, images), expected)


def test_plan_is_not_removed_from_under_fsdp(network: Network, one_process: None) -> None:
    model, images = network
    plain = copy.deepcopy(model)
    plan = apply(model, images)
    shard(model, attentions(model)[-1:])
    dropping = output_at_seed(model, images)
    with pytest.raises(InputError, match=r"FSDP(Window)?Attention lies over .* call plan\.remove\(\) before .*fully_shard"):
        plan.remove()
    assert len(attentions(model)) == len(plan.layers)
    assert isinstance(attentions(model)[-1], FSDPModule)
    assert torch.equal(output_at_seed(model, images), dropping)
    plan.enabled = False
    assert torch.equal(output_at_seed(model, images), output_at_seed(plain, images))


def test_fully_sharded_attention_is_not_stripped_by_a_copy(network: Network, one_process: None) -> None:
    model, images = network
    apply(model, images)
    shard(model, attentions(model))
    attention = attentions(model)[0]
    with pytest.raises(AssertionError, match="FSDP does not support deepcopy"):
        copy.deepcopy(attention)
    with pytest.raises(pickle.PicklingError, match=r"Can't pickle <class '.*\.FSDP(Window)?Attention'>"):
        pickle.dumps(attention)


def test_sharded_model_is_refused_with_what_to_do(network: Network, one_process: None) -> None:
    model, images = network
    shard(model, blocks(model))
    with pytest.raises(InputError, match=r"FSDP\w+ could not be copied .*FSDP does not support deepcopy.*apply DropKey before"):
        apply(model, images)


@pytest.mark.parametrize("unit", ["model", "block", "attention"])
def test_classic_fsdp_trains_as_the_model_alone(network: Network, one_process: None, unit: str) -> None:
    model, images = network
    plan = apply(model, images)
    expected = gradients_at_seed(copy.deepcopy(model), images)
    units = {"model": [model], "block": blocks(model), "attention": attentions(model)}[unit]
    policy = ModuleWrapPolicy({type(module) for module in units})
    wrapped = FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=torch.device("cpu"), use_orig_params=True)
    assert_close(gradients_at_seed(wrapped, images), expected)
    plan.remove()
    assert attentions(wrapped) == []


def test_ratio_and_counts_follow_logits_that_moved_past_the_module() -> None:
    # As FSDP moves parameters: it calls no `_apply`. Fake tensors stand in for a GPU.
    class Probe(nn.Module):
        def forward(self, logits: Tensor) -> Tensor:
            return logits.softmax(-1)

    model = nn.Sequential(Probe()).train()
    settings = DropKeySettings(ratio=0.4, schedule="constant", include=["*Probe"])
    (state,) = apply_dropkey(model, settings, example_inputs=(torch.zeros(2, 3, 8, 8),)).states
    with FakeTensorMode(allow_non_fake_inputs=True):
        weights = model(torch.empty(2, 3, 8, 8, device="cuda"))
    assert weights.device.type == "cuda"
    assert {tensor.device for tensor in (state.ratio, state.counts, state.settled)} == {weights.device}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_share_gradients_and_nothing_else(
    network: Network, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    monkeypatch.syspath_prepend(pytestconfig.rootpath)  # where the new processes find this module
    spawn(train_in_two_processes, (tmp_path / "store", how, *network), nprocs=2)  # type: ignore[no-untyped-call]  # torch's


def train_in_two_processes(rank: int, store: Path, how: str, shared_model: nn.Module, images: Tensor) -> None:
    torch.set_num_threads(1)
    join_group(rank, 2, store)
    model, images = copy.deepcopy(shared_model), images * (rank + 1)
    plan = apply(model, images)
    alone = copy.deepcopy(model)
    own = gradients_at_seed(alone, images, seed=rank)
    means = [gradient.clone() for gradient in own]
    for mean in means:
        dist.all_reduce(mean, dist.ReduceOp.SUM)
        mean /= 2
    if how == "ddp":
        trained: nn.Module = DistributedDataParallel(model)
    else:
        shard(model, attentions(model))
        trained = model
    gradients = gradients_at_seed(trained, images, seed=rank)
    assert_close(gradients, means)
    assert not all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(gradients, own, strict=True))
    counts = torch.stack([state.counts for state in plan.states])
    assert torch.equal(counts, torch.stack([module.dropkey.counts for module in attentions(alone)]))
    others = [torch.empty_like(counts), torch.empty_like(counts)]
    dist.all_gather(others, counts)
    assert not torch.equal(others[0], others[1])  # each rank counted its own masks
    dist.barrier()
    os._exit(0)  # now and then gloo's threads abort an orderly end: "terminate called without an active exception"
