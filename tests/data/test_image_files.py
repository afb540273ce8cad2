import os
from typing import Any

import numpy as np
import pytest

from dropkey_cli.data.dataset import Sample
from dropkey_cli.data.image_files import ImageFiles, _relative

MODEL: dict[str, Any] = {"image_size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1.0}


class Files(ImageFiles):
    """Image files of which nothing but the names is known."""

    def __init__(self, *, multi_label: bool = False) -> None:
        super().__init__(root="x", batch_size=1, num_workers=0, test_fraction=0.1, **MODEL)
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


@pytest.mark.parametrize("base", ["a", "a/b", "", "c", "/", ".."])
@pytest.mark.parametrize("path", ["a/b/1.png", "a/bb/1.png", "/a/b/1.png", "../1.png"])
def test_names_are_relative_as_the_standard_library_has_it(path: str, base: str) -> None:
    assert _relative(path, base) == os.path.relpath(path, base or ".")
