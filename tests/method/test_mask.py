import itertools
import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from torch import Tensor

from dropkey_cli.errors import InputError
from dropkey_cli.method.mask import KeyLayout, draw_mask, dropkey_mask, ratio_share, sample_seeds, seed_tensor
from dropkey_cli.method.settings import Structure

SEEDS = [0, 1, -1, 123456789, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]


WRAP = 0xFFFFFFFFFFFFFFFF


def mix(x: int) -> int:
    x &= WRAP
    for _ in range(2):
        x = (x ^ x >> 32) * 0xD6E8FEB86659FD93 & WRAP
    return x ^ x >> 32


def lane(row: int, number: int, *, first_word: int = 0, bits: int = 16) -> int:
    """One lane of a row's random words, as a signed number."""
    lanes = 64 // bits
    unsigned = mix(row + first_word + number // lanes + 1) >> bits * (number % lanes) & ((1 << bits) - 1)
    return unsigned - (1 << bits) if unsigned >> (bits - 1) else unsigned


def defined_mask(seed: int, shape: tuple[int, int, int, int], ratio: float) -> Tensor:
    """The definition in mask.py's docstring, written out in Python's integers."""

    mask = torch.zeros(shape, dtype=torch.bool)
    for b, h, q, k in itertools.product(*map(range, shape)):
        row = mix(mix(mix(mix(seed) + b + 1) + h + 1) + q + 1)
        mask[b, h, q, k] = lane(row, k) < round(ratio * 2**16) - 2**15
    return mask


def defined_structured_mask(
    seed: int, shape: tuple[int, int, int], ratio: float, structure: Structure, layout: KeyLayout
) -> Tensor:
    """Block and cross as defined in mask.py's docstring, in Python's integers and an exact root."""
    height, width, prefix, side = layout
    mask = torch.zeros(*shape, layout.num_keys, dtype=torch.bool)
    root = Decimal(1) / (side**2 if structure == "block" else 2)
    rate = 1 - (1 - Decimal(round(ratio * 2**16)) / 2**16) ** root
    threshold = int((rate * 2**32).to_integral_value()) - 2**31
    for b, h, q in itertools.product(*map(range, shape)):
        row = mix(mix(mix(mix(seed) + b + 1) + h + 1) + q + 1)

        def hit(cell: int, row: int = row) -> bool:
            return lane(row, cell, first_word=math.ceil(prefix / 4), bits=32) < threshold

        for k in range(prefix):
            mask[b, h, q, k] = lane(row, k) < round(ratio * 2**16) - 2**15
        for y, x in itertools.product(range(height), range(width)):
            if structure == "cross":
                dropped = hit(y) or hit(height + x)
            else:
                cells = itertools.product(range(y, y + side), range(x, x + side))
                dropped = any(hit(i * (width + side - 1) + j) for i, j in cells)
            mask[b, h, q, prefix + y * width + x] = dropped
    return mask


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.999])
def test_mask_is_the_defined_one(seed: int, ratio: float) -> None:
    shape = (2, 3, 5, 13)
    expected = defined_mask(seed, shape, ratio)
    assert torch.equal(dropkey_mask(seed, shape, ratio), expected)
    assert torch.equal(dropkey_mask(seed_tensor(seed), shape, ratio), expected)


@pytest.mark.parametrize("seed", SEEDS[:4])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3, 0.999])
@pytest.mark.parametrize("structure", ["block", "cross"])
@pytest.mark.parametrize("layout", [(4, 4), (3, 5, 1, 2), (2, 3, 5, 4), (1, 6, 4, 1)], ids=str)
def test_structured_mask_is_the_defined_one(seed: int, ratio: float, structure: Structure, layout: tuple[int, ...]) -> None:
    keys = KeyLayout(*layout)
    expected = defined_structured_mask(seed, (2, 2, 3), ratio, structure, keys)
    assert torch.equal(dropkey_mask(seed, expected.shape, ratio, structure, keys), expected)
    assert torch.equal(dropkey_mask(seed_tensor(seed), expected.shape, torch.tensor(ratio), structure, keys), expected)


