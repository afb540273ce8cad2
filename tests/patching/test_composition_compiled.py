"""Patched models under torch.compile, activation checkpointing, torch.export, ONNX and torch.jit."""

import contextlib
import copy
import io
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import onnxruntime  # type: ignore[import-untyped]  # ships no types
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from dropkey_cli.method.settings import DropKeySettings
from dropkey_cli.patching.apply import DropKeyPlan, apply_dropkey
from dropkey_cli.tasks.features import pooled_features
from tests.patching.seeded import Network, gradients_at_seed, output_at_seed

# Compiles the parts of a checkpoint in one graph: dynamo may then leave out replaying the function mode in the backward pass.
ONE_GRAPH = torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True)
# aot_eager draws the seeds that eager draws, so that its results can be compared; inductor has random numbers of its own.
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
# Dynamo asks its inputs for .grad when only a part of the network is compiled.
part_compiled = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def forget_compiled_code() -> None:
    torch._dynamo.reset()


def apply(model: nn.Module, images: Tensor, ratio: float = 0.4, **options: Any) -> DropKeyPlan:  # noqa: ANN401 - settings
    settings = DropKeySettings(ratio=ratio, schedule="constant", **options)
    return apply_dropkey(model, settings, example_inputs=(images,))


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


class SoftmaxProbe(nn.Module):
    """Gives its weights: what is 0 in them was dropped; its gradient is 0 where the backward pass dropped."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)


class SdpaProbe(nn.Module):
    """As `SoftmaxProbe`, by SDPA: with identity keys and values, queries are logits and outputs are weights."""

    def forward(self, logits: Tensor) -> Tensor:
        eye = torch.eye(logits.shape[-1], device=logits.device).expand(*logits.shape[:2], -1, -1)
        return F.scaled_dot_product_attention(logits, eye, eye)


class Checkpointed(nn.Module):
    """Recomputes its probe in the backward pass."""

    def __init__(self, probe: nn.Module) -> None:
        super().__init__()
        self.probe = probe

    def forward(self, logits: Tensor) -> Tensor:
        weights: Tensor = checkpoint(self.probe, logits, use_reentrant=False)
        return weights


def assert_backward_uses_the_mask_of_the_forward(model: nn.Module) -> None:
    logits = torch.randn(2, 3, 40, 40, requires_grad=True)
    weights = model(logits)
    (gradient,) = torch.autograd.grad((weights * torch.randn_like(weights)).sum(), logits)
    assert torch.equal(gradient == 0, weights == 0)
    assert abs((weights == 0).float().mean() - 0.3) < 5 * math.sqrt(0.21 / weights.numel())


def assert_twice(plan: DropKeyPlan, counts: list[list[int]]) -> None:
    """The same masks were drawn and counted once again."""
    assert [state.counts.tolist() for state in plan.states] == [[2 * count for count in layer] for layer in counts]


def test_checkpointing_gives_bitwise_the_same_gradients_and_counts(network: Network) -> None:
    model, images = network
    plan = apply(model, images)
    expected, counts = gradients_at_seed(model, images), [state.counts.tolist() for state in plan.states]
    model.set_grad_checkpointing()
    assert_equal(gradients_at_seed(model, images), expected)
    assert_twice(plan, counts)


def test_compiled_network_is_one_graph_with_the_gradients_of_eager(network: Network) -> None:
    model, images = network
    plan = apply(model, images)
    expected, counts = gradients_at_seed(model, images), [state.counts.tolist() for state in plan.states]
    model.compile(backend="aot_eager", fullgraph=True)
    assert_equal(gradients_at_seed(model, images), expected)
    assert_twice(plan, counts)
    assert torch.equal(output_at_seed(model.eval(), images), output_at_seed(copy.deepcopy(model), images))


@pytest.mark.slow
def test_network_trains_under_inductor(network: Network) -> None:
    model, images = network
    plan = apply(model, images)
    model.compile(fullgraph=True)
    model(images).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    for state in plan.states:
        dropped, draws = state.counts.tolist()
        assert abs(dropped / draws - 0.4) < 5 * math.sqrt(0.24 / draws)
    plain = copy.deepcopy(model.eval())
    assert torch.allclose(output_at_seed(model, images), output_at_seed(plain, images), atol=1e-5)


@part_compiled
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("probe", [SoftmaxProbe, SdpaProbe])
def test_compiled_part_in_an_eager_checkpoint_recomputes_its_mask(probe: type[nn.Module], backend: str) -> None:
    model = Checkpointed(probe()).train()
    plan = apply(model, torch.zeros(2, 3, 40, 40), 0.3, include=["*Probe"])
    model.probe.compile(backend=backend, fullgraph=True)
    assert_backward_uses_the_mask_of_the_forward(model)
    assert plan.states[0].counts[1] == 2 * 3 * 40 * 40  # the recomputation, by the same compiled code, does not count


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("probe", [SoftmaxProbe, SdpaProbe])
def test_compiled_checkpoint_recomputes_its_mask(probe: type[nn.Module], backend: str) -> None:
    model = Checkpointed(probe()).train()
    plan = apply(model, torch.zeros(2, 3, 40, 40), 0.3, include=["*Probe"])
    with ONE_GRAPH:
        model.compile(backend=backend, fullgraph=True)
        assert_backward_uses_the_mask_of_the_forward(model)
    assert plan.states[0].counts[1] == 2 * 3 * 40 * 40  # the recomputation does not count again


@part_compiled
def test_compiled_checkpoint_falls_back_to_eager_without_the_switch() -> None:
    model = Checkpointed(SdpaProbe()).train()
    plan = apply(model, torch.zeros(2, 3, 40, 40), 0.3, include=["*Probe"])
    model.compile(backend="aot_eager")
    assert_backward_uses_the_mask_of_the_forward(model)
    assert plan.states[0].counts[1] == 2 * 3 * 40 * 40


@part_compiled
def test_blocks_compiled_in_eager_checkpoints_give_the_gradients_of_eager() -> None:
    model: Any = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24).train()
    images = torch.randn(2, 3, 32, 32)
    plan = apply(model, images)
    expected, counts = gradients_at_seed(model, images), [state.counts.tolist() for state in plan.states]
    model.set_grad_checkpointing()
    for block in model.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    assert_equal(gradients_at_seed(model, images), expected)
    assert_twice(plan, counts)


@pytest.mark.slow
def test_compiled_checkpointing_network_is_one_graph_with_the_gradients_of_eager(network: Network) -> None:
    model, images = network
    plan = apply(model, images)
    expected, counts = gradients_at_seed(model, images), [state.counts.tolist() for state in plan.states]
    model.set_grad_checkpointing()
    with ONE_GRAPH:
        model.compile(backend="aot_eager", fullgraph=True)
        assert_equal(gradients_at_seed(model, images), expected)
    assert_twice(plan, counts)


def test_new_ratios_compile_nothing_anew() -> None:
    model = nn.Sequential(SoftmaxProbe(), SdpaProbe())
    logits = torch.zeros(2, 3, 40, 40)
    plan = apply(model, logits, include=["*Probe"])
    counter = CompileCounter()
    model.compile(backend=counter, fullgraph=True)
    observed = []
    ratios = [0.4, 0.1, 0.25, 0.7, 0.33, 0.05, 0.9, 0.01, 0.5, 0.62, 0.15, 0.8]
    for ratio in ratios:
        plan.set_ratios([ratio, ratio])
        before = plan.states[0].counts.clone()
        model(logits)
        dropped, draws = (plan.states[0].counts - before).tolist()
        observed.append(dropped / draws)
    assert counter.frame_count == 1
    assert observed == pytest.approx(ratios, abs=0.03)


def test_compiled_model_follows_its_switches() -> None:
    model = nn.Sequential(SoftmaxProbe())
    logits = torch.zeros(2, 3, 40, 40)
    plan = apply(model, logits, include=["*Probe"])
    model.compile(backend="eager", fullgraph=True)
    draws = []
    contexts: list[Callable[[], AbstractContextManager[None]]] = [contextlib.nullcontext, plan.sampling]
    for training in (True, False):
        for context in contexts:
            for plan.enabled in (True, False):
                model.train(training)
                before = int(plan.states[0].counts[1])
                with context():
                    model(logits)
                draws.append(int(plan.states[0].counts[1]) > before)
    assert draws == [True, False, True, False, False, False, True, False]
    plan.remove()
    assert torch.equal(model.train()(logits), logits.softmax(-1))


def test_compiled_model_can_get_dropkey(network: Network) -> None:
    model, images = network
    patched = copy.deepcopy(model)
    apply(patched, images)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled: Any = torch.compile(model, backend=backend, fullgraph=True)
    output_at_seed(compiled, images)
    plan = apply(compiled, images)
    assert len(graphs) == 1  # finding its layers compiles nothing
    assert all(layer.name.startswith("_orig_mod.") for layer in plan.layers)
    assert torch.equal(output_at_seed(compiled, images), output_at_seed(patched, images))
    assert len(graphs) == 2


def bytes_of(exported: torch.export.ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    return buffer.getvalue()


def assert_no_trace_of_dropkey(data: bytes) -> None:
    # The folders in which timm and torch lie stand in stack traces, and may be called anything.
    for file in (timm.__file__, torch.__file__):
        data = data.replace(str(Path(file).parent).encode(), b"")
    assert data.lower().count(b"dropkey") == 0


@pytest.mark.parametrize("strict", [False, True])
def test_exported_program_computes_as_eager_and_bears_no_trace(network: Network, strict: bool) -> None:
    model, images = network
    plan = apply(model, images)
    dropping, expected = output_at_seed(model, images), output_at_seed(model.eval(), images)
    exported = torch.export.export(model, (images,), strict=strict)
    assert torch.equal(exported.module()(images), expected)
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace" if strict else "", None)  # strict export writes down every file it went through
        assert_no_trace_of_dropkey(f"{node.format_node()} {node.meta}".encode())
    saved = bytes_of(exported)
    assert b"WindowAttention" in saved or b"timm.layers.attention.Attention" in saved
    assert_no_trace_of_dropkey(saved)
    assert torch.equal(torch.export.load(io.BytesIO(saved)).module()(images), expected)
    assert plan.enabled
    assert torch.equal(output_at_seed(model, images), expected)
    assert torch.equal(output_at_seed(model.train(), images), dropping)


def test_averaged_copy_exports_without_a_trace(network: Network) -> None:
    # It has no plan, so that nobody could remove DropKey from it before exporting.
    model, images = network
    apply(model, images)
    averaged = ModelEmaV3(model).module.eval()
    assert_no_trace_of_dropkey(bytes_of(torch.export.export(averaged, (images,))))


def test_onnx_file_computes_as_eager_and_bears_no_trace(network: Network, tmp_path: Path) -> None:
    model, images = network
    plan = apply(model, images)
    dropping, expected = output_at_seed(model, images), output_at_seed(model.eval(), images)
    file = tmp_path / "model.onnx"
    torch.onnx.export(model, (images,), file, input_names=["image"], dynamo=True, external_data=False, verbose=False)
    assert_no_trace_of_dropkey(file.read_bytes())
    (output,) = onnxruntime.InferenceSession(file).run(None, {"image": images.numpy()})
    assert torch.allclose(torch.from_numpy(output), expected, atol=1e-5)
    assert plan.enabled
    assert torch.equal(output_at_seed(model.train(), images), dropping)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # still used, and told to go on using torch.export
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # swin checks its image size
def test_traced_model_computes_as_eager_and_bears_no_trace(network: Network) -> None:
    model, images = network
    apply(model, images)
    expected = output_at_seed(model.eval(), images)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, images), buffer)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert_no_trace_of_dropkey(buffer.getvalue())
    buffer.seek(0)
    loaded = torch.jit.load(buffer)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert torch.equal(output_at_seed(loaded, images), expected)


def test_compiled_model_samples_by_image() -> None:
    torch.manual_seed(2)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24).eval()
    images = torch.randn(4, 3, 32, 32)
    plan = apply(model, images)

    def sampled(numbers: list[int]) -> Tensor:
        with plan.sampling(torch.tensor(numbers)), pooled_features(model) as features:
            logits = output_at_seed(model, images)
        return torch.cat([logits, features[0].detach()], 1)

    expected = [sampled(numbers) for numbers in ([0, 1, 2, 3], [4, 5, 6, 7])]
    model.compile(backend="aot_eager", fullgraph=True)
    for eager, numbers in zip(expected, ([0, 1, 2, 3], [4, 5, 6, 7]), strict=True):
        torch.testing.assert_close(sampled(numbers), eager)
