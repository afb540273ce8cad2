import random
import signal
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from dropkey_cli.data.augmentation import Augmentation
from dropkey_cli.data.dataset import Batch, ImageDataset, Sample, counted
from dropkey_cli.data.loading import (
    PADDING,
    Draw,
    EvalSampler,
    TrainSampler,
    leave_signals_to_the_run,
    process_of,
    run_seed,
    seeded,
)
from dropkey_cli.data.preprocessing import Preprocessing, eval_transform, train_transform
from dropkey_cli.seeds import derived_seed

PREPROCESSING = Preprocessing(16, (0.0,) * 3, (1.0,) * 3, "bilinear", 1.0)


def noise(count: int, transform_for: str = "train") -> ImageDataset:
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(count)]
    transform = train_transform(PREPROCESSING, Augmentation()) if transform_for == "train" else eval_transform(PREPROCESSING)
    return ImageDataset([Sample(f"memory/{n}", n % 3) for n in range(count)], transform, image_size=16, read=images.__getitem__)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 7))
def test_every_image_is_evaluated_once_in_as_many_steps_everywhere(images: int, processes: int, batch_size: int) -> None:
    dealt = [list(EvalSampler(range(images), num_replicas=processes, rank=rank)) for rank in range(processes)]
    assert len({len(own) for own in dealt}) == 1
    in_order = [position for place in zip(*dealt, strict=True) for position in place]
    assert [position for position in in_order if position != PADDING] == list(range(images))
    assert sum(position == PADDING for position in in_order) < processes
    assert all(PADDING not in own[:-1] for own in dealt)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 3))
