"""The rows of the attention table: ways to attend without DropKey, ours with it, and the paper's listing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dropkey_cli.benchmark.paper import paper_attention, paper_softmax
from dropkey_cli.benchmark.settings import BenchmarkSettings
from dropkey_cli.errors import InputError
from dropkey_cli.method.attention import Backend, dropkey_attention
from dropkey_cli.method.softmax import dropkey_softmax

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Queries, keys, values (B, H, N, D) and the mask's seed -> (B, H, N, D)."""
Function = Literal["sdpa", "softmax"]

NAMED_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Variant:
    """One way to attend.

    Args:
        name: As in the table.
        attend: The computation.
        mask: Where its dropped keys come from: none are dropped, our mask of the seed, or draws of its own.
        counts: int64 (2,): where our mask's dropped draws and all draws are counted, as in training.
        everywhere: It runs on every machine; any other variant is left out, and said so, where it does not.
    """

    name: str
    attend: Attend
    mask: Literal["none", "ours", "own"]
    counts: Tensor | None = None
    everywhere: bool = True


def variants(function: Function, settings: BenchmarkSettings) -> list[Variant]:
    """The rows for modules that call SDPA, or that compute logits and softmax themselves; the first is the reference."""
    return _sdpa_variants(settings) if function == "sdpa" else _softmax_variants(settings)


def _sdpa_variants(settings: BenchmarkSettings) -> list[Variant]:
    plain = Variant("SDPA", lambda q, k, v, _: F.scaled_dot_product_attention(q, k, v), "none")
    rows = _with_compiled([plain], [plain], settings)
    rows += [Variant(f"SDPA {name}", _by(kind), "none", everywhere=False) for name, kind in NAMED_BACKENDS.items()]
    rows.append(Variant("dropkey triton, ratio 0", _triton_without_dropping, "none", everywhere=False))
    rows.append(_dropkey("triton", settings))
    paper = Variant("paper", lambda q, k, v, _: paper_attention(q, k, v, settings.ratio), "own")
    return rows + _with_compiled([_dropkey("sdpa", settings), paper], [_dropkey("sdpa", settings), paper], settings)


def _softmax_variants(settings: BenchmarkSettings) -> list[Variant]:
    plain = Variant("softmax", lambda q, k, v, _: _logits(q, k).softmax(-1) @ v, "none")
    paper = Variant("paper", lambda q, k, v, _: paper_softmax(_logits(q, k), settings.ratio) @ v, "own")
    eager, compiled = ([plain, _dropkey_softmax(settings), paper] for _ in range(2))
    return _with_compiled(eager, compiled, settings)


def _logits(q: Tensor, k: Tensor) -> Tensor:
    """As window attention computes them: (B, H, N, S)."""
    logits: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return logits


def _by(kind: SDPBackend) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> Tensor:
        with sdpa_kernel(kind):
            return F.scaled_dot_product_attention(q, k, v)

    return attend


def _dropkey(backend: Backend, settings: BenchmarkSettings) -> Variant:
    counts, ratio = _counts_and_ratio(settings)

    def attend(q: Tensor, k: Tensor, v: Tensor, seed: Tensor) -> Tensor:
        return dropkey_attention(q, k, v, ratio, seed=seed, counts=counts, backend=backend)

    return Variant(f"dropkey {backend}", attend, "ours", counts, everywhere=backend == "sdpa")


def _dropkey_softmax(settings: BenchmarkSettings) -> Variant:
    counts, ratio = _counts_and_ratio(settings)

    def attend(q: Tensor, k: Tensor, v: Tensor, seed: Tensor) -> Tensor:
        return dropkey_softmax(_logits(q, k), ratio, seed=seed, counts=counts) @ v

    return Variant("dropkey_softmax", attend, "ours", counts)


def _triton_without_dropping(q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> Tensor:
    from dropkey_cli.method.backends import triton  # which not every platform's torch brings

    reason = triton.unsupported(q, k, v, None, is_causal=False, structure="element", dropout_p=0.0, enable_gqa=False)
    if reason is not None:
        raise InputError(f"backend 'triton' cannot take this call: {reason}")
    return triton.attention(q, k, v, None)


def _counts_and_ratio(settings: BenchmarkSettings) -> tuple[Tensor, Tensor]:
    """As patched layers have them: both on the device, the ratio a tensor."""
    return torch.zeros(2, dtype=torch.int64, device=settings.device), torch.tensor(settings.ratio, device=settings.device)


def _with_compiled(eager: list[Variant], again: list[Variant], settings: BenchmarkSettings) -> list[Variant]:
    """The variants, each followed by the compiled form of its double (which counts for itself), if they are wanted."""
    if not settings.compiled:
        return eager
    return [row for pair in zip(eager, map(_compiled, again), strict=True) for row in pair]


def _compiled(variant: Variant) -> Variant:
    attend = torch.compile(variant.attend, dynamic=False, fullgraph=True)
    return replace(variant, name=f"{variant.name}, compiled", attend=attend, everywhere=False)
