"""The Triton backend: what it takes, in which dtypes and layouts."""

from concurrent.futures import Executor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.method.backends import operators
from tests.method.backends.kernels import SEED

# torch brings Triton on Linux with CUDA only
triton = pytest.importorskip("dropkey_cli.method.backends.triton", exc_type=ImportError)


def reason(q: Tensor, k: Tensor | None = None, v: Tensor | None = None, **changes: Any) -> str | None:  # noqa: ANN401
    arguments: dict[str, Any] = {"is_causal": False, "structure": "element", "dropout_p": 0.0, "enable_gqa": False}
    attn_mask = changes.pop("attn_mask", None)
    k = q if k is None else k
    result: str | None = triton.unsupported(q, k, k if v is None else v, attn_mask, **(arguments | changes))
    return result


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401
    """Tensors that say they are on an H200."""
    monkeypatch.setattr(triton, "_capability", lambda _: (9, 0))
    monkeypatch.setattr(triton, "_CAN_BUILD", True)
    with FakeTensorMode():
        yield lambda *shape, dtype=torch.bfloat16: torch.empty(*shape, dtype=dtype, device="cuda")


def test_takes_attention_of_a_vision_transformer(fake_gpu: Any) -> None:  # noqa: ANN401
    for dtype in (torch.bfloat16, torch.float16):
        assert reason(fake_gpu(2, 3, 197, 64, dtype=dtype)) is None
    assert reason(fake_gpu(2, 3, 5, 64), fake_gpu(2, 3, 9, 64)) is None


def test_names_the_argument_that_it_cannot_take(fake_gpu: Any) -> None:  # noqa: ANN401
    q = fake_gpu(2, 3, 5, 64)
    assert reason(q, attn_mask=q) == reason(q, is_causal=True) == "there is a further mask"
    assert reason(q, structure="block") == "the structure is 'block', not 'element'"
    assert "dropout of the weights" in str(reason(q, dropout_p=0.1))
    assert "enable_gqa" in str(reason(q, enable_gqa=True))


def test_names_the_tensor_that_it_cannot_take(fake_gpu: Any) -> None:  # noqa: ANN401
    q = fake_gpu(2, 3, 5, 64)
    assert reason(fake_gpu(2, 3, 5, 64, dtype=torch.float32)) == "queries are float32, not float16 or bfloat16"
    assert reason(q, q, fake_gpu(2, 3, 5, 64, dtype=torch.float64)) == "values are float64, not float16 or bfloat16"
    assert reason(q, fake_gpu(2, 3, 5, 64, dtype=torch.float16)) == "queries, keys and values differ in dtype"
    assert reason(fake_gpu(3, 5, 64)) == "queries, keys and values have 3, 3 and 3 axes, not 4"
    assert reason(fake_gpu(2, 3, 5, 144)) == "the head dim is 144, not 16 to 128"
    assert "differ in head dim" in str(reason(q, q, fake_gpu(2, 3, 5, 32)))
    assert "keys and values in number" in str(reason(q, q, fake_gpu(2, 3, 6, 64)))
    assert reason(q, fake_gpu(2, 3, 0, 64)) == "there are no queries or no keys"


def test_needs_an_nvidia_gpu_of_compute_capability_8(fake_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    q = fake_gpu(2, 3, 5, 64)
    assert reason(torch.empty(2, 3, 5, 64)) == "queries are on cpu, not on an NVIDIA GPU"
    monkeypatch.setattr(triton, "_capability", lambda _: (7, 5))
    assert reason(q) == "the GPU has compute capability 7.5, not at least 8.0"


def test_needs_a_compiler(fake_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    monkeypatch.setattr(triton, "_CAN_BUILD", False)
    with pytest.warns(UserWarning, match="backend 'sdpa', which needs more time and memory: Triton needs a C compiler"):
        assert "gcc or clang" in str(reason(fake_gpu(2, 3, 5, 64)))


def test_dtypes_are_those_after_autocast() -> None:
    q, v = torch.empty(1, 1, 2, 16), torch.empty(1, 1, 2, 16, dtype=torch.bfloat16)
    assert triton._unsupported_dtype(q, q, v) == "queries are float32, not float16 or bfloat16"
    with torch.autocast("cpu", torch.bfloat16):
        assert triton._unsupported_dtype(q, q, v) is None
        assert triton._unsupported_dtype(q.double(), q, v) == "queries are float64, not float16 or bfloat16"


def test_ratio_is_checked() -> None:
    with pytest.raises(ValueError, match=r"1\.5"):
        triton.pack_mask(torch.tensor(0), (1, 1, 1, 1), 1.5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_casts_as_sdpa_does(dtype: torch.dtype) -> None:
    q, k, v = operators.inputs("cuda")
    seed = torch.tensor(SEED, device="cuda")
    with torch.autocast("cuda", dtype):
        assert reason(q, k, v.to(dtype)) is None  # q and k in float32, as from a norm
        out = triton.attention(q, k, v.to(dtype), 0.3, seed=seed)
    assert out.dtype == dtype
    assert operators.expected_error(out.transpose(1, 2).flatten(2), (q, k, v), seed, 0.3) < 2e-2
    out.float().sum().backward()
    assert q.grad is not None and q.grad.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION], ids=str)
@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16], ids=str)
def test_sdpa_gives_0_to_a_query_without_keys(backend: SDPBackend, dtype: torch.dtype) -> None:
    """What the sdpa backend relies on, for the mask as booleans and added to the logits."""
    q = torch.randn(2, 3, 64, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    kept = torch.rand(2, 3, 64, 64, device="cuda") > 0.3
    kept[:, :, ::4] = False
    mask = kept if dtype == torch.bool else torch.zeros_like(kept, dtype=dtype).masked_fill(~kept, -torch.inf)
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(q, q, q, mask)
    (grad,) = torch.autograd.grad(out.sum(), q)
    assert not out[:, :, ::4].any()
    assert out.isfinite().all() and grad.isfinite().all()


def test_results_do_not_depend_on_the_layout(interpreter: Executor) -> None:
    assert interpreter.submit(operators.layouts).result() == {
        "expanded": True,
        "broadcast": True,
        "head dim outside": True,
        "free transpose": True,
    }


def test_queries_keys_values_and_gradient_may_differ_in_strides(interpreter: Executor) -> None:
    assert interpreter.submit(operators.own_strides).result() == [True] * 4


def test_rows_may_lie_far_apart(interpreter: Executor) -> None:
    assert interpreter.submit(operators.rows_far_apart).result() == [True] * 4


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu() -> None:
    leaves = operators.inputs("cuda", torch.bfloat16)
    seed, counts = torch.tensor(SEED, device="cuda"), torch.zeros(2, dtype=torch.int64, device="cuda")
    grad = torch.ones(1, 5, 32, device="cuda", dtype=torch.bfloat16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for ratio in (torch.full((), 0.3, device="cuda"), 0.3):
            operators.module(*leaves, ratio, seed, counts).backward(grad)  # type: ignore[arg-type, no-untyped-call]
    finally:
        torch.cuda.set_sync_debug_mode("default")
