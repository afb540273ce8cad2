import pytest
import torch

from dropkey_cli.method.settings import Structure
from dropkey_cli.method.softmax import dropkey_softmax
from tests.method.oracle import (
    DTYPES,
    LOW_DTYPES,
    SEED,
    errors,
    finite_forbidden,
    mask_of,
    oracle_softmax,
    values_and_gradients,
)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (6, 5, 7), (2, 2, 3, 5, 7), (2, 3, 1, 7)], ids=str)
@pytest.mark.parametrize("structure", ["element", "key"])
def test_softmax_and_gradients_equal_the_oracle(shape: tuple[int, ...], structure: Structure) -> None:
    logits = 3 * torch.randn(shape, dtype=torch.float64)
    allowed = ~mask_of(shape, 0.4, structure)
    ours = values_and_gradients(lambda x: dropkey_softmax(x, 0.4, seed=SEED, structure=structure), [logits])
    theirs = values_and_gradients(lambda x: oracle_softmax(x, allowed), [logits])
    for result, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(result, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
def test_softmax_in_low_precision_errs_no_more_than_plain_softmax(dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(2, 3, 20, 30)).to(dtype)
    allowed = ~mask_of(logits.shape, 0.4)
    ours = values_and_gradients(lambda x: dropkey_softmax(x, 0.4, seed=SEED), [logits])
    exact = values_and_gradients(lambda x: oracle_softmax(x, allowed), [logits.double()])
    plain = values_and_gradients(lambda x: x.softmax(-1), [logits])
    plain_exact = values_and_gradients(lambda x: x.softmax(-1), [logits.double()])
    for our_error, plain_error in zip(errors(ours, exact), errors(plain, plain_exact), strict=True):
        assert our_error < 2 * plain_error


def test_softmax_in_another_dtype() -> None:
    logits = torch.randn(2, 3, 5, 7, dtype=torch.bfloat16, requires_grad=True)
    weights = dropkey_softmax(logits, 0.4, seed=SEED, dtype=torch.float32)
    (gradient,) = torch.autograd.grad(weights.square().sum(), logits)
    assert weights.dtype == torch.float32
    assert torch.allclose(weights, oracle_softmax(logits.float(), ~mask_of(logits.shape, 0.4)), atol=1e-6)
    assert gradient.dtype == torch.bfloat16


@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_gradients_of_softmax_are_its_derivatives(ratio: float) -> None:
    logits = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dropkey_softmax(x, ratio, seed=SEED), (logits,))
    assert torch.autograd.gradgradcheck(lambda x: dropkey_softmax(x, ratio, seed=SEED), (logits,))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softmax_row_without_keys_gives_0_and_gets_gradient_0(dtype: torch.dtype) -> None:
    logits = torch.randn(4, 3, 6, 6, dtype=dtype, requires_grad=True)
    weights = dropkey_softmax(logits, 0.8, seed=SEED)
    (gradient,) = torch.autograd.grad(weights.float().square().sum(), logits)
    dropped = mask_of(logits.shape, 0.8)
    assert dropped.all(-1).any()
    assert (weights[dropped] == 0).all()
    assert (gradient[dropped] == 0).all()
    assert weights.isfinite().all()
    assert gradient.isfinite().all()
    assert weights.sum(-1)[~dropped.all(-1)].float().allclose(torch.ones(()), atol=0.02)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", [0, 1], ids=["-1e4", "finfo.min"])
def test_finitely_forbidden_keys_stay_forbidden_in_softmax(dtype: torch.dtype, which: int) -> None:
    number = finite_forbidden(dtype)[which]
    allowed = torch.ones(2, 3, 6, 10, dtype=torch.bool)
    allowed[0, ..., 4:] = False
    allowed[1, ..., :7] = False
    logits = (3 * torch.randn(2, 3, 6, 10, dtype=dtype)).where(allowed, torch.tensor(number, dtype=dtype)).requires_grad_()
    left = allowed & ~mask_of((2, 3, 6, 10), 0.8)
    assert (~left.any(-1)).any()
    weights = dropkey_softmax(logits, 0.8, seed=SEED)
    (gradient,) = torch.autograd.grad(weights.float().square().sum(), logits)
    assert (weights[~left.any(-1)] == 0).all()
    assert (weights[~left].double() < 1e-15).all()
    assert torch.allclose(weights.double(), oracle_softmax(logits.double(), left), atol=20 * torch.finfo(dtype).eps)
    assert (gradient[~left.any(-1)] == 0).all()


@pytest.mark.parametrize("structure", ["element", "key"])
def test_keep_empty_rows_gives_their_keys_back(structure: Structure) -> None:
    logits = torch.randn(4, 3, 6, 4, dtype=torch.float64)
    dropped = mask_of(logits.shape, 0.8, structure)
    empty = dropped.all(-1)
    assert empty.any()
    weights = dropkey_softmax(logits, 0.8, seed=SEED, structure=structure, keep_empty_rows=True)
    assert torch.allclose(weights[empty], logits[empty].softmax(-1), rtol=1e-12)
    assert torch.allclose(weights[~empty], oracle_softmax(logits, ~dropped)[~empty], rtol=1e-12)


def test_ratio_0_is_bitwise_torchs_softmax() -> None:
    logits = torch.randn(2, 3, 5, 7, dtype=torch.bfloat16)
    counts = torch.zeros(2, dtype=torch.int64)
    assert torch.equal(dropkey_softmax(logits, 0, counts=counts), logits.softmax(-1))
    assert torch.equal(dropkey_softmax(logits, 0.0, dtype=torch.float32), logits.softmax(-1, torch.float32))
    assert counts.tolist() == [0, 0]
