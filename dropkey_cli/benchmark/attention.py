"""The attention table: time, memory and error of every variant on one shape."""

import math
import re
import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dropkey_cli.benchmark.memory import peak_bytes, saved_bytes
from dropkey_cli.benchmark.paper import paper_mask
from dropkey_cli.benchmark.settings import BenchmarkSettings
from dropkey_cli.benchmark.timing import Call, Quartiles, clock_for, interleave, paired_ratio
from dropkey_cli.benchmark.variants import Function, Variant, variants
from dropkey_cli.errors import InputError
from dropkey_cli.method.mask import dropkey_mask, seed_tensor

CHECKED_SAMPLES = 2
"""So many samples of a batch are compared with float64, which is slow."""


@dataclass(frozen=True)
class Shape:
    """What attends: queries, keys and values (B, H, N, D), by SDPA or by a softmax of the module's own."""

    batch_size: int
    heads: int
    tokens: int
    head_dim: int
    function: Function = "sdpa"

    def __str__(self) -> str:
        """As in the table's title."""
        name = {"sdpa": "SDPA", "softmax": "explicit softmax"}[self.function]
        return f"B={self.batch_size} H={self.heads} N={self.tokens} D={self.head_dim}, {name}"


GPU_SHAPES = [
    Shape(256, 12, 197, 64),  # ViT-B/16, 224 pixels
    Shape(64, 12, 577, 64),  # 384 pixels
    Shape(64, 12, 1025, 64),  # 512 pixels
    Shape(8192, 3, 49, 32),  # the windows of Swin-T's first stage, 128 images
    Shape(8192, 3, 49, 32, "softmax"),
]
CPU_SHAPES = [
    Shape(8, 3, 197, 64),  # ViT-Ti/16
    Shape(8, 12, 197, 64),
    Shape(8, 3, 577, 64),
    Shape(64, 3, 49, 32),  # one image
    Shape(64, 3, 49, 32, "softmax"),
]


@dataclass(frozen=True)
class AttentionRow:
    """One variant's figures.

    Args:
        name: The variant.
        forward_seconds: Of each round.
        seconds: Forward and backward, of each round.
        ratio: Of forward and backward to the first row's.
        peak_bytes: Most memory in use at once, beyond the inputs; None on a CPU.
        saved_bytes: Kept from the forward for the backward pass.
        saved_units: The same in units of one (B, H, N, D) tensor.
        drop_ratio: Share of the draws that dropped a key.
        max_error: Largest deviation of outputs and gradients from float64 with the same mask; None where it is unknown.
    """

    name: str
    forward_seconds: list[float]
    seconds: list[float]
    ratio: Quartiles
    peak_bytes: int | None
    saved_bytes: int
    saved_units: float
    drop_ratio: float
    max_error: float | None


class Skipped(NamedTuple):
    """A row that is not in the table, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Inputs:
    """Queries, keys, values (B, H, N, D), as views of one tensor like timm's qkv, and the output's gradient (B, N, H·D)."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor


def measure_attention(shape: Shape, settings: BenchmarkSettings) -> tuple[list[AttentionRow], list[Skipped]]:
    """Time every variant on one shape.

    Raises:
        InputError: If a variant that runs everywhere runs out of memory.
    """
    copies = make_inputs(shape, settings)
    found, skipped = _that_run(variants(shape.function, settings), copies[0], settings)
    forward = {variant.name: _forward_call(variant, copies, settings) for variant in found}
    both = {f"{variant.name}, backward": _both_call(variant, copies, settings) for variant in found}
    clock, _ = clock_for(settings.device, settings.num_threads)
    seconds = interleave(forward | both, clock, rounds=settings.rounds)
    reference = seconds[f"{found[0].name}, backward"]
    rows = []
    for variant in found:
        times = seconds[f"{variant.name}, backward"]
        saved = saved_bytes(partial(_attend, variant, copies[0], settings))
        rows.append(
            AttentionRow(
                name=variant.name,
                forward_seconds=seconds[variant.name],
                seconds=times,
                ratio=paired_ratio(times, reference),
                peak_bytes=peak_bytes(partial(both[f"{variant.name}, backward"], 0), settings.device),
                saved_bytes=saved,
                saved_units=saved / copies[0].q.nbytes,
                drop_ratio=drop_ratio(variant, shape, settings),
                max_error=max_error(variant, copies[0], settings),
            )
        )
    if settings.compiled:
        torch.compiler.reset()
    return rows, skipped


def make_inputs(shape: Shape, settings: BenchmarkSettings) -> list[Inputs]:
    """Copies of the inputs: together well beyond a GPU's cache, so that no call finds its own there."""
    size = (shape.batch_size, shape.tokens, 3, shape.heads, shape.head_dim)
    generator = torch.Generator(settings.device).manual_seed(0)
    count = 3
    if settings.device.type == "cuda":
        cache = torch.cuda.get_device_properties(settings.device).L2_cache_size
        count = max(count, math.ceil(4 * cache / (math.prod(size) * settings.dtype.itemsize)))
    return [_draw_inputs(size, settings, generator) for _ in range(count)]


