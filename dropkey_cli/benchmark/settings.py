"""On what, how precisely and how often a benchmark runs."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from dropkey_cli.errors import InputError

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
DTYPES: dict[Precision, torch.dtype] = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class BenchmarkSettings:
    """What all rows of a benchmark have in common.

    Args:
        device: Where to compute.
        precision: As Lightning's: mixed runs under autocast.
        ratio: Drop ratio of every attention layer.
        rounds: Samples of each figure.
        num_threads: CPU threads.
        compiled: Also time everything under torch.compile.
    """

    device: torch.device
    precision: Precision
    ratio: float
    rounds: int
    num_threads: int
    compiled: bool

    @property
    def dtype(self) -> torch.dtype:
        """Of queries, keys and values."""
        return DTYPES[self.precision]

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.precision != "32-true")


def find_device(name: str) -> torch.device:
    """The device of that name: auto is the first GPU where there is one.

    Raises:
        InputError: If there is none, or no clock for it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or not (number or "0").isdecimal() or (kind == "cpu" and number):
        raise InputError(f"device {name!r} cannot be benchmarked: give auto, cpu, cuda or, for the second GPU, cuda:1")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} is not here: PyTorch sees {torch.cuda.device_count()} GPUs; give --device cpu")
    return torch.device(name)


def find_precision(name: Precision | None, device: torch.device) -> Precision:
    """The precision of that name; by default bf16-mixed on a GPU that has bfloat16, else 32-true.

    Raises:
        InputError: If the device cannot train in it.
    """
    bf16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if name is None:
        return "bf16-mixed" if device.type == "cuda" and bf16 else "32-true"
    if name == "bf16-mixed" and not bf16:
        raise InputError(f"{torch.cuda.get_device_name(device)} does not compute in bfloat16: give --precision 16-mixed")
    if name == "16-mixed" and device.type == "cpu":
        raise InputError("precision '16-mixed' is for GPUs: on a CPU give --precision 32-true or bf16-mixed")
    return name


@contextlib.contextmanager
def memory_hint(batch_size: int) -> Iterator[None]:
    """Say what to do where memory runs out.

    Raises:
        InputError: If it does.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)):
            raise
        hint = f"give --batch_size {batch_size // 2}" if batch_size > 1 else "give a smaller model, image or shape"
        raise InputError(f"batch size {batch_size} does not fit into memory: {hint}") from error
