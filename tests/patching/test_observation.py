from typing import Any

import pytest
import timm
import torch
from timm.utils.attention_extract import AttentionExtract
from torch import Tensor, nn

from dropkey_cli.method.mask import dropkey_mask, seed_tensor
from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import DropKeyPlan, apply_dropkey
from dropkey_cli.patching.selection import AttentionLayer
from tests.patching.seeded import Network, output_at_seed

SETTINGS = DropKeySettings(ratio=0.3, schedule="constant")


def set_fused(model: nn.Module, *, fused: bool) -> None:
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused  # type: ignore[assignment]  # timm's switch


def calls(plan: DropKeyPlan, model: nn.Module, images: Tensor) -> list[Tensor]:
    """The weights of every call at one seed, by layer."""
    with plan.recording() as attention:
        output_at_seed(model, images)
    return [weights for layer in plan.layers for weights in attention[layer.name]]


@pytest.mark.parametrize("fused", [True, False])
def test_weights_are_those_that_timm_extracts(network: Network, fused: bool) -> None:
    model, images = network
    model.eval()
    set_fused(model, fused=False)  # a fused call has no weights that timm could extract
    expected = AttentionExtract(model, method="hook")(images)
    set_fused(model, fused=fused)
    plan = apply_dropkey(model, SETTINGS)
    found = calls(plan, model, images)
    assert len(found) == len(expected) == len(plan.layers)
    for weights, other in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(weights, other)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("mode", ["eval", "sampling", "training"])
def test_outputs_and_counts_stay_bitwise_the_same(network: Network, fused: bool, mode: str) -> None:
    model, images = network
    set_fused(model, fused=fused)
    plan = apply_dropkey(model, SETTINGS)
    model.train(mode == "training")
    outputs, counts = [], []
    for recorded in (False, True, False):
        for state in plan.states:
            state.clear()
            state.sampling = mode == "sampling"
        outputs.append(output_at_seed(model, images) if not recorded else recorded_output(plan, model, images))
        counts.append([state.counts.tolist() for state in plan.states])
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert counts[0] == counts[1] == counts[2]
    assert (counts[0][0][1] > 0) == (mode != "eval")
    assert all(state.observe is None for state in plan.states)


def recorded_output(plan: DropKeyPlan, model: nn.Module, images: Tensor) -> Tensor:
    with plan.recording() as attention:
        output = output_at_seed(model, images)
    assert all(len(found) == 1 for found in attention.values())
    return output


@pytest.mark.parametrize("fused", [True, False])
def test_weights_are_zero_exactly_where_keys_were_dropped(network: Network, fused: bool) -> None:
    model, images = network
    model.eval()
    set_fused(model, fused=fused)
    plan = apply_dropkey(model, SETTINGS)
    whole = calls(plan, model, images)
    with plan.sampling():
        dropped = calls(plan, model, images)
    for state, layer, before, after in zip(plan.states, plan.layers, whole, dropped, strict=True):
        forbidden = int((before < 1e-30).sum())  # by shifted windows
        zeros = int((after < 1e-30).sum())
        assert zeros > 0.25 * after.numel()
        if forbidden == 0:
            assert zeros == state.counts[0], layer.name
        assert torch.allclose(after.sum(-1)[after.sum(-1) > 0], torch.ones(()))


def test_fused_and_unfused_calls_show_the_same_weights_under_one_mask(network: Network) -> None:
    model, images = network
    model.eval()
    plan = apply_dropkey(model, SETTINGS)
    found = []
    for fused in (True, False):
        set_fused(model, fused=fused)
        with plan.sampling():
            found.append(calls(plan, model, images))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_a_fused_call_are_at_least_float32(dtype: torch.dtype) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24).eval()
    plan = apply_dropkey(model, SETTINGS)
    model.to(dtype)
    (weights,) = calls(plan, model, torch.randn(2, 3, 32, 32, dtype=dtype))
    assert weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_weights_under_autocast_are_float32() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24).eval()
    plan = apply_dropkey(model, SETTINGS)
    with torch.autocast("cpu", torch.bfloat16):
        (weights,) = calls(plan, model, torch.randn(2, 3, 32, 32))
    assert float((weights.sum(-1) - 1).abs().max()) < 1e-6


def test_multi_head_attention_shows_each_head() -> None:
    layer = nn.TransformerEncoderLayer(12, 3, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    tokens = torch.randn(2, 5, 12)
    plan = apply_dropkey(model, SETTINGS, example_inputs=(tokens,))
    found = calls(plan, model, tokens)
    first = model.layers[0].self_attn
    with torch.no_grad():
        _, expected = first(tokens, tokens, tokens, average_attn_weights=False)
    assert found[0].shape == (2, 3, 5, 5)
    torch.testing.assert_close(found[0], expected)
    with plan.sampling():
        dropped = calls(plan, model, tokens)
    assert int((dropped[0] == 0).sum()) == plan.states[0].counts[0] > 0


def test_the_mask_shown_is_that_of_the_call() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, embed_dim=24).eval()
    plan = apply_dropkey(model, SETTINGS)
    with plan.sampling():
        (weights,) = calls(plan, model, torch.randn(2, 3, 32, 32))
    torch.manual_seed(7)
    seed = seed_tensor(None, torch.device("cpu"))  # drawn as the layer does
    assert torch.equal(weights == 0, dropkey_mask(seed, tuple(weights.shape), 0.3))


def test_a_reduction_keeps_what_it_returns() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=24).eval()
    plan = apply_dropkey(model, SETTINGS)

    def entropy(layer: AttentionLayer, weights: Tensor) -> tuple[str, list[float]]:
        return layer.name, torch.special.entr(weights).sum(-1).mean((0, 2)).tolist()

    with plan.recording(entropy) as kept:
        model(torch.randn(2, 3, 32, 32))
    assert [name for [(name, _)] in kept.values()] == ["blocks.0.attn", "blocks.1.attn"]
    assert all(len(per_head) == 3 for [(_, per_head)] in kept.values())


def test_a_compiled_model_is_recorded_and_stays_compiled() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24).eval()
    plan = apply_dropkey(model, SETTINGS)
    graphs = 0

    def count(graph: Any, _: object) -> Any:  # noqa: ANN401 - dynamo's
        nonlocal graphs
        graphs += 1
        return graph

    model.compile(backend=count, fullgraph=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        with plan.recording() as attention:
            assert torch.equal(model(images), expected)
        model(images)
    assert [len(found) for found in attention.values()] == [1]
    assert graphs == 1
