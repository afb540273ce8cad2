"""Kernels around the parts that the attention kernels share, for their tests."""
# mypy: disable-error-code="import-untyped, untyped-decorator"

import triton
import triton.language as tl

from dropkey_cli.method.backends.triton_tiles import dropped, load_rows, row_words, store_rows


@triton.jit
def unpack(words: tl.tensor, out: tl.tensor, rows: tl.tensor, keys: tl.tensor, WIDTH: tl.constexpr) -> None:
    bits = dropped(tl.load(row_words(words, 0, rows, keys, 16)), WIDTH)
    tl.store(out + tl.arange(0, 16)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :], bits.to(tl.int32))


@triton.jit
def copy(source: tl.tensor, out: tl.tensor, stride: tl.tensor, left: tl.tensor, D: tl.constexpr, CHECKED: tl.constexpr) -> None:
    tile = load_rows(source, stride, left, D, (16, 32), CHECKED)
    store_rows(out, tile + 1, 32, left, D)
