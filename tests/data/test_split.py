import random
from collections import Counter

import numpy as np
import pytest

from dropkey_cli.data.split import stratified_split

LABELS = ["a"] * 50 + ["b"] * 20 + ["c"] * 3


def split_labels(labels: list[str], shares: dict[str, float], *, seed: int) -> dict[str, list[int]]:
    return stratified_split([f"{label}/{position}" for position, label in enumerate(labels)], labels, shares, seed=seed)


def test_split_is_complete_disjoint_and_stratified() -> None:
    parts = split_labels(LABELS, {"val": 0.2, "test": 0.1}, seed=0)
    assert sorted(parts["train"] + parts["val"] + parts["test"]) == list(range(73))
    assert Counter(LABELS[i] for i in parts["val"]) == {"a": 10, "b": 4, "c": 1}
    assert Counter(LABELS[i] for i in parts["test"]) == {"a": 5, "b": 2, "c": 1}
    assert all(part == sorted(part) for part in parts.values())


def test_split_leaves_a_training_item_even_for_a_large_share() -> None:
    parts = split_labels(list("000111"), {"val": 0.5, "test": 0.49}, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 2, "val": 2, "test": 2}


def test_split_depends_on_its_seed_and_on_no_global_one() -> None:
    def split(seed: int) -> dict[str, list[int]]:
        return split_labels(LABELS, {"val": 0.2}, seed=seed)

    first = split(1)
    np.random.seed(5)
    random.seed(5)
    assert split(1) == first
    assert split(2) != first


@pytest.mark.parametrize("seed", range(5))
def test_split_does_not_take_the_same_positions_from_every_class(seed: int) -> None:
    parts = split_labels(["0"] * 40 + ["1"] * 40, {"val": 0.2}, seed=seed)
    assert [i for i in parts["val"] if i < 40] != [i - 40 for i in parts["val"] if i >= 40]


def test_an_added_item_moves_at_most_one_other_per_part() -> None:
    names = [f"{number}.png" for number in range(50)]
    before = stratified_split(names, [0] * 50, {"val": 0.2, "test": 0.2}, seed=0)
    after = stratified_split(["new.png", *names[::-1]], [0] * 51, {"val": 0.2, "test": 0.2}, seed=0)
    for part in ("val", "test"):
        kept = {names[position] for position in before[part]} & {["new.png", *names[::-1]][p] for p in after[part]}
        assert len(kept) >= len(before[part]) - 1
