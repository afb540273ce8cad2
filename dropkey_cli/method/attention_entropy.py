"""How spread attention is: the entropy of a query's weights, and the weight of its strongest key, summed per head."""

import torch
from torch import Tensor

SUMS = ("rows", "empty_rows", "spread_rows", "entropy", "normalized_entropy", "top_key")
"""What `attention_sums` adds up for each head, in this order."""


def attention_entropy(weights: Tensor) -> Tensor:
    """The entropy -Σ w·log w of each query's attention in nats: from 0 (one key) to log S (all keys alike).

    Args:
        weights: Attention weights (…, N, S) after the softmax; a weight of 0 adds nothing.

    Returns:
        (…, N), in float32 or better.
    """
    of_keys: Tensor = torch.special.entr(_precise(weights))
    return of_keys.sum(-1)


def possible_keys(weights: Tensor) -> Tensor:
    """To how many keys each query attends at all: neither dropped nor forbidden, also where -100 forbids.

    Args:
        weights: Attention weights (…, N, S) after the softmax.

    Returns:
        (…, N), int64. Keys below float32's smallest normal number (1.2e-38, a logit 87 below the largest) do not count.
    """
    return (weights > torch.finfo(torch.float32).tiny).sum(-1)


def attention_sums(weights: Tensor, *, heads_axis: int | None = -3) -> Tensor:
    """What averages over queries are made of, to be added over batches and processes.

    Args:
        weights: Attention weights (B, H, N, S) after the softmax, or with further axes that count as samples; dropout of
            weights comes later and is not in them.
        heads_axis: Axis of the heads; None, or no axis left for them, where all are taken together.

    Returns:
        (H, 6), float64: for each head the columns of `SUMS`. ``rows`` counts queries with at least one key, and ``entropy`` and
        ``top_key`` (the largest weight) are summed over them; ``empty_rows`` counts queries that lost all keys. The normalised
        entropy is divided by the log of the number of possible keys, which needs two of them: ``spread_rows`` counts such
        queries.
    """
    entropy, top, keys = attention_entropy(weights), _precise(weights).amax(-1), possible_keys(weights)
    spread = keys > 1
    normalized = torch.where(spread, entropy / keys.clamp(min=2).to(entropy).log(), 0.0)  # not in the default precision
    columns = torch.stack([(keys > 0).to(top), (keys == 0).to(top), spread.to(top), entropy, normalized, top])
    if columns.device.type == "mps":  # it has no float64
        columns = columns.cpu()
    if heads_axis is None or weights.dim() < 4:
        return columns.flatten(1).sum(-1, dtype=torch.float64)[None]
    axis = heads_axis + 1  # behind the columns; counted from the end, because the keys are gone
    return columns.movedim(axis, 1).flatten(2).sum(-1, dtype=torch.float64).T


def _precise(weights: Tensor) -> Tensor:
    return weights.to(torch.promote_types(weights.dtype, torch.float32))
