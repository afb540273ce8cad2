from types import SimpleNamespace
from typing import Any, cast

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dropkey_cli.callbacks.batch_seeds import BatchSeeds, batch_seed
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import apply_dropkey


def start_batch(seed: int, *, epoch: int = 0, batch: int = 0, rank: int = 0, device: str = "cpu") -> None:
    strategy = SimpleNamespace(root_device=torch.device(device))
    trainer = cast(Any, SimpleNamespace(current_epoch=epoch, global_rank=rank, strategy=strategy))
    BatchSeeds(seed).on_train_batch_start(trainer, cast(Any, None), None, batch)


def test_seeds_do_not_change_between_releases() -> None:
    # From hashlib.blake2b(b"0,0,0,0", digest_size=8); a resumed run must find the masks it had
    assert batch_seed(0, 0, 0, 0) == 2235979303852607087


def test_every_seed_epoch_batch_and_rank_has_its_own_seed() -> None:
    seeds = {
        batch_seed(seed, epoch, batch, rank)
        for seed in range(5)
        for epoch in range(5)
        for batch in range(40)
        for rank in range(8)
    }
    assert len(seeds) == 5 * 5 * 40 * 8


def test_the_stream_is_that_of_torch_manual_seed() -> None:
    start_batch(3, epoch=2, batch=1)
    drawn = torch.rand(5)
    torch.manual_seed(batch_seed(3, 2, 1, 0))
    assert torch.equal(torch.rand(5), drawn)


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_a_device_gets_the_same_seed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: dict[str, int] = {}

    def module(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(manual_seed=lambda seed: seeds.update({device.type: seed}))

    monkeypatch.setattr(torch, "get_device_module", module)
    start_batch(3, batch=1, device=kind)
    assert seeds == {kind: batch_seed(3, 0, 1, 0)}
    assert torch.initial_seed() == batch_seed(3, 0, 1, 0)


def test_on_a_cpu_no_device_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_device_module", None)
    start_batch(3, batch=1)
    assert torch.initial_seed() == batch_seed(3, 0, 1, 0)


@given(*[st.integers(min_value=0, max_value=2**32)] * 4)
def test_seeds_are_63_bit(seed: int, epoch: int, batch: int, rank: int) -> None:
    assert 0 <= batch_seed(seed, epoch, batch, rank) < 2**63


@pytest.mark.parametrize("other", [{"epoch": 1}, {"batch": 1}, {"rank": 1}])
def test_masks_repeat_in_the_same_batch_and_differ_in_others(other: dict[str, int]) -> None:
    model = timm.create_model("test_vit").train()
    apply_dropkey(model, DropKeySettings(ratio=0.5))
    images = torch.randn(2, 3, 160, 160)

    def logits(**place: int) -> Tensor:
        start_batch(7, **place)  # type: ignore[arg-type]  # all of them numbers
        return cast(Tensor, model(images)).detach()

    first = logits()
    torch.rand(3)  # what happened before the batch plays no part
    assert torch.equal(logits(), first)
    assert not torch.equal(logits(**other), first)
