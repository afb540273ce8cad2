"""Splits a data set class by class, so that every part has images of every class."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence


def stratified_split(
    names: Sequence[str], labels: Sequence[Hashable], shares: Mapping[str, float], *, seed: int
) -> dict[str, list[int]]:
    """Positions of the held-out parts and, under ``"train"``, of the rest.

    Within its class, each item has a place by a hash of its name; the first places are held out. So an item that comes or
    goes moves at most one other per part, and neither order nor global seeds matter.

    Args:
        names: A name of each item that stays the same, such as its relative path.
        labels: The class of each item; each class needs one item more than there are held-out parts.
        shares: Share of each class that goes to each held-out part, in (0, 1), together below 1; at least one item.
        seed: Another number gives another split.

    Returns:
        Sorted positions; disjoint, and together all of them.
    """
    classes: dict[Hashable, list[int]] = defaultdict(list)
    for position in sorted(range(len(names)), key=lambda position: _place(seed, names[position])):
        classes[labels[position]].append(position)
    parts: dict[str, list[int]] = {"train": [], **{name: [] for name in shares}}
    for rest in classes.values():
        count = len(rest)
        for still_to_fill, (name, share) in zip(range(len(shares), 0, -1), shares.items(), strict=True):
            num_held = min(max(1, round(share * count)), len(rest) - still_to_fill)
            parts[name] += rest[:num_held]
            rest = rest[num_held:]
        parts["train"] += rest
    return {name: sorted(part) for name, part in parts.items()}


def _place(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{name}".encode(errors="surrogateescape"), digest_size=8).digest()
