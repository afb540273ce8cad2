"""The output of the Triton kernels against softmax in float64, with the exact mask."""

from concurrent.futures import Executor

import pytest
import torch

from tests.method.backends import kernels
from tests.method.backends.kernels import Case

# float32 goes through the interpreter only; a wrong element shows as 1e-2 and more.
FLOAT32_ERROR = 5e-6
SIDES = (1, 5, 49, 196, 197, 257, 577, 785, 1025)
HEAD_DIMS = (32, 48, 64, 80, 96, 128)
PEAKED = Case(100, 197, 64, 0.5, torch.float16, heads=1, gain=8.0)
CASES = [
    Case(1, 5, 64),
    Case(5, 1, 32),
    Case(49, 49, 32, batch=2, heads=3),
    Case(64, 64, 64, heads=1),
    Case(197, 197, 64, heads=1),
    Case(100, 100, 64, None, heads=1),
    Case(33, 145, 48, heads=1),
    Case(145, 33, 128, heads=1),
    Case(30, 50, 80, heads=1),
    Case(64, 80, 16, 0.99),
    Case(20, 70, 64, scale=-0.3),
    Case(20, 70, 64, scale=0.0),
    Case(20, 70, 16, None, shift=5),  # beyond the last key a logit of 0 lies 100 above the others
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_equals_the_oracle(interpreter: Executor, case: Case) -> None:
    assert interpreter.submit(kernels.attend, case).result()[0].out < FLOAT32_ERROR


@pytest.mark.parametrize("case", [PEAKED, Case(60, 49, 32, 0.1, torch.float16)], ids=str)
def test_float16_errs_at_most_twice_as_much_as_sdpa(interpreter: Executor, case: Case) -> None:
    ours, theirs = interpreter.submit(kernels.attend, case).result()
    assert ours.out < 2 * theirs.out


@pytest.mark.parametrize(("rows", "step"), [(16, 16), (32, 64), (128, 32)])
def test_the_cut_into_blocks_does_not_matter(interpreter: Executor, rows: int, step: int) -> None:
    errors = interpreter.submit(kernels.with_blocks, Case(70, 141, 32, heads=1), rows, step).result()
    assert max(errors) < FLOAT32_ERROR


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("side", SIDES)
def test_output_and_gradients_equal_the_oracle_everywhere(interpreter: Executor, side: int, head_dim: int) -> None:
    ours, _ = interpreter.submit(kernels.attend, Case(side, side, head_dim, heads=1)).result()
    assert max(ours) < FLOAT32_ERROR


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("side", SIDES)
def test_output_and_gradients_on_a_gpu(side: int, head_dim: int, dtype: torch.dtype) -> None:
    case = Case(side, side, head_dim, 0.3, dtype, batch=2, heads=3, device="cuda")
    ours, theirs = kernels.attend(case)
    assert all(a <= 2 * b + 1e-4 for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [*CASES[6:], PEAKED], ids=str)
def test_other_cases_on_a_gpu(case: Case, dtype: torch.dtype) -> None:
    ours, theirs = kernels.attend(case._replace(dtype=dtype, device="cuda"))
    assert all(a <= 2 * b + 1e-4 for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


@pytest.mark.gpu
def test_tensors_of_more_than_2_to_the_31_elements() -> None:
    from dropkey_cli.method.backends import triton

    batch, tokens, heads, head_dim = 1024, 577, 24, 64
    qkv = torch.randn(batch, tokens, 3, heads, head_dim, device="cuda", dtype=torch.bfloat16)  # 2.7e9
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    seed = torch.tensor(kernels.SEED, device="cuda")
    last = triton.attention(q, k, v, 0.3, seed=seed)[-1:]
    words = triton.pack_mask(seed, (batch, heads, tokens, tokens), 0.3)[-1:]
    key = torch.arange(tokens, device="cuda")
    lost = ((words[..., key // 64] >> (key % 64)) & 1).bool()
    expected = kernels.oracle(q[-1:].double(), k[-1:].double(), v[-1:].double(), lost, None)
    assert (last.double() - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [None, 0.1], ids=str)
@pytest.mark.parametrize("tokens", [49, 197])
@pytest.mark.parametrize(("arch", "head_dim", "spilled"), kernels.SPILLED)
def test_the_kernel_compiles_without_spills_up_to_head_dim_64(
    compiler: Executor, arch: int, head_dim: int, spilled: int, tokens: int, ratio: float | None
) -> None:
    compiled = compiler.submit(kernels.compile_kernels, arch, head_dim, tokens, torch.float16, ratio).result()
    assert compiled["forward_kernel"].stack <= spilled, compiled
    assert compiled["forward_kernel"].shared <= 99 * 1024  # of a program on sm_86, sm_89 and sm_120
