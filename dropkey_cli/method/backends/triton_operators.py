"""Operators of the Triton backend, each one node to torch.compile, checkpointing and export; how the kernels are started.

    dropkey::pack_mask             seed, ratio -> the mask, one bit per key; adds to the counts
    dropkey::attention             queries, keys, values, mask -> output, lse
    dropkey::attention_backward    their gradients

Blocks, warps and stages were chosen by registers, spills and machine instructions per logit as compiled for sm_80 and sm_90;
they have not been timed on a GPU.
"""
# mypy: disable-error-code="import-untyped"

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from dropkey_cli.method.backends.triton_backward import key_value_gradient_kernel, query_gradient_kernel
from dropkey_cli.method.backends.triton_forward import forward_kernel
from dropkey_cli.method.backends.triton_mask import mask_kernel
from dropkey_cli.method.backends.triton_tiles import WORD_KEYS

_LOG2_E = 1.4426950408889634
_MASK_ROWS = 128  # of a program of the mask's kernel, one thread each


class Block(NamedTuple):
    """How a kernel is cut.

    Args:
        rows: Queries of a program; in the kernel of the keys' gradient, keys.
        step: Keys, or queries, that it takes at a time.
        warps: Warps of a program.
        stages: Steps whose loads are under way.
    """

    rows: int
    step: int
    warps: int
    stages: int = 2


# Up to head dim 64 and beyond it, where a block's sums alone take half the registers. GPUs other than sm_90 and sm_100 keep
# more of a product's operands in registers, and some have less shared memory.
_BLOCKS = {
    forward_kernel: (Block(128, 64, 4), Block(128, 64, 8)),
    query_gradient_kernel: (Block(64, 64, 4), Block(128, 64, 8)),
    key_value_gradient_kernel: (Block(64, 64, 4), Block(64, 32, 4)),
}
_SMALLER_BLOCKS = {
    forward_kernel: (Block(64, 64, 4), Block(128, 64, 8)),
    query_gradient_kernel: (Block(64, 64, 4), Block(32, 64, 4)),
    key_value_gradient_kernel: (Block(64, 64, 4), Block(32, 32, 4)),
}


@torch.library.custom_op("dropkey::pack_mask", mutates_args=("counts",))
def pack_mask(seed: Tensor, ratio: Tensor, batch: int, heads: int, queries: int, keys: int, counts: Tensor) -> Tensor:
    """Packed mask int64 (B, H, N, ceil(S / 64)), see `mask_kernel`."""
    words = seed.new_empty(batch, heads, queries, _words_of(keys))
    rows = batch * heads * queries
    with torch.cuda.device_of(seed):  # type: ignore[no-untyped-call]
        mask_kernel[(-(-rows // _MASK_ROWS),)](
            seed,
            ratio,
            words,
            counts,
            heads,
            queries,
            keys,
            rows,
            rows * keys,
            TAIL=keys % WORD_KEYS.value,
            ROWS=_MASK_ROWS,
            num_warps=_MASK_ROWS // 32,
        )
    return words


@pack_mask.register_fake
def _(seed: Tensor, ratio: Tensor, batch: int, heads: int, queries: int, keys: int, counts: Tensor) -> Tensor:
    return seed.new_empty(batch, heads, queries, _words_of(keys))


@torch.library.custom_op("dropkey::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, words: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Output (B, H, N, D) and lse (B, H, N), see `forward_kernel`; without a mask if there are no ``words``."""
    q, k, v = (_readable(x) for x in (q, k, v))
    out, lse = _new_rows(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    _launch(forward_kernel, (q, k, v, words, out, lse), (q, k, v), scale, drop=words is not None)
    return out, lse


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, words: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    return _new_rows(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("dropkey::attention_backward", mutates_args=())
def attention_backward(
    q: Tensor, k: Tensor, v: Tensor, words: Tensor | None, out: Tensor, lse: Tensor, out_grad: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, see `query_gradient_kernel` and `key_value_gradient_kernel`."""
    strided = tuple(_readable(x) for x in (q, k, v, out_grad))
    q, k, v, out_grad = strided
    q_grad, k_grad, v_grad, delta = _new_rows(q), _new_rows(k), _new_rows(v), torch.empty_like(lse)
    drop = words is not None
    _launch(query_gradient_kernel, (q, k, v, words, out, lse, out_grad, delta, q_grad), strided, scale, drop=drop)
    _launch(key_value_gradient_kernel, (q, k, v, words, lse, out_grad, delta, k_grad, v_grad), strided, scale, drop=drop)
    return q_grad, k_grad, v_grad


@attention_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, words: Tensor | None, out: Tensor, lse: Tensor, out_grad: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _new_rows(q), _new_rows(k), _new_rows(v)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
    q, k, v, words, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, words, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, out_grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    if out_grad is None:
        return (None,) * 5
    q, k, v, words, out, lse = ctx.saved_tensors
    return (*attention_backward(q, k, v, words, out, lse, out_grad, ctx.scale), None, None)


attention.register_autograd(_backward, setup_context=_save_for_backward)


def _launch(
    kernel: Any,  # noqa: ANN401
    tensors: tuple[Tensor | None, ...],
    strided: tuple[Tensor, ...],
    scale: float,
    *,
    drop: bool,
) -> None:
    """Run a kernel, one program per head and block of queries or, where it walks over the queries, of keys."""
    batch, heads, queries, head_dim = strided[0].shape
    keys = strided[1].shape[2]
    owned, walked = (keys, queries) if kernel is key_value_gradient_kernel else (queries, keys)
    block = _blocks(strided[0])[kernel][head_dim > 64]
    rows = min(block.rows, 64) if owned <= 64 else block.rows
    tail = walked % block.step
    with torch.cuda.device_of(strided[0]):  # type: ignore[no-untyped-call]
        kernel[(batch * heads * -(-owned // rows),)](
            *tensors,
            *(x.stride()[:3] for x in strided),
            heads,
            queries,
            keys,
            scale * _LOG2_E,
            D=head_dim,
            PADDED_D=triton.next_power_of_2(head_dim),
            BLOCK=rows,
            STEP=block.step,
            WHOLE=walked >= block.step,
            TAIL=max(16, triton.next_power_of_2(tail)) if tail else 0,
            DROP=drop,
            num_warps=block.warps,
            num_stages=block.stages,
            enable_fp_fusion=True,  # Triton 3.10 means to change the default; an unfused multiply-add is one more instruction
        )


def _blocks(x: Tensor) -> dict[Any, tuple[Block, Block]]:
    return _BLOCKS if x.is_cuda and torch.cuda.get_device_capability(x.device)[0] in (9, 10) else _SMALLER_BLOCKS


def _words_of(keys: int) -> int:
    words: int = -(-keys // WORD_KEYS.value)
    return words


def _readable(x: Tensor) -> Tensor:
    """With the last axis contiguous, and rows so near that the kernels can count to the end of a block in 32 bits."""
    return x if x.stride(-1) == 1 and x.stride(-2) < 2**23 else x.contiguous()


def _new_rows(like: Tensor) -> Tensor:
    """Uninitialised (B, H, N, D), in memory (B, N, H, D): a module's transpose(1, 2).reshape(B, N, C) then copies nothing."""
    batch, heads, rows, head_dim = like.shape
    return like.new_empty(batch, rows, heads, head_dim).transpose(1, 2)
