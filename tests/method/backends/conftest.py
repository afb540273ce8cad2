"""Processes in which the Triton backend runs without a GPU, apart from the tests that use Triton through inductor."""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.method.backends import kernels


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
    torch.set_num_threads(1)


def _compile_in(folder: Path) -> None:
    os.chdir(folder)
    os.environ["TRITON_CACHE_DIR"] = str(folder)


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Executor]:
    """A process in which Triton's kernels run on the CPU."""
    pytest.importorskip("triton")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _interpret) as pool:
        yield pool


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """A process that compiles Triton's kernels for GPUs that this machine need not have."""
    if not kernels.CUOBJDUMP.is_file():
        pytest.skip("there is no Triton, or one without cuobjdump")
    work = tmp_path_factory.mktemp("compiled")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _compile_in, (work,)) as pool:
        yield pool
