from typing import Any

import pytest
import torch
from torch import Tensor

from dropkey_cli.errors import InputError
from dropkey_cli.method.attention import dropkey_attention
from dropkey_cli.method.layer_mask import layer_mask, logits_shape
from dropkey_cli.method.mask import KeyLayout, dropkey_mask
from dropkey_cli.method.settings import Structure
from dropkey_cli.method.softmax import dropkey_softmax
from tests.method.oracle import (
    DTYPES,
    SEED,
    mask_of,
)


def test_counts_are_the_draws_of_the_mask() -> None:
    q, k, v = torch.randn(3, 2, 3, 7, 8)
    counts = torch.zeros(2, dtype=torch.int64)
    dropkey_attention(q, k, v, 0.4, torch.ones(7, 7, dtype=torch.bool).tril(), seed=SEED, counts=counts)
    dropped = int(mask_of((2, 3, 7, 7), 0.4).sum())
    assert counts.tolist() == [dropped, 2 * 3 * 7 * 7]
    dropkey_softmax(torch.randn(2, 3, 7, 7), 0.4, seed=SEED, keep_empty_rows=True, counts=counts)
    assert counts.tolist() == [2 * dropped, 2 * 2 * 3 * 7 * 7]


def test_counts_of_structure_key_count_every_draw_once() -> None:
    counts = torch.zeros(2, dtype=torch.int64)
    dropkey_softmax(torch.randn(2, 3, 7, 9), 0.4, seed=SEED, structure="key", counts=counts)
    assert counts.tolist() == [int(mask_of((2, 3, 1, 9), 0.4).sum()), 2 * 3 * 9]


def test_logits_with_two_axes_are_refused() -> None:
    with pytest.raises(InputError, match=r"at least 3 axes .* given \(5, 7\)"):
        dropkey_softmax(torch.zeros(5, 7), 0.3)


def drawn(shape: tuple[int, ...], structure: Structure, dtype: torch.dtype, counts: Tensor, shared_heads: int = 1) -> Tensor:
    return layer_mask(
        shape, torch.tensor(0.4), structure=structure, layout=KeyLayout(2, 3, 1), seed=torch.tensor(SEED), device=counts.device,
        dtype=dtype, shared_heads=shared_heads, counts=counts,
    )  # fmt: skip


@pytest.mark.parametrize("structure", ["element", "key", "block", "cross"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_additive_mask_is_minus_infinity_where_a_key_is_dropped(structure: Structure, dtype: torch.dtype) -> None:
    counts = torch.zeros(2, dtype=torch.int64)
    dropped = drawn((2, 3, 5, 7), structure, torch.bool, counts)
    added = drawn((2, 3, 5, 7), structure, dtype, counts)
    assert added.dtype == dtype
    assert torch.equal(added, torch.zeros(dropped.shape, dtype=dtype).masked_fill(dropped, -torch.inf))
    assert torch.equal(dropped.expand(2, 3, 5, 7), dropkey_mask(SEED, (2, 3, 5, 7), 0.4, structure, KeyLayout(2, 3, 1)))
    assert counts.tolist() == [2 * int(dropped.sum()), 2 * dropped.numel()]


def test_neighbouring_heads_share_draws_that_count_once() -> None:
    counts = torch.zeros(2, dtype=torch.int64)
    mask = drawn((2, 6, 5, 7), "element", torch.bool, counts, shared_heads=3)
    assert torch.equal(mask, dropkey_mask(SEED, (2, 2, 5, 7), 0.4).repeat_interleave(3, 1))
    assert counts.tolist() == [int(mask[:, ::3].sum()), 2 * 2 * 5 * 7]


@pytest.mark.parametrize("structure", ["element", "key", "block", "cross"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
def test_compiled_mask_and_counts_equal_the_eager_ones(structure: Structure, dtype: torch.dtype) -> None:
    compiled = torch.compile(drawn, fullgraph=True)
    counts = torch.zeros(2, 2, dtype=torch.int64)
    ours, eager = compiled((2, 3, 5, 7), structure, dtype, counts[0]), drawn((2, 3, 5, 7), structure, dtype, counts[1])
    assert torch.equal(ours, eager)
    assert torch.equal(counts[0], counts[1])
    assert counts[0, 0] > 0


@pytest.mark.parametrize(
    ("q", "k", "enable_gqa", "expected"),
    [
        ((2, 3, 5, 8), (2, 3, 7, 8), False, (2, 3, 5, 7)),
        ((1, 1, 5, 8), (2, 3, 7, 8), False, (2, 3, 5, 7)),
        ((5, 8), (6, 7, 8), False, (6, 5, 7)),
        ((2, 6, 5, 8), (2, 2, 7, 8), True, (2, 6, 5, 7)),
    ],
)
def test_shape_of_the_logits_is_that_of_the_product(
    q: tuple[int, ...], k: tuple[int, ...], enable_gqa: bool, expected: tuple[int, ...]
) -> None:
    assert logits_shape(torch.empty(q), torch.empty(k), enable_gqa=enable_gqa) == expected


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (6, 3, 5, 7), (2, 3, 3, 5, 7), (6, 5, 7)])
def test_windows_of_an_image_share_its_seed_and_differ(shape: tuple[int, ...]) -> None:
    seeds = torch.tensor([3, 4])
    options: dict[str, Any] = {"structure": "element", "layout": None, "device": seeds.device, "counts": None}
    mask = layer_mask(shape, 0.4, seed=seeds, **options)
    assert mask.shape == shape
    per_image = [dropkey_mask(seed, (1, mask.numel() // 70, 5, 7), 0.4) for seed in (3, 4)]
    assert torch.equal(mask.reshape(2, -1, 5, 7), torch.cat(per_image))


def test_masks_that_belong_to_no_image_are_refused() -> None:
    with pytest.raises(InputError, match="5 samples with 3 heads each cannot be dealt out to 2 images"):
        dropkey_softmax(torch.zeros(5, 3, 7, 7), 0.3, seed=torch.tensor([3, 4]))
