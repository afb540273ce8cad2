"""Patched models under what people do with models: copy, save, average, wrap, hook, change dtype or layout."""

import copy
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import DropKeyPlan, apply_dropkey
from dropkey_cli.patching.interception import KeyDropping
from tests.patching.seeded import Network, gradients_at_seed, output_at_seed

Copier = Callable[[Any], Any]


def apply(model: nn.Module, images: Tensor, ratio: float = 0.4) -> DropKeyPlan:
    return apply_dropkey(model, DropKeySettings(ratio=ratio, schedule="constant"), example_inputs=(images,))


def pickled(model: nn.Module) -> nn.Module:
    twin: nn.Module = pickle.loads(pickle.dumps(model))
    return twin


def saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    twin: nn.Module = torch.load(buffer, weights_only=False)
    return twin


def attentions(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, KeyDropping)]


def assert_shares_are_right(plan: DropKeyPlan, ratio: float = 0.4) -> None:
    for state in plan.states:
        dropped, draws = state.counts.tolist()
        assert abs(dropped / draws - ratio) < 5 * math.sqrt(ratio * (1 - ratio) / draws)


@pytest.mark.parametrize("copier", [copy.deepcopy, pickled, saved])
def test_copy_drops_on_its_own(network: Network, copier: Copier) -> None:
    model, images = network
    plan = apply(model, images)
    model(images)
    twin = copier(model)
    assert [type(module) for module in twin.modules()] == [type(module) for module in model.modules()]
    counts = [state.counts.tolist() for state in plan.states]
    assert [attention.dropkey.counts.tolist() for attention in attentions(twin)] == counts
    dropping = output_at_seed(twin, images)
    assert not torch.equal(output_at_seed(twin, images, seed=8), dropping)
    assert [state.counts.tolist() for state in plan.states] == counts
    assert torch.equal(output_at_seed(model, images), dropping)
    plan.set_ratios([0.9] * len(plan.layers))
    assert not torch.equal(output_at_seed(model, images), dropping)
    assert torch.equal(output_at_seed(twin, images), dropping)
    plan.enabled = False
    assert torch.equal(output_at_seed(twin, images), dropping)
    plan.remove()
    assert torch.equal(output_at_seed(twin, images), dropping)
    assert torch.equal(output_at_seed(twin.eval(), images), output_at_seed(model.eval(), images))