def test_first_keys_of_seed_0_never_change() -> None:
    dropped = dropkey_mask(0, (1, 1, 2, 24), 0.5).int().tolist()[0][0]
    # These digits change only together with a changelog entry.
    assert ["".join(map(str, row)) for row in dropped] == ["010111101001101010001110", "101011101000010001100101"]


def test_mask_of_a_part_is_the_part_of_the_mask() -> None:
    whole = dropkey_mask(7, (4, 6, 9, 30), 0.4)
    for b, h, n, s in [(2, 6, 9, 30), (4, 1, 9, 30), (4, 6, 5, 30), (4, 6, 9, 17), (1, 2, 3, 4), (3, 5, 7, 1)]:
        assert torch.equal(dropkey_mask(7, (b, h, n, s), 0.4), whole[:b, :h, :n, :s])


def test_a_larger_ratio_drops_the_same_keys_and_more() -> None:
    less, more = (dropkey_mask(7, (2, 2, 50, 50), ratio) for ratio in (0.2, 0.3))
    assert (less <= more).all()
    assert (less < more).any()


@pytest.mark.parametrize("ratio", [1e-3, 0.01, 0.1, 0.3, 0.5, 0.75, 0.999])
@pytest.mark.parametrize("structure", ["element", "key"])
def test_rate_is_the_ratio(ratio: float, structure: Structure) -> None:
    mask = draw_mask(seed_tensor(11), (64, 16, 16, 256), ratio_share(ratio), structure)
    sigma = math.sqrt(ratio * (1 - ratio) / mask.numel())
    assert abs(mask.double().mean() - ratio) < 4 * sigma + 2**-17


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("structure", ["block", "cross"])
@pytest.mark.parametrize("window_size", [2, 3, 5])
def test_every_key_of_a_structured_mask_drops_at_the_ratio(ratio: float, structure: Structure, window_size: int) -> None:
    layout = KeyLayout(5, 4, 1, window_size)  # corners, edges and the prefix token like any other key
    mask = dropkey_mask(13, (50, 8, 50, layout.num_keys), ratio, structure, layout)
    draws = 50 * 8 * 50
    sigma = math.sqrt(ratio * (1 - ratio) / draws)
    assert ((mask.double().mean((0, 1, 2)) - ratio).abs() < 5 * sigma).all()


def test_structured_masks_drop_neighbours_together() -> None:
    ratio, draws = 0.3, 50 * 8 * 50
    expectations: dict[Structure, dict[tuple[int, int], float]] = {
        # Two keys share the cells of s·(s − 1) windows, or none when they are s apart.
        "block": {(0, 1): 0.7 ** (12 / 9), (1, 1): 0.7 ** (14 / 9), (0, 3): 0.7**2, (2, 3): 0.7**2},
        # In a row both depend on that row's draw; elsewhere on nothing in common.
        "cross": {(0, 1): 0.7**1.5, (0, 3): 0.7**1.5, (2, 0): 0.7**1.5, (1, 1): 0.7**2},
    }
    for structure, pairs in expectations.items():
        kept = ~dropkey_mask(14, (50, 8, 50, 25), ratio, structure, KeyLayout(5, 5)).view(50, 8, 50, 5, 5)
        for (down, right), expected in pairs.items():
            both = kept[..., 1, 1] & kept[..., 1 + down, 1 + right]
            sigma = math.sqrt(expected * (1 - expected) / draws)
            assert abs(both.double().mean() - expected) < 5 * sigma, (structure, down, right)


@pytest.mark.parametrize("structure", ["block", "cross"])
def test_queries_heads_and_samples_draw_their_own_structures(structure: Structure) -> None:
    mask = dropkey_mask(3, (8, 8, 8, 16), 0.3, structure, KeyLayout(4, 4))
    kept = 0.7**2
    for axis in range(3):
        pairs = ~mask.narrow(axis, 0, 7) & ~mask.narrow(axis, 1, 7)
        # The 16 keys of one grid are not independent: count grids, not keys.
        sigma = math.sqrt(kept * (1 - kept) / (pairs.numel() / 16))
        assert abs(pairs.double().mean() - kept) < 5 * sigma, axis


