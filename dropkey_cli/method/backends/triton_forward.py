"""Triton kernel of attention in which every query loses keys: flash attention with one more operand, the packed mask.

A program owns one block of queries of one head and walks over the keys: whole blocks without any check, then what is left with
a block of its own width, because 197 = 3 · 64 + 5 should not cost 4 · 64.

Logits are in units of ln 2: ``scale`` is the scale of attention times log2(e), and exp2 takes the place of exp.
"""
# mypy: disable-error-code="import-untyped, untyped-decorator"

import triton
import triton.language as tl

from dropkey_cli.method.backends.triton_tiles import dropped, load_rows, program_block, row_words, store_rows


@triton.jit
def forward_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    words: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    q_strides: tl.tuple,
    k_strides: tl.tuple,
    v_strides: tl.tuple,
    heads: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    scale: tl.tensor,
    D: tl.constexpr,
    PADDED_D: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    WHOLE: tl.constexpr,
    TAIL: tl.constexpr,
    DROP: tl.constexpr,
) -> None:
    """Attention of one block of queries.

    Args:
        q: (B, H, N, D) with ``q_strides``, as are k and v: (B, H, S, D).
        k: See q.
        v: See q.
        words: int64 (B·H·N, ceil(S / 64)), from `mask_kernel`; not read unless DROP.
        out: (B, N, H, D), contiguous, written.
        lse: float32 (B·H, N), written: log2 of the sum of exp2(logit) over the keys left; +inf where none is left, so that the
            backward's weights exp2(logit - lse) are 0.
        q_strides: Of batch, head and row.
        k_strides: Likewise.
        v_strides: Likewise.
        heads: H.
        queries: N.
        keys: S.
        scale: Positive.
        D: Head dim.
        PADDED_D: The next power of two, at least 16.
        BLOCK: Queries of a program.
        STEP: Keys of a step, those of one word: 64.
        WHOLE: Whether there is a whole step.
        TAIL: Width of the last step: 0, or S % STEP rounded up to 16, 32 or 64.
        DROP: Whether there is a mask.
    """
    sample, head, first, left = program_block(queries, heads, BLOCK)
    q += sample * q_strides[0] + head * q_strides[1] + first * q_strides[2]
    k += sample * k_strides[0] + head * k_strides[1]
    v += sample * v_strides[0] + head * v_strides[1]
    out += ((sample * queries + first) * heads + head) * D
    q_tile = load_rows(q, q_strides[2], left, D, (BLOCK, PADDED_D), True)
    row = (sample * heads + head) * queries + first
    if DROP:
        words = row_words(words, row, left, keys, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    result = tl.zeros([BLOCK, PADDED_D], tl.float32)
    if WHOLE:
        tl.assume(keys >= STEP)  # without a path around the loop ptxas need not wait for every single wgmma
        for _ in range(keys // STEP):
            best, total, result = _attend(
                best, total, result, q_tile, k, v, words, k_strides[2], v_strides[2], STEP, scale, D, STEP, False, DROP
            )
            k += tl.cast(k_strides[2], tl.int64) * STEP
            v += tl.cast(v_strides[2], tl.int64) * STEP
            if DROP:
                words += 1
    if TAIL > 0:
        best, total, result = _attend(
            best, total, result, q_tile, k, v, words, k_strides[2], v_strides[2], keys % STEP, scale, D, TAIL, True, DROP
        )
    empty = total == 0.0
    store_rows(out, result * (1.0 / tl.where(empty, 1.0, total))[:, None], heads * D, left, D)
    log_total = tl.where(empty, float("inf"), best * scale + tl.log2(total))
    tl.store(lse + row + tl.arange(0, BLOCK), log_total, mask=tl.arange(0, BLOCK) < left)


@triton.jit
def _attend(
    best: tl.tensor,
    total: tl.tensor,
    result: tl.tensor,
    q_tile: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    words: tl.tensor,
    k_stride: tl.tensor,
    v_stride: tl.tensor,
    keys: tl.tensor,
    scale: tl.tensor,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    CHECKED: tl.constexpr,
    DROP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Take the next WIDTH keys into every row's largest logit, sum of weights and weighted sum of values."""
    k_tile = load_rows(k, k_stride, keys, D, (WIDTH, q_tile.shape[1]), CHECKED)
    logits = tl.dot(q_tile, tl.trans(k_tile))  # (BLOCK, WIDTH)
    if DROP:  # before the maximum: were the largest logit a dropped one, all weights might be too small for float16
        logits = tl.where(dropped(tl.load(words), WIDTH), float("-inf"), logits)
    elif CHECKED:
        logits = tl.where(tl.arange(0, WIDTH)[None, :] < keys, logits, float("-inf"))
    new_best = tl.maximum(best, tl.max(logits, 1))
    shift = tl.where(new_best == float("-inf"), 0.0, new_best) * scale  # no key so far: -inf - 0, as -inf + inf is NaN
    weights = tl.exp2(logits * scale - shift[:, None])
    decay = tl.exp2(best * scale - shift)
    v_tile = load_rows(v, v_stride, keys, D, (WIDTH, q_tile.shape[1]), CHECKED)
    result = tl.dot(weights.to(v_tile.dtype), v_tile, result * decay[:, None])
    return new_best, total * decay + tl.sum(weights, 1), result
