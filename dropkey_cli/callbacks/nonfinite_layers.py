"""Where in a network the numbers stop being finite."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from dropkey_cli.patching.interception import KeyDropping

NUM_LARGEST = 3


def find_nonfinite(network: nn.Module, images: Tensor | None) -> str:
    """The first place of a network that is not finite, in words.

    That is a parameter, else, in one forward in the network's present mode, the first value that goes into or comes out of a
    module, else the modules with the largest outputs. Buffers, counts and random generators stay as they are.

    Args:
        network: The network.
        images: What it is called with; None looks at the parameters only.
    """
    for name, parameter in network.named_parameters():
        if not is_finite([parameter]):
            return f"the parameter {name} is not finite"
    if images is None:
        return "every parameter is finite"
    if not is_finite([images]):
        return "the images themselves are not finite"
    seen = _magnitudes(network, images)
    for what, name, value in seen:
        if not value < float("inf"):
            return f"the first value that is not finite {what} {name or 'the network'}"
    outputs = {value: name for what, name, value in reversed(seen) if what == _OUT and name}  # of equals, the first to run
    largest = ", ".join(f"{outputs[value]} ({value:.3g})" for value in sorted(outputs, reverse=True)[:NUM_LARGEST])
    return f"every output is finite on the last batch, and the largest are those of {largest or 'no layer'}"


def is_finite(tensors: list[Tensor]) -> bool:
    """Whether all elements are; waits for the device once."""
    return bool(largest_magnitude(tensors).isfinite())


def largest_magnitude(tensors: list[Tensor]) -> Tensor:
    """The largest absolute value (0-d, float32), NaN if any element is; of sharded tensors that of this process's shards."""
    return _largest_norm(tensors, order=float("inf"))


def largest_norm(tensors: list[Tensor]) -> Tensor:
    """The largest Euclidean norm of a tensor (0-d, float32), as `largest_magnitude`.

    On a CPU 25 times faster than that, and infinite also where a square overflows, beyond 1.8e19, as in Adam's moments.
    """
    return _largest_norm(tensors, order=2)


@torch.no_grad()
def _largest_norm(tensors: list[Tensor], *, order: float) -> Tensor:
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in local:
        if tensor.numel():
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
    norms = [norm for same in by_dtype.values() for norm in torch._foreach_norm(same, order, dtype=torch.float32)]
    return torch.stack(norms).amax() if norms else torch.zeros(())


_IN, _OUT = "goes into", "comes out of"


def _magnitudes(network: nn.Module, images: Tensor) -> list[tuple[str, str, float]]:
    """Largest absolute values of one forward in the order they come up, as (goes into or comes out of, module, value)."""
    seen: list[tuple[str, str, Tensor]] = []

    def note(what: str, name: str, value: Any) -> None:  # noqa: ANN401 - what modules take and give
        tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        seen.append((what, name, largest_magnitude(tensors).to(images.device)))

    hooks = []
    for name, module in network.named_modules():
        hooks.append(module.register_forward_pre_hook(partial(lambda name, _, given: note(_IN, name, given), name)))
        hooks.append(module.register_forward_hook(partial(lambda name, _, __, output: note(_OUT, name, output), name)))
    try:
        # A compiled network has no modules left to look at
        with _unchanged(network, images.device), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    values = torch.stack([value for *_, value in seen]).tolist()
    return [(what, name, value) for (what, name, _), value in zip(seen, values, strict=True)]


@contextmanager
def _unchanged(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Buffers (running statistics), drop counts and random generators are afterwards as before."""
    states = [module.dropkey for module in network.modules() if isinstance(module, KeyDropping)]
    before = [tensor.clone() for tensor in (*network.buffers(), *(state.counts for state in states))]
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
        try:
            yield
        finally:
            with torch.no_grad():
                # Looked up again: a first forward on another device moves the counts there
                for tensor, value in zip((*network.buffers(), *(state.counts for state in states)), before, strict=True):
                    tensor.copy_(value)