@pytest.mark.parametrize("structure", ["block", "cross"])
def test_structure_without_a_fitting_layout_is_refused(structure: Structure) -> None:
    with pytest.raises(InputError, match=f"structure '{structure}' needs .* 16 keys lie on a grid"):
        dropkey_mask(0, (1, 1, 2, 16), 0.3, structure)
    with pytest.raises(InputError, match=r"KeyLayout\(height=4, width=4, prefix_tokens=1.* does not describe 16 keys"):
        dropkey_mask(0, (1, 1, 2, 16), 0.3, structure, KeyLayout(4, 4, 1))
    with pytest.raises(InputError, match="window_size=0"):
        dropkey_mask(0, (1, 1, 2, 16), 0.3, structure, KeyLayout(4, 4, 0, 0))


@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_no_correlation_along_any_axis(ratio: float) -> None:
    mask = dropkey_mask(3, (16, 8, 32, 256), ratio)
    assert abs(z_score(mask, dropkey_mask(4, mask.shape, ratio), ratio)) < 5
    for shift in (1, 2, 3, 4, 64):
        assert abs(z_score(mask[..., shift:], mask[..., :-shift], ratio)) < 5, f"key + {shift}"
    for axis, name in enumerate(("sample", "head", "query")):
        length = mask.shape[axis] - 1
        assert abs(z_score(mask.narrow(axis, 1, length), mask.narrow(axis, 0, length), ratio)) < 5, name


def test_no_correlation_between_axes_or_lanes() -> None:
    mask = dropkey_mask(3, (32, 32, 32, 32), 0.5)
    for first, second in itertools.combinations(range(4), 2):
        # The diagonal is equal by construction: compare what lies off it.
        off_diagonal = ~torch.eye(32, dtype=torch.bool)
        a = mask.movedim((first, second), (0, 1))[off_diagonal]
        b = mask.movedim((second, first), (0, 1))[off_diagonal]
        # Every unordered pair stands in here twice, hence sqrt(2).
        assert abs(z_score(a, b, 0.5)) < 5 * math.sqrt(2), (first, second)
    for lane, other in itertools.combinations(range(4), 2):
        assert abs(z_score(mask[..., lane::4], mask[..., other::4], 0.5)) < 5, (lane, other)


def test_seeds_in_a_row_give_independent_counts() -> None:
    counts = torch.stack([dropkey_mask(seed, (1, 1, 16, 64), 0.5).sum() for seed in range(400)]).double()
    variance = counts.var() / (1024 * 0.25)  # 1 ± sqrt(2 / 399)
    assert abs(variance - 1) < 5 * math.sqrt(2 / 399)


def z_score(a: Tensor, b: Tensor, ratio: float) -> float:
    """Correlation of two masks in standard deviations of independent ones."""
    products = (a.double() - ratio) * (b.double() - ratio)
    return float(products.sum() / (ratio * (1 - ratio) * math.sqrt(products.numel())))


def test_structure_key_drops_the_same_keys_for_all_queries_of_a_head() -> None:
    mask = dropkey_mask(5, (3, 4, 6, 40), 0.3, "key")
    assert mask.shape == (3, 4, 6, 40)
    assert (mask == mask[:, :, :1]).all()
    assert not torch.equal(mask[0, 0, 0], mask[0, 1, 0])
    assert not torch.equal(mask[0, 0, 0], mask[1, 0, 0])
    assert torch.equal(mask[:, :, 0], dropkey_mask(5, (3, 4, 1, 40), 0.3)[:, :, 0])


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_empty_sides_give_an_empty_mask(shape: tuple[int, ...]) -> None:
    assert dropkey_mask(0, shape, 0.5).shape == shape


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3, 0.5, 0.77, 0.999, 0.99999999])
def test_ratio_as_tensor_gives_the_same_mask(ratio: float) -> None:
    shape = (4, 4, 16, 64)
    assert torch.equal(dropkey_mask(9, shape, torch.tensor(ratio)), dropkey_mask(9, shape, ratio))
    assert torch.equal(dropkey_mask(9, shape, torch.tensor(ratio, dtype=torch.float64)), dropkey_mask(9, shape, ratio))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_ratio_as_low_precision_tensor_is_its_value(dtype: torch.dtype) -> None:
    ratio = torch.tensor(0.3, dtype=dtype)
    assert torch.equal(dropkey_mask(9, (4, 4, 16, 64), ratio), dropkey_mask(9, (4, 4, 16, 64), float(ratio)))


