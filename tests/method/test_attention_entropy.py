import math

import pytest
import torch

from dropkey_cli.method.attention_entropy import SUMS, attention_entropy, attention_sums, possible_keys


def test_entropy_is_that_of_torch_distributions() -> None:
    weights = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(-1)
    expected = torch.distributions.Categorical(probs=weights).entropy()  # type: ignore[no-untyped-call]
    assert torch.allclose(attention_entropy(weights), expected, rtol=1e-12)
    assert attention_entropy(weights.bfloat16()).dtype == torch.float32


def test_a_weight_of_zero_adds_nothing_and_one_key_has_no_entropy() -> None:
    weights = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert attention_entropy(weights).tolist() == pytest.approx([math.log(2), 0.0, 0.0])
    assert possible_keys(weights).tolist() == [2, 1, 0]


def test_what_minus_100_forbids_is_no_possible_key() -> None:
    logits = torch.tensor([[1.0, 0.5, -100.0, -100.0]])
    assert logits.softmax(-1)[0, 2] > 0
    assert possible_keys(logits.softmax(-1)).tolist() == [2]


def test_sums_of_a_head_counted_by_hand() -> None:
    even, half, one, none = [0.25] * 4, [0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0] * 4
    weights = torch.tensor([[[even, half], [one, none]]])  # (1, 2 heads, 2 queries, 4 keys)
    first, second = (dict(zip(SUMS, line, strict=True)) for line in attention_sums(weights).tolist())
    assert first == pytest.approx(
        {
            "rows": 2, "empty_rows": 0, "spread_rows": 2, "entropy": math.log(4) + math.log(2), "normalized_entropy": 2,
            "top_key": 0.75,
        }
    )  # fmt: skip
    assert second == pytest.approx(
        {"rows": 1, "empty_rows": 1, "spread_rows": 0, "entropy": 0, "normalized_entropy": 0, "top_key": 1}
    )


@pytest.mark.parametrize(("axes", "heads_axis"), [("bhwns", 1), ("bwhns", -3)])
def test_heads_are_found_on_their_axis(axes: str, heads_axis: int) -> None:
    weights = torch.randn(2, 3, 5, 4, 6, generator=torch.Generator().manual_seed(0)).softmax(-1)  # b h w n s
    placed = weights if axes == "bhwns" else weights.transpose(1, 2)
    sums = attention_sums(placed, heads_axis=heads_axis)
    assert sums.shape == (3, len(SUMS))
    for head in range(3):
        assert torch.allclose(sums[head], attention_sums(weights[:, head], heads_axis=None)[0], rtol=1e-6)
    assert torch.allclose(attention_sums(placed, heads_axis=None)[0], sums.sum(0), rtol=1e-6)


def test_no_images_make_sums_of_zero() -> None:
    assert attention_sums(torch.zeros(0, 2, 3, 4)).tolist() == [[0.0] * 6] * 2


def test_the_default_precision_does_not_matter() -> None:
    """Lightning makes it that of the network where that is bf16-true or 16-true."""
    weights = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    expected = attention_sums(weights)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = attention_sums(weights)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)
    normalized = expected[:, SUMS.index("normalized_entropy")]
    assert torch.allclose(normalized, expected[:, SUMS.index("entropy")] / math.log(5), rtol=1e-6)
