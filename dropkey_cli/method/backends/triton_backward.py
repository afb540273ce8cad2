"""Triton kernels of the gradients of attention in which every query loses keys: of the queries, of the keys and values.

Both compute the weights anew from logits, mask and ``lse`` as the forward left it. Two kernels, so that each gradient is
summed up by one program: no atomic additions, the same bits every time. Letters and units as in the forward.
"""
# mypy: disable-error-code="import-untyped, untyped-decorator"

import triton
import triton.language as tl

from dropkey_cli.method.backends.triton_tiles import WORD_KEYS, dropped, load_rows, program_block, row_words, store_rows

_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def query_gradient_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    words: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    out_grad: tl.tensor,
    delta: tl.tensor,
    q_grad: tl.tensor,
    q_strides: tl.tuple,
    k_strides: tl.tuple,
    v_strides: tl.tuple,
    out_grad_strides: tl.tuple,
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
    """Gradient of one block of queries.

    Beyond the arguments of the forward: ``out_grad`` (B, H, N, D); ``delta`` float32 (B·H, N), the sum over D of
    out · out_grad, written for the other kernel; ``q_grad`` (B, N, H, D), contiguous, written.
    """
    sample, head, first, left = program_block(queries, heads, BLOCK)
    q += sample * q_strides[0] + head * q_strides[1] + first * q_strides[2]
    k += sample * k_strides[0] + head * k_strides[1]
    v += sample * v_strides[0] + head * v_strides[1]
    out_grad += sample * out_grad_strides[0] + head * out_grad_strides[1] + first * out_grad_strides[2]
    contiguous = ((sample * queries + first) * heads + head) * D
    q_tile = load_rows(q, q_strides[2], left, D, (BLOCK, PADDED_D), True)
    out_tile = load_rows(out + contiguous, heads * D, left, D, (BLOCK, PADDED_D), True)
    out_grad_tile = load_rows(out_grad, out_grad_strides[2], left, D, (BLOCK, PADDED_D), True)
    row = (sample * heads + head) * queries + first
    inside = tl.arange(0, BLOCK) < left
    row_delta = tl.sum(out_tile.to(tl.float32) * out_grad_tile.to(tl.float32), 1)
    tl.store(delta + row + tl.arange(0, BLOCK), row_delta, mask=inside)
    row_lse = tl.load(lse + row + tl.arange(0, BLOCK), mask=inside, other=float("inf"))
    if DROP:
        words = row_words(words, row, left, keys, BLOCK)
    result = tl.zeros([BLOCK, PADDED_D], tl.float32)
    if WHOLE:
        tl.assume(keys >= STEP)  # without a path around the loop ptxas need not wait for every single wgmma
        for _ in range(keys // STEP):
            result = _add_to_queries(
                result, q_tile, out_grad_tile, row_lse, row_delta, k, v, words, k_strides[2], v_strides[2], STEP, scale, D,
                STEP, False, DROP,
            )  # fmt: skip
            k += tl.cast(k_strides[2], tl.int64) * STEP
            v += tl.cast(v_strides[2], tl.int64) * STEP
            if DROP:
                words += 1
    if TAIL > 0:
        result = _add_to_queries(
            result, q_tile, out_grad_tile, row_lse, row_delta, k, v, words, k_strides[2], v_strides[2], keys % STEP, scale, D,
            TAIL, True, DROP,
        )  # fmt: skip
    store_rows(q_grad + contiguous, result * (scale * _LN2), heads * D, left, D)


@triton.jit
def _add_to_queries(
    result: tl.tensor,
    q_tile: tl.tensor,
    out_grad_tile: tl.tensor,
    row_lse: tl.tensor,
    row_delta: tl.tensor,
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
) -> tl.tensor:
    """Add what the next WIDTH keys give; keys beyond the last are rows of zeros here and so give nothing."""
    k_tile = load_rows(k, k_stride, keys, D, (WIDTH, q_tile.shape[1]), CHECKED)
    v_tile = load_rows(v, v_stride, keys, D, (WIDTH, q_tile.shape[1]), CHECKED)
    weights = tl.exp2(tl.dot(q_tile, tl.trans(k_tile)) * scale - row_lse[:, None])  # (BLOCK, WIDTH)
    if DROP:
        weights = tl.where(dropped(tl.load(words), WIDTH), 0.0, weights)
    elif CHECKED:  # their logits of 0 may lie far above the others
        weights = tl.where(tl.arange(0, WIDTH)[None, :] < keys, weights, 0.0)
    logits_grad = weights * (tl.dot(out_grad_tile, tl.trans(v_tile)) - row_delta[:, None])
    return tl.dot(logits_grad.to(k_tile.dtype), k_tile, result)


@triton.jit
def key_value_gradient_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    words: tl.tensor,
    lse: tl.tensor,
    out_grad: tl.tensor,
    delta: tl.tensor,
    k_grad: tl.tensor,
    v_grad: tl.tensor,
    q_strides: tl.tuple,
    k_strides: tl.tuple,
    v_strides: tl.tuple,
    out_grad_strides: tl.tuple,
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
    """Gradients (B, S, H, D), contiguous, of one block of keys and values.

    Here BLOCK counts keys, of one word or less, and the steps go over the queries. Tiles are (keys, queries): the gradients'
    matrix products then read the weights from registers.
    """
    sample, head, first, left = program_block(keys, heads, BLOCK)
    q += sample * q_strides[0] + head * q_strides[1]
    k += sample * k_strides[0] + head * k_strides[1] + first * k_strides[2]
    v += sample * v_strides[0] + head * v_strides[1] + first * v_strides[2]
    out_grad += sample * out_grad_strides[0] + head * out_grad_strides[1]
    row = (sample * heads + head) * queries
    lse += row
    delta += row
    if DROP:
        words += row * tl.cdiv(keys, WORD_KEYS) + first // WORD_KEYS
    k_tile = load_rows(k, k_strides[2], left, D, (BLOCK, PADDED_D), True)
    v_tile = load_rows(v, v_strides[2], left, D, (BLOCK, PADDED_D), True)
    k_result = tl.zeros([BLOCK, PADDED_D], tl.float32)
    v_result = tl.zeros([BLOCK, PADDED_D], tl.float32)
    if WHOLE:
        tl.assume(queries >= STEP)  # without a path around the loop ptxas need not wait for every single wgmma
        for _ in range(queries // STEP):
            k_result, v_result = _add_to_keys(
                k_result, v_result, k_tile, v_tile, q, out_grad, lse, delta, words, q_strides[2], out_grad_strides[2], STEP,
                keys, first % WORD_KEYS, scale, D, STEP, False, DROP,
            )  # fmt: skip
            q += tl.cast(q_strides[2], tl.int64) * STEP
            out_grad += tl.cast(out_grad_strides[2], tl.int64) * STEP
            lse += STEP
            delta += STEP
            if DROP:
                words += STEP * tl.cdiv(keys, WORD_KEYS)
    if TAIL > 0:
        k_result, v_result = _add_to_keys(
            k_result, v_result, k_tile, v_tile, q, out_grad, lse, delta, words, q_strides[2], out_grad_strides[2],
            queries % STEP, keys, first % WORD_KEYS, scale, D, TAIL, True, DROP,
        )  # fmt: skip
    contiguous = ((sample * keys + first) * heads + head) * D
    store_rows(k_grad + contiguous, k_result * (scale * _LN2), heads * D, left, D)
    store_rows(v_grad + contiguous, v_result, heads * D, left, D)


@triton.jit
def _add_to_keys(
    k_result: tl.tensor,
    v_result: tl.tensor,
    k_tile: tl.tensor,
    v_tile: tl.tensor,
    q: tl.tensor,
    out_grad: tl.tensor,
    lse: tl.tensor,
    delta: tl.tensor,
    words: tl.tensor,
    q_stride: tl.tensor,
    out_grad_stride: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    bit: tl.tensor,
    scale: tl.tensor,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    CHECKED: tl.constexpr,
    DROP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Add what the next WIDTH queries give; queries beyond the last have lse +inf, so weights 0."""
    row = tl.arange(0, WIDTH)
    q_tile = load_rows(q, q_stride, queries, D, (WIDTH, k_tile.shape[1]), CHECKED)
    out_grad_tile = load_rows(out_grad, out_grad_stride, queries, D, (WIDTH, k_tile.shape[1]), CHECKED)
    row_lse = tl.load(lse + row, mask=row < queries, other=float("inf"))
    weights = tl.exp2(tl.dot(k_tile, tl.trans(q_tile)) * scale - row_lse[None, :])  # (BLOCK, WIDTH)
    if DROP:
        word = tl.load(words + row * tl.cdiv(keys, WORD_KEYS), mask=row < queries, other=0)
        weights = tl.where(tl.trans(dropped(word >> bit, k_tile.shape[0])), 0.0, weights)
    v_result = tl.dot(weights.to(out_grad_tile.dtype), out_grad_tile, v_result)
    row_delta = tl.load(delta + row, mask=row < queries, other=0.0)
    # The product starts from -delta: without registers for both, no spills on sm_80, one program more per SM on sm_90.
    weights_grad = tl.dot(v_tile, tl.trans(out_grad_tile), tl.broadcast_to(-row_delta[None, :], weights.shape))
    logits_grad = weights * weights_grad
    return tl.dot(logits_grad.to(q_tile.dtype), q_tile, k_result), v_result
