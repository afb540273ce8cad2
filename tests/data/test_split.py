import random
from collections import Counter

import numpy as np
import pytest

from dropkey_cli.data.split import stratified_split, stratified_subset

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


def subset(labels: list[str], count: int, *, seed: int = 0) -> list[int]:
    return stratified_subset([f"{label}/{position}" for position, label in enumerate(labels)], labels, count, seed=seed)


def test_a_subset_has_its_share_of_every_class_and_one_at_least() -> None:
    # Sainte-Laguë by hand after one each: 50/3, 50/5, 50/7, 20/3, 50/9, 50/11, 20/5 are the seven largest quotients
    assert Counter(LABELS[i] for i in subset(LABELS, 10)) == {"a": 6, "b": 3, "c": 1}
    for count in range(10, 80):
        chosen = subset(LABELS, count)
        assert len(chosen) == min(count, 73)
        assert chosen == sorted(set(chosen))
        counts = Counter(LABELS[i] for i in chosen)
        for label, size in (("a", 50), ("b", 20), ("c", 3)):
            assert counts[label] >= 1
            assert abs(counts[label] - size * len(chosen) / 73) < 1  # the quota


def test_a_smaller_subset_is_part_of_a_larger_one() -> None:
    for count in range(3, 73):
        assert set(subset(LABELS, count)) < set(subset(LABELS, count + 1))


def test_a_subset_goes_by_names_and_seed_alone() -> None:
    names = [f"{number}.png" for number in range(60)]
    labels = [number % 2 for number in range(60)]
    first = stratified_subset(names, labels, 20, seed=1)
    back = stratified_subset(names[::-1], labels[::-1], 20, seed=1)
    assert [59 - position for position in back[::-1]] == first
    assert stratified_subset(names, labels, 20, seed=2) != first
    assert [position // 2 for position in first if labels[position]] != [
        position // 2 for position in first if not labels[position]
    ]
