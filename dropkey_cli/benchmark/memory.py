"""Memory that a training step needs: what autograd keeps for the backward pass, and the peak on a GPU."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], Any], *, leave_out: Iterable[Tensor] = ()) -> int:
    """Bytes that a forward pass keeps for its backward pass; tensors that share memory count once.

    Args:
        forward: Gives the outputs; run once.
        leave_out: Tensors that exist anyway, such as the parameters.
    """
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = forward()  # the name holds the graph, so that no memory is given to a second tensor
    known = {tensor.untyped_storage().data_ptr() for tensor in leave_out}
    del kept
    return sum(size for address, size in storages.items() if address not in known)


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that ``work`` needs at most at once on a GPU, beyond what is there before; None on a CPU, which does not count."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