def _draw_inputs(size: tuple[int, int, int, int, int], settings: BenchmarkSettings, generator: torch.Generator) -> Inputs:
    batch, tokens, _, heads, head_dim = size
    device, dtype = settings.device, settings.dtype
    qkv = torch.randn(size, generator=generator, device=device).to(dtype).permute(2, 0, 3, 1, 4)  # (3, B, H, N, D)
    q, k, v = (part.detach().requires_grad_() for part in qkv.unbind(0))
    return Inputs(q, k, v, torch.randn(batch, tokens, heads * head_dim, generator=generator, device=device).to(dtype))


def _attend(variant: Variant, inputs: Inputs, settings: BenchmarkSettings, seed: Tensor | None = None) -> Tensor:
    """What a layer's projection takes, (B, N, H·D): kernels that write in another order pay for it."""
    if seed is None:
        seed = seed_tensor(None, settings.device) if variant.mask == "ours" else torch.zeros((), dtype=torch.int64)
    with settings.autocast():
        return variant.attend(inputs.q, inputs.k, inputs.v, seed).transpose(1, 2).flatten(2)


def _gradients(output: Tensor, inputs: Inputs) -> tuple[Tensor, ...]:
    # Not output.backward(), which would also copy the three gradients into their leaves' layout
    return torch.autograd.grad(output, (inputs.q, inputs.k, inputs.v), inputs.grad)


def _forward_call(variant: Variant, copies: list[Inputs], settings: BenchmarkSettings) -> Call:
    return lambda number: _attend(variant, copies[number % len(copies)], settings)


def _both_call(variant: Variant, copies: list[Inputs], settings: BenchmarkSettings) -> Call:
    def call(number: int) -> None:
        inputs = copies[number % len(copies)]
        _gradients(_attend(variant, inputs, settings), inputs)

    return call


def _that_run(candidates: list[Variant], inputs: Inputs, settings: BenchmarkSettings) -> tuple[list[Variant], list[Skipped]]:
    """The variants that this machine can run, tried once; and why not the others."""
    found, skipped = [], []
    for variant in candidates:
        why = None if variant.everywhere else _why_not(_both_call(variant, [inputs], settings))
        if why is None:
            found.append(variant)
        else:
            skipped.append(Skipped(variant.name, why))
    return found, skipped


def _why_not(call: Call) -> str | None:
    """What goes wrong in a call, in one clause; None if nothing does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SDPA explains at length why a kernel is not there
            call(0)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ImportError, InputError) as error:
        return re.split(r"\n|[.;] ", str(error).strip() or type(error).__name__)[0]
    return None


def drop_ratio(variant: Variant, shape: Shape, settings: BenchmarkSettings) -> float:
    """The share of draws that dropped a key, as counted during all calls; for the paper's listing, in one more draw."""
    if variant.mask == "own":
        samples = min(shape.batch_size, max(1, 2**24 // (shape.heads * shape.tokens**2)))  # enough to tell 0.1 from 0.1001
        logits = torch.empty(samples, shape.heads, shape.tokens, shape.tokens, device=settings.device)
        return (paper_mask(logits, settings.ratio) != 0).double().mean().item()
    if variant.counts is None:
        return 0.0
    dropped, draws = variant.counts.tolist()
    return float(dropped / draws)


def max_error(variant: Variant, inputs: Inputs, settings: BenchmarkSettings) -> float | None:
    """Largest deviation of outputs and gradients from float64 with the same mask; None where the mask is unknown."""
    if variant.mask == "own":
        return None
    seed = seed_tensor(0, settings.device)
    output = _attend(variant, inputs, settings, seed)
    results = [t[:CHECKED_SAMPLES].double() for t in (output, *_gradients(output, inputs))]
    first = _first_samples(inputs)
    shape = (*first.q.shape[:3], first.k.shape[2])
    dropped = dropkey_mask(seed, shape, settings.ratio) if variant.mask == "ours" else None
    output = reference_attention(first.q, first.k, first.v, dropped).transpose(1, 2).flatten(2)
    expected = (output, *_gradients(output, first))
    return max((mine - exact).abs().max().item() for mine, exact in zip(results, expected, strict=True))


def _first_samples(inputs: Inputs) -> Inputs:
    """In float64."""
    q, k, v = (t.detach()[:CHECKED_SAMPLES].double().requires_grad_() for t in (inputs.q, inputs.k, inputs.v))
    return replace(inputs, q=q, k=k, v=v, grad=inputs.grad[:CHECKED_SAMPLES].double())


def reference_attention(q: Tensor, k: Tensor, v: Tensor, dropped: Tensor | None) -> Tensor:
    """Attention by the definition, (B, H, N, D): a query that lost every key gives 0.

    Args:
        q: Queries (B, H, N, D).
        k: Keys (B, H, S, D).
        v: Values (B, H, S, D).
        dropped: Which keys each query loses, (B, H, N, S).
    """
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, H, N, S)
    dropped = torch.zeros_like(logits, dtype=torch.bool) if dropped is None else dropped
    empty = dropped.all(-1, keepdim=True)
    weights: Tensor = logits.masked_fill(dropped & ~empty, -torch.inf).softmax(-1).masked_fill(empty, 0)
    return weights @ v
