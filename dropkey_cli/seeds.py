"""Random seeds derived from numbers: the same on every machine and in every release."""

import hashlib


def derived_seed(*numbers: int) -> int:
    """A 63-bit seed, different for any two lists of numbers but by a collision of the hash."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
