"""Splits a data set class by class, so that every part has images of every class."""

import hashlib
from collections import Counter, defaultdict
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


def stratified_subset(names: Sequence[str], labels: Sequence[Hashable], count: int, *, seed: int) -> list[int]:
    """Positions of some of the items, in proportion to the classes (Sainte-Laguë), and at least one of each class.

    The items of a smaller count are among those of a larger one. Within its class, a hash of its name gives each item its
    turn, as in `stratified_split`.

    Args:
        names: A name of each item that stays the same, such as its relative path.
        labels: The class of each item.
        count: How many items, at least as many as there are classes; beyond their number, all.
        seed: Another number gives another choice.

    Returns:
        Sorted positions.
    """
    sizes, taken = Counter(labels), Counter[Hashable]()
    turns: list[tuple[bool, float, int]] = []
    for position in sorted(range(len(names)), key=lambda position: _place(seed, names[position])):
        label = labels[position]
        turns.append((taken[label] > 0, (taken[label] + 0.5) / sizes[label], position))
        taken[label] += 1
    turns.sort(key=lambda turn: turn[:2])  # stable: where classes are equal, the hash decides
    return sorted(position for *_, position in turns[:count])


def _place(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{name}".encode(errors="surrogateescape"), digest_size=8).digest()
