"""What dropping before the softmax does to attention, and dropping after it: exact, over all 2^N masks of a row of N keys.

Let w_j = exp(l_j) / Σ_k exp(l_k) be the weights of one query, and let each key be kept (m_j = 1) with probability q = 1 - p.

1.  Dropout after the softmax gives w_j m_j / q. The row's sum S = Σ_j w_j m_j / q has E[S] = 1 and, the m_j being independent
    with variance p q, Var[S] = Σ_j w_j² p q / q² = (p / q) Σ_j w_j²: largest for the peaked rows that are to be regularised.
    The row is no distribution, and its entropy means nothing.
2.  DropKey sets l_j = -∞ where m_j = 0, hence gives w_j m_j / Σ_k w_k m_k: the kept weights divided by their sum S. So it is
    dropout after the softmax, normalised; every row sums to 1 unless all its keys are gone (probability p^N), and
    every kept key gains weight.
3.  The mean over masks is smoother than w. Take w_i ≥ w_j, and let r be what is kept of the other keys. Then E[row_i] is the
    mean over r of q w_i (q / (w_i + w_j + r) + p / (w_i + r)), and E[row_j] that of the same with w_j in the place of the w_i
    that stand alone. For each r the ratio of the two is at most w_i / w_j, since 1 / (w_i + r) ≤ 1 / (w_j + r), and at least 1,
    since w / (w + r) grows with w. So no pair of keys lies further apart than in w and the order stays: w majorises the mean,
    whose entropy is therefore at least that of w, and whose top key weighs at most as much.
4.  A single masked row of a spread query is sharper than w on average. Not so where one key has nearly all the weight:
    where it is dropped, the others share what it had. So the entropy of a training pass is not that of inference, in either
    direction.
5.  The paper looks at L = ½ ‖Σ_j w_j v_j - y‖² with v_j = β_j e + α_j, e = y / ‖y‖, α_j ⊥ e, M = ‖y‖. As ∂L/∂w_s =
    (Σ_j w_j v_j - y)·v_s, the gap between two keys is ∂L/∂w_s - ∂L/∂w_t = (Σ_j w_j β_j - M)(β_s - β_t) +
    (Σ_j w_j α_j)·(α_s - α_t); the multiplier of Σ_j w_j = 1 cancels.
"""

import itertools

import pytest
import torch
from torch import Tensor

from dropkey_cli.method.attention_entropy import attention_entropy
from dropkey_cli.method.mask import dropkey_mask
from dropkey_cli.method.softmax import dropkey_softmax

KEYS = 8
RATIOS = pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.9])


def masks(ratio: float) -> tuple[Tensor, Tensor]:
    """All 2^N masks (2^N, N), 1 where a key is kept, and the probability of each."""
    kept = torch.tensor(list(itertools.product([0.0, 1.0], repeat=KEYS)), dtype=torch.float64)
    return kept, (kept * (1 - ratio) + (1 - kept) * ratio).prod(-1)


