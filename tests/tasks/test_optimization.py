import copy
import io
import math
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from timm.optim.lion import Lion
from timm.optim.lookahead import Lookahead
from torch import nn

from dropkey_cli.errors import InputError
from dropkey_cli.tasks.network import freeze_weights
from dropkey_cli.tasks.optimization import (
    TORCH_ONLY,
    AskedOptions,
    check_optimizer,
    check_same_groups,
    create_optimizer,
    fused_works,
    known_optimizers,
)
from dropkey_cli.tasks.schedules import PlateauSchedule, create_schedule


def optimizer(lr: float = 0.1, *, layer_decay: float = 1.0) -> torch.optim.Optimizer:
    return create_optimizer(timm.create_model("test_vit"), lr=lr, weight_decay=0.05, layer_decay=layer_decay, fused=False)


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


# By name

NEEDS_MORE = ("bnb", "fused", "kron")  # bitsandbytes and apex need CUDA, kron warns without opt_einsum
HERE = [name for name in known_optimizers() if not name.startswith(NEEDS_MORE)]


class Small(nn.Module):
    """Two layers with all that optimizers look at: matrices, biases, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    def step(self, optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        optimizer.zero_grad()
        self.last(self.norm(self.first(torch.randn(5, 3, generator=generator)))).square().sum().backward()
        optimizer.step()


def small(name: str, module: nn.Module, **options: Any) -> torch.optim.Optimizer:  # noqa: ANN401 - create_optimizer's
    return create_optimizer(module, name, **{"lr": 1e-2, "weight_decay": 0.05, "layer_decay": 1.0, **options})


@pytest.mark.parametrize("name", [*HERE, "lookahead_adamw"])
def test_every_optimizer_goes_on_bit_for_bit_from_a_file_of_its_state(name: str) -> None:
    module = Small()
    optimizer = small(name, module)
    create_schedule(optimizer, "constant", lr=1e-2, steps=9, warmup_share=0.0)
    for seed in (1, 2):
        module.step(optimizer, seed)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    copied = copy.deepcopy(module)
    resumed = small(name, copied)
    schedule = create_schedule(resumed, "constant", lr=1e-2, steps=9, warmup_share=0.0)
    asked = AskedOptions(resumed, schedule)
    state = torch.load(file, weights_only=True)
    check_same_groups(state["param_groups"], resumed, layer_decay=1.0)
    resumed.load_state_dict(state)
    asked.restore(schedule, 2)
    for each, its in ((module, optimizer), (copied, resumed)):
        torch.manual_seed(0)
        for seed in range(3, 13):  # lookahead acts at each sixth step, for the first time at the second of them
            each.step(its, seed)
    for one, other in zip(module.parameters(), copied.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()
    assert not torch.equal(Small().first.weight, module.first.weight)


@pytest.mark.parametrize(("name", "cls"), [("SGD", torch.optim.SGD), ("lion", Lion), ("ASGD", torch.optim.ASGD)])
def test_names_are_timms_or_torchs_in_any_case(name: str, cls: type) -> None:
    check_optimizer(name)
    assert type(small(name, Small())) is cls


def test_lookahead_is_a_prefix_as_in_timm() -> None:
    check_optimizer("lookahead_adamw")
    assert isinstance(small("lookahead_adamw", Small()), Lookahead)


@pytest.mark.parametrize(
    ("name", "near"), [("adamww", "'adamw'"), ("sdg", "'sgd'"), ("ahead_adamw", "'adamw'"), ("lbfgs", ""), ("adahessian", "")]
)
def test_unknown_names_are_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InputError, match=rf"^optimizer is '{name}'; expected .*; give --model.optimizer.*{near}"):
        check_optimizer(name)


def test_arguments_reach_the_optimizer() -> None:
    groups = small("adamw", Small(), arguments={"betas": [0.8, 0.95], "fused": False}, fused=True).param_groups
    assert [(group["betas"], group["fused"]) for group in groups] == [((0.8, 0.95), False)] * 2
    assert small("sgd", Small(), arguments={"momentum": 0.5}).param_groups[0]["momentum"] == 0.5


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("adamw", {"beta": [0.9, 0.9]}, r"^optimizer_args has 'beta', which adamw does not take; .*; did you mean 'betas'\?$"),
        ("sgd", {"betas": [0.9, 0.9]}, "^optimizer_args has 'betas', which sgd does not take"),  # timm leaves it out unsaid
        ("adamw", {"momentum": 0.9}, "^optimizer_args has 'momentum', which adamw does not take"),
        ("adamw", {"lr": 1}, r"^optimizer_args has lr: give --model\.lr instead$"),
        ("lamb", {"weight_decay": 1}, r"^optimizer_args has weight_decay: give --model\.weight_decay instead$"),
        ("adamw", {"betas": 3}, r"^the optimizer 'adamw' cannot be made \(TypeError: .*correct --model\.optimizer_args"),
        ("fusedadam", {}, r"^the optimizer 'fusedadam' cannot be made \(AssertionError: CUDA required"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="then apex is only missing")
def test_arguments_that_cannot_be_are_refused(name: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        small(name, Small(), arguments=arguments)


@pytest.mark.parametrize(("name", "fused"), [("adamw", True), ("adam", True), ("sgd", None), ("nadam", None), ("lamb", None)])
def test_only_adam_and_adamw_are_fused(name: str, fused: bool | None) -> None:
    assert {group.get("fused") for group in small(name, Small(), fused=True).param_groups} == {fused}


@pytest.mark.parametrize("name", ["adamw", *TORCH_ONLY])
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_groups_by_layer_and_decay_whoever_makes_the_optimizer(name: str, layer_decay: float) -> None:
    network = timm.create_model("test_vit", depth=2)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = small(name, network, layer_decay=layer_decay).param_groups
    decays = {names[id(p)]: (group["weight_decay"], group.get("lr_scale", 1.0)) for group in groups for p in group["params"]}
    assert decays.keys() == set(names.values())
    assert decays["head.weight"] == (0.05, 1.0)
    assert decays["blocks.1.attn.qkv.weight"] == (0.05, layer_decay)
    assert decays["blocks.0.attn.qkv.bias"] == (0.0, layer_decay**2)
    assert decays["cls_token"][0] == decays["pos_embed"][0] == decays["blocks.0.norm1.weight"][0] == 0.0


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_frozen_weights_have_no_state_and_do_not_change(layer_decay: float) -> None:
    network = timm.create_model("test_vit", depth=2)
    freeze_weights(network, ["patch_embed", "blocks.0"])
    before = copy.deepcopy(network.state_dict())
    optimizer = small("adamw", network, layer_decay=layer_decay)
    network(torch.randn(2, 3, 160, 160)).square().sum().backward()
    optimizer.step()
    trained = {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
    assert {id(parameter) for parameter in optimizer.state} == trained
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(("patch_embed", "blocks.0."))


# Resumption


def test_what_a_plateau_has_seen_stays_the_checkpoints() -> None:
    asked = optimizer(0.2)
    schedule = create_schedule(asked, "plateau", lr=0.2, steps=20, warmup_share=0.0)
    options = AskedOptions(asked, schedule)
    impatient = {"min_lr": 0.0, "decay_rate": 0.1, "patience": 0}
    seen = create_schedule(optimizer(0.1), "plateau", lr=0.1, steps=20, warmup_share=0.0, arguments=impatient)
    assert isinstance(seen, PlateauSchedule)
    for _ in range(2):
        seen.observe(0.5, 3)
    schedule.load_state_dict(seen.state_dict())
    options.restore(schedule, 15)
    assert asked.param_groups[0]["lr"] == pytest.approx(0.02)


def test_the_same_optimizer_goes_on() -> None:
    saved = optimizer(layer_decay=0.5).state_dict()["param_groups"]
    check_same_groups(saved, optimizer(layer_decay=0.5), layer_decay=0.5)


def test_another_optimizer_or_other_weights_are_refused() -> None:
    saved = optimizer().state_dict()["param_groups"]
    network = timm.create_model("test_vit")
    with pytest.raises(InputError, match=r"has 2 groups of weights, layer_decay 0\.5 gives \d+: leave out"):
        check_same_groups(saved, optimizer(layer_decay=0.5), layer_decay=0.5)
    with pytest.raises(InputError, match=r"^the checkpoint is that of another optimizer, .*leave out --model\.optimizer "):
        check_same_groups(saved, small("sgd", network), layer_decay=1.0)
    freeze_weights(network, ["blocks.0"])
    with pytest.raises(InputError, match=r"optimizer trains \d+ tensors, this run's \d+: leave out --model\.freeze"):
        check_same_groups(saved, small("adamw", network), layer_decay=1.0)
