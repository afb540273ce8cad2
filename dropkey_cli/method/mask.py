"""The DropKey mask: a pure function of (seed, sample, head, query, key).

The definition, in 64-bit integers that wrap around; it changes only with a changelog entry:

    mix(x)          x ^= x >>> 32; x *= C; x ^= x >>> 32; x *= C; x ^= x >>> 32        (>>> shifts in zeros)
    row(b, h, q)    mix(mix(mix(mix(seed) + b + 1) + h + 1) + q + 1)
    word(row, w)    mix(row + w + 1)                                                   one word serves 4 keys
    lane(row, k)    bits 16·(k mod 4) … 16·(k mod 4) + 15 of word(row, k div 4), as a signed number
    dropped         lane < min(round(ratio · 2^16), 2^16 - 1) - 2^15

With structure "key" all queries have the mask of query 0. With a seed of its own, a sample has the mask of sample 0 of that
seed: so an image's mask is the same in every batch, see `sample_seeds`.

The structures "block" and "cross" drop what lies together on the token grid (`KeyLayout`). Prefix tokens lose keys as
above; the grid's draws start at the next word, P = ceil(prefix tokens / 4), and are finer:

    half(row, c)    bits 32·(c mod 2) … 32·(c mod 2) + 31 of word(row, P + c div 2), as a signed number
    hit(row, c)     half(row, c) < round(g · 2^32) - 2^31, where 1 - g is the n-th root of 1 - round(ratio · 2^16) / 2^16

    block           n = s², s the window size: key (y, x) is dropped if any of the cells (y … y+s-1, x … x+s-1) is hit, where
                    cell (i, j) of the grid extended by s-1 is number i · (width + s - 1) + j
    cross           n = 2: key (y, x) is dropped if y or height + x is hit: a whole row or a whole column

Every key is dropped with probability ``ratio`` in all structures. How the paper samples block and cross is not public:
these are ours. Because an element depends on its own position only, every device, tile size and batch split gives the
same mask.
"""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import NamedTuple

import torch
from torch import Tensor

from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import Structure, check_ratio

KEYS_AT_ONCE = 2**20
"""A CPU draws for so many keys at a time, 2 MiB: larger tensors leave its cache, and come anew from the system each time."""
_LOW_HALF = 0xFFFFFFFF
_MULTIPLIER = 0xD6E8FEB86659FD93 - 2**64  # odd, from Degski's 64-bit mixer


class KeyLayout(NamedTuple):
    """How keys lie on a grid: prefix tokens in front, then height × width keys, row by row.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        prefix_tokens: Keys in front of the grid, such as the class token.
        window_size: Side of the square windows that the structure "block" drops, in keys.
    """

    height: int
    width: int
    prefix_tokens: int = 0
    window_size: int = 3

    @property
    def num_keys(self) -> int:
        """Keys in the grid and in front of it."""
        return self.prefix_tokens + self.height * self.width


def dropkey_mask(
    seed: int | Tensor,
    shape: Sequence[int],
    ratio: float | Tensor,
    structure: Structure = "element",
    layout: KeyLayout | None = None,
) -> Tensor:
    """Which keys each query loses: True = dropped, each with probability ``ratio``.

    Args:
        seed: Any 64-bit integer; a tensor keeps the computation on its device, one of shape (B,) holds a seed for each sample.
        shape: Batch, heads, queries and keys: (B, H, N, S).
        ratio: Drop ratio in [0, 1), exact to 2^-16.
        structure: element: each query draws its own keys, independently; key: all queries of a head lose the same keys;
            block: each query loses square windows of keys; cross: each query loses whole rows and columns of keys.
        layout: How the keys lie on a grid: needed for block and cross.

    Returns:
        Boolean mask (B, H, N, S).

    Raises:
        InputError: If ``shape`` does not have four sides, ``ratio`` is a number outside [0, 1), or ``layout`` does not fit.
    """
    return draw_mask(seed_tensor(seed), shape, ratio_share(ratio), structure, layout).expand(*shape)


