"""The pooled features of a timm network, as a by-product of its forward."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dropkey_cli.errors import InputError


@contextmanager
def pooled_features(network: nn.Module | None) -> Iterator[list[Tensor]]:
    """Within this context every forward leaves in the list what ``forward_head(…, pre_logits=True)`` gives: (B, C).

    The forward itself, and so its logits, is what it was: it may be compiled, sharded or patched.

    Args:
        network: One of timm's, or one with their ``forward_features`` and ``forward_head``; None leaves the list empty.

    Raises:
        InputError: If it has none, or is inside such a context already.
    """
    features: list[Tensor] = []
    if network is None:
        yield features
        return
    original: Any = getattr(network, "forward_head", None)
    if original is None or "forward_head" in vars(network):
        raise InputError(f"--features: {type(network).__name__} has no forward_head that gives pooled features; leave it out")

    def forward_head(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the network's own
        features.append(original(*args, **{**kwargs, "pre_logits": True}))
        return original(*args, **kwargs)

    vars(network)["forward_head"] = forward_head
    try:
        yield features
    finally:
        del vars(network)["forward_head"]
