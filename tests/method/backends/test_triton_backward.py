"""The gradients of the Triton kernels against autograd of the softmax in float64, with the exact mask."""

from concurrent.futures import Executor

import pytest
import torch

from tests.method.backends import kernels
from tests.method.backends.kernels import Case
from tests.method.backends.test_triton_forward import CASES, FLOAT32_ERROR, PEAKED


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_equal_the_oracle(interpreter: Executor, case: Case) -> None:
    ours, _ = interpreter.submit(kernels.attend, case).result()
    assert max(ours[1:]) < FLOAT32_ERROR


@pytest.mark.parametrize("case", [PEAKED, Case(60, 49, 32, 0.1, torch.float16)], ids=str)
def test_float16_gradients_err_at_most_twice_as_much_as_sdpas(interpreter: Executor, case: Case) -> None:
    ours, theirs = interpreter.submit(kernels.attend, case).result()
    assert all(a < 2 * b for a, b in zip(ours[1:], theirs[1:], strict=True)), (ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [None, 0.1], ids=str)
@pytest.mark.parametrize("tokens", [49, 197])
@pytest.mark.parametrize(("arch", "head_dim", "spilled"), kernels.SPILLED)
def test_the_kernels_compile_without_spills_up_to_head_dim_64(
    compiler: Executor, arch: int, head_dim: int, spilled: int, tokens: int, ratio: float | None
) -> None:
    compiled = compiler.submit(kernels.compile_kernels, arch, head_dim, tokens, torch.bfloat16, ratio).result()
    for name in ("query_gradient_kernel", "key_value_gradient_kernel"):
        assert compiled[name].stack <= spilled, compiled
