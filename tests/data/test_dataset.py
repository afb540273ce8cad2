import pickle
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dropkey_cli.data.dataset import Batch, ImageDataset, Sample
from dropkey_cli.data.loading import PADDING
from dropkey_cli.data.preprocessing import Preprocessing, eval_transform
from dropkey_cli.errors import InputError

PLAIN = eval_transform(Preprocessing(4, (0.0,) * 3, (1.0,) * 3, "nearest", 1.0))


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (6, 5), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no\nimage")
    return [Sample(str(tmp_path / f"{name}.png"), label) for name, label in (("red", 2), ("broken", -1), ("blue", 0))]


def test_batch_has_one_entry_per_image_in_every_field(samples: list[Sample]) -> None:
    dataset = ImageDataset(samples, PLAIN, image_size=4, on_error="record")
    batch = cast(Batch, next(iter(DataLoader(dataset, batch_size=3))))
    assert batch["image"].shape == (3, 3, 4, 4)
    assert batch["image"].dtype == torch.uint8
    assert batch["image"][:, :, 0, 0].tolist() == [[255, 0, 0], [0, 0, 0], [0, 0, 255]]
    assert batch["label"].tolist() == [2, -1, 0]
    assert batch["index"].tolist() == [0, 1, 2]
    assert batch["label"].dtype == batch["index"].dtype == torch.int64
    assert batch["path"] == [sample.path for sample in samples]
    assert batch["error"][0] == batch["error"][2] == ""
    assert "cannot identify image file" in batch["error"][1]


def test_recorded_error_is_one_line(samples: list[Sample]) -> None:
    dataset = ImageDataset([Sample("two\nlines.png", -1)], PLAIN, image_size=4, on_error="record")
    assert "No such file" in dataset[0]["error"]
    assert "\n" not in dataset[0]["error"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_image_stops_training_and_is_named(samples: list[Sample], num_workers: int) -> None:
    loader = DataLoader(ImageDataset(samples, PLAIN, image_size=4), batch_size=3, num_workers=num_workers)
    with pytest.raises(InputError, match=r"cannot read '.*broken\.png' \(cannot identify image file.*repair or remove"):
        next(iter(loader))


def test_a_folder_that_is_gone_stops_even_what_skips(samples: list[Sample], tmp_path: Path) -> None:
    for on_error in ("raise", "skip", "record"):
        (tmp_path / "photos").mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "a.png")
        dataset = ImageDataset([Sample(str(tmp_path / "photos/a.png"), 0)], PLAIN, image_size=4, on_error=on_error)
        assert dataset[0]["error"] == ""
        (tmp_path / "photos/a.png").unlink()
        if on_error != "raise":
            assert "No such file" in dataset[0]["error"]
        (tmp_path / "photos").rmdir()
        if on_error == "record":  # a row of predictions
            assert "No such file" in dataset[0]["error"]
        else:
            with pytest.raises(InputError, match=r"cannot read '.*a\.png': the folder '.*photos' is gone; mount or restore it"):
                _ = dataset[0]


def test_images_in_memory_are_not_read_from_disk() -> None:
    images = [Image.new("RGB", (4, 4), "white"), Image.new("RGB", (4, 4), "black")]
    dataset = ImageDataset([Sample("memory/0", 1), Sample("memory/1", 0)], PLAIN, image_size=4, read=images.__getitem__)
    assert [set(example["image"].flatten().tolist()) for example in (dataset[0], dataset[1])] == [{255}, {0}]
    assert dataset[1]["path"] == "memory/1"


def test_labels_and_class_counts(samples: list[Sample]) -> None:
    dataset = ImageDataset([samples[0], samples[0], samples[2]], PLAIN, image_size=4)
    assert len(dataset) == 3
    assert dataset.labels == [2, 2, 0]
    assert dataset.class_counts(4) == [1, 0, 2, 0]


def test_dataset_can_be_sent_to_a_worker_process(samples: list[Sample]) -> None:
    dataset = pickle.loads(pickle.dumps(ImageDataset(samples, PLAIN, image_size=4)))
    assert dataset[0]["path"] == samples[0].path


def test_what_cannot_be_read_stands_as_zeros_of_all_channels(tmp_path: Path) -> None:
    numbers = (0.5,) * 5
    plain = eval_transform(Preprocessing(4, numbers, numbers, "nearest", 1.0, channels=5))
    np.save(tmp_path / "a.npy", np.full((6, 4, 5), 7, np.uint8))
    samples = [Sample(str(tmp_path / name), 0) for name in ("a.npy", "b.npy")]
    dataset = ImageDataset(samples, plain, image_size=4, channels=5, on_error="skip")
    images = [dataset[item]["image"] for item in (0, 1, PADDING)]
    assert [image.shape for image in images] == [(5, 4, 4)] * 3
    assert [set(image.flatten().tolist()) for image in images] == [{7}, {0}, {0}]
