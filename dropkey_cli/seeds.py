"""Random seeds derived from numbers: the same on every machine and in every release."""

import hashlib

import torch


def derived_seed(*numbers: int) -> int:
    """A 63-bit seed, different for any two lists of numbers but by a collision of the hash."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_generators(seed: int, device: torch.device) -> None:
    """Let torch's generators start at a seed: the CPU's, and that of the device that computes.

    Args:
        seed: A 63-bit number.
        device: Where masks are drawn.
    """
    torch.default_generator.manual_seed(seed)  # torch.manual_seed looks for every kind of device, for up to a millisecond
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
