"""What the Triton attention kernels share: where a program stands, tiles of rows in and out, bits of the mask."""
# mypy: disable-error-code="import-untyped, untyped-decorator"

import triton
import triton.language as tl

WORD_KEYS = tl.constexpr(64)  # one word of the mask says which of 64 keys a query loses


@triton.jit
def program_block(
    length: tl.tensor, heads: tl.tensor, BLOCK: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Sample, head, first row of the block, and number of rows left from there.

    Neighbouring programs share a head: what they all read stays in the cache. int64, as products with strides go beyond 2^31,
    but divided in int32: a division of int64 takes a hundred instructions.
    """
    blocks = tl.cdiv(length, BLOCK)
    first = tl.program_id(0) % blocks * BLOCK
    head = tl.program_id(0) // blocks
    return (head // heads).to(tl.int64), (head % heads).to(tl.int64), first.to(tl.int64), length - first


@triton.jit
def load_rows(
    start: tl.tensor, stride: tl.tensor, left: tl.tensor, D: tl.constexpr, shape: tl.constexpr, CHECKED: tl.constexpr
) -> tl.tensor:
    """A tile of rows of D numbers; 0 beyond D and, if CHECKED, beyond the rows that are ``left``."""
    row = tl.arange(0, shape[0])[:, None]
    dim = tl.arange(0, shape[1])[None, :]
    pointers = start + row * stride + dim
    if CHECKED:
        return tl.load(pointers, mask=(row < left) & (dim < D), other=0.0)
    if shape[1] > D:
        return tl.load(pointers, mask=dim < D, other=0.0)
    return tl.load(pointers)


@triton.jit
def store_rows(start: tl.tensor, tile: tl.tensor, stride: tl.tensor, left: tl.tensor, D: tl.constexpr) -> None:
    """Write those rows of a tile that are ``left`` and D numbers of each."""
    row = tl.arange(0, tile.shape[0])[:, None]
    dim = tl.arange(0, tile.shape[1])[None, :]
    tl.store(start + row * stride + dim, tile.to(start.dtype.element_ty), mask=(row < left) & (dim < D))


@triton.jit
def row_words(words: tl.tensor, row: tl.tensor, left: tl.tensor, keys: tl.tensor, ROWS: tl.constexpr) -> tl.tensor:
    """Pointers to the first words of ROWS rows; beyond those that are ``left``, of the last: readable, never used."""
    pitch = tl.cdiv(keys, WORD_KEYS)
    return words + row * pitch + tl.minimum(tl.arange(0, ROWS), left - 1) * pitch


@triton.jit
def dropped(words: tl.tensor, WIDTH: tl.constexpr) -> tl.tensor:
    """(rows, WIDTH) from one word per row: bit k is 1 where key k is dropped."""
    # By halves: a mask of 32 bits per key takes one register, which loops keep, and one instruction; one of 64 bits two.
    key = tl.arange(0, WIDTH)[None, :]
    half = (words[:, None] >> (key & 32)).to(tl.int32)
    return (half & (1 << (key & 31))) != 0
