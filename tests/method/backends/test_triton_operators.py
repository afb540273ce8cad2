"""The operators of the Triton backend with autograd, torch.compile, checkpointing and CUDA graphs."""

from concurrent.futures import Executor

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dropkey_cli.method.mask import dropkey_mask
from tests.method.backends import operators
from tests.method.backends.kernels import SEED

# torch brings Triton on Linux with CUDA only
triton = pytest.importorskip("dropkey_cli.method.backends.triton", exc_type=ImportError)


def test_fake_tensors_have_the_shapes_and_strides_of_the_results() -> None:
    with FakeTensorMode():
        q, k = (torch.empty(2, 3, rows, 64, requires_grad=True) for rows in (5, 70))
        seed = torch.empty((), dtype=torch.int64)
        words = triton.pack_mask(seed, (2, 3, 5, 70), 0.3)
        out = triton.attention(q, k, k, 0.3, seed=seed)
        q_grad, k_grad = torch.autograd.grad(out.sum(), (q, k))
    assert words.shape == (2, 3, 5, 2)
    assert out.shape == q_grad.shape == (2, 3, 5, 64)
    assert k_grad.shape == (2, 3, 70, 64)
    assert out.stride() == (5 * 3 * 64, 64, 3 * 64, 1)  # (B, N, H, D) in memory


@pytest.mark.parametrize("checks", [operators.QUICK_CHECKS, pytest.param(operators.ALL_CHECKS, marks=pytest.mark.slow)])
def test_operators_do_what_they_declare(interpreter: Executor, checks: tuple[str, ...]) -> None:
    interpreter.submit(operators.checked, checks).result()


@pytest.mark.parametrize("how", ["eager", "aot_eager", "checkpoint"])
def test_compiled_and_checkpointed_equal_eager(interpreter: Executor, how: str) -> None:
    plain, other = interpreter.submit(operators.transformed, how).result()
    assert all(torch.equal(a, b) for a, b in zip(plain[:4], other[:4], strict=True))
    runs = 2 if how == "checkpoint" else 1  # which draws the mask again: the share of dropped draws stays
    assert other[4].tolist() == [runs * count for count in plain[4].tolist()]


def test_second_derivatives_are_refused(interpreter: Executor) -> None:
    assert "no autograd formula was registered" in interpreter.submit(operators.differentiated_twice).result()


def test_sums_of_weights_are_kept_and_infinite_where_no_key_is_left(interpreter: Executor) -> None:
    lse, expected = interpreter.submit(operators.log_sums).result()
    empty = expected == -torch.inf
    assert 0 < empty.sum() < empty.numel()
    torch.testing.assert_close(lse, expected.masked_fill(empty, torch.inf))


def test_gradients_lie_as_the_projection_wants_them(interpreter: Executor) -> None:
    assert interpreter.submit(operators.gradient_layouts).result() == [True, True, True]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_operators_do_what_they_declare_on_a_gpu(dtype: torch.dtype) -> None:
    operators.checked(operators.ALL_CHECKS, "cuda", dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["inductor", "aot_eager", "checkpoint"])
def test_compiled_and_checkpointed_equal_eager_on_a_gpu(how: str) -> None:
    plain, other = operators.transformed(how, "cuda", torch.bfloat16)
    assert torch.equal(plain[0], other[0])
    for a, b in zip(plain[1:4], other[1:4], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-2)  # inductor may round the square's gradient differently


@pytest.mark.gpu
def test_a_replayed_cuda_graph_draws_what_the_seed_says() -> None:
    leaves = operators.inputs("cuda", torch.bfloat16)
    seed, ratio = torch.tensor(SEED, device="cuda"), torch.tensor(0.3, device="cuda")
    counts = torch.zeros(2, dtype=torch.int64, device="cuda")
    operators.module(*leaves, ratio, seed, counts)  # compiles the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = operators.module(*leaves, ratio, seed, counts)
    for new_seed, new_ratio in ((1, 0.3), (2, 0.3), (2, 0.6)):
        seed.fill_(new_seed)
        ratio.fill_(new_ratio)
        counts.zero_()
        graph.replay()
        assert operators.expected_error(out, leaves, seed, new_ratio) < 2e-2
        assert counts.tolist()[0] == dropkey_mask(seed, operators.SHAPE, ratio).sum().item()