def test_negative_ratio_as_tensor_drops_nothing() -> None:
    assert not dropkey_mask(9, (4, 4, 16, 64), torch.tensor(-0.1)).any()  # its value is not looked at, for no device to wait


def test_a_ratio_just_below_1_drops_nearly_all() -> None:
    assert dropkey_mask(9, (4, 4, 16, 64), 1 - 1e-9).double().mean() > 0.999


@pytest.mark.parametrize("ratio", [-0.5, 1.0, 1.5])
def test_ratio_outside_0_and_1_is_refused(ratio: float) -> None:
    with pytest.raises(InputError, match=f"ratio {ratio}"):
        dropkey_mask(0, (1, 1, 2, 8), ratio)


def test_seed_may_be_any_integer_type() -> None:
    expected = dropkey_mask(5, (2, 2, 3, 16), 0.5)
    assert torch.equal(dropkey_mask(torch.tensor(5, dtype=torch.int32), (2, 2, 3, 16), 0.5), expected)
    assert torch.equal(dropkey_mask(np.int64(5), (2, 2, 3, 16), 0.5), expected)  # type: ignore[arg-type]  # numpy's integers


def test_shape_without_four_sides_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(batch, heads, queries, keys\), given \(2, 3\)"):
        dropkey_mask(0, (2, 3), 0.5)


def test_without_a_seed_torchs_generator_gives_one() -> None:
    torch.manual_seed(1)
    first, second = seed_tensor(None), seed_tensor(None)
    torch.manual_seed(1)
    assert (first.dtype, first.shape) == (torch.int64, ())
    assert seed_tensor(None) == first
    assert first != second
    assert max(int(seed_tensor(None)) for _ in range(64)) > 2**60  # of 63 bits, so that no two layers and steps share one


SLOW = pytest.mark.slow  # their compilation takes ten seconds


@pytest.mark.parametrize("structure", ["element", "key", pytest.param("block", marks=SLOW), pytest.param("cross", marks=SLOW)])
def test_compiled_mask_equals_the_eager_one(structure: Structure) -> None:
    def mask(seed: Tensor, ratio: Tensor) -> Tensor:
        return dropkey_mask(seed, (2, 3, 5, 13), ratio, structure, KeyLayout(3, 4, 1, 2))

    compiled = torch.compile(mask, fullgraph=True)
    for seed in SEEDS:
        for ratio in (torch.tensor(0.3), torch.tensor(0.0)):
            assert torch.equal(compiled(seed_tensor(seed), ratio), mask(seed_tensor(seed), ratio))


@pytest.mark.slow
def test_compiled_mask_of_changing_shapes_equals_the_eager_one() -> None:
    def mask(seed: Tensor, like: Tensor) -> Tensor:
        return dropkey_mask(seed, like.shape, 0.3)

    compiled = torch.compile(mask, fullgraph=True, dynamic=True)
    for shape in [(2, 3, 5, 13), (3, 3, 7, 50), (1, 2, 9, 4)]:
        like = torch.zeros(shape)
        assert torch.equal(compiled(seed_tensor(5), like), mask(seed_tensor(5), like))


@pytest.mark.parametrize("structure", ["element", "key", "block", "cross"])
def test_a_sample_with_its_own_seed_has_the_first_mask_of_that_seed(structure: Structure) -> None:
    seeds, layout = torch.tensor([5, -7, 2**62]), KeyLayout(2, 4, 1)
    masks = dropkey_mask(seeds, (3, 2, 6, 9), 0.4, structure, layout)
    alone = [dropkey_mask(seed, (1, 2, 6, 9), 0.4, structure, layout) for seed in seeds.tolist()]
    assert torch.equal(masks, torch.cat(alone))


def test_seeds_of_samples_follow_their_numbers() -> None:
    seeds = sample_seeds(torch.tensor(11), torch.tensor([4, 0, 2**40]))
    assert [seed % 2**64 for seed in seeds.tolist()] == [mix(mix(11) + number + 1) for number in (4, 0, 2**40)]
