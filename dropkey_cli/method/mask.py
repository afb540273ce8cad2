"""The DropKey mask: a pure function of (seed, sample, head, query, key).

The definition, in 64-bit integers that wrap around; it changes only with a changelog entry:

    mix(x)          x ^= x >>> 32; x *= C; x ^= x >>> 32; x *= C; x ^= x >>> 32        (>>> shifts in zeros)
    row(b, h, q)    mix(mix(mix(mix(seed) + b + 1) + h + 1) + q + 1)
    word(row, w)    mix(row + w + 1)                                                   one word serves 4 keys
    lane(row, k)    bits 16·(k mod 4) … 16·(k mod 4) + 15 of word(row, k div 4), as a signed number
    dropped         lane < min(round(ratio · 2^16), 2^16 - 1) - 2^15

With structure "key" all queries have the mask of query 0.

Because an element depends on its own position only, every device, tile size and batch split gives the same mask.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dropkey_cli.errors import InputError
from dropkey_cli.method.settings import Structure, check_ratio

_LOW_HALF = 0xFFFFFFFF
_MULTIPLIER = 0xD6E8FEB86659FD93 - 2**64  # odd, from Degski's 64-bit mixer


def dropkey_mask(seed: int | Tensor, shape: Sequence[int], ratio: float | Tensor, structure: Structure = "element") -> Tensor:
    """Which keys each query loses: True = dropped, independently with probability ``ratio``.

    Args:
        seed: Any 64-bit integer; a tensor keeps the computation on its device.
        shape: Batch, heads, queries and keys: (B, H, N, S).
        ratio: Drop ratio in [0, 1), exact to 2^-16.
        structure: element: each query draws its own keys; key: all queries of a head lose the same keys.

    Returns:
        Boolean mask (B, H, N, S).

    Raises:
        InputError: If ``shape`` does not have four sides, or ``ratio`` is a number outside [0, 1).
    """
    return draw_mask(seed, shape, ratio, structure).expand(*shape)


def draw_mask(seed: int | Tensor, shape: Sequence[int], ratio: float | Tensor, structure: Structure) -> Tensor:
    """As `dropkey_mask`, without repeating shared draws: (B, H, 1, S) where all queries lose the same keys."""
    if len(shape) != 4:
        raise InputError(f"a mask's shape is (batch, heads, queries, keys), given {tuple(shape)}")
    batch, heads, queries, keys = shape
    if structure == "key":
        queries = 1
    seed = seed_tensor(seed)
    rows = _mix(_mix(seed) + _one_to(batch, seed))  # (B,)
    rows = _mix(rows[:, None] + _one_to(heads, seed))  # (B, H)
    rows = _mix(rows[:, :, None] + _one_to(queries, seed))  # (B, H, N)
    words = _mix(rows[..., None] + _one_to((keys + 3) // 4, seed))  # (B, H, N, ceil(S / 4))
    return _lanes(words)[..., :keys] < _threshold(ratio)


def seed_tensor(seed: int | Tensor | None, device: torch.device | None = None) -> Tensor:
    """``seed`` as a 0-d tensor; where there is none, one from the generator of ``device``, without synchronising it."""
    if seed is None:
        return torch.randint(2**63 - 1, (), device=device)
    if isinstance(seed, Tensor):
        return seed.to(torch.int64)
    return torch.tensor((int(seed) + 2**63) % 2**64 - 2**63, device=device)


def _mix(x: Tensor) -> Tensor:
    for _ in range(2):
        x = (x ^ ((x >> 32) & _LOW_HALF)) * _MULTIPLIER
    return x ^ ((x >> 32) & _LOW_HALF)


def _lanes(words: Tensor) -> Tensor:
    """The four signed 16-bit lanes of every word, lowest first: (…, W) -> (…, 4·W)."""
    if not torch.compiler.is_compiling():
        return words.view(torch.int16)  # free; every platform torch runs on is little-endian
    # Inductor (torch 2.15, CPU) writes outside the buffer of such a view: the same lanes by arithmetic.
    shifts = torch.arange(48, -1, -16, device=words.device)
    return ((words[..., None] << shifts) >> 48).flatten(-2)


def _one_to(count: int, seed: Tensor) -> Tensor:
    return torch.arange(1, count + 1, device=seed.device)


def _threshold(ratio: float | Tensor) -> int | Tensor:
    # At most 65535 of 65536: a ratio just below 1 must not overflow the 16-bit comparison.
    if isinstance(ratio, Tensor):
        return (ratio * 65536).round().clamp(max=65535).to(torch.int64) - 32768
    check_ratio("ratio", ratio)
    return min(round(ratio * 65536), 65535) - 32768
