from types import SimpleNamespace
from typing import Any, cast

import pytest
import timm
import torch
from torch import Tensor

from dropkey_cli.callbacks.batch_seeds import BatchSeeds
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import apply_dropkey
from dropkey_cli.seeds import derived_seed


def start_batch(seed: int, *, epoch: int = 0, batch: int = 0, rank: int = 0, device: str = "cpu") -> None:
    strategy = SimpleNamespace(root_device=torch.device(device))
    trainer = cast(Any, SimpleNamespace(current_epoch=epoch, global_rank=rank, strategy=strategy))
    BatchSeeds(seed).on_train_batch_start(trainer, cast(Any, None), None, batch)


def test_the_stream_is_that_of_torch_manual_seed() -> None:
    start_batch(3, epoch=2, batch=1)
    drawn = torch.rand(5)
    torch.manual_seed(derived_seed(3, 2, 1, 0))
    assert torch.equal(torch.rand(5), drawn)


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_a_device_gets_the_same_seed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: dict[str, int] = {}

    def module(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(manual_seed=lambda seed: seeds.update({device.type: seed}))

    monkeypatch.setattr(torch, "get_device_module", module)
    start_batch(3, batch=1, device=kind)
    assert seeds == {kind: derived_seed(3, 0, 1, 0)}
    assert torch.initial_seed() == derived_seed(3, 0, 1, 0)


def test_on_a_cpu_no_device_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_device_module", None)
    start_batch(3, batch=1)
    assert torch.initial_seed() == derived_seed(3, 0, 1, 0)


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