@pytest.mark.parametrize("copier", [copy.deepcopy, pickled])
def test_copy_of_compiled_attention_uses_its_own_weights(network: Network, copier: Copier) -> None:
    model, images = network
    apply(model, images)
    expected = output_at_seed(model, images)
    for attention in attentions(model):
        attention.compile(backend="eager")
    output_at_seed(model, images)
    twin = copier(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    assert torch.equal(output_at_seed(twin, images), expected)


@pytest.mark.parametrize("average", [ModelEmaV3, AveragedModel])
def test_averaged_copy_uses_its_own_weights(network: Network, average: Callable[[nn.Module], Any]) -> None:
    model, images = network
    apply(model, images)
    plain, dropping = output_at_seed(model.eval(), images), output_at_seed(model.train(), images)
    averaged = average(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    assert torch.equal(output_at_seed(averaged.module.train(), images), dropping)
    assert torch.equal(output_at_seed(averaged.module.eval(), images), plain)


@pytest.mark.parametrize("average", [ModelEmaV3, lambda model: AveragedModel(model, use_buffers=True)], ids=["ema", "swa"])
def test_averaging_leaves_ratio_and_counts_alone(network: Network, average: Callable[[nn.Module], Any]) -> None:
    model, images = network
    apply(model, images)
    averaged = average(model)
    model(images)
    for _ in range(2):
        averaged.update(model) if isinstance(averaged, ModelEmaV3) else averaged.update_parameters(model)
    states = [attention.dropkey for attention in attentions(averaged)]
    assert [state.counts.tolist() for state in states] == [[0, 0]] * len(states)
    assert {state.counts.dtype for state in states} == {torch.int64}
    assert {float(state.ratio) for state in states} == {float(torch.tensor(0.4))}


def test_second_application_is_refused_wherever_the_first_one_reached(network: Network) -> None:
    model, images = network
    plan = apply(model, images)
    block = model.get_submodule(plan.layers[0].name.rpartition(".")[0])
    twin = copy.deepcopy(model)
    for patched in (model, block, nn.Sequential(model)):
        with pytest.raises(InputError, match=rf"{type(patched).__name__} has DropKey already: call plan\.remove\(\)"):
            apply(patched, images)
    with pytest.raises(InputError, match=r"has DropKey already: .* copy, which has no plan of its own, copy the model before"):
        apply(twin, images)


def test_models_of_one_class_are_independent(network: Network) -> None:
    first, images = network
    second, plain = copy.deepcopy(first), copy.deepcopy(first)
    expected = output_at_seed(plain, images)
    plan = apply(first, images)
    assert torch.equal(output_at_seed(second, images), expected)
    other = apply(second, images, ratio=0.8)
    dropping = output_at_seed(second, images)
    counts = [state.counts.tolist() for state in other.states]
    plan.set_ratios([0.1] * len(plan.layers))
    plan.enabled = False
    first(images)
    plan.remove()
    assert [state.counts.tolist() for state in other.states] == counts
    assert torch.equal(output_at_seed(second, images), dropping)
    assert torch.equal(output_at_seed(first, images), expected)
    assert torch.equal(output_at_seed(plain, images), expected)


def test_weights_go_from_patched_to_plain_and_back(network: Network, tmp_path: Path) -> None:
    model, images = network
    plain = copy.deepcopy(model)
    apply(model, images)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert list(weights) == list(plain.state_dict())
    plain.load_state_dict(weights)
    assert torch.equal(plain.eval()(images), model.eval()(images))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(0.5)
    model.load_state_dict(plain.state_dict())
    assert torch.equal(plain(images), model(images))
    assert len(list(model.modules())) == len(list(plain.modules()))


def test_functional_call_drops_with_the_given_parameters(network: Network) -> None:
    model, images = network
    apply(model, images)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    torch.manual_seed(7)
    output = functional_call(model, dict(twin.named_parameters()), (images,))
    assert torch.equal(output, output_at_seed(twin, images))
    assert not torch.equal(output, output_at_seed(model, images))


def test_hooks_see_every_forward_and_no_other(network: Network) -> None:
    model, images = network
    expected = output_at_seed(copy.deepcopy(model), images)
    name = next(name for name, module in model.named_modules() if name.endswith("attn"))
    seen: list[tuple[str, Any]] = []
    attention = model.get_submodule(name)
    attention.register_forward_pre_hook(lambda *call: seen.append(("before, pre", call[1][0])))
    attention.register_forward_hook(lambda *call: seen.append(("before", call[2])))
    plan = apply(model, images)
    attention.register_forward_hook(lambda *call: seen.append(("after", call[2])))
    attention.register_full_backward_hook(lambda *call: seen.append(("backward", call[2][0])))
    model(images).sum().backward()
    assert [who for who, _ in seen] == ["before, pre", "before", "after", "backward"]
    assert all(tensor.device == images.device for _, tensor in seen)
    assert plan.states[0].counts[1] > 0
    plan.remove()
    seen.clear()
    assert torch.equal(output_at_seed(model, images), expected)
    assert [who for who, _ in seen] == ["before, pre", "before", "after"]


def test_forward_put_on_the_instance_may_call_the_one_with_dropkey(network: Network) -> None:
    # What HF accelerate does to each module. The mode in which the old forward is fetched must not matter.
    model, images = network
    apply(model, images)
    plain, dropping = output_at_seed(model.eval(), images), output_at_seed(model.train(), images)
    for training in (False, True):
        for attention in attentions(model.train(training)):
            attention.forward = attention.forward
    assert torch.equal(output_at_seed(model.train(), images), dropping)
    assert torch.equal(output_at_seed(model.eval(), images), plain)


def test_parametrized_attention_drops_and_is_not_stripped() -> None:
    model: Any = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, embed_dim=12, depths=(1, 1), num_heads=(3, 6))
    images = torch.randn(2, 3, 56, 56)
    plan = apply(model.train(), images)
    dropping = output_at_seed(model, images)
    attention = model.layers[0].blocks[0].attn
    parametrize.register_parametrization(attention, "relative_position_bias_table", nn.Identity())
    assert torch.equal(output_at_seed(model, images), dropping)
    assert torch.equal(output_at_seed(copy.deepcopy(model), images), dropping)
    with pytest.raises(RuntimeError, match="Serialization of parametrized modules is only supported through state_dict"):
        pickle.dumps(model)
    with pytest.raises(InputError, match=r"ParametrizedWindowAttention lies over .* call plan\.remove\(\) before"):
        plan.remove()
    assert torch.equal(output_at_seed(model, images), dropping)
    assert len(plan.layers) == 2
    parametrize.remove_parametrizations(attention, "relative_position_bias_table")
    plan.remove()
    assert attentions(model) == []


def test_channels_last_trains_as_contiguous(network: Network) -> None:
    assert_trains_alike_in_channels_last(*network)


def test_channels_last_trains_as_contiguous_with_attention_on_maps() -> None:
    model = timm.create_model("test_coatnet", img_size=64, num_classes=5).train()
    assert_trains_alike_in_channels_last(model, torch.randn(2, 3, 64, 64))


def assert_trains_alike_in_channels_last(model: nn.Module, images: Tensor) -> None:
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    laid_out = images.to(memory_format=torch.channels_last)
    plan = apply(model, images)
    apply(twin, laid_out)
    assert torch.allclose(output_at_seed(twin, laid_out), output_at_seed(model, images), atol=1e-5)
    ours, theirs = (
        torch.cat([gradient.flatten() for gradient in gradients_at_seed(*network)])
        for network in [(twin, laid_out), (model, images)]
    )
    assert torch.allclose(ours, theirs, atol=1e-5 * float(theirs.abs().max()))
    assert_shares_are_right(plan)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_trains_finitely_with_the_right_share(network: Network, dtype: torch.dtype) -> None:
    model, images = network
    plain = copy.deepcopy(model)
    plan = apply(model, images)
    with torch.autocast("cpu", dtype=dtype):
        output = model(images)
        output.square().sum().backward()
    assert output.dtype == dtype
    assert output.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert_shares_are_right(plan)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(model.eval()(images), plain.eval()(images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_model_trains_finitely_and_counts_exactly(network: Network, dtype: torch.dtype) -> None:
    model, images = network
    plan = apply(model, images)
    model(images)
    once = [int(state.counts[1]) for state in plan.states]
    model.to(dtype)
    for seed in range(10):
        assert all(gradient.isfinite().all() for gradient in gradients_at_seed(model, images.to(dtype), seed))
    assert [int(state.counts[1]) for state in plan.states] == [11 * draws for draws in once]
    assert_shares_are_right(plan)


def test_ratio_and_counts_survive_other_dtypes_and_the_meta_device(network: Network) -> None:
    model, images = network
    state = apply(model, images).states[0]
    model(images)
    expected = (float(state.ratio), state.counts.tolist())
    moves: list[Callable[[], object]] = [
        lambda: model.to(torch.bfloat16),
        lambda: model.half(),
        lambda: model.double(),
        lambda: model.to("meta"),
        lambda: model.to_empty(device="cpu"),
        lambda: model.float(),
    ]
    for move in moves:
        move()
        assert (float(state.ratio), state.counts.tolist()) == expected
        assert (state.ratio.dtype, state.counts.dtype) == (torch.float32, torch.int64)
        assert state.counts.device.type == "cpu"


def test_model_born_on_the_meta_device_drops_after_it_got_memory() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5).train()
    images = torch.randn(2, 3, 32, 32)
    plan = apply(model, images)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.normal_()
    model(images)
    assert plan.states[0].counts[1] > 0
