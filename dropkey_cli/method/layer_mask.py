"""The mask of one attention layer: drawn for its logits, counted, and in the form in which it meets them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dropkey_cli.errors import InputError
from dropkey_cli.method.mask import KeyLayout, draw_mask, ratio_share, seed_tensor
from dropkey_cli.method.settings import Structure


def layer_mask(
    shape: Sequence[int],
    ratio: float | Tensor,
    *,
    structure: Structure,
    layout: KeyLayout | None,
    seed: int | Tensor | None,
    device: torch.device,
    dtype: torch.dtype = torch.bool,
    shared_heads: int = 1,
    counts: Tensor | None,
) -> Tensor:
    """The mask for logits of ``shape``; with one query where all queries lose the same keys.

    Args:
        shape: Of the logits: the last three axes are heads, queries, keys; everything in front counts as samples.
        ratio: As for `dropkey_mask`, like ``structure`` and ``layout``.
        structure: Pattern of the dropped keys.
        layout: How the keys lie on a grid.
        seed: Seed of the mask; None draws one from the generator of ``device``. One for each image (B,) where all samples of
            an image lie together, as its windows do: they count as its heads.
        device: Where the mask is needed.
        dtype: bool: True = dropped; a floating-point type: as `additive`.
        shared_heads: So many neighbouring heads share one mask.
        counts: int64 (2,): the numbers of dropped draws and of all draws are added to it.

    Raises:
        InputError: If ``shape`` has fewer than three sides, there is no whole number of masks per seed, or as `dropkey_mask`.
    """
    if len(shape) < 3:
        raise InputError(f"attention logits have at least 3 axes (samples or heads, queries, keys), given {tuple(shape)}")
    *samples, heads, queries, keys = shape
    drawn = (torch.Size(samples).numel(), heads // shared_heads, queries, keys)
    seed, share = seed_tensor(seed, device), ratio_share(ratio)
    if seed.dim():
        drawn = _dealt_out(drawn, len(seed))
    if torch.compiler.is_compiling() and device.type == "cpu":
        mask, num_dropped = _draw_uncompiled(seed, drawn, torch.as_tensor(share), structure, layout, dtype)
    else:
        mask, num_dropped = _draw(seed, drawn, share, structure, layout, dtype)
    if counts is not None:
        counts[0].add_(num_dropped)
        counts[1].add_(mask.numel())
    mask = torch.reshape(mask, (*samples, heads // shared_heads, mask.shape[-2], keys))
    return mask.repeat_interleave(shared_heads, -3) if shared_heads > 1 else mask


def _dealt_out(shape: tuple[int, int, int, int], images: int) -> tuple[int, int, int, int]:
    """Samples and heads as images, and what each of them has of both."""
    samples, heads, queries, keys = shape
    if samples * heads % images:
        raise InputError(f"{samples} samples with {heads} heads each cannot be dealt out to {images} images: give one seed")
    return images, samples * heads // images, queries, keys


def logits_shape(q: Tensor, k: Tensor, *, enable_gqa: bool = False) -> tuple[int, ...]:
    """Shape of the logits of queries (…, N, D) and keys (…, S, D), whose leading axes broadcast: (…, N, S)."""
    leading = (*k.shape[:-3], q.shape[-3]) if enable_gqa else k.shape[:-2]
    samples_and_heads: torch.Size = torch.broadcast_shapes(q.shape[:-2], leading)  # type: ignore[no-untyped-call]
    return (*samples_and_heads, q.shape[-2], k.shape[-2])


def additive(forbidden: Tensor, dtype: torch.dtype) -> Tensor:
    """0, and minus infinity where ``forbidden`` is True."""
    # -2^7 has the bits of bfloat16's -inf: integer arithmetic takes a third of the time of a masked fill, on a CPU
    return forbidden.to(torch.int16).mul_(-(2**7)).view(torch.bfloat16).to(dtype)


def _draw(
    seed: Tensor,
    shape: Sequence[int],
    share: int | Tensor,
    structure: str,
    layout: Sequence[int] | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The mask in ``dtype`` and the number of dropped draws in it, int64 ()."""
    dropped = draw_mask(seed, shape, share, structure, layout)
    return dropped.contiguous() if dtype == torch.bool else additive(dropped, dtype), dropped.count_nonzero()


@torch.library.custom_op("dropkey::layer_mask", mutates_args=())
def _draw_uncompiled(
    seed: Tensor,
    shape: Sequence[int],
    share: Tensor,
    structure: str,
    layout: Sequence[int] | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """As `_draw`, closed to inductor, which on a CPU would mix every word four times and vectorise little of it."""
    return _draw(seed, shape, share, structure, layout, dtype)


@_draw_uncompiled.register_fake
def _(
    seed: Tensor,
    shape: Sequence[int],
    share: Tensor,
    structure: str,
    layout: Sequence[int] | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    batch, heads, queries, keys = shape
    return seed.new_empty((batch, heads, 1 if structure == "key" else queries, keys), dtype=dtype), seed.new_empty(())
