"""Triton kernel that draws the mask of `dropkey_cli.method.mask` as packed bits."""
# mypy: disable-error-code="import-untyped, untyped-decorator"

import triton
import triton.language as tl

_MULTIPLIER = tl.constexpr(0xD6E8FEB86659FD93 - 2**64)


@triton.jit
def mask_kernel(
    seed: tl.tensor,
    ratio: tl.tensor,
    words: tl.tensor,
    counts: tl.tensor,
    heads: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    rows: tl.tensor,
    draws: tl.tensor,
    TAIL: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """One thread draws all words of one row (b, h, query): bit k % 64 of word k // 64 is 1 where key k is dropped.

    A thread that owns its row pays for the row's mixes once. Keys after the last count as dropped, so that attention needs no
    further mask for them.

    Args:
        seed: int64 (), read here, so that a replayed CUDA graph draws what the tensor says then.
        ratio: Floating point (), likewise.
        words: int64 (B·H·N, ceil(S / 64)), written.
        counts: int64 (2,): dropped draws and draws are added to it.
        heads: H.
        queries: N.
        keys: S.
        rows: B·H·N.
        draws: B·H·N·S.
        TAIL: S % 64.
        ROWS: Rows of one program.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = row // queries
    state = _mix(tl.zeros([ROWS], tl.int64) + tl.load(seed))
    state = _mix(state + (head // heads + 1))
    state = _mix(state + (head % heads + 1))
    state = _mix(state + (row % queries + 1))
    threshold = _threshold(tl.load(ratio))
    inside = row < rows
    words += row.to(tl.int64) * tl.cdiv(keys, 64)
    dropped = tl.zeros([ROWS], tl.int32)
    for _ in range(keys // 64):
        low, high = _draw(state, threshold, 64)
        tl.store(words, _join(low, high), mask=inside)
        dropped += _popcount(low) + _popcount(high)
        words += 1
        state += 16
    if TAIL > 0:
        low, high = _draw(state, threshold, TAIL)
        beyond: tl.constexpr = -1 << TAIL
        tl.store(words, _join(low, high) | beyond, mask=inside)
        dropped += _popcount(low) + _popcount(high)
    tl.atomic_add(counts, tl.sum(tl.where(inside, dropped, 0).to(tl.int64)), sem="relaxed")
    if tl.program_id(0) == 0:
        tl.atomic_add(counts + 1, tl.cast(draws, tl.int64), sem="relaxed")


@triton.jit
def _mix(x: tl.tensor) -> tl.tensor:
    x = (x ^ ((x >> 32) & 0xFFFFFFFF)) * _MULTIPLIER
    x = (x ^ ((x >> 32) & 0xFFFFFFFF)) * _MULTIPLIER
    return x ^ ((x >> 32) & 0xFFFFFFFF)


@triton.jit
def _threshold(ratio: tl.tensor) -> tl.tensor:
    """The lanes below min(round(ratio · 2^16), 65535) - 2^15 are dropped; returned in the upper half of an int32."""
    # Adding 1.5 · 2^52 leaves no room for a fraction: float64 then rounds half to even, as torch.round does.
    rounded = (ratio.to(tl.float64) * 65536.0 + 6755399441055744.0) - 6755399441055744.0
    share = tl.minimum(tl.maximum(rounded, 0.0), 65535.0).to(tl.int32)
    return (share - 32768) << 16


@triton.jit
def _draw(state: tl.tensor, threshold: tl.tensor, KEYS: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Bits of KEYS ≤ 64 keys: the first 32 and the others, int32."""
    low = tl.zeros_like(state).to(tl.int32)
    high = low
    for word in tl.static_range((KEYS + 3) // 4):
        x = _mix(state + (word + 1))
        for lane in tl.static_range(4):
            if 4 * word + lane < KEYS:
                half = x.to(tl.int32) if lane < 2 else (x >> 32).to(tl.int32)
                # The lane as the upper half of an int32: what lies below it cannot change the comparison.
                hit = (half << 16 if lane % 2 == 0 else half) < threshold
                if word < 8:
                    low |= hit.to(tl.int32) << (4 * word + lane)
                else:
                    high |= hit.to(tl.int32) << (4 * word + lane - 32)
    return low, high


@triton.jit
def _join(low: tl.tensor, high: tl.tensor) -> tl.tensor:
    return (high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)


@triton.jit
def _popcount(x: tl.tensor) -> tl.tensor:
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24) & 0xFF
