"""What the tests of the Triton backend run in other processes: the kernels interpreted on a CPU, or compiled for a GPU."""
# mypy: disable-error-code="import-untyped"

import functools
import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from dropkey_cli.method.mask import dropkey_mask

SEED = 20_241_122
_TRITON = importlib.util.find_spec("triton")
CUOBJDUMP = Path(_TRITON.origin or "" if _TRITON else "").parent / "backends/nvidia/bin/cuobjdump"
# Compute capability, head dim, and the bytes of spilled registers that are tolerated, where badly chosen blocks spill hundreds
# and thousands: a few beyond head dim 64, and two registers that ptxas gives up for another program per SM.
SPILLED = [(80, 32, 16), (80, 64, 0), (80, 80, 96), (80, 128, 96), (90, 32, 0), (90, 64, 0), (90, 80, 64), (90, 128, 64)]


class Case(NamedTuple):
    """One attention to compare with the oracle."""

    queries: int
    keys: int
    head_dim: int
    ratio: float | None = 0.3
    dtype: torch.dtype = torch.float32
    batch: int = 1
    heads: int = 2
    gain: float = 1.0  # of the queries: 8 makes the logits peaked
    scale: float | None = None
    shift: float = 0.0  # of the queries up and the keys down: the logits are about -shift² · sqrt(D)
    device: str = "cpu"


class Errors(NamedTuple):
    """Errors of the output and the gradients of q, k and v, as norms, relative to what is expected unless that is below 1."""

    out: float
    q_grad: float
    k_grad: float
    v_grad: float


@functools.cache
def attend(case: Case) -> tuple[Errors, Errors]:
    """Errors of the backend and of PyTorch's own SDPA in the same dtype, both against float64."""
    from dropkey_cli.method.backends import triton

    tensors, grad = _inputs(case)
    shape = (case.batch, case.heads, case.queries, case.keys)
    lost = torch.zeros(shape, dtype=torch.bool) if case.ratio is None else dropkey_mask(SEED, shape, case.ratio)
    lost = lost.to(case.device)
    seed = torch.tensor(SEED, device=case.device)
    expected = _results(tensors, grad, torch.float64, lambda q, k, v: oracle(q, k, v, lost, case.scale))
    ours = _results(
        tensors, grad, case.dtype, lambda q, k, v: triton.attention(q, k, v, case.ratio, scale=case.scale, seed=seed)
    )
    theirs = _results(
        tensors, grad, case.dtype, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, ~lost, scale=case.scale)
    )
    empty = lost.all(-1)
    assert not ours[0][empty].any() and not ours[1][empty].any(), "a query without keys has an output or a gradient"
    return _errors(ours, expected), _errors(theirs, expected)


def oracle(q: Tensor, k: Tensor, v: Tensor, lost: Tensor, scale: float | None) -> Tensor:
    """Softmax over the keys that are left, 0 where there are none."""
    logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.softmax(logits.masked_fill(lost, -torch.inf), -1).masked_fill(lost.all(-1, keepdim=True), 0) @ v


def _inputs(case: Case) -> tuple[list[Tensor], Tensor]:
    """Q, k and v as a module slices them from one projection, and the gradient of the output as a module returns it."""
    torch.manual_seed(0)
    rows = max(case.queries, case.keys)
    qkv = torch.randn(case.batch, rows, 3, case.heads, case.head_dim)
    qkv[:, :, 0] *= case.gain
    qkv += case.shift * torch.tensor([1, -1, 0])[:, None, None]
    q, k, v = qkv.to(case.dtype).to(case.device).permute(2, 0, 3, 1, 4).unbind(0)
    grad = torch.randn(case.batch, case.queries, case.heads, case.head_dim).to(case.dtype).to(case.device)
    return [q[:, :, : case.queries], k[:, :, : case.keys], v[:, :, : case.keys]], grad.transpose(1, 2)


def _results(tensors: list[Tensor], grad: Tensor, dtype: torch.dtype, function: Any) -> list[Tensor]:  # noqa: ANN401
    leaves = [x.detach().to(dtype).requires_grad_() for x in tensors]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(dtype))]


def _errors(results: list[Tensor], expected: list[Tensor]) -> Errors:
    return Errors(*((r.double() - e).norm().item() / max(e.norm().item(), 1.0) for r, e in zip(results, expected, strict=True)))