def draw_mask(
    seed: Tensor, shape: Sequence[int], share: int | Tensor, structure: str, layout: Sequence[int] | None = None
) -> Tensor:
    """As `dropkey_mask`, without repeating shared draws: (B, H, 1, S) where all queries lose the same keys.

    Args:
        seed: int64 () or (B,).
        shape: (B, H, N, S).
        share: The ratio as `ratio_share` gives it.
        structure: As for `dropkey_mask`.
        layout: A `KeyLayout`, for block and cross.
    """
    if len(shape) != 4:
        raise InputError(f"a mask's shape is (batch, heads, queries, keys), given {tuple(shape)}")
    batch, heads, queries, keys = shape
    if structure == "key":
        queries = 1
    grid = _fitting(layout, keys, structure) if structure in ("block", "cross") else None
    rows = _mix(_mix(seed.clone()) + (1 if seed.dim() else _one_to(batch, seed)))  # (B,)
    rows = _mix(rows[:, None] + _one_to(heads, seed)).flatten()  # (B·H,)
    rows = _mix(rows[:, None] + _one_to(queries, seed))  # (B·H, N)
    heads_at_once = max(1, KEYS_AT_ONCE // max(1, queries * keys)) if rows.device.type == "cpu" else max(1, len(rows))
    pieces = [_keys(piece, keys, share, structure, grid) for piece in torch.split(rows, heads_at_once)]
    mask = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return mask.view(batch, heads, queries, keys)


def seed_tensor(seed: int | Tensor | None, device: torch.device | None = None) -> Tensor:
    """``seed`` as a 0-d tensor; where there is none, one from the generator of ``device``, without synchronising it."""
    if seed is None:
        return torch.randint(2**63 - 1, (), device=device)
    if isinstance(seed, Tensor):
        return seed.to(device=device, dtype=torch.int64)
    return torch.tensor((int(seed) + 2**63) % 2**64 - 2**63, device=device)


def sample_seeds(seed: Tensor, numbers: Tensor) -> Tensor:
    """A seed for each sample, by its number and not by its place in the batch: int64 (B,).

    Args:
        seed: int64 ().
        numbers: int64 (B,), such as the images' positions in the data set.
    """
    return _mix(_mix(seed.clone()) + (numbers.to(seed.device) + 1))


def ratio_share(ratio: float | Tensor) -> int | Tensor:
    """``ratio`` in units of 2^-16; at most 65535, as a ratio just below 1 must not overflow the 16-bit comparison."""
    if isinstance(ratio, Tensor):
        exact = ratio.to(torch.promote_types(ratio.dtype, torch.float32))  # 65536 is beyond float16
        return (exact * 65536).round().clamp(0, 65535).to(torch.int64)
    check_ratio("ratio", ratio)
    return min(round(ratio * 65536), 65535)


def _fitting(layout: Sequence[int] | None, keys: int, structure: str) -> KeyLayout:
    if layout is None:
        raise InputError(f"structure {structure!r} needs to know how the {keys} keys lie on a grid: give their layout")
    layout = KeyLayout(*layout)
    if layout.num_keys != keys or layout.window_size < 1:
        raise InputError(
            f"{layout} does not describe {keys} keys: prefix_tokens + height · width must be their number and window_size at "
            "least 1; a model takes images of the size that DropKey was applied for"
        )
    return layout


def _keys(rows: Tensor, keys: int, share: int | Tensor, structure: str, grid: KeyLayout | None) -> Tensor:
    """The keys that each of the rows (…) loses: (…, keys)."""
    if grid is None:
        return _elements(rows, keys, share)
    area = _windows(rows, share, grid) if structure == "block" else _lines(rows, share, grid)  # (…, height, width)
    return torch.cat([_elements(rows, grid.prefix_tokens, share), area.flatten(-2)], -1)


def _elements(rows: Tensor, keys: int, share: int | Tensor) -> Tensor:
    """One independent draw per key: rows (…) -> (…, keys)."""
    return _below(_lanes(_words(rows, 0, (keys + 3) // 4), 16), share - 2**15)[..., :keys]


def _windows(rows: Tensor, share: int | Tensor, layout: KeyLayout) -> Tensor:
    """Square windows of keys: rows (…) -> (…, height, width)."""
    side = layout.window_size
    extended = (layout.height + side - 1, layout.width + side - 1)
    hit = _hits(rows, extended[0] * extended[1], share, side**2, layout).reshape(*rows.shape, *extended)
    rows_hit = reduce(or_, (hit[..., y : y + layout.height, :] for y in range(side)))
    return reduce(or_, (rows_hit[..., x : x + layout.width] for x in range(side)))


def _lines(rows: Tensor, share: int | Tensor, layout: KeyLayout) -> Tensor:
    """Whole rows and columns of keys: rows (…) -> (…, height, width)."""
    hit = _hits(rows, layout.height + layout.width, share, 2, layout)
    return hit[..., : layout.height, None] | hit[..., None, layout.height :]


def _hits(rows: Tensor, count: int, share: int | Tensor, chances: int, layout: KeyLayout) -> Tensor:
    """``count`` independent draws, of which any of ``chances`` together hits with probability ``ratio``: (…, count)."""
    share = torch.as_tensor(share)
    share = share.cpu() if share.device.type == "mps" else share  # which has no float64
    rate = -torch.expm1(torch.log1p(-share.double() / 2**16) / chances)
    words = _words(rows, (layout.prefix_tokens + 3) // 4, (count + 1) // 2)
    return _below(_lanes(words, 32), (rate * 2**32).round().to(torch.int64) - 2**31)[..., :count]


def _words(rows: Tensor, first: int, count: int) -> Tensor:
    """Random words number first … first + count - 1 of each row: (…) -> (…, count)."""
    return _mix(rows[..., None] + (first + _one_to(count, rows)))


def _mix(x: Tensor) -> Tensor:
    """In place: new tensors for each step would cost as much again as the arithmetic."""
    if torch.compiler.is_compiling():
        for _ in range(2):
            x.bitwise_xor_((x >> 32).bitwise_and_(_LOW_HALF)).mul_(_MULTIPLIER)
        return x.bitwise_xor_((x >> 32).bitwise_and_(_LOW_HALF))
    low, high = x.unsqueeze(-1).view(torch.int32).unbind(-1)  # free; every platform of torch is little-endian
    for _ in range(2):
        low.bitwise_xor_(high)
        x.mul_(_MULTIPLIER)
    low.bitwise_xor_(high)
    return x


def _lanes(words: Tensor, bits: int) -> Tensor:
    """The signed lanes of 16 or 32 bits of every word, lowest first: (…, W) -> (…, W · 64 / bits)."""
    if not torch.compiler.is_compiling():
        return words.unsqueeze(-1).view(torch.int16 if bits == 16 else torch.int32).flatten(-2)
    shifts = torch.arange(64 - bits, -1, -bits, device=words.device)
    return ((words[..., None] << shifts) >> (64 - bits)).flatten(-2)


def _below(lanes: Tensor, threshold: int | Tensor) -> Tensor:
    """``lanes < threshold``; may change ``lanes``."""
    if torch.compiler.is_compiling():
        return lanes < threshold
    return lanes.lt_(threshold).bool()  # on a CPU, a comparison into another type takes 10 times as long


def _one_to(count: int, like: Tensor) -> Tensor:
    return torch.arange(1, count + 1, device=like.device)
