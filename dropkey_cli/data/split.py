"""Splits a data set class by class, so that every part has images of every class."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from sklearn.model_selection import train_test_split


def stratified_split(labels: Sequence[Hashable], shares: Mapping[str, float], *, seed: int) -> dict[str, list[int]]:
    """Positions of the held-out parts and, under ``"train"``, of the rest.

    Each class is split by itself: scikit-learn's ``stratify`` may leave a rare class out of a small part, and fails
    when a part is smaller than the number of classes.

    Args:
        labels: The class of each item; each class needs one item more than there are held-out parts.
        shares: Share of each class that goes to each held-out part, in (0, 1), together below 1; at least one item.
        seed: The split depends on the order of ``labels``, the shares and this number only, not on global seeds.

    Returns:
        Sorted positions; disjoint, and together all of them.
    """
    random = np.random.RandomState(seed)
    positions: dict[Hashable, list[int]] = defaultdict(list)
    for position, label in enumerate(labels):
        positions[label].append(position)
    parts: dict[str, list[int]] = {"train": [], **{name: [] for name in shares}}
    for rest in positions.values():  # in order of first appearance
        count = len(rest)
        for still_to_fill, (name, share) in zip(range(len(shares), 0, -1), shares.items(), strict=True):
            num_held = min(max(1, round(share * count)), len(rest) - still_to_fill)
            rest, held = train_test_split(rest, test_size=num_held, random_state=random)
            parts[name] += held
        parts["train"] += rest
    return {name: sorted(part) for name, part in parts.items()}
