import os
from typing import Any

import numpy as np
import pytest

from dropkey_cli.data.dataset import Sample
from dropkey_cli.data.image_files import ImageFiles, _relative

MODEL: dict[str, Any] = {"image_size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1.0}


class Files(ImageFiles):
    """Image files of which nothing but the names is known."""

    def __init__(self, *, multi_label: bool = False, **options: Any) -> None:  # noqa: ANN401 - those of ImageFiles
        super().__init__(root="x", batch_size=1, num_workers=0, test_fraction=0.1, **MODEL, **options)
        self.multi_label = multi_label


def test_every_part_of_a_split_has_its_share_of_the_rarest_labels() -> None:
    generator = np.random.default_rng(0)
    rates = np.array([0.7, 0.3, 0.1, 0.04])
    has = generator.random((2000, 4)) < rates
    labels = [tuple(np.flatnonzero(row).tolist()) for row in has]
    files = Files(multi_label=True)
    samples = [Sample(f"x/{number:04}.png", label) for number, label in enumerate(labels)]
    files.make_splits({"train": samples}, list("abcd"), base="x")
    parts = {split: dataset.class_counts(4) for split, dataset in files.splits.items()}
    assert np.sum([*parts.values()], axis=0).tolist() == has.sum(0).tolist()
    for split, share in (("val", 0.2), ("test", 0.1)):
        assert len(files.splits[split]) == pytest.approx(2000 * share, abs=3)
        assert parts[split][2:] == pytest.approx(has.sum(0)[2:] * share, rel=0.12)
        assert sum(label == () for label in files.splits[split].labels) == pytest.approx(labels.count(()) * share, abs=1)
    train = files.splits["train"]
    assert train.labels == [labels[int(train.paths[index][2:6])] for index in range(len(train))]


def test_the_only_image_of_a_label_stays_for_training() -> None:
    files = Files(multi_label=True)
    samples = [Sample(f"x/{number}.png", (0,)) for number in range(9)] + [Sample("x/9.png", (0, 1))]
    files.make_splits({"train": samples}, ["a", "b"], base="x")
    assert (0, 1) in files.splits["train"].labels
    assert files.split_note == (
        "Of 10 images, 2 for val (20%) and 1 for test (10%) are held out of training (split_seed 0). "
        "val has no image of 1 class(es): 'b'. test has no image of 1 class(es): 'b'."
    )


def splits_of(samples: dict[str, list[Sample]], base: str = "x", **options: Any) -> Files:  # noqa: ANN401 - those of ImageFiles
    files = Files(multi_label=isinstance(samples["train"][0].label, tuple), **options)
    files.make_splits(samples, ["a", "b", "c"], base=base)
    return files


@pytest.mark.parametrize("labels", [(0, 1, 2), ((0,), (0, 1), (0, 2))])
def test_few_training_images_are_chosen_after_the_others_were_held_out(labels: tuple[Any, ...]) -> None:
    samples = {"train": [Sample(f"x/{number:03}.png", labels[number % 8 % 3]) for number in range(160)]}
    whole, few = splits_of(samples), splits_of(samples, max_train_images=28)
    assert few.split_note == f"{whole.split_note} 28 of 112 training images are used (max_train_images 28)."
    assert [few.splits[split].samples for split in ("val", "test")] == [
        whole.splits[split].samples for split in ("val", "test")
    ]
    assert set(few.splits["train"].samples) < set(whole.splits["train"].samples)
    assert 4 * np.array(few.splits["train"].class_counts(3)) == pytest.approx(whole.splits["train"].class_counts(3), abs=4)


def test_few_training_images_are_the_same_wherever_they_lie() -> None:
    def chosen(folder: str, names: list[str], seed: int) -> list[str]:
        samples = {split: [Sample(f"{folder}/{split}/{name}", int(name[0])) for name in names] for split in ("train", "val")}
        train = splits_of(samples, folder, max_train_images=12, split_seed=seed).splits["train"]
        return [train.paths[index].removeprefix(f"{folder}/train/") for index in range(len(train))]

    names = [f"{number % 3}/{number}.png" for number in range(60)]
    assert len(chosen("x", names, 0)) == 12
    assert sorted(chosen("/elsewhere/y", names[::-1], 0)) == sorted(chosen("x", names, 0)) != sorted(chosen("x", names, 1))


@pytest.mark.parametrize("base", ["a", "a/b", "", "c", "/", ".."])
@pytest.mark.parametrize("path", ["a/b/1.png", "a/bb/1.png", "/a/b/1.png", "../1.png"])
def test_names_are_relative_as_the_standard_library_has_it(path: str, base: str) -> None:
    assert _relative(path, base) == os.path.relpath(path, base or ".")
