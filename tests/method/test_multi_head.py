import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dropkey_cli.errors import InputError
from dropkey_cli.method.mask import KeyLayout, dropkey_mask
from dropkey_cli.method.multi_head import dropkey_multi_head_attention_forward
from dropkey_cli.method.settings import Structure

SEED = 42
BATCH, HEADS, QUERIES, KEYS, CHANNELS = 2, 2, 5, 7, 6


@dataclass(frozen=True)
class Case:
    """One way to call multi-head attention.

    Args:
        module: Arguments of `nn.MultiheadAttention`, which holds the weights.
        attn_mask: Axes and type of this mask.
        padding: Type of the key padding mask.
        is_self: Queries are the keys.
        batched: Inputs have a batch axis.
        static: Keys and values come ready-made.
    """

    module: dict[str, Any] = field(default_factory=dict)
    attn_mask: str = ""
    padding: str = ""
    is_self: bool = False
    batched: bool = True
    static: bool = False
    is_causal: bool = False

    @property
    def num_keys(self) -> int:
        keys = QUERIES if self.is_self else KEYS
        return keys + sum(name in self.module for name in ("add_bias_kv", "add_zero_attn"))

    @property
    def mask_shape(self) -> tuple[int, int, int, int]:
        return (BATCH if self.batched else 1, HEADS, QUERIES, self.num_keys)

    def build(self, dtype: torch.dtype = torch.float64) -> nn.MultiheadAttention:
        module = nn.MultiheadAttention(CHANNELS, HEADS, **self.module)
        for parameter in module.parameters():
            nn.init.normal_(parameter)  # torch starts from biases of 0, which hide what is done with them
        return module.to(dtype)

    def inputs(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """The tensors of the call by name."""
        batch = (BATCH,) if self.batched else ()
        query = torch.randn(QUERIES, *batch, CHANNELS)
        key = query if self.is_self else torch.randn(KEYS, *batch, self.module.get("kdim", CHANNELS))
        value = key if self.is_self else torch.randn(KEYS, *batch, self.module.get("vdim", CHANNELS))
        inputs = {"query": query, "key": key, "value": value}
        axes, _, kind = self.attn_mask.partition(" ")
        leading = (math.prod(batch) * HEADS,) if axes == "3-D" else ()
        if self.is_causal:
            inputs["attn_mask"] = torch.ones(QUERIES, len(key), dtype=torch.bool).triu(1)
        elif self.attn_mask:
            inputs["attn_mask"] = a_mask((*leading, QUERIES, len(key)), kind)
        if self.padding:
            inputs["key_padding_mask"] = a_mask((*batch, len(key)), self.padding)
        if self.static:
            inputs |= {
                name: torch.randn(math.prod(batch) * HEADS, KEYS, CHANNELS // HEADS) for name in ("static_k", "static_v")
            }
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}


def a_mask(shape: tuple[int, ...], kind: str) -> Tensor:
    """Boolean with True = forbidden, or added to the logits."""
    return torch.rand(shape) < 0.3 if kind == "bool" else 2 * torch.randn(shape)


CASES = {
    "self": Case(is_self=True),
    "cross": Case(),
    "self, causal": Case(is_self=True, is_causal=True),
    "causal, padding": Case(is_causal=True, padding="bool"),
    "2-D bool mask": Case(attn_mask="2-D bool"),
    "2-D float mask": Case(attn_mask="2-D float"),
    "3-D bool mask": Case(attn_mask="3-D bool"),
    "3-D float mask": Case(attn_mask="3-D float"),
    "bool padding": Case(padding="bool"),
    "float padding": Case(padding="float"),
    "2-D bool mask, bool padding": Case(attn_mask="2-D bool", padding="bool"),
    "3-D float mask, float padding": Case(attn_mask="3-D float", padding="float"),
    "bias_k": Case({"add_bias_kv": True}),
    "add_zero_attn": Case({"add_zero_attn": True}),
    "bias_k, add_zero_attn, masks": Case({"add_bias_kv": True, "add_zero_attn": True}, attn_mask="2-D bool", padding="bool"),
    "no biases": Case({"bias": False}),
    "kdim, vdim": Case({"kdim": 3, "vdim": 4}),
    "kdim, bias_k, padding": Case({"kdim": 3, "add_bias_kv": True}, padding="bool"),
    "unbatched": Case(batched=False),
    "unbatched, masks": Case(batched=False, attn_mask="3-D float", padding="float"),
    "static": Case(static=True),
    "static, masks": Case(static=True, attn_mask="3-D bool", padding="bool"),
}
ALL_CASES = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
NEED_WEIGHTS = pytest.mark.parametrize("need_weights", [False, True])


def call(function: Callable[..., Any], module: nn.MultiheadAttention, tensors: dict[str, Tensor], **options: object) -> Any:  # noqa: ANN401
    """``function`` with the parameters of ``module``, as its forward passes them."""
    return function(
        tensors["query"], tensors["key"], tensors["value"], module.embed_dim, module.num_heads, module.in_proj_weight,
        module.in_proj_bias, module.bias_k, module.bias_v, module.add_zero_attn, module.dropout, module.out_proj.weight,
        module.out_proj.bias, training=module.training, use_separate_proj_weight=not module._qkv_same_embed_dim,
        q_proj_weight=module.q_proj_weight, k_proj_weight=module.k_proj_weight, v_proj_weight=module.v_proj_weight,
        **{name: tensor for name, tensor in tensors.items() if name not in ("query", "key", "value")}, **options,
    )  # fmt: skip


def ours(module: nn.MultiheadAttention, tensors: dict[str, Tensor], ratio: float = 0.4, **options: object) -> Any:  # noqa: ANN401
    options = {"seed": SEED, "ratio": ratio} | options
    return call(dropkey_multi_head_attention_forward, module, tensors, **options)


def oracle(module: nn.MultiheadAttention, tensors: dict[str, Tensor], dropped: Tensor) -> tuple[Tensor, Tensor]:
    """Output and weights per head, one sample, head and query after the other, over the keys that are left."""
    query, key, value = (tensors[name] if dropped.shape[0] > 1 else tensors[name].view(-1, 1, tensors[name].shape[-1])
                         for name in ("query", "key", "value"))  # fmt: skip
    samples, heads, queries, _ = dropped.shape
    size = CHANNELS // heads
    outputs, weights = torch.zeros(queries, samples, CHANNELS, dtype=torch.float64), torch.zeros(dropped.shape).double()
    for sample in range(samples):
        q, k, v = projected(module, query[:, sample], key[:, sample], value[:, sample])
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            static = sample * heads + head
            head_k = tensors["static_k"][static] if "static_k" in tensors else k[:, part]
            head_v = tensors["static_v"][static] if "static_v" in tensors else v[:, part]
            bias, forbidden = mask_of(tensors, sample, head, dropped)
            for row in range(queries):
                left = ~(forbidden[row] | dropped[sample, head, row])
                if not left.any():
                    continue
                logits = head_k[left] @ q[row, part] / math.sqrt(size) + bias[row, left]
                shares = logits.exp() / logits.exp().sum()
                weights[sample, head, row, left] = shares
                outputs[row, sample, part] = shares @ head_v[left]
    projected_outputs = outputs @ module.out_proj.weight.T
    return projected_outputs if module.out_proj.bias is None else projected_outputs + module.out_proj.bias, weights


def projected(module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """Queries (N, C), keys and values (S, C) of one sample, with the learned key, then the zero key, at the end."""
    if module.in_proj_weight is None:
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    else:
        weights = [module.in_proj_weight[i * CHANNELS : (i + 1) * CHANNELS] for i in range(3)]
    results = [tokens @ weight.T for tokens, weight in zip((query, key, value), weights, strict=True)]
    if module.in_proj_bias is not None:
        results = [tokens + module.in_proj_bias[i * CHANNELS : (i + 1) * CHANNELS] for i, tokens in enumerate(results)]
    for index, extra in ((1, module.bias_k), (2, module.bias_v)):
        if extra is not None:
            results[index] = torch.cat([results[index], extra[0]])
        if module.add_zero_attn:
            results[index] = torch.cat([results[index], torch.zeros(1, CHANNELS, dtype=torch.float64)])
    return results


def mask_of(tensors: dict[str, Tensor], sample: int, head: int, dropped: Tensor) -> tuple[Tensor, Tensor]:
    """What the two further masks add, and what they forbid, each (N, S); nothing for the keys at the end."""
    bias, forbidden = torch.zeros(dropped.shape[-2:]).double(), torch.zeros(dropped.shape[-2:], dtype=torch.bool)
    attn_mask, padding = tensors.get("attn_mask"), tensors.get("key_padding_mask")
    if attn_mask is not None and attn_mask.dim() == 3:
        attn_mask = attn_mask[sample * dropped.shape[1] + head]
    if padding is not None and padding.dim() == 2:
        padding = padding[sample]
    for mask in (attn_mask, padding):
        if mask is not None and mask.dtype == torch.bool:
            forbidden[:, : mask.shape[-1]] |= mask
        elif mask is not None:
            bias[:, : mask.shape[-1]] += mask
    return bias, forbidden


def with_gradients(
    function: Callable[[dict[str, Tensor]], tuple[Tensor, ...]], module: nn.Module, tensors: dict[str, Tensor]
) -> list[Tensor]:
    """The results, and the gradients of a fixed random projection of them for all parameters and float inputs."""
    leaves = {name: tensor.clone().requires_grad_(tensor.is_floating_point()) for name, tensor in tensors.items()}
    results = function(leaves)
    generator = torch.Generator().manual_seed(3)
    loss = sum((result * torch.randn(result.shape, generator=generator, dtype=result.dtype)).sum() for result in results)
    sources = [*module.parameters(), *(leaf for leaf in leaves.values() if leaf.requires_grad)]
    gradients = torch.autograd.grad(loss, sources, allow_unused=True, materialize_grads=True)  # type: ignore[arg-type]
    return [result.detach() for result in results] + list(gradients)


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ratio", [0.4, 0.9])
@pytest.mark.parametrize("average", [False, True])
@ALL_CASES
def test_output_weights_and_gradients_equal_the_oracle(case: Case, average: bool, ratio: float) -> None:
    module, tensors = case.build(), case.inputs()
    dropped = dropkey_mask(SEED, case.mask_shape, ratio)
    options = {"average_attn_weights": average, "is_causal": case.is_causal}

    def expected(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        output, weights = oracle(module, tensors, dropped)
        weights = weights.mean(1) if average else weights
        return (output, weights) if case.batched else (output[:, 0], weights[0])

    assert_close(
        with_gradients(lambda x: ours(module, x, ratio, need_weights=True, **options), module, tensors),
        with_gradients(expected, module, tensors),
    )
    assert ours(module, tensors, ratio, need_weights=False, **options)[1] is None
    assert_close(
        with_gradients(lambda x: ours(module, x, ratio, need_weights=False, **options)[:1], module, tensors),
        with_gradients(lambda x: expected(x)[:1], module, tensors),
    )


@NEED_WEIGHTS
@pytest.mark.parametrize("name", [name for name in CASES if "bias_k" not in name and "add_zero_attn" not in name])
def test_torch_with_the_same_mask_gives_the_same(name: str, need_weights: bool) -> None:
    case = CASES[name]
    module, tensors = case.build(), case.inputs()
    dropped = dropkey_mask(SEED, case.mask_shape, 0.2)
    merged = torch.zeros(dropped.shape, dtype=torch.float64).masked_fill(dropped, -torch.inf)
    for sample in range(merged.shape[0]):
        for head in range(HEADS):
            bias, forbidden = mask_of(tensors, sample, head, dropped)
            merged[sample, head] += bias.masked_fill(forbidden, -torch.inf)
    unmasked = {name: tensor for name, tensor in tensors.items() if not name.endswith("mask")}
    output, weights = ours(module, tensors, 0.2, need_weights=need_weights, average_attn_weights=False)
    expected, expected_weights = call(
        F.multi_head_attention_forward, module, unmasked | {"attn_mask": merged.flatten(0, 1)},
        need_weights=need_weights, average_attn_weights=False,
    )  # fmt: skip
    nonempty = (merged > -torch.inf).any(-1)  # (B, H, N); torch gives NaN for the others when it gives weights
    tokens = nonempty.all(1).T if case.batched else nonempty[0].all(0)  # no head lost all keys
    assert tokens.any()
    assert torch.allclose(output[tokens], expected[tokens], rtol=1e-10, atol=1e-12)
    if need_weights:
        nonempty = nonempty if case.batched else nonempty[0]
        assert torch.allclose(weights[nonempty], expected_weights[nonempty], rtol=1e-10, atol=1e-12)


@NEED_WEIGHTS
@ALL_CASES
def test_ratio_0_is_torchs_function(case: Case, need_weights: bool) -> None:
    module, tensors = case.build(), case.inputs()
    module.dropout = 0.5
    counts = torch.zeros(2, dtype=torch.int64)
    results = []
    for function, options in ((dropkey_multi_head_attention_forward, {"ratio": 0.0, "counts": counts}),
                              (F.multi_head_attention_forward, {})):  # fmt: skip
        torch.manual_seed(1)
        results.append(call(function, module, tensors, need_weights=need_weights, is_causal=case.is_causal, **options))
    (output, weights), (expected, expected_weights) = results
    torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=0, equal_nan=True)
    assert counts.tolist() == [0, 0]


def test_takes_what_torchs_function_takes() -> None:
    theirs = inspect.signature(F.multi_head_attention_forward).parameters
    mine = inspect.signature(dropkey_multi_head_attention_forward).parameters
    assert {name: (p.default, p.kind) for name, p in mine.items() if name in theirs} == {
        name: (p.default, p.kind) for name, p in theirs.items()
    }
    assert list(mine)[: len(theirs)] == list(theirs)
    assert all(p.kind == inspect.Parameter.KEYWORD_ONLY for name, p in mine.items() if name not in theirs)


@pytest.mark.parametrize("ratio", [torch.tensor(0.4), 0.4], ids=["tensor", "number"])
def test_one_random_state_gives_one_mask_with_and_without_weights(ratio: float | Tensor) -> None:
    module, tensors = CASES["cross"].build(), CASES["cross"].inputs()
    outputs = []
    for seed, need_weights in [(1, False), (1, True), (2, True)]:
        torch.manual_seed(seed)
        outputs.append(call(dropkey_multi_head_attention_forward, module, tensors, ratio=ratio, need_weights=need_weights)[0])
    assert torch.allclose(outputs[0], outputs[1], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(outputs[0], outputs[2])


@pytest.mark.parametrize(
    ("structure", "layout"), [("element", None), ("key", None), ("block", KeyLayout(2, 3, 1, 2)), ("cross", KeyLayout(2, 3, 1))]
)
def test_weights_are_0_exactly_where_keys_are_dropped(structure: Structure, layout: KeyLayout | None) -> None:
    module, tensors = CASES["cross"].build(), CASES["cross"].inputs()
    options: dict[str, Any] = {"structure": structure, "layout": layout}
    output, weights = ours(module, tensors, need_weights=True, average_attn_weights=False, **options)
    assert torch.equal(weights == 0, dropkey_mask(SEED, CASES["cross"].mask_shape, 0.4, structure, layout))
    assert torch.allclose(ours(module, tensors, need_weights=False, **options)[0], output, rtol=1e-10, atol=1e-12)


@NEED_WEIGHTS
@pytest.mark.parametrize("name", ["cross", "bias_k, add_zero_attn, masks"])
def test_draws_are_counted(name: str, need_weights: bool) -> None:
    case = CASES[name]
    counts = torch.tensor([1000, 2000])
    ours(case.build(), case.inputs(), need_weights=need_weights, counts=counts)
    dropped = dropkey_mask(SEED, case.mask_shape, 0.4)
    assert counts.tolist() == [1000 + int(dropped.sum()), 2000 + dropped.numel()]


@NEED_WEIGHTS
@pytest.mark.parametrize("padding", ["", "bool", "float"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_query_without_keys_gives_0_and_gets_gradient_0(dtype: torch.dtype, padding: str, need_weights: bool) -> None:
    module = nn.MultiheadAttention(8, 1).to(dtype)  # one head: a token's output is that head's
    nn.init.normal_(module.out_proj.bias)
    query, key = torch.randn(20, 3, 8, dtype=dtype), torch.randn(6, 3, 8, dtype=dtype)
    tensors = {"query": query.requires_grad_(), "key": key, "value": key}
    lost = dropkey_mask(SEED, (3, 1, 20, 6), 0.8)[:, 0]
    if padding:
        mask = torch.rand(3, 6) < 0.3
        lost = lost | mask[:, None]
        tensors["key_padding_mask"] = mask if padding == "bool" else torch.zeros(mask.shape).masked_fill(mask, -torch.inf)
    output, weights = ours(module, tensors, 0.8, need_weights=need_weights)
    results = [output, weights] if need_weights else [output]
    sources = [query, *module.parameters()]
    gradients = torch.autograd.grad(sum(result.float().square().sum() for result in results), sources)
    empty = lost.all(-1).T  # (N, B)
    assert empty.any()
    assert not empty.all()
    assert (output[empty] == module.out_proj.bias).all()
    assert (gradients[0][empty] == 0).all()
    assert (gradients[0][~empty] != 0).any()
    assert not need_weights or (weights[lost] == 0).all()
    assert all(tensor.isfinite().all() for tensor in (*results, *gradients))


@NEED_WEIGHTS
@pytest.mark.parametrize("name", ["attn_mask", "key_padding_mask"])
@pytest.mark.parametrize("forbidden", [-1e4, torch.finfo(torch.float32).min])
def test_finitely_forbidden_keys_stay_forbidden(forbidden: float, name: str, need_weights: bool) -> None:
    case = Case()
    module, tensors = case.build(torch.float32), case.inputs(torch.float32)
    shape = (QUERIES, KEYS) if name == "attn_mask" else (BATCH, KEYS)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[..., 2:] = True
    assert dropkey_mask(SEED, case.mask_shape, 0.8)[..., :2].all(-1).any()  # queries that keep only forbidden keys
    finite = torch.zeros(shape).masked_fill(mask, forbidden)
    output, _ = ours(module, tensors | {name: finite}, 0.8, need_weights=need_weights)
    expected, _ = ours(module, tensors | {name: mask}, 0.8, need_weights=need_weights)
    assert torch.allclose(output, expected, atol=1e-6)


@NEED_WEIGHTS
def test_dropout_acts_after_the_softmax_in_training_only(need_weights: bool) -> None:
    module = nn.MultiheadAttention(1, 1, dropout=0.5, bias=False)
    for parameter in module.parameters():
        nn.init.ones_(parameter)
    ones = torch.ones(1, 100, 1)
    tensors = {"query": ones.expand(20, -1, -1), "key": ones, "value": ones}  # one key: the output is its weight
    for training, expected in [(True, {0.0, 2.0}), (False, {0.0, 1.0})]:
        output, _ = ours(module.train(training), tensors, need_weights=need_weights)
        assert set(output.unique().tolist()) == expected
        assert output.detach().mean() == pytest.approx(0.6, abs=0.1)


@NEED_WEIGHTS
def test_autocast_in_bfloat16_errs_no_more_than_torch(need_weights: bool) -> None:
    case = Case(attn_mask="2-D float", padding="float")
    module, tensors = case.build(torch.float32), case.inputs(torch.float32)
    exact_module = case.build().double()
    exact_module.load_state_dict(module.state_dict())
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = ours(module, tensors, need_weights=need_weights)
        plain, _ = call(F.multi_head_attention_forward, module, tensors, need_weights=need_weights)
    exact_output, _ = ours(exact_module, exact, need_weights=need_weights)
    exact_plain, _ = call(F.multi_head_attention_forward, exact_module, exact, need_weights=need_weights)
    assert output.dtype == torch.bfloat16
    assert error(output, exact_output) < 2 * max(error(plain, exact_plain), torch.finfo(torch.bfloat16).eps)


def error(result: Tensor, exact: Tensor) -> float:
    """Relative error as a root mean square."""
    return math.sqrt(F.mse_loss(result.double(), exact).item() / exact.square().mean().item())


@NEED_WEIGHTS
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("self, causal", "aot_eager"),
        ("unbatched, masks", "aot_eager"),
        ("bias_k, add_zero_attn, masks", "aot_eager"),
        pytest.param("bias_k, add_zero_attn, masks", "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiles_in_one_graph_to_the_same(name: str, backend: str, need_weights: bool) -> None:
    case = CASES[name]
    module, tensors = case.build(), case.inputs()

    def forward(tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        output, weights = ours(module, tensors, need_weights=need_weights, is_causal=case.is_causal)
        return (output, weights) if need_weights else (output,)

    compiled = torch.compile(forward, backend=backend, fullgraph=True)
    assert_close(with_gradients(compiled, module, tensors), with_gradients(forward, module, tensors))


def test_causal_hint_without_a_mask_is_refused() -> None:
    case = CASES["self"]
    with pytest.raises(InputError, match=r"is_causal=True without attn_mask"):
        ours(case.build(), case.inputs(), is_causal=True)
