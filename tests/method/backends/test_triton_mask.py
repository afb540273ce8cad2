"""The packed mask is dropkey_mask, bit for bit."""

from concurrent.futures import Executor

import pytest
import torch
from torch import Tensor

from dropkey_cli.method.mask import dropkey_mask
from tests.method.backends import kernels

SHAPES = [(2, 3, 5, 197), (1, 2, 130, 64), (1, 1, 7, 3), (2, 2, 33, 49), (1, 1, 2, 1025)]
RATIOS = [0.1, 0.5, 1 - 2**-10, torch.tensor(0.3), torch.tensor(0.25, dtype=torch.float16), torch.tensor(0.7).double()]


def check(result: tuple[list[int], list[int]], shape: tuple[int, int, int, int], ratio: float | Tensor) -> None:
    bits, counts = result
    mask = dropkey_mask(kernels.SEED, shape, ratio)
    assert bits == mask.flatten().nonzero().flatten().tolist()
    assert counts == [int(mask.sum()), mask.numel()]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_and_counts_are_those_of_dropkey_mask(interpreter: Executor, shape: tuple[int, int, int, int]) -> None:
    check(interpreter.submit(kernels.packed, shape, 0.3).result(), shape, 0.3)


@pytest.mark.parametrize("ratio", RATIOS, ids=str)
def test_ratio_may_be_a_number_or_a_tensor_of_any_float_type(interpreter: Executor, ratio: float | Tensor) -> None:
    check(interpreter.submit(kernels.packed, (1, 2, 9, 70), ratio).result(), (1, 2, 9, 70), ratio)


# Halves of 2^-16 that Python and torch round to the even neighbour, and the largest ratios, which must not overflow 16 bits.
@pytest.mark.parametrize("ratio", [2.5 / 65536, 3.5 / 65536, 0.0, 1 - 2**-17, 1 - 2**-24], ids=str)
def test_ratios_round_as_in_the_definition(interpreter: Executor, ratio: float) -> None:
    check(interpreter.submit(kernels.packed, (1, 1, 40, 500), ratio).result(), (1, 1, 40, 500), ratio)


@pytest.mark.gpu
@pytest.mark.parametrize("ratio", RATIOS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_and_counts_on_a_gpu(shape: tuple[int, int, int, int], ratio: float | Tensor) -> None:
    check(kernels.packed(shape, ratio, "cuda"), shape, ratio)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
def test_the_kernel_compiles_without_spills(compiler: Executor, arch: int) -> None:
    resources = compiler.submit(kernels.compile_kernels, arch, 64, 197, torch.bfloat16, 0.1).result()["mask_kernel"]
    assert resources.stack == 0
    assert resources.registers <= 64  # full occupancy with 128 threads needs that few