def packed(shape: tuple[int, int, int, int], ratio: float | Tensor, device: str = "cpu") -> tuple[list[int], list[int]]:
    """The bits of `pack_mask` as indices of the dropped keys in the flattened mask, and the counts."""
    from dropkey_cli.method.backends import triton

    counts = torch.tensor([5, 7], device=device)  # they are added to
    ratio = ratio.to(device) if isinstance(ratio, Tensor) else ratio
    words = triton.pack_mask(torch.tensor(SEED, device=device), shape, ratio, counts).cpu()
    key = torch.arange(64 * words.shape[-1])
    bits = (words[..., key // 64] >> (key % 64)) & 1
    assert bits[..., shape[-1] :].all(), "bits beyond the last key must be 1"
    return bits[..., : shape[-1]].flatten().nonzero().flatten().tolist(), (counts.cpu() - torch.tensor([5, 7])).tolist()


def with_blocks(case: Case, rows: int, step: int) -> Errors:
    """Errors against float64 with other blocks; ``step`` is that of the kernel of the keys' gradient."""
    from dropkey_cli.method.backends import triton_operators
    from dropkey_cli.method.backends.triton_backward import key_value_gradient_kernel
    from dropkey_cli.method.backends.triton_operators import Block

    tables = triton_operators._SMALLER_BLOCKS
    before = dict(tables)
    try:
        for kernel in tables:
            own = (min(rows, 64), step) if kernel is key_value_gradient_kernel else (rows, 64)
            tables[kernel] = (Block(*own, 4),) * 2
        return attend.__wrapped__(case)[0]
    finally:
        tables.update(before)


def unpacked(words: Tensor, width: int, rows: int) -> Tensor:
    """What `dropped` reads in the first ``width`` bits of the first words of 16 rows, of which ``rows`` exist."""
    from tests.method.backends.tile_kernels import unpack

    out = torch.empty(16, width, dtype=torch.int32)
    unpack[(1,)](words, out, rows, 64 * words.shape[1], WIDTH=width)
    return out


def copied(source: Tensor, left: int, head_dim: int, checked: bool) -> Tensor:
    """A tile (16, 32) of ``source``, read by `load_rows`, plus 1, written by `store_rows` to a tensor of -1."""
    from tests.method.backends.tile_kernels import copy

    out = torch.full((16, 32), -1.0)
    copy[(1,)](source, out, source.stride(0), left, D=head_dim, CHECKED=checked)
    return out


class Resources(NamedTuple):
    """What a compiled kernel takes."""

    registers: int
    stack: int  # bytes per thread: more than 0 means spilled registers
    shared: int  # bytes per program


def compile_kernels(arch: int, head_dim: int, tokens: int, dtype: torch.dtype, ratio: float | None) -> dict[str, Resources]:
    """Run the backend forward and backward with kernels that are compiled for sm_``arch``, without a GPU, and not started."""
    from triton.runtime.driver import driver

    from dropkey_cli.method.backends import triton, triton_operators

    driver.set_active(_Target(arch))
    compiled: dict[str, Resources] = {}
    blocks = triton_operators._BLOCKS if arch == 90 else triton_operators._SMALLER_BLOCKS
    stand_ins: dict[str, Any] = {
        name: _CompiledOnly(kernel, compiled) for name, kernel in vars(triton_operators).items() if name.endswith("_kernel")
    }
    table = {stand_in: blocks[stand_in.kernel] for stand_in in stand_ins.values() if stand_in.kernel in blocks}
    qkv = torch.zeros(1, tokens, 3, 2, head_dim, dtype=dtype, requires_grad=True)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    seed, counts = torch.tensor(SEED), torch.zeros(2, dtype=torch.int64)
    with patch.multiple(triton_operators, _blocks=lambda _: table, **stand_ins):
        out = triton.attention(q, k, v, ratio, seed=seed, counts=counts)
        out.sum().backward()  # type: ignore[no-untyped-call]
    return compiled


class _CompiledOnly:
    """In place of a kernel: launching it compiles it for the arguments."""

    def __init__(self, kernel: Any, compiled: dict[str, Resources]) -> None:  # noqa: ANN401
        self.kernel, self.compiled = kernel, compiled

    def __getitem__(self, grid: tuple[int, ...]) -> Any:  # noqa: ANN401
        return lambda *args, **options: self._compile(self.kernel.warmup(*args, grid=grid, **options))

    def _compile(self, binary: Any) -> None:  # noqa: ANN401
        file = Path(binary.metadata.name + ".cubin")
        file.write_bytes(binary.asm["cubin"])
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file], capture_output=True, text=True, check=True).stdout
        found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        assert found is not None, usage
        self.compiled[binary.metadata.name] = Resources(int(found[1]), int(found[2]), binary.metadata.shared)


class _Target:
    """The GPU driver that Triton asks what to compile for."""

    def __init__(self, arch: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> Any:  # noqa: ANN401
        return self.target

    def get_current_device(self) -> int:
        return int(self.target.arch)

    def get_current_stream(self, device: int) -> int:
        return 0
