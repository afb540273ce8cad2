"""Tiles and bits as the kernels read them, against plain indexing."""

from concurrent.futures import Executor

import pytest
import torch

from tests.method.backends import kernels


@pytest.mark.parametrize("width", [16, 32, 64])
def test_bit_k_of_a_word_says_whether_key_k_is_dropped(interpreter: Executor, width: int) -> None:
    words = torch.randint(-(2**63), 2**63 - 1, (16, 3))
    bits = interpreter.submit(kernels.unpacked, words, width, 16).result()
    assert torch.equal(bits, ((words[:, :1] >> torch.arange(width)) & 1).int())


def test_rows_beyond_the_last_repeat_it_instead_of_reading_on(interpreter: Executor) -> None:
    words = torch.randint(-(2**63), 2**63 - 1, (5, 2))
    bits = interpreter.submit(kernels.unpacked, words, 64, 5).result()
    assert torch.equal(bits[5:], bits[4:5].expand(11, -1))


@pytest.mark.parametrize(("left", "head_dim", "checked"), [(16, 32, False), (16, 20, False), (7, 32, True), (7, 20, True)])
def test_tiles_are_cut_at_rows_and_head_dim(interpreter: Executor, left: int, head_dim: int, checked: bool) -> None:
    source = torch.randn(16, 2, 32)[:, 1]  # rows that are not contiguous
    expected = torch.full((16, 32), -1.0)
    expected[:left, :head_dim] = source[:left, :head_dim] + 1
    assert torch.equal(interpreter.submit(kernels.copied, source, left, head_dim, checked).result(), expected)