def logits(scale: float = 1.0) -> Tensor:
    return scale * torch.randn(KEYS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def before_softmax(row: Tensor, kept: Tensor) -> Tensor:
    return torch.where(kept == 1, row, -torch.inf).softmax(-1).nan_to_num(0.0)  # (2^N, N)


@RATIOS
def test_dropout_after_the_softmax_keeps_the_sum_in_the_mean_only(ratio: float) -> None:
    weights, (kept, probability) = logits().softmax(-1), masks(ratio)
    assert float(probability.sum()) == pytest.approx(1, abs=1e-12)
    sums = (weights * kept / (1 - ratio)).sum(-1)
    mean = (probability * sums).sum()
    assert float(mean) == pytest.approx(1, abs=1e-12)
    variance = float((probability * (sums - mean).square()).sum())
    assert variance == pytest.approx(ratio / (1 - ratio) * float(weights.square().sum()), rel=1e-10)


def test_torch_dropout_is_what_was_enumerated() -> None:
    weights = logits().softmax(-1)
    torch.manual_seed(0)
    row = torch.nn.functional.dropout(weights, 0.3)
    kept, _ = masks(0.3)
    assert (row - weights * kept / 0.7).abs().amax(-1).min() < 1e-15
    assert abs(float(row.sum()) - 1) > 0.01


@RATIOS
def test_dropkey_is_normalised_dropout_and_every_row_a_distribution(ratio: float) -> None:
    weights, (kept, probability) = logits().softmax(-1), masks(ratio)
    rows, some = before_softmax(logits(), kept), kept.any(-1)
    dropout = weights * kept / (1 - ratio)
    assert torch.allclose(rows[some], (dropout / dropout.sum(-1, keepdim=True))[some], rtol=1e-12, atol=0)
    assert torch.allclose(rows[some].sum(-1), torch.ones(2**KEYS - 1, dtype=torch.float64), rtol=1e-12)
    assert float(probability[~some].sum()) == pytest.approx(ratio**KEYS)
    assert ((rows > weights) | (kept == 0) | (kept.sum(-1, keepdim=True) == KEYS)).all()  # who is kept gains


def test_the_package_drops_as_was_enumerated() -> None:
    many = logits().expand(2, 3, 50, KEYS)
    rows = dropkey_softmax(many, 0.3, seed=1)
    kept = (~dropkey_mask(1, (2, 3, 50, KEYS), 0.3)).double()
    assert 0.6 < float(kept.mean()) < 0.8
    assert torch.allclose(rows, before_softmax(logits(), kept), rtol=1e-12, atol=0)


@RATIOS
@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_the_mean_over_masks_is_smoother(ratio: float, scale: float) -> None:
    weights, (kept, probability) = logits(scale).softmax(-1).sort(descending=True).values, masks(ratio)
    rows = before_softmax(weights.log(), kept)
    mean = (probability[:, None] * rows).sum(0) / (1 - ratio**KEYS)  # given that a key is left
    assert float(mean.sum()) == pytest.approx(1, abs=1e-12)
    apart, apart_in_mean = weights[:-1] / weights[1:], mean[:-1] / mean[1:]
    assert (apart_in_mean >= 1).all()
    assert (apart_in_mean < apart).all()
    assert attention_entropy(mean) > attention_entropy(weights)
    assert mean.max() < weights.max()


@RATIOS
def test_a_masked_row_of_a_spread_query_is_sharper(ratio: float) -> None:
    weights, (kept, probability) = logits().softmax(-1), masks(ratio)
    rows, left = before_softmax(logits(), kept), 1 - ratio**KEYS
    assert float((probability * attention_entropy(rows)).sum() / left) < float(attention_entropy(weights))
    assert float((probability * rows.amax(-1)).sum() / left) > float(weights.max())


def test_a_masked_row_of_a_peaked_query_is_not() -> None:
    row = torch.tensor([10.0] + [0.0] * (KEYS - 1), dtype=torch.float64)
    kept, probability = masks(0.3)
    rows = before_softmax(row, kept)
    assert float((probability * attention_entropy(rows)).sum()) > 10 * float(attention_entropy(row.softmax(-1)))
    assert float((probability * rows.amax(-1)).sum()) < float(row.softmax(-1).max())


def test_the_gradient_gap_of_two_keys() -> None:
    generator = torch.Generator().manual_seed(1)
    values, target = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((KEYS, 5), (5,)))
    weights = logits().softmax(-1).requires_grad_()
    (gradient,) = torch.autograd.grad(0.5 * (weights @ values - target).square().sum(), weights)
    along = target / target.norm()
    beta = values @ along
    alpha = values - beta[:, None] * along
    with torch.no_grad():
        for s, t in itertools.combinations(range(KEYS), 2):
            gap = (weights @ beta - target.norm()) * (beta[s] - beta[t]) + (weights @ alpha) @ (alpha[s] - alpha[t])
            assert float(gradient[s] - gradient[t]) == pytest.approx(float(gap), rel=1e-10)
