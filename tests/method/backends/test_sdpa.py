import pytest
import torch
import torch.nn.functional as F

from dropkey_cli.method.attention import dropkey_attention
from tests.method.oracle import LOW_DTYPES, SEED, errors, mask_of, oracle_attention, values_and_gradients

SLOW = pytest.mark.slow  # the whole grid takes minutes; every length and every head size is in the quick part
LENGTHS = [1, 5, 49, 196, 197, 257, 577, 785, 1025]
HEAD_DIMS = [32, 48, 64, 80, 128]
QUICK = {(1, 48), (5, 32), (49, 32), (196, 80), (197, 64), (257, 128), (577, 64), (785, 32), (1025, 32)}
GRID = [pytest.param(n, d, marks=() if (n, d) in QUICK else SLOW) for n in LENGTHS for d in HEAD_DIMS]


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize(("num_tokens", "head_dim"), GRID)
def test_errs_at_most_twice_as_much_as_plain_sdpa(num_tokens: int, head_dim: int, dtype: torch.dtype) -> None:
    inputs = list(torch.randn(3, 1, 2, num_tokens, head_dim).to(dtype).unbind())
    exact = [tensor.double() for tensor in inputs]
    allowed = ~mask_of((1, 2, num_tokens, num_tokens), 0.3)
    ours = values_and_gradients(lambda q, k, v: dropkey_attention(q, k, v, 0.3, seed=SEED, backend="sdpa"), inputs)
    theirs = values_and_gradients(lambda q, k, v: oracle_attention(q, k, v, allowed), exact)
    plain = values_and_gradients(F.scaled_dot_product_attention, inputs)
    plain_exact = values_and_gradients(F.scaled_dot_product_attention, exact)
    for our_error, plain_error in zip(errors(ours, theirs), errors(plain, plain_exact), strict=True):
        assert our_error <= 2 * max(plain_error, torch.finfo(dtype).eps)
