import functools
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dropkey_cli.errors import InputError
from dropkey_cli.method import backends
from dropkey_cli.method.attention import dropkey_attention
from dropkey_cli.method.mask import dropkey_mask
from dropkey_cli.method.settings import Structure
from dropkey_cli.method.softmax import dropkey_softmax
from tests.method.oracle import (
    DTYPES,
    LOW_DTYPES,
    SEED,
    errors,
    finite_forbidden,
    mask_of,
    oracle_attention,
    values_and_gradients,
)


@dataclass(frozen=True)
class Case:
    """One call of `dropkey_attention`.

    Args:
        queries: Shape of q.
        keys: Shape of k; v has one feature more.
        mask: Shape of a further mask.
        kind: That mask's kind.
        options: Further arguments.
    """

    queries: tuple[int, ...] = (2, 3, 7, 8)
    keys: tuple[int, ...] = (2, 3, 7, 8)
    mask: tuple[int, ...] | None = None
    kind: str = "float"
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False
    structure: Structure = "element"

    def inputs(self, dtype: torch.dtype) -> list[Tensor]:
        tensors = [torch.randn(self.queries), torch.randn(self.keys), torch.randn(*self.keys[:-1], self.keys[-1])]
        if self.mask is not None:
            tensors.append(torch.rand(self.mask) < 0.7 if self.kind == "bool" else 2 * torch.randn(self.mask))
        return [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors]

    def dropkey(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, ratio: float | Tensor = 0.4) -> Tensor:
        return dropkey_attention(
            q, k, v, ratio, mask, is_causal=self.is_causal, scale=self.scale, structure=self.structure, seed=SEED,
            enable_gqa=self.enable_gqa,
        )  # fmt: skip

    def plain(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=self.is_causal, scale=self.scale, enable_gqa=self.enable_gqa
        )

    def oracle(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, ratio: float = 0.4) -> Tensor:
        shape = (*self.queries[:-1], self.keys[-2])
        allowed = ~mask_of(shape, ratio, self.structure)
        if self.is_causal:
            allowed = allowed & torch.ones(shape[-2:], dtype=torch.bool).tril()
        if mask is not None and mask.dtype == torch.bool:
            allowed, mask = allowed & mask, None
        return oracle_attention(q, k, v, allowed, mask, self.scale)


