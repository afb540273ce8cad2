"""The backend for CUDA in half precision: fused attention with DropKey in Triton; nothing of N × N but packed bits."""
# mypy: disable-error-code="untyped-decorator"

import os
import shutil
import sysconfig
import warnings
from pathlib import Path

import torch
from torch import Tensor

from dropkey_cli.method.backends import triton_operators
from dropkey_cli.method.settings import Structure, check_ratio

_DTYPES = (torch.float16, torch.bfloat16)
_HAS_COMPILER = bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))
_CAN_BUILD = _HAS_COMPILER and Path(sysconfig.get_path("include"), "Python.h").is_file()
_CANNOT_BUILD = "Triton needs a C compiler (gcc or clang) and Python's headers, and one is missing"


def unsupported(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None,
    *,
    is_causal: bool,
    structure: Structure,
    dropout_p: float,
    enable_gqa: bool,
) -> str | None:
    """Why the kernels cannot take this call of `dropkey_attention`, as a clause; None if they can."""
    if attn_mask is not None or is_causal:
        return "there is a further mask"
    if structure != "element":
        return f"the structure is {structure!r}, not 'element'"
    if dropout_p != 0 or enable_gqa:
        return "dropout of the weights and shared key heads (enable_gqa) are not in the kernels"
    return _unsupported_device(q) or _unsupported_shape(q, k, v) or _unsupported_dtype(q, k, v)


def _unsupported_device(q: Tensor) -> str | None:
    if not q.is_cuda or torch.version.hip is not None:
        return f"queries are on {q.device.type}, not on an NVIDIA GPU"
    major, minor = _capability(q.get_device())
    if major < 8:
        return f"the GPU has compute capability {major}.{minor}, not at least 8.0"
    return None if _can_build() else _CANNOT_BUILD


@torch.compiler.assume_constant_result
def _can_build() -> bool:
    if not _CAN_BUILD:  # Python shows the same warning once
        warnings.warn(f"DropKey takes the backend 'sdpa', which needs more time and memory: {_CANNOT_BUILD}", stacklevel=1)
    return _CAN_BUILD


@torch.compiler.assume_constant_result  # torch.compile cannot trace the question
def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _unsupported_shape(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    if not q.dim() == k.dim() == v.dim() == 4:
        return f"queries, keys and values have {q.dim()}, {k.dim()} and {v.dim()} axes, not 4"
    if k.shape[2] != v.shape[2] or not q.shape[3] == k.shape[3] == v.shape[3]:
        return "queries, keys and values differ in head dim, or keys and values in number"
    if not 16 <= q.shape[3] <= 128:
        return f"the head dim is {q.shape[3]}, not 16 to 128"
    return None if q.numel() and k.numel() else "there are no queries or no keys"


def _unsupported_dtype(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    for name, x in (("queries", q), ("keys", k), ("values", v)):
        dtype = _dtype(x)
        if dtype not in _DTYPES:
            return f"{name} are {str(dtype).removeprefix('torch.')}, not float16 or bfloat16"
    return None if _dtype(q) == _dtype(k) == _dtype(v) else "queries, keys and values differ in dtype"


def _dtype(x: Tensor) -> torch.dtype:
    """The dtype that SDPA would compute in: under autocast its own, except for float64."""
    if torch.is_autocast_enabled(x.device.type) and x.is_floating_point() and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ratio: float | Tensor | None,
    *,
    scale: float | None = None,
    seed: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Attention with the mask dropkey_mask(seed, (B, H, N, S), ratio), for calls that `unsupported` does not object to.

    Args:
        q: Queries (B, H, N, D); strides are free, as in views of one qkv tensor.
        k: Keys (B, H, S, D).
        v: Values (B, H, S, D).
        ratio: Drop ratio; a tensor is read by the kernel only. None: the same kernels without a mask.
        scale: Factor of the logits, by default D ** -0.5.
        seed: int64 (), needed unless ``ratio`` is None; read by the kernel only.
        counts: int64 (2,): the numbers of dropped draws and of all draws are added to it.

    Returns:
        (B, H, N, D), in memory (B, N, H, D). A query that lost every key gives 0 and gets gradient 0.
    """
    leading = torch.broadcast_shapes(q.shape[:2], k.shape[:2], v.shape[:2])  # type: ignore[no-untyped-call]
    q, k, v = (x.to(_dtype(x)).expand(*leading, -1, -1) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if scale <= 0:  # the kernels take the largest product of a row for the largest logit
        q, scale = (-q, -scale) if scale < 0 else (q * 0, 1.0)
    words = None
    if ratio is not None:
        assert seed is not None
        words = pack_mask(seed.to(q.device), (*q.shape[:3], k.shape[2]), ratio, counts)
    out: Tensor = triton_operators.attention(q, k, v, words, scale)[0]
    return out


def pack_mask(seed: Tensor, shape: tuple[int, int, int, int], ratio: float | Tensor, counts: Tensor | None = None) -> Tensor:
    """The mask dropkey_mask(seed, shape, ratio) in bits: int64 (B, H, N, ceil(S / 64)), bit k % 64 of word k // 64 for key k.

    1 means dropped; the bits beyond key S - 1 are 1. Runs on the device of ``seed``; ``counts`` as for `attention`.
    """
    if not isinstance(ratio, Tensor):
        check_ratio("ratio", ratio)
        ratio = torch.full((), ratio, dtype=torch.float64, device=seed.device)
    if counts is None:  # inductor (torch 2.15) does not compile operators with such an argument that is None
        counts = torch.zeros(2, dtype=torch.int64, device=seed.device)
    words: Tensor = triton_operators.pack_mask(seed.to(torch.int64), ratio.to(seed.device), *shape, counts)
    return words
