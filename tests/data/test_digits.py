import hashlib
from itertools import chain
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from dropkey_cli.data.dataset import Batch
from dropkey_cli.data.digits import MEAN, STD, Digits
from dropkey_cli.errors import InputError


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = Digits()
    data.setup("fit")
    return data


def positions(data: Digits, split: str) -> list[int]:
    return [int(sample.path.removeprefix("digits/")) for sample in data.splits[split].samples]


def test_split_is_complete_disjoint_and_stratified(digits: Digits) -> None:
    target = load_digits().target
    parts = {split: positions(digits, split) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 1079, "val": 359, "test": 359}
    assert sorted(chain(*parts.values())) == list(range(1797))
    for split, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        np.testing.assert_allclose(digits.splits[split].class_counts(10), share * np.bincount(target), atol=1)
        assert digits.splits[split].labels == target[parts[split]].tolist()


def test_split_never_changes(digits: Digits) -> None:
    names = " ".join(sample.path for sample in digits.splits["train"].samples)
    assert hashlib.sha256(names.encode()).hexdigest()[:12] == "4bf45adc0f4b"


def test_split_is_independent_of_global_seeds(digits: Digits) -> None:
    np.random.seed(3)
    torch.manual_seed(3)
    again = Digits()
    again.setup("test")
    assert positions(again, "val") == positions(digits, "val")


def test_mean_and_std_are_those_of_the_training_scans(digits: Digits) -> None:
    scans = np.rint(load_digits().images[positions(digits, "train")] / 16 * 255) / 255
    assert pytest.approx(scans.mean(), abs=5e-5) == MEAN
    assert pytest.approx(scans.std(), abs=5e-5) == STD


def test_image_is_the_scan(digits: Digits) -> None:
    example = digits.splits["val"][0]
    scan = load_digits().images[positions(digits, "val")[0]]  # (8, 8), 0..16
    assert example["image"].shape == (3, 8, 8)
    for channel in example["image"]:
        np.testing.assert_allclose(channel.numpy() / 255, scan / 16, atol=0.5 / 255 + 1e-6)


def test_classes_and_preprocessing_are_known_before_setup() -> None:
    data = Digits(image_size=16)
    assert data.class_names == list("0123456789")
    assert data.preprocessing.image_size == 16
    assert data.split_note is None
    data.setup("validate")
    assert cast(Batch, next(iter(data.val_dataloader())))["image"].shape == (64, 3, 16, 16)


def test_only_training_images_are_augmented(digits: Digits) -> None:
    torch.manual_seed(0)
    train, val = digits.splits["train"], digits.splits["val"]
    assert not torch.equal(train[0]["image"], train[0]["image"])
    assert torch.equal(val[0]["image"], val[0]["image"])
    still = Digits(degrees=0.0, translate=0.0)
    still.setup("fit")
    assert torch.equal(still.splits["train"][0]["image"], still.splits["train"][0]["image"])


def test_prediction_takes_files_at_the_size_of_the_digits(tmp_path: Path) -> None:
    Image.new("L", (20, 30), 255).save(tmp_path / "one.png")
    data = Digits(str(tmp_path))
    data.setup("predict")
    assert data.splits == {}
    batch = cast(Batch, next(iter(data.predict_dataloader())))
    assert batch["image"].shape == (1, 3, 8, 8)
    assert set(batch["image"].flatten().tolist()) == {255}


def test_impossible_augmentation() -> None:
    with pytest.raises(InputError, match=r"degrees is -1.0 and translate 0.125; expected an angle of 0 or more"):
        Digits(degrees=-1.0).setup("fit")


def test_fewer_training_images_are_nested_and_leave_the_others_alone(digits: Digits) -> None:
    def few(count: int) -> Digits:
        data = Digits(degrees=0.0, translate=0.0, max_train_images=count)
        data.setup("fit")
        return data

    half, quarter = few(500), few(250)
    assert half.split_note == "500 of 1079 training images are used (max_train_images 500)."
    train = digits.splits["train"]
    np.testing.assert_allclose(half.splits["train"].class_counts(10), np.array(train.class_counts(10)) * 500 / 1079, atol=1)
    assert set(quarter.splits["train"].samples) < set(half.splits["train"].samples) < set(train.samples)
    for index in (0, 7):  # each has its own scan
        scan = load_digits().images[positions(half, "train")[index]]
        np.testing.assert_allclose(half.splits["train"][index]["image"][0] / 255, scan / 16, atol=0.5 / 255 + 1e-6)
    for split in ("val", "test"):
        assert half.splits[split].samples == digits.splits[split].samples
    everything = few(5000)
    assert everything.splits["train"].samples == train.samples
    assert everything.split_note == "All 1079 training images are used (max_train_images 5000)."


def test_fewer_training_images_than_classes() -> None:
    with pytest.raises(
        InputError, match=r"max_train_images is 9; expected at least 10, one image of each class; .* 10, or null"
    ):
        Digits(max_train_images=9).setup("fit")
    with pytest.raises(InputError, match="max_train_images is 0; expected 1 or more, or null for all"):
        Digits(max_train_images=0)