CASES = {
    "self": Case(),
    "cross": Case(queries=(2, 3, 5, 8), keys=(2, 3, 11, 8)),
    "one query": Case(queries=(2, 3, 1, 8), keys=(2, 3, 11, 8)),
    "bool mask": Case(mask=(2, 3, 7, 7), kind="bool"),
    "padding mask": Case(mask=(2, 1, 1, 7), kind="bool"),
    "learned mask per head": Case(mask=(1, 3, 7, 7)),
    "float mask per key": Case(mask=(2, 1, 1, 7)),
    "float mask without sample axes": Case(mask=(7, 7)),
    "causal": Case(is_causal=True),
    "causal cross": Case(queries=(2, 3, 5, 8), keys=(2, 3, 9, 8), is_causal=True),
    "3-D": Case(queries=(6, 7, 8), keys=(6, 7, 8)),
    "3-D with float mask": Case(queries=(6, 7, 8), keys=(6, 7, 8), mask=(6, 7, 7)),
    "5-D": Case(queries=(2, 2, 3, 7, 8), keys=(2, 2, 3, 7, 8)),
    "5-D with bool mask": Case(queries=(2, 2, 3, 7, 8), keys=(2, 2, 3, 7, 8), mask=(2, 1, 1, 7, 7), kind="bool"),
    "gqa": Case(queries=(2, 6, 7, 8), keys=(2, 2, 7, 8), enable_gqa=True),
    "gqa with float mask": Case(queries=(2, 6, 7, 8), keys=(2, 2, 7, 8), enable_gqa=True, mask=(1, 6, 7, 7)),
    "scale": Case(scale=0.9),
    "key": Case(structure="key"),
    "key, causal": Case(structure="key", is_causal=True),
    "key with float mask": Case(structure="key", mask=(2, 1, 1, 7)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_attention_and_gradients_equal_the_oracle(case: Case) -> None:
    inputs = case.inputs(torch.float64)
    for ours, theirs in zip(values_and_gradients(case.dropkey, inputs), values_and_gradients(case.oracle, inputs), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_attention_in_low_precision_errs_no_more_than_plain_attention(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    exact = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
    ours = errors(values_and_gradients(case.dropkey, inputs), values_and_gradients(case.oracle, exact))
    plain = errors(values_and_gradients(case.plain, inputs), values_and_gradients(case.plain, exact))
    # Fewer keys average out fewer roundings. One rounding is allowed in any case.
    for our_error, plain_error in zip(ours, plain, strict=True):
        assert our_error < 2 * max(plain_error, torch.finfo(dtype).eps)


@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_gradients_of_attention_are_its_derivatives(ratio: float) -> None:
    q, k, v, bias = (torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(4))
    bias = bias[..., :1].detach().expand(2, 2, 4, 4).contiguous().requires_grad_()
    assert mask_of((2, 2, 4, 4), 0.9).all(-1).any()  # some query loses every key
    assert torch.autograd.gradcheck(lambda q, k, v, bias: dropkey_attention(q, k, v, ratio, bias, seed=SEED), (q, k, v, bias))
    assert torch.autograd.gradcheck(lambda q, k, v: dropkey_attention(q, k, v, ratio, seed=SEED), (q, k, v))


@pytest.mark.parametrize("mask", ["none", "bool", "float", "causal"])
@pytest.mark.parametrize("shape", [(4, 3, 6, 8), (12, 6, 8)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_query_without_keys_gives_0_and_gets_gradient_0(dtype: torch.dtype, shape: tuple[int, ...], mask: str) -> None:
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    further = {"bool": torch.rand(6, 6) < 0.8, "float": torch.randn(6, 6, dtype=dtype, requires_grad=True)}.get(mask)
    output = dropkey_attention(q, k, v, 0.8, further, is_causal=mask == "causal", seed=SEED)
    q_grad, k_grad, v_grad = torch.autograd.grad(output.float().square().sum(), (q, k, v))
    lost = mask_of((*shape[:-1], shape[-2]), 0.8)
    if mask == "bool":
        assert further is not None
        lost = lost | ~further
    if mask == "causal":
        lost = lost | torch.ones(6, 6, dtype=torch.bool).triu(1)
    empty = lost.all(-1)
    assert empty.any()
    assert not empty.all()
    assert (output[empty] == 0).all()
    assert (q_grad[empty] == 0).all()
    assert (output[~empty] != 0).any(-1).all()
    unused = lost.all(-2)  # keys no query attends to
    assert (v_grad[unused] == 0).all()
    assert (k_grad[unused] == 0).all()
    for tensor in (output, q_grad, k_grad, v_grad):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_that_is_forbidden_altogether_gives_0(dtype: torch.dtype) -> None:
    logits = torch.randn(1, 1, 4, 6, dtype=dtype)
    logits[0, 0, 2] = -torch.inf
    assert (dropkey_softmax(logits, 0.3, seed=SEED)[0, 0, 2] == 0).all()
    q, k, v = torch.randn(3, 1, 1, 6, 8, dtype=dtype)
    further = torch.zeros(6, 6, dtype=dtype)
    further[2] = -torch.inf
    for mask in (further, further == 0):
        output = dropkey_attention(q, k, v, 0.3, mask, seed=SEED)
        assert (output[0, 0, 2] == 0).all()
        assert output.isfinite().all()


def test_nan_stays_visible() -> None:
    dropped = mask_of((1, 1, 8, 8), 0.5)[0, 0]
    logits = torch.zeros(1, 1, 8, 8)
    logits[0, 0, range(8), (~dropped).int().argmax(-1)] = torch.nan  # one key that is left
    assert dropkey_softmax(logits, 0.5, seed=SEED).isnan().any(-1).all()
    q = torch.full((1, 1, 8, 4), torch.nan)
    k, v = torch.randn(2, 1, 1, 8, 4)
    for mask in (None, torch.zeros(8, 8), torch.ones(8, 8, dtype=torch.bool)):
        assert dropkey_attention(q, k, v, 0.5, mask, seed=SEED).isnan().all()
    assert dropkey_attention(k, k, v, 0.5, torch.full((8, 8), torch.nan), seed=SEED).isnan().all()


@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", [0, 1], ids=["-1e4", "finfo.min"])
def test_finitely_forbidden_keys_stay_forbidden_in_attention(dtype: torch.dtype, which: int, broadcast: bool) -> None:
    allowed = torch.ones(2, 3, 6, 10, dtype=torch.bool)
    allowed[0, ..., 4:] = False
    allowed[1, ..., :7] = False
    if broadcast:
        allowed = allowed[:, :1, :1]  # (B, 1, 1, S), as for padding
    q, k, v = torch.randn(3, 2, 3, 10, 8, dtype=dtype)
    q = q[:, :, :6]
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, finite_forbidden(dtype)[which])
    left = allowed & ~mask_of((2, 3, 6, 10), 0.8)
    assert (~left.any(-1)).any()
    output = dropkey_attention(q, k, v, 0.8, mask, seed=SEED)
    exact = oracle_attention(q.double(), k.double(), v.double(), left)
    assert (output[~left.any(-1)] == 0).all()
    assert torch.allclose(output.double(), exact, atol=20 * torch.finfo(dtype).eps, rtol=20 * torch.finfo(dtype).eps)


def test_forbidden_rows_of_padded_queries_stay_as_they_are() -> None:
    # A padded query has every key finitely forbidden: torch attends evenly there, and nobody reads it. It must stay finite.
    q, k, v = torch.randn(3, 1, 1, 6, 8)
    mask = torch.full((6, 6), torch.finfo(torch.float32).min)
    assert dropkey_attention(q, k, v, 0.3, mask, seed=SEED).isfinite().all()
    assert dropkey_softmax(q @ k.mT + mask, 0.3, seed=SEED).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_ratio_0_is_bitwise_torchs_attention(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    ours = values_and_gradients(functools.partial(case.dropkey, ratio=0.0), inputs)
    plain = values_and_gradients(case.plain, inputs)
    assert all(torch.equal(result, expected) for result, expected in zip(ours, plain, strict=True))


def test_ratio_0_draws_nothing_from_the_generator() -> None:
    state = torch.get_rng_state()
    dropkey_softmax(torch.zeros(1, 1, 4, 4), 0.0)
    q, k, v = torch.zeros(3, 1, 1, 4, 4)
    dropkey_attention(q, k, v, 0.0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.77])
def test_ratio_as_tensor_equals_the_number(ratio: float) -> None:
    q, k, v = torch.randn(3, 2, 3, 7, 8)
    ours = dropkey_attention(q, k, v, torch.tensor(ratio), seed=SEED)
    assert torch.equal(ours, dropkey_attention(q, k, v, ratio, seed=SEED))
    assert torch.equal(dropkey_softmax(q, torch.tensor(ratio), seed=SEED), dropkey_softmax(q, ratio, seed=SEED))


@pytest.mark.parametrize("ratio", [-0.5, 1.0, 1.5])
def test_ratio_outside_0_and_1_is_refused(ratio: float) -> None:
    q, k, v = torch.randn(3, 2, 3, 7, 8)
    with pytest.raises(InputError, match=f"ratio {ratio}"):
        dropkey_attention(q, k, v, ratio)
    with pytest.raises(InputError, match=f"ratio {ratio}"):
        dropkey_softmax(q, ratio)


def test_seed_as_tensor_equals_the_number() -> None:
    q, k, v = torch.randn(3, 2, 3, 7, 8)
    ours = dropkey_attention(q, k, v, 0.4, seed=torch.tensor(SEED))
    assert torch.equal(ours, dropkey_attention(q, k, v, 0.4, seed=SEED))


def test_without_a_seed_torchs_generator_decides() -> None:
    logits = torch.randn(2, 3, 7, 8)
    torch.manual_seed(1)
    first, second = dropkey_softmax(logits, 0.4), dropkey_softmax(logits, 0.4)
    torch.manual_seed(1)
    assert torch.equal(dropkey_softmax(logits, 0.4), first)
    assert not torch.equal(first, second)


def test_dropout_acts_after_the_softmax() -> None:
    q, k, v = torch.randn(2, 3, 50, 60), torch.randn(2, 3, 60, 60), torch.eye(60).expand(2, 3, 60, 60)
    weights = dropkey_attention(q, k, v, 0.4, seed=SEED)
    with_dropout = dropkey_attention(q, k, v, 0.4, seed=SEED, dropout_p=0.25)
    kept = with_dropout != 0
    assert torch.allclose(with_dropout[kept], weights[kept] / 0.75)
    assert kept.sum() / (weights != 0).sum() == pytest.approx(0.75, abs=0.02)


def test_every_sample_has_its_own_mask_when_the_queries_are_shared() -> None:
    q, k, v = torch.zeros(1, 1, 1, 4), torch.zeros(64, 1, 16, 4), torch.eye(16).expand(64, 1, 16, 16)
    weights = dropkey_attention(q, k, v, 0.5, seed=SEED)  # (64, 1, 1, 16)
    assert torch.equal(weights == 0, dropkey_mask(SEED, (64, 1, 1, 16), 0.5))


@pytest.mark.parametrize("function", ["attention", "softmax"])
def test_autocast_runs_as_torch_does(function: str) -> None:
    q, k, v = (torch.randn(2, 3, 7, 8, requires_grad=True) for _ in range(3))

    def call(ratio: float) -> Tensor:
        if function == "attention":
            return dropkey_attention(q, k, v, ratio, torch.zeros(7, 7), seed=SEED)
        return dropkey_softmax(q @ k.mT, ratio, seed=SEED)

    with torch.autocast("cpu", torch.bfloat16):
        output, plain = call(0.4), call(0.0)
    (gradient,) = torch.autograd.grad(output.float().square().sum(), q)
    assert output.dtype == plain.dtype
    assert torch.allclose(output.float(), call(0.4), atol=0.05)
    assert gradient.isfinite().all()
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize("function", ["attention", "softmax"])
def test_compiled_equals_eager_for_the_same_seed(function: str) -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor, seed: Tensor, ratio: Tensor) -> Tensor:
        return dropkey_attention(q, k, v, ratio, seed=seed)

    def softmax(q: Tensor, k: Tensor, v: Tensor, seed: Tensor, ratio: Tensor) -> Tensor:
        return dropkey_softmax(q @ k.mT, ratio, seed=seed) @ v

    eager: Any = {"attention": attention, "softmax": softmax}[function]
    inputs = [torch.randn(2, 3, 10, 8) for _ in range(3)]
    rest = (torch.tensor(SEED), torch.tensor(0.6))
    compiled: Any = torch.compile(eager, fullgraph=True)
    ours = values_and_gradients(lambda *t: compiled(*t, *rest), inputs)
    for result, expected in zip(ours, values_and_gradients(lambda *t: eager(*t, *rest), inputs), strict=True):
        assert torch.allclose(result, expected, atol=1e-5)


def test_backends_of_a_cpu() -> None:
    q, k, v = torch.randn(3, 2, 3, 7, 16)
    sdpa = dropkey_attention(q, k, v, 0.4, seed=SEED, backend="sdpa")
    assert torch.equal(dropkey_attention(q, k, v, 0.4, seed=SEED, backend="auto"), sdpa)
    with pytest.raises(InputError, match=r"backend 'triton' cannot take this call: .*; give backend 'auto' or 'sdpa'"):
        dropkey_attention(q, k, v, 0.4, backend="triton")


def test_without_triton_its_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dropkey_cli.method.backends.triton", None)  # as where torch brings no Triton
    monkeypatch.delattr(backends, "triton", raising=False)
    q, k, v = torch.randn(3, 2, 3, 7, 16)
    with pytest.raises(InputError, match="Triton is not installed"):
        dropkey_attention(q, k, v, 0.4, backend="triton")


def test_unknown_backends_are_refused() -> None:
    q, k, v = torch.randn(3, 2, 3, 7, 16)
    with pytest.raises(InputError, match="backend 'tritn' is not known: give one of auto, sdpa, triton"):
        dropkey_attention(q, k, v, 0.4, backend="tritn")  # type: ignore[arg-type]


def test_seed_is_moved_to_the_queries() -> None:
    q, k, v = torch.empty(3, 2, 3, 7, 16, device="meta")
    assert dropkey_attention(q, k, v, 0.4, seed=torch.tensor(SEED)).device.type == "meta"


def test_kernels_are_not_asked_for_masks_with_a_seed_per_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = SimpleNamespace(unsupported=lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, f"{backends.__name__}.triton", kernels)
    monkeypatch.setattr(backends, "triton", kernels, raising=False)
    q = torch.randn(2, 3, 5, 16)
    with pytest.raises(InputError, match="backend 'triton' cannot take this call: every sample has a seed of its own"):
        dropkey_attention(q, q, q, 0.3, seed=torch.tensor([1, 2]), backend="triton")
