import math
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch

from dropkey_cli.tasks.optimization import AskedOptions, create_optimizer, fused_works
from dropkey_cli.tasks.schedules import create_schedule


def optimizer(lr: float = 0.1, *, layer_decay: float = 1.0) -> torch.optim.Optimizer:
    return create_optimizer(timm.create_model("test_vit"), lr=lr, weight_decay=0.05, layer_decay=layer_decay, fused=False)


def rates(steps: int, warmup_share: float) -> list[float]:
    adamw = optimizer(0.1)
    schedule, seen = create_schedule(adamw, lr=0.1, steps=steps, warmup_share=warmup_share), []
    for step in range(steps + 1):
        schedule.step_update(step)
        seen.append(adamw.param_groups[0]["lr"])
    return seen


def test_warm_up_then_a_cosine_to_0() -> None:
    warmup = [0.001 + (0.1 - 0.001) * step / 5 for step in range(5)]
    cosine = [0.05 * (1 + math.cos(math.pi * step / 15)) for step in range(16)]
    assert rates(20, 0.25) == pytest.approx([*warmup, *cosine], abs=1e-9)


def test_biases_and_norms_do_not_decay_and_earlier_layers_learn_slower() -> None:
    assert {group["weight_decay"] for group in optimizer().param_groups} == {0.0, 0.05}
    scales: set[Any] = {group.get("lr_scale", 1.0) for group in optimizer(layer_decay=0.5).param_groups}
    assert max(scales) == 1.0
    assert min(scales) < 0.1


def test_a_checkpoints_options_give_way_to_those_asked_for() -> None:
    asked, saved = optimizer(0.2), optimizer(0.1)
    schedule = create_schedule(asked, lr=0.2, steps=20, warmup_share=0.0)
    options = AskedOptions(asked, schedule)
    asked.load_state_dict(saved.state_dict())
    schedule.load_state_dict(create_schedule(saved, lr=0.1, steps=10, warmup_share=0.0).state_dict())
    options.restore(schedule, 15)
    assert asked.param_groups[0]["lr"] == pytest.approx(0.1 * (1 + math.cos(math.pi * 15 / 20)))


@pytest.mark.parametrize(
    ("device", "precision", "clip", "fused"),
    [
        ("cuda", "bf16-mixed", None, True),
        ("cuda", "bf16-mixed", 1.0, False),
        ("cuda", "32-true", 1.0, True),
        ("mps", "32-true", None, True),
        ("cuda", "16-mixed", None, False),
        ("xla", "32-true", None, False),
    ],
)
def test_adamw_stays_as_it_was_where_lightning_or_torch_lacks_the_kernel(
    device: str, precision: str, clip: float | None, fused: bool
) -> None:
    strategy = SimpleNamespace(root_device=torch.device(device))
    given: Any = SimpleNamespace(precision=precision, strategy=strategy, gradient_clip_val=clip)
    assert fused_works(given) == fused