def test_training_images_are_dealt_out_whole(images: int, processes: int, epoch: int) -> None:
    samplers = [TrainSampler(range(images), seed=5, num_replicas=processes, rank=rank) for rank in range(processes)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    dealt = [list(sampler) for sampler in samplers]
    counts = Counter(draw.position for own in dealt for draw in own)
    assert set(counts) == set(range(images))
    assert sum(counts.values()) - images < processes  # a few twice, so that all processes have as many
    assert len({len(own) for own in dealt}) == 1


def draws(images: int, epoch: int, *, repeats: int, processes: int = 1, seed: int = 3) -> list[list[Draw]]:
    samplers = [
        TrainSampler(range(images), seed=seed, repeats=repeats, num_replicas=processes, rank=n) for n in range(processes)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers]


def test_the_order_without_repeats_is_torchs() -> None:
    for processes in (1, 2, 3):
        for rank, own in enumerate(draws(50, 4, repeats=1, processes=processes)):
            dataset = cast(Dataset[int], range(50))
            theirs: DistributedSampler[int] = DistributedSampler(dataset, processes, rank, seed=derived_seed(3) >> 1)
            theirs.set_epoch(4)
            assert [draw.position for draw in own] == list(theirs)
            assert [draw.seed for draw in own] == [derived_seed(3, 4, position) for position in theirs]


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2))
def test_as_many_epochs_as_repeats_use_every_image_equally_often(images: int, processes: int, repeats: int, group: int) -> None:
    used: Counter[int] = Counter()
    seeds = set()
    for epoch in range(group * repeats, (group + 1) * repeats):
        dealt = draws(images, epoch, repeats=repeats, processes=processes)
        assert {len(own) for own in dealt} == {-(-images // processes)}  # as long as without repeats
        in_order = [draw for place in zip(*dealt, strict=True) for draw in place][:images]  # the rest is torch's padding
        used.update(draw.position for draw in in_order)
        seeds |= {draw.seed for draw in in_order}
    assert used == dict.fromkeys(range(images), repeats)
    assert len(seeds) == images * repeats  # each time augmented anew


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_copies_of_an_image_go_to_the_processes_that_timm_sends_them_to(processes: int) -> None:
    images, repeats = 24, 3
    ours = [[draw.position for draw in own] for own in draws(images, 0, repeats=repeats, processes=processes)]
    options = {"num_replicas": processes, "num_repeats": repeats, "selected_round": 0}
    timms: Any = RepeatAugSampler
    theirs = [list(timms(range(images), rank=rank, **options)) for rank in range(processes)]
    pattern = [[sorted({*own}, key=own.index).index(position) for position in own] for own in ours]
    assert pattern == [[sorted({*own}, key=own.index).index(position) for position in own] for own in theirs]
    counts = [Counter(own) for own in ours]
    expected = {1: {3}, 2: {1, 2}, 3: {1}}[processes]  # by hand: a a a b b b … dealt out one by one
    assert set().union(*(count.values() for count in counts)) == expected
    assert all(sum(count[position] for count in counts) == 3 for count in counts for position in count)


def test_a_start_within_an_epoch_of_repeats_goes_on_where_it_was() -> None:
    whole = draws(31, 4, repeats=3, processes=2)[1]
    sampler = TrainSampler(range(31), seed=3, repeats=3, num_replicas=2, rank=1)
    sampler.start_at(4, 5)
    assert list(sampler) == whole[5:]
    sampler.set_epoch(5)
    assert list(sampler) == draws(31, 5, repeats=3, processes=2)[1]


def test_the_order_and_the_seeds_follow_seed_and_epoch_alone() -> None:
    def of(seed: int, epoch: int) -> list[Draw]:
        sampler = TrainSampler(range(50), seed=seed)
        sampler.set_epoch(epoch)
        torch.rand(3)  # plays no part
        return list(sampler)

    assert of(0, 1) == of(0, 1)
    orders = [[draw.position for draw in of(seed, epoch)] for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len(set(map(tuple, orders))) == 4  # also (0, 1) and (1, 0), whose sum is the same
    assert len({draw.seed for epoch in range(3) for draw in of(0, epoch)}) == 150


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_start_within_an_epoch_gives_the_same_batches(num_workers: int) -> None:
    dataset = noise(23)

    def loader() -> DataLoader[object]:
        sampler = TrainSampler(dataset, seed=3)
        return DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=num_workers)

    whole, resumed = loader(), loader()
    cast(TrainSampler, whole.sampler).set_epoch(2)
    cast(TrainSampler, resumed.sampler).start_at(2, 3 * 4)
    expected, found = (cast(list[Batch], list(each)) for each in (whole, resumed))
    assert len(expected) == 6
    for one, other in zip(expected[3:], found, strict=True):
        assert one["path"] == other["path"]
        assert torch.equal(one["image"], other["image"])
    cast(TrainSampler, resumed.sampler).set_epoch(3)
    assert len(list(resumed)) == 6  # only the first iteration is short


def test_augmentation_follows_the_seed_of_the_draw() -> None:
    dataset = noise(2)
    first = dataset[Draw(1, 7)]["image"]
    random.seed(5)
    torch.rand(9)
    assert torch.equal(dataset[Draw(1, 7)]["image"], first)
    assert not torch.equal(dataset[Draw(1, 8)]["image"], first)


def test_seeding_an_image_leaves_the_masks_generator_alone() -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    with seeded(11):
        drawn = torch.rand(2)
    assert torch.equal(torch.rand(3), expected)
    with seeded(11):
        assert torch.equal(torch.rand(2), drawn)
    state = random.getstate()
    with seeded(None):
        assert random.getstate() == state
    with seeded(11):
        values = random.random(), np.random.random()
    with seeded(11):
        assert (random.random(), np.random.random()) == values


def test_padding_counts_nowhere() -> None:
    dataset = noise(3, "eval")
    batch = cast(Batch, next(iter(DataLoader(dataset, batch_size=4, sampler=[0, 2, PADDING]))))
    assert batch["image"][2].count_nonzero() == 0
    assert batch["index"].tolist() == [0, 2, -1]
    assert batch["label"].tolist() == [0, 2, -1]
    assert counted(batch) == [0, 1]
    assert counted({**batch, "error": ["truncated", "", ""]}) == [1]


def test_the_run_says_seed_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    first = SimpleNamespace(strategy=SimpleNamespace(broadcast=lambda _: 12))  # what the first process has drawn
    assert run_seed(first) == 12
    assert run_seed(None) != run_seed(None)
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert run_seed(first) == run_seed(None) == 7
    assert process_of(None) == process_of(SimpleNamespace(distributed_sampler_kwargs=None)) == {"num_replicas": 1, "rank": 0}
    assert process_of(SimpleNamespace(distributed_sampler_kwargs={"num_replicas": 3, "rank": 2})) == {
        "num_replicas": 3,
        "rank": 2,
    }


def test_an_epoch_that_is_under_way_keeps_its_seeds() -> None:
    sampler = TrainSampler(range(9), seed=3)
    whole = list(sampler)
    begun = iter(sampler)
    first = next(begun)
    sampler.set_epoch(1)  # Lightning prepares the next epoch
    assert [first, *begun] == whole


def test_loading_processes_ignore_both_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: dict[int, object] = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    leave_signals_to_the_run(0)
    assert handlers == {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN}
